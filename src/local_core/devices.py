"""Simulated client devices: real MQTT clients that can vanish, freeze, and come back by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

from local_core.mqtt_client import MqttClient

_AT_ONCE = 50


class DeviceError(Exception):
    """A device could not do what it was told; the message says which and why."""


class ClientDevices:
    """The devices of one local core; leaving the context drops them all.

    Two with the same name are one device that connects twice; for two units that fight over a client id use two
    `ClientDevices`.

    Args:
        broker_port: Tells the broker's TCP port on loopback when a device connects.
    """

    def __init__(self, broker_port: Callable[[], int]) -> None:
        self._broker_port = broker_port
        self._devices: dict[str, _Device] = {}

    async def __aenter__(self) -> ClientDevices:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.drop(*self._devices)

    async def connect(
        self,
        *names: str,
        telemetry_seconds: float | None = None,
        topic: str = "clients/{name}/telemetry",
        keepalive: int = 60,
        clean: bool = True,
        reconnect_seconds: float | None = None,
        will: str | None = None,
    ) -> None:
        """Connect devices, and wait until the broker has accepted all of them.

        Args:
            names: Client ids; one that is connected already starts a second connection.
            telemetry_seconds: Time between two messages of a device; None sends none.
            topic: Where its messages go; `{name}` stands for its name.
            keepalive: Its MQTT keep-alive in seconds; 0 promises nothing.
            clean: Whether the broker forgets the session when it ends.
            reconnect_seconds: How long after a lost connection it tries again, again and again; None never.
            will: Payload of a will on its topic.

        Raises:
            DeviceError: One of them was not accepted.
        """
        places = asyncio.Semaphore(_AT_ONCE)

        async def connect(name: str) -> None:
            own_topic = topic.replace("{name}", name)
            last_words = None if will is None else (own_topic, will.encode())
            client = MqttClient(name, keepalive_seconds=keepalive, clean=clean, will=last_words)
            device = _Device(client, own_topic, telemetry_seconds, reconnect_seconds)
            async with places:
                if name in self._devices:
                    self._devices[name].give_way()
                try:
                    await client.connect(self._broker_port())
                except OSError as error:
                    raise DeviceError(f"{name} could not connect: {error}") from error
            self._devices[name] = device
            device.life = asyncio.create_task(device.live(self._broker_port))

        await asyncio.gather(*(connect(name) for name in names))

    async def disconnect(self, *names: str) -> None:
        """Have devices take leave properly, with a DISCONNECT packet."""
        for name in names:
            self._find(name).give_way()
            self._find(name).client.disconnect()

    async def drop(self, *names: str) -> None:
        """Have devices close their sockets without a word, as the end of their process does."""
        for name in names:
            self._find(name).give_way()
            self._find(name).client.drop()

    async def publish(self, name: str, payload: str, topic: str | None = None, *, retain: bool = False) -> None:
        """Have a connected device publish (QoS 1), by default on its own topic."""
        device = self._find(name)
        if not device.client.connected:
            raise DeviceError(f"{name} is not connected")
        device.client.publish(topic or device.topic, payload.encode(), qos=1, retain=retain)

    async def freeze(self, *names: str) -> None:
        """Have devices fall silent, as without power: the sockets stay open, and nothing is sent or read."""
        for name in names:
            self._find(name).client.freeze()

    def is_connected(self, name: str) -> bool:
        """Tell whether a device takes itself for connected."""
        return self._find(name).client.connected

    def _find(self, name: str) -> _Device:
        if name not in self._devices:
            raise DeviceError(f"no device {name} was ever connected here")
        return self._devices[name]


class _Device:
    def __init__(
        self, client: MqttClient, topic: str, telemetry_seconds: float | None, reconnect_seconds: float | None
    ) -> None:
        self.client = client
        self.topic = topic
        self.life: asyncio.Task[None] | None = None
        self._telemetry_seconds = telemetry_seconds
        self._reconnect_seconds = reconnect_seconds

    def give_way(self) -> None:
        """Do nothing more by itself."""
        if self.life is not None:
            self.life.cancel()

    async def live(self, broker_port: Callable[[], int]) -> None:
        """Send telemetry while connected, and connect again when the connection is lost, as it was told."""
        lost = asyncio.Event()
        self.client.on_lost = lost.set
        messages = 0
        while self.client.connected:
            if self._telemetry_seconds is not None:
                messages += 1
                self.client.publish(self.topic, json.dumps({"message": messages}).encode())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(lost.wait(), self._telemetry_seconds)
            while self._reconnect_seconds is not None and not self.client.connected:
                await asyncio.sleep(self._reconnect_seconds)
                with contextlib.suppress(OSError):
                    await self.client.connect(broker_port())
            lost.clear()
