"""The MQTT side of the broker: sockets, sessions, subscriptions, retained messages and wills.

Packets are amqtt's; what a connection's life means (takeover, keep-alive, a storm) is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.publish import PublishPacket
from amqtt.session import ApplicationMessage
from paho.mqtt.client import topic_matches_sub as topic_matches

from local_core.port import stop_listening

if TYPE_CHECKING:
    from local_core.broker import Broker

_log = logging.getLogger(__name__)
# amqtt warns of every socket that goes without a word, which is what client devices do all day.
logging.getLogger("amqtt").setLevel(logging.ERROR)

_REPLACED = ("takenover", "discarded")
_NOT_AUTHORISED = 135
_CONNECT_TIMEOUT_SECONDS = 15
_QUEUE_LIMIT_BYTES = 1 << 20


class _Wire(StreamWriterAdapter):  # type: ignore[misc]  # amqtt has no types
    """The writing side of a client's socket, which can also be cut."""

    async def close(self) -> None:
        """Close once the rest is sent; amqtt's own also waits, and spoils the wait when it is cancelled."""
        self.is_closed = True
        self._writer.close()

    def abort(self) -> None:
        """Close at once."""
        self.is_closed = True
        self._writer.transport.abort()

    def send(self, packet: bytes) -> None:
        """Write, unless the client has left too much unread."""
        if self._writer.transport.get_write_buffer_size() < _QUEUE_LIMIT_BYTES:
            self.write(packet)


class _Inbox(asyncio.Queue[ApplicationMessage]):
    """Hands what a client publishes straight on, so that nothing is left behind when it goes."""

    def __init__(self, received: Callable[[ApplicationMessage], None]) -> None:
        super().__init__()
        self._put = received  # type: ignore[assignment]  # asyncio's hook


class _NoPlugins:
    """Stands for amqtt's plugins: there are none."""

    async def fire_event(self, *_arguments: object, **_options: object) -> None:
        """Do nothing."""


class Connection(BrokerProtocolHandler):  # type: ignore[misc]  # as above
    """One connection of one client, from its CONNECT to the end of its socket."""

    engine: Engine
    wire: _Wire
    connected_at = 0
    reason = "tcp_closed"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ended = asyncio.Event()
        self.gone = asyncio.Event()
        self.waiting: list[bytes] = []

    def end(self, reason: str) -> None:
        """Cut it, for a reason of the broker's."""
        self.reason = reason
        self.wire.abort()

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send a message, or have it wait while nothing is delivered; too many that wait end the connection."""
        packet = PublishPacket.build(topic, payload, None, False, 0, retain).to_bytes()
        if self.engine.most_waiting is None:
            self.wire.send(packet)
            return
        self.waiting.append(packet)
        if len(self.waiting) > self.engine.most_waiting:
            self.end("message_queue_too_long")

    async def handle_disconnect(self, disconnect: object | None) -> None:
        """Take a DISCONNECT, or the end of the socket."""
        if disconnect is not None and not self.ended.is_set():
            self.reason = "normal"
        self.ended.set()

    def handle_read_timeout(self) -> None:
        """Give it up: its keep-alive is over."""
        if not self.ended.is_set():
            self.end("keepalive_timeout")

    async def handle_subscribe(self, subscribe: Any) -> None:
        """Subscribe it, and deliver what is retained."""
        filters = [topic_filter for topic_filter, _quality in subscribe.payload.topics]
        self.engine.subscriptions.setdefault(self.session.client_id, {}).update(dict.fromkeys(filters))
        # Quality of service 0 for all: nothing is kept for a client that is away.
        await self.mqtt_acknowledge_subscription(subscribe.variable_header.packet_id, [0] * len(filters))
        for topic_filter in filters:
            for topic, payload in self.engine.retained.items():
                if topic_matches(topic_filter, topic):
                    self.deliver(topic, payload, retain=True)

    async def handle_unsubscribe(self, unsubscribe: Any) -> None:
        """End subscriptions of its."""
        for topic_filter in unsubscribe.payload.topics:
            self.engine.subscriptions.get(self.session.client_id, {}).pop(topic_filter, None)
        await self.mqtt_acknowledge_unsubscription(unsubscribe.variable_header.packet_id)


class Engine:
    """Listens on loopback, with one connection per client id at most.

    Attributes:
        live: The connections by client id.
        sessions: Those by client id, with a connection or, if they are persistent, without.
        most_waiting: While it is a number nothing is delivered, and a client for which more messages than that wait
            is thrown out; None delivers.
    """

    def __init__(self, owner: Broker, port: int) -> None:
        self.live: dict[str, Connection] = {}
        self.sessions: dict[str, Any] = {}
        self.subscriptions: dict[str, dict[str, None]] = {}
        self.retained: dict[str, bytes] = {}
        self.most_waiting: int | None = None
        self._owner = owner
        self._port = port
        self._quiet = False
        self._server: asyncio.Server | None = None
        self._wires: dict[asyncio.Task[Any], _Wire] = {}

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: The port is taken.
        """
        self._quiet = False
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def close(self) -> None:
        """Stop listening and cut every connection, without an event or a will; sessions are kept."""
        self._quiet = True
        if self._server is not None:
            server, self._server = self._server, None
            await stop_listening(server)
        while self._wires:
            for wire in self._wires.values():
                wire.abort()
            await asyncio.gather(*self._wires, return_exceptions=True)

    def received(self, message: ApplicationMessage) -> None:
        """Take what a client published; nothing under `$`, as EMQX's rules have it."""
        if message.topic and not message.topic.startswith("$") and not set(message.topic) & set("+#"):
            self.publish(message.topic, bytes(message.data), retain=bool(message.publish_packet.retain_flag))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Deliver a message once per matching filter: twice to a client with two that overlap, as EMQX."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for client_id, filters in self.subscriptions.items():
            for topic_filter in filters:
                if topic_matches(topic_filter, topic) and client_id in self.live:
                    self.live[client_id].deliver(topic, payload)

    def deliver_waiting(self) -> None:
        """Deliver again, first of all what waits."""
        self.most_waiting = None
        for connection in self.live.values():
            while connection.waiting:
                connection.wire.send(connection.waiting.pop(0))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a socket from its first byte to its last."""
        wire, task = _Wire(writer), asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in a task; for mypy
        self._wires[task] = wire
        try:
            if wire.get_peer_info() is None:
                return
            stream = StreamReaderAdapter(reader)
            connection, session = await asyncio.wait_for(
                Connection.init_from_connect(stream, wire, _NoPlugins()), _CONNECT_TIMEOUT_SECONDS
            )
            connection.engine, connection.wire = self, wire
            await self._serve(connection, session, stream)
        except (AMQTTError, MQTTError, NoDataError, OSError, EOFError, asyncio.TimeoutError) as error:
            _log.info("a connection ended with an error: %r", error)
        finally:
            writer.close()
            try:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            finally:
                del self._wires[task]

    async def _serve(self, connection: Connection, session: Any, stream: StreamReaderAdapter) -> None:
        client_id = session.client_id
        # MQTT closes after one and a half times the client's keep-alive.
        session.keep_alive *= 1.5
        session.delivered_message_queue = _Inbox(self.received)
        connection.attach(session, stream, connection.wire)
        if client_id in self._owner.refused:
            await connection.mqtt_connack_authorize(authorize=False)
            if self._owner.announces_refused:
                self._owner.tell(connection, "connected", connack=_NOT_AUTHORISED)
            return
        replaced = []
        while (older := self.live.get(client_id)) is not None:
            if not older.ended.is_set() and older.reason not in _REPLACED:
                older.end("discarded" if session.clean_session else "takenover")
                replaced.append(older)
            await older.gone.wait()
        # From here to the entry in `live` nothing suspends: of two that come at once, one sees the other.
        kept = self.sessions.pop(client_id, None)
        if session.clean_session:
            self.subscriptions.pop(client_id, None)
            if kept is not None and not replaced:
                # EMQX ends a session that outlived its connection a second time, now.
                self._owner.tell(kept.attributes["connection"], "disconnected", reason="discarded")
        session.parent = int(kept is not None and not session.clean_session)
        session.attributes["connection"] = connection
        self.sessions[client_id] = session
        connection.connected_at = self._owner.next_connected_at()
        self.live[client_id] = connection
        try:
            await connection.mqtt_connack_authorize(authorize=True)
            keepalive = int(session.keep_alive / 1.5)
            fields = {"keepalive": keepalive, "clean_start": session.clean_session, "expiry_interval": 0}
            self._owner.tell(connection, "connected", **fields)
            for older in replaced:
                self._owner.taken_over()
                self._owner.tell(older, "disconnected", reason=older.reason)
            await connection.start()
            await connection.ended.wait()
            await connection.stop()
        finally:
            del self.live[client_id]
            if session.clean_session:
                del self.sessions[client_id]
                self.subscriptions.pop(client_id, None)
            connection.gone.set()
        # EMQX 5.1 publishes no will for a session that another connection replaced (read, not tried).
        if connection.reason not in _REPLACED and not self._quiet:
            if session.will_flag and connection.reason != "normal":
                self.publish(session.will_topic, bytes(session.will_message), retain=bool(session.will_retain))
            self._owner.tell(connection, "disconnected", reason=connection.reason)
