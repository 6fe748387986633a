"""The documents in the state file are what this component writes, or `ValueError`: never another error or evidence."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from client_device_pruner import state_documents
from client_device_pruner.model import Habit, Mark, Proof

DEEP = "[" * 100_000
NO_DOCUMENTS = ("", "{", "NaN", "[NaN]", "[1e400]", "[-Infinity]", f"[{10**400}]", "[true]", '["1"]', "[[1]]", DEEP)


def _short(text: str) -> str:
    return text[:20]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A file with the tables that are looked at."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE meta (key TEXT, value TEXT)")
        connection.execute("CREATE TABLE disassociations (evidence TEXT)")
        yield connection


def test_what_is_written_is_read() -> None:
    """Markers, habits and a mark, as the ledger writes them."""
    assert state_documents.markers("[0.0, 5, 1e9]") == array("d", [0.0, 5.0, 1e9])
    assert state_documents.habits("{}") is None
    assert state_documents.habits('{"1": [6, 0.0, 5.0, 50.0, 10.0]}') == {1: Habit(6, 0.0, 5.0, 50.0, 10.0)}
    assert state_documents.mark(None) is None
    assert state_documents.mark('[0, "census", 5.0, "c"]') == Mark(0, Proof.CENSUS, 5.0, "c")
    assert state_documents.mapping('{"proof": "census"}') == {"proof": "census"}


@pytest.mark.parametrize("text", [*NO_DOCUMENTS, "5", "{}", "null"], ids=_short)
def test_no_markers(text: str) -> None:
    """A reading that is no number would make an absence of any length, or a crash at each judgement."""
    with pytest.raises(ValueError, match=r"."):
        state_documents.markers(text)


@pytest.mark.parametrize(
    "text", [*NO_DOCUMENTS, "[]", '{"x": [1, 2, 3, 4, 5]}', '{"0": [1]}', '{"0": 5}', "null"], ids=_short
)
def test_no_habits(text: str) -> None:
    """A habit has five numbers, on a source with a number."""
    with pytest.raises(ValueError, match=r"."):
        state_documents.habits(text)


@pytest.mark.parametrize(
    "text",
    [
        *NO_DOCUMENTS,
        "5",
        "{}",
        "[0]",
        '[0, "hearsay", 5.0, "c"]',
        '[null, "census", 5.0, "c"]',
        '[0, "census", 1e400, "c"]',
    ],
    ids=_short,
)
def test_no_mark(text: str) -> None:
    """A mark names its source, a proof that there is, when, and its cycle."""
    with pytest.raises(ValueError, match=r"."):
        state_documents.mark(text)


@pytest.mark.parametrize("text", [*NO_DOCUMENTS, "5", "[]", "null"], ids=_short)
def test_no_map(text: str) -> None:
    """Evidence and events are maps."""
    with pytest.raises(ValueError, match=r"."):
        state_documents.mapping(text)


GOOD: dict[str, Any] = {
    "approved": ["p1"],
    "budget": {"number": 0, "base": 10, "used": 3},
    "configuration": {"dryRun": True},
    "core": "core-1",
    "feeds": {"identity": ["clients/+/telemetry"]},
    "gave_up_running_seconds": 5.0,
    "implausible": [["a"], 1, "c"],
    "plans": [["p1", ["a@1.0"]]],
    "running_seconds": 5,
    "status": {"time": 1.0},
    "of a newer version": [None],
}


def test_all_that_is_kept_passes(connection: sqlite3.Connection) -> None:
    """Each value as it is written, and one that this version does not know."""
    rows = [(key, json.dumps(value)) for key, value in GOOD.items()]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    connection.execute("INSERT INTO meta VALUES ('status', 'null')")
    connection.execute("INSERT INTO disassociations VALUES ('{}')")
    state_documents.check(connection)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("approved", [1]),
        ("budget", {"number": 0, "base": 10, "used": None}),
        ("configuration", []),
        ("feeds", {"identity": [5]}),
        ("gave_up_running_seconds", "5"),
        ("implausible", [["a"], "1", "c"]),
        ("plans", [["p1", "a@1.0"]]),
        ("plans", [["p1"]]),
        ("running_seconds", True),
        ("status", {"time": "now"}),
        ("status", 5),
    ],
)
def test_a_value_of_another_form_is_refused(connection: sqlite3.Connection, key: str, value: Any) -> None:
    """It says which one."""
    connection.execute("INSERT INTO meta VALUES (?, ?)", (key, json.dumps(value)))
    with pytest.raises(ValueError, match=key):
        state_documents.check(connection)


@pytest.mark.parametrize("text", [*NO_DOCUMENTS, "[]"], ids=_short)
def test_evidence_that_is_none_is_refused(connection: sqlite3.Connection, text: str) -> None:
    """Without its evidence a disassociation cannot be told about."""
    connection.execute("INSERT INTO disassociations VALUES (?)", (text,))
    with pytest.raises(ValueError, match=r"."):
        state_documents.check(connection)
