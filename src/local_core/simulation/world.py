"""A site in virtual time: its devices, broker and bridge around the real component, on one agenda.

**What is folded.** In the open, the component takes a turn every minute, and every count and canary reaches it. In a
quiet stretch (no fault within the last quarter of an hour, no cycle running, nothing scheduled) only the first and
the last count and canary are told, and what those between would have left behind is put in their place; there are no
turns. Devices that speak every second are told by the minute, and in a quiet stretch their habit is counted on in one
step. `tests/test_simulation.py` holds that the decisions are the same without folding.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

from client_device_pruner.cloud_worker import Reply
from client_device_pruner.component import Component, Connected, Edges, Item, NotConnected
from client_device_pruner.emqx import EmqxSource
from client_device_pruner.inbox import Inbox
from client_device_pruner.ipc import ConfigurationChanged, Message
from client_device_pruner.roll_call import NoAnswer, RollCall, RollCaller
from client_device_pruner.source_clock import SourceClock
from local_core.simulation.baselines import Baselines
from local_core.simulation.devices import DAY, PERIODS, VISITS, Device, dice, make
from local_core.simulation.edges import (
    CANARY,
    EPOCH,
    IN,
    Clock,
    Cloud,
    Death,
    Disk,
    Fuse,
    Greengrass,
    Handle,
    Nucleus,
    Worker,
    bridge_document,
    state_on,
)
from local_core.simulation.invariants import Invariants
from local_core.simulation.judge import Judge

NODE = "emqx@127.0.0.1"
MINUTE = 60.0
SETTLING_SECONDS = 900.0
"""For so long after whatever is out of the ordinary nothing is folded."""
KINDS = ("both", "both", "events", "rollCall", "messages", "messages")
"""EMQX with activity, EMQX alone, EMQX with activity and its API, and a broker without events with activity."""
SETTLED_COUNTS = 3
"""After so many counts that are the same, one more says nothing: what a count shows is judged when the next comes."""
CORE = "simulated-core"
BRIDGE = "mqtt-bridge-1a2b"


@dataclass(frozen=True, slots=True)
class Site:
    """What a seed stands for.

    Attributes:
        fold: whether quiet stretches are folded.
        faults: whether anything ever goes wrong.
        lifetime_years: how long devices live, on average.
        offline_threshold: another one than the default, as in the configuration; longer than a week, since some
            devices come once a week.
        described: whether the component describes its state for people, as it does outside of the simulation.
        deaths_at_points: whether the component may die between two steps of a cycle.
    """

    seed: int
    years: float = 1.0
    devices: int | None = None
    kind: str | None = None
    fold: bool = True
    faults: bool = True
    offline_threshold: str = "30d"
    lifetime_years: float = 2.0
    described: bool = False
    deaths_at_points: bool = True


@dataclass
class World:
    """One site; `run` lets its time pass."""

    site: Site
    told: Callable[[float, str], None] | None = None

    clock: Clock = field(default_factory=Clock)
    fuse: Fuse = field(default_factory=Fuse)
    disk: Disk = field(default_factory=Disk)
    component: Component | None = None
    powered: bool = True
    broker_up: bool = True
    bridge_up: bool = True
    api_silent: bool = False
    dropping: bool = False
    broker_wall_error: float = 0.0
    gap: int = 0
    decisions: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the site; nothing runs yet."""
        seed = self.site.seed
        self.rng = dice(seed, "site")
        self._wire = dice(seed, "wire")
        self._jitter = dice(seed, "jitter")
        self.kind = self.site.kind or self.rng.choice(KINDS)
        self.size = self.site.devices or round(8 * 2 ** self.rng.uniform(0, 4))
        self.end = self.site.years * 365.25 * DAY
        self.stress = self.rng.choice((0.1, 0.3, 1.0, 2.0))
        self.retains = self.rng.random() < 0.2
        self.wire_loss = self.rng.choice((0.0, 0.0, 1e-4, 1e-3))
        document: dict[str, Any] = {"reports": {"shadowName": ""}, "offlineThreshold": self.site.offline_threshold}
        if self.kind == "events":
            document["sources"] = {"messages": {"enabled": False}}
        if self.kind == "rollCall":
            document["rollCall"] = {"url": "http://127.0.0.1:18083/api/v5", "keyFile": "/key"}
        if self.rng.random() < 0.4:
            document["neverSeenThreshold"] = "45d"
        if self.rng.random() < 0.3:
            document["restoreOnReturn"] = True
        if self.rng.random() < 0.3:
            document["limits"] = {"approvalPercent": 100, "maxPercentPerDay": 100}
        self._batches = dice(seed, "batches")
        self.brittle = self.site.faults and self._batches.random() < 0.25
        self.nucleus = Nucleus(document, bridge_document(self.kind), self.clock)
        self.cloud = Cloud(self)
        self.devices: dict[str, Device] = {}
        self.sessions: dict[str, int] = {}
        self.talkers: dict[str, Device] = {}
        self.baselines = Baselines(self)
        self.judge = Judge(self)
        self.invariants = Invariants(self)
        self.received = self.invariants.received
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._fine_until = SETTLING_SECONDS
        self._handle: Handle | None = None
        self._greengrass: Greengrass | None = None
        self.broker_booted = 0.0
        self._gauged_at = 0.0
        self._untold_minutes = 0
        self._same: tuple[EmqxSource, int, float] | None = None
        self._same_counts = 0
        self._numbers = itertools.count(1)
        self.runs = 0
        self.device_seconds = 0.0

    # Time

    @property
    def now(self) -> float:
        """The true time, in seconds since the simulation began."""
        return self.clock.now

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something later; times are eighths of seconds, so that sums of them are exact."""
        at = round((self.now + max(0.125, seconds)) * 8) / 8
        heapq.heappush(self._agenda, (at, next(self._order), act))

    def say(self, text: str) -> None:
        """Tell the timeline."""
        if self.told:
            self.told(self.now, text)

    def disturb(self, seconds: float = SETTLING_SECONDS) -> None:
        """Something is out of the ordinary: nothing is folded for a while."""
        self._fine_until = max(self._fine_until, self.now + seconds)

    def run(self) -> Judge:
        """Let the time of the site pass, and judge."""
        from local_core.simulation import faults

        with state_on(self._open_state):
            for _ in range(self.size):
                self.add_device()
            if self.site.faults:
                faults.plan(self)
            self.after(DAY, self._daily)
            self.start_component()
            while self.now < self.end:
                until = min(self.end, self._agenda[0][0] if self._agenda else self.end)
                self._pass_until(until)
                while self._agenda and self._agenda[0][0] <= self.now:
                    heapq.heappop(self._agenda)[2]()
            self.judge.finish()
            if self.component:
                self.stop_component()
        return self.judge

    def _pass_until(self, until: float) -> None:
        clock = self.clock
        while clock.now < until:
            minute = (clock.now // MINUTE + 1) * MINUTE
            if until < minute:
                clock.now = until
                return
            if self.site.fold and clock.now >= self._fine_until and not self._busy():
                quiet_until = min(until, self._next_cycle(), self._next_roll_call())
                minutes = int(-(-quiet_until // MINUTE)) - 1 - int(clock.now // MINUTE)
                if minutes > 0:
                    self._fold(minute, minutes)
                    continue
            clock.now = minute
            self._minute()

    def _busy(self) -> bool:
        component = self.component
        if component is None:
            return False
        pruning = component.pruning
        if pruning._cycle or pruning._jobs or component.watch.ledger.connection is None:  # noqa: SLF001
            return True
        sources = component.watch.sources
        if not self.heard or "messages" not in sources._activity:  # noqa: SLF001
            return False
        # Each word of whoever is in doubt counts, which a quiet stretch tells only once.
        doubted = [emqx._doubt.names for emqx in sources.emqx.values()]  # noqa: SLF001
        return any(not self.talkers.keys().isdisjoint(names) for names in doubted)

    def _next_cycle(self) -> float:
        """The minute in which the component will begin its next cycle."""
        if self.component is None:
            return float("inf")
        due = self.component.pruning._next_cycle + self.clock.booted  # noqa: SLF001
        return -(-due // MINUTE) * MINUTE if due != float("inf") else due

    def _next_roll_call(self) -> float:
        """The minute of the next roll call that has to be made; those that name the same as before are folded."""
        component = self.component
        if self.kind != "rollCall" or component is None or self._roll_call_is_steady(component):
            return float("inf")
        due = component._next_roll_call + self.clock.booted  # noqa: SLF001
        return -(-due // MINUTE) * MINUTE

    def _roll_call_is_steady(self, component: Component) -> bool:
        """Whether another roll call would say what the last one said, and be believed."""
        sources = component.watch.sources
        roll_call = sources.roll_call
        return (
            roll_call is not None
            and self.broker_up
            and self.bridge_up
            and not self.api_silent
            and roll_call.clock.vouching(self.clock.monotonic())
            and roll_call.names == {*self.sessions, BRIDGE}
            and sources.sessions() <= roll_call.names
            and roll_call.names.isdisjoint(component.watch.ledger.watched)
        )

    def _fold_roll_calls(self, component: Component, last: float) -> None:
        """Make the roll calls up to that minute, each with the turn of its minute; all they leave is a voucher."""
        roll_call = component.watch.sources.roll_call
        configured = component.watch.settings.roll_call
        assert roll_call is not None  # noqa: S101 - it is steady
        assert configured is not None  # noqa: S101 - as above
        booted = self.clock.booted
        while (minute := -(-(component._next_roll_call + booted) // MINUTE) * MINUTE) <= last:  # noqa: SLF001
            at = minute - booted
            roll_call.clock.vouch(at)
            self.received.voucher("rollCall", minute)
            component._next_roll_call = at + configured.interval_seconds * (0.9 + 0.1 * self._jitter.random())  # noqa: SLF001

    def _minute(self) -> None:
        self.clock.now -= MINUTE
        self._tell_talk()
        self.clock.now += MINUTE
        if self.heard:
            component = self.component
            assert component is not None  # noqa: S101 - `heard` says so
            if self.kind != "messages":
                self._gauges(component.inbox)
            if self.kind != "events":
                for name in list(self.talkers):
                    component.inbox.put(Message(f"{IN}clients/{name}/telemetry", b"{}", self.clock.monotonic()))
                    self._spoke(name, self.now)
        self._talkers_spoke()
        self.turn()

    def _gauges(self, inbox: Inbox[Item]) -> None:
        at = self.clock.monotonic()
        uptime = round((self.now - self.broker_booted) * 1000)
        count = len(self.sessions) + self.bridge_up
        inbox.put(Message(f"{IN}$SYS/brokers/{NODE}/uptime", b"%d" % uptime, at))
        self.received.uptime(self.broker_booted)
        if self.broker_booted > self._gauged_at:
            # What the count is compared with is known only after the uptime.
            self.turn()
        self._gauged_at = self.now
        self._same = None
        self.invariants.counted(count)
        inbox.put(Message(f"{IN}$SYS/brokers/{NODE}/stats/live_connections/count", b"%d" % count, at))
        self.judge.gauged(uptime)

    def _talkers_spoke(self) -> None:
        for device in self.talkers.values():
            device.last_there = self.now

    def _fold(self, first: float, minutes: int) -> None:
        """Let so many whole minutes pass, in which nothing happens but what happens every minute."""
        last = first + (minutes - 1) * MINUTE
        component = self.component
        if self.kind == "rollCall" and component is not None and self._next_roll_call() == float("inf"):
            self._fold_roll_calls(component, last)
        if self.heard and component is not None:
            sources = component.watch.sources
            if self.kind != "messages":
                for emqx in sources.emqx.values():
                    self._fold_counts(emqx, first, last)
            if self.kind != "events":
                activity = sources._activity.get("messages")  # noqa: SLF001 - absent while it is switched off
                if activity is not None:
                    self._fold_canaries(activity.clock, first, last)
                    self._untold_minutes += minutes
        self.clock.now = last
        self._talkers_spoke()

    def _fold_counts(self, emqx: EmqxSource, first: float, last: float) -> None:
        """Let the broker's counts come: after some that were the same, the others leave nothing but their time."""
        count = len(self.sessions) + self.bridge_up
        payload = b"%d" % count
        minute = first
        while minute <= last:
            # Sessions open and close with events.
            same = (emqx, count, emqx._last_event)  # noqa: SLF001 - here and below: what a count leaves behind
            if self._same != same:
                self._same, self._same_counts = same, 0
            # While the count is lower, each one may empty the set.
            if self._same_counts >= SETTLED_COUNTS and emqx._lower_since is None:  # noqa: SLF001
                _skip_counts(emqx, last - minute + MINUTE)
                self.clock.now = last
                self.received.counted_steadily(last)
                break
            self.clock.now = minute
            self.invariants.counted(count)
            emqx.count(NODE, payload, self.clock.monotonic())
            self._same_counts += 1
            minute += MINUTE
        uptime = round((last - self.broker_booted) * 1000)
        emqx.uptime(NODE, b"%d" % uptime, self.clock.monotonic())
        self.judge.gauged(uptime)

    def _fold_canaries(self, clock: SourceClock, first: float, last: float) -> None:
        clock.vouch(first - self.clock.booted)
        self.received.voucher("messages", first)
        if last > first:
            _skip_vouchers(clock, last - first - MINUTE)
            clock.vouch(last - self.clock.booted)
            self.received.voucher("messages", last, steadily=True)

    def _tell_talk(self) -> None:
        """Let those who speak every second have spoken since the stretch began, up to its last whole minute."""
        minutes, self._untold_minutes = self._untold_minutes, 0
        component = self.component
        if not minutes or component is None:
            return
        sources, ledger = component.watch.sources, component.watch.ledger
        at = self.now // MINUTE * MINUTE - self.clock.booted
        record = sources._records.get("messages")  # noqa: SLF001
        for name in list(self.talkers):
            device = ledger.devices.get(name)
            habits = device.habits if device else None
            habit = habits.get(record.source_id) if record and habits else None
            if record and habits and habit and minutes > 1:
                habits[record.source_id] = habit._replace(
                    heard=habit.heard + minutes - 1,
                    longest_silence_seconds=max(habit.longest_silence_seconds, MINUTE),
                    last_running_seconds=ledger.running_seconds(at) - MINUTE,
                )
            sources.take(f"{IN}clients/{name}/telemetry", b"{}", at)
            self._spoke(name, at + self.clock.booted)

    @property
    def heard(self) -> bool:
        """Whether what the broker says reaches the component."""
        return self.component is not None and self.broker_up and self.bridge_up and not self.nucleus.deaf

    # The component

    def _open_state(self) -> Handle:
        if self._handle is not None:
            self._handle.dead = True
        self._handle = Handle(self.disk, self.fuse, self.invariants.committed)
        return self._handle

    def start_component(self) -> None:
        """Start a run."""
        if self.component is not None or not self.powered:
            return
        self.runs += 1
        self.disturb()
        self.baselines.restarted()
        try:
            edges = Edges(self._connect, self._worker, self._roll_caller)
            made = Component if self.site.described else Quiet
            component = made(Path("simulated"), CORE, self.clock, edges, self._jitter.random)
            self.component = component
            self._connect(component.inbox)
        except Death:
            self.bury()
            return
        self.turn()
        self.invariants.check()

    def stop_component(self) -> None:
        """End the run as SIGTERM does."""
        component = self.component
        if component is not None:
            with contextlib.suppress(Death):
                component.close()
            self.bury()

    def bury(self, back_seconds: float | None = None) -> None:
        """End the run as SIGKILL does."""
        component, self.component = self.component, None
        self._untold_minutes = 0
        self.gap += 1
        self.judge.shown()
        self.received.died()
        self.disturb()
        if self._handle is not None:
            self._handle.dead = True
        if self.disk.real.in_transaction:
            self.disk.real.execute("ROLLBACK")
        if self._greengrass is not None:
            self._greengrass.open = False
        if component is not None:
            component.pruning._ending = True  # noqa: SLF001 - its generators must not speak from the grave
            for job in component.pruning._jobs.values():  # noqa: SLF001
                # What the dead still try is of no interest.
                with contextlib.suppress(Death, Exception):
                    job.end()
        if back_seconds is not None:
            self.after(back_seconds, self.start_component)

    def turn(self) -> None:
        """Let the component take what has arrived, until nothing is left."""
        component = self.component
        if component is None:
            return
        watch = component.watch
        next_commit = watch._next_commit  # noqa: SLF001
        quiet = self.site.fold and self.now >= self._fine_until and not self._busy() and self.now < self._next_cycle()
        if quiet:
            # Only what a death would lose depends on when it is written, and nothing is folded before one.
            watch._next_commit = float("inf")  # noqa: SLF001
        try:
            for _ in range(300):
                component.turn(0)
                if not component.inbox._items:  # noqa: SLF001
                    break
            else:
                self.judge.find("crash", "", "the component finds no rest")
        except Death:
            self.say("the component dies at a point that matters")
            self.bury(20.0)
            return
        except Exception as error:  # noqa: BLE001 - it is a finding
            self.judge.find("crash", "", f"the component raised {error!r}")
            self.bury(20.0)
            return
        if quiet:
            watch._next_commit = min(next_commit, watch._next_commit)  # noqa: SLF001
        if component._stopping:  # noqa: SLF001
            self.say("the component gives itself up")
            self.stop_component()
            self.after(10.0, self.start_component)

    def configure(self, **changes: Any) -> None:
        """Deploy changed settings."""
        self.nucleus.document = {**self.nucleus.document, **changes}
        self.say(f"configuration: {changes}")
        self.disturb()
        if self.component is not None:
            self.component.inbox.put_always(ConfigurationChanged(None))
            self.turn()

    def _connect(self, inbox: Inbox[Item]) -> None:
        if self._greengrass is not None:
            self._greengrass.open = False
        if self.nucleus.down:
            inbox.put_always(NotConnected("simulated"))
        else:
            self._greengrass = Greengrass(self, self.nucleus, inbox)
            inbox.put_always(Connected(self._greengrass))

    def _roll_caller(self, deliver: Callable[[RollCall | NoAnswer], None]) -> RollCaller:
        return cast(RollCaller, Api(self, deliver))

    def _worker(self, deliver: Callable[[Reply], None]) -> Worker:
        return Worker(self.cloud, self.fuse, deliver)

    # What the edges ask of the site

    def carry(self, topic: str, payload: bytes) -> bool:
        """The canary goes round through bridge and broker."""
        del payload
        carried = topic == CANARY and self.heard and self.kind != "events"
        if carried:
            self.received.voucher("messages", self.now)
        return carried

    def told_event(self, kind: str, name: str | None, data: dict[str, Any]) -> None:
        """Keep a decision."""
        if kind in {"marked", "unmarked", "disassociated", "restored", "returned", "held", "released", "failed"}:
            self.say(f"component: {kind} {name or ''} {data}")
        if kind in {"marked", "unmarked", "disassociated", "restored"}:
            self.decisions.append((self.now, kind, name, data.get("offlineSeconds"), data.get("reason")))
        if kind == "marked" and name is not None:
            self.invariants.marked(name)
        elif kind == "disassociated" and name is not None:
            self.invariants.said_done(name)
        elif kind == "cycle":
            self.invariants.check()
            self.invariants.check_pure()
            self.judge.cycle()

    def asked_to_disassociate(self, names: tuple[str, ...]) -> None:
        """The component's batch arrives in the cloud."""
        self.invariants.batch(names)
        if self.brittle and self.site.deaths_at_points and self._batches.random() < 0.3:
            self.fuse.left = self._batches.randint(1, 4)

    def answered(self, operation: str) -> None:
        """The cloud answered a call of the component."""
        self.invariants.answered(operation)

    def associated(self, name: str) -> None:
        """Somebody put a device on the list."""
        self.received.associated(name, self.now)

    def echoed(self) -> None:
        """The component's own message came back to it."""
        self.invariants.echoes += 1

    def disassociated(self, name: str) -> None:
        """A device is taken off the list."""
        self.decisions.append((self.now, "gone", name, None, None))
        self.judge.pruned(name)

    # Devices

    def add_device(self, *, late: float = 0.0) -> Device:
        """Associate a new device, which comes within some days, or never."""
        number = next(self._numbers)
        name = f"d{number}"
        device = self.devices[name] = make(name, dice(self.site.seed, name))
        device.associated_at = self.now
        self.cloud.associate(name)
        if device.rng.random() > 0.04:
            self.after(late + device.rng.uniform(0, 120), lambda: self._comes(device))
            self.after(
                late + device.rng.expovariate(1 / (self.site.lifetime_years * 365 * DAY)) + 3600.0,
                lambda: self.dies(device),
            )
        return device

    def _comes(self, device: Device) -> None:
        device.came = True
        rng = device.rng
        if device.visits:
            self._visit_later(device, rng.uniform(0, VISITS[device.style]))
            return
        device.wants = True
        self.connect(device)
        if device.style in PERIODS and self.kind != "events":
            self._speak_later(device)
        self._reconnect_later(device)
        if device.style == "seasonal":
            self._leave_later(device)

    def _visit_later(self, device: Device, seconds: float | None = None) -> None:
        usual = VISITS[device.style] * device.rng.uniform(0.95, 1.05)
        self.after(usual if seconds is None else seconds, lambda: self._visit(device))

    def _visit(self, device: Device) -> None:
        if not device.alive:
            return
        if not self.broker_up:
            self._visit_later(device, device.rng.uniform(600, 7200))
            return
        self.connect(device)
        self.after(1.0, lambda: self.speak(device))
        self.after(device.rng.uniform(5, 300), lambda: self.disconnect(device))
        self._visit_later(device)

    def _speak_later(self, device: Device) -> None:
        self.after(PERIODS[device.style] * device.rng.uniform(0.9, 1.1), lambda: self._speak_and_again(device))

    def _speak_and_again(self, device: Device) -> None:
        if device.alive:
            self.speak(device)
            self._speak_later(device)

    def speak(self, device: Device) -> None:
        """A device says a word, if it is connected."""
        if device.name not in self.sessions or not device.alive:
            return
        device.last_there, device.away_since = self.now, None
        self.retell(device.name)

    def retell(self, name: str) -> None:
        """A message of that name travels, be it new or a retained one."""
        if self.kind == "events" or not self.heard or self.component is None:
            return
        self.component.watch.sources.take(f"{IN}clients/{name}/telemetry", b"{}", self.clock.monotonic())
        self._spoke(name, self.now)
        if self.component.watch.ledger.returned:
            self.turn()

    def _spoke(self, name: str, now: float) -> None:
        """A message arrives; while its source is switched off, nobody takes it."""
        if self.component is not None and "messages" in self.component.watch.sources._activity:  # noqa: SLF001
            self.received.spoke(name, now)

    def _reconnect_later(self, device: Device) -> None:
        days = {"flapping": 0.25, "silent": 40.0}.get(device.style, 15.0)
        self.after(device.rng.expovariate(1 / (days * DAY)) + 60.0, lambda: self._reconnect(device))

    def _reconnect(self, device: Device) -> None:
        if not device.alive:
            return
        if device.name in self.sessions:
            if device.rng.random() < 0.3:
                self.connect(device)
            else:
                self.disconnect(device)
                self.after(device.rng.uniform(0.5, 120), lambda: self.connect(device))
        self._reconnect_later(device)

    def _leave_later(self, device: Device) -> None:
        self.after(device.rng.expovariate(1 / (90 * DAY)) + DAY, lambda: self._leave(device))

    def _leave(self, device: Device) -> None:
        if not device.alive:
            return
        device.wants = False
        if device.away_since is None:
            device.away_since = self.now
        self.say(f"{device.name} leaves for a while")
        self.disconnect(device)
        self.after(device.rng.uniform(1, 80) * DAY, lambda: self._return(device))

    def _return(self, device: Device) -> None:
        if not device.alive:
            return
        self.say(f"{device.name} returns")
        device.wants = True
        self.connect(device)
        self._leave_later(device)
        if device.name not in self.cloud.associations:
            self.after(device.rng.uniform(0.1, 3) * DAY, lambda: self.owner_associates(device))

    def owner_associates(self, device: Device) -> None:
        """Somebody puts a device on the list, again perhaps."""
        if device.alive:
            self.cloud.associate(device.name)

    def dies(self, device: Device) -> None:
        """The device dies, is moved or replaced; another one may come for it."""
        if not device.alive:
            return
        rng = device.rng
        how = rng.choice(("dies", "dies", "is moved", "is replaced"))
        self.say(f"{device.name} ({device.style}) {how}")
        connected = device.name in self.sessions
        if connected and how == "dies":
            self._falls_silent(device)
            self.after(150.0, lambda: self.disconnect(device, "keepalive_timeout"))
        elif connected:
            self.disconnect(device)
        device.alive, device.wants, device.died = False, False, self.now
        self.judge.died(device)
        if how == "is replaced" or rng.random() < 0.4:
            self.after(rng.uniform(0.1, 5) * DAY, lambda: self._comes_for_another(rng))
        if rng.random() < 0.05:
            self.after(rng.uniform(1, 60) * DAY, lambda: self.judge.removed_by_another(device))

    def _comes_for_another(self, rng: Random) -> None:
        self.add_device(late=rng.choice((0.0, DAY)))

    # The broker and the way to the component

    def connect(self, device: Device) -> None:
        """A device connects, if it lives and can; if it is connected, that is a takeover."""
        if not device.alive or not self.broker_up or not (device.wants or device.visits):
            return
        name, old = device.name, self.sessions.get(device.name)
        number = max(device.last_number + 1, round((EPOCH + self.now + self.broker_wall_error) * 1000))
        device.last_number = device.number = number
        self.sessions[name] = number
        device.last_there = self.now
        if self.kind != "messages":
            device.away_since = None
        if device.style == "everySecond" and name not in self.talkers:
            self._tell_talk()
            self.talkers[name] = device
        self._announce(device, "connected", number)
        if old is not None:
            self._announce(device, "disconnected", old, "takenover")

    def disconnect(self, device: Device, reason: str = "tcp_closed") -> None:
        """A session ends."""
        number = self.sessions.pop(device.name, None)
        self._falls_silent(device)
        if number is not None:
            if device.alive:
                device.last_there = self.now
            self._announce(device, "disconnected", number, reason)

    def _falls_silent(self, device: Device) -> None:
        if device.name in self.talkers:
            self._tell_talk()
            del self.talkers[device.name]

    def _announce(self, device: Device, kind: str, number: int, reason: str = "") -> None:
        if self.kind == "messages":
            return
        event = {"clientid": device.name, "connected_at": number, "ts": round(EPOCH + self.now)}
        payload = json.dumps({**event, "reason": reason} if reason else event).encode()
        topic = f"{IN}$SYS/brokers/{NODE}/clients/{device.name}/{kind}"
        luck = self._wire.random() if self.site.faults else 1.0
        if luck < self.wire_loss:
            self.gap += 1
            self.disturb()
            self.judge.figures.faults["event lost"] += 1
            self.say(f"lost on the wire: {device.name} {kind}")
            self.judge.missed(device.name, kind, number)
            return
        if luck < 0.02:
            # Late, doubled, or both: others overtake it, and the next count may as well.
            self.disturb(300.0)
            self.judge.figures.faults["event late" if luck > 0.01 else "event doubled"] += 1
            self.after(self._wire.uniform(0.2, 4.0), lambda: self._arrives(device.name, kind, number, topic, payload))
            if luck > 0.01:
                return
        self._arrives(device.name, kind, number, topic, payload)

    def _arrives(self, name: str, kind: str, number: int, topic: str, payload: bytes) -> None:
        if not self.heard or self.component is None or self.dropping:
            self.judge.missed(name, kind, number)
            return
        (self.received.connected if kind == "connected" else self.received.disconnected)(name, number, self.now)
        self.baselines.heard(name, kind)
        self.component.inbox.put(Message(topic, payload, self.clock.monotonic()))
        self.turn()

    def broker_down(self) -> None:
        """The broker dies without a word: all sessions are gone."""
        self.gap += 1
        self.disturb()
        self.broker_up = False
        for name, number in self.sessions.items():
            self.judge.missed(name, "disconnected", number)
            self.devices[name].last_there = self.now
        self._tell_talk()
        self.sessions.clear()
        self.talkers.clear()

    def broker_starts(self) -> None:
        """The broker starts, and whoever wants to be there comes back."""
        self.disturb()
        self.broker_up = True
        self.broker_booted = self.now
        for device in list(self.devices.values()):
            if device.alive and device.wants:
                wait = device.rng.uniform(1, 60) if device.rng.random() < 0.9 else device.rng.uniform(60, 900)
                self.after(wait, lambda device=device: self.reconnects(device))  # type: ignore[misc]

    def reconnects(self, device: Device) -> None:
        """A device that means to be there comes back, if it is not there already."""
        if device.wants and device.name not in self.sessions:
            self.connect(device)

    def _daily(self) -> None:
        self.device_seconds += DAY * len(self.cloud.associations)
        self.baselines.daily()
        self.after(DAY, self._daily)


def _skip_counts(emqx: EmqxSource, seconds: float) -> None:
    """Let a broker's counts have come every minute meanwhile, each like the last one."""
    if emqx.clock.last_voucher_seconds == emqx._last_census:  # noqa: SLF001 - what a count leaves behind, no more
        _skip_vouchers(emqx.clock, seconds)
    emqx._last_census += seconds  # noqa: SLF001 - as above
    if emqx._last_heard is not None:  # noqa: SLF001
        emqx._last_heard += seconds  # noqa: SLF001
    for node in emqx._nodes.values():  # noqa: SLF001
        node.heard += seconds
        node.counted += seconds
        if node.figures._count is not None:  # noqa: SLF001
            taken, clients = node.figures._count  # noqa: SLF001
            node.figures._count = taken + seconds, clients  # noqa: SLF001


def _skip_vouchers(clock: SourceClock, seconds: float) -> None:
    """Let vouchers have come every minute meanwhile."""
    if clock._last is not None:  # noqa: SLF001 - as above
        clock._last += seconds  # noqa: SLF001
        clock._latest += seconds  # noqa: SLF001
        clock.credit_seconds += seconds


class Quiet(Component):
    """The component without the description of its state for people, which decides nothing and takes most time."""

    def _describe(self, _at: float, *, running: bool = True) -> None:  # noqa: ARG002 - as of the real one
        """Nothing is described; a first coverage that waits to be said would be a reason to write in every turn."""
        self.watch._coverage_said = (0, 0)  # noqa: SLF001


class Api:
    """EMQX's HTTP API: it answers at once, or not at all."""

    busy = False

    def __init__(self, world: World, deliver: Callable[[RollCall | NoAnswer], None]) -> None:
        self._world = world
        self._deliver = deliver

    def call(self, url: str, key_file: str) -> None:
        """Name all who are connected."""
        del url, key_file
        world = self._world
        if not world.broker_up or world.api_silent:
            self._deliver(NoAnswer("simulated"))
            return
        names = {*world.sessions, BRIDGE} if world.bridge_up else {*world.sessions}
        at = world.clock.monotonic()
        self._deliver(RollCall(frozenset(names), at, at))
        world.received.voucher("rollCall", world.now)
        world.received.present(names, world.now)
