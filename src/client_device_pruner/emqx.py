"""The `emqx` source: sessions known to be open, and the census that compares them with the broker's count."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar

from client_device_pruner.doubt import Doubt, Figures
from client_device_pruner.source_clock import SourceClock

MAX_PAYLOAD_BYTES = 65_536
"""A client event of EMQX has well under 1 KiB; what is larger is none."""
MAX_ENDED = 50_000
"""Ended sessions remembered in one run, about 150 bytes each; beyond, see `ENDED_SECONDS`."""
ENDED_SECONDS = 3_600.0
"""An ended session so old is forgotten if need be: no event comes so late. With younger ones the set is emptied."""
MAX_SESSIONS = 250_000
"""Clients with a session known to be open, on one node, far more than a core carries; beyond, the set is emptied."""
MAX_STRANGERS = 10_000
"""Names awaited to speak a second time, and recent closes, kept at most."""

SessionId = int | str | None
"""A session's `connected_at`: a name, never compared as a time; None where the event had none."""
_Value = TypeVar("_Value")
UNHEARD = "unheard"
"""The id of a session that began unheard and that activity opened."""


class Signs(Protocol):
    """Where a source reports what it learns of single names."""

    def alive(self, name: str, at: float) -> None:
        """The name showed life at that monotonic moment."""

    def held_until(self, name: str, at: float) -> None:
        """The name was held present until that moment, and no longer is."""

    def left(self, name: str, at: float) -> None:
        """The name showed life by leaving: its last session ended at that moment."""

    def announce(self, name: str) -> None:
        """A broker's event named it."""

    def announced(self, name: str) -> bool:
        """Whether an event or a roll call ever named it."""

    def associated(self, name: str) -> bool:
        """Whether a device of that name is associated with this core."""


class _Node:
    """One broker node: its sessions, its latest count, and when it was heard.

    Attributes:
        sessions: by name, see `held` and `keep`.
        opened: when the name's latest session was opened, since the last uptime or within seconds.
        outlived: names whose latest session ended before an earlier one.
    """

    def __init__(self, at: float) -> None:
        self.heard = self.counted = self.uptime_heard = at
        self.uptime = 0
        self.count: int | None = None
        self.difference = 0
        self.deaf = False
        self.counted_since_break = False
        self.sessions: dict[str, SessionId | tuple[SessionId, ...]] = {}
        self.opened: dict[str, float] = {}
        self.outlived: set[str] = set()
        self.figures = Figures()

    def held(self, name: str) -> tuple[SessionId, ...]:
        """The name's sessions known to be open, the oldest first."""
        kept = self.sessions.get(name, ())
        return kept if isinstance(kept, tuple) else (kept,)

    def keep(self, name: str, held: tuple[SessionId, ...]) -> None:
        """Take these for the name's sessions; none: it has none."""
        if held:
            # Nearly every name has one: without a tuple around it, it takes half as much memory.
            self.sessions[name] = held[0] if len(held) == 1 else held
        else:
            self.sessions.pop(name, None)


class EmqxSource:
    """Follows one EMQX broker (DESIGN, model 3); all times are monotonic seconds.

    Args:
        clock: this source's clock.
        signs: told of every name's signs of life.
        bridge_client_id: the glob that the bridge's client id matches.
        scale: what the fixed times (5 s, 10 minutes) are multiplied by.
    """

    def __init__(self, clock: SourceClock, signs: Signs, *, bridge_client_id: str, scale: float = 1.0) -> None:
        self.clock = clock
        self.bridge_client_id = bridge_client_id
        self.bridge_known = True
        self.mapped = True
        self._event_heard = False
        self._signs = signs
        self.scale = scale
        self._nodes: dict[str, _Node] = {}
        self._ended: dict[int, float] = {}
        self._spoken: dict[str, float] = {}
        self._closed: dict[str, float] = {}
        self._bridge_node: str | None = None
        self._last_event = float("-inf")
        self._mismatch_since: float | None = None
        self._last_census = float("-inf")
        self._doubt = Doubt()
        self._arrived: dict[str, float] = {}
        self._replaced: dict[str, tuple[SessionId, ...]] = {}
        self._home = ""
        self._unmapped = False
        self._lower_since: float | None = None
        self._last_heard: float | None = None
        self.matching = False

    # What the broker tells

    def connected(self, node_name: str, name: str, payload: bytes, at: float) -> None:
        """Take a `connected` event; what is not a JSON object is ignored."""
        event = decode_event(payload)
        if event is None:
            return
        node = self._event(node_name, name, at)
        self._signs.alive(name, at)
        if self.is_bridge(name):
            self._bridge_node = node_name
            return
        number = _session_id(event)
        if node.deaf or hash((name, number)) in self._ended:
            return
        if number in node.held(name):
            return
        if not self.holds(name):
            if len(node.sessions) >= MAX_SESSIONS:
                self.overflow(at)
                return
            _remember(self._arrived, name, at)
        for other in self._nodes.values():
            if other.held(name):
                self._replace(other, name, at)
                if other is not node:
                    self._known(other, at)
        node.keep(name, (*node.held(name), number))
        node.opened[name] = at
        node.outlived.discard(name)
        self._known(node, at)
        self._doubt.confirm(name)

    def disconnected(self, node_name: str, name: str, payload: bytes, at: float) -> None:
        """Take a `disconnected` event: it ends the session that it names, or any if it names none."""
        event = decode_event(payload)
        if event is None:
            return
        node = self._event(node_name, name, at)
        if self.is_bridge(name):
            return
        number = _session_id(event)
        taken_over = event.get("reason") in ("takenover", "discarded")
        held = node.held(name)
        self._account_for_end(node, name, number, taken_over, at)
        if number is None:
            remaining = held if taken_over else ()
        else:
            self._end(name, number, at)
            remaining = tuple(s for s in held if s != number)
        remaining = tuple(s for s in remaining if s != UNHEARD)
        for other in self._nodes.values():
            # It was opened where the only node was heard, and may have been on another one.
            if other.held(name) == (UNHEARD,):
                del other.sessions[name]
                self._known(other, at)
        if remaining and remaining[-1] != held[-1]:
            node.outlived.add(name)
        node.keep(name, remaining)
        if self.holds(name):
            self._signs.alive(name, at)
        else:
            self._signs.left(name, at)
            _remember(self._closed, name, at)
            self._doubt.confirm(name)
        self._known(node, at)
        self._spoken.pop(name, None)

    def count(self, node_name: str, payload: bytes, at: float) -> None:
        """Take the broker's own count of a node's live connections: a census."""
        value = _whole_number(payload)
        if value is None:
            return
        node = self._node(node_name, at)
        node.count, node.counted, node.deaf = value, at, False
        node.counted_since_break = True
        # A client id has one connection at a time, so a name counts once: the end of its last one may be lost.
        node.difference = value - len(node.sessions)
        self._take_census(node, at)

    def uptime(self, node_name: str, payload: bytes, at: float) -> None:
        """Take a node's uptime: when it fell, the broker restarted and every session from before is gone."""
        value = _whole_number(payload)
        if value is None:
            return
        node = self._node(node_name, at)
        # It may have risen again past what was heard last: then it began after that, or after the node's first word.
        if value < node.uptime or at - value / 1000 > node.uptime_heard:
            # Opened since it was heard last, well after the new one began, and well before now, lest they were read
            # late together with it: these sessions are of the new one.
            apart = 5.0 * self.scale
            since = max(node.uptime_heard, at - value / 1000 * min(1.0, self.scale) + apart)
            until = at - apart
            latest = (name for name, opened in node.opened.items() if since < opened < until)
            kept = {name: node.held(name)[-1] for name in latest if name in node.sessions and name not in node.outlived}
            kept = {name: number for name, number in kept.items() if number != UNHEARD}
            self._forget(node, at)
            node.sessions = dict(kept)
            self._known(node, at)
        node.uptime, node.uptime_heard = value, at
        node.opened = {name: opened for name, opened in node.opened.items() if at - opened < 5.0 * self.scale}
        node.outlived &= node.opened.keys()
        # What matters for a short while is kept for no longer: with many devices it adds up.
        self._closed = {name: then for name, then in self._closed.items() if self._just_closed(name, at)}
        self._arrived = {name: then for name, then in self._arrived.items() if self._just_arrived(name, at)}

    def spoke(self, name: str, at: float) -> None:
        """Take an activity message: the second of two, well apart, opens a session that began unheard.

        It also confirms one that is in doubt.
        """
        doubted = name in self._doubt.names
        if (self.holds(name) and not doubted) or not self._signs.announced(name) or self.is_bridge(name):
            return
        if self._just_closed(name, at):
            return
        max_quiet = self.clock.max_quiet_seconds
        first = self._spoken.get(name)
        if first is None or at - first > 20 * max_quiet:
            _remember(self._spoken, name, at)
        elif at - first >= max_quiet / 3 and len(self._nodes) == 1:
            (node,) = self._nodes.values()
            if node.deaf:
                return
            self._spoken.pop(name)
            if doubted:
                self._doubt.confirm(name)
            else:
                node.keep(name, (UNHEARD,))
                self._last_event = at
                self._known(node, at)
                self._account(node, at, fewer=1)

    def set_bridge(self, client_id: str, *, known: bool, mapped: bool = True) -> None:
        """Take the glob that the bridge's client id matches, and whether its own configuration told it.

        Without the events `mapped`, a count that matches says nothing until one is heard all the same: nobody would
        be known to it.
        """
        self._unmapped |= self.mapped and not mapped
        self.bridge_client_id, self.bridge_known, self.mapped = client_id, known, mapped
        if not mapped:
            self._event_heard = False
        for node_name, node in self._nodes.items():
            for name in [name for name in node.sessions if self.is_bridge(name)]:
                del node.sessions[name]
                self._bridge_node = node_name
                self._doubt.confirm(name)
                node.figures.forget(len(node.sessions))

    def overflow(self, at: float) -> None:
        """Messages were lost before they were read: nothing is known any more."""
        self._break()
        for node in self._nodes.values():
            self._forget(node, at)

    def doubt_all(self, at: float) -> None:
        """Of those who are known any may have gone unheard, while somebody else came."""
        self._doubt.raise_for(self.sessions(), at)
        for name in self._doubt.names:
            self._spoken.pop(name, None)

    def tick(self, at: float) -> None:
        """Let what was not heard for too long go: a node's sessions without a count, and the node itself."""
        max_quiet = self.clock.max_quiet_seconds
        if self._unmapped:
            # Whoever came and went since was not announced.
            self._unmapped = False
            self.overflow(at)
        for node_name, node in list(self._nodes.items()):
            if at - node.counted > max_quiet and not node.deaf:
                self._forget(node, at)
                node.deaf = True
            if at - node.heard > max_quiet:
                del self._nodes[node_name]
                if self._bridge_node == node_name:
                    self._bridge_node = None

    # What it knows

    def is_bridge(self, name: str) -> bool:
        """Whether a client of that name is the bridge; an associated thing never is, however wide the glob."""
        return not self._signs.associated(name) and fnmatchcase(name, self.bridge_client_id)

    def holds(self, name: str) -> bool:
        """Whether the name has a session known to be open."""
        for node in self._nodes.values():  # noqa: SIM110 - asked for with each event: `any` takes twice as long
            if name in node.sessions:
                return True
        return False

    def sessions(self) -> frozenset[str]:
        """The names with a session known to be open."""
        return frozenset().union(*(node.sessions for node in self._nodes.values()))

    @property
    def doubted_since(self) -> float:
        """When doubt came up last."""
        return self._doubt.since

    @property
    def doubted(self) -> str:
        """Whose sessions, known to be open, may not be open any more, and what confirms them; "" where all are."""
        names = self._doubt.names
        if not names:
            return ""
        return (
            f"{len(names)} of the sessions known to be open are in doubt, since a mismatch went away unannounced or the"
            " subscription was made anew: until each of these clients speaks twice, connects anew or leaves"
            f" ({min(names)}, …)"
        )

    def objects(self, at: float) -> str:
        """Why neither a habit nor another broker's census proves anything now; "" where this one does not object."""
        if self._last_heard is None or at - self._last_heard > self.clock.max_quiet_seconds:
            if self.clock.credit_seconds == 0.0:
                return ""
            # It has vouched before: who is connected to it without a word would be heard, if it were.
            return (
                "the broker, whose count has matched before, is not heard any more: map its topics again, or disable it"
            )
        if not self.matching:
            return "the broker is heard, but its count does not match the sessions known to be open"
        return ""

    def reason(self, at: float) -> str:
        """Why the clock goes, or what it waits for, in words and figures."""
        known = sum(len(node.sessions) for node in self._nodes.values())
        counts = [node.count for node in self._nodes.values()]
        if self._last_heard is None:
            return "nothing heard from the broker in this run"
        if not self.mapped and not self._event_heard:
            return "the bridge does not carry the broker's events: what the doctor found has the entries"
        if not counts or None in counts:
            return "the broker's count of live connections is not heard"
        count = sum(c for c in counts if c is not None)
        figures = f"the broker counts {count} connections; {known} sessions are known to be open, and the bridge's"
        if not self.bridge_known and self._bridge_node is None:
            return "which client id is the bridge's is not known: its configuration could not be read"
        if self._mismatch_since is not None:
            who = "fewer" if self._lower_since is not None else "more"
            seconds = at - self._mismatch_since
            lasting = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
            return f"{figures}: {who} than known for {lasting}"
        if not self.clock.vouching(at):
            return f"{figures}: they match; if they still do then, the next count starts the clock"
        doubted = self.doubted
        return f"{figures}: they match{', but ' if doubted else ''}{doubted}"

    # The census

    def _take_census(self, node: _Node, at: float) -> None:
        if any(other.count is None for other in self._nodes.values()):
            return
        home = self._nodes[self._find_bridge()]
        if node.figures.take((node.count or 0) - (node is home), at, 5.0 * self.scale):
            self.doubt_all(at)
        blind = not self.mapped and not self._event_heard
        if blind or (not self.bridge_known and self._bridge_node is None):
            self._break()
            return
        differences = [other.difference - (other is home) for other in self._nodes.values()]
        surplus = min(differences) if min(differences) < 0 else max(differences)
        # Only an event of the last step can explain why a mismatch ended: an earlier one left it as it was.
        explained = self._last_event >= self._last_census - 5.0 * self.scale
        self._last_census = at
        if surplus:
            self._mismatch(surplus, at)
        else:
            self._match(explained=explained)

    def _match(self, *, explained: bool) -> None:
        if self._mismatch_since is not None and not explained:
            self.clock.restart_absences()
        self._mismatch_since = self._lower_since = None
        if not all(node.figures.expects_none() for node in self._nodes.values()):
            # It may agree by accident: the next count tells.
            return
        self.matching = True
        if all(node.counted_since_break for node in self._nodes.values()):
            # A count from before a break cannot vouch for what came after it.
            self.clock.vouch(min(node.counted for node in self._nodes.values()))

    def _mismatch(self, surplus: int, at: float) -> None:
        self._break()
        if self._mismatch_since is None:
            self._mismatch_since = at
        if surplus > 0:
            self._lower_since = None
        elif self._lower_since is None:
            self._lower_since = at
        elif at - self._lower_since >= 600.0 * self.scale:
            self._lower_since = None
            for node in self._nodes.values():
                self._forget(node, at)

    def _find_bridge(self) -> str:
        """The node that the bridge is counted on; where it is not known, one that shows one more, rather than none."""
        if self._bridge_node in self._nodes:
            return self._bridge_node
        more = [name for name, node in self._nodes.items() if node.difference > 0]
        if self._home not in (more or self._nodes):
            self._home = next(iter(more or self._nodes))
        return self._home

    # Small steps

    def _node(self, node_name: str, at: float) -> _Node:
        self.tick(at)
        node = self._nodes.get(node_name)
        if node is None:
            node = self._nodes[node_name] = _Node(at)
            # One more node to agree: the stretch ends until its count is known.
            self._break()
        node.heard = self._last_heard = at
        return node

    def _event(self, node_name: str, name: str, at: float) -> _Node:
        node = self._node(node_name, at)
        self._last_event, self._event_heard = at, True
        self._signs.announce(name)
        return node

    def _end(self, name: str, number: SessionId, at: float) -> None:
        if len(self._ended) >= MAX_ENDED:
            oldest = next(iter(self._ended))
            if at - self._ended[oldest] > ENDED_SECONDS:
                del self._ended[oldest]
            else:
                self._ended.clear()
                self.overflow(at)
        self._ended[hash((name, number))] = at

    def _replace(self, node: _Node, name: str, at: float) -> None:
        """End a name's sessions, since it connects anew; but those opened just now may be the later ones.

        A client id has one connection at a time, and events come late by seconds only.
        """
        before, is_doubted = node.held(name), name in self._doubt.names
        if not is_doubted:
            # Unless its end is heard yet, it had been lost, and may have been missing; for one in doubt somebody else
            # may have made up.
            self._account(node, at, more=1)
        if at - node.opened.get(name, float("-inf")) < 5.0 * self.scale:
            return
        for number in before:
            if number is not None and number != UNHEARD:
                self._end(name, number, at)
        if not is_doubted:
            _remember(self._replaced, name, before)
        node.keep(name, ())

    # What accounts for a surplus

    def _account_for_end(self, node: _Node, name: str, number: SessionId, taken_over: bool, at: float) -> None:
        held, replaced = node.held(name), self._replaced.get(name, ())
        in_all = sum(len(other.held(name)) for other in self._nodes.values())
        takeover = number in replaced or (taken_over and UNHEARD in replaced)
        if takeover or (number in held and in_all > 1):
            # It was there until it connected anew, so that accounts for nobody.
            self._replaced.pop(name, None)
            self._account(node, at, more=-1)
        elif hash((name, number)) in self._ended or (number is None and self._just_closed(name, at)):
            # It was told before.
            return
        elif not held or (taken_over and number not in held and self._just_arrived(name, at)):
            # Whoever came unheard, and was counted, has gone or connected anew.
            self._account(node, at, fewer=1)

    def _just_closed(self, name: str, at: float) -> bool:
        return at - self._closed.get(name, float("-inf")) < 5.0 * self.scale

    def _just_arrived(self, name: str, at: float) -> bool:
        return at - self._arrived.get(name, float("-inf")) <= self.clock.max_quiet_seconds / 3

    def _account(self, node: _Node, at: float, *, fewer: int = 0, more: int = 0) -> None:
        if not node.deaf:
            node.figures.account(at, fewer=fewer, more=more)

    def _known(self, node: _Node, at: float) -> None:
        node.figures.knows(len(node.sessions), at, 5.0 * self.scale)

    def _forget(self, node: _Node, at: float) -> None:
        """Throw the node's known sessions away, and the count that they were compared with; the stretch ends."""
        names, node.sessions, node.count = node.sessions, {}, None
        node.opened.clear()
        node.outlived.clear()
        # What was said before may have been said by somebody who is gone since.
        self._spoken.clear()
        for name in names:
            self._signs.held_until(name, at)
            self._doubt.confirm(name)
        node.figures.forget(0)
        self._break()

    def _break(self) -> None:
        """End the stretch: only counts from now on begin another."""
        self.clock.break_stretch()
        self.matching = False
        for node in self._nodes.values():
            node.counted_since_break = False


def decode_event(payload: bytes) -> dict[str, Any] | None:
    """A client event's fields; None for whatever is not one JSON object of a plausible size."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        return None
    try:
        event = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _session_id(event: dict[str, Any]) -> SessionId:
    number = event.get("connected_at")
    if isinstance(number, bool) or not isinstance(number, (int, str)):
        return None
    return number


def _whole_number(payload: bytes) -> int | None:
    return int(payload) if len(payload) <= 18 and payload.isdigit() else None


def _remember(kept: dict[str, _Value], name: str, value: _Value) -> None:
    """Keep it, and at most `MAX_STRANGERS` of them, the oldest out."""
    kept.pop(name, None)
    if len(kept) >= MAX_STRANGERS:
        del kept[next(iter(kept))]
    kept[name] = value
