"""A Greengrass that answers at once: local pub/sub, configurations and deployments, with faults to order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from client_device_pruner.greengrass.ipc import (
    Configuration,
    ConfigurationChanged,
    Disconnected,
    Message,
    News,
    Refused,
    StreamClosed,
    Subscribed,
)
from client_device_pruner.greengrass.link import IN, PROBE, SELF_TEST
from client_device_pruner.presence.clock import Clock


class FakeIpc:
    """Implements `Ipc` without threads: all callbacks run within the call that causes them."""

    def __init__(self, clock: Clock, deliver: Callable[[Message], None], report: Callable[[News], None]) -> None:
        self._clock = clock
        self._deliver = deliver
        self._report = report
        self.carries_probe = True  # a probe comes back as through bridge and broker; False: they are broken
        self.answers = True  # calls are answered; False: the daemon is frozen, and nothing is
        self.alive = True  # the subscription delivers; `drop` ends that without a notice
        self.configurations: dict[str | None, Any] = {}  # by component name (None: our own); others cannot be read
        self.refusals: set[tuple[str, str]] = set()  # operation, resource (or its start, and `*`)
        self.subscriptions: list[str] = []  # the filters subscribed to now
        self.subscribed = 0  # how often a subscription was asked for
        self.published: list[tuple[str, bytes]] = []  # on local pub/sub, probes and self-tests left out
        self.last_probe = ""  # the topic of the latest probe
        self.to_iot_core: list[tuple[str, bytes]] = []  # topic and payload of each message to AWS IoT Core
        self.followed: list[str | None] = []  # the components whose configuration is followed
        self.closed = False  # whether the connection was closed by its user

    # What a test does

    def message(self, topic: str, payload: bytes) -> bool:
        """Let a message arrive on local pub/sub; False if the subscription did not deliver it."""
        heard = self.alive and not self.closed and bool(self.subscriptions) and topic.startswith(IN)
        if heard:
            self._deliver(Message(topic, payload, self._clock.monotonic()))
        return heard

    def drop(self) -> None:
        """Let the subscription die without a notice, as on Greengrass Lite; a new one works."""
        self.alive = False

    def close_stream(self) -> None:
        """End the subscription with a notice."""
        ended, self.subscriptions = self.subscriptions, []
        if ended:
            self.tell(StreamClosed())

    def disconnect(self, reason: str = "gone") -> None:
        """End the connection from the other side."""
        self.close_stream()
        self.tell(Disconnected(reason))

    def configure(self, component: str | None, value: Any) -> None:
        """Deploy a component's configuration; its followers are told."""
        self.configurations[component] = value
        if component in self.followed:
            self.tell(ConfigurationChanged(component))

    def tell(self, news: News) -> None:
        """Report news, unless the connection is closed."""
        if not self.closed:
            self._report(news)

    # What the component does

    def subscribe(self, topic: str) -> None:
        """See `Ipc`."""
        self.subscribed += 1
        self.subscriptions.clear()
        if self._answered("SubscribeToTopic", topic):
            self.subscriptions.append(topic)
            self.alive = True
            self.tell(Subscribed())

    def publish(self, topic: str, payload: bytes) -> None:
        """See `Ipc`."""
        is_probe = topic.startswith(PROBE)
        if is_probe:
            self.last_probe = topic
        elif topic != SELF_TEST:
            self.published.append((topic, payload))
        if self._answered("PublishToTopic", topic):
            if is_probe and self.carries_probe:
                self.message(IN + topic, payload)
            elif topic.startswith(IN):
                self.message(topic, payload)

    def publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        """See `Ipc`."""
        if self._answered("PublishToIoTCore", topic):
            self.to_iot_core.append((topic, payload))

    def read_configuration(self, component: str | None) -> None:
        """See `Ipc`."""
        if not self.answers or self.closed:
            return
        known = component in self.configurations
        error = "" if known else "ResourceNotFoundError: no such component"
        self.tell(Configuration(component, self.configurations.get(component), error))

    def follow_configuration(self, component: str | None) -> None:
        """See `Ipc`."""
        if self._answered("SubscribeToConfigurationUpdate", component or "") and component not in self.followed:
            self.followed.append(component)

    def follow_deployments(self) -> None:
        """See `Ipc`."""
        self._answered("SubscribeToComponentUpdates", "")

    def defer(self, deployment_id: str, milliseconds: int) -> None:  # noqa: ARG002 - see `Ipc`
        """See `Ipc`."""
        self._answered("DeferComponentUpdate", deployment_id)

    def close(self) -> None:
        """See `Ipc`."""
        self.closed = True
        self.subscriptions.clear()

    def _answered(self, operation: str, resource: str) -> bool:
        if not self.answers or self.closed:
            return False
        for refused, pattern in self.refusals:
            matches = resource.startswith(pattern[:-1]) if pattern.endswith("*") else resource == pattern
            if refused == operation and matches:
                self.tell(Refused(operation, resource, "UnauthorizedError: no", True))
                return False
        return True
