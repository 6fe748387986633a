"""What the devices publish: whose message it is, and whether it is a sign of life (DESIGN, model 1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from client_device_pruner.config.topics import filter_covers

LONGEST_NAME = 256  # longer names are not kept: a thing name has at most 128 characters
_COMPARED_BYTES = 4_096  # so much of a payload is compared with the globs: a last will is short


class Messages:
    """Tells the thing name of a message: in its topic, the level of the first `+` of the filter that matches it.

    Payloads that match a glob of `ignored_payloads`, case aside, are no sign of life.
    """

    def __init__(self, topics: Iterable[str], ignored_payloads: Iterable[str]) -> None:
        self._filters = [(topic, topic.split("/").index("+")) for topic in topics]
        globs = [translate(glob) for glob in ignored_payloads]
        self._ignored = re.compile("|".join(globs), re.IGNORECASE) if globs else None

    def thing_name(self, topic: str, payload: bytes) -> str | None:
        """The device that this message shows alive; None if it shows none."""
        for wanted, position in self._filters:
            if filter_covers(wanted, topic):
                name = topic.split("/")[position]
                return name if is_name(name) and not self._is_ignored(payload) else None
        return None

    def _is_ignored(self, payload: bytes) -> bool:
        if not payload:
            return True
        if self._ignored is None:
            return False
        # A text is the same with the quotes that JSON puts around it.
        text = payload[:_COMPARED_BYTES].decode(errors="replace").strip().strip('"')
        return not text or self._ignored.match(text) is not None


def is_name(name: str) -> bool:
    """Whether a client id can be kept: one that can be stored and shown, and is not much longer than a thing name."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable()
