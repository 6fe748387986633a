"""A real MQTT broker that announces its clients as EMQX 5.1 does, or, like Moquette, says nothing of itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from local_core.mqtt_engine import Connection, Engine
from local_core.port import hold_port

_SYSTEM = "$SYS/brokers/emqx@127.0.0.1"


class Broker:
    """An MQTT 3.1.1 broker on loopback, open to all clients, with EMQX's presence messages.

    Args:
        port: TCP port; 0 takes a free one, which then stays the broker's over restarts.
        presence: False makes a broker that, like Moquette, publishes nothing of its own.
        count_interval_seconds: Time between two messages with the number of live connections.
        uptime_interval_seconds: Time between two messages with the uptime in milliseconds.

    Attributes:
        suppress_events: While true, clients come and go unannounced (counts go on).
        event_delay_seconds: How long after the fact an event is published: the count knows of it earlier.
        count_age_seconds: How old a count is when it is published: the events know of more; below the interval.
        takeover_overlap_seconds: How long a client that took over is counted twice.
        refused: Client ids whose login is refused.
        announces_refused: Whether a refused login is announced as `connected` with `connack` 135, as by EMQX 4.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        presence: bool = True,
        count_interval_seconds: float = 60.0,
        uptime_interval_seconds: float = 30.0,
    ) -> None:
        self.port = port
        self.presence = presence
        self.suppress_events = False
        self.event_delay_seconds = 0.0
        self.count_age_seconds = 0.0
        self.takeover_overlap_seconds = 0.0
        self.refused: set[str] = set()
        self.announces_refused = False
        self._count_interval_seconds = count_interval_seconds
        self._uptime_interval_seconds = uptime_interval_seconds
        self._engine: Engine | None = None
        self._tickers: list[asyncio.Task[None]] = []
        self._overlaps: deque[float] = deque()
        self._started = 0.0
        self._last_connected_at = 0

    @property
    def connections(self) -> dict[str, int]:
        """The live connections: client id and when it connected, in milliseconds since the epoch."""
        live = self._engine.live if self._engine else {}
        return {client_id: connection.connected_at for client_id, connection in live.items()}

    @property
    def sessions(self) -> set[str]:
        """The client ids that have a session, with a connection or, if it is persistent, without."""
        return set(self._engine.sessions if self._engine else ())

    async def start(self) -> None:
        """Listen. A broker that is started again remembers nothing.

        Raises:
            OSError: The port is taken.
        """
        if self._engine is not None:
            return
        self.port = hold_port(self, self.port)
        engine = Engine(self, self.port)
        await engine.open()
        self._engine = engine
        self._started = time.monotonic()
        if self.presence:
            self._tickers = [asyncio.create_task(self._tick_count()), asyncio.create_task(self._tick_uptime())]

    async def stop(self) -> None:
        """Die: every socket is cut, without a message."""
        engine, self._engine = self._engine, None
        self._overlaps.clear()
        for ticker in self._tickers:
            ticker.cancel()
        await asyncio.gather(*self._tickers, return_exceptions=True)
        self._tickers = []
        if engine is not None:
            await engine.close()

    async def restart_listener(self, *, down_seconds: float = 0.0) -> None:
        """Cut every connection, the bridge's too, without a `disconnected`, and listen again after that time.

        Persistent sessions, what is retained and the uptime go on.
        """
        if self._engine is not None:
            self._overlaps.clear()
            await self._engine.close()
            await asyncio.sleep(down_seconds)
            await self._engine.open()

    @contextmanager
    def storm(self, *, most_waiting: int = 1000) -> Iterator[None]:
        """Let messages come faster than any client takes them: meanwhile nothing is delivered, and all wait.

        A client for which more than `most_waiting` wait is thrown out, and they are lost: the bridge, when that many
        devices connect within the storm.
        """
        assert self._engine is not None, "the broker is not started"  # noqa: S101
        self._engine.most_waiting = most_waiting
        try:
            yield
        finally:
            self._engine.deliver_waiting()

    def publish_system(self, topic: str, payload: str) -> None:
        """Publish under `$SYS` what the broker itself would (QoS 0, not retained), at once."""
        if self._engine is not None:
            self._engine.publish(topic, payload.encode())

    def announce(self, client_id: str, event: str, **fields: Any) -> None:
        """Publish an event (`connected` or `disconnected`), a made-up one too: late, twice or out of order.

        Args:
            client_id: One with `/` makes a deeper topic.
            event: The last level of the topic.
            fields: The payload's fields, in place of and beside those of EMQX: `connected_at=…, reason="normal"`.
        """
        now_ms = int(time.time() * 1000)
        message = {
            "clientid": client_id,
            "username": "undefined",
            "ipaddress": "127.0.0.1",
            "sockport": self.port,
            "protocol": "mqtt",
            "proto_name": "MQTT",
            "proto_ver": 4,
            "connected_at": now_ms,
            "ts": now_ms,
            **({"disconnected_at": now_ms} if event == "disconnected" else {}),
            **fields,
        }
        self.publish_system(f"{_SYSTEM}/clients/{client_id}/{event}", json.dumps(message))

    def next_connected_at(self) -> int:
        """Return the current time in milliseconds since the epoch, never the same twice."""
        self._last_connected_at = max(int(time.time() * 1000), self._last_connected_at + 1)
        return self._last_connected_at

    def taken_over(self) -> None:
        """Count a client twice for a while."""
        self._overlaps.append(time.monotonic() + self.takeover_overlap_seconds)

    def tell(self, connection: Connection, event: str, **fields: Any) -> None:
        """Publish what became of a connection, now or with the delay, unless events are suppressed."""
        if self._engine is None or self.suppress_events or not self.presence:
            return
        session = connection.session
        fields |= {"ipaddress": session.remote_address, "username": session.username or "undefined"}
        if connection.connected_at:
            fields["connected_at"] = connection.connected_at
        loop = asyncio.get_running_loop()
        if self.event_delay_seconds:
            loop.call_later(self.event_delay_seconds, lambda: self.announce(session.client_id, event, **fields))
        else:
            self.announce(session.client_id, event, **fields)

    def _count(self) -> int:
        while self._overlaps and self._overlaps[0] <= time.monotonic():
            self._overlaps.popleft()
        return len(self.connections) + len(self._overlaps)

    async def _tick_count(self) -> None:
        while True:
            await asyncio.sleep(self._count_interval_seconds - self.count_age_seconds)
            count = self._count()
            await asyncio.sleep(self.count_age_seconds)
            self.publish_system(f"{_SYSTEM}/stats/live_connections/count", str(count))

    async def _tick_uptime(self) -> None:
        while True:
            await asyncio.sleep(self._uptime_interval_seconds)
            uptime_ms = int((time.monotonic() - self._started) * 1000)
            self.publish_system(f"{_SYSTEM}/uptime", str(uptime_ms))
