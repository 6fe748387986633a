"""The `activity` source: a message of a device shows that it was alive at that moment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from client_device_pruner.source_clock import SourceClock
from client_device_pruner.topics import THING_NAME

CANARY = "pruner-canary"
"""The thing name under which the component's own message comes back."""
MAX_FIELD_BYTES = 1_048_576
"""A payload beyond is not searched for a field: local pub/sub carries no such messages."""


class Signs(Protocol):
    """Where the source reports its messages."""

    def spoke(self, name: str, source_id: int, at: float) -> None:
        """The name said something on this source at that monotonic moment."""


class ActivitySource:
    """Follows the messages of devices; all times are monotonic seconds.

    Args:
        source_id: its place in the ledger.
        clock: this source's clock.
        signs: told of every message of a device.
        payload_field: where in a JSON payload the value stands that `ignored_values` are compared with.
        ignored_values: payloads that are no sign of life, a will's `offline` for instance.
    """

    def __init__(
        self,
        source_id: int,
        clock: SourceClock,
        signs: Signs,
        *,
        payload_field: str = "",
        ignored_values: Sequence[str] = (),
    ) -> None:
        self.source_id = source_id
        self.clock = clock
        self._signs = signs
        self._path = payload_field.split(".") if payload_field else []
        self._ignored = frozenset(ignored_values)

    def message(self, name: str, payload: bytes, at: float) -> None:
        """Take a message; one of the canary vouches and is no sign of any device."""
        if name == CANARY:
            self.clock.vouch(at)
        elif THING_NAME.fullmatch(name) and not self._is_ignored(payload):
            self.clock.vouch(at)
            self._signs.spoke(name, self.source_id, at)

    def reason(self, at: float) -> str:
        """Why the clock goes, or what it waits for."""
        last = self.clock.last_voucher_seconds
        if last is None:
            return "no message of a device or of the canary in this run"
        quiet = f"the last message came {at - last:.0f} s ago"
        if at - last > self.clock.max_quiet_seconds:
            return f"{quiet}, longer than its maxQuiet of {self.clock.max_quiet_seconds:.0f} s"
        if not self.clock.vouching(at):
            return f"{quiet}; the next one starts the clock"
        return quiet

    def _is_ignored(self, payload: bytes) -> bool:
        if not self._ignored:
            return False
        if not self._path:
            return payload.decode(errors="replace").strip() in self._ignored
        return _text(_dig(payload, self._path)) in self._ignored


def _dig(payload: bytes, path: Sequence[str]) -> Any:
    """The value at a dotted path of a JSON payload; None where there is none."""
    if len(payload) > MAX_FIELD_BYTES:
        return None
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _text(value: Any) -> str | None:
    """What a scalar is compared as; None for what is none or is not there, which no text equals."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None
