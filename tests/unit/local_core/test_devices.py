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


async def test_devices_come_publish_and_go(broker: Broker, listener: Listener, devices: ClientDevices) -> None:
    """Each leaves in its own manner, and its telemetry with it."""
    await devices.connect("a", "b")
    await devices.connect("c", telemetry_seconds=0.02, topic="clients/{name}/state")
    await devices.publish("a", "there", topic="clients/x/y")
    await until(lambda: {("clients/c/state", b'{"message": 5}'), ("clients/x/y", b"there")} <= set(listener.messages))
    await devices.disconnect("a")
    await devices.drop("c")
    await until(lambda: listener.story("a")[1:] == ["normal"] and listener.story("c")[1:] == ["tcp_closed"])
    assert set(broker.connections) == {"listener", "b"}
    count = len(listener.published)
    await devices.publish("b", "end")
    await until(lambda: listener.published[-1] == ("clients/b/telemetry", b"end"))
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
