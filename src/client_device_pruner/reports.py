"""What the component tells others: events as CloudEvents, and its log."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import accumulate
from typing import Any

from client_device_pruner import __version__
from client_device_pruner.settings import Settings

TYPE_PREFIX = "community.greengrass.pruner."
LOGGER = logging.getLogger("client_device_pruner")
MOST_EVENT_BYTES = 7_000
"""Greengrass Lite carries IPC messages of up to 10,000 bytes: so many in base64, and the topic."""

_OF_A_CYCLE = ("complete", "disassociated")
"""What the shadow says of the last cycle, besides when it ended."""
_LEVELS = {
    "failed": logging.ERROR,
    "held": logging.WARNING,
    "disassociated": logging.WARNING,
    "returned": logging.WARNING,
}


class Reports:
    """Makes events and passes them to local pub/sub, AWS IoT Core, the history and the log.

    Args:
        core_device: thing name of the core device.
        wall: the wall clock, in epoch seconds.
        publish: publishes on local pub/sub.
        publish_to_iot_core: publishes to AWS IoT Core; False without a connection.
        record: keeps an event in the history.
    """

    def __init__(
        self,
        core_device: str,
        *,
        wall: Callable[[], float],
        publish: Callable[[str, bytes], None],
        publish_to_iot_core: Callable[[str, bytes], bool],
        record: Callable[[float, str, str | None, dict[str, Any]], None],
    ) -> None:
        self._core_device = core_device
        self._wall = wall
        self._publish = publish
        self._publish_to_iot_core = publish_to_iot_core
        self._record = record
        self._shadow: tuple[str, dict[str, Any]] | None = None
        self._last_cycle: dict[str, Any] = {}

    def event(self, settings: Settings, kind: str, name: str | None = None, /, **data: Any) -> None:
        """Publish one event of the contract; `name` is the device that it is about, if any."""
        wall = self._wall()
        event = {
            "specversion": "1.0",
            "id": os.urandom(16).hex(),
            "source": f"/greengrass/{self._core_device}/client-device-pruner",
            "type": TYPE_PREFIX + kind,
            "time": rfc3339(wall),
            "datacontenttype": "application/json",
            "data": data,
        }
        if name is not None:
            event["subject"] = name
        payload = _encode_within(event, MOST_EVENT_BYTES)
        if kind == "cycle":
            self._last_cycle = {"lastCycle": {"endedAt": int(wall), **{k: data[k] for k in _OF_A_CYCLE if k in data}}}
        if settings.reports.local_topic:
            self._publish(settings.reports.local_topic, payload)
        if settings.reports.iot_core_topic:
            topic = settings.reports.iot_core_topic.replace("{thingName}", self._core_device)
            self._publish_to_iot_core(topic, payload)
        self._record(wall, kind, name, data)
        LOGGER.log(_LEVELS.get(kind, logging.INFO), kind, extra={"fields": {"thingName": name, **data}})

    def forget_shadow(self) -> None:
        """What was sent last did not arrive: it is sent again."""
        self._shadow = None

    def shadow(self, settings: Settings, status: dict[str, Any]) -> None:
        """Write the status, cut down to what fleet indexing takes, to the named shadow if it changed."""
        name = settings.reports.shadow_name
        reported = {
            "version": __version__,
            "coverage": {key: status["coverage"][key] for key in ("associated", "provable")},
            "counts": status["counts"],
            "guards": sorted(hold["guard"] for hold in status["guards"]),
            "holding": len(status["guards"]),
            "reason": next(iter(status["coverage"]["reasons"]), "")[:200],
            "vouching": sorted(source for source, said in status["sources"].items() if said["vouching"]),
            "dryRun": settings.dry_run,
            **self._last_cycle,
        }
        if name and (name, reported) != self._shadow:
            topic = f"$aws/things/{self._core_device}/shadow/name/{name}/update"
            payload = _encode({"state": {"reported": reported}})
            if self._publish_to_iot_core(topic, payload):
                self._shadow = (name, reported)


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
        lengths = list(accumulate(len(str(item)) for item in value))
        kept = sum(reached <= length for reached in lengths)
        return value if kept == len(value) else [*value[:kept], f"… and {len(value) - kept} more: see the log"]
    return value


def rfc3339(wall: float) -> str:
    """A moment in UTC, with milliseconds."""
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonLines(logging.Formatter):
    """One record a line, as JSON; the fields of a record's `fields` beside its message."""

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
    """Send WARNING and above to standard error, the rest to standard output."""
    quiet = logging.StreamHandler(sys.stdout)
    quiet.addFilter(lambda record: record.levelno < logging.WARNING)
    loud = logging.StreamHandler(sys.stderr)
    loud.setLevel(logging.WARNING)
    for handler in (quiet, loud):
        handler.setFormatter(JsonLines())
    LOGGER.handlers[:] = [quiet, loud]
    LOGGER.propagate = False
    LOGGER.setLevel(level)
