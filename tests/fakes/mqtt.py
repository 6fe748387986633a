"""A client of the local core's broker that keeps what it hears."""

from __future__ import annotations

import json
from typing import Any

from local_core.broker import Broker
from local_core.mqtt_client import MqttClient

EVENTS = "$SYS/brokers/+/clients/#"
COUNT = "$SYS/brokers/emqx@127.0.0.1/stats/live_connections/count"


class Listener:
    """A client that keeps what it hears."""

    def __init__(self, client_id: str = "listener", **options: Any) -> None:
        self.client = MqttClient(client_id, **options)
        self.messages: list[tuple[str, bytes]] = []
        self.client.on_message = lambda topic, payload: self.messages.append((topic, payload))

    async def listen(self, broker: Broker, *filters: str) -> Listener:
        """Connect and subscribe."""
        await self.client.connect(broker.port)
        await self.client.subscribe(*filters)
        return self

    def events(self, client_id: str) -> list[dict[str, Any]]:
        """Return the presence events of a client, each with its kind under `event`."""
        return [
            {"event": topic.rsplit("/", 1)[1], **json.loads(payload)}
            for topic, payload in self.messages
            if f"/clients/{client_id}/" in topic
        ]

    def story(self, client_id: str) -> list[str]:
        """Return what happened to a client, in a word each."""
        return [event.get("reason", event["event"]) for event in self.events(client_id)]

    def counts(self) -> list[int]:
        """Return the counts that came."""
        return [int(payload) for topic, payload in self.messages if topic == COUNT]
