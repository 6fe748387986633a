"""What the component tells others: its events as CloudEvents, and its log as lines of JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime, timezone
from itertools import accumulate
from typing import Any

TYPE_PREFIX = "community.greengrass.pruner."
LOGGER = logging.getLogger("client_device_pruner")
MOST_EVENT_BYTES = 7_000  # Greengrass Lite carries IPC messages of up to 10,000 bytes: so many in base64, and the topic

_LEVELS = {"failed": logging.ERROR, **dict.fromkeys(("held", "disassociated", "returned"), logging.WARNING)}


def cloud_event(core_device: str, wall: float, kind: str, name: str | None, data: dict[str, Any]) -> bytes:
    """An event of this type (without the prefix) at epoch seconds `wall`, about a device or none, as JSON.

    `data` has scalars and short lists.
    """
    event = {
        "specversion": "1.0",
        "id": os.urandom(16).hex(),
        "source": f"/greengrass/{core_device}/client-device-pruner",
        "type": TYPE_PREFIX + kind,
        "time": rfc3339(wall),
        "datacontenttype": "application/json",
        "data": data,
    }
    if name is not None:
        event["subject"] = name
    return _encode_within(event, MOST_EVENT_BYTES)


def log_event(kind: str, name: str | None, data: dict[str, Any]) -> None:
    """Log an event, as loud as it matters."""
    LOGGER.log(_LEVELS.get(kind, logging.INFO), kind, extra={"fields": {"thingName": name, **data}})


def _encode_within(event: dict[str, Any], most_bytes: int) -> bytes:
    """An event as JSON, its texts and lists cut short if it would be too long."""
    payload, length = _encode(event), most_bytes
    while len(payload) > most_bytes and length > 1:
        length = length * 3 // 4
        payload = _encode({**event, "data": {key: _cut(value, length) for key, value in event["data"].items()}})
    return payload


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _cut(value: Any, length: int) -> Any:
    """A value in about so many characters; the log and the history have it whole."""
    if isinstance(value, str) and len(value) > length:
        return f"{value[:length]}…"
    if isinstance(value, list):
        lengths = accumulate(len(str(item)) for item in value)
        kept = sum(reached <= length for reached in lengths)
        return value if kept == len(value) else [*value[:kept], f"… and {len(value) - kept} more: see the log"]
    return value


def rfc3339(wall: float) -> str:
    """Epoch seconds as a time in UTC, with milliseconds."""
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonLines(logging.Formatter):
    """One record a line, as JSON; what a record has in `fields` stands beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        line.update({k: v for k, v in getattr(record, "fields", {}).items() if v is not None})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_standard_streams(level: str = "INFO") -> None:
    """Send WARNING and above to standard error, the rest to standard output: the nucleus logs them as such."""
    quiet = logging.StreamHandler(sys.stdout)
    quiet.addFilter(lambda record: record.levelno < logging.WARNING)
    loud = logging.StreamHandler(sys.stderr)
    loud.setLevel(logging.WARNING)
    for handler in (quiet, loud):
        handler.setFormatter(JsonLines())
    LOGGER.handlers[:] = [quiet, loud]
    LOGGER.propagate = False
    LOGGER.setLevel(level)
