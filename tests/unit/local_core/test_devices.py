"""Simulated client devices, on a real broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.mqtt import EVENTS, Listener
from fakes.waiting import until
from local_core.broker import Broker
from local_core.devices import ClientDevices

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def listener(broker: Broker) -> Listener:
    """Provide a client that hears events, and all that devices publish."""
    return await Listener().listen(broker, "clients/#", EVENTS)


@pytest.fixture
async def devices(broker: Broker) -> AsyncIterator[ClientDevices]:
    """Provide devices that end with the test."""
    async with ClientDevices(lambda: broker.port) as devices:
        yield devices


async def test_devices_connect_disconnect_and_drop(broker: Broker, listener: Listener, devices: ClientDevices) -> None:
    """They come and go one by one, each in its own manner."""
    await devices.connect("a", "b", "c")
    assert set(broker.connections) == {"listener", "a", "b", "c"}
    await devices.disconnect("a")
    await devices.drop("b")
    await until(lambda: listener.story("a")[1:] == ["normal"] and listener.story("b")[1:] == ["tcp_closed"])
    assert not devices.is_connected("a")
    await devices.connect("a")
    assert set(broker.connections) == {"listener", "a", "c"}


async def test_devices_publish(listener: Listener, devices: ClientDevices) -> None:
    """A message goes to the device's own topic, or to the one that is given; telemetry is numbered."""
    await devices.connect("a")
    await devices.publish("a", "hello")
    await devices.publish("a", "there", topic="clients/x/y")
    await until(lambda: len(listener.published) == 2)
    assert listener.published == [("clients/a/telemetry", b"hello"), ("clients/x/y", b"there")]
    await devices.connect("b", telemetry_seconds=0.02, topic="clients/{name}/state")
    await until(lambda: ("clients/b/state", b'{"message": 5}') in listener.messages)
    await devices.drop("b")
    await until(lambda: listener.story("b")[1:])
    count = len(listener.published)
    await devices.publish("a", "end")
    await until(lambda: listener.published[-1][1] == b"end")
    assert len(listener.published) == count + 1


async def test_a_frozen_device_misses_its_keepalive(listener: Listener, devices: ClientDevices) -> None:
    """It is given up by the broker, and notices when it thaws; one that goes on in time is not."""
    await devices.connect("hung", keepalive=1, telemetry_seconds=0.1, reconnect_seconds=0.05)
    await devices.connect("slow", keepalive=10)
    await devices.freeze("slow", "hung")
    await until(lambda: listener.story("hung") == ["connected", "keepalive_timeout"])
    assert devices.is_connected("hung")
    listener.messages.clear()
    await devices.thaw("slow", "hung")
    await devices.publish("slow", "hello")
    await until(lambda: len(listener.published) > 3)
    assert ("clients/slow/telemetry", b"hello") in listener.published


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
