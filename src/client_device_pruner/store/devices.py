"""The rows of client devices and of their verdicts."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable
from sys import intern
from typing import Any

from client_device_pruner.presence.devices import Device

_COLUMNS = {"float": "REAL", "int": "INTEGER", "bool": "INTEGER", "str": "TEXT"}
_TYPES = {"float": float, "int": int, "bool": int, "str": str}
_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Device) if field.name not in ("name", "told")}
"""The attributes of a device that are stored, with their types."""
DEVICE_COLUMNS = ", ".join(f'"{name}" {_COLUMNS[kind.removesuffix(" | None")]}' for name, kind in _FIELDS.items())
"""All columns of the table `devices` but `name` and `since`, as its definition has them."""


def load_devices(connection: sqlite3.Connection) -> dict[str, Device]:
    """All devices that are stored, by name; raises `ValueError` where a row holds what was never written."""
    devices = {}
    for row in connection.execute("SELECT * FROM devices"):
        device = Device(row["name"])
        for name, kind in _FIELDS.items():
            value = _checked(row[name], kind)
            if value != getattr(device, name):  # most are as by default, and share those objects
                setattr(device, name, intern(value) if kind == "str" else value)
        devices[device.name] = device
    return devices


def _checked(value: Any, kind: str) -> Any:
    if value is None and kind.endswith(" | None"):
        return None
    if not isinstance(value, _TYPES[kind.removesuffix(" | None")]) or value in (float("inf"), -float("inf")):
        raise ValueError(f"a device's row holds {value!r} in place of {kind}")
    return bool(value) if kind == "bool" else value


def save_devices(
    write: sqlite3.Connection,
    devices: Iterable[Device],
    removed: Iterable[str],
    since: Callable[[Device], float | None],
) -> None:
    """Write these devices, and delete the removed names, with their verdicts.

    `since` gives the observed seconds at which a device's silence began (None: present), for readers of the file.
    """
    names = [(name,) for name in removed]
    write.executemany("DELETE FROM devices WHERE name = ?", names)
    write.executemany("DELETE FROM verdicts WHERE name = ?", names)
    places = ", ".join("?" * (len(_FIELDS) + 2))
    write.executemany(
        f"INSERT OR REPLACE INTO devices VALUES ({places})",  # noqa: S608 - only place holders
        # No tuples of attributes: CPython keeps up to 2,000 of some lengths for later.
        ([device.name, *(getattr(device, name) for name in _FIELDS), since(device)] for device in devices),
    )


def save_verdicts(write: sqlite3.Connection, verdicts: Iterable[tuple[str, str | None]]) -> None:
    """Write these verdict documents (JSON) by name, and delete those that are None."""
    for name, text in verdicts:
        if text is None:
            write.execute("DELETE FROM verdicts WHERE name = ?", (name,))
        else:
            write.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (name, text))
