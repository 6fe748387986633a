"""The main job on the local core: over the real wire, from a killed device to its association's end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from local_core.cloud import CREDENTIALS, DISASSOCIATE, LIST, Call
from trial_site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

THRESHOLD_SECONDS = 3.0
NOTICE_SECONDS = 1.0
NO_OUTAGE: dict[str, Any] = {"massLoss": {"window": "0.1s", "minDevices": 100}}
"""Two or three devices that a test kills at once are not to be an outage."""


@pytest.mark.parametrize("source", ["emqx", "activity, emqx off", "activity, emqx unheard"])
async def test_a_killed_device_is_disassociated_and_nobody_else(make_site: MakeSite, source: str) -> None:
    """A killed device goes after threshold and notice, in one batch call; all others stay.

    Once with a broker that announces its clients, once with one that publishes nothing of its own (Moquette).
    """
    by_events = source == "emqx"
    site = await make_site(presence=by_events)
    site.core.cloud.associate("dead", "alive", "returns", "protected-1", "never-seen")
    await site.deploy(
        **NO_OUTAGE,
        protectedClients=["protected-*"],
        sources={
            "emqx": {"maxQuiet": "1.5s", "enabled": source != "activity, emqx off"},
            "messages": {"maxQuiet": "2s"},
        },
    )
    await site.event("cycle")
    spoken = None if by_events else 0.2
    await site.devices.connect("alive", telemetry_seconds=spoken)
    mortal = ("dead", "returns", "protected-1", "stranger")
    for name in mortal:
        await site.devices.connect(name, process=name, telemetry_seconds=spoken)
    await site.event("released", guard="source:emqx" if by_events else "source:messages")
    if not by_events:
        await has_habits(site, "dead", "returns")
    for name in mortal:
        await site.devices.kill(name)
    await site.event("marked", "returns")
    last_sign = site.heard["dead"]
    await site.devices.connect("returns", telemetry_seconds=spoken)
    await site.event("unmarked", "returns", reason="it showed life")

    gone = await site.event("disassociated", "dead")

    (marked,) = site.of_type("marked", "dead")
    assert marked["proof"] == gone["proof"] == ("census" if by_events else "habit")
    assert marked["thresholdSeconds"] >= THRESHOLD_SECONDS
    assert marked["offlineSeconds"] >= marked["thresholdSeconds"]
    assert marked["dueInSeconds"] == NOTICE_SECONDS
    assert gone["offlineSeconds"] >= marked["offlineSeconds"] + NOTICE_SECONDS
    (call,) = site.operations(DISASSOCIATE)
    assert call.entries == ("dead",)
    assert call.when - last_sign >= gone["offlineSeconds"] >= THRESHOLD_SECONDS + NOTICE_SECONDS
    await site.cycles(3)
    assert site.associated == {"alive", "returns", "protected-1", "never-seen"}
    assert len(site.operations(DISASSOCIATE)) == 1
    assert gone["cycleId"] in {cycle["cycleId"] for cycle in site.of_type("cycle") if cycle["disassociated"] == 1}
    last = site.of_type("cycle")[-1]
    assert (last["protected"], last["present"], last["disassociated"]) == (1, 2, 0)
    assert {name for kind in ("marked", "disassociated") for name in subjects(site, kind)} == {
        "dead",
        "returns",
    }
    coverage = await site.event("coverage")
    assert coverage["reasons"]
    site.check_events()


async def test_the_canary_alone_lets_the_last_device_that_spoke_be_missed(make_site: MakeSite) -> None:
    """On a broker without events the only device of a site is missed as well, since the canary vouches."""
    site = await make_site(presence=False)
    site.core.cloud.associate("dead")
    await site.deploy()
    await site.event("cycle")
    await site.devices.connect("dead", process="dead", telemetry_seconds=0.2)
    await has_habits(site, "dead")
    await site.devices.kill("dead")

    gone = await site.event("disassociated", "dead")

    assert gone["proof"] == "habit"
    assert site.associated == set()


async def test_without_a_canary_a_silent_site_proves_nothing(make_site: MakeSite) -> None:
    """Without a canary the silence of the only device cannot be told from a broken bridge: it stays."""
    site = await make_site(presence=False)
    site.core.cloud.associate("dead")
    messages = {"maxQuiet": "2s", "canaryTopic": ""}
    await site.deploy(sources={"emqx": {"maxQuiet": "1.5s"}, "messages": messages})
    await site.event("cycle")
    await site.devices.connect("dead", process="dead", telemetry_seconds=0.2)
    await has_habits(site, "dead")
    await site.devices.kill("dead")

    await site.event("held", guard="source:messages")
    await site.stay()

    assert site.associated == {"dead"}
    assert not site.of_type("marked")


async def test_250_devices_lost_one_after_another_go_in_three_batches(make_site: MakeSite) -> None:
    """Devices lost one after another go in batches of 100, 100 and 50, once the limits allow it."""
    calls = await lose_250(make_site, associated=310)

    assert [call.operation for call in calls] == [LIST] * 4 + [DISASSOCIATE] * 3 + [LIST]
    assert [len(call.entries) for call in calls if call.operation == DISASSOCIATE] == [100, 100, 50]


async def test_1000_associated_and_250_due_take_the_fewest_calls(make_site: MakeSite) -> None:
    """250 due devices of 1,000: 10 list calls, 3 batch calls, 8 list calls to confirm, and no others."""
    calls = await lose_250(make_site, associated=1000)

    assert [call.operation for call in calls] == [LIST] * 10 + [DISASSOCIATE] * 3 + [LIST] * 8
    for listing in (calls[:10], calls[13:]):
        assert ["nextToken" in call.parameters for call in listing] == [False] + [True] * (len(listing) - 1)
        assert {call.parameters.get("maxResults") for call in listing} == {"100"}


async def lose_250(make_site: MakeSite, *, associated: int) -> list[Call]:
    """Lose 250 devices one after another, let all be due at once; returns that cycle's calls of the API."""
    site = await make_site()
    lost = [f"lost-{number:03}" for number in range(250)]
    staying = [f"staying-{number:03}" for number in range(associated - 250)]
    site.core.cloud.associate(*lost, *staying)
    settings: dict[str, Any] = {
        "noticePeriod": "0s",
        # Hundreds connect at once in this very process: a count that is late must not undo what was known.
        "sources": {"emqx": {"maxQuiet": "6s"}, "messages": {"maxQuiet": "2s"}},
        "limits": {"maxPerCycle": 250, "maxPercentPerDay": 100, "approvalPercent": 100},
    }
    # A threshold that nobody reaches yet, so that all fall due in one cycle.
    await site.deploy(offlineThreshold="1h", **settings)
    await site.event("cycle")
    await site.devices.connect(*lost, process="lost")
    await site.devices.connect(*staying[:60], process="staying")
    await site.event("cycle", present=310)
    await site.until(lambda: site.status()["sources"]["emqx"]["vouching"], 60, "the census did not match")
    for name in lost:
        await site.devices.drop(name)
        # One after another: fewer within massLoss.window than would be an outage.
        await asyncio.sleep(0.04)

    def all_stale() -> bool:
        absences = site.absences("emqx")
        return all(absences.get(name, 0.0) > THRESHOLD_SECONDS for name in lost)

    await site.until(all_stale, 60, "not all lost devices were absent for long enough")
    await site.deploy(offlineThreshold="3s", **settings)

    cycle = await site.event("cycle", seconds=60, disassociated=250)

    assert site.associated == set(staying)
    assert subjects(site, "disassociated") == set(lost)
    assert {data["cycleId"] for data in site.of_type("disassociated")} == {cycle["cycleId"]}
    assert {data["proof"] for data in site.of_type("disassociated")} == {"census"}
    batches = [call for call in site.core.cloud.calls if call.operation == DISASSOCIATE]
    assert sorted(name for call in batches for name in call.entries) == lost
    await site.cycles(2)
    assert site.operations(DISASSOCIATE) == batches
    site.check_events()
    return next(calls for calls in by_cycle(site.core.cloud.calls) if batches[0] in calls)


def by_cycle(calls: list[Call]) -> list[list[Call]]:
    """The calls of the API of each cycle; each begins with the credentials for a child process of its own."""
    cycles: list[list[Call]] = []
    for call in calls:
        if call.operation == CREDENTIALS:
            cycles.append([])
        else:
            cycles[-1].append(call)
    return cycles


def subjects(site: Site, kind: str) -> set[str]:
    """The names of all devices that events of that type are about."""
    return {event["subject"] for event in site.core.events if event["type"].endswith(f".{kind}")}


async def has_habits(site: Site, *names: str) -> None:
    """Wait until these devices have been heard often and long enough to be missed."""

    def known() -> bool:
        reasons = site.status()["coverage"]["reasons"]
        return not any("habit" in reason for reason in reasons)

    def spoke() -> bool:
        rows = site.rows("SELECT name FROM devices WHERE seen AND habits LIKE '%[%'")
        return {row["name"] for row in rows} >= set(names)

    await site.until(lambda: spoke() and known(), what="the devices did not get a habit")
