"""Messages that a broker retains come again whenever the bridge reconnects, also from devices that are gone.

Nothing tells them from new ones, so they are signs of life; but the component can say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

QUIET_SECONDS = 600.0  # a device that speaks again sooner, in observed time, does so by itself
TIMES = 3  # so many repetitions are reported


@dataclass(frozen=True, slots=True)
class Heard:
    """What a device published last: on which topic, and a checksum of the payload."""

    topic: str
    checksum: int


_NOT_REPEATED = (Heard("", 0), 0)


class Replays:
    """Knows the devices that were only heard to repeat one message, after a quiet time and together with others."""

    def __init__(self) -> None:
        self._repeated: dict[str, tuple[Heard, int]] = {}

    def heard(self, messages: Mapping[str, Heard], quiet: set[str]) -> None:
        """Take the last message between two probes of each device, and which of them had been quiet before."""
        for name, heard in messages.items():
            before, times = self._repeated.pop(name, (heard, 0))
            if name in quiet and len(quiet) > 1:
                self._repeated[name] = (heard, times + 1 if before == heard else 1)

    def hint(self, name: str) -> str:
        """The sentence about a device that was only heard to repeat one message; empty if it was not."""
        heard, times = self._repeated.get(name, _NOT_REPEATED)
        if times < TIMES:
            return ""
        # Not how many: that would be another sentence, to be written anew, with each message.
        return (
            f"At least its last {TIMES} messages were identical, on {heard.topic}, and each came together with messages"
            " of other devices. If they are retained, the broker sends them again whenever the bridge reconnects, also"
            " for a device that is gone: remove that topic from presence.messageTopics and from the bridge's mapping."
        )
