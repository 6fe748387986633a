"""The connection to Greengrass, and the one subscription that is kept alive through it (DESIGN, model 11)."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Sequence

from client_device_pruner.doctor import Finding
from client_device_pruner.ipc import Ipc, Refused
from client_device_pruner.reports import LOGGER
from client_device_pruner.self_test import Remedy, SelfTest
from client_device_pruner.settings import Settings
from client_device_pruner.sources import Canary

OWN_TOPICS = "client-device-pruner/in/"
"""Where the self-test goes if the sources' topics have no prefix."""
RECONNECT_SECONDS = 5.0
"""How long after a lost connection a new one is tried; six times that after a refused one."""
DEFER_SECONDS = 30.0
"""How long a deployment waits for a batch in flight at most."""


class Connection:
    """Sends through the connection while there is one, and renews what has died.

    Args:
        connect: begins to connect; the outcome comes as news.
        give_up: ends the process so that the nucleus starts it anew, if that has not happened lately.
    """

    def __init__(self, connect: Callable[[], None], give_up: Callable[[str], None]) -> None:
        self.self_test = SelfTest(1.0)
        self._connect = connect
        self._give_up = give_up
        self._ipc: Ipc | None = None
        self._topics: tuple[str, ...] = ()
        self._self_test_topic = ""
        self._reconnect_at = float("inf")
        self._sent: dict[str, float] = {}
        self._deferred = ("", 0.0)
        self._refusals: dict[tuple[str, str], Finding | None] = {}

    # The connection itself

    def connected(self, ipc: Ipc, at: float) -> None:
        """Take a new connection into use."""
        self._ipc = ipc
        ipc.follow_deployments()
        self._subscribe(at)

    def lost(self, reason: str, at: float, *, refused: bool = False) -> None:
        """The connection ended, or could not be had at all (`refused`)."""
        LOGGER.error("no connection to Greengrass", extra={"fields": {"reason": reason}})
        self.close()
        self._reconnect_at = at + RECONNECT_SECONDS * self.self_test.scale * (6 if refused else 1)
        if refused:
            self._give_up("Greengrass does not let this process connect: after its restart the token is void")

    def close(self) -> None:
        """End the connection."""
        if self._ipc is not None:
            self._ipc.close()
            self._ipc = None
        self.self_test.alive = False

    # The subscription

    def use(self, settings: Settings, at: float) -> None:
        """Subscribe to what the settings need, if that changed."""
        self.self_test.scale = settings.scale
        self._self_test_topic = (settings.inbound_prefix or OWN_TOPICS) + "pruner-self-test"
        own = () if settings.inbound_prefix else (self._self_test_topic,)
        topics = (*settings.subscriptions(), *own)
        if topics != self._topics:
            self._topics = topics
            if self._ipc is not None:
                self._ipc.unsubscribe()
            self._subscribe(at)

    def echoed(self, topic: str, payload: bytes) -> bool:
        """Whether a message is the self-test's echo; it is taken if so."""
        if topic != self._self_test_topic:
            return False
        self.self_test.echo(payload)
        return True

    def send_self_test(self, text: str) -> None:
        """Publish the self-test, to come back through the subscription."""
        self.publish(self._self_test_topic, text.encode())

    def send_canaries(self, canaries: Sequence[Canary], at: float, *, now: bool = False) -> None:
        """Publish the canaries that are due, or all of them now."""
        for canary in canaries:
            if now or at >= self._sent.get(canary.topic, float("-inf")) + canary.interval_seconds:
                self._sent[canary.topic] = at
                self.publish(canary.topic, b"canary")

    def tick(self, at: float) -> None:
        """Do what is due: the self-test, its remedies, and connecting anew."""
        if at >= self._reconnect_at:
            self._reconnect_at = float("inf")
            # The SDK's objects refer to one another: a lost connection keeps a thread until the collector finds it.
            gc.collect()
            self._connect()
        if self._ipc is None or not self._topics:
            return
        remedy = self.self_test.remedy(at)
        if remedy is None:
            if self.self_test.due(at):
                self._subscribe_to_refused()
                self.send_self_test(self.self_test.next(at))
            return
        LOGGER.warning("the self-test did not come back", extra={"fields": {"remedy": remedy.value}})
        if remedy is Remedy.SUBSCRIBE or self._forbidden:
            # Neither a new connection nor a new process has a permission that is missing.
            self._ipc.unsubscribe()
            self._subscribe(at)
            return
        self.close()
        self._connect()
        if remedy is Remedy.EXIT:
            self._give_up("the subscription stays dead, also on a new connection")

    def _subscribe(self, at: float) -> None:
        if self._ipc is not None and self._topics:
            for topic in self._topics:
                self._ipc.subscribe(topic)
            self.send_self_test(self.self_test.next(at))

    def _subscribe_to_refused(self) -> None:
        """Ask again for what was refused: where each topic has its own, the self-test tells of none of the others."""
        for topic in self._topics:
            if self._ipc is not None and ("SubscribeToTopic", topic) in self._refusals:
                self._ipc.subscribe(topic)

    # Calls

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish on local pub/sub, if there is a connection."""
        if self._ipc is not None:
            self._ipc.publish(topic, payload)

    def publish_to_iot_core(self, topic: str, payload: bytes) -> bool:
        """Publish to AWS IoT Core, if there is a connection; False if not."""
        if self._ipc is None:
            return False
        self._ipc.publish_to_iot_core(topic, payload)
        return True

    def read_configuration(self, component: str | None, *, follow: bool = False) -> None:
        """Ask for a component's configuration, and to be told when it changes."""
        if self._ipc is not None:
            self._ipc.read_configuration(component)
            if follow:
                self._ipc.follow_configuration(component)

    def answer_deployment(self, deployment_id: str, at: float, *, busy: bool) -> None:
        """Let a deployment go on, or wait for a batch in flight."""
        if self._deferred[0] != deployment_id:
            self._deferred = (deployment_id, at)
        wait = busy and at - self._deferred[1] < DEFER_SECONDS
        if self._ipc is not None:
            self._ipc.defer(deployment_id, 1000 if wait else 0)

    # What is refused

    def refused(self, refused: Refused) -> None:
        """Say once what Greengrass refuses; a missing permission stays among the findings."""
        key = (refused.operation, refused.resource)
        if key in self._refusals:
            return
        fields = {"operation": refused.operation, "resource": refused.resource, "error": refused.error}
        self._refusals[key] = None
        if refused.unauthorized:
            fields["remedy"] = permission(*key)
            text = f"Greengrass refuses {refused.operation} on {refused.resource}: a permission is missing."
            self._refusals[key] = Finding(text, fields["remedy"])
        level = logging.INFO if _can_be_done_without(*key) else logging.ERROR
        LOGGER.log(level, "Greengrass refused a call", extra={"fields": fields})

    def granted(self, operation: str, resource: str) -> None:
        """Forget a refusal."""
        self._refusals.pop((operation, resource), None)

    def deployed(self) -> None:
        """Forget all refusals that a deployment could end: it is to be seen again whether they last."""
        self._subscribe_to_refused()
        self._refusals = {key: None for key in self._refusals if _can_be_done_without(*key)}

    @property
    def _forbidden(self) -> bool:
        """Whether the self-test lacks a permission, to be sent or to come back."""
        own = [("PublishToTopic", self._self_test_topic), *(("SubscribeToTopic", topic) for topic in self._topics)]
        return any(self._refusals.get(key) is not None for key in own)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The permissions that are missing."""
        return tuple(finding for finding in self._refusals.values() if finding is not None)


def _can_be_done_without(operation: str, component: str) -> bool:
    """Whether a call is one that all goes on without: Greengrass Lite has no such deployments, and no bridge."""
    return operation == "SubscribeToComponentUpdates" or (
        operation == "SubscribeToConfigurationUpdate" and component != ""
    )


def permission(operation: str, resource: str) -> str:
    """The JSON that grants a refused call, to be merged into the component's configuration."""
    service = "aws.greengrass.ipc.mqttproxy" if operation == "PublishToIoTCore" else "aws.greengrass.ipc.pubsub"
    # An id of its own for each resource: a deployment replaces a policy's list of resources whole.
    policy_id = f"community.greengrass.ClientDevicePruner:granted:{operation}:{resource}"
    grant = {"operations": [f"aws.greengrass#{operation}"], "resources": [resource]}
    return json.dumps({"accessControl": {service: {policy_id: grant}}})
