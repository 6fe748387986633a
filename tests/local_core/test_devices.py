"""Client devices, as processes that are really killed."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from local_core.broker import Broker
from local_core.devices import ClientDevices, DeviceError
from local_core.mqtt_client import MqttClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until a condition holds, and fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


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
    """Provide device processes that end with the test."""
    async with ClientDevices(lambda: broker.port) as devices:
        yield devices


async def test_devices_connect_disconnect_and_drop(broker: Broker, ears: Ears, devices: ClientDevices) -> None:
    """Devices of one process come and go one by one, each in its own manner."""
    await devices.connect("a", "b", "c")
    assert set(broker.connections) == {"ears", "a", "b", "c"}
    await devices.disconnect("a")
    await devices.drop("b")
    await until(lambda: ears.ended == {"a": "normal", "b": "tcp_closed"})
    assert set(broker.connections) == {"ears", "c"}
    await devices.connect("a")
    assert set(broker.connections) == {"ears", "a", "c"}


async def test_killing_a_process_takes_its_devices_along(broker: Broker, ears: Ears, devices: ClientDevices) -> None:
    """A device with a process of its own can die alone; the others do not notice."""
    await devices.connect("a", "b")
    await devices.connect("robot", process="robot")
    pid = devices.pid("robot")
    await devices.kill("robot")
    await until(lambda: ears.ended == {"robot": "tcp_closed"})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await devices.kill("devices")
    await until(lambda: set(broker.connections) == {"ears"})
    await devices.connect("a")
    assert "a" in broker.connections


async def test_devices_publish(ears: Ears, devices: ClientDevices) -> None:
    """A message goes to the device's own topic, or to the one that is given."""
    await devices.connect("a")
    await devices.publish("a", "hello")
    await devices.publish("a", "there", topic="clients/x/y")
    await until(lambda: len(ears.messages) == 2)
    assert ears.messages == [("clients/a/telemetry", b"hello"), ("clients/x/y", b"there")]


async def test_telemetry_is_sent_until_the_device_goes(ears: Ears, devices: ClientDevices) -> None:
    """Numbered messages come from the moment of connecting, at the interval asked for."""
    await devices.connect("a", "b", telemetry_seconds=0.05, topic="clients/{name}/state")
    await until(lambda: ("clients/b/state", b'{"message": 5}') in ears.messages)
    await devices.drop("b")
    await until(lambda: "b" in ears.ended)
    count = sum(topic == "clients/b/state" for topic, _ in ears.messages)
    await until(lambda: ("clients/a/state", b'{"message": 10}') in ears.messages)
    assert sum(topic == "clients/b/state" for topic, _ in ears.messages) == count


async def test_a_frozen_process_misses_its_keepalive(ears: Ears, devices: ClientDevices) -> None:
    """A device that hangs is given up by the broker; one that goes on in time is not."""
    await devices.connect("hung", process="hung", keepalive=1)
    await devices.connect("slow", process="slow", keepalive=10)
    await devices.freeze("slow")
    await devices.freeze("hung")
    await until(lambda: ears.ended == {"hung": "keepalive_timeout"})
    await devices.thaw("slow")
    await devices.publish("slow", "hello")
    await until(lambda: ears.messages)


async def test_a_frozen_process_can_be_killed(ears: Ears, devices: ClientDevices) -> None:
    """Whoever gave up waiting for a frozen process can still get rid of it."""
    await devices.connect("a")
    await devices.freeze("devices")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(devices.publish("a", "x"), 0.1)
    await devices.thaw("devices")
    with pytest.raises(DeviceError, match="no device b"):
        await devices.publish("b", "x")
    await devices.connect("b")
    await devices.freeze("devices")
    await devices.kill("devices")
    await until(lambda: set(ears.ended) == {"a", "b"})


async def test_devices_come_back_after_a_restart_if_they_are_to(broker: Broker, devices: ClientDevices) -> None:
    """Only devices that reconnect do, and none that was told to go."""
    await devices.connect("once")
    await devices.connect("again", "gone", reconnect_seconds=0.05)
    await devices.drop("gone")
    await broker.stop()
    await asyncio.sleep(0.2)
    await broker.start()
    await until(lambda: "again" in broker.connections)
    await asyncio.sleep(0.2)
    assert set(broker.connections) == {"again"}


async def test_two_live_devices_of_one_name(broker: Broker, ears: Ears, devices: ClientDevices) -> None:
    """A second connection of the same name, here or in another process, takes over."""
    await devices.connect("a")
    first = broker.connections["a"]
    await devices.connect("a", process="other")
    assert broker.connections["a"] > first
    await until(lambda: ears.ended == {"a": "discarded"})
    ears.ended.clear()
    await devices.connect("a", process="other", reconnect_seconds=0.01, clean=False)
    await devices.connect("a", process="other", reconnect_seconds=0.01, clean=False)
    await until(lambda: ears.ended == {"a": "takenover"})
    latest = broker.connections["a"]
    await asyncio.sleep(0.1)
    assert broker.connections["a"] == latest


async def test_a_will_is_left_behind(ears: Ears, devices: ClientDevices) -> None:
    """The broker publishes the will of a device that died."""
    await devices.connect("a", will="offline")
    await devices.kill("devices")
    await until(lambda: ears.messages == [("clients/a/telemetry", b"offline")])


async def test_failures_are_told(broker: Broker, devices: ClientDevices) -> None:
    """A broker that is away, a device that is not connected and a process that is not there are errors."""
    await devices.connect("a")
    await devices.drop("a")
    with pytest.raises(DeviceError, match="a is not connected"):
        await devices.publish("a", "x")
    with pytest.raises(DeviceError, match="no device nobody"):
        await devices.drop("nobody")
    with pytest.raises(DeviceError, match="no device process nowhere"):
        await devices.freeze("nowhere")
    await broker.stop()
    with pytest.raises(DeviceError, match=r"devices: .*refused"):
        await devices.connect("a")
    os.kill(devices.pid("devices"), 9)
    with pytest.raises(DeviceError, match="is gone"):
        await devices.connect("a")


async def test_a_process_ends_when_its_parent_is_gone(broker: Broker, devices: ClientDevices) -> None:
    """A closed stdin ends the process, so that none is left behind."""
    await devices.connect("a")
    process = devices._processes["devices"]._process
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    await until(lambda: not broker.connections)


async def test_a_thousand_devices_share_a_process(broker: Broker, devices: ClientDevices) -> None:
    """A thousand devices are connected by one process, and dead with it."""
    names = [f"robot-{number:04d}" for number in range(1000)]
    await devices.connect(*names, telemetry_seconds=5)
    assert set(broker.connections) == set(names)
    await devices.kill("devices")
    await until(lambda: not broker.connections)
