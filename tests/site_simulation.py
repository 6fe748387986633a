"""A small site in virtual time, with the ground truth beside the component: for the property tests.

Real: sources, ledger, state file (in memory), policy, cycle, journal, self-test and the check in the moment.
Simulated, second by second on one agenda: client devices, an EMQX-like broker, the bridge, local pub/sub, the
process that the component is, both wall clocks, and the cloud. `Site` checks I1, I2, I4 and I7 as it goes and
raises `Violation`; `Site.decisions` is all that was decided, for comparing whole histories (I3).

**The known exception of I4, exactly.** A census compares numbers. It is deceived when somebody whose session it
believes open is gone (*lost*) while somebody whose session it never heard of is there (*gained*): the sums agree.
Where a count has shown the one before the other came about, the sums that agree again raise doubt. So the site
leaves a move out only if it made somebody lost and somebody gained who were not so at the last count without an event
near it (`_deceives`).
Where the gap shows by itself, there is no such rule either: in a gap that a count fails to bridge within
`maxQuiet`, while the component is not running, in an overflow, across a restart of the broker that lets its uptime
fall.

**What keeping a habit means.** Who speaks at steady intervals, was never cut off, and was heard between any two
gaps. A device all of whose messages fall into gaps keeps no habit that anybody could hear: before each gap the
site waits until every keeper has been heard since the last one.
"""

from __future__ import annotations

import contextlib
import copy
import heapq
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from client_device_pruner import policy, state_file
from client_device_pruner.cloud_worker import Batch, Batched, CallFailed, Listed, ListPage, Ready
from client_device_pruner.cycle import Check, Cycle, Known, Start, Steps
from client_device_pruner.emqx import UNHEARD
from client_device_pruner.journal import Journal
from client_device_pruner.ledger import Ledger
from client_device_pruner.model import Association
from client_device_pruner.moment import Moment
from client_device_pruner.outages import find_outages
from client_device_pruner.policy import Circumstances, Plan, Verdict, absence_seconds, assess
from client_device_pruner.self_test import SelfTest
from client_device_pruner.settings import Settings, parse
from client_device_pruner.sources import Sources

PREFIX = "client-device-pruner/in/"
SELF_TEST = f"{PREFIX}pruner-self-test"
NODE = "emqx@127.0.0.1"
BRIDGE = "mqtt-bridge-Xy7"
ASSOCIATED = ("a1", "a2", "a3", "a4")
STRANGERS = ("s1", "s2")

MAX_QUIET = 180.0
THRESHOLD = 1800.0
NOTICE = 180.0
CHECK_INTERVAL = 300.0
COUNT_SECONDS, UPTIME_SECONDS = 60.0, 30.0
PULSE_SECONDS, COMMIT_SECONDS = 5.0, 60.0
LATEST_SECONDS = 4.0
"""Events are late by so much at most: the census' 5 s allow for it."""
APART_SECONDS = 5.0
"""Counts are taken apart from events, by so much at most (DESIGN, model 3)."""
CLOSE_ENOUGH = 1e-6

KINDS = ("both", "events", "messages")
"""EMQX with activity, EMQX alone, and a broker without events."""


def settings_of(kind: str) -> Settings:
    """The settings of a site: real constants (scale 1), a short threshold, and no guard that would hide a mistake."""
    return parse(
        {
            "allowShortDurations": True,
            "offlineThreshold": "30m",
            "noticePeriod": "3m",
            "checkInterval": "5m",
            "neverSeenThreshold": "40m",
            "sources": {
                "emqx": {"maxQuiet": "3m", "enabled": kind != "messages"},
                "messages": {"maxQuiet": "6m", "enabled": kind != "events"},
            },
            "limits": {"approvalPercent": 100, "maxPercentPerDay": 100},
            "massLoss": {"minDevices": 1000},
        }
    )


SETTINGS = {kind: settings_of(kind) for kind in KINDS}


class Violation(AssertionError):
    """An invariant does not hold; the text says which, of whom, and when."""


@dataclass(slots=True)
class Client:
    """The truth about one client of the broker.

    `session` is its `connected_at`, None while it is not connected. A keeper has spoken at its period ever since
    its first message; `heard` says whether anything of it arrived since the last gap.
    """

    name: str
    session: int | None = None
    period_seconds: float = 0.0
    talk: int = 0
    words: int = 0
    keeper: bool = False
    heard: bool = True
    last_number: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """What travels to the component: whom it is a sign of, and for a count who was connected."""

    topic: str
    payload: bytes
    about: str | None = None
    counted: frozenset[str] | None = None
    opens: int | None = None
    closes: int | None = None


@dataclass(slots=True)
class Clock:
    """The machine's clocks: the wall clock can be set, the monotonic one cannot."""

    now: float = 1000.0
    wall_offset: float = 1.7e9

    def monotonic(self) -> float:
        """See `model.Clock`."""
        return self.now

    def wall(self) -> float:
        """See `model.Clock`."""
        return self.now + self.wall_offset


class _Memory(sqlite3.Connection):
    """State without a file; it goes with its site, which nobody closes, and says nothing of that."""

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # where another thread collects it
            self.close()


class _ToldLedger(Ledger):
    """Tells the site of every commit."""

    def __init__(self, connection: sqlite3.Connection, started: float, site: Site) -> None:
        super().__init__(connection, started)
        self._site = site

    def commit(self, at: float) -> bool:
        """See `Ledger`."""
        self._site.signs_committed()
        return super().commit(at)


class Process:
    """One run of the component: the desk of its cycles, without the edges of a real process."""

    def __init__(self, site: Site, connection: sqlite3.Connection) -> None:
        self.clock = site.clock
        self.site = site
        self.connection = connection
        at = self.clock.monotonic()
        self.killed = False
        self.ledger = _ToldLedger(connection, at, site)
        self.sources = Sources(site.settings, self.ledger, at)
        self.sources.set_bridge("", known=True)
        self.self_test = SelfTest(1.0)
        self.cycle: Cycle | None = None
        self.steps: Steps | None = None
        self.moment: Moment | None = None
        self.next_cycle = at + CHECK_INTERVAL
        self.next_commit = at + 1.0
        self.canaries: dict[str, float] = {}

    def turn(self, at: float) -> None:
        """What follows whatever arrived."""
        self.sources.tick(at)
        self._heed_returned()
        if self.moment is not None:
            over, hold = self.moment.poll(at)
            if over:
                self.moment = None
                self.drive(hold)

    def pulse(self, at: float) -> None:
        """What is due by itself."""
        self.turn(at)
        for canary in self.sources.canaries:
            if at >= self.canaries.get(canary.topic, 0.0):
                self.canaries[canary.topic] = at + canary.interval_seconds
                self.site.send_canary()
        if at >= self.next_cycle and self.cycle is None:
            self.next_cycle = float("inf")
            self.site.check_pure()
            self.cycle = Cycle(self)
            self.steps = self.cycle.steps()
            self.drive(None)
        if at >= self.next_commit:
            self.next_commit = at + COMMIT_SECONDS
            self.ledger.commit(at)

    def _heed_returned(self) -> None:
        names, self.ledger.returned = dict.fromkeys(self.ledger.returned), []
        for name in names:
            device = self.ledger.devices.get(name)
            if device is not None and device.mark is not None:
                self.ledger.set_mark(name, None)
                self.event("unmarked", name, reason="it showed life")
            if self.cycle and name in self.cycle.in_flight:
                self.cycle.lively.add(name)

    def drive(self, answer: Any) -> None:
        """Run the cycle until it has to wait."""
        steps = self.steps
        while steps is not None:
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            if isinstance(step, Check):
                self.site.check_begins()
                self.canaries.clear()
                self.moment = Moment(
                    step.source_ids,
                    self.clock.monotonic(),
                    sources=lambda: self.sources,
                    self_test=self.self_test,
                    send_echo=self.site.send_echo,
                    scale=1.0,
                )
                return
            answer = self.site.answer(step)

    # The desk

    @property
    def watch(self) -> Known:
        """See `cycle.Desk`."""
        return self

    @property
    def journal(self) -> Journal:
        """See `cycle.Desk`."""
        return Journal(self.connection)

    def circumstances(self, cycle_id: str) -> Circumstances:
        """See `cycle.Desk`."""
        witnesses, present = self.sources.witnesses(self.clock.monotonic()), self.sources.present_names()
        outages = find_outages(
            self.ledger.devices.values(),
            present,
            self.ledger.ended_absences,
            [witness.source_id for witness in witnesses],
            self.site.settings.mass_loss,
        )
        return Circumstances(self.site.settings, witnesses, present, cycle_id, outages)

    def plan(self, due: Sequence[Verdict]) -> Plan:
        """See `cycle.Desk`."""
        associated = len(self.ledger.devices)
        budget = self.journal.budget(associated, self.ledger.running_seconds(self.clock.monotonic()))
        return policy.plan(
            due, associated=associated, settings=self.site.settings, budget=budget, approved=(), plan_id=""
        )

    def plausible(self, listed: Sequence[Association]) -> bool:
        """See `cycle.Desk`."""
        return listed is not None

    def event(self, kind: str, name: str | None = None, /, **data: Any) -> None:
        """See `cycle.Desk`."""
        self.next_commit = min(self.next_commit, self.clock.monotonic() + 1.0)
        self.site.decided(kind, name, {key: value for key, value in data.items() if key != "cycleId"})

    def failed(self, failure: CallFailed, *about: Any, **more: Any) -> None:
        """See `cycle.Desk`."""
        raise Violation(f"a call failed in a site without faults: {failure} {about} {more}")

    def refused(self, *about: Any) -> None:
        """See `cycle.Desk`."""
        raise Violation(f"an entry was refused in a site without faults: {about}")

    def succeeded(self, *_about: Any) -> None:
        """See `cycle.Desk`."""

    def ended(self, cycle: Cycle) -> None:
        """See `cycle.Desk`; a process that is killed decides nothing any more."""
        if self.killed:
            return
        self.site.decided("cycle", None, dict(cycle.tally.states))
        self.cycle = self.steps = None
        self.next_cycle = self.clock.monotonic() + CHECK_INTERVAL


Move = tuple[str, str]
"""A client, and `connect` (again, if it is connected: a takeover) or `disconnect`."""


@dataclass
class Site:
    """The world; public methods are the operations that a history is made of, all times in seconds.

    Args:
        kind: one of `KINDS`.
        numbered: whether client events carry `connected_at`; without it none is late or repeated.
        lag_seconds: how much earlier a count is sampled than sent.
        strict: also check that nobody is due whom a count included within the threshold. That is more than I4
            promises where other clients' events fall into the mismatch, so only single histories ask for it.
        sure: moves are made without asking `_deceives`: for histories that are known to be outside the exception.
    """

    kind: str = "both"
    numbered: bool = True
    lag_seconds: float = 0.0
    strict: bool = False
    sure: bool = False

    clock: Clock = field(default_factory=Clock)
    decisions: list[tuple[Any, ...]] = field(default_factory=list)
    process: Process | None = None
    broker_offset: float = 1.6e9
    bridge_up: bool = True
    subscribed: bool = True
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Any = field(default_factory=itertools.count)
    _late: dict[int, tuple[float, Message]] = field(default_factory=dict)
    _waiting: list[tuple[Message, float | None]] = field(default_factory=list)
    _held_up: str = ""
    _room: int = 0
    _dropped: bool = False
    _boot: int = 0
    _booted: float = 0.0
    _delay: float = 0.0
    _double: bool = False
    _gap: str = ""

    def __post_init__(self) -> None:
        """Start the site: nobody is connected, all are associated and listed."""
        self.settings = SETTINGS[self.kind]
        self.clients = {name: Client(name) for name in (*ASSOCIATED, *STRANGERS)}
        self.associations = dict.fromkeys(ASSOCIATED, 500000000.0)
        self.connection = sqlite3.connect(":memory:", isolation_level=None, factory=_Memory)
        self.connection.row_factory = sqlite3.Row
        state_file._migrate(self.connection)
        # Ground truth: when the last sign of each was received, now and as of the last commit.
        self.signs: dict[str, float] = {}
        self._committed_signs: dict[str, float] = {}
        self.heard_at: dict[str, list[float]] = {}
        self.counted_at: dict[str, float] = {}
        self.marked_at: dict[str, float] = {}
        self.vouched = {"emqx": 0.0, "messages": 0.0}
        self._vouchers: dict[str, float] = {}
        self._census: tuple[int, int] | None = None
        self._size, self._resized_at = 0, 0.0
        self._showing: tuple[float, dict[str, int]] | None = None
        self._shown: dict[str, int] = {}
        self._last_uptime: float | None = None
        self._check_began = 0.0
        self._there: dict[str, Client] = {}
        self._keepers: set[str] = set()
        self._begin_process()
        self._boot_broker()
        self._schedule(PULSE_SECONDS, self._pulse)

    @property
    def now(self) -> float:
        """The virtual time, monotonic."""
        return self.clock.now

    @property
    def has_events(self) -> bool:
        """Whether the broker announces who comes and goes."""
        return self.kind != "messages"

    @property
    def pruned(self) -> list[str]:
        """Whom the component disassociated."""
        return [name for _at, kind, name, _data in self.decisions if kind == "batch"]

    # What happens on the site

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until = self.clock.now + seconds
        while self._agenda and self._agenda[0][0] <= until:
            at, _order, act = heapq.heappop(self._agenda)
            self.clock.now = max(self.clock.now, at)
            act()
        self.clock.now = max(self.clock.now, until)

    def move(self, name: str, action: str) -> bool:
        """Let a client connect or disconnect; False if it cannot, or if that were the known exception."""
        client = self.clients[name]
        if action == "disconnect" and client.session is None:
            return False
        if self.has_events and not self.sure and self._deceives(name, action):
            return False
        old = client.session
        if action == "connect":
            client.last_number = client.session = max(
                client.last_number + 1, int((self.now + self.broker_offset) * 1000)
            )
            self._announce(name, "connected", client.session)
            if old is not None:
                self._announce(name, "disconnected", old, reason="takenover")
            if client.period_seconds and old is None:
                self._talk(client)
        else:
            client.session = None
            client.keeper = False
            self._announce(name, "disconnected", old, reason="tcp_closed")
        return True

    def talk(self, name: str, period_seconds: float) -> None:
        """Let a client speak at that period whenever it is connected; 0: no more."""
        client = self.clients[name]
        client.keeper = bool(period_seconds) and not client.words and client.session is not None
        client.period_seconds = period_seconds
        self._talk(client)

    def replay(self, name: str) -> None:
        """A retained message of the client comes again, as when the bridge subscribes."""
        self._send(Message(f"{PREFIX}clients/{name}/telemetry", b"{}", about=name))

    def disturb(self, delay_seconds: float, *, double: bool) -> None:
        """The next client event comes late, or once in time and once late."""
        if self.numbered:
            self._delay, self._double = min(delay_seconds, LATEST_SECONDS), double

    def bridge_gap(self, seconds: float, moves: Sequence[Move] = ()) -> None:
        """The bridge has no connection to the broker."""
        self._before_gap()
        self.bridge_up, self._gap = False, self._shows(seconds)
        self._pass(seconds, moves)
        self.bridge_up, self._gap = True, ""

    def ipc_gap(self, seconds: float, moves: Sequence[Move] = ()) -> None:
        """The subscription on local pub/sub is dead."""
        self._before_gap()
        self.subscribed, self._gap = False, self._shows(seconds)
        self._pass(seconds, moves)
        self.subscribed, self._gap = True, ""

    def restart_broker(self, down_seconds: float, bridge_seconds: float, returning: Sequence[str]) -> None:
        """The broker dies without a word and starts again; the bridge follows later, clients before it."""
        self._before_gap()
        self.bridge_up, self._gap = False, "silent"
        self._boot += 1
        was = {name for name, client in self.clients.items() if client.session is not None}
        for client in self.clients.values():
            client.session = None
        self.advance(down_seconds)
        self._boot_broker()
        first_uptime = (bridge_seconds // UPTIME_SECONDS + 1) * UPTIME_SECONDS
        if self._last_uptime is not None and first_uptime * 1000 < self._last_uptime:
            self._gap = "shown"
        # Those known come back first, so that as few as possible are lost while others are gained.
        back = sorted(returning, key=lambda name: name not in self._known())
        self._pass(bridge_seconds, [(name, "connect") for name in back])
        for name in was:
            self.clients[name].keeper &= self.clients[name].session is not None
        self.bridge_up, self._gap = True, ""

    def kill(self, seconds: float, moves: Sequence[Move] = ()) -> None:
        """The component is killed, and started again later: what was not committed is lost."""
        self._end_process()
        self._pass(seconds, moves)
        self._begin_process()

    def suspend(self, seconds: float, moves: Sequence[Move] = ()) -> None:
        """The process is stopped and goes on later: all that waits has arrived only then."""
        self._held_up = "suspended"
        self._pass(seconds, moves)
        self._held_up = ""
        if self.process is not None:
            # The worst order: what is due comes before what waits has been read.
            self.process.pulse(self.now)
        self._read_on()

    def stall(self, seconds: float, moves: Sequence[Move] = (), *, room: int = 1_000_000) -> None:
        """The component's thread is held up, its queue takes so many messages: an overflow drops the rest."""
        self._before_gap()
        self._held_up, self._room = "stalled", room
        self._gap = "shown" if room < 1_000_000 else ""
        if self._gap:
            # At least one message is dropped.
            self._dropped = True
        self._pass(seconds, moves)
        self._held_up, self._gap = "", ""
        self._read_on()

    def set_wall_clocks(self, ours_seconds: float, brokers_seconds: float) -> None:
        """Both wall clocks are set, by so much."""
        self.clock.wall_offset += ours_seconds
        self.broker_offset += brokers_seconds

    # Time

    def _schedule(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.clock.now + seconds, next(self._order), act))

    def _pulse(self) -> None:
        self._schedule(PULSE_SECONDS, self._pulse)
        if self.process is not None and not self._held_up:
            self.process.pulse(self.now)
            self._check_clocks()

    def _pass(self, seconds: float, moves: Sequence[Move]) -> None:
        step = seconds / (len(moves) + 1)
        for name, action in moves:
            self.advance(step)
            self.move(name, action)
        self.advance(step)

    def _before_gap(self) -> None:
        """Let what is late arrive, and every keeper be heard."""
        self._delay, self._double = 0.0, False
        self.advance(LATEST_SECONDS + 1.0)
        keepers = [client for client in self.clients.values() if client.keeper]
        for _second in range(0, 600, 5):
            if all(client.heard for client in keepers):
                break
            self.advance(5.0)
        for client in keepers:
            client.heard = False

    # The broker

    def _boot_broker(self) -> None:
        self._booted = self.now
        boot = self._boot
        if self.has_events:
            self._schedule(UPTIME_SECONDS, lambda: self._uptime(boot))
            self._schedule(COUNT_SECONDS, lambda: self._count(boot))

    def _uptime(self, boot: int) -> None:
        if boot == self._boot:
            self._schedule(UPTIME_SECONDS, lambda: self._uptime(boot))
            uptime = round((self.now - self._booted) * 1000)
            self._send(Message(f"{PREFIX}$SYS/brokers/{NODE}/uptime", b"%d" % uptime))

    def _count(self, boot: int) -> None:
        if boot == self._boot:
            self._schedule(COUNT_SECONDS, lambda: self._count(boot))
            connected = frozenset(name for name, client in self.clients.items() if client.session is not None)
            count = len(connected) + self.bridge_up
            topic = f"{PREFIX}$SYS/brokers/{NODE}/stats/live_connections/count"
            message = Message(topic, b"%d" % count, counted=connected)
            self._schedule(self.lag_seconds, lambda: self._send(message))

    def _announce(self, name: str, what: str, session: int | None, **fields: Any) -> None:
        if not self.has_events:
            return
        event = {"clientid": name, "ts": round((self.now + self.broker_offset) * 1000), **fields}
        if self.numbered:
            event["connected_at"] = session
        topic = f"{PREFIX}$SYS/brokers/{NODE}/clients/{name}/{what}"
        number = session if self.numbered else 0
        opens, closes = (number, None) if what == "connected" else (None, number)
        message = Message(topic, json.dumps(event).encode(), name, opens=opens, closes=closes)
        delay, double, self._delay, self._double = self._delay, self._double, 0.0, False
        if not delay or double:
            self._send(message)
        if delay:
            key = next(self._order)
            self._late[key] = (self.now + delay, message)
            self._schedule(delay, lambda: self._send(self._late.pop(key)[1]))

    def _talk(self, client: Client) -> None:
        client.talk += 1
        if client.period_seconds:
            self._speak(client, client.talk)

    def _speak(self, client: Client, talk: int) -> None:
        if talk != client.talk or not client.period_seconds:
            return
        if client.session is not None:
            client.words += 1
            self._send(Message(f"{PREFIX}clients/{client.name}/telemetry", b"{}", about=client.name))
        wobble = (0.9, 1.1, 1.0, 0.95, 1.05)[client.words % 5]
        self._schedule(client.period_seconds * wobble, lambda: self._speak(client, talk))

    # The way to the component

    def send_canary(self) -> None:
        """The component's canary goes round through bridge and broker."""
        if self.subscribed:
            self._send(Message(f"{PREFIX}clients/pruner-canary/telemetry", b"canary"))

    def send_echo(self, text: str) -> None:
        """The self-test goes round through local pub/sub alone."""
        self._schedule(0.01, lambda: self._arrive(Message(SELF_TEST, text.encode())))

    def _send(self, message: Message) -> None:
        mapped = self.kind != "events" or not message.topic.endswith("/telemetry")
        if self.bridge_up and mapped:
            self._arrive(message)

    def _arrive(self, message: Message) -> None:
        if not self.subscribed or self.process is None:
            return
        if self._held_up == "suspended":
            self._waiting.append((message, None))
        elif self._held_up == "stalled":
            if len(self._waiting) < self._room:
                self._waiting.append((message, self.now))
            else:
                self._dropped = True
        else:
            self._hear(message, self.now)

    def _read_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message, received in waiting:
            self._hear(message, self.now if received is None else received)
        if self._dropped and self.process is not None:
            self._vouchers.clear()
            self._last_uptime = None
            self.process.sources.overflow(self.now)
        self._dropped = False

    def _hear(self, message: Message, at: float) -> None:
        process = self.process
        if process is None:
            return
        if message.topic == SELF_TEST:
            process.self_test.echo(message.payload)
        else:
            self._note(message, at)
            process.sources.take(message.topic, message.payload, at)
            self._note_size(at)
            self._note_census(message, at)
        if not self._held_up:
            process.turn(max(at, self.now))

    # The ground truth

    def _note(self, message: Message, at: float) -> None:
        if message.about is not None:
            self.signs[message.about] = at
        if message.topic.endswith("/telemetry"):
            if message.about is not None:
                self.heard_at.setdefault(message.about, []).append(at)
                self.clients[message.about].heard = True
            self._note_voucher("messages", 360.0, at)
        elif message.counted is not None:
            self._note_voucher("emqx", MAX_QUIET, at)
            for name in message.counted:
                self.counted_at[name] = at
        elif message.topic.endswith("/uptime"):
            self._last_uptime = float(message.payload)

    def _note_voucher(self, source: str, max_quiet_seconds: float, at: float) -> None:
        """Add up the most that the source can have vouched for."""
        last = self._vouchers.get(source)
        if last is not None and at - last <= max_quiet_seconds:
            self.vouched[source] += at - last
        self._vouchers[source] = at

    def _note_census(self, message: Message, at: float) -> None:
        if message.counted is None or self.process is None:
            return
        (emqx,) = self.process.sources.emqx.values()
        self._census = (int(message.payload), len(self._sessions()) + 1)
        self._heed_shown()
        self._showing = (at, self._untrue(self._known(), self._who_is_there()))
        if at - self._resized_at <= APART_SECONDS:
            self._showing = None
        if emqx.matching:
            for name in emqx.sessions():
                self.signs[name] = at

    def _note_size(self, at: float) -> None:
        """A count near which sessions were opened or closed shows a range, and perhaps nothing."""
        size = len(self._sessions())
        if size != self._size:
            self._heed_shown()
            self._size, self._resized_at, self._showing = size, at, None

    def _heed_shown(self) -> None:
        """Who was untrue at a count without any event near it has shown by it."""
        if self._showing is not None and self.now - self._showing[0] > APART_SECONDS:
            self._shown, self._showing = self._showing[1], None

    def signs_committed(self) -> None:
        """The component commits: the signs received so far will outlive it."""
        self._committed_signs = dict(self.signs)

    def _sessions(self) -> dict[str, set[Any]]:
        """The sessions that the component believes open, by name."""
        found: dict[str, set[Any]] = {}
        if self.process is not None:
            for emqx in self.process.sources.emqx.values():
                for node in emqx._nodes.values():
                    for name in node.sessions:
                        found.setdefault(name, set()).update(0 if s is None else s for s in node.held(name))
        return found

    def _known(self) -> dict[str, set[Any]]:
        """The sessions that it will believe open once it has read all that is on its way."""
        known = self._sessions()
        late = [message for _at, message in sorted(self._late.values(), key=lambda entry: entry[0])]
        ended: set[Any] = set()
        for message in (*(message for message, _received in self._waiting), *late):
            sessions = known.setdefault(message.about or "", set())
            if message.closes is not None:
                ended.add((message.about, message.closes))
                sessions -= {message.closes, UNHEARD}
            elif message.opens is not None and (message.about, message.opens) not in ended:
                # A repeated event of a session that is over opens nothing.
                client = self.clients[message.about or ""]
                if not self.numbered or client.session == message.opens:
                    sessions -= {UNHEARD}
                    sessions.add(message.opens)
        return known

    def _deceives(self, name: str, action: str) -> bool:
        """Whether the move would bring about the known exception: one lost and one gained at once."""
        if self.process is None or self._gap == "shown":
            return False
        known = self._known()
        client = self.clients[name]
        sessions = known.setdefault(name, set())
        there = self._who_is_there()
        there[name] = action == "connect"
        if self._gap != "silent":
            own = client.session if self.numbered else 0
            sessions -= {own, UNHEARD}
            if action == "connect":
                sessions.add("new")
        self._heed_shown()
        fresh = [more for other, more in self._untrue(known, there).items() if more != self._shown.get(other)]
        return 1 in fresh and -1 in fresh

    def _who_is_there(self) -> dict[str, bool]:
        return {client.name: client.session is not None for client in self.clients.values()}

    def _untrue(self, known: dict[str, set[Any]], there: dict[str, bool]) -> dict[str, int]:
        """Who is believed present and is not (1: lost), and who is there and not believed so (-1: gained)."""
        more = {name: bool(known.get(name)) - is_there for name, is_there in there.items()}
        return {name: difference for name, difference in more.items() if difference}

    def _shows(self, seconds: float) -> str:
        """Whether a gap of that length from now keeps two counts so far apart that the component must notice."""
        last = self._vouchers.get("emqx")
        first = self._booted + ((self.now + seconds - self._booted) // COUNT_SECONDS + 1) * COUNT_SECONDS
        return "shown" if last is not None and first - last > MAX_QUIET else "silent"

    # The process

    def _begin_process(self) -> None:
        self._last_uptime = None
        self.process = Process(self, self.connection)
        # The first cycle lists the associations; let it come at once, so that all start with a marker.
        self.process.next_cycle = self.now + 1.0

    def _end_process(self) -> None:
        process, self.process = self.process, None
        if process is not None and process.steps is not None:
            process.killed = True
            process.steps.close()
        self.signs = dict(self._committed_signs)
        self._vouchers.clear()
        self._census = None
        self._waiting.clear()

    # What it asks, and what it decides

    def answer(self, step: Any) -> Any:
        """The cloud and the child process, without faults."""
        match step:
            case Start():
                return Ready()
            case ListPage(request_id):
                listed = tuple(self.associations.items())
                for name, _timestamp in listed:
                    self.signs.setdefault(name, self.now)
                return Listed(request_id, listed, None)
            case Batch(request_id, "disassociate", names):
                for name in names:
                    self._check_batch(name)
                    self.decided("batch", name, {})
                    del self.associations[name]
                return Batched(request_id, ())
            case Batch(request_id, _, names):
                self.associations.update(dict.fromkeys(names, self.now))
                return Batched(request_id, ())
        raise Violation(f"the cycle asks for what nobody knows: {step}")

    def decided(self, kind: str, name: str | None, data: dict[str, Any]) -> None:
        """Keep a decision."""
        if kind == "marked" and name is not None:
            self.marked_at[name] = self.now
        self.decisions.append((round(self.now, 6), kind, name, data))

    def check_begins(self) -> None:
        """The check in the moment begins: who is there now must not be disassociated by it."""
        self._check_began = self.now
        self._there = {name: client for name, client in self.clients.items() if client.session is not None}
        self._keepers = {name for name, client in self._there.items() if client.keeper and client.words}

    # The invariants

    def _fail(self, invariant: str, name: str, text: str) -> None:
        raise Violation(f"{invariant}: {name} at {self.now:.2f} s: {text}; decisions: {self.decisions[-6:]}")

    def _check_batch(self, name: str) -> None:
        """I1 and I4, for a name that is being disassociated."""
        process = self.process
        if process is None or process.cycle is None:
            self._fail("I1", name, "disassociated by nobody")
            return
        lives = self.clients[name].session is not None
        if lives and self.has_events and name in self._there:
            self._fail("I4", name, "it is connected to a broker with events, and was when the check began")
        if lives and name in self._keepers and self.clients[name].keeper:
            self._fail("I4", name, "it lives and keeps its habit")
        if name in process.sources.present_names():
            self._fail("I1", name, "a source has it present")
        evidence = process.cycle.in_flight[name].evidence
        absent = self.now - self.signs[name]
        if absent < THRESHOLD - CLOSE_ENOUGH:
            self._fail("I1", name, f"its last sign is {absent:.1f} s old")
        if self.now - self.marked_at.get(name, self.now) < NOTICE - CLOSE_ENOUGH:
            self._fail("I1", name, "its notice is not over")
        source = evidence["sourceName"]
        delay = 5.0 if evidence["proof"] == "census" else 0.0
        if self._vouchers.get(source, 0.0) < self._check_began + delay:
            self._fail("I1", name, f"{source} has not vouched since the check began")
        if evidence["proof"] == "census":
            self._check_census(name)
        else:
            self._check_habit(name)

    def _check_census(self, name: str) -> None:
        if self._census is None or self._census[0] != self._census[1]:
            self._fail("I1", name, f"the count and the sessions known with the bridge's differ: {self._census}")
        if self.strict and self.now - self.counted_at.get(name, 0.0) < THRESHOLD:
            self._fail("I4", name, f"a count included it at {self.counted_at[name]:.0f} s")

    def _check_habit(self, name: str) -> None:
        heard = self.heard_at.get(name, [])
        if len(heard) < 5 or heard[-1] - heard[0] < THRESHOLD / 4 - CLOSE_ENOUGH:
            self._fail("I1", name, f"it was heard {len(heard)} times only, or not long enough: no habit")
        counted = self._vouchers.get("emqx", 0.0) if self._census else 0.0
        if self._census and self.now - counted <= MAX_QUIET and self._census[0] != self._census[1]:
            self._fail("I1", name, f"a broker is heard whose count does not match: {self._census}")

    def _check_clocks(self) -> None:
        """I2, for all devices on all sources."""
        process = self.process
        if process is None:
            return
        now = process.circumstances("")
        for witness in now.witnesses:
            if witness.clock_seconds > self.vouched[witness.name] + CLOSE_ENOUGH:
                text = f"its clock shows {witness.clock_seconds:.1f} s, vouched were {self.vouched[witness.name]:.1f} s"
                self._fail("I2", witness.name, text)
            for device in process.ledger.devices.values():
                absence = 0.0 if device.name in now.present else absence_seconds(device, witness, now)
                true = self.now - self.signs.get(device.name, self.now)
                if absence > true + CLOSE_ENOUGH:
                    self._fail(
                        "I2", device.name, f"absent {absence:.2f} s on {witness.name}, last sign {true:.2f} s ago"
                    )

    def check_pure(self) -> None:
        """I7: judged twice, and from copies, every device gets the same verdict, and nothing is changed by it."""
        process = self.process
        if process is None:
            return
        now = process.circumstances("i7")
        for device in process.ledger.devices.values():
            before, same = copy.deepcopy(device), copy.deepcopy(now)
            verdict = assess(device, now)
            if device != before or now != same:
                self._fail("I7", device.name, "judging it changed it, or the circumstances")
            if verdict != assess(device, now) or verdict != assess(before, same):
                self._fail("I7", device.name, "judged twice, differently")


def replayed(history: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]], **options: Any) -> Site:
    """Run a history of operations on a new site, without those that set wall clocks."""
    site = Site(**options)
    for operation, arguments, named in history:
        if operation != "set_wall_clocks":
            getattr(site, operation)(*arguments, **named)
    return site


__all__ = ["ASSOCIATED", "KINDS", "SETTINGS", "STRANGERS", "Clock", "Move", "Site", "Violation", "replayed"]
