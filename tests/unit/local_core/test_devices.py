"""Simulated client devices, on a real broker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from fakes.waiting import until
from local_core.broker import Broker
from local_core.devices import ClientDevices, DeviceError
from local_core.mqtt_client import MqttClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Ears:
    """A client of the broker that hears events and messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.ended: dict[str, str] = {}
        self.client = MqttClient("ears")
        self.client.on_message = self._hear

    def _hear(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/disconnected"):
            event = json.loads(payload)
            self.ended[event["clientid"]] = event["reason"]
        else:
            self.messages.append((topic, payload))


@pytest.fixture
async def ears(broker: Broker) -> Ears:
    """Provide a client that hears disconnections, and all that devices publish."""
    ears = Ears()
    await ears.client.connect(broker.port)
    await ears.client.subscribe("clients/#", "$SYS/brokers/+/clients/+/disconnected")
    return ears


@pytest.fixture
async def devices(broker: Broker) -> AsyncIterator[ClientDevices]:
    """Provide devices that end with the test."""
    async with ClientDevices(lambda: broker.port) as devices:
        yield devices


async def test_devices_connect_disconnect_and_drop(broker: Broker, ears: Ears, devices: ClientDevices) -> None:
    """They come and go one by one, each in its own manner."""
    await devices.connect("a", "b", "c")
    assert set(broker.connections) == {"ears", "a", "b", "c"}
    await devices.disconnect("a")
    await devices.drop("b")
    await until(lambda: ears.ended == {"a": "normal", "b": "tcp_closed"})
    assert not devices.is_connected("a")
    await devices.connect("a")
    assert set(broker.connections) == {"ears", "a", "c"}


async def test_devices_publish(ears: Ears, devices: ClientDevices) -> None:
    """A message goes to the device's own topic, or to the one that is given; telemetry is numbered."""
    await devices.connect("a")
    await devices.publish("a", "hello")
    await devices.publish("a", "there", topic="clients/x/y")
    await until(lambda: len(ears.messages) == 2)
    assert ears.messages == [("clients/a/telemetry", b"hello"), ("clients/x/y", b"there")]
    await devices.connect("b", telemetry_seconds=0.02, topic="clients/{name}/state")
    await until(lambda: ("clients/b/state", b'{"message": 5}') in ears.messages)
    await devices.drop("b")
    await until(lambda: "b" in ears.ended)
    count = len(ears.messages)
    await devices.publish("a", "end")
    await until(lambda: ears.messages[-1][1] == b"end")
    assert len(ears.messages) == count + 1


async def test_a_frozen_device_misses_its_keepalive(ears: Ears, devices: ClientDevices) -> None:
    """It is given up by the broker, and notices when it thaws; one that goes on in time is not."""
    await devices.connect("hung", keepalive=1, telemetry_seconds=0.1, reconnect_seconds=0.05)
    await devices.connect("slow", keepalive=10)
    await devices.freeze("slow", "hung")
    await until(lambda: ears.ended == {"hung": "keepalive_timeout"})
    assert devices.is_connected("hung")
    ears.messages.clear()
    await devices.thaw("slow", "hung")
    await devices.publish("slow", "hello")
    await until(lambda: ("clients/slow/telemetry", b"hello") in ears.messages and len(ears.messages) > 2)


async def test_a_device_connects_again_by_itself(broker: Broker, devices: ClientDevices) -> None:
    """Where it was told to, until it is told to leave."""
    await devices.connect("a", reconnect_seconds=0.02)
    await devices.connect("b")
    await broker.stop()
    await until(lambda: not devices.is_connected("a"))
    await broker.start()
    await until(lambda: set(broker.connections) == {"a"})
    await devices.drop("a")
    await until(lambda: not broker.connections)
    assert not devices.is_connected("a")


async def test_failures_are_told(broker: Broker, devices: ClientDevices) -> None:
    """A broker that is away, and a device that is not connected or not known, are errors."""
    await devices.connect("a")
    await devices.drop("a")
    with pytest.raises(DeviceError, match="a is not connected"):
        await devices.publish("a", "x")
    with pytest.raises(DeviceError, match="no device nobody"):
        await devices.drop("nobody")
    await broker.stop()
    with pytest.raises(DeviceError, match=r"a could not connect: .*refused"):
        await devices.connect("a")


async def test_hundreds_of_devices_are_held(broker: Broker, devices: ClientDevices) -> None:
    """They connect fifty at a time, and are all gone after a stop."""
    names = [f"robot-{number:03d}" for number in range(300)]
    await devices.connect(*names, telemetry_seconds=5)
    assert set(broker.connections) == set(names)
    await broker.stop()
    await until(lambda: not any(devices.is_connected(name) for name in names))
