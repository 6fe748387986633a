"""The nucleus' IPC service: event-stream RPC on a Unix socket, for the unmodified AWS IoT Device SDK."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local_core.authorization import MQTT_PROXY, PUBSUB, is_allowed
from local_core.eventstream import Decoder, Frame, FramingError, encode
from local_core.pubsub import Message, PubSub
from local_core.recipe import Configuration, changed_paths, look_up, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)

_APPLICATION_MESSAGE, _APPLICATION_ERROR, _PING, _PING_RESPONSE, _CONNECT, _CONNECT_ACK, _PROTOCOL_ERROR = range(7)
_CONNECTION_ACCEPTED, _TERMINATE_STREAM = 1, 2
_MODEL = "aws.greengrass#"
_LITE_MESSAGE_LIMIT_BYTES = 10_000
_LITE_LACKS = {"SubscribeToComponentUpdates", "DeferComponentUpdate"}
_ABSENT = object()
# AWS IoT Core's message broker limits, as its endpoints and quotas page gives them.
_IOT_CORE_SLASHES, _IOT_CORE_TOPIC_BYTES, _IOT_CORE_PAYLOAD_BYTES = 7, 256, 128 * 1024


class IpcError(Exception):
    """An error of the service's model, sent to the client.

    Args:
        kind: The shape's name, ``UnauthorizedError`` for instance.
        message: What went wrong.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class JsonMessage(Message):
    """A message that was published as JSON, and is delivered as such; its payload is the text."""


class IpcServer:
    """Serves local publish/subscribe, IoT Core, configuration and component updates to components.

    Args:
        pubsub: Where messages come from and go to.
        configuration: Every component's configuration by name, read at each request and written by updates.
        iot_core: Receives what components publish to IoT Core: publisher, topic, payload.
        lite: Refuse what Greengrass Lite refuses, and carry no message over 10,000 bytes.

    Attributes:
        answers: Every answer to an announced deployment: its id, who gave it, for how many milliseconds to defer it.
    """

    def __init__(
        self,
        pubsub: PubSub,
        *,
        configuration: dict[str, Configuration],
        iot_core: Callable[[Message], None] | None = None,
        lite: bool = False,
    ) -> None:
        self.pubsub = pubsub
        self.configuration = configuration
        self.iot_core = iot_core or (lambda _message: None)
        self.lite = lite
        self.reported_states: dict[str, str] = {}
        self.deferrals: dict[str, asyncio.Queue[tuple[str, int]]] = {}
        self.answers: list[tuple[str, str, int]] = []
        self.running = asyncio.Event()
        self.running.set()
        self._components_by_token: dict[str, str] = {}
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        """Listen on a Unix socket, whose path must be shorter than 100 characters."""
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._server:
            self._server.close()
            self._server = None
        self.running.set()
        while self._connections:
            self.drop_connections()
            await asyncio.sleep(0)

    def issue_token(self, component: str) -> str:
        """Return a new auth token that lets a process connect as the component; older ones are refused."""
        self.revoke_tokens(component)
        token = secrets.token_hex(8).upper()
        self._components_by_token[token] = component
        return token

    def revoke_tokens(self, component: str | None = None) -> None:
        """Refuse the tokens of one component, or all, from now on; live connections stay."""
        kept = {t: c for t, c in self._components_by_token.items() if component not in {None, c}}
        self._components_by_token = kept

    def component_of(self, token: str) -> str | None:
        """Return the component to which a token was issued, or None if it is not in force."""
        return self._components_by_token.get(token)

    @property
    def connected(self) -> list[str]:
        """The components that are connected, once for each connection."""
        return [c.component for c in self._connections if c.component]

    def drop_connections(self, *, forget_tokens: bool = False) -> None:
        """Cut every connection, as a crash of the nucleus does.

        Args:
            forget_tokens: Also refuse the tokens in force, as after a restart of the IPC daemon.
        """
        if forget_tokens:
            self.revoke_tokens()
        for connection in self._connections:
            connection.abort()

    def mute_pubsub(self) -> None:
        """Let the existing subscriptions die silently: open, but nothing arrives any more; new ones work."""
        for stream in self._streams("SubscribeToTopic"):
            stream.end()

    def freeze(self) -> None:
        """Stop reading and answering until `thaw`; what arrives meanwhile waits."""
        self.running.clear()

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self.running.set()
        for connection in self._connections:
            connection.flush()

    def set_configuration(self, component: str, configuration: Configuration) -> None:
        """Replace a component's configuration and tell its subscribers each key path that changed."""
        before = self.configuration.get(component, {})
        self.configuration[component] = configuration
        changes = list(changed_paths(before, configuration))
        for stream in self._streams("SubscribeToConfigurationUpdate"):
            watched = stream.request.get("keyPath") or []
            if stream.request["componentName"] != component:
                continue
            for path in changes:
                if [key.casefold() for key in path[: len(watched)]] == [key.casefold() for key in watched]:
                    event = {"componentName": component, "keyPath": list(path)}
                    stream.send("ConfigurationUpdateEvents", {"configurationUpdateEvent": event})

    async def pre_update(self, deployment_id: str, *, timeout_seconds: float = 60.0) -> dict[str, int]:
        """Announce a deployment to the components that subscribed to updates, and wait for their answers.

        Args:
            deployment_id: Names the deployment.
            timeout_seconds: How long to wait for all of them.

        Returns:
            The milliseconds for which each component wants it deferred, 0 to go on; without the silent ones.
        """
        streams = self._streams("SubscribeToComponentUpdates")
        waiting = {stream.connection.component for stream in streams}
        answers: dict[str, int] = {}
        queue = self.deferrals[deployment_id] = asyncio.Queue()
        event = {"deploymentId": deployment_id, "isGgcRestarting": False}
        for stream in streams:
            stream.send("ComponentUpdatePolicyEvents", {"preUpdateEvent": event})
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        try:
            while waiting - answers.keys():
                left = deadline - asyncio.get_running_loop().time()
                component, recheck_ms = await asyncio.wait_for(queue.get(), left)
                answers[component] = recheck_ms
                self.answers.append((deployment_id, component, recheck_ms))
        except asyncio.TimeoutError:
            _log.warning("no answer to the announced deployment from %s", sorted(waiting - answers.keys()))
        finally:
            del self.deferrals[deployment_id]
        return answers

    def post_update(self, deployment_id: str) -> None:
        """Tell the components that subscribed to updates that the deployment is done."""
        for stream in self._streams("SubscribeToComponentUpdates"):
            event = {"postUpdateEvent": {"deploymentId": deployment_id}}
            stream.send("ComponentUpdatePolicyEvents", event)

    def _streams(self, operation: str) -> list[_Stream]:
        return [s for c in self._connections for s in c.streams.values() if s.operation == operation]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, writer)
        self._connections.add(connection)
        try:
            await connection.serve(reader)
        except FramingError as error:
            _log.warning("closing a connection: %s", error)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            connection.close()


class _Connection:
    """One client: its component once it has connected, and its open streams."""

    def __init__(self, server: IpcServer, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.component = ""
        self.streams: dict[int, _Stream] = {}
        self._writer = writer
        self._held: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader) -> None:
        decoder = Decoder()
        while data := await reader.read(1 << 16):
            for frame in decoder.feed(data):
                await self.server.running.wait()
                if self._writer.is_closing() or not self._receive(frame):
                    return
            await self._writer.drain()

    def send(self, kind: int, flags: int, stream_id: int, payload: bytes, model: str = "") -> None:
        """Write one message, now or after a thaw."""
        headers: dict[str, bool | int | bytes | str] = {
            ":message-type": kind,
            ":message-flags": flags,
            ":stream-id": stream_id,
        }
        if model:
            headers |= {":content-type": "application/json", "service-model-type": model}
        self._held.append(encode(Frame(headers, payload)))
        if self.server.running.is_set():
            self.flush()

    def flush(self) -> None:
        """Write what was held back."""
        if self._held and not self._writer.is_closing():
            self._writer.write(b"".join(self._held))
        self._held.clear()

    def abort(self) -> None:
        """Cut the connection without writing what is left."""
        self._writer.transport.abort()

    def close(self) -> None:
        for stream in self.streams.values():
            stream.end()
        self.streams.clear()
        self._writer.close()

    def _receive(self, frame: Frame) -> bool:
        """Handle one message; False if the connection is to be closed."""
        headers = {name.lower(): value for name, value in frame.headers.items()}
        kind, stream_id = headers.get(":message-type"), headers.get(":stream-id")
        if self.server.lite and len(frame.payload) > _LITE_MESSAGE_LIMIT_BYTES:
            _log.warning("a message of %d bytes is too long for Greengrass Lite", len(frame.payload))
            return False
        if kind == _CONNECT:
            self._connect(frame.payload, headers.get(":version"))
            return True
        if kind == _PING:
            self.send(_PING_RESPONSE, 0, 0, frame.payload)
            return True
        if kind == _PING_RESPONSE:
            return True
        if kind != _APPLICATION_MESSAGE or not self.component or not isinstance(stream_id, int):
            self.send(_PROTOCOL_ERROR, 0, 0, b'{"message": "expected a connect or an application message"}')
            return False
        flags = headers.get(":message-flags")
        if isinstance(flags, int) and flags & _TERMINATE_STREAM:
            if stream := self.streams.pop(stream_id, None):
                stream.end()
        elif stream_id not in self.streams:
            _Stream(self, stream_id, str(headers.get("operation", "")).removeprefix(_MODEL)).call(frame.payload)
        return True

    def _connect(self, payload: bytes, version: object) -> None:
        """Accept or refuse; a refused client hangs up by itself, once it has read why."""
        token = None
        with contextlib.suppress(ValueError, AttributeError):
            token = json.loads(payload).get("authToken")
        component = self.server.component_of(token) if isinstance(token, str) else None
        accepted = component is not None and version == "0.1.0"
        self.component = component if component and accepted else ""
        self.send(_CONNECT_ACK, _CONNECTION_ACCEPTED if accepted else 0, 0, b"")


class _Stream:
    """One call of an operation, and the events that follow the response of a subscribing one."""

    def __init__(self, connection: _Connection, stream_id: int, operation: str) -> None:
        self.connection = connection
        self.operation = operation
        self.request: Mapping[str, Any] = {}
        self._id = stream_id
        self._end: Callable[[], None] | None = None

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
            # Greengrass Lite sends no text.
            body = {} if server.lite else {"message": str(error)}
            model = _MODEL + error.kind
            self._send(_APPLICATION_ERROR, _TERMINATE_STREAM, model, body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            body = {"message": f"the request cannot be read: {error!r}"}
            self._send(_APPLICATION_ERROR, _TERMINATE_STREAM, _MODEL + "InvalidArgumentsError", body)
        else:
            streaming = self.operation.startswith("SubscribeTo")
            flags = 0 if streaming else _TERMINATE_STREAM
            self._send(_APPLICATION_MESSAGE, flags, f"{_MODEL}{self.operation}Response", response)
            if streaming:
                self.connection.streams[self._id] = self
            if self.operation == "SubscribeToTopic":
                self._end = server.pubsub.subscribe(self.request["topic"], self._deliver)

    def send(self, shape: str, event: Mapping[str, Any]) -> None:
        """Send an event to the subscriber."""
        self._send(_APPLICATION_MESSAGE, 0, _MODEL + shape, event)

    def end(self) -> None:
        """Deliver nothing any more."""
        if self._end:
            self._end()
            self._end = None

    def authorise(self, service: str, resource: str) -> None:
        """Raise unless the component's access control grants this operation on the resource."""
        component = self.connection.component
        access = look_up(self.connection.server.configuration.get(component), ["accessControl"])
        if not is_allowed(access, service, _MODEL + self.operation, resource):
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
            event = {"jsonMessage": {"message": json.loads(message.payload), "context": context}}
        else:
            encoded = base64.b64encode(message.payload).decode()
            event = {"binaryMessage": {"message": encoded, "context": context}}
        self.send("SubscriptionResponseMessage", event)

    def _send(self, kind: int, flags: int, model: str, body: Mapping[str, Any]) -> None:
        payload = json.dumps(body).encode()
        if self.connection.server.lite and len(payload) > _LITE_MESSAGE_LIMIT_BYTES:
            _log.warning("%s: %d bytes are too long for Greengrass Lite", self.operation, len(payload))
            if self.operation == "SubscribeToTopic":
                self.end()  # without a word
                return
            kind, flags, model, payload = _APPLICATION_ERROR, _TERMINATE_STREAM, _MODEL + "ServiceError", b"{}"
        self.connection.send(kind, flags, self._id, payload, model)


def _refuse(stream: _Stream) -> dict[str, Any]:
    raise IpcError("ServiceError", f"the operation {stream.operation} is not supported")


def _subscribe_to_topic(stream: _Stream) -> dict[str, Any]:
    topic = stream.request["topic"]
    if not topic:
        raise IpcError("InvalidArgumentsError", "the topic must not be empty")
    stream.authorise(PUBSUB, topic)
    return {"topicName": topic}


def _publish_to_topic(stream: _Stream) -> dict[str, Any]:
    topic = stream.request["topic"]
    stream.authorise(PUBSUB, topic)
    if not topic or set(topic) & set("+#*"):
        raise IpcError("InvalidArgumentsError", "one publishes on a topic without wildcards")
    published = stream.request["publishMessage"]
    publisher = stream.connection.component
    if (as_json := published.get("jsonMessage")) is not None:
        message: Message = JsonMessage(topic, json.dumps(as_json["message"]).encode(), publisher)
    else:
        message = Message(topic, base64.b64decode(published["binaryMessage"]["message"]), publisher)
    stream.connection.server.pubsub.publish(message)
    return {}


def _publish_to_iot_core(stream: _Stream) -> dict[str, Any]:
    topic = stream.request["topicName"]
    stream.authorise(MQTT_PROXY, topic)
    payload = base64.b64decode(stream.request.get("payload") or "")
    if set(topic) & set("+#") or topic.count("/") > _IOT_CORE_SLASHES or len(topic.encode()) > _IOT_CORE_TOPIC_BYTES:
        raise IpcError("InvalidArgumentsError", f"AWS IoT Core has no topic {topic}")
    if len(payload) > _IOT_CORE_PAYLOAD_BYTES:
        raise IpcError("InvalidArgumentsError", f"AWS IoT Core takes no message of {len(payload)} bytes")
    stream.connection.server.iot_core(Message(topic, payload, stream.connection.component))
    return {}


def _get_configuration(stream: _Stream) -> dict[str, Any]:
    component, path = stream.component_and_path()
    value = look_up(stream.connection.server.configuration.get(component, _ABSENT), path, _ABSENT)
    if value is _ABSENT:
        raise IpcError("ResourceNotFoundError", f"{component} has no configuration at {path}")
    if not isinstance(value, dict):
        value = {path[-1]: value}
    return {"componentName": component, "value": value}


def _update_configuration(stream: _Stream) -> dict[str, Any]:
    component, path = stream.connection.component, list(stream.request.get("keyPath") or [])
    update = dict(stream.request["valueToMerge"])
    for key in reversed(path):
        update = {key: update}
    if any(key.casefold() == "accesscontrol" for key in update):
        raise IpcError("InvalidArgumentsError", "a component cannot change its own access control")
    server = stream.connection.server
    server.set_configuration(component, merge(server.configuration.get(component, {}), update))
    return {}


def _subscribe_to_configuration_update(stream: _Stream) -> dict[str, Any]:
    component, path = stream.component_and_path()
    configuration = stream.connection.server.configuration.get(component, _ABSENT)
    if look_up(configuration, path, _ABSENT) is _ABSENT:
        raise IpcError("ResourceNotFoundError", f"{component} has no configuration at {path}")
    stream.request = {"componentName": component, "keyPath": path}
    return {}


def _defer_component_update(stream: _Stream) -> dict[str, Any]:
    deployment = stream.request["deploymentId"]
    waiting = stream.connection.server.deferrals.get(deployment)
    if waiting is None:
        raise IpcError("InvalidArgumentsError", f"no deployment {deployment} waits for an answer")
    waiting.put_nowait((stream.connection.component, int(stream.request.get("recheckAfterMs") or 0)))
    return {}


def _update_state(stream: _Stream) -> dict[str, Any]:
    stream.connection.server.reported_states[stream.connection.component] = stream.request["state"]
    return {}


_OPERATIONS: Mapping[str, Callable[[_Stream], dict[str, Any]]] = {
    "SubscribeToTopic": _subscribe_to_topic,
    "PublishToTopic": _publish_to_topic,
    "PublishToIoTCore": _publish_to_iot_core,
    "GetConfiguration": _get_configuration,
    "UpdateConfiguration": _update_configuration,
    "SubscribeToConfigurationUpdate": _subscribe_to_configuration_update,
    "SubscribeToComponentUpdates": lambda _stream: {},
    "DeferComponentUpdate": _defer_component_update,
    "UpdateState": _update_state,
}
