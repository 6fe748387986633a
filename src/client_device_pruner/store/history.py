"""What happened, for people to read: events, and the changes of state that timelines are drawn from."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAX_HISTORY = 20_000  # events kept at most, some 6 MB
MAX_TIMELINE = 50_000  # changes of state kept at most, some 3 MB


@dataclass(frozen=True, slots=True)
class Happening:
    """An event or a change of state."""

    wall: float  # when, in epoch seconds
    kind: str  # an event's type without the prefix, or what the state became
    name: str | None  # the device; None: an event about none, or the component's own state
    data: dict[str, Any]  # an event's, or `CHANGE`


CHANGE = {"change": True}  # what a change of state has in place of data


def add_history(write: sqlite3.Connection, events: Iterable[Happening]) -> None:
    """Keep events, in their order."""
    rows = ((one.wall, one.kind, one.name, json.dumps(one.data)) for one in events)
    write.executemany("INSERT INTO history VALUES (NULL, ?, ?, ?, ?)", rows)


def add_timeline(write: sqlite3.Connection, rows: Iterable[tuple[float, str | None, str]]) -> None:
    """Keep changes of state, in their order: when, of which device (None: the component), and what it became."""
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


def read_timeline(connection: sqlite3.Connection) -> list[Happening]:
    """All changes of state, oldest first."""
    rows = connection.execute("SELECT wall, state, name FROM timeline ORDER BY id")
    return [Happening(row["wall"], row["state"], row["name"], CHANGE) for row in rows]
