"""The documents in the state file are what this component writes, or `ValueError`: never another error or evidence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from client_device_pruner import state_documents, state_file
from client_device_pruner.model import Habit, Mark, Proof

DEEP = "[" * 100_000
NO_DOCUMENTS = (
    *(
        "",
        "{",
        "NaN",
        "[NaN]",
        "[1e400]",
        "[-Infinity]",
        f"[{10**400}]",
        "[1e15]",
        "[true]",
        '["1"]',
        "[[1]]",
        "[-1.0]",
    ),
    DEEP,
)


def _short(text: str) -> str:
    return text[:20]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """An empty state file."""
    connection, _aside = state_file.open_state(tmp_path_factory.mktemp("state") / "pruner.db", "core-1")
    with closing(connection):
        yield connection


@pytest.fixture
def connection(made: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Its copy in memory."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        made.backup(connection)
        connection.text_factory = made.text_factory
        yield connection


def disassociate(connection: sqlite3.Connection, evidence: str, intended: Any, settled: Any) -> None:
    """Journal a disassociation."""
    connection.execute(
        "INSERT INTO disassociations VALUES (NULL, 'a', 1.0, 'c', 'done', ?, ?, 0.0, ?, NULL, NULL)",
        (evidence, intended, settled),
    )


def test_what_is_written_is_read() -> None:
    """Markers, habits and a mark, as the ledger writes them."""
    assert state_documents.markers("[0.0, 5, 1e9]") == (0.0, 5.0, 1e9)
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
    "text",
    [
        *(*NO_DOCUMENTS, "[]", "null", '{"0": [1]}', '{"0": 5}', '{"0": [1.5, 2, 3, 4, 5]}', '{"0": [1, 2, 3, 4, -5]}'),
        *('{"x": [1, 2, 3, 4, 5]}', '{"-1": [1, 2, 3, 4, 5]}', '{"01": [1, 2, 3, 4, 5]}', '{"1_0": [1, 2, 3, 4, 5]}'),
    ],
    ids=_short,
)
def test_no_habits(text: str) -> None:
    """A habit has five numbers, the first of which counts, on a source with a number."""
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
        '[0, "census", -5.0, "c"]',
        '[-1, "census", 5.0, "c"]',
        '[true, "census", 5.0, "c"]',
    ],
    ids=_short,
)
def test_no_mark(text: str) -> None:
    """A mark names its source, a proof that there is, when, and its cycle."""
    with pytest.raises(ValueError, match=r"."):
        state_documents.mark(text)


@pytest.mark.parametrize(
    "text", [*NO_DOCUMENTS, "5", "[]", "null", '{"a": {"b": [1e400]}}', '{"offlineSeconds": 1e15}'], ids=_short
)
def test_no_map(text: str) -> None:
    """Evidence and events are maps, in which no number is larger than any that is written."""
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
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
    state_documents.check(connection)
    connection.execute("UPDATE meta SET value = 'null' WHERE key = 'status'")
    disassociate(connection, "{}", 1.7e9, None)
    disassociate(connection, "{}", 1.7e9, 1.7e9)
    connection.execute("INSERT INTO requests (kind, argument) VALUES ('restore', '{\"all\": true}')")
    state_documents.check(connection)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("approved", [1]),
        ("budget", {"number": 0, "base": 10, "used": None}),
        ("budget", {"number": 0, "base": 10, "used": -1}),
        ("configuration", []),
        ("feeds", {"identity": [5]}),
        ("gave_up_running_seconds", "5"),
        ("implausible", [["a"], "1", "c"]),
        ("plans", [["p1", "a@1.0"]]),
        ("plans", [["p1"]]),
        ("running_seconds", True),
        ("status", {"time": "now"}),
        ("status", {"time": 1e12}),
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
    disassociate(connection, text, 1.7e9, None)
    with pytest.raises(ValueError, match=r"."):
        state_documents.check(connection)


@pytest.mark.parametrize(("intended", "settled"), [(1e12, None), (1.7e9, 1e12), (-1.0, None), ("now", None)])
def test_a_disassociation_at_no_moment_is_refused(connection: sqlite3.Connection, intended: Any, settled: Any) -> None:
    """No date can be written for it: to tell of the device's return ended the process."""
    disassociate(connection, "{}", intended, settled)
    with pytest.raises(ValueError, match="no moment"):
        state_documents.check(connection)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("meta", "value"), ("requests", "kind"), ("requests", "argument")),
        *(("disassociations", column) for column in ("name", "cycle_id", "outcome", "evidence", "restore_for")),
    ],
)
@pytest.mark.parametrize("cell", ["CAST(X'22ff22' AS TEXT)", "X'226122'"], ids=["no UTF-8", "blob"])
def test_what_is_no_text_is_refused(connection: sqlite3.Connection, table: str, column: str, cell: str) -> None:
    """One flipped bit makes a text invalid, or another one a blob of it."""
    connection.execute("INSERT INTO requests (kind, argument) VALUES ('restore', '{}')")
    disassociate(connection, "{}", 1.7e9, None)
    state_documents.check(connection)
    connection.execute(f"UPDATE {table} SET {column} = {cell}")  # noqa: S608 - of the parameters above
    with pytest.raises(ValueError, match=r"."):
        state_documents.check(connection)


def test_names_and_clocks() -> None:
    """A name is a text, and a clock has readings that can be reckoned with."""
    assert state_documents.name("a") == "a"
    clock = state_documents.clock(100.0, 50.0)
    assert (clock.credit_seconds, clock.floor_seconds) == (100.0, 50.0)
    with pytest.raises(ValueError, match="no name"):
        state_documents.name(b"a")  # type: ignore[arg-type]
    for credit, floor in ((float("inf"), 0.0), (-1.0, 0.0), (1.0, None), ("x", 0.0), (1e15, 0.0)):
        with pytest.raises(ValueError, match="no clock"):
            state_documents.clock(credit, floor)  # type: ignore[arg-type]
