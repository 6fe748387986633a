"""All that the one thread knows: settings, presence, guards, and the store behind them."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from client_device_pruner.config.schema import SettingsRefused
from client_device_pruner.config.settings import DEFAULTS, Settings, parse
from client_device_pruner.decisions import explain
from client_device_pruner.decisions.guards import Guards, database_hold, instance_hold
from client_device_pruner.decisions.policy import Verdict, judge
from client_device_pruner.presence.clock import Clock, Shares
from client_device_pruner.presence.devices import AT_ONCE, NOTHING_TOLD, STATE, VERDICT, Device, Devices
from client_device_pruner.presence.facts import Facts
from client_device_pruner.presence.presence import Presence
from client_device_pruner.reports.events import LOGGER, cloud_event, log_event
from client_device_pruner.store.database import NewerSchema, Store, get_meta
from client_device_pruner.store.devices import load_devices
from client_device_pruner.store.journal import Journal

COMMIT_SECONDS = 300.0
"""How often all devices are judged, and all is written: clocks and sightings only then, since flash wears out."""
URGENT_SECONDS = 1.0  # how soon it is written after a session, a mark, an association or a guard changed
REOPEN_SECONDS = 60.0  # how often a state file that cannot be opened is tried again
COVERAGE_SECONDS = 600.0  # when coverage is reported after a start, and how often at most after that (CONTRACT, events)


class Core:
    """Owned by the one thread.

    `own` takes the lock on the state, or has it already, and says False while another instance has it.
    """

    def __init__(
        self,
        work_dir: Path,
        core_device: str,
        clock: Clock,
        *,
        publish: Callable[[str, bytes], object],
        publish_to_iot_core: Callable[[str, bytes], object],
        own: Callable[[], bool] = lambda: True,
    ) -> None:
        self.clock = clock
        self.core_device = core_device
        self.settings: Settings = parse(DEFAULTS)  # the last good ones, perhaps of an earlier run
        self.configured = False  # whether the configuration has been read in this run
        self.document: dict[str, Any] | None = None  # the configuration that was accepted last in this run
        self.guards = Guards(self.event)
        self.store = Store(work_dir / "pruner.db", core_device)
        self.presence = Presence(Devices(), clock)
        self.shares = Shares()
        self.counts: Counter[str] = Counter()  # devices by state
        self._obstacles: Counter[str] = Counter()  # devices by why they could not be removed; "" if they could
        self._own = own
        self._publish, self._publish_to_iot_core = publish, publish_to_iot_core
        self._unsaid: list[tuple[str, str | None, dict[str, Any]]] = []
        self._started = clock.monotonic()
        self._ran_before = 0.0
        self._loaded = False
        self._next_commit, self._next_urgent = self._started, float("inf")
        self._written_seconds = 0.0
        self._next_open = self._started
        self._next_coverage = float("inf")
        self._coverage_said: tuple[int, int] | None = None
        self._edition = 0  # of the verdicts: with another one all are written anew
        self.open()

    # What is known

    @property
    def devices(self) -> Devices:
        """The names that are kept."""
        return self.presence.devices

    @property
    def journal(self) -> Journal:
        """The journal; raises `sqlite3.OperationalError` while there is no state file to keep it in."""
        return Journal(self.store.opened())

    def running_seconds(self) -> float:
        """The component's running time over all runs."""
        return self._ran_before + self.clock.monotonic() - self._started

    def facts(self) -> Facts:
        """By what the devices are judged now."""
        return self.presence.facts(self.clock.monotonic())

    @property
    def coverage(self) -> dict[str, Any]:
        """How many devices are associated, how many would be removed once gone, and why the others would not."""
        removable = self._obstacles[""]
        reasons = [f"{number} cannot be removed: {why}" for why, number in self._obstacles.most_common() if why]
        # Soon after a start the broker has not told all that it will.
        if (
            reasons
            and not removable
            and self.clock.monotonic() - self._started < COVERAGE_SECONDS * self.settings.scale
        ):
            reasons = ["the component has just started: it takes some minutes to hear from the broker"]
        return {"associated": self._obstacles.total(), "removable": removable, "reasons": reasons}

    # What changes

    def event(self, kind: str, name: str | None = None, /, **data: Any) -> None:
        """Tell an event of the contract; before the configuration says where to, it waits."""
        if not self.configured:
            self._unsaid.append((kind, name, data))
            LOGGER.warning(kind, extra={"fields": {"thingName": name, **data}})
            return
        wall, reports = self.clock.wall(), self.settings.reports
        payload = cloud_event(self.core_device, wall, kind, name, data)
        if reports.local_topic:
            self._publish(reports.local_topic, payload)
        if reports.iot_core_topic:
            self._publish_to_iot_core(reports.iot_core_topic.replace("{thingName}", self.core_device), payload)
        self.store.record(wall, kind, name, data)
        log_event(kind, name, data)
        self.hurry()

    def mark(self, device: Device, verdict: Verdict) -> None:
        """A device is gone: its grace period begins."""
        device.marked_at = self.presence.observed.seconds
        self.devices.touch(device, urgent=True)
        self.event("marked", device.name, **verdict.figures(), dueInSeconds=self.settings.grace_period_seconds)

    def unmark(self, device: Device, reason: str) -> None:
        """Take a mark off, if the device carries one."""
        if device.marked_at is not None:
            device.marked_at = None
            self.devices.touch(device, urgent=True)
            self.event("unmarked", device.name, reason=reason)

    def adopt(self, settings: Settings) -> None:
        """Put settings in force."""
        self.settings, self.configured = settings, True
        self.presence.use(settings)
        at = self.clock.monotonic()
        self._next_coverage = min(self._next_coverage, at + COVERAGE_SECONDS * settings.scale)
        self._next_open = min(self._next_open, at + REOPEN_SECONDS * settings.scale)
        self._next_commit = at
        self._edition += 1  # other settings, other verdicts, in other sentences
        unsaid, self._unsaid = self._unsaid, []
        for kind, name, data in unsaid:
            self.event(kind, name, **data)
        self.hurry()

    # The state file

    def open(self) -> None:
        """Open the state file; while that fails pruning is held, and observing goes on."""
        self._next_open = self.clock.monotonic() + REOPEN_SECONDS * self.settings.scale
        try:
            if not self._own():
                self.guards.hold(instance_hold())
                return
            self.guards.release("instance")
            aside = self.store.open(self._read)
            if self.document is not None:
                self.store.keep(configuration=self.document)
        except (NewerSchema, sqlite3.Error, OSError) as error:
            self._hold(error)
            return
        if aside:
            LOGGER.error("state file set aside", extra={"fields": {"reason": aside}})
        self.guards.release("database")
        self.store.note(self.clock.wall(), "started")

    def _hold(self, error: Exception) -> None:
        newer = isinstance(error, NewerSchema)
        self.guards.hold(database_hold(self.store.fault or str(error), newer=newer))

    def _read(self, connection: sqlite3.Connection) -> None:
        """Take over what an earlier run left; later in a run, what is in memory is newer and is written anew."""
        if self._loaded:
            for device in self.devices.by_name.values():
                device.told = NOTHING_TOLD
                self.devices.touch(device)
            self.counts.clear()
            self._next_commit = self.clock.monotonic()
            # A new file does not know what was used of the day's budget.
            if get_meta(connection, "budget") is None:
                Journal(connection).use_up(self.devices.associated_count, self.running_seconds())
            return
        devices = Devices(load_devices(connection))
        presence = Presence(devices, self.clock, get_meta(connection, "presence"))
        shares = Shares((float(wall), float(seconds)) for wall, seconds in get_meta(connection, "shares", []))
        ran_before = float(get_meta(connection, "running", 0.0))
        journal = Journal(connection)
        presence.watched.update(intent.name for intent in (*journal.open_intents(), *journal.restorable(ran_before)))
        presence.take_over(self.presence)
        self.presence, self.shares, self._ran_before, self._loaded = presence, shares, ran_before, True
        self._written_seconds = presence.observed.seconds
        if not self.configured:
            with suppress(SettingsRefused):  # another version wrote it
                self.settings = parse(get_meta(connection, "configuration"))
        self.presence.use(self.settings)

    def attempt(self, step: Callable[..., object], *arguments: Any) -> None:
        """Take a step; if the state file refuses, pruning is held, and observing goes on."""
        try:
            step(*arguments)
        except sqlite3.Error as error:
            self.store.failed(error)
            self._hold(error)

    def commit_due(self, at: float) -> bool:
        """Whether it is time to write, and to bring the verdicts up to date, at monotonic seconds `at`."""
        if self.devices.urgent:
            self.hurry()
        due = at >= self.next_commit
        if self.store.connection is None and at >= self._next_open:
            self.attempt(self.open)
        return due

    @property
    def next_commit(self) -> float:
        """When it will be time, in monotonic seconds; while the state file is not open, when that is tried again."""
        return self._next_open if self.store.connection is None else min(self._next_commit, self._next_urgent)

    def commit(self, *, urgent: bool = False, **meta: Any) -> None:
        """Write all that changed, the verdicts as of the last `survey`, and these single values.

        Raises `sqlite3.Error` if the state file refuses. If it is only `urgent`, sightings, and the observed clock with
        them, wait for their time: flash wears out.
        """
        at, wall, devices, facts = self.clock.monotonic(), self.clock.wall(), self.devices, self.facts()
        self._next_urgent = float("inf")
        self.presence.stamp()
        presence = self.presence.document()
        if urgent:
            presence["observedSeconds"] = self._written_seconds
            names = sorted(name for name, flags in devices.changed.items() if flags)
        else:
            # Between two probes nothing is dated, so there is nothing to write.
            every = max(COMMIT_SECONDS * self.settings.scale, self.settings.presence.probe_interval_seconds)
            self._next_commit = at + every
            names = sorted(devices.changed)
            if self.shares.sample(wall, self.presence.observed.seconds):
                meta["shares"] = list(self.shares.samples)
        self.store.commit(
            devices,
            names,
            since=lambda device: None if facts.is_present(device) else device.silent_since,
            verdicts=(
                (name, self._document(devices.by_name[name], facts))
                for name in names
                if devices.changed[name] & VERDICT and devices.by_name[name].associated
            ),
            states=((wall, name, devices.by_name[name].told.state) for name in names if devices.changed[name] & STATE),
            meta={**meta, "presence": presence, "running": self.running_seconds()},
        )
        self._written_seconds = presence["observedSeconds"]
        self.guards.release("database")

    def close(self, status: dict[str, Any]) -> None:
        """Write what there is, and close the state file."""
        if self.store.connection is not None:
            self.store.note(self.clock.wall(), "stopped")
            self.commit(status=status)
            self.store.close()

    def hurry(self) -> None:
        """Have the status, and what must not wait, written within a second."""
        self._next_urgent = min(self._next_urgent, self.clock.monotonic() + URGENT_SECONDS * self.settings.scale)

    # The verdicts

    def survey(self, *, now: bool = False) -> bool:
        """Judge what has to be written at once, and all devices before each full commit, or `now`; says if all."""
        at, facts = self.clock.monotonic(), self.facts()
        if at < self._next_commit and not now:
            urgent = [name for name, flags in self.devices.changed.items() if flags & AT_ONCE]
            self._tell([self.devices.by_name[name] for name in urgent], facts)
            return False
        self._obstacles.clear()
        self._tell(self.devices.by_name.values(), facts, self._obstacles)
        coverage = self.coverage
        figures = (coverage["associated"], coverage["removable"])
        if at >= self._next_coverage and figures != self._coverage_said:
            self._coverage_said = figures
            self._next_coverage = at + COVERAGE_SECONDS * self.settings.scale
            self.event("coverage", **coverage)
        return True

    def _tell(self, devices: Iterable[Device], facts: Facts, obstacles: Counter[str] | None = None) -> None:
        """Have the verdicts that changed written, and count the devices by state."""
        for device in devices:
            told = NOTHING_TOLD
            if device.associated:
                verdict = judge(device, self.settings, facts)
                hint = self.presence.replays.hint(device.name)
                told = explain.summary(verdict, device, facts, hint, self._edition)
                if obstacles is not None:
                    obstacles[explain.obstacle(verdict)] += 1
            if told != device.told:
                self.counts[device.told.state] -= 1
                self.counts[told.state] += 1
                self.devices.tell(device, told)

    def _document(self, device: Device, facts: Facts) -> str:
        """The verdict to be stored; made as it is written, since those of 100,000 devices would take 50 MB."""
        verdict, hint = judge(device, self.settings, facts), self.presence.replays.hint(device.name)
        return json.dumps(explain.document(verdict, device, self.settings, facts, hint), separators=(",", ":"))
