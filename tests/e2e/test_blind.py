"""What is not heard is held against nobody: a gap of the bridge, probes, subscriptions and entries that are lost."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest

from e2e.trial import IN, MAPPING, THRESHOLD_SECONDS, MakeTrial, Trial
from local_core.core import BRIDGE
from local_core.pubsub import Message

pytestmark = [pytest.mark.e2e]


async def test_an_unannounced_return_in_a_gap_of_the_bridge(trial: Trial) -> None:
    """One is back before the bridge: nobody goes on the strength of the count until it has spoken, and is named."""
    await trial.watch("back", "dead", "silent")
    await trial.devices.drop("back", "dead")
    await trial.status(lambda status: status["counts"]["silent"] == 2, "two that left")
    # Before the bridge goes, a count says how many connections were unnamed when they left.
    await trial.observes(2.0)
    await trial.core.bridge.stop()
    await trial.devices.connect("back")
    await trial.core.bridge.start()

    await trial.observes(THRESHOLD_SECONDS + 1.0)
    for name in ("back", "dead"):
        assert "2 connections that cannot be named" in await trial.explain(name)
    assert not trial.of_type("marked")
    # On a slow machine one of two messages may fall into a gap.
    while (await trial.status())["counts"]["present"] < 2:
        await trial.devices.publish("back", "hello")
        await trial.observes(1.5)
    gone = await trial.event("disassociated", "dead")

    assert gone["evidence"] == "connectionCount"
    assert trial.associated == {"back", "silent"}
    assert not trial.of_type("marked", "back")


async def test_every_second_probe_is_lost(trial: Trial) -> None:
    """Time around a lost probe is not observed, however soon the next one comes back: nobody becomes gone."""
    await trial.watch("dead", "silent")
    await trial.devices.drop("dead")
    probes = []

    def is_dropped(message: Message) -> bool:
        if message.topic.startswith(f"{IN}pruner-probe/"):
            probes.append(message.topic)
        return message.topic.startswith(f"{IN}pruner-probe/") and len(probes) % 2 == 0

    trial.core.pubsub.drops = is_dropped
    held = await trial.event("held", guard="notObserving")
    before, seen = (await trial.status())["observedSeconds"], len(probes)
    await trial.until(lambda: len(probes) >= seen + THRESHOLD_SECONDS, "ten more probes")
    status = await trial.status()

    assert status["observedSeconds"] == before
    assert status["observing"]["since"] is None
    assert "no time has been observed since" in held["reason"]
    assert not trial.of_type("marked")
    trial.core.pubsub.drops = lambda _message: False
    await trial.event("released", guard="notObserving")
    await trial.observes(1.0)
    assert trial.associated == {"dead", "silent"}


async def test_a_subscription_that_is_renewed_again_and_again(make_trial: MakeTrial) -> None:
    """Cases 27 and 29: each lives for one probe and hardly hears a device, which lives and speaks: it stays."""
    trial = await make_trial(presence=False)
    trial.core.cloud.associate("speaks")
    await trial.deploy()
    await trial.devices.connect("speaks", telemetry_seconds=1.3)
    await trial.status(lambda status: status["coverage"]["removable"] == 1, "a rhythm")
    heard: list[str] = []

    def mute_soon(message: Message) -> None:
        heard.append(message.topic)
        asyncio.get_running_loop().call_later(0.2, trial.core.ipc.mute_pubsub)

    unsubscribe = trial.core.pubsub.subscribe(f"{IN}pruner-probe/+", mute_soon)
    await trial.event("held", guard="notObserving")
    before, seen = (await trial.status())["observedSeconds"], len(heard)
    await trial.until(lambda: len(heard) >= seen + 5, "five more probes, each on a subscription of its own")

    assert (await trial.status())["observedSeconds"] == before
    # Between two probes it is still being found out.
    await trial.status(partial(is_held, "local pub/sub"), "what is dead")
    assert not trial.of_type("marked")
    assert trial.core.component.starts == 1
    unsubscribe()
    await trial.event("released", guard="notObserving")
    await trial.observes(2.0)
    assert trial.associated == {"speaks"}


async def test_an_entry_of_the_mapping_is_missing(trial: Trial) -> None:
    """A deployment loses it: nothing is observed, `notObserving` says why, and the doctor has what mends it."""
    await trial.watch("silent")
    for missing, reason in {
        "PrunerProbeBack": "does not come back from the broker",
        "PrunerCount": "the bridge no longer maps",
        "PrunerClients": "the bridge no longer maps",
    }.items():
        since = len(trial.core.events)
        left = {name: entry for name, entry in MAPPING.items() if name != missing}
        await trial.core.deploy({BRIDGE: {"reset": ["/mqttTopicMapping"], "merge": {"mqttTopicMapping": left}}})

        await trial.event("held", since=since, guard="notObserving")
        status = await trial.status(partial(is_held, reason), reason)
        (finding,) = of_the_bridge(status)

        assert status["observing"]["since"] is None
        remedy = json.loads(finding["remedy"])
        assert remedy == {"mqttTopicMapping": {missing: MAPPING[missing]}}
        await trial.core.deploy({BRIDGE: {"merge": remedy}})
        await trial.event("released", since=since, guard="notObserving")
        await trial.status(lambda status: not of_the_bridge(status), "nothing found any more")
    assert not trial.of_type("marked")


async def test_a_bridge_that_moquette_does_not_understand(make_trial: MakeTrial) -> None:
    """Case 33: Moquette throws an MQTT 5 bridge out for ever, so nothing is observed; the doctor names it."""
    trial = await make_trial(presence=False)
    trial.core.cloud.associate("silent")
    await trial.core.bridge.stop()  # what it comes to
    await trial.core.deploy({BRIDGE: {"merge": {"mqtt": {"version": "mqtt5"}}}})
    await trial.deploy()

    held = await trial.event("held", guard="notObserving")

    (finding,) = of_the_bridge(await trial.status(of_the_bridge, "a finding"))
    assert "MQTT 5" in finding["finding"]
    assert json.loads(finding["remedy"]) == {"mqtt": {"version": "mqtt3"}}
    assert "does not come back from the broker" in held["reason"]
    await trial.core.bridge.start()
    await trial.core.deploy({BRIDGE: {"merge": {"mqtt": {"version": "mqtt3"}}}})
    await trial.event("released", guard="notObserving")
    await trial.status(lambda status: not of_the_bridge(status), "nothing found any more")


def is_held(reason: str, status: dict[str, Any]) -> bool:
    """Whether a guard says so."""
    return reason in str(status["guards"])


def of_the_bridge(status: dict[str, Any]) -> list[dict[str, str]]:
    """What the doctor found in the bridge's configuration: all but that EMQX's HTTP API is off."""
    return [finding for finding in status["doctor"] if "HTTP API" not in finding["finding"]]
