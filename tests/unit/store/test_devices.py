"""The rows of devices: each attribute comes back, and a value that was never written is an error."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.presence.devices import Device
from client_device_pruner.store.database import open_database
from client_device_pruner.store.devices import load_devices, save_devices

KINDS: dict[str, Any] = {"float": float, "int": int, "str": str, "bool": bool}
KEPT = [field for field in dataclasses.fields(Device) if field.name not in ("name", "keepalive", "told")]
FULL = Device("pump-7", keepalive=False)
"""Each attribute that is kept has a value of its own."""
for number, field in enumerate(KEPT, 1):
    setattr(FULL, field.name, KINDS[str(field.type).removesuffix(" | None")](number))


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A new file with one device in it."""
    with closing(open_database(tmp_path / "pruner.db", "core-1")[0]) as connection:
        save_devices(connection, [FULL], [], lambda _device: None)
        yield connection


def test_every_attribute_comes_back(connection: sqlite3.Connection) -> None:
    """Also those that are None; nothing but what the component tells itself in a run is left out."""
    save_devices(connection, [Device("new")], [], lambda _device: 3.0)

    assert load_devices(connection) == {"pump-7": FULL, "new": Device("new")}
    unset = [f.name for f in dataclasses.fields(Device) if getattr(FULL, f.name) == getattr(Device("x"), f.name)]
    assert unset == ["told"]
    assert connection.execute("SELECT since FROM devices ORDER BY name").fetchone()[0] == 3.0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", "x'00'"),
        ("silent_since", "'x'"),
        ("seen_by", "NULL"),
        ("messages", "1.5"),
        ("keepalive", "'no'"),
        ("keepalive", "NULL"),
        ('"then"', "x'00'"),
        ("since", "9e999"),
    ],
)
def test_what_was_never_written_is_an_error(
    tmp_path: Path, connection: sqlite3.Connection, column: str, value: str
) -> None:
    """Bits that flipped in an intact page are found, not believed."""
    change = f"UPDATE devices SET {column} = {value}"  # noqa: S608 - constants above
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(change)
    connection.execute("PRAGMA ignore_check_constraints = 1")
    connection.execute(change)

    again, aside = open_database(tmp_path / "pruner.db", "core-1")
    again.close()
    assert "the integrity check failed" in aside
