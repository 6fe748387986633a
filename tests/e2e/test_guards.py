"""Each guard on the real wire (`notObserving`: `test_blind.py`): it holds, says its figure and remedy, and lets go."""

from __future__ import annotations

import asyncio
import re
import resource
from typing import Any

import pytest

from e2e.trial import COMPONENT, QUICK, Trial, failing
from local_core.cloud import DISASSOCIATE, LIST
from local_core.component import State

pytestmark = [pytest.mark.e2e]


async def test_a_plan_waits_for_approval_and_goes_in_cycles_of_limited_size(trial: Trial) -> None:
    """`approval` shows a plan, which `pruner approve` lets go; `maxPerCycle` 0 means none, and 2 two in a cycle."""
    limits: dict[str, Any] = {"approvalPercent": 50, "maxPercentPerDay": 100, "maxPerCycle": 0}
    lost = {"lamp-1", "lamp-2", "lamp-3", "lamp-4"}
    await trial.watch("alive", *lost, **QUICK, limits=limits)
    await trial.devices.drop(*lost)

    status = await trial.status(lambda status: status["plan"] and len(status["plan"]["devices"]) == 4)
    plan = status["plan"]["id"]
    (guard,) = status["guards"]
    assert guard["guard"] == "approval"
    assert "4 of 5 associated devices are due" in guard["reason"]
    assert guard["remedy"].endswith(f"pruner approve {plan}")
    code, _output, errors = await trial.pruner("approve", "0000000000")
    assert code == 1
    assert f"plan {plan} waits" in errors

    before = len(trial.core.events)
    assert set((await trial.value("approve", plan))["names"]) == lost
    await trial.event("released", guard="approval")
    held = await trial.event("held", since=before, guard="maxPerCycle")
    assert held["reason"] == "4 devices are due, limits.maxPerCycle is 0"
    assert held["remedy"] == "raise limits.maxPerCycle"
    assert not trial.batches

    await trial.deploy(**QUICK, limits={**limits, "maxPerCycle": 2})
    await trial.until(lambda: trial.associated == {"alive"}, "all four go")
    assert [len(batch) for batch in trial.batches] == [2, 2]
    await trial.event("released", since=before, guard="maxPerCycle")


async def test_devices_lost_together_wait_until_one_returns(trial: Trial) -> None:
    """`lostTogether`: three that left within the window may share a cause; two are no group any more."""
    group = {"massLoss": {"window": "1s", "minDevices": 3, "minPercent": 30}}
    settings = {**QUICK, "offlineThreshold": "10s", **group}
    await trial.watch("alive", "lamp-1", "lamp-2", "lamp-3", **settings)
    await trial.devices.drop("lamp-1", "lamp-2", "lamp-3")

    held = await trial.event("held", guard="lostTogether")
    assert "massLoss.window (1s)" in held["reason"]
    assert held["remedy"].endswith(f"pruner approve {held['plan']}")
    await trial.event("cycle", due=3)
    assert not trial.batches

    await trial.devices.connect("lamp-3")
    await trial.event("released", guard="lostTogether")
    for name in ("lamp-1", "lamp-2"):
        await trial.event("disassociated", name)
    assert trial.associated == {"alive", "lamp-3"}


async def test_the_budget_of_a_day_survives_a_kill(trial: Trial) -> None:
    """`maxPercentPerDay`: a quarter of four is one; a new process has spent it too, and a higher limit lets go."""
    await trial.watch("alive", "also", "lamp-1", "lamp-2", **QUICK, limits={"maxPercentPerDay": 25})
    await trial.devices.drop("lamp-1", "lamp-2")
    await trial.event("disassociated")
    held = await trial.event("held", guard="maxPercentPerDay")
    assert "25 % of 4 devices" in held["reason"]
    assert re.fullmatch("wait .+ or raise limits.maxPercentPerDay", held["remedy"]), held

    before = len(trial.core.events)
    trial.core.component.kill()
    again = await trial.event("held", since=before, guard="maxPercentPerDay")
    assert again["reason"].startswith("1 of 1 disassociations of these 24 h are used")
    assert len(trial.batches) == 1

    await trial.deploy(**QUICK, limits={"maxPercentPerDay": 100})
    await trial.event("released", since=before, guard="maxPercentPerDay")
    await trial.until(lambda: trial.associated == {"alive", "also"}, "the second one goes")
    assert sorted(trial.batches) == [("lamp-1",), ("lamp-2",)]


async def test_a_short_list_is_believed_when_three_cycles_say_the_same(trial: Trial) -> None:
    """`list`: two of five are no reason to forget three; what is known of them outlives even a list that was wrong."""
    names = ("a", "b", "c", "d", "e")
    await trial.watch(*names, **QUICK)
    before = len(trial.core.events)
    with failing(trial, LIST, times=3, hidden=("a", "b", "c")):
        held = await trial.event("held", guard="list")
        assert held["reason"] == "the cloud lists 2 associated devices, but 5 were expected"
        assert "3 cycles" in held["remedy"]
        await trial.event("released", guard="list")
        await trial.event("cycle", since=before, present=2)
    await trial.event("cycle", since=before, present=5)
    assert not trial.of_type("marked")


async def test_a_refused_configuration_holds_until_it_is_corrected(trial: Trial) -> None:
    """`configuration`: every mistake is told with its path; the last good one, or the defaults, watch; nothing goes."""
    trial.core.cloud.associate("alive", "dead")
    await trial.deploy(listens=False, **QUICK, colour="red")
    assert problems(await trial.event("configuration", accepted=False)) == ["colour"]
    (guard,) = (await trial.status(lambda status: status["guards"]))["guards"]
    assert guard["guard"] == "configuration"
    await trial.core.deploy({COMPONENT: {"reset": ["/colour"]}})
    await trial.event("released", guard="configuration")
    await trial.devices.connect("alive", "dead")
    await trial.known(2)

    since = len(trial.core.events)
    mistakes = {"offlineThreshold": 30, "limits": {"maxPerCycle": -1}, "colour": "red"}
    await trial.core.deploy({COMPONENT: {"merge": mistakes}})
    refused = await trial.event("configuration", since=since, accepted=False)
    assert problems(refused) == ["colour", "limits.maxPerCycle", "offlineThreshold"]
    await trial.devices.drop("dead")
    held = await trial.event("held", since=since, guard="configuration")
    assert all(path in held["reason"] for path in mistakes)
    assert held["remedy"].startswith("correct it with a deployment")
    await trial.event("cycle", since=since, due=1)
    assert trial.of_type("cycle")[-1]["held"] == ["configuration"]
    assert not trial.batches

    await trial.core.deploy({COMPONENT: {"reset": ["/colour", "/limits"], "merge": QUICK}})
    await trial.event("released", since=since, guard="configuration")
    await trial.event("disassociated", "dead")
    assert trial.core.component.starts == 1


def problems(refused: dict[str, Any]) -> list[str]:
    """The paths of what is wrong in a configuration."""
    return sorted(problem.partition(":")[0] for problem in refused["problems"])


async def test_denied_disassociation_holds_until_it_is_granted(trial: Trial) -> None:
    """`accessDenied` names the IAM action, does not flap with listings that work, and one device at most tries."""
    await trial.watch("alive", "lamp-1", "lamp-2", **QUICK)
    with failing(trial, DISASSOCIATE, status=403, error="AccessDeniedException"):
        await trial.devices.drop("lamp-1", "lamp-2")
        held = await trial.event("held", guard="accessDenied")
        assert "greengrass:BatchDisassociateClientDeviceFromCoreDevice" in held["remedy"]
        await trial.until(lambda: len(trial.batches) >= 2, "it tries again")
        assert all(len(batch) == 1 for batch in trial.batches[1:])
        assert len(trial.of_type("failed")) == 1
        assert "accessDenied" not in {one["guard"] for one in trial.of_type("released")}
    await trial.event("released", guard="accessDenied")
    await trial.until(lambda: trial.associated == {"alive"}, "both go")


async def test_a_refused_listing_holds(trial: Trial) -> None:
    """`coreNotFound`, and `accessDenied` for listing: said once, released by the first listing that works."""
    await trial.deploy(**QUICK)
    for status, error, guard, figure, remedy in (
        (404, "ResourceNotFoundException", "coreNotFound", "core-1", "whether the core device was deleted or renamed"),
        (403, "AccessDeniedException", "accessDenied", "made to fail", "ListClientDevicesAssociatedWithCoreDevice"),
    ):
        since = len(trial.core.events)
        with failing(trial, LIST, status=status, error=error):
            held = await trial.event("held", since=since, guard=guard)
            assert figure in held["reason"]
            assert held["remedy"].endswith(remedy)
            await trial.cycles(2)
            assert [one["guard"] for one in trial.of_type("held", since=since)].count(guard) == 1
        await trial.event("released", since=since, guard=guard)
        await trial.event("cycle", since=since, complete=True)


async def test_a_state_file_that_cannot_grow_holds_pruning(trial: Trial) -> None:
    """`database`: the watch goes on while the medium refuses, and pruning once it does not."""
    await trial.watch("alive", "dead", **QUICK)
    pid = trial.core.component.pid
    assert pid is not None
    # Its log refuses each write as well; a pipe for the child's answers is no file.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    held = await trial.event("held", guard="database")
    await trial.devices.drop("dead")
    assert "pruner.db cannot be written" in held["reason"]
    assert held["remedy"] == "free space on the file system, or make it writable"
    before = len(trial.calls(LIST))
    await trial.until(lambda: len(trial.calls(LIST)) >= before + 3, "cycles go on")
    assert trial.associated == {"alive", "dead"}
    assert not trial.batches

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await trial.event("released", guard="database")
    await trial.event("disassociated", "dead")
    assert trial.core.component.starts == 1


async def test_a_second_instance_waits_for_the_first(trial: Trial) -> None:
    """`instance`: two processes in one work directory; the second one watches and calls nobody, until it is alone."""
    await trial.watch("alive", "dead", **QUICK)
    second = await asyncio.create_subprocess_exec(
        trial.core.work_dir / "pruner",
        env=dict(variable.split("=", 1) for variable in trial.process("environ")),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        held = await trial.event("held", guard="instance")
        assert "another process of this component" in held["reason"]
        assert "end the other process" in held["remedy"]
        await trial.devices.drop("dead")
        await trial.event("disassociated", "dead")
        assert trial.batches == [("dead",)]

        await trial.core.stop_component()
        before = len(trial.core.events)
        await trial.event("released", guard="instance")
        await trial.event("cycle", since=before, complete=True)
        assert second.returncode is None
        assert trial.core.component.state is State.FINISHED
    finally:
        second.kill()
        await second.wait()
