"""Configurations on the local core: refused, corrected, and what spares a device."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from local_core.cloud import DISASSOCIATE, Fault
from local_core.component import State
from trial_site import COMPONENT, TRIAL, MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MISTAKES: dict[str, Any] = {
    "offlineThreshold": 30,
    "noticePeriod": "one day",
    "limits": {"maxPerCycle": -1},
    "massLoss": {"minPercent": 101},
    "colour": "red",
}
PATHS = {"offlineThreshold", "noticePeriod", "limits.maxPerCycle", "massLoss.minPercent", "colour"}
CORRECTION: dict[str, Any] = {
    "reset": ["/colour"],
    "merge": {
        "offlineThreshold": TRIAL["offlineThreshold"],
        "noticePeriod": TRIAL["noticePeriod"],
        "limits": {"maxPerCycle": 100},
        "massLoss": {"minPercent": 30},
    },
}


async def test_five_mistakes_are_five_messages_and_hold_pruning(make_site: MakeSite) -> None:
    """A refused configuration is told of with every path; it is watched on, and pruning holds until corrected."""
    site = await make_site()
    await site_with_one_to_lose(site)

    await site.core.deploy({COMPONENT: {"merge": MISTAKES}})
    refused = await site.event("configuration", accepted=False)
    await site.devices.kill("dead")

    assert {problem.partition(":")[0] for problem in refused["problems"]} == PATHS
    assert len(refused["problems"]) == len(MISTAKES)
    for problem in refused["problems"]:
        line = await site.logged("configuration refused", problem=problem)
        assert line["level"] == "ERROR"
    held = await site.event("held", guard="configuration")
    assert held["remedy"]
    assert all(path in held["reason"] for path in PATHS)
    # Watched by the last good one: marked, then due, and there it stays.
    await site.event("marked", "dead")
    await site.event("cycle", due=1)
    await site.cycles(5)
    assert site.of_type("cycle")[-1]["held"] == ["configuration"]
    assert (await status_guards(site)) == {"configuration"}
    assert site.associated == {"dead", "alive"}
    assert not site.operations(DISASSOCIATE)

    await site.core.deploy({COMPONENT: CORRECTION})

    await site.event("released", guard="configuration")
    await site.event("disassociated", "dead")
    # Said though it equals the last good one: who heard of the refusal is to hear of its end.
    assert site.of_type("configuration")[-1] == {"accepted": True, "problems": []}
    assert site.associated == {"alive"}
    assert site.core.component.starts == 1
    site.check_events()


async def test_a_refused_configuration_holds_across_a_restart(make_site: MakeSite) -> None:
    """After a restart the last good configuration watches, and the refused one still holds pruning."""
    site = await make_site()
    await site_with_one_to_lose(site)
    await site.core.deploy({COMPONENT: {"merge": MISTAKES}})
    await site.event("configuration", accepted=False)
    await site.core.component.power_off()
    site.core.events.clear()
    site.core.component.output.clear()

    site.core.start_component()

    await site.event("configuration", accepted=False)
    await site.listened()
    # The census needs both devices to be known again.
    await site.devices.kill("dead")
    await site.devices.disconnect("alive")
    await site.devices.connect("alive")
    await site.event("marked", "dead")
    await site.event("cycle", due=1)
    await site.cycles(3)
    assert site.associated == {"dead", "alive"}
    assert "configuration" in site.of_type("cycle")[-1]["held"]
    await site.core.deploy({COMPONENT: CORRECTION})
    await site.event("disassociated", "dead")


async def test_a_first_configuration_that_is_refused_holds_from_the_beginning(make_site: MakeSite) -> None:
    """With no good configuration yet the defaults watch, and nothing is disassociated; the process goes on."""
    site = await make_site()
    site.core.cloud.associate("dead", "alive")

    await site.deploy(**MISTAKES)

    refused = await site.event("configuration")
    assert not refused["accepted"]
    assert {problem.partition(":")[0] for problem in refused["problems"]} == PATHS
    await site.event("held", guard="configuration")
    await site.core.deploy({COMPONENT: CORRECTION})
    await site.event("configuration", accepted=True)
    await site.event("released", guard="configuration")
    assert site.core.component.state is State.RUNNING
    assert site.core.component.starts == 1


async def test_a_deployment_waits_for_a_batch_in_flight_and_no_longer_than_30_s(make_site: MakeSite) -> None:
    """Announced between batches it goes on at once; during one it waits for its answer, but not for one that hangs."""
    site = await make_site()
    site.core.cloud.associate("next")
    await site_with_one_to_lose(site)
    await site.devices.connect("next", process="next")
    await site.event("cycle", present=3)

    await site.deploy(logLevel="WARNING")
    assert answers(site) == [0]

    site.core.cloud.faults.append(Fault(DISASSOCIATE, delay_seconds=3.0))
    await site.devices.kill("dead")
    await site.until(lambda: site.operations(DISASSOCIATE))
    await site.deploy(logLevel="INFO")
    assert answers(site)[1:-1] == [1000] * (len(answers(site)) - 2)
    assert len(answers(site)) > 3, "it waited"
    await site.event("disassociated", "dead")

    site.core.cloud.faults.append(Fault(DISASSOCIATE, hang=True))
    await site.devices.kill("next")
    await site.until(lambda: len(site.operations(DISASSOCIATE)) == 2)
    (child,) = children(site)
    os.kill(child, signal.SIGSTOP)  # a call that hangs is given up after 15 s; a child that does, after 45 s
    before = len(answers(site))
    began = time.monotonic()
    await site.deploy(protectedClients=["next"])
    assert time.monotonic() - began >= 29.0
    assert set(answers(site)[before:-1]) == {1000}
    assert children(site) == [child], "the call is still under way"
    os.kill(child, signal.SIGCONT)
    await site.event("cycle", protected=1)
    assert site.associated == {"alive", "next"}
    assert site.core.component.starts == 1
    site.check_events()


async def test_protection_unmarks_and_spares(make_site: MakeSite) -> None:
    """A marked device that a deployment protects is unmarked and stays; unprotected, it gets a new notice."""
    site = await make_site()
    await site_with_one_to_lose(site, noticePeriod="1h")
    await site.devices.kill("dead")
    await site.event("marked", "dead")

    await site.deploy(protectedClients=["d*"])

    await site.event("unmarked", "dead", reason="the settings spare it")
    await site.event("cycle", protected=1)
    await site.cycles(5)
    assert site.associated == {"dead", "alive"}
    assert len(site.of_type("marked", "dead")) == 1
    await site.deploy(protectedClients=[])
    gone = await site.event("disassociated", "dead")
    _first, second = site.of_type("marked", "dead")
    assert gone["offlineSeconds"] >= second["offlineSeconds"] + 1.0
    assert site.associated == {"alive"}
    site.check_events()


async def test_the_longest_threshold_that_matches_counts(make_site: MakeSite) -> None:
    """Devices with thresholds of their own go after these, the longest of several; the others before them."""
    site = await make_site()
    site.core.cloud.associate("fast", "slow-1", "alive")
    await site.deploy(
        thresholds={
            "shorter": {"clients": ["slow-*"], "offlineThreshold": "1s"},
            "longer": {"clients": ["*-1", "none"], "offlineThreshold": "8s"},
        }
    )
    await site.event("cycle")
    await site.devices.connect("alive")
    await site.devices.connect("fast", "slow-1", process="lost")
    await site.event("released", guard="source:emqx")
    await site.devices.kill("lost")

    fast = await site.event("disassociated", "fast")
    assert "slow-1" in site.associated
    slow = await site.event("disassociated", "slow-1")

    assert fast["offlineSeconds"] >= 4.0
    assert slow["offlineSeconds"] >= 9.0
    assert [site.of_type("marked", name)[0]["thresholdSeconds"] for name in ("fast", "slow-1")] == [3.0, 8.0]
    assert site.associated == {"alive"}


async def test_a_dry_run_does_all_but_the_disassociation(make_site: MakeSite) -> None:
    """A dry run marks and says what it would have done; its end unmarks, and a new notice follows."""
    site = await make_site()
    await site_with_one_to_lose(site, dryRun=True)
    await site.devices.kill("dead")

    cycle = await site.event("cycle", wouldDisassociate=1)

    assert (cycle["dryRun"], cycle["disassociated"], cycle["due"]) == (True, 0, 1)
    await site.cycles(3)
    assert site.of_type("cycle")[-1]["wouldDisassociate"] == 1
    assert not site.operations(DISASSOCIATE)
    assert site.associated == {"dead", "alive"}
    await site.deploy(dryRun=False)
    await site.event("unmarked", "dead", reason="the dry run ended")
    gone = await site.event("disassociated", "dead")
    _first, second = site.of_type("marked", "dead")
    assert second["dueInSeconds"] == 1.0
    assert gone["offlineSeconds"] >= second["offlineSeconds"] + 1.0
    assert "wouldDisassociate" not in site.of_type("cycle")[-1]
    assert site.associated == {"alive"}
    site.check_events()


async def site_with_one_to_lose(site: Site, **settings: Any) -> None:
    """Associate and connect two devices, `dead` in a process of its own, and wait until they are watched."""
    site.core.cloud.associate("dead", "alive")
    await site.deploy(**settings)
    await site.event("cycle")
    await site.devices.connect("alive")
    await site.devices.connect("dead", process="dead")
    await site.event("released", guard="source:emqx")


def answers(site: Site) -> list[int]:
    """For how many milliseconds the component deferred each deployment that was announced to it, each time."""
    return [milliseconds for _deployment, component, milliseconds in site.core.ipc.answers if component == COMPONENT]


def children(site: Site) -> list[int]:
    """The processes that the component has started and that still run."""
    pid = site.core.component.pid
    return [
        int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text("ascii").split()
    ]


async def status_guards(site: Site) -> set[str]:
    """The guards in force as `status` tells them, once `configuration` is among them; sources left out."""

    def guards() -> set[str]:
        in_force = {guard["guard"] for guard in site.status()["guards"]}
        return {guard for guard in in_force if not guard.startswith("source:")}

    await site.until(lambda: "configuration" in guards())
    return guards()
