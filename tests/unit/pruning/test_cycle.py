"""A cycle: lists, marks, what is sent, what is confirmed, and what a sighting does at each step."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.core_device import CoreDevice, KnownDevices

LIST = {"clientList": {"url": "http://127.0.0.1:18083/api/v5", "credentialsFile": "/x"}}


def cycles(core: CoreDevice, number: int = 1) -> dict[str, Any]:
    """Let cycles come; returns the data of the last one's event."""
    until = len(core.of_type("cycle")) + number
    core.run_until(lambda: len(core.of_type("cycle")) >= until, 7_200)
    return core.of_type("cycle")[-1]


def test_with_nothing_to_do_a_cycle_lists_once(known: KnownDevices) -> None:
    """The fewest calls that the API allows; with many devices, in pages of 100."""
    core = known(*(f"alive-{number:03}" for number in range(150)))
    core.cloud.calls.clear()

    cycles(core)

    assert [call.operation for call in core.cloud.calls] == ["list", "list"]


def test_from_gone_to_disassociated(known: KnownDevices) -> None:
    """Marked in a cycle, due after the grace period, listed again after the batch, and journalled with its evidence."""
    core = known("gone", "alive")
    stamp = core.cloud.associations["gone"]
    core.disconnect("gone")
    core.cloud.calls.clear()
    core.run_until(lambda: core.of_type("marked"), 7_200)
    assert "It is marked" in core.select("SELECT verdict FROM verdicts WHERE name = 'gone'")[0][0]
    core.run_until(lambda: core.of_type("disassociated"), 7_200)

    (marked,), (said,) = core.of_type("marked", "gone"), core.of_type("disassociated", "gone")
    assert marked["dueInSeconds"] == 300
    assert said["silentSeconds"] >= marked["silentSeconds"] + 300
    assert [call.operation for call in core.cloud.calls][-3:] == ["list", "disassociate", "list"]
    columns = "name, association_timestamp, cycle_id, outcome, evidence"
    ((*row, evidence),) = core.select(f"SELECT {columns} FROM disassociations")  # noqa: S608
    assert row == ["gone", stamp, said["cycleId"], "done"]
    assert json.loads(evidence) == {key: value for key, value in said.items() if key != "cycleId"}
    assert said["evidence"] == "connectionCount"
    assert core.of_type("cycle")[-1]["disassociated"] == 1
    core.check_audit()


def test_without_a_grace_period_one_cycle_does_both(marked: KnownDevices) -> None:
    """`gracePeriod: 0s` marks and disassociates at once."""
    core = marked("gone", "alive", gracePeriod="0s")
    cycles = len(core.of_type("cycle"))
    core.run_until(lambda: core.of_type("disassociated", "gone"), 60)

    assert core.of_type("cycle")[cycles]["disassociated"] == 1


@pytest.mark.parametrize("stamps", [True, False])
def test_a_device_that_is_associated_anew_begins_anew(known: KnownDevices, stamps: bool) -> None:
    """A new timestamp is a new incarnation; where timestamps are missing, a list without the name shows it."""
    core = known()
    core.cloud.associate("gone", "alive", timestamps=stamps)
    core.connect("gone", "alive")
    core.disconnect("gone")
    core.run_until(lambda: core.of_type("marked", "gone"), 7_200)

    core.cloud.disassociate("gone")
    if not stamps:
        cycles(core)
    core.cloud.associate("gone", timestamps=stamps)
    cycles(core)

    assert core.of_type("unmarked", "gone")
    assert "gone" in core.cloud.associations
    assert not core.select("SELECT marked_at FROM devices WHERE name = 'gone' AND marked_at IS NOT NULL")


def test_a_list_that_is_short_once_forgets_nobody(known: KnownDevices) -> None:
    """Case 2: same name, same timestamp: same incarnation, and all that is known of it stays."""
    names = tuple(f"device-{number}" for number in range(10))
    core = known(*names, neverSeenThreshold="20m")
    core.disconnect("device-9")
    core.run(600)
    core.cloud.hidden = set(names[6:])
    cycles(core)
    core.cloud.hidden = set()
    cycles(core)

    assert core.select("SELECT count(*) FROM devices WHERE unlisted_at IS NULL AND seen_by != ''") == [(10,)]
    assert core.of_type("cycle")[-1]["neverSeen"] == 0
    core.run_until(lambda: core.of_type("disassociated", "device-9"), 7_200)


def test_an_implausible_list_is_believed_after_three_cycles_in_a_row(known: KnownDevices) -> None:
    """Less than half of what was expected holds the guard `list`; a plausible one between begins the count anew."""
    names = tuple(f"device-{number}" for number in range(10))
    core = known(*names)

    for hidden, number in ((names[1:], 2), ((), 1), (names[1:], 2)):
        core.cloud.hidden = set(hidden)
        cycles(core, number)
        assert core.guards() == ({"list"} if hidden else set())
        assert core.of_type("cycle")[-1]["complete"] is not bool(hidden)
        core.run(60)
        assert core.select("SELECT count(*) FROM devices WHERE unlisted_at IS NULL") == [(10,)]
    assert core.of_type("held")[-1]["reason"] == "the cloud lists 1 associated devices, but 10 were expected"

    cycles(core)
    core.run(60)

    assert core.guards() == set()
    assert core.select("SELECT count(*) FROM devices WHERE unlisted_at IS NULL") == [(1,)]
    assert sum(core.status()["counts"].values()) == 1


def test_a_short_list_confirms_nothing(known: KnownDevices) -> None:
    """After a batch whose answer is lost, a list of less than half of the devices is not taken for success."""
    core = known("gone", "a", "b", "c", "d")
    core.disconnect("gone")
    core.cloud.fail("disassociate", "unreachable")
    core.cloud.point = lambda label: core.cloud.hidden.update("abcd") if label == "disassociate carried out" else None
    core.run_until(lambda: "list" in core.guards(), 7_200)
    assert core.select("SELECT outcome FROM disassociations") == [("open",)]
    assert core.of_type("cycle")[-1]["complete"] is False

    core.cloud.point, core.cloud.hidden = (lambda _label: None), set()
    core.run_until(lambda: core.of_type("disassociated", "gone"), 7_200)

    assert [row[0] for row in core.select("SELECT outcome FROM disassociations")] == ["notDone", "done"]


def test_an_entry_that_the_cloud_refuses_is_said_once(known: KnownDevices) -> None:
    """It is tried in each cycle, uses no budget, and holds no other back."""
    core = known("gone-0", "gone-1", "alive")
    core.cloud.refusing = {"gone-0": "Busy"}
    core.disconnect("gone-0", "gone-1")
    core.run_until(lambda: len(core.cloud.batches()) >= 4, 7_200)

    assert [data["code"] for data in core.of_type("failed", "gone-0")] == ["Busy"]
    ((budget,),) = core.select("SELECT value FROM meta WHERE key = 'budget'")
    assert json.loads(budget)["used"] == 1
    assert {carried.name for carried in core.cloud.carried} == {"gone-1"}
    core.check_audit()


@pytest.mark.parametrize("presence", [{}, LIST])
def test_a_sighting_before_the_batch_ends_it(known: KnownDevices, presence: dict[str, Any]) -> None:
    """Who connects after the judgement is not sent; a list that is in use is asked, and names the unannounced."""
    core = known("gone-0", "gone-1", "alive", presence=presence)
    core.disconnect("gone-0", "gone-1")
    core.run_until(lambda: core.of_type("marked", "gone-1"), 7_200)
    assert core.lists is not None
    lists = core.lists

    def connect_meanwhile(label: str) -> None:
        if label == "list carried out" and "gone-0" not in core.connected and core.clock.now > marked_at + 300:
            lists.fetch = lambda *_: None  # type: ignore[method-assign] # only the question shows it
            core.broker.connect("gone-0", announced=not presence)

    marked_at, core.cloud.point = core.clock.now, connect_meanwhile
    core.run_until(lambda: core.of_type("disassociated"), 1_200)

    assert core.cloud.batches() == [("gone-1",)]
    assert core.of_type("unmarked", "gone-0") == [{"reason": "it was sighted"}]
    assert lists.asked == ([("gone-0", "gone-1")] if presence else [])


def test_a_sighting_in_flight_restores_at_once(marked: KnownDevices) -> None:
    """A device that connects while the batch call is under way is associated again, in the same cycle."""
    core = marked("gone", "alive")
    core.cloud.held = True

    def restored() -> bool:
        if core.cloud.batches() and "gone" not in core.connected:
            core.connect("gone")
            core.run(0.1)
        core.cloud.release()
        return bool(core.of_type("restored"))

    core.run_until(restored, 7_200)
    core.cloud.held = False
    core.run(3_600)

    assert core.of_type("restored", "gone") == [{"requestedBy": "lastMoment"}]
    assert not core.of_type("disassociated")
    operations = [call.operation for call in core.cloud.calls]
    assert operations[operations.index("disassociate") :][:3] == ["disassociate", "associate", "list"]
    assert core.cloud.associations.keys() == {"gone", "alive"}
    core.check_audit()


def test_a_sighting_in_flight_outlives_a_crash(marked: KnownDevices) -> None:
    """A device that spoke once while the batch call was under way is associated again by the next run."""
    core = marked("gone", "alive")
    core.run_to_batch()
    core.speak("gone")
    core.run(0.1)
    core.die()
    core.cloud.held = False
    core.run_until(lambda: core.of_type("restored"), 1_200)

    assert core.of_type("restored", "gone") == [{"requestedBy": "lastMoment"}]
    core.check_audit()


def test_a_pause_that_is_deployed_during_a_cycle_counts(marked: KnownDevices) -> None:
    """The configuration is read again before each cycle, and heeded up to the batch (case 28)."""
    core = marked("gone", "alive")
    assert core.ipc is not None
    # Nobody is told of the deployment: the subscription has died.
    core.ipc.configurations[None] = {**core.ipc.configurations[None], "dryRun": True}
    core.run(3_600)

    assert not core.cloud.batches()
    assert not core.select("SELECT * FROM disassociations")
    assert core.of_type("cycle")[-1].items() >= {"dryRun": True, "wouldDisassociate": 1}.items()
    assert "dryRun" in core.of_type("configuration")[-1]["changed"]


@pytest.mark.parametrize("returns", [False, True])
def test_a_list_that_is_behind_settles_nothing(marked: KnownDevices, returns: bool) -> None:
    """An accepted entry that is still listed stays open; a sighting meanwhile brings the next cycle, and the undo."""
    core = marked("gone", "alive", checkInterval="6h", offlineThreshold="7h")
    stamp = core.cloud.associations["gone"]

    def list_once_more(label: str) -> None:
        if label == "disassociate carried out":
            core.cloud.associations["gone"] = stamp
        elif label == "list carried out" and core.cloud.carried:
            core.cloud.associations.pop("gone", None)
            core.cloud.point = lambda _label: None

    core.cloud.point = list_once_more
    core.run_until(lambda: core.cloud.carried, 90_000)
    core.run(10)
    assert core.select("SELECT outcome FROM disassociations") == [("open",)]
    if returns:
        core.connect("gone")
        core.run(120)
        assert core.of_type("restored", "gone") == [{"requestedBy": "lastMoment"}]
    core.run_until(lambda: core.of_type("disassociated", "gone"), 30_000)

    core.check_audit()
    assert json.loads(core.select("SELECT value FROM meta WHERE key = 'budget'")[0][0])["used"] <= 1


def test_a_sighting_before_a_list_that_is_behind_restores_at_once(marked: KnownDevices) -> None:
    """The batch is answered, the list under way: whatever that names, the device is associated again in this cycle."""
    core = marked("gone", "alive", checkInterval="6h", offlineThreshold="7h")
    stamp = core.cloud.associations["gone"]
    core.run_to_batch()
    core.cloud.associations["gone"] = stamp
    core.cloud.release()
    core.run(0.1)
    core.connect("gone")
    core.run(0.1)
    core.cloud.held = False
    core.cloud.release()
    core.run(1)

    assert core.of_type("restored", "gone") == [{"requestedBy": "lastMoment"}]


def test_a_sighting_during_the_last_call_of_a_cycle_is_a_return(known: KnownDevices) -> None:
    """The disassociation is confirmed, another device is being associated again: no sighting is dropped."""
    core = known("gone-0", "gone-1", "alive", checkInterval="6h", offlineThreshold="7h")
    core.disconnect("gone-0")
    core.run_until(lambda: core.of_type("disassociated", "gone-0"), 200_000)
    core.disconnect("gone-1")
    core.run_until(lambda: core.of_type("marked", "gone-1"), 90_000)
    core.cloud.held = True

    def called(operation: str, number: int) -> bool:
        if core.cloud.count(operation) < number:
            core.cloud.release()
        return core.cloud.count(operation) >= number

    core.run_until(lambda: called("disassociate", 2), 90_000)
    core.request("restore", "gone-0")
    core.run(3)
    core.run_until(lambda: called("associate", 1), 60)
    core.connect("gone-1")
    core.run(1)
    core.cloud.held = False
    core.cloud.release()
    core.run(60)

    assert core.of_type("restored", "gone-1") == [{"requestedBy": "return"}]
    assert core.cloud.associations.keys() == {"alive", "gone-0", "gone-1"}


def test_a_restore_in_flight_is_asked_for_once_while_it_fails(marked: KnownDevices) -> None:
    """However often the device speaks, the cycle goes on."""
    core = marked("gone", "alive")
    core.run_to_batch()
    core.cloud.fail("associate", "accessDenied", times=10)
    cycles, associated = len(core.of_type("cycle")), core.cloud.count("associate")

    def ended() -> bool:
        core.speak("gone")
        core.run(0.1)
        core.cloud.release()
        return len(core.of_type("cycle")) > cycles

    core.run_until(ended, 60)

    assert core.cloud.count("associate") - associated <= 3
