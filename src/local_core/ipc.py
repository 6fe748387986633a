"""The nucleus' IPC service: event-stream RPC on a Unix socket, for the unmodified AWS IoT Device SDK."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from typing import TYPE_CHECKING

from local_core.eventstream import Decoder, Frame, FramingError, encode
from local_core.ipc_operations import APPLICATION_MESSAGE, MODEL, TERMINATE_STREAM, Stream
from local_core.recipe import Configuration, changed_paths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from local_core.pubsub import Message, PubSub

_PING, _PING_RESPONSE, _CONNECT, _CONNECT_ACK, _PROTOCOL_ERROR = range(2, 7)
_CONNECTION_ACCEPTED = 1
_LITE_REQUEST_LIMIT_BYTES = 10_000
_log = logging.getLogger(__name__)


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
        self.deferrals: dict[str, asyncio.Queue[tuple[str, int]]] = {}
        self.answers: list[tuple[str, str, int]] = []
        self.running = asyncio.Event()
        self.running.set()
        self._components_by_token: dict[str, str] = {}
        self._connections: set[Connection] = set()
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

    def component_of(self, token: object) -> str | None:
        """Return the component to which a token was issued, or None if it is not in force."""
        return self._components_by_token.get(token) if isinstance(token, str) else None

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
        """Let the subscriptions to topics die silently: open, but nothing arrives any more; new ones work."""
        self._mute("SubscribeToTopic")

    def mute_configuration(self) -> None:
        """Let the subscriptions to configuration updates die silently, as `mute_pubsub` does those to topics."""
        self._mute("SubscribeToConfigurationUpdate")

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
        except FramingError as error:
            _log.warning("closing a connection: %s", error)
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
        self._held: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Take its messages until either end closes."""
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
        """Close it, and end its streams."""
        for stream in self.streams.values():
            stream.end()
        self.streams.clear()
        self._writer.close()

    def _receive(self, frame: Frame) -> bool:
        """Handle one message; False if the connection is to be closed."""
        headers = {name.lower(): value for name, value in frame.headers.items()}
        kind, stream_id = headers.get(":message-type"), headers.get(":stream-id")
        if self.server.lite and len(frame.payload) > _LITE_REQUEST_LIMIT_BYTES:
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
        if kind != APPLICATION_MESSAGE or not self.component or not isinstance(stream_id, int):
            self.send(_PROTOCOL_ERROR, 0, 0, b'{"message": "expected a connect or an application message"}')
            return False
        flags = headers.get(":message-flags")
        if isinstance(flags, int) and flags & TERMINATE_STREAM:
            if stream := self.streams.pop(stream_id, None):
                stream.end()
        elif stream_id not in self.streams:
            Stream(self, stream_id, str(headers.get("operation", "")).removeprefix(MODEL)).call(frame.payload)
        return True

    def _connect(self, payload: bytes, version: object) -> None:
        """Accept or refuse; a refused client hangs up by itself, once it has read why."""
        token = None
        with contextlib.suppress(ValueError, AttributeError):
            token = json.loads(payload).get("authToken")
        self.component = (self.server.component_of(token) or "") if version == "0.1.0" else ""
        self.send(_CONNECT_ACK, _CONNECTION_ACCEPTED if self.component else 0, 0, b"")
