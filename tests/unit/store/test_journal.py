"""The journal: intents, outcomes, the budget that they use, and what is to be undone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from client_device_pruner.store.database import open_database
from client_device_pruner.store.journal import Intent, Journal

DAY = 86_400.0
EVIDENCE = {"silentSeconds": 5.0, "patienceSeconds": 4.0, "evidence": "clientList"}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal in a new state file, with a budget of ten devices."""
    with closing(open_database(tmp_path / "pruner.db", "core-1")[0]) as connection:
        journal = Journal(connection)
        journal.budget(10, 0.0)
        yield journal


def intend(journal: Journal, *names: str, running: float = 10.0, cycle_id: str = "c1") -> tuple[Intent, ...]:
    """Write intents for devices with these names."""
    devices = [(name, 7.0, EVIDENCE) for name in names]
    return journal.intend(cycle_id, devices, wall=1.0, running_seconds=running)


def test_an_intent_is_written_through_before_anything_else(journal: Journal, tmp_path: Path) -> None:
    """Another process reads it at once, with its evidence, and it was written with synchronous = FULL."""
    statements: list[str] = []
    journal.connection.set_trace_callback(statements.append)

    (intent,) = intend(journal, "gone")

    assert statements[0] == "PRAGMA synchronous = FULL"
    assert statements.index("COMMIT") < statements.index("PRAGMA synchronous = NORMAL")
    with closing(open_database(tmp_path / "pruner.db", "core-1")[0]) as other:
        assert Journal(other).open_intents() == (intent,)
    assert (intent.name, intent.association_timestamp) == ("gone", 7.0)
    assert intent.evidence == EVIDENCE


def test_intents_are_written_all_or_none(journal: Journal) -> None:
    """A refused write leaves neither an intent nor used budget."""
    bad = [("good", 1.0, EVIDENCE), (None, 1.0, EVIDENCE)]

    with pytest.raises(sqlite3.IntegrityError):
        journal.intend("c1", bad, wall=1.0, running_seconds=1.0)  # type: ignore[arg-type]

    assert journal.open_intents() == ()
    assert journal.budget(10, 1.0).used == 0
    assert journal.connection.execute("PRAGMA synchronous").fetchone()[0] == 1, "written through no longer"


def test_the_window_is_fixed_and_its_base_is_that_of_its_beginning(journal: Journal) -> None:
    """A day of running time begins anew with the devices associated then; within it neither changes."""
    intend(journal, "a")

    within = journal.budget(4, DAY - 1.0)
    after = journal.budget(4, DAY)

    assert (within.base, within.used, within.left_seconds) == (10, 1, 1.0)
    assert (after.base, after.used, after.left_seconds) == (4, 0, DAY)


def test_a_window_never_comes_twice(journal: Journal) -> None:
    """A crash that took back running time leaves the budget where it was."""
    journal.budget(4, DAY)
    intend(journal, "a", running=DAY)

    again = journal.budget(10, DAY - 50.0)

    assert (again.base, again.used, again.left_seconds) == (4, 1, DAY + 50.0)


def test_the_latest_disassociation_of_a_device_can_be_undone_for_90_days(journal: Journal) -> None:
    """Of running time; older ones, undone ones, and those that did not take place cannot."""
    journal.settle(intend(journal, "old", running=0.0), "done", 2.0)
    journal.settle(intend(journal, "twice", running=50.0), "done", 2.0)
    journal.settle(intend(journal, "twice", running=60.0, cycle_id="c2"), "done", 2.0)
    journal.settle(intend(journal, "listed", running=60.0), "notDone", 2.0)
    journal.settle(undone := intend(journal, "undone", running=60.0), "done", 2.0)
    journal.restored(undone[0], "command")

    found = journal.restorable(90 * DAY + 1.0)

    assert [(intent.name, intent.cycle_id) for intent in found] == [("twice", "c2")]
    assert {intent.name for intent in journal.restorable(90 * DAY)} == {"old", "twice"}
    assert [intent.cycle_id for intent in journal.restorable(90 * DAY, "twice")] == ["c2"]
    intend(journal, "next", running=90 * DAY)
    assert {intent.name for intent in journal.restorable(90 * DAY)} == {"old", "twice"}, "none is removed too soon"


def test_a_wish_to_undo_is_kept_until_it_is_fulfilled_or_dropped(journal: Journal) -> None:
    """It waits while the outcome is open, and is fulfilled once."""
    first, second = intend(journal, "a", "b")
    journal.want([first, second], "lastMoment")
    assert journal.wanted() == ()

    journal.settle([first, second], "done", 2.0)

    assert [(i.name, i.restore_for) for i in journal.wanted()] == [("a", "lastMoment"), ("b", "lastMoment")]
    assert journal.restored(first, "lastMoment")
    assert not journal.restored(first, "command")
    journal.want([second], None)
    assert journal.wanted() == ()
