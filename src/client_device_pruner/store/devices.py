"""The rows of client devices and of their verdicts."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from sys import intern
from typing import Any

from client_device_pruner.presence.devices import Device

_REAL, _INTEGER, _TEXT, _FLAG = "REAL", "INTEGER", "TEXT", "INTEGER NOT NULL CHECK ({0} IN (0, 1))"
_FIELDS: dict[str, tuple[str, bool]] = {
    # attribute of Device: its type, and whether it may be None
    "seen_at": (_REAL, True),
    "seen_by": (_TEXT, False),
    "seen_wall": (_REAL, False),
    "present_until": (_REAL, True),
    "silence_window": (_INTEGER, False),
    "longest_silence": (_REAL, False),
    "longest_before": (_REAL, False),
    "messages": (_INTEGER, False),
    "first_message": (_REAL, False),
    "last_message": (_REAL, False),
    "session": (_FLAG, False),
    "session_id": (_INTEGER, True),
    "session_since": (_REAL, False),
    "ended_id": (_INTEGER, True),
    "announced": (_INTEGER, False),
    "then": (_INTEGER, True),
    "associated": (_FLAG, False),
    "association_timestamp": (_REAL, True),
    "listed_at": (_REAL, True),
    "unlisted_at": (_REAL, True),
    "marked_at": (_REAL, True),
    "keepalive": (_FLAG, False),
}
_COLUMN = {attribute: "then_count" if attribute == "then" else attribute for attribute in _FIELDS}
"""`then` is a keyword of SQL."""
DEVICE_COLUMNS = ", ".join(f"{_COLUMN[attribute]} {kind.split()[0]}" for attribute, (kind, _) in _FIELDS.items())
"""All columns of the table `devices` but `name` and `since`, as its definition has them."""


def load_devices(connection: sqlite3.Connection) -> dict[str, Device]:
    """All devices that are stored, by name.

    Raises:
        sqlite3.Error, ValueError: a row cannot be read, or holds what was never written (bits that flipped).
    """
    devices = {}
    for row in connection.execute("SELECT * FROM devices"):
        device = Device(_checked(row["name"], _TEXT, optional=False))
        for attribute, (kind, optional) in _FIELDS.items():
            value = _checked(row[_COLUMN[attribute]], kind, optional=optional)
            if value != getattr(device, attribute):  # most are as by default, and share those objects
                setattr(device, attribute, intern(value) if kind is _TEXT else value)
        devices[device.name] = device
    return devices


def _checked(value: Any, kind: str, *, optional: bool) -> Any:
    if value is None and optional:
        return None
    if kind is _TEXT and isinstance(value, str):
        return value
    if kind is _REAL and isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    if kind is _INTEGER and isinstance(value, int):
        return value
    if kind is _FLAG and value in {0, 1}:
        return bool(value)
    raise ValueError(f"a device's row holds {value!r} in place of {kind.split(maxsplit=1)[0]}")


def save_devices(
    write: sqlite3.Connection,
    devices: Iterable[Device],
    removed: Iterable[str],
    since: Callable[[Device], float | None],
) -> None:
    """Write these devices, and delete the removed names.

    `since` gives the observed seconds at which a device's silence began (None: present), for who reads the file.
    """
    write.executemany("DELETE FROM devices WHERE name = ?", [(name,) for name in removed])
    places = ", ".join("?" * (len(_FIELDS) + 2))
    write.executemany(
        f"INSERT OR REPLACE INTO devices VALUES ({places})",  # noqa: S608 - only place holders
        ((d.name, *(getattr(d, attribute) for attribute in _FIELDS), since(d)) for d in devices),
    )


def save_verdicts(write: sqlite3.Connection, verdicts: Iterable[tuple[str, str | None]]) -> None:
    """Write these verdict documents (JSON) by name, and delete those that are None."""
    removed = []

    def documents() -> Iterator[tuple[str, str]]:
        for name, text in verdicts:
            if text is None:
                removed.append((name,))
            else:
                yield name, text

    write.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", documents())
    write.executemany("DELETE FROM verdicts WHERE name = ?", removed)
