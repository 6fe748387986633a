"""The rows of client devices and of their verdicts."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from sys import intern

from client_device_pruner.presence.devices import Device

_AFFINITY = {"float": "REAL", "int": "INTEGER", "bool": "INTEGER", "str": "TEXT"}


def columns(fields: Mapping[str, str]) -> str:
    """Columns of these names and Python types, for the definition of a table.

    They take no value of another type, so that SQLite's own check of the file finds one.
    """
    return ", ".join(_column(name, *kind.split(" | ")) for name, kind in fields.items())


def _column(name: str, kind: str, null: str = "") -> str:
    affinity = _AFFINITY[kind]
    types = f"('{affinity}', '{'NULL' if null else affinity}')".lower()
    finite = f' AND abs("{name}") < 1e12' if kind == "float" else ""  # more than any time that Python knows
    return f'"{name}" {affinity} CHECK (typeof("{name}") IN {types}{finite})'


_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Device) if field.name not in ("name", "told")}
"""The attributes of a device that are stored, with their types."""
DEVICE_COLUMNS = columns({"name": "str", **_FIELDS, "since": "float | None"})
"""All columns of the table `devices`, as its definition has them."""


def load_devices(connection: sqlite3.Connection) -> dict[str, Device]:
    """All devices that are stored, by name."""
    devices = {}
    for row in connection.execute("SELECT * FROM devices"):
        device = Device(row["name"])
        for name, kind in _FIELDS.items():
            value = bool(row[name]) if kind == "bool" else row[name]
            if value != getattr(device, name):  # most are as by default, and share those objects
                setattr(device, name, intern(value) if isinstance(value, str) else value)
        devices[device.name] = device
    return devices


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


def save_verdicts(write: sqlite3.Connection, verdicts: Iterable[tuple[str, str]]) -> None:
    """Write these verdict documents (JSON) by name."""
    write.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", verdicts)
