"""The bridge, between a real broker and publish/subscribe: what end-to-end tests, which live on it, do not show."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fakes.waiting import until
from local_core.bridge import Bridge
from local_core.broker import Broker
from local_core.mqtt_client import MqttClient
from local_core.pubsub import PubSub


async def test_each_entry_that_matches_gets_each_copy(broker: Broker) -> None:
    """Equal filters share a subscription; two that overlap double what every entry gets (case 34)."""
    pubsub, local, cloud = PubSub(), list[str](), list[str]()
    pubsub.subscribe("#", lambda message: local.append(message.topic))
    bridge = Bridge(pubsub, broker_port=lambda: broker.port, iot_core=lambda message: cloud.append(message.topic))
    same = {"topic": "clients/+/x", "source": "LocalMqtt", "target": "Pubsub"}
    mapping = {"a": same | {"targetTopicPrefix": "a/"}, "b": same | {"targetTopicPrefix": "b/"}}
    bridge.configure({"mqttTopicMapping": mapping})
    await bridge.start()
    await until(lambda: bridge.connected)
    robot = MqttClient("robot")
    await robot.connect(broker.port)
    robot.publish("clients/robot/x", b"")
    await until(lambda: len(local) == 2)
    assert local == ["a/clients/robot/x", "b/clients/robot/x"]
    await bridge.stop()

    local.clear()
    wide = {"topic": "clients/#", "source": "LocalMqtt", "target": "IotCore"}
    bridge.configure({"mqttTopicMapping": {"a": mapping["a"], "wide": wide}})
    await bridge.start()
    await until(lambda: bridge.connected)
    robot.publish("clients/robot/x", b"")
    robot.publish("clients/robot/y", b"")
    await until(lambda: len(cloud) == 3)
    assert cloud == ["clients/robot/x"] * 2 + ["clients/robot/y"]
    assert local == ["a/clients/robot/x"] * 2
    await bridge.stop()


async def test_the_back_off_doubles_and_starts_again(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts grow rarer while the broker is away; a connection starts the series anew."""
    bridge = Bridge(PubSub(), broker_port=lambda: broker.port, iot_core=lambda _message: None)
    bridge.reconnect_seconds, bridge.first_backoff_seconds = 0.01, 0.05
    await bridge.start()
    await until(lambda: bridge.connected)
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(seconds)

    # Only the bridge waits through its own module's name.
    monkeypatch.setattr("local_core.bridge.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": noted}))
    for _ in range(2):
        waits.clear()
        await broker.stop()
        await until(lambda: len(waits) >= 5)
        assert waits[:5] == [0.01, 0.05, 0.1, 0.2, 0.4]
        await broker.start()
        await until(lambda: bridge.connected)
    await bridge.stop()


async def test_a_cancellation_that_comes_with_the_answer_is_not_lost(broker: Broker) -> None:
    """Else a bridge that is stopped just then would go on, and its end never come."""

    class Client(MqttClient):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "connected" and value:
                asyncio.get_running_loop().call_soon(connecting.cancel)

    connecting = asyncio.create_task(Client("robot").connect(broker.port))
    with pytest.raises(asyncio.CancelledError):
        await connecting
