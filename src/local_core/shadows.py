"""The named shadows of things, as AWS IoT keeps them: what is published to their `update` topics, merged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from local_core.pubsub import Message

MOST_BYTES = 8 * 1024
"""A shadow's document, without its metadata (AWS IoT Device Shadow quotas; so with the next)."""
MOST_LEVELS = 8
"""Levels of maps in `reported`."""

_UPDATE = re.compile(
    r"\$aws/things/(?P<thing>[a-zA-Z0-9:_-]{1,128})/shadow/name/(?P<name>[$a-zA-Z0-9:_-]{1,64})/update"
)


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
        topic = _UPDATE.fullmatch(message.topic)
        if topic is None:
            return
        key = topic["thing"], topic["name"]
        try:
            update = json.loads(message.payload)["state"]["reported"]
            merged = _merge(self.reported.get(key, {}), update)
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            self.rejected.append((message, f"not an update: {problem!r}"))
            return
        if len(json.dumps(merged, separators=(",", ":")).encode()) > MOST_BYTES:
            self.rejected.append((message, "the shadow would be too long"))
        elif _levels(merged) > MOST_LEVELS:
            self.rejected.append((message, "the shadow would be too deep"))
        else:
            self.reported[key] = merged


def _merge(before: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Maps merge by key, `null` removes one, everything else is replaced."""
    merged = dict(before)
    for key, value in update.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            old = merged.get(key)
            merged[key] = _merge(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _levels(value: Any) -> int:
    return 1 + max(map(_levels, value.values()), default=0) if isinstance(value, dict) else 0
