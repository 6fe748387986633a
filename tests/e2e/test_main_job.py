"""The main job over the real wire, on each kind of evidence: connect, vanish, return in time, protected, gone."""

from __future__ import annotations

import asyncio

import pytest

from e2e.trial import COMPONENT, IN, MAPPING, THRESHOLD_SECONDS, TRIAL, MakeTrial, Trial, documented, meanwhile
from local_core.cloud import LIST
from local_core.core import BRIDGE, EMQX
from local_core.pubsub import Message

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
    assert "of it were heard, where 5" in await trial.explain("rare")


async def test_with_both(trial: Trial) -> None:
    """Where devices speak and are announced, one that nobody announced costs nothing: it stays, and the dead one goes.

    Its words show that it lives; when it falls silent, the count shows that it may still be connected.
    """
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


async def test_with_the_client_list(trial: Trial) -> None:
    """As the documents in `deploy` have it, the dry run first: the client list shows what is gone and what is not."""
    port = trial.core.emqx_api.port

    async def deploy(name: str) -> None:
        document = documented(name)
        # Beside the durations only the port differs: another test may have 18083.
        document[EMQX]["dockerOptions"] = document[EMQX]["dockerOptions"].replace("1:18083:", f"1:{port}:")
        document[COMPONENT] = {**TRIAL, **document[COMPONENT]}
        await trial.core.deploy({component: {"merge": merged} for component, merged in document.items()})

    trial.core.cloud.associate("dead", "silent")
    await trial.devices.connect("dead", "silent", reconnect_seconds=0.1)
    await deploy("deployment-dry-run")
    await trial.known(2)
    (finding,) = (await trial.status())["doctor"]
    assert "password that everybody knows" in finding["finding"], "the document's own is a placeholder"
    await trial.devices.drop("dead")
    await trial.event("cycle", wouldDisassociate=1)
    since = len(trial.core.events)

    await deploy("deployment-live")
    gone = await trial.event("disassociated", "dead")

    (configured,) = trial.of_type("configuration", since=since)
    assert configured["changed"] == ["dryRun"]
    assert configured["protectionEnded"]
    assert trial.of_type("unmarked", "dead", since=since), "its grace period begins anew"
    assert gone["evidence"] == "clientList"
    assert trial.batches == [("dead",)]
    assert not trial.of_type("marked", "silent")
    assert {message.topic for message in trial.core.iot_core} >= {"client-device-pruner/core-1/events"}
    assert trial.core.shadows.reported["core-1", "client-device-pruner"]["dryRun"], "one update a minute at most"


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
    before = len([call for call in trial.core.cloud.calls if call.operation == LIST])

    await trial.core.deploy({COMPONENT: {"merge": {"dryRun": False}}})
    cycle = await trial.event("cycle", disassociated=250)

    assert [len(names) for names in trial.batches] == [100, 100, 50]
    assert {name for names in trial.batches for name in names} == set(crowd)
    assert {gone["cycleId"] for gone in trial.of_type("disassociated")} == {cycle["cycleId"]}
    assert trial.associated == {"silent"}
    lists = [call for call in trial.core.cloud.calls if call.operation == LIST][before:]
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
    assert not [held for held in trial.of_type("held") if "count stays away" in held["reason"]]
    made_smaller = {line["warning"].split(" is ")[0] for line in trial.log() if line["message"] == "trial"}
    assert made_smaller == {"allowShortDurations", "presence.probeInterval", "massLoss.window"} | {
        "presence.clientList.interval",
        "checkInterval",
        "gracePeriod",
    }


@pytest.mark.timeout(300)
async def test_a_trial_with_two_settings_on_lite(make_trial: MakeTrial) -> None:
    """Case 21: with a publisher of the site's own, which echoes the probe, and tells what it hears."""
    trial = await make_trial(lite=True)
    trial.core.cloud.associate("dead", "lives")
    heard = {"dead", "lives"}

    def publish(topic: str, payload: bytes) -> None:
        trial.core.pubsub.publish(Message(topic, payload, "com.example.Presence"))

    async def tell() -> None:
        while True:
            for name in heard:
                publish(f"{IN}clients/{name}/seen", b"1")
            await asyncio.sleep(1.0)

    trial.core.pubsub.subscribe("pruner-probe/+", lambda probe: publish(IN + probe.topic, probe.payload))
    async with meanwhile(tell()):
        await trial.core.deploy({COMPONENT: {"merge": TWO_SETTINGS}})
        await trial.status(lambda status: status["coverage"]["removable"] == 2, "two with a rhythm")
        heard.remove("dead")

        gone = await trial.event("disassociated", "dead", seconds=180)

    assert gone["evidence"] == "rhythm"
    assert trial.associated == {"lives"}
    assert not trial.of_type("marked", "lives")
    assert not [held for held in trial.of_type("held") if held["guard"] != "notObserving"]
