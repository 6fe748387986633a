"""What restarts on a core device, and what is known across it: component, bridge, broker, listener."""

from __future__ import annotations

import pytest

from e2e.trial import COMPONENT, THRESHOLD_SECONDS, MakeTrial, Trial, documented
from local_core.core import EMQX

pytestmark = [pytest.mark.e2e]

AFTER_THE_BRIDGE_SECONDS = 2.0
BEFORE_THE_BRIDGE_SECONDS = 0.05


async def test_the_component_is_killed(trial: Trial) -> None:
    """SIGKILL: sessions and silences are kept, so a silent connected device stays, and the dead one goes in time."""
    await trial.watch("dead", "silent")
    await trial.devices.drop("dead")
    await trial.status(lambda status: status["counts"]["silent"] == 1, "its silence in the state file")

    since = len(trial.core.events)
    trial.core.component.kill()
    gone = await trial.event("disassociated", "dead", since=since)

    assert trial.core.component.starts == 2
    assert gone["evidence"] == "connectionCount"
    assert all(cycle["present"] == 1 for cycle in trial.of_type("cycle", since=since))
    assert trial.associated == {"silent"}
    assert not trial.of_type("marked", "silent")


async def test_the_listener_restarts(make_trial: MakeTrial) -> None:
    """Case 13: one's end was lost, so nobody goes by the count before the broker restarts, which ends all sessions."""
    trial = await make_trial(uptime_interval_seconds=1.0)
    trial.core.cloud.associate("dead", "left", "silent")
    await trial.deploy()
    await trial.devices.connect("silent", reconnect_seconds=AFTER_THE_BRIDGE_SECONDS)
    await trial.devices.connect("dead", "left", reconnect_seconds=AFTER_THE_BRIDGE_SECONDS)
    await trial.known(3)

    await trial.core.broker.restart_listener()
    await trial.devices.drop("dead")
    await trial.until(lambda: trial.core.broker.connections.keys() >= {"left", "silent"}, "two devices back")
    await trial.devices.drop("left")
    await trial.observes(THRESHOLD_SECONDS + 2.0)

    assert "more sessions are known than the broker has connections" in await trial.explain("left")
    assert not trial.of_type("marked")
    await restart_broker(trial)
    await trial.event("disassociated", "left")
    await trial.event("disassociated", "dead")
    assert trial.associated == {"silent"}


async def test_from_the_deployment_documents_alone(make_trial: MakeTrial) -> None:
    """A silent device that dies goes; one that is back unheard after each restart stays: the client list names it.

    Nothing is set but what makes it a trial, and the port, since another test may have 18083.
    """
    trial = await make_trial(uptime_interval_seconds=1.0)

    async def deploy(name: str) -> None:
        document = documented(name)
        port = f"127.0.0.1:{trial.core.emqx_api.port}:"
        document[EMQX]["dockerOptions"] = document[EMQX]["dockerOptions"].replace("127.0.0.1:18083:", port)
        document[COMPONENT] |= {"allowShortDurations": True, "offlineThreshold": f"{THRESHOLD_SECONDS:g}s"}
        await trial.core.deploy({component: {"merge": merged} for component, merged in document.items()})

    async def back() -> None:
        await trial.until(lambda: trial.core.bridge.connected, "the bridge")
        await trial.until(lambda: trial.devices.is_connected("silent"), "the silent device")
        await trial.observes(1.5)

    trial.core.cloud.associate("dead", "silent")
    await trial.devices.connect("dead", "silent", reconnect_seconds=BEFORE_THE_BRIDGE_SECONDS)
    await deploy("deployment-dry-run")
    await trial.known(2)
    (finding,) = (await trial.status())["doctor"]
    assert "well-known password" in finding["finding"], "the document's own is a placeholder"
    since = len(trial.core.events)
    await deploy("deployment-live")
    configured = await trial.event("configuration", since=since)
    assert configured["changed"] == ["dryRun"]
    assert configured["protectionEnded"]

    await trial.devices.drop("dead")
    trial.core.component.kill()
    await trial.until(lambda: trial.core.component.starts == 2, "another start")
    await back()
    await trial.core.bridge.stop()
    await trial.core.bridge.start()
    await back()
    await restart_broker(trial)
    await back()
    await trial.core.broker.restart_listener()
    await back()
    gone = await trial.event("disassociated", "dead")
    await trial.event("cycle", since=len(trial.core.events), present=1)

    assert gone["evidence"] == "clientList"
    assert trial.batches == [("dead",)]
    assert not trial.of_type("marked", "silent")
    assert {message.topic for message in trial.core.iot_core} >= {"client-device-pruner/core-1/events"}


async def restart_broker(trial: Trial) -> None:
    """Let the broker die and start anew; the bridge is back within a second or so."""
    await trial.core.broker.stop()
    await trial.core.broker.start()
    await trial.until(lambda: trial.core.bridge.connected, "the bridge")
