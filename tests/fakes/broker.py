"""The broker of a core device as EMQX or Moquette behaves, and the MQTT bridge before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from client_device_pruner.greengrass.link import IN
from fakes.component import Component

BRIDGE_ID = "mqtt-bridge-abc"
EPOCH_MS = 1_800_000_000_000
BACK_OFF_SECONDS = (1.0, 120.0)
"""An MQTT 3 bridge tries again after a second, then after twice as long each time, up to two minutes."""
SAMPLED_SECONDS = 2.0
"""EMQX' count is up to so long older than its message."""
KEEPALIVES = 1.5
"""A broker takes a silent client to be dead after so many keepalives."""


@dataclass(slots=True)
class Faults:
    """What becomes of what the bridge carries: chances for each message, and how late an event may come."""

    lose: float = 0.0  # a message is lost
    double: float = 0.0  # an event comes twice
    late: float = 0.0  # an event is late
    late_seconds: float = 2.0  # by up to so much, so that events overtake one another


class FakeBroker:
    """One broker with the bridge that carries its messages and probes; what is connected here is on the client list."""

    def __init__(
        self,
        component: Component,
        *,
        emqx: bool = True,  # it announces connections and counts them; False: as Moquette, it says nothing by itself
        seed: int = 0,  # of all that is random
        count_seconds: float = 60.0,  # how often it publishes its count
        uptime_seconds: float = 30.0,  # and its uptime
        node: str = "emqx@127.0.0.1",
    ) -> None:
        self.sessions: dict[str, int] = {}  # client id → `connected_at` of all that are connected, without the bridge
        self.up = self.bridge_up = True  # whether it runs, and whether the bridge is connected
        self.faults = Faults()  # what becomes of messages on their way
        self.on_lost: Callable[[str], None] = lambda _name: None  # gets a client id whose connection died under it
        self.on_bridge: Callable[[], None] = lambda: None  # called when the bridge has connected
        self.on_up: Callable[[], None] = lambda: None  # called when it has started
        self.node = node
        self._component = component
        self._world = component.world
        self._emqx = emqx
        self._random = Random(seed)
        self._started = self._world.now
        self._number = 0
        self._retained: dict[str, bytes] = {}
        self._twice_until = float("-inf")
        self._bridge_attempt = 0
        self._count_seconds, self._uptime_seconds = count_seconds, uptime_seconds
        component.to_broker = self._carry
        component.connected.add(BRIDGE_ID)
        if emqx:
            self._world.after(self._random.uniform(1, count_seconds), self._sample)
            self._world.after(self._random.uniform(1, uptime_seconds), self._tell_uptime)

    # What clients do

    def connect(self, name: str, *, keepalive: int = 60, announced: bool = True) -> bool:
        """A client connects, or takes over, `announced` or on another listener; False if the broker is down."""
        if not self.up:
            return False
        old = self.sessions.get(name)
        session = self._new_session()
        self.sessions[name] = session
        self._component.connected.add(name)
        # In a takeover the old session's end often comes after the new one's begin.
        ended_first = self._random.random() < 0.3
        if old is not None and ended_first:
            self._announce(name, "disconnected", connected_at=old, reason="takenover")
        if announced:
            self._announce(name, "connected", connected_at=session, keepalive=keepalive)
        if old is not None:
            self._twice_until = self._world.now + SAMPLED_SECONDS
            if not ended_first:
                self._announce(name, "disconnected", connected_at=old, reason="takenover")
        return True

    def disconnect(self, name: str, reason: str = "normal", *, announced: bool = True) -> None:
        """A client's connection ends."""
        session = self.sessions.pop(name, None)
        self._component.connected.discard(name)
        if session is not None and announced:
            self._announce(name, "disconnected", connected_at=session, reason=reason)

    def vanish(self, name: str, keepalive: int = 60) -> None:
        """A client loses its power: the broker notices after one and a half keepalives, without one never."""
        session = self.sessions.get(name)

        def notice() -> None:
            if session is not None and self.sessions.get(name) == session:
                self.disconnect(name, "keepalive_timeout")

        if keepalive:
            self._world.after(KEEPALIVES * keepalive, notice)

    def publish(self, topic: str, payload: bytes = b"21.5", *, retain: bool = False) -> None:
        """A client publishes."""
        if self.up:
            if retain:
                self._retained[topic] = payload
            self._carry(topic, payload)

    # What befalls it

    def go_down(self) -> None:
        """It dies: all connections with it, without a word; the bridge's too."""
        self.up = False
        self._lose_all()

    def come_up(self) -> None:
        """It starts: its uptime begins anew, and the bridge comes when its back-off lets it."""
        self.up, self._started = True, self._world.now
        self.on_up()

    def restart(self, down_seconds: float) -> None:
        """It is down for a while."""
        self.go_down()
        self._world.after(down_seconds, self.come_up)

    def restart_listener(self) -> None:
        """All connections die without a word, the uptime goes on."""
        self._lose_all()

    def lose_bridge(self, seconds: float = 0.0) -> None:
        """The bridge loses its connection; it tries again after that long, perhaps never, then by its back-off."""
        self.bridge_up = False
        self._component.connected.discard(BRIDGE_ID)
        self._bridge_attempt += 1
        attempt = self._bridge_attempt
        first, most = BACK_OFF_SECONDS
        self._world.after(seconds + first, lambda: self._try_bridge(attempt, 2 * first, most))

    # Its own messages

    def _new_session(self) -> int:
        self._number += 1
        return EPOCH_MS + int(self._world.now * 1000) + self._number

    def _announce(self, name: str, kind: str, **fields: object) -> None:
        if not self._emqx:
            return
        topic = f"$SYS/brokers/{self.node}/clients/{name}/{kind}"
        payload = json.dumps({"clientid": name, **fields}).encode()
        faults = self.faults
        for _copy in range(1 + (self._random.random() < faults.double)):
            if self._random.random() < faults.late:
                self._world.after(self._random.uniform(0, faults.late_seconds), lambda: self._carry(topic, payload))
            else:
                self._carry(topic, payload)

    def _sample(self) -> None:
        self._world.after(self._count_seconds, self._sample)
        if self.up:
            twice = self._world.now < self._twice_until and self._random.random() < 0.5
            number = len(self.sessions) + self.bridge_up + twice
            topic = f"$SYS/brokers/{self.node}/stats/live_connections/count"
            sampled = self._random.uniform(0, SAMPLED_SECONDS)
            self._world.after(sampled, lambda: self._carry(topic, str(number).encode()))

    def _tell_uptime(self) -> None:
        self._world.after(self._uptime_seconds, self._tell_uptime)
        uptime = self._world.now - self._started
        # The first one comes half a minute after a start.
        if self.up and uptime >= min(30.0, self._uptime_seconds):
            self._carry(f"$SYS/brokers/{self.node}/uptime", str(int(uptime * 1000)).encode())

    # The bridge

    def _carry(self, topic: str, payload: bytes) -> None:
        if self.up and self.bridge_up and (not self.faults.lose or self._random.random() >= self.faults.lose):
            self._component.hear(IN + topic, payload)

    def _lose_all(self) -> None:
        lost = list(self.sessions)
        self.sessions.clear()
        self._component.connected.clear()
        self.lose_bridge()
        for name in lost:
            self.on_lost(name)

    def _try_bridge(self, attempt: int, pause: float, most: float) -> None:
        if attempt != self._bridge_attempt:
            return
        if not self.up:
            self._world.after(pause, lambda: self._try_bridge(attempt, min(2 * pause, most), most))
            return
        self.bridge_up = True
        self._component.connected.add(BRIDGE_ID)
        self.on_bridge()
        for topic, payload in list(self._retained.items()):
            self._carry(topic, payload)
