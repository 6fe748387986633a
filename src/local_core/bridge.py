"""The MQTT bridge: carries messages between the local broker, local publish/subscribe and IoT Core."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local_core.mqtt_client import MqttClient
from local_core.pubsub import Message, PubSub, topic_matches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PUBLISHER = "aws.greengrass.clientdevices.mqtt.Bridge"

_LONGEST_BACKOFF_SECONDS = 120.0
_ENDS = ("LocalMqtt", "Pubsub", "IotCore")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of `mqttTopicMapping`.

    Attributes:
        topic: the filter that a message's topic must match.
        source: where messages come from: `LocalMqtt`, `Pubsub` or `IotCore`.
        target: where they go to, likewise.
        prefix: put before the topic at the target.
    """

    topic: str
    source: str
    target: str
    prefix: str = ""

    def matches(self, topic: str) -> bool:
        """Tell whether the entry takes a topic; unlike a subscription, `#` takes `$SYS` too."""
        return topic_matches(f"/{self.topic}", f"/{topic}")


class Bridge:
    """A client of the broker that passes on what its configuration maps.

    Every copy that arrives by any subscription goes to every entry of that source whose filter matches:
    filters that overlap double messages, as on EMQX. Messages for a broker that is down are lost.

    Args:
        pubsub: local publish/subscribe.
        broker_port: tells the broker's TCP port on loopback at the moment of connecting.
        iot_core: takes topic and payload of what goes to IoT Core; None discards it.

    Attributes:
        client_id: the MQTT client id in force.
        connected: whether the broker has accepted the connection and the subscriptions.
        first_backoff_seconds: wait before the first attempt to reconnect; it doubles up to 120 s.
    """

    def __init__(
        self,
        pubsub: PubSub,
        *,
        broker_port: Callable[[], int],
        iot_core: Callable[[str, bytes], None] | None,
    ) -> None:
        self.first_backoff_seconds = 1.0
        self.connected = False
        self._pubsub = pubsub
        self._broker_port = broker_port
        self._iot_core = iot_core
        letters = string.ascii_letters + string.digits
        self._default_client_id = "mqtt-bridge-" + "".join(secrets.choice(letters) for _ in range(11))
        self.client_id = self._default_client_id
        self._entries: tuple[Entry, ...] = ()
        self._unsubscribe: dict[str, Callable[[], None]] = {}
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
                backoff_seconds = self.first_backoff_seconds
            except OSError as error:
                _log.info("the bridge cannot connect: %s; next attempt in %s s", error, backoff_seconds)
            else:
                if self._client is not None and self._client.client_id != self.client_id:
                    continue
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(2 * backoff_seconds, _LONGEST_BACKOFF_SECONDS)

    async def _connection(self) -> None:
        """Hold one connection until it is lost or the client id changes.

        Raises:
            OSError: it could not be opened.
        """
        self._client = client = MqttClient(self.client_id)
        client.on_message = lambda topic, payload: self._pass_on("LocalMqtt", topic, payload)
        client.on_lost = self._changed.set
        self._subscribed = set()
        try:
            await client.connect(self._broker_port())
            while client.connected and client.client_id == self.client_id:
                self._changed.clear()
                await self._subscribe_broker(client)
                self.connected = client.connected
                await self._changed.wait()
        finally:
            self.connected = False
            client.disconnect()

    async def _subscribe_broker(self, client: MqttClient) -> None:
        wanted = self._filters("LocalMqtt")
        client.unsubscribe(*sorted(self._subscribed - wanted))
        fresh, self._subscribed = sorted(wanted - self._subscribed), wanted
        await client.subscribe(*fresh)

    def _subscribe_pubsub(self, wanted: set[str]) -> None:
        for topic_filter in self._unsubscribe.keys() - wanted:
            self._unsubscribe.pop(topic_filter)()
        for topic_filter in sorted(wanted - self._unsubscribe.keys()):
            wildcard = "+" in topic_filter or "#" in topic_filter
            deliver = self._from_others if wildcard else self._from_anybody
            self._unsubscribe[topic_filter] = self._pubsub.subscribe(topic_filter, deliver)

    def _filters(self, source: str) -> set[str]:
        return {entry.topic for entry in self._entries if entry.source == source}

    def _from_others(self, message: Message) -> None:
        if message.publisher != PUBLISHER:
            self._from_anybody(message)

    def _from_anybody(self, message: Message) -> None:
        self._pass_on("Pubsub", message.topic, message.payload)

    def _pass_on(self, source: str, topic: str, payload: bytes) -> None:
        for entry in self._entries:
            if entry.source == source and entry.matches(topic):
                self._publish(entry.target, entry.prefix + topic, payload)

    def _publish(self, target: str, topic: str, payload: bytes) -> None:
        if target == "Pubsub":
            self._pubsub.publish(Message(topic, payload, PUBLISHER))
        elif target == "LocalMqtt" and self._client is not None:
            self._client.publish(topic, payload, qos=1)
        elif target == "IotCore" and self._iot_core is not None:
            self._iot_core(topic, payload)


def _entries(mapping: Mapping[str, Any]) -> list[Entry]:
    entries = []
    for key, value in mapping.items():
        entry = Entry(
            str(value.get("topic") or ""),
            str(value.get("source")),
            str(value.get("target")),
            str(value.get("targetTopicPrefix") or ""),
        )
        if entry.topic and entry.source in _ENDS and entry.target in _ENDS and entry.source != entry.target:
            entries.append(entry)
        else:
            _log.warning("mqttTopicMapping: %s is left out: topic, source or target makes no sense", key)
    return entries
