"""Known sessions over random histories of one to three broker nodes: who is connected is never believed absent (I4).

`test_invariants.py` runs the whole component on a broker of one node, and few histories of it. Here are thousands of
the source alone, and their truth: clients come, go, move between nodes and speak, their events come late and twice;
nodes restart; in gaps of the bridge none of it is heard. In one gap clients only come or only go, and counts without an
event near them come before it: so none has the two losses that compensate each other, the known exception of I4.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable
from random import Random

import pytest

from client_device_pruner.doubt import Doubt, Figures
from client_device_pruner.emqx import EmqxSource
from client_device_pruner.source_clock import SourceClock

MAX_QUIET, COUNT_SECONDS, UPTIME_SECONDS = 180.0, 60.0, 30.0
LATE_SECONDS = 2.0
"""Events and counts come so late at most, but for the first of a gap."""
ABSENT_SECONDS = 300.0
"""Nobody who is connected may be believed absent for so long: some counts, which tell that all is well."""
NAMES = tuple(f"d{number}" for number in range(6))

Patch = pytest.MonkeyPatch


class Believed:
    """A ledger of nothing but where the clock stood at each name's last sign of life."""

    def __init__(self, clock: SourceClock) -> None:
        self.clock = clock
        self.markers: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self.names: set[str] = set()

    def alive(self, name: str, at: float) -> None:
        """See `emqx.Signs`."""
        self.markers[name] = self.clock.reading(at)

    held_until = alive
    left = alive

    def announce(self, name: str) -> None:
        """See `emqx.Signs`."""
        self.names.add(name)

    def announced(self, name: str) -> bool:
        """See `emqx.Signs`."""
        return name in self.names

    def associated(self, name: str) -> bool:
        """See `emqx.Signs`."""
        return name in NAMES


class Cluster:
    """A broker of some nodes, its clients, the bridge, and what the source believes of it all."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.random = Random(seed)  # noqa: S311 - histories that can be repeated, no secrets
        self.nodes = {f"n{number}": 0.0 for number in range(nodes)}  # and since when it is up
        self.bridge = self.random.choice(list(self.nodes))
        self.is_gap = False
        self.online: dict[str, tuple[str, int]] = {}
        self.came: dict[str, float] = {}
        self.story: list[str] = []
        self.clock = SourceClock(MAX_QUIET)
        self.believed = Believed(self.clock)
        self.source = EmqxSource(self.clock, self.believed, bridge_client_id="mqtt-bridge-*")
        self.now = 0.0
        self._numbers = itertools.count(1)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        for node in self.nodes:
            self._at(self.random.uniform(1.0, COUNT_SECONDS), lambda node=node: self._count(node))  # type: ignore[misc]
            self._at(self.random.uniform(1.0, UPTIME_SECONDS), lambda node=node: self._uptime(node))  # type: ignore[misc]

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self._agenda and self._agenda[0][0] <= until:
            self.now, _number, do = heapq.heappop(self._agenda)
            do()
        self.now = until
        self.source.tick(self.now)

    def _at(self, wait: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + wait, next(self._numbers), do))

    def _send(self, take: Callable[[float], None], *, late: float = 0.0) -> None:
        """What is on its way in a gap is lost."""

        def arrive() -> None:
            if not self.is_gap:
                take(self.now)

        if not self.is_gap:
            self._at(late, arrive)

    # The clients

    def connect(self, name: str) -> None:
        """A client connects, for the first time or anew, to some node."""
        before = self.online.get(name)
        node, number = self.online[name] = self.random.choice(list(self.nodes)), next(self._numbers)
        self.came[name] = self.clock.credit_seconds
        self.story.append(f"{self.now:.0f}: {name} connects to {node}{', unheard' * self.is_gap}")
        ends = [("disconnected", *before, name, "takenover")] if before else []
        events = [*ends, ("connected", node, number, name, "")]
        if self.random.random() < 0.5:
            events.reverse()
        for event in events:
            self._tell(*event)

    def leave(self, name: str) -> None:
        """A client leaves."""
        node, number = self.online.pop(name)
        self.story.append(f"{self.now:.0f}: {name} leaves {node}{', unheard' * self.is_gap}")
        self._tell("disconnected", node, number, name, "normal")

    def speak(self, name: str) -> None:
        """A client speaks."""
        if name in self.online:
            self._send(lambda at: self.source.spoke(name, at))

    def _tell(self, kind: str, node: str, number: int, name: str, reason: str) -> None:
        payload = json.dumps({"connected_at": number, "reason": reason}).encode()
        take = self.source.connected if kind == "connected" else self.source.disconnected
        late = self.random.uniform(0.0, LATE_SECONDS) if self.random.random() < 0.2 else 0.0
        self._send(lambda at: take(node, name, payload, at), late=late)
        if self.random.random() < 0.1:
            self._send(lambda at: take(node, name, payload, at), late=late + self.random.uniform(0.0, LATE_SECONDS))

    # The broker

    def _count(self, node: str) -> None:
        self._at(COUNT_SECONDS, lambda: self._count(node))
        connections = sum(there == node for there, _number in self.online.values()) + (self.bridge == node)

        def take(at: float) -> None:
            self.source.count(node, b"%d" % connections, at)
            self._check()

        self._send(take, late=self.random.uniform(0.0, LATE_SECONDS))

    def _uptime(self, node: str) -> None:
        self._at(UPTIME_SECONDS, lambda: self._uptime(node))
        up = int(1000 * (self.now - self.nodes[node])) + 1_000_000 * (self.nodes[node] == 0.0)
        self._send(lambda at: self.source.uptime(node, b"%d" % up, at))

    def restart(self, node: str) -> None:
        """A node restarts without a word; some clients, its own or others, are there before the bridge is."""
        self.story.append(f"{self.now:.0f}: {node} restarts")
        self.is_gap = True
        self.nodes[node] = self.now
        lost = [name for name, (there, _number) in self.online.items() if there == node]
        for name in lost:
            del self.online[name]
        self.advance(3.0)
        for name in sorted(set(NAMES) - self.online.keys()):
            if self.random.random() < (0.5 if name in lost else 0.2):
                self.connect(name)
        self.advance(3.0)
        self.is_gap = False

    # The truth

    def _check(self) -> None:
        """After a count that vouches, and that no event is near: the least that the check in the moment asks for."""
        source = self.source
        counted = self.clock.last_voucher_seconds
        if source.doubted or not source.matching or counted is None or counted <= source._last_event + 5.0:
            return
        for name in self.online.keys() - source.sessions():
            since = max(self.believed.markers[name], self.came[name], self.clock.floor_seconds)
            absent = self.clock.credit_seconds - since
            assert absent <= ABSENT_SECONDS, f"{name} is there at {self.now:.0f} s: {'; '.join(self.story)}"

    def live(self) -> None:
        """A random history."""
        random = self.random
        self.advance(200.0)
        for _step in range(random.randint(4, 14)):
            step = random.random()
            if step < 0.4:
                for _move in range(random.randint(1, 4)):
                    name = random.choice(NAMES)
                    (self.leave if name in self.online and random.random() < 0.5 else self.connect)(name)
                    self.advance(random.choice((0.3, 2.0, 10.0, 40.0)))
            elif step < 0.6:
                name = random.choice(NAMES)
                for _word in range(random.randint(1, 3)):
                    self.speak(name)
                    self.advance(70.0)
            elif step < 0.65:
                self.advance(130.0)
                self.restart(random.choice(list(self.nodes)))
                self.advance(200.0)
            elif step < 0.7:
                self.bridge = random.choice(list(self.nodes))
                self.advance(200.0)
            else:
                self._gap()
            self.advance(random.choice((5.0, 70.0, 200.0, 700.0)))
        self.advance(2400.0)

    def _gap(self) -> None:
        self.advance(130.0)
        self.is_gap, is_going = True, self.random.random() < 0.5
        for _move in range(self.random.randint(1, 2)):
            self.advance(self.random.uniform(1.0, 8.0))
            movers = sorted(self.online) if is_going else sorted(set(NAMES) - self.online.keys())
            if movers:
                (self.leave if is_going else self.connect)(self.random.choice(movers))
        self.advance(self.random.uniform(1.0, 20.0))
        self.is_gap = False
        self.advance(200.0)


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_who_is_connected_is_never_believed_absent(nodes: int) -> None:
    """Whatever is lost, late, repeated and swapped, and wherever the clients go; a failure tells its history."""
    vouched = 0
    for seed in range(1000):
        cluster = Cluster(seed, nodes)
        cluster.live()
        vouched += cluster.clock.vouching(cluster.now) and not cluster.source.doubted
    assert vouched > 50, "in some the census goes on in the end, so none of this is idle"


def _nothing_is_doubted(patch: Patch) -> None:
    patch.setattr(Doubt, "raise_for", lambda _self, _names, _at: None)


def _every_match_is_expected(patch: Patch) -> None:
    patch.setattr(Figures, "expects_none", lambda _self: True)
    _nothing_is_doubted(patch)


def _uptime_is_ignored(patch: Patch) -> None:
    patch.setattr(EmqxSource, "uptime", lambda _self, _node, _payload, _at: None)


@pytest.mark.parametrize("bug", [_nothing_is_doubted, _every_match_is_expected, _uptime_is_ignored])
def test_the_search_catches_a_planted_bug(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """One history at least shows each of them."""
    bug(monkeypatch)
    with pytest.raises(AssertionError, match="is there at"):
        test_who_is_connected_is_never_believed_absent(2)
