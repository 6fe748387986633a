"""The bridge, between a real broker and publish/subscribe."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from fakes.waiting import until
from local_core.bridge import Bridge
from local_core.broker import Broker
from local_core.mqtt_client import MqttClient
from local_core.pubsub import PubSub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Site:
    """A bridge between a broker and publish/subscribe, and what arrived where."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.pubsub = PubSub()
        self.local: list[tuple[str, bytes]] = []
        self.cloud: list[tuple[str, bytes]] = []
        for everything in ("#", "$SYS/#"):
            self.pubsub.subscribe(everything, lambda message: self.local.append((message.topic, message.payload)))
        self.bridge = Bridge(
            self.pubsub,
            broker_port=lambda: self.broker.port,
            iot_core=lambda message: self.cloud.append((message.topic, message.payload)),
        )
        self.bridge.reconnect_seconds = self.bridge.first_backoff_seconds = 0.05

    async def up(self, *entries: tuple[str, ...]) -> None:
        """Have the bridge connected with entries of topic, source, target and perhaps prefix."""
        names = ("topic", "source", "target", "targetTopicPrefix")
        mapping = {str(number): dict(zip(names, entry, strict=False)) for number, entry in enumerate(entries)}
        self.bridge.configure({"mqttTopicMapping": mapping})
        await self.bridge.start()
        await until(lambda: self.bridge.connected)


@pytest.fixture
async def site(broker: Broker) -> AsyncIterator[Site]:
    """Provide a site whose broker runs."""
    site = Site(broker)
    yield site
    await site.bridge.stop()


@pytest.fixture
async def robot(broker: Broker) -> MqttClient:
    """Provide a client of the broker."""
    client = MqttClient("robot")
    await client.connect(broker.port)
    return client


async def test_each_entry_that_matches_gets_each_copy(site: Site, robot: MqttClient) -> None:
    """Equal filters share a subscription; two that overlap double what every entry gets."""
    same = ("clients/+/x", "LocalMqtt", "Pubsub")
    await site.up((*same, "a/"), (*same, "b/"))
    robot.publish("clients/robot/x", b"")
    await until(lambda: len(site.local) == 2)
    assert [topic for topic, _ in site.local] == ["a/clients/robot/x", "b/clients/robot/x"]
    await site.bridge.stop()
    site.local.clear()
    await site.up((*same, "a/"), ("clients/#", "LocalMqtt", "IotCore"))
    robot.publish("clients/robot/x", b"")
    robot.publish("clients/robot/y", b"")
    await until(lambda: len(site.cloud) == 3)
    assert [topic for topic, _ in site.cloud] == ["clients/robot/x"] * 2 + ["clients/robot/y"]
    assert [topic for topic, _ in site.local] == ["a/clients/robot/x"] * 2


async def test_it_comes_back_with_its_subscriptions_and_what_is_retained(site: Site, robot: MqttClient) -> None:
    """After a lost connection it connects and subscribes again by itself, soon (case 10)."""
    robot.publish("clients/robot/status", b"online", qos=1, retain=True)
    await site.up(("clients/#", "LocalMqtt", "Pubsub"))
    await until(lambda: len(site.local) == 1)
    await site.broker.restart_listener()
    await until(lambda: len(site.local) == 2)
    await site.broker.restart_listener()
    await until(lambda: site.local == [("clients/robot/status", b"online")] * 3)


async def test_the_back_off_doubles_and_starts_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts grow rarer while the broker is away; a connection starts the series anew."""
    site.bridge.reconnect_seconds = 0.01
    await site.up()
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(seconds)

    # Only the bridge waits through its own module's name.
    monkeypatch.setattr("local_core.bridge.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": noted}))
    for _ in range(2):
        waits.clear()
        await site.broker.stop()
        await until(lambda: len(waits) >= 5)
        assert waits[:5] == [0.01, 0.05, 0.1, 0.2, 0.4]
        await site.broker.start()
        await until(lambda: site.bridge.connected)
