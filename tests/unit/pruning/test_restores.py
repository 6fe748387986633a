"""Undo: by the command line, by a device that returns, and what becomes of a restore that fails."""

from __future__ import annotations

import sqlite3

import pytest

from client_device_pruner.store.journal import Intent, Journal
from fakes.core_device import CoreDevice, KnownDevices

GONE = tuple(f"gone-{number}" for number in range(4))
QUICK_TO_GO = {"limits": {"maxPerCycle": 2, "maxPercentPerDay": 100, "approvalPercent": 100}}


def disassociated(core: CoreDevice, *names: str) -> CoreDevice:
    """Let these devices go, two a cycle."""
    for name in names:
        core.disconnect(name)
        core.run(60)
    core.run_until(lambda: len(core.of_type("disassociated")) == len(names), 200_000)
    return core


def test_requests_have_their_kinds(known: KnownDevices) -> None:
    """Each within a minute; what cannot be undone is passed over."""
    core = disassociated(known(*GONE, "alive", **QUICK_TO_GO), *GONE)

    core.request("restore", "gone-3", "nobody")
    core.run(60)
    assert core.cloud.associations.keys() == {"alive", "gone-3"}
    core.request("restore", *GONE)
    core.run(60)
    assert core.cloud.associations.keys() == {"alive", *GONE}
    assert {data["requestedBy"] for data in core.of_type("restored")} == {"command"}
    assert not core.select("SELECT * FROM requests")


def test_a_restored_device_is_as_if_seen_then(known: KnownDevices) -> None:
    """Case 4: it is safe for its patience, whatever `neverSeenThreshold` says, and after a kill."""
    core = disassociated(known("gone", "alive", neverSeenThreshold="10m"), "gone")
    core.request("restore", "gone")
    core.run(60)
    restored_at = core.clock.now
    core.die()
    core.run(2_300)

    assert not core.of_type("marked", "gone")[1:]
    core.run_until(lambda: len(core.of_type("marked", "gone")) > 1, 7_200)
    # It was silent for 1,500 s and more before: its patience is twice that.
    assert core.clock.now - restored_at > 3_000


def test_a_return_that_cannot_be_noted_is_noted_when_it_is_heard_again(known: KnownDevices) -> None:
    """A full disk forgets no return."""
    core = disassociated(known("gone", "alive"), "gone")
    core.disk_full = True
    core.connect("gone")
    core.run(5)
    core.disk_full = False
    core.run(60)
    core.speak("gone")
    core.run_until(lambda: core.of_type("restored", "gone"), 60)


def test_where_it_is_not_to_be_restored_a_return_is_said_once(known: KnownDevices) -> None:
    """Case 17: a device that goes on to speak costs no look into the journal; its return counts once it may."""
    core = disassociated(known("gone", "alive", restoreOnReturn=False), "gone")
    core.connect("gone")
    for _second in range(60):
        core.speak("gone")
        core.run(1)

    (returned,) = core.of_type("returned", "gone")
    assert returned["willRestore"] is False
    assert core.cloud.associations.keys() == {"alive"}
    core.configure({"restoreOnReturn": True})
    core.run(10)
    core.speak("gone")
    core.run(10)
    assert core.of_type("restored", "gone") == [{"requestedBy": "return"}]


def test_a_device_that_somebody_associated_again_has_not_returned(known: KnownDevices) -> None:
    """It is nobody's business of ours any more."""
    core = disassociated(known("gone", "alive"), "gone")
    core.cloud.associate("gone")
    cycles = len(core.of_type("cycle"))
    core.run_until(lambda: len(core.of_type("cycle")) > cycles, 1_300)
    core.connect("gone")
    core.run(60)

    assert not core.of_type("returned")
    assert not core.cloud.count("associate")


def test_an_entry_refused_to_be_restored_is_given_up(known: KnownDevices) -> None:
    """The thing was deleted meanwhile: it is said, and not tried for ever."""
    core = disassociated(known("gone", "alive"), "gone")
    core.cloud.refusing = {"gone": "ResourceNotFoundException"}
    core.request("restore", "gone")
    core.run(3_600)

    (failed,) = core.of_type("failed")
    assert failed["code"] == "ResourceNotFoundException"
    assert "thing" in failed["remedy"]
    assert core.cloud.count("associate") == 1


def test_an_entry_refused_for_now_is_tried_again(known: KnownDevices) -> None:
    """Only a thing that does not exist is given up; it is said once, and the device comes back by itself."""
    core = disassociated(known("gone", "alive"), "gone")
    core.cloud.refusing = {"gone": "InternalServerException"}
    core.connect("gone")
    core.run(2_000)
    core.cloud.refusing = {}
    core.run(600)

    assert len(core.of_type("failed", "gone")) == 1
    assert core.of_type("restored", "gone") == [{"requestedBy": "return"}]


def test_a_restore_that_fails_is_tried_again_soon(known: KnownDevices) -> None:
    """After half of a minute, of two … with a jitter of a half, however far away the next cycle is."""
    core = disassociated(known("gone", "alive", checkInterval="6h", offlineThreshold="7h"), "gone")
    core.cloud.fail("associate", "unreachable", times=2)
    began = core.clock.now
    core.connect("gone")
    core.run(120)

    tried = [call.at for call in core.cloud.calls if call.operation == "associate"]
    assert [round(at - began) for at in tried] == [0, 30, 90]
    assert core.of_type("restored", "gone") == [{"requestedBy": "return"}]


def test_a_restore_that_fails_holds_nothing_else_back(known: KnownDevices) -> None:
    """It is said once, naming the device."""
    core = disassociated(known("gone-0", "gone-1", "alive"), "gone-0")
    core.cloud.fail("associate", "accessDenied", times=4)
    core.request("restore", "gone-0")
    core.disconnect("gone-1")
    core.run_until(lambda: core.of_type("restored"), 9_000)

    (failed,) = core.of_type("failed", "gone-0")
    assert "BatchAssociate" in failed["remedy"]
    assert "accessDenied" not in core.guards()
    core.run_until(lambda: core.of_type("disassociated", "gone-1"), 9_000)


def test_a_journal_that_cannot_be_read_when_a_restore_is_due_holds_no_loop_up(
    known: KnownDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The component goes on observing, and restores later."""
    core = disassociated(known("gone", "alive", offlineThreshold="7h"), "gone")
    core.cloud.fail("associate", "unreachable", times=1)
    core.request("restore", "gone")
    core.run(5)

    def fails(_journal: Journal) -> tuple[Intent, ...]:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(Journal, "wanted", fails)
        core.run(120)
    assert "database" in [held["guard"] for held in core.of_type("held")]
    core.run_until(lambda: core.of_type("restored", "gone"), 9_000)
