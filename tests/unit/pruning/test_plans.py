"""Which due devices may go: limits, approvals, and plans that keep their id."""

from __future__ import annotations

import math
from typing import Any

import pytest

from client_device_pruner.pruning import cycle
from fakes.core_device import CoreDevice, KnownDevices

DAY_SECONDS = 86_400.0
GONE = tuple(f"gone-{number}" for number in range(4))


def limits(**more: Any) -> dict[str, Any]:
    """Limits that let everything pass, but for those given."""
    return {"maxPerCycle": 100, "maxPercentPerDay": 100, "approvalPercent": 100, **more}


def lose(core: CoreDevice, *names: str) -> None:
    """Disconnect devices, one every two minutes."""
    for name in names:
        core.disconnect(name)
        core.run(120)


@pytest.mark.parametrize(("percent", "a_day"), [(0, 0), (1, 1), (20, 1), (21, 2), (100, 4)])
def test_a_day_takes_a_share_of_the_devices(known: KnownDevices, percent: int, a_day: int) -> None:
    """Of five devices, rounded up, whatever is restarted; 0 is none; the next day takes its share of those left."""
    core = known(*GONE, "alive", limits=limits(maxPercentPerDay=percent))
    lose(core, *GONE)
    for _restart in range(3):
        core.run(1_800)
        core.stop()
    core.run(1_200)

    assert len(core.cloud.carried) == a_day
    if a_day < 4:
        assert core.guards() == {"maxPercentPerDay"}
        core.world.sleep(DAY_SECONDS)
        core.run(1_800)
        assert len(core.cloud.carried) == a_day + math.ceil((5 - a_day) * percent / 100)


def test_a_state_file_that_breaks_in_mid_run_takes_the_rest_of_the_day_along(known: KnownDevices) -> None:
    """I5: what was used is not known any more, so the next device goes on the next day."""
    core = known(*GONE, "alive", limits=limits(maxPercentPerDay=20))
    lose(core, *GONE)
    core.run_until(lambda: core.cloud.carried, 9_000)
    core.write("DROP TABLE meta")
    core.run(3_600)

    assert (core.work_dir / "pruner.db.aside-1").exists()
    assert ("alive", "present") in core.select("SELECT name, state FROM timeline")
    assert len(core.cloud.carried) == 1
    assert core.guards() == {"maxPercentPerDay"}
    core.world.sleep(DAY_SECONDS)
    core.run(1_800)
    assert len(core.cloud.carried) == 2


def test_the_longest_silent_go_first_and_so_many_a_cycle(known: KnownDevices) -> None:
    """`maxPerCycle` holds the others until the next cycle; over several batches, too."""
    core = known(*GONE, "alive", limits=limits(maxPerCycle=1))
    lose(core, *reversed(GONE))
    core.run_until(lambda: len(core.cloud.carried) == 4, 9_000)

    assert [carried.name for carried in core.cloud.carried] == list(reversed(GONE))
    assert core.select("SELECT count(*) FROM disassociations GROUP BY cycle_id") == [(1,)] * 4
    assert "maxPerCycle" in {data["guard"] for data in core.of_type("held")}


def test_one_device_on_a_core_goes(known: KnownDevices) -> None:
    """No guard freezes a small site for ever: with the defaults' limits, the only device of a core goes."""
    core = known("gone", limits={}, massLoss={})
    core.disconnect("gone")
    core.run_until(lambda: core.of_type("disassociated", "gone"), 7_200)


def plan_of(core: CoreDevice) -> tuple[str, set[str]]:
    """The plan that waits, by the status."""
    core.run(10)
    plan = core.status()["plan"]
    return (plan["id"], set(plan["devices"])) if plan else ("", set())


def test_a_plan_that_shrinks_keeps_its_id_and_one_that_grows_gets_another(known: KnownDevices) -> None:
    """An approval by command goes on covering the devices that its plan named."""
    names = tuple(f"gone-{number}" for number in range(6))
    core = known(*names, "alive", limits=limits(approvalPercent=50))
    core.disconnect(*names[:5])
    core.run_until(lambda: "approval" in core.guards(), 7_200)
    first, devices = plan_of(core)
    (held,) = [data for data in core.of_type("held") if data["guard"] == "approval"]
    assert held["plan"] == first
    assert first in held["remedy"]
    assert devices == set(names[:5])

    core.connect("gone-0")
    core.run(1_300)
    assert plan_of(core)[0] == first

    core.disconnect("gone-0", "gone-5")
    core.run_until(lambda: len(plan_of(core)[1]) == 6, 9_000)
    assert plan_of(core)[0] != first
    assert not core.cloud.carried

    core.request("approve", first)
    core.run_until(lambda: len(core.cloud.carried) == 5, 3_600)
    assert {carried.name for carried in core.cloud.carried} == set(names[:5])
    core.check_audit()


def test_devices_lost_together_wait_for_an_approval_by_the_configuration(known: KnownDevices) -> None:
    """They stay until the plan that the guard names is approved; others go; a new association is not covered."""
    core = known(*GONE, "early", "alive", massLoss={"window": "2m", "minDevices": 3, "minPercent": 30})
    core.disconnect("early")
    core.run(600)
    core.disconnect(*GONE)
    core.run_until(lambda: "lostTogether" in core.guards(), 7_200)
    core.run(1_200)
    assert [carried.name for carried in core.cloud.carried] == ["early"]
    plan, _devices = plan_of(core)
    (held,) = [data for data in core.of_type("held") if data["guard"] == "lostTogether"]
    assert held["remedy"].endswith(f"pruner approve {plan}")
    core.cloud.disassociate(GONE[0])
    core.cloud.associate(GONE[0])

    core.configure({"approvedPlan": plan})
    core.stop()
    core.run_until(lambda: len(core.cloud.carried) == 4, 7_200)

    assert core.cloud.associations.keys() == {"alive", GONE[0]}


@pytest.mark.parametrize("by_configuration", [False, True])
def test_an_approval_ends_with_what_it_was_for(known: KnownDevices, by_configuration: bool) -> None:
    """Devices that return before the next cycle, and are lost together again later, wait for a new approval."""
    core = known(*GONE, "alive", massLoss={"window": "2m", "minDevices": 3, "minPercent": 30})
    core.disconnect(*GONE)
    core.run_until(lambda: "lostTogether" in core.guards(), 7_200)
    first, _devices = plan_of(core)
    if by_configuration:
        core.configure({"approvedPlan": first})
    else:
        core.request("approve", first)
    core.connect(*GONE)
    core.run_until(lambda: not core.guards(), 3_600)

    core.disconnect(*GONE)
    core.run_until(lambda: "lostTogether" in core.guards(), 9_000)
    core.run(1_800)

    assert not core.cloud.carried
    assert plan_of(core)[0] != first


def test_a_limit_that_is_lowered_during_a_cycle_counts(known: KnownDevices, monkeypatch: pytest.MonkeyPatch) -> None:
    """`maxPerCycle` is of the cycle, with what that has taken, not of each of its batches."""
    monkeypatch.setattr(cycle, "BATCH", 2)
    core = known(*GONE, "alive")
    core.disconnect(*GONE)

    core.run_to_batch()
    core.configure({"limits": limits(maxPerCycle=2)})
    core.run(1)
    core.cloud.held = False
    core.cloud.release()
    core.run_until(lambda: len(core.cloud.carried) == 4, 9_000)

    assert core.select("SELECT count(*) FROM disassociations GROUP BY cycle_id") == [(2,)] * 2
