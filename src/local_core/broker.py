"""A real MQTT broker that announces who is there as EMQX 5.1 does.

The protocol is amqtt's; what a connection's life means (takeover, keep-alive, presence) is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker as AmqttBroker
from amqtt.broker import RetainedApplicationMessage
from amqtt.contexts import BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.publish import PublishPacket
from amqtt.session import ApplicationMessage

from local_core.port import hold_port

if TYPE_CHECKING:
    from collections.abc import Coroutine

_log = logging.getLogger(__name__)
# amqtt warns of every socket that goes without a word, which is what client devices do all day.
logging.getLogger("amqtt").setLevel(logging.ERROR)

_CONNECT_TIMEOUT_SECONDS = 15
_QUEUE_LIMIT_BYTES = 1 << 20
_OFFLINE_LIMIT_MESSAGES = 1000
_REPLACED = ("takenover", "discarded")


class _Wire(StreamWriterAdapter):
    """The writing side of a client's socket, which can also be cut."""

    async def close(self) -> None:
        """Close once the rest is sent; amqtt's own also waits, and spoils the wait when it is cancelled."""
        self.is_closed = True
        self._writer.close()

    def abort(self) -> None:
        """Close at once."""
        self.is_closed = True
        self._writer.transport.abort()

    def backlog_bytes(self) -> int:
        """Return how much the client has not taken yet."""
        size: int = self._writer.transport.get_write_buffer_size()
        return size


class _Inbox(asyncio.Queue[ApplicationMessage]):
    """Hands what a client publishes straight to the broker, so that nothing is left behind when it goes."""

    def __init__(self, engine: _Engine) -> None:
        super().__init__()
        self._engine = engine

    def _put(self, item: ApplicationMessage) -> None:
        self._engine.received(item)


class _Connection(BrokerProtocolHandler):
    """One connection of one client, from its CONNECT to the end of its socket."""

    engine: _Engine
    wire: _Wire
    connected_at = 0
    reason = "tcp_closed"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ended = asyncio.Event()
        self.gone = asyncio.Event()

    async def handle_disconnect(self, disconnect: object | None) -> None:
        if disconnect is not None and not self.ended.is_set():
            self.reason = "normal"
        self.ended.set()

    def handle_read_timeout(self) -> None:
        if not self.ended.is_set():
            self.reason = "keepalive_timeout"
        self.wire.abort()

    async def handle_subscribe(self, subscribe: Any) -> None:
        topics = subscribe.payload.topics
        codes = [await self.engine.add_subscription(topic, self.session) for topic in topics]
        await self.mqtt_acknowledge_subscription(subscribe.variable_header.packet_id, codes)
        for (topic_filter, _), granted in zip(topics, codes, strict=True):
            if granted <= 2:
                self.engine.send_retained(self.session, topic_filter, granted)

    async def handle_unsubscribe(self, unsubscribe: Any) -> None:
        for topic_filter in unsubscribe.payload.topics:
            self.engine.unsubscribe(topic_filter, self.session)
        await self.mqtt_acknowledge_unsubscription(unsubscribe.variable_header.packet_id)


class _Engine(AmqttBroker):
    """amqtt's listener, sessions, subscriptions and packets, with one connection per client id at most."""

    def __init__(self, owner: Broker, port: int) -> None:
        super().__init__(BrokerConfig({"default": ListenerConfig(bind=f"127.0.0.1:{port}")}, plugins={}))
        self.live: dict[str, _Connection] = {}
        self._owner = owner
        self._wires: dict[asyncio.Task[Any], _Wire] = {}
        self._deliveries: set[asyncio.Task[Any]] = set()

    async def stop(self) -> None:
        """Cut every connection, then end."""
        self._servers["default"].instance.close()
        await asyncio.sleep(0)  # lets sockets that were just accepted show up
        while self._wires:
            for wire in self._wires.values():
                wire.abort()
            await asyncio.gather(*self._wires, *self._deliveries, return_exceptions=True)
        await self.shutdown()

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve a socket from its first byte to its last."""
        del listener_name
        wire, task = _Wire(writer), asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in a task; for mypy
        self._wires[task] = wire
        try:
            if wire.get_peer_info() is None:
                return
            stream = StreamReaderAdapter(reader)
            connection, session = await asyncio.wait_for(
                _Connection.init_from_connect(stream, wire, self.plugins_manager), _CONNECT_TIMEOUT_SECONDS
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

    async def _serve(self, connection: _Connection, session: Any, stream: StreamReaderAdapter) -> None:
        client_id = session.client_id
        replaced = []
        while (older := self.live.get(client_id)) is not None:
            if not older.ended.is_set() and older.reason not in _REPLACED:
                older.reason = "discarded" if session.clean_session else "takenover"
                older.wire.abort()
                replaced.append(older)
            await older.gone.wait()
        # From here to the entry in `live` nothing suspends: of two that come at once, one sees the other.
        session = await self._open_session(session)
        connection.attach(session, stream, connection.wire)
        connection.connected_at = self._owner.next_connected_at()
        self._sessions[client_id] = (session, connection)
        self.live[client_id] = connection
        try:
            await connection.mqtt_connack_authorize(authorize=True)
            self._owner.announce_connected(connection)
            for older in replaced:
                self._owner.announce_disconnected(older)
            await connection.start()
            while not session.retained_messages.empty():
                message = session.retained_messages.get_nowait()
                self._send(session, message.topic, bytes(message.data), message.qos, retain=False)
            await connection.ended.wait()
            await connection.stop()
        finally:
            del self.live[client_id]
            if session.clean_session:
                await self._delete_session(client_id)
            connection.gone.set()
        # EMQX 5.1 publishes no will for a session that another connection replaced (read, not tried).
        if connection.reason not in _REPLACED:
            if session.will_flag and connection.reason != "normal" and not self._owner.stopping:
                will = bytes(session.will_message)
                self.publish(session.will_topic, will, session.will_qos, retain=bool(session.will_retain))
            self._owner.announce_disconnected(connection)

    async def _open_session(self, fresh: Any) -> Any:
        """Return the session that the client goes on with: the one kept for it, else a fresh one."""
        # MQTT closes after one and a half times the client's keep-alive.
        fresh.keep_alive *= 1.5
        fresh.delivered_message_queue = _Inbox(self)
        if fresh.clean_session or fresh.client_id not in self._sessions:
            await self._delete_session(fresh.client_id)
            return fresh
        kept = self._sessions[fresh.client_id][0]
        kept.parent = 1
        for name in ("will_flag", "will_message", "will_topic", "will_qos", "will_retain", "keep_alive"):
            setattr(kept, name, getattr(fresh, name))
        for name in ("username", "remote_address", "remote_port"):
            setattr(kept, name, getattr(fresh, name))
        return kept

    def received(self, message: ApplicationMessage) -> None:
        """Take what a client published; nothing under `$`, as EMQX's rules have it."""
        if not message.topic or message.topic.startswith("$") or "+" in message.topic or "#" in message.topic:
            return
        retain = bool(message.publish_packet.retain_flag)
        self.publish(message.topic, bytes(message.data), message.qos, retain=retain)

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """Deliver a message, and keep it for later subscribers if it is to be retained."""
        if retain and payload:
            self._retained_messages[topic] = RetainedApplicationMessage(None, topic, payload, qos)
        elif retain:
            self._retained_messages.pop(topic, None)
        self.route(topic, payload, qos)

    def route(self, topic: str, payload: bytes, qos: int) -> None:
        """Deliver a message once per matching filter: twice to a client with two that overlap, as EMQX."""
        for topic_filter, subscribers in self._subscriptions.items():
            if self._matches(topic, topic_filter):
                for session, granted in subscribers:
                    self._send(session, topic, payload, min(qos, granted), retain=False)

    def send_retained(self, session: Any, topic_filter: str, granted: int) -> None:
        """Deliver what is retained under a filter that was just subscribed to."""
        for topic, message in self._retained_messages.items():
            if self._matches(topic, topic_filter):
                self._send(session, topic, bytes(message.data), min(message.qos, granted), retain=True)

    def unsubscribe(self, topic_filter: str, session: Any) -> None:
        """Forget a client's subscription."""
        self._del_subscription(topic_filter, session)
        if not self._subscriptions.get(topic_filter, True):
            del self._subscriptions[topic_filter]

    def _send(self, session: Any, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        connection = self.live.get(session.client_id)
        if connection is None:
            if qos and session.retained_messages.qsize() < _OFFLINE_LIMIT_MESSAGES:
                session.retained_messages.put_nowait(ApplicationMessage(None, topic, qos, payload, retain))
        elif qos:
            self._spawn(connection.mqtt_publish(topic, payload, qos, retain))
        elif connection.wire.backlog_bytes() < _QUEUE_LIMIT_BYTES:
            connection.wire.write(PublishPacket.build(topic, payload, None, False, 0, retain).to_bytes())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._deliveries.add(task)
        task.add_done_callback(self._delivered)

    def _delivered(self, task: asyncio.Task[Any]) -> None:
        self._deliveries.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.debug("a delivery failed: %r", task.exception())


class Broker:
    """An MQTT 3.1.1 broker on loopback, open to anybody, with EMQX's presence messages.

    Args:
        port: TCP port; 0 takes a free one, which then stays the broker's over restarts.
        node: the node's name in `$SYS/brokers/<node>/…`.
        presence: False makes a broker that, like Moquette, publishes nothing of its own.
        count_interval_seconds: time between two messages with the number of live connections.
        uptime_interval_seconds: time between two messages with the uptime in milliseconds.

    Attributes:
        suppress_events: while true, clients come and go unannounced (counts go on).
        stopping: whether the broker is down, or on its way there.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        node: str = "emqx@127.0.0.1",
        presence: bool = True,
        count_interval_seconds: float = 60.0,
        uptime_interval_seconds: float = 30.0,
    ) -> None:
        self.port = port
        self.suppress_events = False
        self.stopping = True
        self._node = node
        self._presence = presence
        self._count_interval_seconds = count_interval_seconds
        self._uptime_interval_seconds = uptime_interval_seconds
        self._engine: _Engine | None = None
        self._tickers: list[asyncio.Task[None]] = []
        self._started = 0.0
        self._last_connected_at = 0

    @property
    def connections(self) -> dict[str, int]:
        """The live connections: client id and when it connected, in milliseconds since the epoch."""
        live = self._engine.live if self._engine else {}
        return {client_id: connection.connected_at for client_id, connection in live.items()}

    async def start(self) -> None:
        """Listen. A broker that is started again remembers nothing.

        Raises:
            OSError: the port is taken.
        """
        if self._engine is not None:
            return
        self.port = hold_port(self, self.port)
        engine = _Engine(self, self.port)
        await engine.start()
        self._engine = engine
        self.stopping = False
        self._started = time.monotonic()
        if self._presence:
            self._tickers = [
                asyncio.create_task(self._tick_count()),
                asyncio.create_task(self._tick_uptime()),
            ]

    async def stop(self) -> None:
        """Die: every socket is cut, and nobody is told."""
        engine, self._engine = self._engine, None
        self.stopping = True
        for ticker in self._tickers:
            ticker.cancel()
        await asyncio.gather(*self._tickers, return_exceptions=True)
        self._tickers = []
        if engine is not None:
            await engine.stop()

    def publish_system(self, topic: str, payload: str | bytes) -> None:
        """Publish under `$SYS` what the broker itself would (QoS 0, not retained), at once."""
        data = payload.encode() if isinstance(payload, str) else payload
        if self._engine is not None:
            self._engine.route(topic, data, 0)

    def jump(self, seconds: float) -> None:
        """Let the clock that names sessions jump ahead."""
        self._last_connected_at = self.next_connected_at() + int(seconds * 1000)

    def next_connected_at(self) -> int:
        """Return the current time in milliseconds since the epoch, never the same twice."""
        self._last_connected_at = max(int(time.time() * 1000), self._last_connected_at + 1)
        return self._last_connected_at

    def announce_connected(self, connection: _Connection) -> None:
        """Publish that a connection began."""
        session = connection.session
        keepalive = int(session.keep_alive / 1.5)
        fields = {"keepalive": keepalive, "clean_start": session.clean_session, "expiry_interval": 0}
        self._announce(connection, "connected", fields)

    def announce_disconnected(self, connection: _Connection) -> None:
        """Publish that a connection ended, and why."""
        fields = {"reason": connection.reason, "disconnected_at": int(time.time() * 1000)}
        self._announce(connection, "disconnected", fields)

    def _announce(self, connection: _Connection, event: str, fields: dict[str, Any]) -> None:
        if self.stopping or self.suppress_events or not self._presence:
            return
        session = connection.session
        message = {
            "clientid": session.client_id,
            "username": session.username or "undefined",
            "ipaddress": session.remote_address,
            "sockport": self.port,
            "protocol": "mqtt",
            "proto_name": "MQTT",
            "proto_ver": 4,
            "connected_at": connection.connected_at,
            "ts": int(time.time() * 1000),
            **fields,
        }
        self.publish_system(f"$SYS/brokers/{self._node}/clients/{session.client_id}/{event}", json.dumps(message))

    async def _tick_count(self) -> None:
        while True:
            await asyncio.sleep(self._count_interval_seconds)
            topic = f"$SYS/brokers/{self._node}/stats/live_connections/count"
            self.publish_system(topic, str(len(self.connections)))

    async def _tick_uptime(self) -> None:
        while True:
            await asyncio.sleep(self._uptime_interval_seconds)
            uptime_ms = int((time.monotonic() - self._started) * 1000)
            self.publish_system(f"$SYS/brokers/{self._node}/uptime", str(uptime_ms))
