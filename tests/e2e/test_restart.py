"""SIGKILL and a new start on the local core: clocks are kept, and the gap proves nothing."""

from __future__ import annotations

import asyncio
import time

import pytest

from local_core.cloud import DISASSOCIATE
from local_core.component import State
from trial_site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GAP_SECONDS = 6.0
"""Longer than threshold and notice together: if it counted, everything would be due after it."""
SLACK_SECONDS = 1.5
"""What the clock may earn between the last look at it and the kill: no more than `emqx`'s maxQuiet."""


async def test_clocks_are_kept_and_the_gap_is_not_counted(make_site: MakeSite) -> None:
    """Killed, and started again after a gap: the clock goes on where it was, and so does the absence."""
    site = await make_site()
    await watch(site, "dead", "alive")
    await site.devices.kill("dead")
    last_sign = site.heard["dead"]
    await site.until(lambda: site.absences("emqx").get("dead", 0.0) >= 1.0)
    before = site.clock("emqx")

    killed = await kill_for(site, GAP_SECONDS)
    kept = site.clock("emqx")
    assert kept <= before + SLACK_SECONDS
    site.core.start_component()
    await site.listened()
    gap = time.monotonic() - killed
    # Nobody is known yet to the new run: `alive` is one more than the bridge until it is heard.
    await site.cycles(3)
    assert site.clock("emqx") == kept
    await site.devices.disconnect("alive")
    await site.devices.connect("alive")
    gone = await site.event("disassociated", "dead")

    (call,) = site.operations(DISASSOCIATE)
    assert call.entries == ("dead",)
    assert gone["offlineSeconds"] >= 4.0
    assert gone["offlineSeconds"] <= call.when - last_sign - gap
    assert site.clock("emqx") >= kept
    assert site.associated == {"alive"}


async def test_a_mark_outlives_the_kill(make_site: MakeSite) -> None:
    """A device that was marked before the kill goes on with its notice: it is marked once."""
    site = await make_site()
    await watch(site, "dead", noticePeriod="4s")
    await site.devices.kill("dead")
    await site.event("marked", "dead")
    # Marks are kept with the cycle that set them.
    await site.event("cycle", marked=1)

    site.core.component.kill()

    await site.core.component.wait_for_state(State.ERRORED)
    await site.event("disassociated", "dead")
    assert len(site.of_type("marked", "dead")) == 1
    assert site.core.component.starts == 2
    assert site.associated == set()


async def test_a_device_that_came_back_in_the_gap_stays(make_site: MakeSite) -> None:
    """A device that reconnected while nobody listened stays, however long it is then connected in silence.

    The clock stands still until it speaks; then the one that is really gone goes.
    """
    site = await make_site()
    await watch(site, "dead", "returns", noticePeriod="6s")
    await site.devices.kill("dead")
    await site.devices.kill("returns")
    await site.event("marked", "dead")
    await site.event("marked", "returns")
    # Marks are kept with the cycle that set them.
    await site.event("cycle", marked=2)
    before = site.clock("emqx")

    await site.core.component.power_off()
    await site.devices.connect("returns")
    await kill_for(site, 0.0)
    kept = site.clock("emqx")
    site.core.start_component()
    await site.event("held", guard="source:emqx")
    # Connected, silent, for much longer than threshold and notice.
    await asyncio.sleep(2 * GAP_SECONDS)
    await site.cycles(1)

    assert site.associated == {"dead", "returns"}
    assert not site.operations(DISASSOCIATE)
    assert before <= site.clock("emqx") == kept <= before + SLACK_SECONDS
    # The second of two messages opens the session that began unheard.
    await site.devices.publish("returns", "hello")
    await site.event("unmarked", "returns", reason="it showed life")
    await asyncio.sleep(1.0)
    await site.devices.publish("returns", "again")
    await site.event("released", guard="source:emqx")
    await site.event("disassociated", "dead")
    await site.cycles(8)
    assert site.associated == {"returns"}
    assert site.of_type("cycle")[-1]["present"] == 1
    site.check_events()


async def test_without_events_the_gap_is_no_silence_either(make_site: MakeSite) -> None:
    """On a broker without events the gap is no silence: the absence goes on from where it was."""
    site = await make_site(presence=False)
    site.core.cloud.associate("dead", "alive")
    await site.deploy()
    await site.event("cycle")
    await site.devices.connect("alive", telemetry_seconds=0.2)
    await site.devices.connect("dead", process="dead", telemetry_seconds=0.2)
    await site.event("released", guard="source:messages")
    await site.until(lambda: habits(site) == {"dead", "alive"})
    await site.devices.kill("dead")
    last_sign = site.heard["dead"]
    await site.until(lambda: site.absences("messages").get("dead", 0.0) >= 0.5)
    before = site.clock("messages")

    killed = await kill_for(site, GAP_SECONDS)
    kept = site.clock("messages")
    assert before <= kept <= before + 2.0
    site.core.start_component()
    await site.listened()
    gap = time.monotonic() - killed
    gone = await site.event("disassociated", "dead")

    assert gone["proof"] == "habit"
    (call,) = site.operations(DISASSOCIATE)
    assert call.entries == ("dead",)
    assert gone["offlineSeconds"] <= call.when - last_sign - gap
    assert site.associated == {"alive"}


async def watch(site: Site, *names: str, **settings: object) -> None:
    """Associate and connect these devices, each in a process of its own, and wait until they are watched."""
    site.core.cloud.associate(*names)
    await site.deploy(massLoss={"window": "0.1s", "minDevices": 100}, **settings)
    await site.event("cycle")
    for name in names:
        await site.devices.connect(name, process=name)
    await site.event("released", guard="source:emqx")
    await site.event("cycle", present=len(names))


async def kill_for(site: Site, seconds: float) -> float:
    """Kill the component, and leave it so for a while; returns when it was dead, in monotonic seconds."""
    await site.core.component.power_off()
    killed = time.monotonic()
    assert site.core.component.pid is None
    site.core.events.clear()
    site.core.component.output.clear()
    await asyncio.sleep(seconds)
    return killed


def habits(site: Site) -> set[str]:
    """The names that have been heard often enough to be missed."""
    return {
        row["name"]
        for row in site.rows(
            "SELECT name FROM devices, json_each(devices.habits) AS habit WHERE json_extract(habit.value, '$[0]') >= 8"
        )
    }
