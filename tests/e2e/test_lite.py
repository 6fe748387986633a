"""On Greengrass Lite, where a publisher of one's own stands for the bridge, and a message can deafen the component."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager

import pytest

from e2e.trial import COMPONENT, IN, QUICK, MakeTrial, Trial, meanwhile
from local_core.pubsub import JsonMessage, Message

pytestmark = [pytest.mark.e2e]

PUBLISHER = "com.example.PresencePublisher"


def speaking(trial: Trial, heard: set[str], *, heartbeat: bool = False) -> AbstractAsyncContextManager[None]:
    """While the block runs, a publisher tells whom it hears, and echoes the probe or sends a heartbeat."""

    def publish(topic: str, payload: bytes = b"1") -> None:
        trial.core.pubsub.publish(Message(f"{IN}{topic}", payload, PUBLISHER))

    if not heartbeat:
        trial.core.pubsub.subscribe("pruner-probe/+", lambda message: publish(message.topic, message.payload))

    async def speak() -> None:
        while True:
            for name in sorted(heard):
                publish(f"clients/{name}/alive")
            if heartbeat and heard:
                publish("pruner-probe/heartbeat")
            await asyncio.sleep(0.2)

    return meanwhile(speak())


async def test_a_life_with_two_settings(make_trial: MakeTrial) -> None:
    """Case 21: texts for numbers, evidence `rhythm`, a restart with each deployment that loses nothing."""
    trial = await make_trial(lite=True)
    trial.core.cloud.associate("alive", "dead", "later")
    heard = {"alive", "dead", "later"}
    async with speaking(trial, heard):
        settings = {"allowShortDurations": "true", "offlineThreshold": "6s"}
        await trial.core.deploy({COMPONENT: {"merge": settings}})
        assert (await trial.event("configuration"))["accepted"]
        await trial.status(lambda status: status["coverage"]["removable"] == 3)
        heard.remove("dead")
        gone = await trial.event("disassociated", "dead")
        assert gone["evidence"] == "rhythm"
        assert gone["silentSeconds"] >= 6.0 + 3.0, "threshold, and half of it as grace period"

        await trial.core.deploy({COMPONENT: {"merge": {"protectedDevices": ["later"]}}})
        told = await trial.event("configuration", changed=["protectedDevices"])
        assert told["accepted"]
        status = await trial.status(lambda status: status["counts"]["protected"] == 1 and not status["guards"])
        assert trial.core.component.starts == 2
        assert status["coverage"] == {
            "associated": 2, "removable": 1, "reasons": ["1 cannot be removed: protectedDevices names them"],
        }  # fmt: skip
        inputs = status["observing"]["inputs"]
        assert [name for name, one in inputs.items() if one["inUse"]] == ["probe"]
    warnings = {line["warning"].partition(" is ")[0] for line in trial.log() if line["message"] == "trial"}
    assert warnings >= {"presence.probeInterval", "massLoss.window", "checkInterval", "gracePeriod"}
    assert trial.batches == [("dead",)]
    assert trial.associated == {"alive", "later"}
    assert not [held for held in trial.of_type("held") if held["guard"] != "notObserving"]


async def test_what_deafens_the_component_is_not_observed(make_trial: MakeTrial) -> None:
    """Case 27 and 29: one device's messages kill each new subscription at once; another, which lives, stays."""
    trial = await make_trial(lite=True)
    trial.core.cloud.associate("alive", "chatty")
    heard = {"alive"}

    async def chatter() -> None:
        members = json.dumps(dict.fromkeys(map(str, range(30)), 1)).encode()
        while True:
            trial.core.pubsub.publish(JsonMessage(f"{IN}clients/chatty/telemetry", members, PUBLISHER))
            await asyncio.sleep(0.2)  # more often than the probe

    async with speaking(trial, heard):
        await trial.deploy(**QUICK)
        await trial.status(lambda status: status["coverage"]["removable"] == 1)
        async with meanwhile(chatter()):
            held = await trial.event("held", guard="notObserving")
            assert held["reason"].startswith("no time has been observed since")
            before = await trial.status(lambda status: status["guards"])
            heard.clear()  # each of its messages falls into the deaf time
            await trial.cycles(6)
            after = await trial.status(lambda status: status["guards"])
            assert after["observedSeconds"] - before["observedSeconds"] < 2.0  # of twice its threshold
            assert [one["guard"] for one in after["guards"]] == ["notObserving"]
            assert not trial.of_type("marked")
        heard.add("alive")
        await trial.status(lambda status: status["observing"]["since"] and not status["guards"], "it hears again")
    assert trial.associated == {"alive", "chatty"}


async def test_a_heartbeat_does_for_a_publisher_that_cannot_echo(make_trial: MakeTrial) -> None:
    """While it comes time is observed; where it stays away nothing is, and nobody goes."""
    trial = await make_trial(lite=True)
    trial.core.cloud.associate("alive", "dead")
    heard = {"alive", "dead"}
    async with speaking(trial, heard, heartbeat=True):
        await trial.deploy(**QUICK)
        await trial.status(lambda status: status["coverage"]["removable"] == 2)
        heard.remove("dead")
        await trial.event("disassociated", "dead")

        heard.clear()
        await trial.event("held", guard="notObserving")
        status = await trial.status(lambda status: status["guards"])
        assert "without a bridge: what echoes" in status["guards"][0]["reason"]
        assert any("heartbeat" in one["remedy"] for one in status["doctor"])
        await trial.cycles(5)
        assert trial.associated == {"alive"}
        heard.add("alive")
        await trial.event("released", guard="notObserving")
    assert trial.batches == [("dead",)]
