"""The ledger: markers, clocks and marks in memory, and what of them a commit keeps for the next run."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from client_device_pruner import ledger as ledger_module
from client_device_pruner.ledger import Ledger, get_meta, set_meta, transaction
from client_device_pruner.model import Association, Mark, Proof
from client_device_pruner.state_file import open_state

SOURCES = [("emqx", "emqx a", 180.0), ("messages", "activity b", 3600.0)]


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A new state file."""
    with closing(open_state(tmp_path / "pruner.db", "core-1")[0]) as connection:
        yield connection


def begun(connection: sqlite3.Connection | None, *names: str, at: float = 0.0) -> Ledger:
    """A run with two sources, and these names associated."""
    ledger = Ledger(connection, at)
    ledger.adopt(SOURCES, at)
    ledger.reconcile([Association(name, 1.0) for name in names], at)
    return ledger


def vouch(ledger: Ledger, name: str, *moments: float) -> None:
    """Let a source vouch at these moments."""
    for at in moments:
        ledger.sources[name].clock.vouch(at)


def test_a_sign_of_life_sets_the_markers_of_all_sources(connection: sqlite3.Connection) -> None:
    """The absence on every source begins at the last sign on any."""
    ledger = begun(connection, "a")
    vouch(ledger, "emqx", 0.0, 100.0)
    vouch(ledger, "messages", 0.0, 50.0)

    ledger.alive("a", 110.0)

    assert [ledger.devices["a"].marker(i) for i in (0, 1)] == [110.0, 110.0], "what still may be earned included"
    assert ledger.devices["a"].seen


def test_signs_and_credit_are_committed_together_or_not_at_all(connection: sqlite3.Connection) -> None:
    """A run that ends without a commit loses both (I6)."""
    ledger = begun(connection, "a")
    vouch(ledger, "emqx", 0.0, 100.0)
    ledger.alive("a", 100.0)
    assert ledger.commit(100.0)
    vouch(ledger, "emqx", 200.0)
    ledger.alive("a", 200.0)

    again = Ledger(connection, 0.0)
    again.adopt(SOURCES, 0.0)

    assert again.sources["emqx"].clock.credit_seconds == 100.0
    assert again.devices["a"].marker(0) == 100.0


def test_who_is_held_present_at_a_commit_was_there_up_to_its_credit(connection: sqlite3.Connection) -> None:
    """Without one more row for each census, the next run begins their absences there."""
    ledger = begun(connection, "here", "away")
    ledger.present = lambda name: name == "here"
    ledger.alive("here", 0.0)
    assert ledger.commit(0.0)
    vouch(ledger, "emqx", 0.0, 100.0)
    assert ledger.commit(100.0)

    again = Ledger(connection, 0.0)

    assert again.devices["here"].marker(0) == 100.0
    assert again.devices["away"].marker(0) == 0.0


def test_marks_and_habits_outlive_a_run(connection: sqlite3.Connection) -> None:
    """Everything of a device comes back as it was."""
    ledger = begun(connection, "a")
    for at in (10.0, 30.0, 90.0):
        ledger.hear("a", 1, at)
    mark = Mark(1, Proof.HABIT, 5.0, "c1")
    ledger.set_mark("a", mark)
    ledger.announce("a")
    assert ledger.commit(100.0)

    again = Ledger(connection, 0.0)

    before, after = ledger.devices["a"], again.devices["a"]
    assert (after.mark, after.habits, after.associated_at) == (mark, before.habits, before.associated_at)
    assert (after.seen, list(after.markers)) == (True, list(before.markers))
    assert "a" in again.watched, "its next sign of life unmarks it"
    assert again.running_seconds(0.0) == 100.0


def test_a_source_is_its_identity(connection: sqlite3.Connection) -> None:
    """A renamed one goes on; one whose topics changed, or that was off, keeps its clock and begins absences anew."""
    ledger = begun(connection, "a")
    vouch(ledger, "emqx", 0.0, 100.0)

    renamed = ledger.adopt([("broker", "emqx a", 180.0)], 100.0)["broker"]
    assert (renamed.source_id, renamed.clock.floor_seconds, renamed.clock.credit_seconds) == (0, 0.0, 100.0)

    changed = ledger.adopt([("broker", "emqx c", 180.0)], 100.0)["broker"]
    assert (changed.clock.credit_seconds >= 0, changed.clock.floor_seconds) == (
        True,
        changed.clock.credit_seconds,
    )
    back = ledger.adopt([("broker", "emqx a", 180.0)], 100.0)["broker"]
    assert back.clock.floor_seconds == back.clock.credit_seconds


def test_a_new_timestamp_is_a_new_incarnation(connection: sqlite3.Connection) -> None:
    """Nothing held against the old one counts; its mark is taken off, and said so."""
    ledger = begun(connection, "a", "b")
    ledger.alive("a", 1.0)
    ledger.set_mark("a", Mark(0, Proof.CENSUS, 0.0, "c1"))

    assert ledger.reconcile([Association("a", 2.0), Association("b", 1.0)], 5.0) == ("a",)

    assert (ledger.devices["a"].seen, ledger.devices["a"].mark) == (False, None)
    assert ledger.reconcile([Association("b", 1.0)], 5.0) == ()
    assert set(ledger.devices) == {"b"}


def test_missing_timestamps_are_one_incarnation(connection: sqlite3.Connection) -> None:
    """As long as each list has none."""
    ledger = begun(connection)
    ledger.reconcile([Association("a", None)], 0.0)
    ledger.alive("a", 1.0)
    ledger.reconcile([Association("a", None)], 2.0)

    assert ledger.devices["a"].seen


def test_what_a_commit_cannot_write_stays_pending(connection: sqlite3.Connection) -> None:
    """It is told why, and written as soon as the file takes it."""
    ledger = begun(connection, "a")
    connection.execute("PRAGMA query_only = ON")
    ledger.alive("a", 1.0)

    assert not ledger.commit(1.0)
    assert "readonly" in ledger.fault
    assert ledger.pending_rows

    connection.execute("PRAGMA query_only = OFF")
    assert ledger.commit(2.0)
    assert ledger.fault == ""
    assert "a" in Ledger(connection, 0.0).devices


def test_without_a_file_nothing_is_committed() -> None:
    """The watch goes on in memory."""
    ledger = begun(None, "a")
    ledger.alive("a", 1.0)

    assert not ledger.commit(1.0)
    assert ledger.devices["a"].seen


def test_names_that_are_not_associated_are_kept_up_to_a_bound(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first; one that is associated later is known as announced."""
    monkeypatch.setattr(ledger_module, "MAX_STRANGERS", 3)
    ledger = begun(connection)
    for name in ("a", "b", "c", "d"):
        ledger.announce(name)
    assert ledger.commit(1.0)

    again = Ledger(connection, 0.0)

    assert [again.announced(name) for name in ("a", "b", "c", "d")] == [False, True, True, True]
    again.reconcile([Association("b", 1.0)], 0.0)
    assert again.devices["b"].announced


def test_a_transaction_is_whole_or_not_at_all(connection: sqlite3.Connection) -> None:
    """What raises inside leaves nothing, and the connection usable."""

    def write_and_fail() -> None:
        with transaction(connection, through=True) as write:
            set_meta(write, half=1)
            raise KeyError("half")

    with pytest.raises(KeyError):
        write_and_fail()

    assert get_meta(connection, "half") is None
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 1, "back to NORMAL"
    with transaction(connection) as write:
        set_meta(write, whole=[1, "x"])
    assert get_meta(connection, "whole") == [1, "x"]
