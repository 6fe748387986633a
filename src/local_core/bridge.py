"""The MQTT bridge: carries messages between the local broker, local publish/subscribe and IoT Core."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from paho.mqtt.client import topic_matches_sub as topic_matches

from local_core.mqtt_client import MqttClient
from local_core.pubsub import Message, PubSub

PUBLISHER = "aws.greengrass.clientdevices.mqtt.Bridge"
"""The component that the bridge is, and the publisher of what it publishes."""

_LONGEST_BACKOFF_SECONDS = 120.0
_ENDS = ("LocalMqtt", "Pubsub", "IotCore")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of `mqttTopicMapping`."""

    topic: str
    source: str
    target: str
    prefix: str = ""

    def matches(self, topic: str) -> bool:
        """Tell whether the entry takes a topic; unlike a subscription, `#` takes `$SYS` too."""
        return topic_matches(f"/{self.topic}", f"/{topic}")


class Bridge:
    """An MQTT 3 client of the broker that passes on what its configuration maps.

    Every copy that arrives by any subscription goes to every entry of that source whose filter matches:
    filters that overlap double messages, as on EMQX. Messages for a broker that is down are lost.

    Attributes:
        client_id: The MQTT client id, in force from the next connection on.
        connected: Whether the broker has accepted the connection and the subscriptions.
        reconnect_seconds: Wait before the first attempt to reconnect after a connection was lost (seen: 0.3 s).
        first_backoff_seconds: Wait after the first attempt that failed; it doubles up to 120 s.
    """

    def __init__(self, pubsub: PubSub, *, broker_port: Callable[[], int], iot_core: Callable[[Message], None]) -> None:
        self.reconnect_seconds = 0.3
        self.first_backoff_seconds = 1.0
        self.connected = False
        self._pubsub = pubsub
        self._broker_port = broker_port
        self._iot_core = iot_core
        self._default_client_id = f"mqtt-bridge-{secrets.token_hex(5)}"
        self.client_id = self._default_client_id
        self._entries: tuple[_Entry, ...] = ()
        self._pubsub_ends: list[Callable[[], None]] = []
        self._client: MqttClient | None = None
        self._subscribed: set[str] = set()
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def configure(self, configuration: Mapping[str, Any]) -> None:
        """Take over a configuration, running or not; entries that make no sense are logged and left out."""
        self._entries = tuple(_entries(configuration.get("mqttTopicMapping") or {}))
        self.client_id = str(configuration.get("clientId") or self._default_client_id)
        if self._running is not None:
            self._subscribe_pubsub(self._filters("Pubsub"))
        self._changed.set()

    async def start(self) -> None:
        """Start, and go on connecting in the background."""
        if self._running is None:
            self._subscribe_pubsub(self._filters("Pubsub"))
            self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Take leave of the broker and of publish/subscribe."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None
        self._subscribe_pubsub(set())

    async def _run(self) -> None:
        backoff_seconds = self.first_backoff_seconds
        while True:
            try:
                await self._connection()
                wait_seconds, backoff_seconds = self.reconnect_seconds, self.first_backoff_seconds
            except OSError as error:
                wait_seconds, backoff_seconds = backoff_seconds, min(2 * backoff_seconds, _LONGEST_BACKOFF_SECONDS)
                _log.info("the bridge cannot connect: %s; next attempt in %s s", error, wait_seconds)
            await asyncio.sleep(wait_seconds)

    async def _connection(self) -> None:
        """Hold one connection until it is lost.

        Raises:
            OSError: It could not be opened.
        """
        self._client = client = MqttClient(self.client_id)
        client.on_message = lambda topic, payload: self._pass_on("LocalMqtt", topic, payload)
        client.on_lost = self._changed.set
        self._subscribed = set()
        try:
            await client.connect(self._broker_port())
            while client.connected:
                self._changed.clear()
                wanted = self._filters("LocalMqtt")
                client.unsubscribe(*(self._subscribed - wanted))
                fresh, self._subscribed = sorted(wanted - self._subscribed), wanted
                await client.subscribe(*fresh)
                self.connected = client.connected
                await self._changed.wait()
        finally:
            self.connected = False
            client.disconnect()

    def _subscribe_pubsub(self, wanted: set[str]) -> None:
        for end in self._pubsub_ends:
            end()
        self._pubsub_ends = [self._pubsub.subscribe(it, partial(self._from_pubsub, it)) for it in sorted(wanted)]

    def _from_pubsub(self, topic_filter: str, message: Message) -> None:
        # As the nucleus has it by default: a filter with wildcards does not get one's own messages.
        if message.publisher != PUBLISHER or not {"+", "#"} & set(topic_filter):
            self._pass_on("Pubsub", message.topic, message.payload)

    def _filters(self, source: str) -> set[str]:
        return {entry.topic for entry in self._entries if entry.source == source}

    def _pass_on(self, source: str, topic: str, payload: bytes) -> None:
        for entry in self._entries:
            if entry.source != source or not entry.matches(topic):
                continue
            message = Message(entry.prefix + topic, payload, PUBLISHER)
            if entry.target == "Pubsub":
                self._pubsub.publish(message)
            elif entry.target == "IotCore":
                self._iot_core(message)
            elif self._client is not None:
                self._client.publish(message.topic, message.payload, qos=1)


def _entries(mapping: Mapping[str, Any]) -> list[_Entry]:
    entries = []
    for key, value in mapping.items():
        ends = str(value.get("source")), str(value.get("target"))
        entry = _Entry(str(value.get("topic") or ""), *ends, str(value.get("targetTopicPrefix") or ""))
        if entry.topic and entry.source in _ENDS and entry.target in _ENDS and entry.source != entry.target:
            entries.append(entry)
        else:
            _log.warning("mqttTopicMapping: %s is left out: topic, source or target makes no sense", key)
    return entries
