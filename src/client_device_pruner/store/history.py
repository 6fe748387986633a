"""What happened, for people to read: events, and the changes of state that timelines are drawn from."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_HISTORY = 20_000  # events kept at most, some 6 MB
MAX_TIMELINE = 50_000  # changes of state kept at most, some 3 MB

TimelineRow = tuple[float, str | None, str]
"""Wall clock in epoch seconds; the device, or None for the component itself; what its state became."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the history: when (epoch seconds), what (an event's type), to what (None: no device), its data."""

    wall: float
    kind: str
    name: str | None
    data: dict[str, Any]


def record(write: sqlite3.Connection, wall: float, kind: str, name: str | None, data: dict[str, Any]) -> None:
    """Keep one event: its type without the prefix, the device that it is about, and its data."""
    write.execute("INSERT INTO history VALUES (NULL, ?, ?, ?, ?)", (wall, kind, name, json.dumps(data)))


def add_timeline(write: sqlite3.Connection, rows: Sequence[TimelineRow]) -> None:
    """Keep changes of state, in their order."""
    write.executemany("INSERT INTO timeline (wall, name, state) VALUES (?, ?, ?)", rows)


def prune(write: sqlite3.Connection) -> None:
    """Delete the oldest rows beyond the limits: by their order, since the wall clock may be wrong for a while."""
    write.execute("DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?", (MAX_HISTORY,))
    write.execute("DELETE FROM timeline WHERE id <= (SELECT max(id) FROM timeline) - ?", (MAX_TIMELINE,))


def read_history(connection: sqlite3.Connection, thing: str | None = None) -> list[Happening]:
    """The events, oldest first; those about one device if it is named."""
    query = "SELECT wall, type, name, data FROM history WHERE ?1 IS NULL OR name = ?1 ORDER BY id"
    rows = connection.execute(query, (thing,))
    return [Happening(row["wall"], row["type"], row["name"], json.loads(row["data"])) for row in rows]


def read_timeline(connection: sqlite3.Connection) -> list[TimelineRow]:
    """All changes of state, oldest first."""
    return [tuple(row) for row in connection.execute("SELECT wall, name, state FROM timeline ORDER BY id")]
