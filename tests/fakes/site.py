"""A site as presence hears it: the broker's events and counts, what devices publish, the probe."""

from __future__ import annotations

import json
from typing import Any

from client_device_pruner.config.emqx import Access
from client_device_pruner.config.settings import Settings, parse
from client_device_pruner.decisions.policy import Verdict, judge
from client_device_pruner.presence.client_list import ClientList
from client_device_pruner.presence.devices import Device, Devices
from client_device_pruner.presence.facts import Facts
from client_device_pruner.presence.presence import Presence
from fakes.clock import FakeClock

DAY = 86_400.0
BRIDGE = "mqtt-bridge-abc"
ACCESS = Access("http://127.0.0.1:18083/api/v5", "pruner", "a-secret", "")


class Site:
    """Drives a `Presence`; time passes in `minutes` and `days`, with a probe that comes back each minute."""

    def __init__(self, configuration: dict[str, Any] | None = None) -> None:
        self.clock = FakeClock()
        self.settings: Settings = parse(configuration or {})
        self.presence = Presence(Devices(), self.clock)
        self.presence.use(self.settings)
        self.node = "emqx@127.0.0.1"
        self.counts: int | None = None
        self.tells_uptime = True
        self._broker_started = self.clock.now - 1_000_000

    # What is heard

    def connected(self, name: str, session: int = 1, **more: Any) -> None:
        """The broker announces a connection."""
        self._client(name, "connected", connected_at=session, **more)

    def disconnected(self, name: str, session: int = 1, reason: str = "tcp_closed") -> None:
        """The broker announces the end of one."""
        self._client(name, "disconnected", connected_at=session, reason=reason)

    def _client(self, name: str, kind: str, **fields: Any) -> None:
        payload = json.dumps({"clientid": name, **fields}).encode()
        self.heard(f"clients/{name}/{kind}", payload)

    def heard(self, topic: str, payload: bytes) -> None:
        """The broker publishes something of its own."""
        self.presence.take(f"$SYS/brokers/{self.node}/{topic}", payload, self.clock.now)

    def count(self, connections: int) -> None:
        """The broker publishes its count, with its uptime, and no event comes for a while."""
        if self.tells_uptime:
            self._publish_uptime()
        self.clock.advance(4)
        self.heard("stats/live_connections/count", str(connections).encode())
        self.clock.advance(4)

    def uptime(self, seconds: float) -> None:
        """The broker publishes its uptime, and goes on from there."""
        self._broker_started = self.clock.now - seconds
        self._publish_uptime()

    def _publish_uptime(self) -> None:
        milliseconds = int((self.clock.now - self._broker_started) * 1000)
        self.heard("uptime", str(milliseconds).encode())

    def message(self, name: str, payload: bytes = b"21.5", topic: str = "clients/{}/telemetry") -> None:
        """A device publishes."""
        self.presence.take(topic.format(name), payload, self.clock.now)

    def list(self, *names: str) -> None:
        """The broker answers with its client list, the bridge on it."""
        self.presence.use_list(ACCESS)
        self.presence.take_list(ClientList(frozenset({BRIDGE, *names}), self.clock.now, self.clock.now))

    def associate(self, *names: str, timestamp: float = 1.0) -> tuple[str, ...]:
        """A list of associations arrives; returns the names whose mark it took off."""
        return self.presence.reconcile(dict.fromkeys(names, timestamp))

    # Time

    def probe(self) -> None:
        """A probe is sent and comes back at once."""
        self.presence.probe_returned(self.clock.now, self.clock.now)

    def minutes(self, number: float) -> None:
        """So many minutes pass, with a probe each and, if `counts` is set, a count that comes each minute."""
        for _minute in range(round(number)):
            if self.counts is not None:
                self.count(self.counts)
                self.clock.advance(52)
            else:
                self.clock.advance(60)
            self.probe()

    def days(self, number: float) -> None:
        """So many days pass, in observed time, by a reading that goes on; the last hour minute by minute."""
        self.presence.observed.seconds += number * DAY - 3600
        self.presence.observed.advanced_at = self.clock.advance(number * DAY - 3600)
        self.presence.gap()
        self.probe()
        self.minutes(60)

    # What is known

    def device(self, name: str) -> Device:
        """What is kept of a name."""
        return self.presence.devices.by_name[name]

    @property
    def facts(self) -> Facts:
        """By what devices are judged now."""
        return self.presence.facts(self.clock.now)

    def verdict(self, name: str) -> Verdict:
        """What the rule says of it now."""
        return judge(self.device(name), self.settings, self.facts)

    def restarted(self, *, boot: str | None = None) -> Site:
        """The site after the component was started again, in another boot if one is given."""
        self.presence.stamp()
        stored = json.loads(json.dumps(self.presence.document()))
        self.clock.boot = boot or self.clock.boot
        site = Site()
        site.clock, site.settings, site.counts = self.clock, self.settings, self.counts
        site.presence = Presence(Devices(self.presence.devices.by_name), self.clock, stored)
        site.presence.use(self.settings)
        return site
