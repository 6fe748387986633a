"""The named shadows of things, as AWS IoT keeps them: what is published to their `update` topics, merged."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from local_core.pubsub import Message

MOST_BYTES = 8 * 1024
"""A shadow's document, without its metadata (AWS IoT Device Shadow quotas)."""
_UPDATE = re.compile(r"\$aws/things/([a-zA-Z0-9:_-]{1,128})/shadow/name/([$a-zA-Z0-9:_-]{1,64})/update")


class Shadows:
    """Takes what is published to AWS IoT Core.

    Attributes:
        reported: What each shadow reports, by thing and shadow name.
        rejected: Updates that AWS IoT would have rejected, with the reason.
    """

    def __init__(self) -> None:
        self.reported: dict[tuple[str, str], dict[str, Any]] = {}
        self.rejected: list[tuple[Message, str]] = []

    def take(self, message: Message) -> None:
        """Carry out an update; other messages are passed over."""
        if (topic := _UPDATE.fullmatch(message.topic)) is None:
            return
        key = topic[1], topic[2]
        try:
            merged = _merge(self.reported.get(key, {}), json.loads(message.payload)["state"]["reported"])
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            self.rejected.append((message, f"not an update: {problem!r}"))
            return
        if len(json.dumps(merged, separators=(",", ":")).encode()) > MOST_BYTES:
            self.rejected.append((message, "the shadow would be too long"))
        else:
            self.reported[key] = merged


def _merge(before: Any, update: dict[str, Any]) -> dict[str, Any]:
    """Maps merge by key, `null` removes one, everything else is replaced."""
    merged = dict(before) if isinstance(before, dict) else {}
    merged |= {
        key: _merge(merged.get(key), value) if isinstance(value, dict) else value for key, value in update.items()
    }
    return {key: value for key, value in merged.items() if value is not None}
