"""The truth about a site, and what the component's decisions are worth by it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from client_device_pruner.coverage import cover
from client_device_pruner.policy import Circumstances, testify
from local_core.simulation.devices import DAY, Device
from local_core.simulation.edges import Cloud

if TYPE_CHECKING:
    from local_core.simulation.world import World

MAX_QUIET_SECONDS = 180.0
FALSE, HONEST, UNHEARD, GONE, NEVER_CAME = "false", "honest", "unheard", "gone", "neverCame"
EXCEPTION = "exception"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be: when (seconds since the beginning), what, of whom."""

    at: float
    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        """For people."""
        return f"day {self.at / DAY:.3f}: {self.kind} {self.name}: {self.text}"


@dataclass(slots=True)
class Dead:
    """A device that is gone, and what became of its association."""

    name: str
    died: float
    provable: float | None = None
    pruned: float | None = None
    end: str = ""
    ideal_seconds: float = 0.0
    bound_seconds: float = 0.0
    held: bool = False


@dataclass(slots=True)
class Figures:
    """What one site came to; the sums of many sites are made by `campaign`."""

    device_years: float = 0.0
    pruned: Counter[str] = field(default_factory=Counter)
    dead: list[Dead] = field(default_factory=list)
    unproven: Counter[str] = field(default_factory=Counter)
    census: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    baselines: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    deceived: list[Finding] = field(default_factory=list)
    commits: int = 0
    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class Judge:
    """Keeps what is true beside what the component believes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.figures = Figures()
        self.dead: dict[str, Dead] = {}
        self._missed: dict[tuple[str, str, int], tuple[int, int]] = {}
        self._shown: set[int] = set()
        self._shown_up_to = 0
        self._found: set[tuple[str, str]] = set()
        self._last_gauge: float | None = None
        self._last_uptime: int | None = None
        self._gap_at_gauge = 0
        self._ideal_since: tuple[float, int] | None = None
        self._floors: list[float] = []
        self._differing = 0

    def find(self, kind: str, name: str, text: str) -> None:
        """Keep something that must not be."""
        if kind != FALSE and (kind, name) in self._found:
            # It lasts: once is enough.
            return
        self._found.add((kind, name))
        finding = Finding(self._world.now, kind, name, text)
        self._world.say(f"FINDING {finding}")
        self.figures.findings.append(finding)

    # What the component cannot have heard

    def missed(self, name: str, kind: str, number: int) -> None:
        """An event of a session did not reach the component: in which gap, and after how many counts that differed."""
        self._missed[name, kind, number] = self._world.gap, self._world.invariants.differing

    def shown(self) -> None:
        """The gap that has just begun shows by itself."""
        self._shown.add(self._world.gap)

    def gauged(self, uptime: int) -> None:
        """A count and an uptime arrive: a gap before them shows by itself if they came late, or the uptime fell."""
        world = self._world
        late = self._last_gauge is None or world.now - self._last_gauge > MAX_QUIET_SECONDS
        fell = self._last_uptime is None or uptime < self._last_uptime
        if (late or fell) and world.gap > self._gap_at_gauge:
            self._shown.update(range(self._gap_at_gauge + 1, world.gap + 1))
        self._last_gauge, self._last_uptime, self._gap_at_gauge = world.now, uptime, world.gap

    def _deceived(self, name: str) -> bool:
        """Whether this is the one exception of the census that DESIGN names, taken strictly.

        A device that is believed connected was lost, and this one gained; both in one gap that nothing shows: between
        the two moments the component took no count that differed from what it knew.
        """
        world = self._world
        if world.component is None or name not in world.sessions:
            return False
        gained = self._missed.get((name, "connected", world.sessions[name]))
        if gained is None:
            return False
        lost = [
            self._missed.get((believed, "disconnected", number))  # type: ignore[arg-type]
            for emqx in world.component.watch.sources.emqx.values()
            for node in emqx._nodes.values()  # noqa: SLF001 - what it believes is nobody else's business
            for believed in node.sessions
            for number in node.held(believed)
            if believed not in world.sessions
        ]
        return any(moment is not None and moment[1] == gained[1] and moment[0] not in self._shown for moment in lost)

    # Verdicts

    def truth(self, name: str, threshold_seconds: float) -> str:
        """What pruning that device now would be."""
        device = self._world.devices[name]
        if not device.alive:
            return GONE
        if not device.came:
            return NEVER_CAME
        if device.away_since is not None and self._world.now - device.away_since >= threshold_seconds:
            return UNHEARD if name in self._world.sessions else HONEST
        return FALSE

    def pruned(self, name: str) -> None:
        """The cloud disassociates a device because the component asked for it."""
        world = self._world
        component = world.component
        assert component is not None  # noqa: S101 - who else would have asked
        threshold = component.watch.settings.threshold_seconds(name)
        device = world.devices[name]
        if not component.watch.ledger.devices[name].seen and not device.came:
            threshold = component.watch.settings.never_seen_seconds or math.inf
        verdict = self.truth(name, threshold)
        if verdict == FALSE and self._deceived(name):
            verdict = EXCEPTION
        self.figures.pruned[verdict] += 1
        world.say(f"cloud: {name} ({device.style}) is disassociated: {verdict}")
        if verdict == EXCEPTION:
            self.figures.deceived.append(Finding(world.now, verdict, name, f"{device.style}, it was connected"))
        if verdict == FALSE:
            evidence = self._evidence(name)
            where = "connected" if name in world.sessions else "not connected now"
            self.find("false", name, f"a device that lives ({device.style}, {where}) was disassociated: {evidence}")
        if verdict == GONE and (dead := self.dead.get(name)) is not None:
            dead.pruned, dead.end = world.now, "pruned"
            if dead.provable is None:
                dead.provable = world.now
        elif device.alive and device.keeps_coming:
            world.after(device.rng.uniform(1, 5) * DAY, lambda: world.owner_associates(device))

    def _evidence(self, name: str) -> str:
        rows = self._world.disk.rows(
            f"SELECT evidence FROM disassociations WHERE name = '{name}' ORDER BY id DESC LIMIT 1"  # noqa: S608
        )
        return str(rows[0][0]) if rows else "none"

    # Those who are gone

    def died(self, device: Device) -> None:
        """A device is gone for good."""
        if device.name in self._world.cloud.associations:
            self.dead[device.name] = dead = Dead(device.name, self._world.now)
            self.figures.dead.append(dead)

    def resent(self, name: str) -> None:
        """A stale message of the device is told anew: for whoever hears it, it lives."""
        if name in self.dead:
            self.dead[name].ideal_seconds = 0.0

    def removed_by_another(self, device: Device) -> None:
        """Somebody else takes a dead device off the list."""
        if self._world.cloud.associations.pop(device.name, None) is not None and device.name in self.dead:
            self._world.say(f"somebody takes {device.name} off the list")
            self.dead[device.name].end = "removed by another"

    def cycle(self) -> None:
        """A cycle ended: who of the dead is provable by now, and who should be gone?"""
        world = self._world
        component = world.component
        if component is None:
            return
        self._note_ideal()
        self._note_census()
        waiting = [dead for dead in self.dead.values() if not dead.end]
        if not waiting:
            return
        settings = component.watch.settings
        holding = bool(component.watch.guards.standing) or settings.dry_run
        now: Circumstances | None = None
        for dead in waiting:
            device = component.watch.ledger.devices.get(dead.name)
            if device is None:
                continue
            # Nothing proves more than the time since its last sign of life (I2).
            silent = world.now - world.received.last_sign(dead.name).now
            if dead.provable is None and silent >= settings.threshold_seconds(dead.name):
                now = now or component.watch.circumstances()
                if any(testify(device, witness, now).proves for witness in now.witnesses):
                    dead.provable = world.now
                    world.say(f"{dead.name} is provably gone")
            planned = any(component.watch.guards.holds(guard) for guard in PLANNED)
            dead.held = holding or planned or settings.is_protected(dead.name) or world.cloud.refuses == dead.name
            threshold = self._raised(dead.name, settings.offline_threshold_seconds)
            bound = threshold + settings.notice_seconds + 2.2 * settings.check_interval_seconds
            # Settings that are taken back leave it what they took.
            dead.bound_seconds = max(dead.bound_seconds, bound)
            if device.seen and not dead.held and dead.ideal_seconds > 1.5 * dead.bound_seconds + 3 * DAY:
                self.find("late", dead.name, f"gone for {dead.ideal_seconds / DAY:.1f} days in which all was heard")
                dead.end = "late"

    def _raised(self, name: str, threshold_seconds: float) -> float:
        """At most so long must the absence of one be who spoke: twice the longest silence, four thresholds at most."""
        words = self._world.received.words.get(name)
        silence = words.longest_silence if words else 0.0
        return min(max(threshold_seconds, 2 * silence), 4 * threshold_seconds)

    def _note_census(self) -> None:
        """Does the census prove anything now, and if not, what does it wait for?"""
        world = self._world
        component = world.component
        assert component is not None  # noqa: S101 - a cycle of it has just ended
        for emqx in component.watch.sources.emqx.values() if world.kind != "messages" else ():
            known = emqx.sessions()
            if not world.heard:
                says = "not heard"
            elif world.sessions.keys() - known:
                says = "unheard and silent"
            elif known - world.sessions.keys():
                says = "an end was lost"
            elif emqx.doubted:
                says = "in doubt"
            else:
                says = "proves" if emqx.clock.vouching(world.clock.monotonic()) else "begins anew"
            self.figures.census[says] += 1

    def _note_ideal(self) -> None:
        """Add up the time in which nothing kept the component from seeing that somebody is gone."""
        world = self._world
        component = world.component
        assert component is not None  # noqa: S101 - a cycle of it has just ended
        since, self._ideal_since = self._ideal_since, None
        sources = component.watch.sources
        floors = [emqx.clock.floor_seconds for emqx in sources.emqx.values()]
        if floors != self._floors:
            # A mismatch went away unexplained: all absences begin anew.
            if self._floors and world.invariants.differing == self._differing:
                self.find("restarted", "", "all absences began anew, and no count differed")
            for dead in self.dead.values():
                dead.ideal_seconds = 0.0
        self._floors, self._differing = floors, world.invariants.differing
        if world.kind == "messages" or not world.heard:
            return
        # Who spoke or was heard is known; whoever came unheard and is silent keeps the census still, or its doubt.
        if sources.sessions() != world.sessions.keys() or any(emqx.doubted for emqx in sources.emqx.values()):
            return
        self._ideal_since = (world.now, world.gap)
        if since is not None and since[1] == world.gap:
            for dead in self.dead.values():
                # What is held back is not late.
                if not dead.end and not dead.held:
                    dead.ideal_seconds += min(world.now - since[0], world.now - dead.died)

    # The end

    def finish(self) -> None:
        """Sum up."""
        world, figures = self._world, self.figures
        figures.device_years = world.device_seconds / (365.25 * DAY)
        figures.calls = world.cloud.calls
        figures.commits, figures.runs = world.disk.commits, world.runs
        figures.baselines = dict(world.baselines.tallies)
        self._check_audit(world.cloud)
        component = world.component
        for dead in self.dead.values():
            if dead.end:
                continue
            dead.end = "waits"
            if dead.provable is None:
                figures.unproven[self._why(dead, component)] += 1

    def _why(self, dead: Dead, component: Any) -> str:
        if component is None:
            return "the component was off at the end"
        device = component.watch.ledger.devices.get(dead.name)
        if device is None:
            return "not listed yet at the end"
        now = component.watch.circumstances()
        settings = component.watch.settings
        if self._world.now - dead.died < settings.threshold_seconds(dead.name):
            return "dead for less than its threshold at the end"
        if any(testify(device, witness, now).applies for witness in now.witnesses):
            return "its threshold is reached, but its source does not vouch at present"
        lacking = cover([device], now).reasons
        if lacking:
            return lacking[0].partition(": ")[2]
        return "its source did not vouch for as long as its threshold yet"

    def _check_audit(self, cloud: Cloud) -> None:
        """Each disassociation that was carried out has its row, and no other has one that says done."""
        rows = self._world.disk.rows("SELECT name, associated_at, outcome FROM disassociations")
        done = Counter((name, stamp) for name, stamp, outcome in rows if outcome == "done")
        known = Counter((name, stamp) for name, stamp, outcome in rows if outcome in {"done", "open"})
        carried = Counter((name, stamp) for name, stamp, _at in cloud.carried)
        # Rows are kept for 90 days of running time.
        kept = Counter((name, stamp) for name, stamp, at in cloud.carried if self._world.now - at < 89 * DAY)
        if any(number > 1 for number in carried.values()):
            self.find("audit", "", f"disassociated twice: {[key for key, number in carried.items() if number > 1]}")
        if missing := kept - known:
            self.find("audit", "", f"carried out without a row that says so: {sorted(missing)[:3]}")
        if untrue := done - carried:
            self.removed_meanwhile(untrue)

    def removed_meanwhile(self, untrue: Counter[Any]) -> None:
        """Done says "no longer listed": that holds too where somebody else was quicker."""
        gone = [key for key in untrue if key[0] in self._world.cloud.associations]
        if gone:
            self.find("audit", "", f"said to be done, but still listed: {gone[:3]}")


PLANNED = ("approval", "outage", "maxPerCycle", "maxPercentPerDay")
