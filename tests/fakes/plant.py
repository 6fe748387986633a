"""A small plant whose hours count: driven by histories, with the truth about its devices beside it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from client_device_pruner.greengrass.ipc import Message
from client_device_pruner.greengrass.link import IN
from client_device_pruner.presence.client_list import Asked, ClientList
from fakes.broker import BRIDGE_ID, FakeBroker, Faults
from fakes.component import Component, Event, World

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
THRESHOLD, GRACE, CHECK = 2 * HOUR, 20 * MINUTE, 15 * MINUTE
SPEAKS = 25 * MINUTE
"""A device that is connected publishes so often, where it publishes at all."""
UNWRITTEN = 6 * MINUTE
"""What a process that dies loses: it writes sightings each five minutes, once a probe has come back."""
NAMES = tuple(f"pump-{number}" for number in range(5))
SILENT = NAMES[3:]
"""They never publish, where the broker tells of connections."""
SHORT: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": "2h",
    "gracePeriod": "20m",
    "checkInterval": "15m",
    "neverSeenThreshold": "4h",
    "logLevel": "ERROR",
    "limits": {"maxPercentPerDay": 100, "approvalPercent": 100},
    "massLoss": {"minDevices": 1000},
}
KINDS = ("clientList", "events", "messages")
Step = tuple[float, str, int]

ON_DEVICES = ("connect", "disconnect", "vanish", "die", "unheard")
FAULTS = ("restart_broker", "listener", "bridge", "noise", "overflow", "deaf", "stranger", "leave")
LIFE = ("kill", "restart", "reboot", "wall", "disk", "cloud", "lists", "deploy")


class Plant:
    """A site driven by a history, with the truth about its devices beside it."""

    def __init__(self, work_dir: Path, kind: str, *, wall_follows: bool) -> None:
        self.world = World()
        document = {**SHORT, "presence": {"probeInterval": "1m", "connectionEvents": kind != "messages"}}
        self.component = Component(self.world, work_dir, document, client_list=kind == "clientList", burst_seconds=5.0)
        self.broker = FakeBroker(self.component, emqx=kind != "messages")
        self.kind = kind
        # True times of the sightings that reached the component and did not die with it.
        self.sightings: dict[str, list[float]] = {name: [0.0] for name in NAMES}
        self._announced: dict[str, int] = {}
        self._stored: dict[str, int] = {}
        self._spoke_at = dict.fromkeys(NAMES, 0.0)
        self._quiet_until = dict.fromkeys(NAMES, 0.0)
        self._known_at = dict.fromkeys(NAMES, 0.0)
        self._unknown_at: dict[str, float] = {}
        self.alive = set(NAMES)
        self.problems: list[str] = []  # what contradicts the invariants I1, I2 and I4, each in a sentence
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
        self.component.cloud.point = lambda _label: self._compare_carried()
        self.component.cloud.associate(*NAMES)
        self.component.slow_cloud(1.0)
        self.component.start()
        self.world.run(self._random.uniform(1, 60))
        for name in NAMES:
            self._arrive(name)
            if kind == "messages" or name not in SILENT:
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
        self._arrive(self._name)

    def disconnect(self) -> None:
        """A device leaves."""
        self._wanted.discard(self._name)
        self.broker.disconnect(self._name)

    def vanish(self) -> None:
        """A device is out of reach for a while, and comes back if it lives."""
        name = self._name
        self.broker.vanish(name)
        self._wanted.discard(name)
        self.world.after(self._random.uniform(1, 0.8 * THRESHOLD), lambda: self._arrive(name))

    def die(self) -> None:
        """A device is gone for good."""
        self.alive.discard(self._name)
        self._wanted.discard(self._name)
        self.broker.vanish(self._name)

    def unheard(self) -> None:
        """A device leaves, and comes back while the bridge is away."""
        name = self._name
        self.disconnect()
        self.world.after(10 * MINUTE, lambda: self.broker.lose_bridge(5 * MINUTE))
        self.world.after(12 * MINUTE, lambda: self._arrive(name))

    def restart_broker(self) -> None:
        """The broker restarts, and some devices may be back before the bridge."""
        self._announced.clear()
        self.broker.restart(self._number * 7.0)

    def listener(self) -> None:
        """The broker's listener restarts."""
        self.broker.restart_listener()

    def bridge(self) -> None:
        """The bridge loses its connection, for a moment or for hours."""
        self.broker.lose_bridge(self._number * (1.0 if self._number % 2 else HOUR))

    def noise(self) -> None:
        """Messages are lost now and then, events come twice and late; or all arrives as it should."""
        noise = Faults(lose=0.002 * self._number, double=0.2, late=0.3, late_seconds=self._number)
        self.broker.faults = noise if self._number > 2 else Faults()

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
        self._announced.clear()
        self.world.run(self._number * 200.0)
        self.world.reboot()
        self.broker.come_up()
        self.component.start()

    def wall(self) -> None:
        """The wall clock jumps."""
        if self._wall_follows:
            self.world.clock.wall_ahead += (self._number - 4) * 40 * DAY

    def disk(self) -> None:
        """Nothing can be written, or there is room again."""
        was_full, self.component.disk_full = self.component.disk_full, self._number < 5
        if not self.component.disk_full:
            self.world.after(UNWRITTEN, self._written)
        elif not was_full:
            self._stored = dict(self._announced)
            self._full_since = min(self._full_since, self.world.now)

    def cloud(self) -> None:
        """Calls fail, some after they were carried out."""
        operation = ("list", "disassociate", "associate", "start")[self._number % 4]
        kind = ("server", "throttled", "unreachable")[self._number % 3]
        self.component.cloud.fail(operation, kind, carried_out=self._number > 5, silent=self._number == 7)

    def lists(self) -> None:
        """The client list cannot be had, or is there again."""
        self.component.fail_lists("401 BAD_TOKEN" if self._number < 5 else "")

    def deploy(self) -> None:
        """A deployment changes the grace period."""
        self.component.configure({"gracePeriod": f"{10 + self._number}m"})

    def settle(self) -> None:
        """All is well, and what a hole has left ends: the broker restarts, and what lives connects once more, heard."""
        # A device that is to come back unheard has done so.
        self.run(20 * MINUTE)
        self.component.cloud.faults.clear()
        self.broker.faults = Faults()
        self._number = 9
        self.disk()
        self.lists()
        self.restart_broker()
        for name in NAMES:
            self.world.after(10 * MINUTE, lambda name=name: self._arrive(name))  # type: ignore[misc]

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
            self._note_quiet(name)
            self._spoke_at[name] = self.world.now
            self.broker.publish(f"clients/{name}/telemetry")
        self.world.after(self._random.uniform(0.8, 1.0) * SPEAKS, lambda: self._speak(name))

    def _note(self, item: object) -> None:
        match item:
            case Message(topic, payload):
                levels = topic.removeprefix(IN).split("/")
                if levels[0] == "clients":
                    self._heard(levels[1])
                elif levels[-1] in ("connected", "disconnected"):
                    self._told(levels[-1], json.loads(payload))
            case ClientList(names):
                if BRIDGE_ID in names:
                    self._heard(*names)
            case Asked(connected=names):
                self._heard(*names)

    def _told(self, kind: str, event: dict[str, Any]) -> None:
        name, session = event["clientid"], event["connected_at"]
        self._heard(name)
        if kind == "connected":
            self._announced[name] = session
        elif self._announced.get(name) == session:
            del self._announced[name]

    def _heard(self, *names: str) -> None:
        for name in self.sightings.keys() & set(names):
            self.sightings[name].append(self.world.now)

    def _forget_unwritten(self) -> None:
        """What the component heard since it wrote last dies with it."""
        written = min(self.world.now, self._full_since) - UNWRITTEN
        for name, times in self.sightings.items():
            self.sightings[name] = [at for at in times if at < written] or [0.0]
        if self.component.disk_full:
            self._announced = dict(self._stored)

    def _written(self) -> None:
        if not self.component.disk_full:
            self._full_since = float("inf")

    def _silent(self, name: str) -> float:
        """How long ago the last sighting of a device reached the component."""
        return self.world.now - self.sightings.get(name, [0.0])[-1]

    def _compare(self) -> None:
        self._note_unknown()
        events = self.component.events
        for event in events[self._judged :]:
            self._compare_silence(event)
        self._judged = len(events)

    def _compare_carried(self) -> None:
        cloud = self.component.cloud
        for carried in cloud.carried[self._carried :]:
            silent = self._silent(carried.name)
            if silent < THRESHOLD:
                self.problems.append(f"I1: {carried.name} was disassociated {silent:.0f} s after a sighting")
            connected = carried.name in self.broker.sessions and carried.name in self.alive
            if connected and not self._cannot_be_known(carried.name):
                self.problems.append(f"I4: {carried.name} was disassociated while it was connected")
        self._carried = len(cloud.carried)

    def _note_unknown(self) -> None:
        """Note whose connections are known by what was announced; a tool's may be forgotten at each hole."""
        for name in {*self.broker.sessions, *self._announced}:
            session = self.broker.sessions.get(name)
            if session == self._announced.get(name) and name in NAMES:
                self._known_at[name] = self.world.now
            else:
                self._unknown_at[name] = self.world.now

    def _note_quiet(self, name: str) -> None:
        if self.world.now - self._spoke_at[name] >= THRESHOLD:
            self._quiet_until[name] = self.world.now

    def _cannot_be_known(self, name: str) -> bool:
        """Whether this connection is one that cannot be told from none (DESIGN, what it cannot know).

        With messages alone: it was away for the threshold, came back, and nothing that it published was heard yet.
        With events: other connections came or ended unheard since this one was known.
        """
        if self.kind == "messages":
            self._note_quiet(name)
            return self._quiet_until[name] > self.sightings[name][-1]
        others = [at for other, at in self._unknown_at.items() if other != name]
        return self.kind == "events" and max(others, default=0.0) > self._known_at[name]

    def _compare_silence(self, event: Event) -> None:
        if event.kind in ("marked", "disassociated") and event.name:
            if not event.data["evidence"]:
                self.problems.append(f"I1: {event.name} was {event.kind} without evidence")
            heard = max((at for at in self.sightings[event.name] if at < event.at), default=0.0)
            silent, true = event.data["silentSeconds"], event.at - heard
            if event.kind == "marked" and silent > true + MINUTE:
                self.problems.append(f"I2: {event.name} was told to be silent for {silent} s, and was for {true} s")

    def compare_rows(self) -> None:
        """Hold the silences that are committed against the truth; the component has been stopped."""
        observed = self.component.kept("presence")["observedSeconds"]
        for row in self.component.rows(
            "SELECT name, since FROM devices WHERE since IS NOT NULL AND unlisted_at IS NULL"
        ):
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
def plant(kind: str, *, wall_follows: bool = True) -> Iterator[Plant]:
    """A plant in a directory of its own."""
    work_dir = Path(tempfile.mkdtemp())
    made = Plant(work_dir, kind, wall_follows=wall_follows)
    try:
        yield made
    finally:
        made.component.stop()
        shutil.rmtree(work_dir)
