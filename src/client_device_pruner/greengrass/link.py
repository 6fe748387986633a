"""The connection to Greengrass, the one subscription, and the probe that goes through the broker and back.

The probe tells whether we hear (DESIGN, model 2 and 13). When it is lost, a self-test message that stays in local
pub/sub tells where: if that comes back, the bridge or the broker is at fault, and nothing here is renewed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from client_device_pruner.config import topics
from client_device_pruner.config.finding import Finding
from client_device_pruner.greengrass.ipc import Ipc, Refused

IN = topics.IN
PROBE = topics.PROBE
HEARTBEAT = f"{IN}{PROBE}heartbeat"
"""What a publisher that cannot echo sends instead; it counts as the return of the probe."""
SELF_TEST = f"{IN}self-test"

SELF_TEST_SECONDS = 15.0
"""How long a self-test, or the answer to a subscription, may take: it passes through one process of the same host."""
RECONNECT_SECONDS = 5.0  # how long after a lost connection, or a closed subscription, a new one is tried
RETRY_SECONDS = 30.0  # the same after an attempt that failed

_FILTER = f"{IN}#"
_EXITS = "the process ends and Greengrass restarts it, at most twice an hour"
_NEVER = float("inf")
_SUBSCRIBE = ("SubscribeToTopic", "client-device-pruner/*")  # operation and resource as the recipe grants them
_SEND_PROBE = ("PublishToTopic", f"{PROBE}*")
_LOGGER = logging.getLogger("client_device_pruner")


@dataclass(slots=True)
class Probe:
    """A probe on its way; `sent_at` in monotonic seconds."""

    id: str = ""
    sent_at: float = -_NEVER
    returned: bool = True


class Link:
    """Sends through the connection while there is one, finds out what does not work, and renews it.

    All times are monotonic seconds. `connect` begins to connect, and the outcome comes as news; `give_up` ends the
    process, if that has not happened too often; `on_return` gets (sent, received) when a probe came back before its
    successor was due, and `on_gap` the reason when one was lost, or there is a new subscription or connection.
    """

    def __init__(
        self,
        connect: Callable[[], None],
        give_up: Callable[[str], None],
        *,
        on_return: Callable[[float, float], None],
        on_gap: Callable[[str], None],
    ) -> None:
        self.trouble = ""
        """Empty while probes come back, else which part fails and what comes next."""
        self.trouble_since = 0.0
        self._connect, self._give_up = connect, give_up
        self._on_return, self._on_gap = on_return, on_gap
        self._interval, self._scale = 60.0, 1.0
        self._probe, self._extra = Probe(), Probe()
        self._lost_probe = False
        self._ipc: Ipc | None = None
        self._no_connection = ""
        self._failed_attempts = 0
        self._connect_at = _NEVER
        self._subscribed = False
        self._subscribe_at = _NEVER
        self._testing = self._echoed = False
        self._deadline = _NEVER
        self._remedies = 0
        self._refusals: dict[tuple[str, str], Finding] = {}

    def use(self, probe_interval_seconds: float, scale: float) -> None:
        """Take the settings: the probe interval, and what the fixed times are multiplied by."""
        self._interval, self._scale = probe_interval_seconds, scale

    # News of the connection and the subscription

    def connected(self, ipc: Ipc, at: float) -> None:
        """Take a new connection into use."""
        self.close()
        self._ipc, self._no_connection = ipc, ""
        self._failed_attempts, self._connect_at = 0, _NEVER
        ipc.follow_deployments()
        self._subscribe(at)

    def lost(self, reason: str, at: float, *, refused: bool) -> None:
        """The connection ended, or an attempt to connect failed (`refused`)."""
        self.close()
        self._no_connection = reason
        self._on_gap("no connection to Greengrass")
        self._failed_attempts += refused
        again = self._failed_attempts > 1
        self._connect_at = at + self._fixed(RETRY_SECONDS if again else RECONNECT_SECONDS)
        if again:
            # After a restart of the nucleus the token of this process is void: only a new process can connect.
            self._give_up(f"no connection to Greengrass: {reason}")

    def subscribed(self, at: float) -> None:
        """The subscription is made: the component heard nothing that came before it."""
        self._refusals.pop(_SUBSCRIBE, None)
        self._subscribed, self._deadline, self._subscribe_at = True, _NEVER, _NEVER
        self._on_gap("a new subscription")
        if self._remedies:
            self._send_self_test(at)
        self._probe = self._send_probe(at)

    def stream_closed(self, at: float) -> None:
        """Greengrass ended the subscription."""
        self._subscribed, self._deadline = False, _NEVER
        self._subscribe_at = at + self._fixed(RECONNECT_SECONDS)
        self._on_gap("the subscription was closed")

    def refused(self, refused: Refused, at: float) -> None:
        """Say what Greengrass refuses; a missing permission is said once, and stays among the findings."""
        key = (refused.operation, _granted(refused.resource))
        fields = {"operation": refused.operation, "resource": refused.resource, "error": refused.error}
        if not refused.unauthorized:
            _LOGGER.info("a call to Greengrass failed", extra={"fields": fields})
        elif key not in self._refusals:
            remedy = permission(*key)
            finding = f"Greengrass refuses {refused.operation} on {key[1]}: a permission is missing"
            self._refusals[key] = Finding(finding, remedy)
            _LOGGER.error("a permission is missing", extra={"fields": {**fields, "remedy": remedy}})
        if refused.operation == "SubscribeToTopic" and refused.unauthorized:
            # Neither a new connection nor a new process has a permission that is missing.
            self._deadline, self._subscribe_at = _NEVER, at + self._interval

    def deployed(self) -> None:
        """Forget the refusals, which a deployment can end: the next calls show whether they last."""
        if _SUBSCRIBE in self._refusals:
            self._subscribe_at = -_NEVER
        self._refusals.clear()

    def close(self) -> None:
        """End the connection."""
        if self._ipc is not None:
            self._ipc.close()
        self._ipc, self._subscribed = None, False
        self._deadline = self._subscribe_at = _NEVER

    # Messages

    def take(self, topic: str, received: float) -> bool:
        """Take a message if it is a probe, a heartbeat or a self-test; True if so."""
        if topic == SELF_TEST:
            if self._testing:
                self._testing, self._echoed, self._deadline, self._remedies = False, True, _NEVER, 0
            return True
        if not topic.startswith(IN + PROBE):
            return False
        name = topic[len(IN + PROBE) :]
        for probe in (self._probe, self._extra):
            if not probe.returned and (name == probe.id or (topic == HEARTBEAT and received >= probe.sent_at)):
                self._take_probe(probe, received)
        return True

    def _take_probe(self, probe: Probe, received: float) -> None:
        if probe is self._probe:
            if received - probe.sent_at > self._interval:
                return  # its successor was due: it counts as lost
            self._on_return(probe.sent_at, received)
        elif not self._probe.returned and self._probe.sent_at < probe.sent_at:
            # What was sent later came back sooner: the regular one is lost, and is not waited for.
            self._probe.returned = True
            self._on_gap("a probe did not come back")
        probe.returned = True
        self._lost_probe = self._testing = False
        self._remedies, self._deadline = 0, _NEVER
        self._refusals.pop(_SEND_PROBE, None)
        if self.trouble:
            _LOGGER.info("the probe comes back again", extra={"fields": {"after": self.trouble}})
        self.trouble = ""

    def send_extra(self, at: float) -> Probe:
        """Send a probe between the regular ones, in place of the last of these.

        What was sent before it is processed once it has returned.
        """
        self._extra = self._send_probe(at)
        return self._extra

    def _send_probe(self, at: float) -> Probe:
        probe = Probe(os.urandom(8).hex(), at, returned=False)
        self.publish(PROBE + probe.id, b"probe")
        return probe

    def _send_self_test(self, at: float) -> None:
        self._testing, self._deadline = True, at + self._fixed(SELF_TEST_SECONDS)
        self.publish(SELF_TEST, b"")

    # What is due

    def tick(self, at: float) -> float:
        """Do what is due: connect, subscribe, send the probe, find out where one was lost, and renew what failed.

        Returns when it wants to be called next; infinity if only news can change anything.
        """
        if at >= self._connect_at:
            self._connect_at = _NEVER
            self._connect()
        if self._ipc is not None and at >= self._subscribe_at:
            self._subscribe(at)
        if self._subscribed and at >= self._probe.sent_at + self._interval:
            if not self._probe.returned:
                self._lost_probe = True
                self._on_gap("a probe did not come back")
                if not self._testing:
                    self._send_self_test(at)
            self._probe = self._send_probe(at)
        if at >= self._deadline:
            self._renew(at)
        self._settle(at)
        probe_at = self._probe.sent_at + self._interval if self._subscribed else _NEVER
        return min(probe_at, self._deadline, self._subscribe_at, self._connect_at)

    def _subscribe(self, at: float) -> None:
        if self._ipc is not None:
            self._subscribed = self._echoed = self._testing = False
            self._subscribe_at, self._deadline = _NEVER, at + self._fixed(SELF_TEST_SECONDS)
            self._ipc.subscribe(_FILTER)

    def _renew(self, at: float) -> None:
        """Take the next remedy: neither the answer to the subscription nor the self-test came in time."""
        self._deadline, self._testing, self._echoed = _NEVER, False, False
        if ("PublishToTopic", _granted(SELF_TEST)) in self._refusals:
            return  # it was never sent
        self._remedies += 1
        if self._remedies == 1:
            self._subscribe(at)
            return
        self.close()
        self._on_gap("a new connection")
        if self._remedies == 2:
            self._connect()
        else:
            self._connect_at = at + self._fixed(RETRY_SECONDS)
            self._give_up("the subscription to local pub/sub does not work, even on a new connection")

    def _fixed(self, seconds: float) -> float:
        return max(1.0, seconds * self._scale)

    # Trouble

    def _settle(self, at: float) -> None:
        """Say what fails, if that changed; only a probe that comes back ends it."""
        trouble = self._explain()
        if trouble != self.trouble:
            self.trouble_since = self.trouble_since if self.trouble else at
            self.trouble = trouble
            _LOGGER.warning("nothing is observed", extra={"fields": {"reason": trouble}})

    def _explain(self) -> str:
        if self._no_connection:
            after = f"every {RETRY_SECONDS:g} s; {_EXITS}" if self._failed_attempts > 1 else "soon"
            return f"no connection to Greengrass ({self._no_connection}): the component tries again {after}"
        for key in (_SUBSCRIBE, _SEND_PROBE):
            if missing := self._refusals.get(key):
                return f"{missing.finding}; `pruner status` has the JSON that grants it"
        if self._remedies > 2:
            return f"the subscription to local pub/sub does not work, even on a new connection: {_EXITS}"
        if self._remedies or self._subscribe_at < _NEVER:
            what = "connects" if self._remedies > 1 else "subscribes"
            return f"the subscription to local pub/sub does not work: the component {what} again"
        if self._lost_probe and self._echoed:
            why = "the bridge, its mapping or the broker does not work (without a bridge: what echoes the probe)"
            return f"the probe reaches local pub/sub but does not come back from the broker: {why}"
        if self._lost_probe:
            return "a probe did not come back: the component is finding out where it was lost"
        return "the probe has not come back yet" if self.trouble else ""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The permissions that are missing, with the JSON that grants them."""
        return tuple(self._refusals.values())

    # Calls

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish on local pub/sub; without a connection it is dropped."""
        if self._ipc is not None:
            self._ipc.publish(topic, payload)

    def publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        """Publish to AWS IoT Core; without a connection to Greengrass it is dropped."""
        if self._ipc is not None:
            self._ipc.publish_to_iot_core(topic, payload)

    def read_configuration(self, component: str | None, follow: bool = False) -> None:
        """Ask for a component's configuration (None: our own), and to be told when it changes."""
        if self._ipc is not None:
            self._ipc.read_configuration(component)
            if follow:
                self._ipc.follow_configuration(component)

    def answer_deployment(self, deployment_id: str, busy: bool) -> None:
        """Let a deployment go on, or ask again in a second while a batch is in flight, which has its own time-out."""
        if self._ipc is not None:
            self._ipc.defer(deployment_id, 1000 if busy else 0)


def _granted(resource: str) -> str:
    """The resource of the recipe's policy that covers a topic, or the topic itself."""
    return next((f"{prefix}*" for prefix in ("client-device-pruner/", PROBE) if resource.startswith(prefix)), resource)


def permission(operation: str, resource: str) -> str:
    """The JSON that grants a refused call, to be merged into the component's configuration."""
    service = "aws.greengrass.ipc.mqttproxy" if operation == "PublishToIoTCore" else "aws.greengrass.ipc.pubsub"
    # An id of its own for each resource: a deployment replaces a policy's list of resources whole.
    policy_id = f"community.greengrass.ClientDevicePruner:granted:{operation}:{resource}"
    grant = {"operations": [f"aws.greengrass#{operation}"], "resources": [resource]}
    return json.dumps({"accessControl": {service: {policy_id: grant}}})
