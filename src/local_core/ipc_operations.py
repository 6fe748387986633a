"""The nucleus' IPC operations: one stream a call, and the events that follow the response of a subscribing one."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from local_core.pubsub import JsonMessage, Message
from local_core.recipe import look_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from local_core.ipc import Connection

APPLICATION_MESSAGE, APPLICATION_ERROR, TERMINATE_STREAM = 0, 1, 2
"""Types of messages, and a flag, of event-stream RPC."""
MODEL = "aws.greengrass#"

_LITE_MESSAGE_LIMIT_BYTES = 10_000
_LITE_JSON_MEMBERS = 24  # seen on 2.6.0: a message with so many kills the subscriptions that it matches
_LITE_LACKS = {"SubscribeToComponentUpdates", "DeferComponentUpdate"}
_ABSENT = object()
# AWS IoT Core's message broker limits, as its endpoints and quotas page gives them.
_IOT_CORE_SLASHES, _IOT_CORE_TOPIC_BYTES, _IOT_CORE_PAYLOAD_BYTES = 7, 256, 128 * 1024
_PUBSUB, _MQTT_PROXY = "aws.greengrass.ipc.pubsub", "aws.greengrass.ipc.mqttproxy"
_log = logging.getLogger(__name__)


class IpcError(Exception):
    """An error of the service's model for the client: ``UnauthorizedError`` and a text, for instance."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_allowed(access_control: Any, service: str, operation: str, resource: str) -> bool:
    """Tell whether an access control grants an operation on a resource; what is not granted is refused.

    Args:
        access_control: ``{service: {policy id: {"operations": [...], "resources": [...]}}}``.
        service: ``aws.greengrass.ipc.pubsub``, for instance.
        operation: ``aws.greengrass#SubscribeToTopic``, for instance; ``*`` in a policy stands for all.
        resource: The topic, or the filter as it was written: in a policy ``*`` stands for any text, and ``+`` and
            ``#`` match only themselves.
    """
    policies = access_control.get(service) if isinstance(access_control, Mapping) else None
    return any(
        {operation, "*"} & set(policy.get("operations") or ())
        and any(
            re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), resource, re.DOTALL)
            for pattern in policy.get("resources") or ()
        )
        for policy in (policies or {}).values()
    )


class Stream:
    """One call of an operation, and its events until it ends.

    Attributes:
        dead: Whether it has ended, announced or not: nothing arrives by it any more.
    """

    def __init__(self, connection: Connection, stream_id: int, operation: str) -> None:
        self.connection = connection
        self.operation = operation
        self.request: Mapping[str, Any] = {}
        self.dead = False
        self._id = stream_id
        self._unsubscribe: Callable[[], None] = lambda: None

    def call(self, payload: bytes) -> None:
        """Run the operation and answer."""
        server = self.connection.server
        handler = _OPERATIONS.get(self.operation, _refuse)
        if server.lite and self.operation in _LITE_LACKS:
            handler = _refuse
        try:
            self.request = json.loads(payload or b"{}")
            response = handler(self)
        except IpcError as error:
            self._fail(error.kind, str(error))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._fail("InvalidArgumentsError", f"the request cannot be read: {error!r}")
        else:
            streaming = self.operation.startswith("SubscribeTo")
            flags = 0 if streaming else TERMINATE_STREAM
            self._send(APPLICATION_MESSAGE, flags, f"{self.operation}Response", response)
            if streaming:
                self.connection.streams[self._id] = self
            if self.operation == "SubscribeToTopic":
                self._unsubscribe = server.pubsub.subscribe(self.request["topic"], self._deliver)

    def send(self, shape: str, event: Mapping[str, Any]) -> None:
        """Send an event to the subscriber."""
        if not self.dead:
            self._send(APPLICATION_MESSAGE, 0, shape, event)

    def end(self) -> None:
        """Deliver nothing any more, without a word."""
        self.dead = True
        self._unsubscribe()

    def authorise(self, service: str, resource: str) -> None:
        """Raise unless the component's access control grants this operation on the resource."""
        component = self.connection.component
        access = look_up(self.connection.server.configuration.get(component), ["accessControl"])
        if not is_allowed(access, service, MODEL + self.operation, resource):
            raise IpcError("UnauthorizedError", f"{component} may not {self.operation} on {resource}")

    def component_and_path(self) -> tuple[str, list[str]]:
        """Return the component and the key path that a configuration request is about."""
        component = self.request.get("componentName") or self.connection.component
        return component, list(self.request.get("keyPath") or [])

    def _deliver(self, message: Message) -> None:
        topic_filter = self.request["topic"]
        # The nucleus' default: an exact topic receives one's own messages, a filter with wildcards does not.
        default = "RECEIVE_MESSAGES_FROM_OTHERS" if {"+", "#"} & set(topic_filter) else "RECEIVE_ALL_MESSAGES"
        mode = self.request.get("receiveMode") or default
        if mode == "RECEIVE_MESSAGES_FROM_OTHERS" and message.publisher == self.connection.component:
            return
        context = {"topic": message.topic}
        if isinstance(message, JsonMessage):
            document = json.loads(message.payload)
            if self.connection.server.lite and len(document) >= _LITE_JSON_MEMBERS:
                self.end()
            event = {"jsonMessage": {"message": document, "context": context}}
        else:
            encoded = base64.b64encode(message.payload).decode()
            event = {"binaryMessage": {"message": encoded, "context": context}}
        self.send("SubscriptionResponseMessage", event)

    def _fail(self, kind: str, message: str) -> None:
        # Greengrass Lite sends no text.
        body = {} if self.connection.server.lite else {"message": message}
        self._send(APPLICATION_ERROR, TERMINATE_STREAM, kind, body)

    def _send(self, kind: int, flags: int, shape: str, body: Mapping[str, Any]) -> None:
        payload = json.dumps(body).encode()
        if self.connection.server.lite and len(payload) > _LITE_MESSAGE_LIMIT_BYTES:
            _log.warning("%s: %d bytes are too long for Greengrass Lite", self.operation, len(payload))
            if self.operation == "SubscribeToTopic":
                self.end()
                return
            kind, flags, shape, payload = APPLICATION_ERROR, TERMINATE_STREAM, "ServiceError", b"{}"
        self.connection.send(kind, flags, self._id, payload, MODEL + shape)


def _refuse(stream: Stream) -> dict[str, Any]:
    raise IpcError("ServiceError", f"the operation {stream.operation} is not supported")


def _subscribe_to_topic(stream: Stream) -> dict[str, Any]:
    topic = stream.request["topic"]
    if not topic:
        raise IpcError("InvalidArgumentsError", "the topic must not be empty")
    stream.authorise(_PUBSUB, topic)
    return {"topicName": topic}


def _publish_to_topic(stream: Stream) -> dict[str, Any]:
    topic = stream.request["topic"]
    stream.authorise(_PUBSUB, topic)
    if not topic or set(topic) & set("+#*"):
        raise IpcError("InvalidArgumentsError", "a topic to publish on must have no wildcards")
    published = stream.request["publishMessage"]
    publisher = stream.connection.component
    if (as_json := published.get("jsonMessage")) is not None:
        message: Message = JsonMessage(topic, json.dumps(as_json["message"]).encode(), publisher)
    else:
        message = Message(topic, base64.b64decode(published["binaryMessage"]["message"]), publisher)
    stream.connection.server.pubsub.publish(message)
    return {}


def _publish_to_iot_core(stream: Stream) -> dict[str, Any]:
    topic = stream.request["topicName"]
    stream.authorise(_MQTT_PROXY, topic)
    payload = base64.b64decode(stream.request.get("payload") or "")
    if set(topic) & set("+#") or topic.count("/") > _IOT_CORE_SLASHES or len(topic.encode()) > _IOT_CORE_TOPIC_BYTES:
        raise IpcError("InvalidArgumentsError", f"AWS IoT Core has no topic {topic}")
    if len(payload) > _IOT_CORE_PAYLOAD_BYTES:
        raise IpcError("InvalidArgumentsError", f"AWS IoT Core does not accept a message of {len(payload)} bytes")
    stream.connection.server.iot_core(Message(topic, payload, stream.connection.component))
    return {}


def _get_configuration(stream: Stream) -> dict[str, Any]:
    component, path = stream.component_and_path()
    value = look_up(stream.connection.server.configuration.get(component, _ABSENT), path, _ABSENT)
    if value is _ABSENT:
        raise IpcError("ResourceNotFoundError", f"{component} has no configuration at {path}")
    if not isinstance(value, dict):
        value = {path[-1]: value}
    return {"componentName": component, "value": value}


def _subscribe_to_configuration_update(stream: Stream) -> dict[str, Any]:
    component, path = stream.component_and_path()
    configuration = stream.connection.server.configuration.get(component, _ABSENT)
    if look_up(configuration, path, _ABSENT) is _ABSENT:
        raise IpcError("ResourceNotFoundError", f"{component} has no configuration at {path}")
    stream.request = {"componentName": component, "keyPath": path}
    return {}


def _defer_component_update(stream: Stream) -> dict[str, Any]:
    answers = stream.connection.server.deployments.get(stream.request["deploymentId"])
    if answers is None:
        raise IpcError("InvalidArgumentsError", f"no deployment {stream.request['deploymentId']} was announced")
    answers[stream.connection.component] = int(stream.request.get("recheckAfterMs") or 0)
    return {}


_OPERATIONS: Mapping[str, Callable[[Stream], dict[str, Any]]] = {
    "SubscribeToTopic": _subscribe_to_topic,
    "PublishToTopic": _publish_to_topic,
    "PublishToIoTCore": _publish_to_iot_core,
    "GetConfiguration": _get_configuration,
    "SubscribeToConfigurationUpdate": _subscribe_to_configuration_update,
    "SubscribeToComponentUpdates": lambda _stream: {},
    "DeferComponentUpdate": _defer_component_update,
}
