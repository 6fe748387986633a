"""The nucleus' IPC service: event-stream RPC on a Unix socket, for the unmodified AWS IoT Device SDK."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import struct
import time
from binascii import crc32
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from botocore.eventstream import EventStreamBuffer, ParserError

from local_core.ipc_operations import APPLICATION_MESSAGE, MODEL, TERMINATE_STREAM, Stream
from local_core.port import stop_listening
from local_core.pubsub import Message, PubSub
from local_core.recipe import Configuration, changed_paths

_PING, _PING_RESPONSE, _CONNECT, _CONNECT_ACK, _PROTOCOL_ERROR = range(2, 7)
_CONNECTION_ACCEPTED = 1
_OVERHEAD_BYTES = 16
_INT32, _STRING = 4, 7  # types of headers
_LITE_REQUEST_LIMIT_BYTES = 10_000
_log = logging.getLogger(__name__)


class IpcServer:
    """Serves local publish/subscribe, IoT Core, configuration and component updates to components.

    Attributes:
        configuration: Every component's configuration by name.
        lite: Refuse what Greengrass Lite refuses, and carry no message over 10,000 bytes.
        deployments: Each announced deployment's answers: for how many milliseconds a component wants to defer it.
    """

    def __init__(
        self,
        pubsub: PubSub,
        *,
        configuration: dict[str, Configuration],
        iot_core: Callable[[Message], None],
        lite: bool = False,
    ) -> None:
        self.pubsub = pubsub
        self.configuration = configuration
        self.iot_core = iot_core
        self.lite = lite
        self.deployments: dict[str, dict[str, int]] = {}
        self.components_by_token: dict[str, str] = {}
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        """Listen on a Unix socket, whose path must be shorter than 100 characters."""
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._server:
            server, self._server = self._server, None
            await stop_listening(server)
        while self._connections:
            self.drop_connections()
            await asyncio.sleep(0)

    def issue_token(self, component: str) -> str:
        """Return a new auth token that lets a process connect as the component; older ones are refused."""
        self.revoke_tokens(component)
        token = secrets.token_hex(8).upper()
        self.components_by_token[token] = component
        return token

    def revoke_tokens(self, component: str | None = None) -> None:
        """Refuse the tokens of one component, or all, from now on; live connections stay."""
        kept = {t: c for t, c in self.components_by_token.items() if component not in {None, c}}
        self.components_by_token = kept

    @property
    def connected(self) -> list[str]:
        """The components that are connected, once for each connection."""
        return [c.component for c in self._connections if c.component]

    def drop_connections(self, *, forget_tokens: bool = False) -> None:
        """Cut every connection, and refuse the tokens in force if they are to be forgotten, as after a restart."""
        if forget_tokens:
            self.revoke_tokens()
        for connection in self._connections:
            connection.abort()

    def mute_pubsub(self) -> None:
        """Let the subscriptions to topics die silently: open, but nothing arrives any more; new ones work."""
        self._mute("SubscribeToTopic")

    def mute_configuration(self) -> None:
        """Let the subscriptions to configuration updates die silently, as `mute_pubsub` does those to topics."""
        self._mute("SubscribeToConfigurationUpdate")

    def set_configuration(self, component: str, configuration: Configuration) -> None:
        """Replace a component's configuration and tell its subscribers each key path that changed."""
        before = self.configuration.get(component, {})
        self.configuration[component] = configuration
        changes = list(changed_paths(before, configuration))
        for stream in self._streams("SubscribeToConfigurationUpdate"):
            watched = [key.casefold() for key in stream.request["keyPath"]]
            for path in changes if stream.request["componentName"] == component else ():
                if [key.casefold() for key in path[: len(watched)]] == watched:
                    event = {"componentName": component, "keyPath": list(path)}
                    stream.send("ConfigurationUpdateEvents", {"configurationUpdateEvent": event})

    async def pre_update(self, deployment_id: str, *, timeout_seconds: float = 60.0) -> dict[str, int]:
        """Announce a deployment to the components that subscribed to updates, and wait for their answers.

        Returns:
            The milliseconds for which each component wants it deferred, 0 to go on; without the silent ones.
        """
        streams = self._streams("SubscribeToComponentUpdates")
        answers = self.deployments[deployment_id] = {}
        event = {"deploymentId": deployment_id, "isGgcRestarting": False}
        for stream in streams:
            stream.send("ComponentUpdatePolicyEvents", {"preUpdateEvent": event})
        deadline = time.monotonic() + timeout_seconds
        while missing := {stream.connection.component for stream in streams} - answers.keys():
            if time.monotonic() > deadline:
                _log.warning("no answer to the announced deployment from %s", sorted(missing))
                break
            await asyncio.sleep(0.01)
        return answers

    def post_update(self, deployment_id: str) -> None:
        """Tell the components that subscribed to updates that the deployment is done."""
        for stream in self._streams("SubscribeToComponentUpdates"):
            event = {"postUpdateEvent": {"deploymentId": deployment_id}}
            stream.send("ComponentUpdatePolicyEvents", event)

    def _mute(self, operation: str) -> None:
        for stream in self._streams(operation):
            stream.end()

    def _streams(self, operation: str) -> list[Stream]:
        streams = [stream for connection in self._connections for stream in connection.streams.values()]
        return [stream for stream in streams if stream.operation == operation and not stream.dead]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, writer)
        self._connections.add(connection)
        try:
            await connection.serve(reader)
        except (ParserError, ValueError, LookupError, struct.error) as error:
            _log.warning("closing a connection: %r", error)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            connection.close()


class Connection:
    """One client: its component once it has connected, and its open streams."""

    def __init__(self, server: IpcServer, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.component = ""
        self.streams: dict[int, Stream] = {}
        self._writer = writer

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Take its messages until either end closes."""
        messages = EventStreamBuffer()
        while data := await reader.read(1 << 16):
            messages.add_data(data)
            for message in messages:
                if self._writer.is_closing() or not self._receive(message.headers, message.payload):
                    return
            await self._writer.drain()

    def send(self, kind: int, flags: int, stream_id: int, payload: bytes, model: str = "") -> None:
        """Write one message."""
        headers = {":message-type": kind, ":message-flags": flags, ":stream-id": stream_id}
        described = {":content-type": "application/json", "service-model-type": model} if model else {}
        if not self._writer.is_closing():
            self._writer.write(_encode({**headers, **described}, payload))

    def abort(self) -> None:
        """Cut the connection without writing what is left."""
        self._writer.transport.abort()

    def close(self) -> None:
        """Close it, and end its streams."""
        for stream in self.streams.values():
            stream.end()
        self.streams.clear()
        self._writer.close()

    def _receive(self, headers: Mapping[str, Any], payload: bytes) -> bool:
        """Handle one message; False if the connection is to be closed."""
        kind, stream_id = headers.get(":message-type"), headers.get(":stream-id")
        if self.server.lite and len(payload) > _LITE_REQUEST_LIMIT_BYTES:
            _log.warning("a message of %d bytes is too long for Greengrass Lite", len(payload))
            return False
        if kind == _CONNECT:
            self._connect(payload, headers.get(":version"))
            return True
        if kind == _PING:
            self.send(_PING_RESPONSE, 0, 0, payload)
            return True
        if kind == _PING_RESPONSE:
            return True
        if kind != APPLICATION_MESSAGE or not self.component or not isinstance(stream_id, int):
            self.send(_PROTOCOL_ERROR, 0, 0, b'{"message": "expected a connect or an application message"}')
            return False
        flags = headers.get(":message-flags")
        if isinstance(flags, int) and flags & TERMINATE_STREAM:
            if stream := self.streams.pop(stream_id, None):
                stream.end()
        elif stream_id not in self.streams:
            Stream(self, stream_id, str(headers.get("operation", "")).removeprefix(MODEL)).call(payload)
        return True

    def _connect(self, payload: bytes, version: object) -> None:
        """Accept or refuse; a refused client hangs up by itself, once it has read why."""
        token = json.loads(payload)["authToken"]
        self.component = self.server.components_by_token.get(token, "") if version == "0.1.0" else ""
        self.send(_CONNECT_ACK, _CONNECTION_ACCEPTED if self.component else 0, 0, b"")


def _encode(headers: Mapping[str, int | str], payload: bytes) -> bytes:
    """Return an event-stream message: lengths and their CRC-32, headers, payload, CRC-32 of all; big-endian.

    botocore reads these messages, and nothing writes them.
    """
    head = b"".join(_encode_header(name, value) for name, value in headers.items())
    lengths = struct.pack("!II", _OVERHEAD_BYTES + len(head) + len(payload), len(head))
    body = lengths + struct.pack("!I", crc32(lengths)) + head + payload
    return body + struct.pack("!I", crc32(body))


def _encode_header(name: str, value: int | str) -> bytes:
    start = bytes([len(name.encode())]) + name.encode()
    if isinstance(value, int):
        return start + struct.pack("!Bi", _INT32, value)
    return start + struct.pack("!BH", _STRING, len(value.encode())) + value.encode()
