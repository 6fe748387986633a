"""The nucleus' local publish/subscribe, in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from paho.mqtt.client import topic_matches_sub as topic_matches

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """One message on a topic.

    Attributes:
        topic: Where it was published, without wildcards.
        payload: What was published.
        publisher: The component that published it, or empty.
    """

    topic: str
    payload: bytes
    publisher: str = ""


@dataclass(frozen=True, slots=True)
class JsonMessage(Message):
    """A message that was published as JSON, and is delivered as such; its payload is the text."""


class PubSub:
    """Fan-out of messages to subscribers, synchronous and in the order of publication.

    Attributes:
        drops: Tells of each message whether it is lost before it is received.
    """

    def __init__(self) -> None:
        self.drops: Callable[[Message], bool] = lambda _message: False
        self._subscriptions: dict[object, tuple[str, Callable[[Message], None]]] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """What is subscribed to."""
        return tuple(topic_filter for topic_filter, _deliver in self._subscriptions.values())

    def subscribe(self, topic_filter: str, deliver: Callable[[Message], None]) -> Callable[[], None]:
        """Have every message that matches the filter delivered.

        Args:
            topic_filter: May hold `+` for one level and `#` for all the rest, the parent level included.
            deliver: Called with each message, on the publisher's stack; it must not block.

        Returns:
            A function that ends the subscription; calling it again does nothing.
        """
        key = object()
        self._subscriptions[key] = (topic_filter, deliver)

        def unsubscribe() -> None:
            self._subscriptions.pop(key, None)

        return unsubscribe

    def publish(self, message: Message) -> None:
        """Deliver a message to every subscriber; an exception of one is logged and spares the others."""
        if self.drops(message):
            return
        for key, (topic_filter, deliver) in list(self._subscriptions.items()):
            if key in self._subscriptions and topic_matches(topic_filter, message.topic):
                try:
                    deliver(message)
                except Exception:  # noqa: BLE001 - one receiver's fault is no other's
                    _log.exception("a subscriber to %s failed on %s", topic_filter, message.topic)
