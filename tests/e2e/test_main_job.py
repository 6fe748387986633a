"""The main job over the real wire, on each kind of evidence: connect, vanish, return in time, protected, gone."""

from __future__ import annotations

import asyncio

import pytest

from e2e.trial import COMPONENT, MAPPING, THRESHOLD_SECONDS, MakeTrial, Trial
from local_core.cloud import LIST
from local_core.core import BRIDGE

pytestmark = [pytest.mark.e2e]

TWO_SETTINGS = {"allowShortDurations": True, "offlineThreshold": "20s"}


async def test_with_connection_events(trial: Trial) -> None:
    """On EMQX one that vanished goes by the connection count; what returns in time, is protected or silent stays."""
    await trial.watch("dead", "guarded", "returns", "silent", protectedDevices=["guard*"], gracePeriod="4s")
    await trial.devices.drop("dead", "guarded", "returns")
    marked = await trial.event("marked", "returns")
    await trial.devices.connect("returns")

    await trial.event("unmarked", "returns")
    gone = await trial.event("disassociated", "dead")

    assert marked["evidence"] == gone["evidence"] == "connectionCount"
    assert marked["dueInSeconds"] == 4.0
    assert THRESHOLD_SECONDS <= marked["silentSeconds"] < gone["silentSeconds"]
    assert not trial.of_type("marked", "guarded")
    await trial.cycles(2)
    assert trial.batches == [("dead",)]
    assert trial.associated == {"guarded", "returns", "silent"}
    assert trial.of_type("cycle")[-1].items() >= {"present": 2, "protected": 1, "silent": 0}.items()


async def test_with_messages_alone(make_trial: MakeTrial) -> None:
    """On Moquette, which tells nothing, one that used to speak goes by its rhythm; one that hardly ever spoke stays."""
    trial = await make_trial(presence=False)
    trial.core.cloud.associate("dead", "speaks", "rare")
    await trial.deploy()
    await trial.devices.connect("dead", "speaks", telemetry_seconds=0.5)
    await trial.devices.connect("rare")
    await trial.devices.publish("rare", "hello")
    await trial.status(lambda status: status["coverage"]["removable"] == 2, "two with a rhythm")
    await trial.devices.drop("dead", "rare")

    gone = await trial.event("disassociated", "dead")

    assert gone["evidence"] == "rhythm"
    await trial.cycles(2)
    assert trial.associated == {"speaks", "rare"}
    assert not trial.of_type("marked", "rare")
    assert "the device was heard for too short a time" in await trial.explain("rare")


async def test_with_both(trial: Trial) -> None:
    """One that nobody announced costs nothing: it stays by its words, then by the count, and the dead one goes."""
    trial.core.cloud.associate("dead", "speaks", "unannounced")
    await trial.deploy()
    trial.core.broker.suppress_events = True
    await trial.devices.connect("unannounced")
    trial.core.broker.suppress_events = False
    await trial.devices.connect("dead", "speaks", telemetry_seconds=0.5)
    await trial.devices.publish("unannounced", "hello")
    await trial.known(2)
    await trial.devices.drop("dead")

    gone = await trial.event("disassociated", "dead")

    assert gone["evidence"] == "connectionCount"
    assert "2 connections that cannot be named" in await trial.explain("unannounced")
    assert trial.associated == {"speaks", "unannounced"}
    assert not trial.of_type("marked", "unannounced")


@pytest.mark.timeout(300)
async def test_250_at_once(trial: Trial) -> None:
    """They go in one cycle, in three batches, by lists of three pages; meanwhile the core has other things to do."""
    crowd = [f"crowd-{number}" for number in range(250)]
    limits = {"approvalPercent": 100, "maxPercentPerDay": 100, "maxPerCycle": 1000}
    trial.core.cloud.associate("silent", *crowd)
    await trial.deploy(dryRun=True, limits=limits)
    await trial.devices.connect("silent")
    # A few at a time, so that a slow machine loses no probe by it.
    for few in (crowd[at : at + 10] for at in range(0, 250, 10)):
        await trial.devices.connect(*few)
    await trial.known(251)
    for few in (crowd[at : at + 10] for at in range(0, 250, 10)):
        await trial.devices.drop(*few)
        await asyncio.sleep(0.1)
    # Longer on a slow machine: the silence before it connected counts for its patience.
    await trial.event("cycle", wouldDisassociate=250, seconds=120)
    before = len(trial.calls(LIST))

    await trial.core.deploy({COMPONENT: {"merge": {"dryRun": False}}})
    cycle = await trial.event("cycle", disassociated=250)

    assert [len(names) for names in trial.batches] == [100, 100, 50]
    assert {name for names in trial.batches for name in names} == set(crowd)
    assert {gone["cycleId"] for gone in trial.of_type("disassociated")} == {cycle["cycleId"]}
    assert trial.associated == {"silent"}
    lists = trial.calls(LIST)[before:]
    assert sum("nextToken" not in call.parameters for call in lists) * 3 - 2 <= len(lists)


@pytest.mark.timeout(300)
async def test_a_trial_with_two_settings(make_trial: MakeTrial) -> None:
    """Two settings are enough for a trial, also where the broker counts rarely (EMQX: once a minute)."""
    trial = await make_trial(count_interval_seconds=15.0)
    trial.core.cloud.associate("dead", "silent")
    mapping = {"mqttTopicMapping": MAPPING}
    await trial.core.deploy({COMPONENT: {"merge": TWO_SETTINGS}, BRIDGE: {"merge": mapping}})
    await trial.status(lambda status: status["observing"]["since"], "observed time")
    await trial.devices.connect("dead", "silent")
    await trial.known(2)
    await trial.devices.drop("dead")

    gone = await trial.event("disassociated", "dead", seconds=180)

    assert gone["evidence"] == "connectionCount"
    assert gone["patienceSeconds"] == 20.0
    assert trial.associated == {"silent"}
    assert not [held for held in trial.of_type("held") if "count does not arrive" in held["reason"]]
    made_smaller = {line["warning"].split(" is ")[0] for line in trial.log() if line["message"] == "trial"}
    presence = {"presence.probeInterval", "presence.clientList.interval"}
    assert made_smaller == presence | {"allowShortDurations", "massLoss.window", "checkInterval", "gracePeriod"}
