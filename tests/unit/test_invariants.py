"""DESIGN's invariants hold over histories at random, driven through the component's public edges."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_device_pruner.config.settings import parse
from client_device_pruner.decisions.guards import Budget, lost_together, plan
from client_device_pruner.decisions.policy import judge
from client_device_pruner.greengrass.ipc import Message
from client_device_pruner.greengrass.link import IN
from client_device_pruner.presence.client_list import Asked, ClientList
from client_device_pruner.presence.devices import Device
from client_device_pruner.presence.facts import Facts
from fakes.broker import BRIDGE_ID, FakeBroker, Faults
from fakes.component import Component, Event, Killed, World

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
THRESHOLD, GRACE, CHECK = 2 * HOUR, 20 * MINUTE, 15 * MINUTE
SPEAKS = 25 * MINUTE
"""A device that is connected publishes so often, where it publishes at all."""
UNWRITTEN = 6 * MINUTE
"""What a process that dies loses: it writes sightings each five minutes, once a probe has come back."""
NAMES = tuple(f"pump-{number}" for number in range(5))
NO_GUARDS = {
    "limits": {"maxPercentPerDay": 100, "approvalPercent": 100},
    "massLoss": {"minDevices": 1000},
}
SHORT: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": "2h",
    "gracePeriod": "20m",
    "checkInterval": "15m",
    "neverSeenThreshold": "4h",
    "presence": {"probeInterval": "1m"},
    "logLevel": "ERROR",
    **NO_GUARDS,
}
KINDS = ("clientList", "events", "messages")
Step = tuple[float, str, int]

ON_DEVICES = ("connect", "disconnect", "vanish", "die")
FAULTS = (
    "brokerRestart",
    "listener",
    "bridge",
    "bridgeAway",
    "noise",
    "quiet",
    "overflow",
    "deaf",
    "stranger",
    "leave",
)
LIFE = ("kill", "restart", "reboot", "wall", "diskFull", "diskFine", "cloud", "listFails", "listAnswers", "deploy")


def histories(*, most: int = 30) -> st.SearchStrategy[list[Step]]:
    """Steps, each with the minutes that pass before it and a number that says which device or how much."""
    operation = st.one_of(st.sampled_from(ON_DEVICES), st.sampled_from(FAULTS), st.sampled_from(LIFE))
    minutes = st.sampled_from([0.2, 1.0, 4.0, 15.0, 40.0, 90.0, 200.0])
    return st.lists(st.tuples(minutes, operation, st.integers(0, 9)), min_size=3, max_size=most)


class Plant:
    """A site driven by a history, with the truth about its devices beside it.

    Attributes:
        sightings: device → true times of its sightings that reached the component and did not die with it.
        alive: the devices that have not died.
        problems: what contradicts the invariants I1, I2 and I4, each in a sentence.
    """

    def __init__(self, work_dir: Path, kind: str, configuration: dict[str, Any], *, wall_follows: bool = True) -> None:
        self.world = World()
        presence = {**configuration.get("presence", {}), "connectionEvents": kind != "messages"}
        document = {**configuration, "presence": presence}
        self.component = Component(self.world, work_dir, document, client_list=kind == "clientList", burst_seconds=5.0)
        self.broker = FakeBroker(self.component, emqx=kind != "messages")
        self.kind = kind
        self.sightings: dict[str, list[float]] = {name: [0.0] for name in NAMES}
        self.alive = set(NAMES)
        self.problems: list[str] = []
        self._wall_follows = wall_follows
        self._wanted: set[str] = set()
        self._random = Random(1)
        self._strangers = 0
        self._number = 0
        self._judged = 0
        self._carried = 0
        self._full_since = float("inf")
        self.component.on_taken = self._note
        self.broker.on_lost = lambda name: self.world.after(self._random.uniform(1, 90), lambda: self._come_back(name))
        self.component.cloud.associate(*NAMES)
        self.component.slow_cloud(1.0)
        self.component.start()
        self.world.run(self._random.uniform(1, 60))
        for name in NAMES:
            self._arrive(name)
            self.world.after(self._random.uniform(1, SPEAKS), lambda name=name: self._speak(name))  # type: ignore[misc]

    def play(self, history: list[Step]) -> None:
        """Let a history happen."""
        for minutes, operation, number in history:
            self.run(minutes * MINUTE)
            self._number = number
            getattr(self, operation)()
        self.run(MINUTE)

    def run(self, seconds: float) -> None:
        """Let time pass, and hold what comes out against the truth, minute by minute."""
        until = self.world.now + seconds
        while self.world.now < until:
            self.world.run(min(MINUTE / 2, until - self.world.now))
            self._compare()

    # What a history is made of

    @property
    def _name(self) -> str:
        return NAMES[self._number % len(NAMES)]

    def connect(self) -> None:
        """A living device connects, or connects anew."""
        if self._name in self.alive:
            self._arrive(self._name)

    def disconnect(self) -> None:
        """A device leaves."""
        self._wanted.discard(self._name)
        self.broker.disconnect(self._name)

    def vanish(self) -> None:
        """A device is out of reach for a while, and comes back."""
        name = self._name
        self.broker.vanish(name)
        self._wanted.discard(name)
        if name in self.alive:
            self.world.after(self._random.uniform(1, 0.8 * THRESHOLD), lambda: self._arrive(name))

    def die(self) -> None:
        """A device is gone for good."""
        self.alive.discard(self._name)
        self._wanted.discard(self._name)
        self.broker.vanish(self._name)

    def brokerRestart(self) -> None:  # noqa: N802 - a step's name
        """The broker restarts, and some devices may be back before the bridge."""
        self.broker.restart(self._number * 7.0)

    def listener(self) -> None:
        """The broker's listener restarts."""
        self.broker.restart_listener()

    def bridge(self) -> None:
        """The bridge loses its connection for a moment."""
        self.broker.lose_bridge(self._number)

    def bridgeAway(self) -> None:  # noqa: N802 - a step's name
        """The bridge is away for long."""
        self.broker.lose_bridge(self._number * HOUR)

    def noise(self) -> None:
        """Messages are lost now and then, events come twice and late."""
        self.broker.faults = Faults(lose=0.002 * self._number, double=0.2, late=0.3, late_seconds=self._number)

    def quiet(self) -> None:
        """All arrives as it should."""
        self.broker.faults = Faults()

    def overflow(self) -> None:
        """More messages come at once than the queue holds."""
        for _message in range(21_000 if self._number == 0 else 0):
            self.component.hear(f"{IN}clients/someone/else", b"1")

    def deaf(self) -> None:
        """The subscription dies without a word."""
        if self.component.ipc:
            self.component.ipc.drop()

    def stranger(self) -> None:
        """A tool connects, with or without a word."""
        self._strangers += 1
        self.broker.connect(f"tool-{self._strangers}", announced=self._number % 2 == 0)

    def leave(self) -> None:
        """All tools are closed."""
        for name in [name for name in self.broker.sessions if name.startswith("tool-")]:
            self.broker.disconnect(name, announced=self._number % 3 != 0)

    def kill(self) -> None:
        """The process dies, and is started anew."""
        self._forget_unwritten()
        self.component.kill()
        self.world.after(1.0 + self._number * 60, self.component.start)

    def restart(self) -> None:
        """The process ends, and is started anew."""
        self.component.stop()
        self.world.after(1.0, self.component.start)

    def reboot(self) -> None:
        """The core loses its power."""
        self._forget_unwritten()
        self.component.kill()
        self.broker.go_down()
        self.world.run(self._number * 200.0)
        self.world.reboot()
        self.broker.come_up()
        self.component.start()

    def wall(self) -> None:
        """The wall clock jumps."""
        if self._wall_follows:
            self.world.clock.wall_ahead += (self._number - 4) * 40 * DAY

    def diskFull(self) -> None:  # noqa: N802 - a step's name
        """Nothing can be written."""
        self.component.disk_full = True
        self._full_since = min(self._full_since, self.world.now)

    def diskFine(self) -> None:  # noqa: N802 - a step's name
        """There is room again."""
        self.component.disk_full = False
        self.world.after(UNWRITTEN, self._written)

    def cloud(self) -> None:
        """Calls fail, some after they were carried out."""
        operation = ("list", "disassociate", "associate", "start")[self._number % 4]
        kind = ("server", "throttled", "unreachable")[self._number % 3]
        self.component.cloud.fail(operation, kind, carried_out=self._number > 5, silent=self._number == 7)

    def listFails(self) -> None:  # noqa: N802 - a step's name
        """The client list cannot be had."""
        self.component.fail_lists("401 BAD_TOKEN")

    def listAnswers(self) -> None:  # noqa: N802 - a step's name
        """The client list is there again."""
        self.component.fail_lists("")

    def deploy(self) -> None:
        """A deployment changes the grace period."""
        self.component.configure({"gracePeriod": f"{10 + self._number}m"})

    # Beside it

    def _arrive(self, name: str) -> None:
        if name in self.alive:
            self._wanted.add(name)
            self._come_back(name)

    def _come_back(self, name: str) -> None:
        if name in self._wanted and not self.broker.connect(name):
            self.world.after(self._random.uniform(1, 30), lambda: self._come_back(name))

    def _speak(self, name: str) -> None:
        if name in self.broker.sessions and name in self.alive:
            self.broker.publish(f"clients/{name}/telemetry")
        self.world.after(self._random.uniform(0.8, 1.0) * SPEAKS, lambda: self._speak(name))

    def _note(self, item: object) -> None:
        match item:
            case Message(topic, payload):
                levels = topic.removeprefix(IN).split("/")
                if levels[0] == "clients":
                    self._heard(levels[1])
                elif levels[-1] in ("connected", "disconnected"):
                    self._heard(json.loads(payload)["clientid"])
            case ClientList(names):
                if BRIDGE_ID in names:
                    self._heard(*names)
            case Asked(connected=names):
                self._heard(*names)

    def _heard(self, *names: str) -> None:
        for name in self.sightings.keys() & set(names):
            self.sightings[name].append(self.world.now)

    def _forget_unwritten(self) -> None:
        """What the component heard since it wrote last dies with it."""
        written = min(self.world.now, self._full_since) - UNWRITTEN
        for name, times in self.sightings.items():
            self.sightings[name] = [at for at in times if at < written] or [0.0]

    def _written(self) -> None:
        if not self.component.disk_full:
            self._full_since = float("inf")

    def _silent(self, name: str) -> float:
        """How long ago the last sighting of a device reached the component."""
        return self.world.now - self.sightings[name][-1]

    def _compare(self) -> None:
        events, cloud = self.component.events, self.component.cloud
        for event in events[self._judged :]:
            self._compare_silence(event)
        self._judged = len(events)
        for carried in cloud.carried[self._carried :]:
            silent = self._silent(carried.name)
            if silent < THRESHOLD:
                self.problems.append(f"I1: {carried.name} was disassociated {silent:.0f} s after a sighting")
            if carried.name in self.broker.sessions and carried.name in self.alive:
                self.problems.append(f"I4: {carried.name} was disassociated while it was connected")
        self._carried = len(cloud.carried)

    def _compare_silence(self, event: Event) -> None:
        if event.kind in ("marked", "disassociated") and event.name:
            if not event.data["evidence"]:
                self.problems.append(f"I1: {event.name} was {event.kind} without evidence")
            silent, true = event.data["silentSeconds"], self._silent(event.name)
            if event.kind == "marked" and silent > true + MINUTE:
                self.problems.append(f"I2: {event.name} was told to be silent for {silent} s, and was for {true} s")

    def compare_rows(self) -> None:
        """Hold the silences that are committed against the truth; the component has been stopped."""
        observed = self.component.kept("presence")["observedSeconds"]
        for row in self.component.rows("SELECT name, since FROM devices WHERE since IS NOT NULL AND associated"):
            true = self._silent(row["name"])
            if observed - row["since"] > true + 1:
                self.problems.append(f"I2: {row['name']} is kept as silent for {observed - row['since']} s, not {true}")

    def decisions(self) -> list[tuple[Any, ...]]:
        """What was decided, without what names a run."""
        own = {"cycleId", "plan", "disassociatedAt", "reason"}
        return [
            (round(event.at, 3), event.kind, event.name, {k: v for k, v in event.data.items() if k not in own})
            for event in self.component.events
        ]


@contextmanager
def plant(kind: str, configuration: dict[str, Any] = SHORT, **more: Any) -> Iterator[Plant]:
    """A plant in a directory of its own."""
    work_dir = Path(tempfile.mkdtemp())
    made = Plant(work_dir, kind, configuration, **more)
    try:
        yield made
    finally:
        made.component.stop()
        shutil.rmtree(work_dir)


def hold_on(history: list[Step], kind: str) -> None:
    """I1, I2 and I4 over one history."""
    with plant(kind) as site:
        site.play(history)
        site.quiet()
        site.run(THRESHOLD + GRACE + 3 * CHECK)
        site.component.stop()
        site.diskFine()
        site.compare_rows()
        assert not site.problems, site.problems


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(history=histories())
def test_nobody_goes_that_is_there_or_was_just_heard(history: list[Step], kind: str) -> None:
    """I1, I2, I4: whatever is lost, doubled, late or restarted, no device goes that lives; no silence is made up."""
    hold_on(history, kind)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(history=histories(most=60))
def test_nobody_goes_that_is_there_or_was_just_heard_at_length(history: list[Step], kind: str) -> None:
    """I1, I2, I4, as above, over many and longer histories."""
    hold_on(history, kind)


# --- I3: the wall clock decides nothing ---------------------------------------------------------------------------


def hold_without_wall(history: list[Step], kind: str) -> None:
    """I3 over one history: with the jumps of the wall clock, and without them."""
    decisions = []
    for follows in (True, False):
        with plant(kind, wall_follows=follows) as site:
            site.play(history)
            site.quiet()
            site.run(THRESHOLD + GRACE + 3 * CHECK)
            decisions.append(site.decisions())
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(history=histories())
def test_the_wall_clock_decides_nothing(history: list[Step], kind: str) -> None:
    """I3: the same history with other wall clocks gives the same decisions at the same times."""
    hold_without_wall([*history, (30.0, "wall", 9), (10.0, "die", 1), (30.0, "wall", 0)], kind)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(history=histories(most=60))
def test_the_wall_clock_decides_nothing_at_length(history: list[Step], kind: str) -> None:
    """I3, as above, over many and longer histories."""
    hold_without_wall(history, kind)


# --- I5: budgets --------------------------------------------------------------------------------------------------

DEAD = tuple(f"dead-{number}" for number in range(12))
PERCENT, PER_CYCLE = 25, 2
Death = tuple[float, str, int]


def deaths_of_the_process() -> st.SearchStrategy[list[Death]]:
    """Hours that pass, how the process then ends, and at which point of its calls, if there."""
    ends = st.sampled_from(["kill", "atCall", "stop", "lost", "none"])
    return st.lists(st.tuples(st.sampled_from([0.3, 1.1, 3.0, 9.0]), ends, st.integers(1, 9)), min_size=4, max_size=16)


def hold_budgets(deaths: list[Death]) -> None:
    """I5 over one sequence of deaths: twelve devices are gone at once, and may go by two a cycle, three a day."""
    configuration = {
        **SHORT,
        "neverSeenThreshold": "1h",
        "gracePeriod": "0s",
        "limits": {"maxPerCycle": PER_CYCLE, "maxPercentPerDay": PERCENT, "approvalPercent": 100},
        "presence": {"probeInterval": "5m"},
    }
    with plant("clientList", configuration) as site:
        component, cloud = site.component, site.component.cloud
        cloud.disassociate(*NAMES)
        cloud.associate(*DEAD)
        fuse = [0]

        def point(_label: str) -> None:
            fuse[0] -= 1
            if fuse[0] == 0:
                raise Killed

        cloud.point = point
        running = 0.0
        for hours, end, number in deaths:
            site.world.run(hours * HOUR)
            running += hours * HOUR
            if end == "kill":
                component.kill()
            elif end == "atCall":
                fuse[0] = number
                site.world.run(HOUR)
                running += HOUR
                fuse[0] = 0
            elif end == "stop":
                component.stop()
            elif end == "lost":
                cloud.fail("disassociate", "server", carried_out=True)
            component.start()
        by_cycle = component.rows("SELECT count(*) FROM disassociations GROUP BY cycle_id")
        assert all(row[0] <= PER_CYCLE for row in by_cycle)
        # A window of 24 h of running time begins with each whole day of it.
        most = math.ceil(len(DEAD) * PERCENT / 100) * (1 + math.floor(running / DAY))
        assert len(cloud.carried) <= most, f"{len(cloud.carried)} in {running / HOUR:.1f} h"


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(deaths=deaths_of_the_process())
def test_budgets_hold_across_deaths(deaths: list[Death]) -> None:
    """I5: however the process ends, no cycle and no day takes more than its budget."""
    hold_budgets(deaths)


@pytest.mark.long
@settings(max_examples=90, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(deaths=deaths_of_the_process())
def test_budgets_hold_across_deaths_at_length(deaths: list[Death]) -> None:
    """I5, as above, over many sequences."""
    hold_budgets(deaths)


# --- I7: pure decisions -------------------------------------------------------------------------------------------

seconds = st.one_of(st.none(), st.floats(0, 400 * DAY))
devices = st.builds(
    Device,
    name=st.text("abc", min_size=1, max_size=3),
    seen_at=seconds,
    present_until=seconds,
    listed_at=seconds,
    marked_at=seconds,
    longest_silence=st.floats(0, 100 * DAY),
    longest_before=st.floats(0, 100 * DAY),
    silence_window=st.integers(0, 3),
    messages=st.integers(0, 9),
    last_message=st.floats(0, 400 * DAY),
    session=st.booleans(),
    then=st.one_of(st.none(), st.integers(-1, 5)),
    associated=st.just(True),
)
facts = st.builds(
    Facts,
    observed_seconds=st.floats(0, 400 * DAY),
    sighted=st.frozensets(st.text("abc", min_size=1, max_size=3)),
    events_in_use=st.booleans(),
    count_in_use=st.booleans(),
    unnamed=st.one_of(st.none(), st.integers(-2, 6)),
    count_problem=st.sampled_from(["", "no count"]),
    list_in_use=st.booleans(),
    listed=st.one_of(st.none(), st.frozensets(st.text("abc", min_size=1, max_size=3))),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(devices, max_size=12, unique_by=lambda device: device.name), facts, st.randoms(use_true_random=False))
def test_decisions_are_pure(found: list[Device], known: Facts, random: Random) -> None:
    """I7: judged twice, in whatever order, all gets the same verdict, and nothing is changed by it."""
    configuration = parse({"massLoss": {"minDevices": 2, "minPercent": 1}})
    before = [replace(device) for device in found]

    def decisions(among: list[Device]) -> tuple[object, object, object]:
        verdicts = {device.name: judge(device, configuration, known) for device in among}
        together = lost_together(among, configuration, known)
        due = [verdict for verdict in verdicts.values() if verdict.gone]
        planned = plan(
            due,
            associated=len(among),
            settings=configuration,
            budget=Budget(len(among), 0, DAY),
            approved=(),
            plan_id="",
            lost_together=together,
        )
        return verdicts, together, planned

    first = decisions(found)
    shuffled = random.sample(found, len(found))
    assert decisions(shuffled) == first
    assert found == before
    for device in found:
        verdict = judge(device, configuration, known)
        assert not verdict.gone or (verdict.evidence and not known.is_present(device))


# --- I8: the dead go ----------------------------------------------------------------------------------------------


def hold_that_the_dead_go(history: list[Step], kind: str) -> None:
    """I8 over one history, after which all is well: who is dead then goes in time."""
    with plant(kind) as site:
        # All were heard often enough before, so that there is evidence wherever there can be.
        site.run(8 * SPEAKS)
        site.play([step for step in history if step[1] not in ("stranger", "leave", "noise", "overflow")])
        site.quiet()
        site.diskFine()
        site.listAnswers()
        site.component.cloud.faults.clear()
        # A restart of the broker ends what a hole has left: the count is no evidence before.
        site.broker.restart(2.0)
        site.run(6 * HOUR)
        component = site.component
        before = component.kept("presence")["observedSeconds"]
        patience = 4 * THRESHOLD
        site.run(patience + GRACE + 2.2 * CHECK + 4 * HOUR)
        assert component.kept("presence")["observedSeconds"] - before > patience + GRACE + 2.2 * CHECK
        left = {name for name in NAMES if name in component.cloud.associations} - site.alive
        verdicts = {row["name"]: row["verdict"] for row in component.rows("SELECT name, verdict FROM verdicts")}
        assert not left, [(name, verdicts.get(name)) for name in left]
        for event in component.happened("disassociated"):
            within = event.data["patienceSeconds"] + 3 * CHECK + 4 * HOUR
            assert event.data["silentSeconds"] <= within or event.at < site.world.now - patience, event


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(history=histories(most=20))
def test_the_dead_go(history: list[Step], kind: str) -> None:
    """I8: whatever happened before, once all is well who is gone is disassociated in time."""
    hold_that_the_dead_go([(1.0, "die", 2), *history], kind)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(history=histories(most=40))
def test_the_dead_go_at_length(history: list[Step], kind: str) -> None:
    """I8, as above, over many and longer histories."""
    hold_that_the_dead_go(history, kind)
