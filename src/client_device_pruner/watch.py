"""The watch: what the one thread owns (settings, sources, ledger, guards), and the state file behind it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from client_device_pruner import state_documents, state_file
from client_device_pruner.coverage import Coverage, cover
from client_device_pruner.doctor import Finding
from client_device_pruner.guards import Guards
from client_device_pruner.journal import Journal
from client_device_pruner.ledger import Ledger, get_meta, set_meta, transaction
from client_device_pruner.model import Clock, Hold
from client_device_pruner.outages import find_outages
from client_device_pruner.policy import Circumstances
from client_device_pruner.reports import LOGGER, Reports
from client_device_pruner.settings import DEFAULTS, Settings, SettingsRefused, parse
from client_device_pruner.sources import Sources
from client_device_pruner.status import describe
from client_device_pruner.topics import filter_covers

COMMIT_SECONDS = 60.0
"""How often the ledger is written at most; with very many devices or rows more rarely (see `_commit_interval`)."""
IDLE_COMMIT_SECONDS = 300.0
"""How often it is written while nothing changes but clocks and figures: so much credit a crash may take."""
MAX_PENDING_ROWS = 20_000
"""Changed rows kept in memory at most, some 5 MB: with more the ledger is written at once."""
INSTANCE_SECONDS = 10.0
"""How often the state is asked for while another instance owns it."""
SOURCE_REMEDY = "README, Troubleshoot, says what helps if it does not end by itself"
"""What to do about a source that does not vouch: the reason says what it waits for."""
COVERAGE_SECONDS = 600.0
"""When coverage is reported after a start, and how often at most it changes (CONTRACT, events)."""


class Watch:
    """Owned by one thread.

    Args:
        path: the state file.
        core_device: thing name of the core device.
        clock: the machine's clocks.
        publish: publishes on local pub/sub.
        publish_to_iot_core: publishes to AWS IoT Core; False without a connection.
        own: takes the lock on the state, or has it already; False while another instance owns it.

    Attributes:
        configured: whether the configuration has been read in this run; until then the last run's is in force.
    """

    def __init__(
        self,
        path: state_file.Location,
        core_device: str,
        clock: Clock,
        *,
        publish: Callable[[str, bytes], None],
        publish_to_iot_core: Callable[[str, bytes], bool],
        own: Callable[[], bool] = lambda: True,
    ) -> None:
        self.clock = clock
        self.core_device = core_device
        self.settings = parse(DEFAULTS)
        self.configured = False
        self.guards = Guards(self.event)
        self._path = os.fspath(path)
        self._file = os.path.basename(path)
        self._own = own
        self._reports = Reports(
            core_device,
            wall=clock.wall,
            publish=publish,
            publish_to_iot_core=publish_to_iot_core,
            record=self._record,
        )
        self._next_commit = self._idle_commit = self._next_open = float("-inf")
        self._next_coverage = float("inf")
        self._coverage_said: tuple[int, int] | None = None
        self._written = ""
        self._not_vouching: dict[str, float] = {}
        self._vouching: set[str] = set()
        self._doubted: set[str] = set()
        self._in_outage: set[str] = set()
        self.ledger = Ledger(None, clock.monotonic())
        self.sources = Sources(self.settings, self.ledger, clock.monotonic())
        self.open()

    def _record(self, wall: float, kind: str, name: str | None, data: dict[str, Any]) -> None:
        # The ledger of the moment: another file brings another ledger.
        self.ledger.record(wall, kind, name, data)

    # What is known

    @property
    def journal(self) -> Journal:
        """The journal; raises `sqlite3.OperationalError` while there is no state file to keep it in."""
        if self.ledger.connection is None:
            raise sqlite3.OperationalError("the state file is not open")
        return Journal(self.ledger.connection)

    def running_seconds(self) -> float:
        """The component's running time over all runs."""
        return self.ledger.running_seconds(self.clock.monotonic())

    def circumstances(self, cycle_id: str = "") -> Circumstances:
        """By what devices are judged at this moment."""
        witnesses, present = self.sources.witnesses(self.clock.monotonic()), self.sources.present_names()
        outages = find_outages(
            self.ledger.devices.values(),
            present,
            self.ledger.ended_absences,
            [witness.source_id for witness in witnesses],
            self.settings.mass_loss,
        )
        return Circumstances(self.settings, witnesses, present, cycle_id, outages)

    def event(self, kind: str, name: str | None = None, /, **data: Any) -> None:
        """Publish an event of the contract; the state it speaks of is written within a second."""
        self._reports.event(self.settings, kind, name, **data)
        self._next_commit = min(self._next_commit, self.clock.monotonic() + 1.0)

    def forget_shadow(self) -> None:
        """The shadow was refused: it is written anew."""
        self._reports.forget_shadow()

    def unmark(self, name: str, reason: str) -> None:
        """Take a device's mark off, if it carries one, and say so."""
        device = self.ledger.devices.get(name)
        if device is not None and device.mark is not None:
            self.ledger.set_mark(name, None)
            self.event("unmarked", name, reason=reason)

    # Settings

    def last_settings(self) -> Settings:
        """The settings of the last configuration that was accepted, in this run or an earlier one."""
        try:
            return parse(self.kept("configuration", DEFAULTS))
        except SettingsRefused:
            # Another version's: what it meant cannot be told.
            return parse(DEFAULTS)

    def keep_good(self, document: dict[str, Any]) -> None:
        """Keep an accepted configuration for the next start."""
        document = {key: value for key, value in document.items() if key != "accessControl"}
        if document != self.kept("configuration", DEFAULTS):
            self.keep(configuration=document)

    def adopt(self, settings: Settings) -> None:
        """Put settings in force: sources that stay what they are keep what they know."""
        at = self.clock.monotonic()
        self.settings, self.configured = settings, True
        for hold in self.guards.in_force:
            if not hold.guard.startswith("source:"):
                self.guards.hold(hold)
        self.ledger.loss_window_seconds = settings.mass_loss.window_seconds
        self.sources = Sources(settings, self.ledger, at, self.sources)
        self._next_coverage = min(self._next_coverage, at + COVERAGE_SECONDS * settings.scale)

    def heed_feeds(self, feeds: Mapping[str, Sequence[str]]) -> None:
        """Take the bridge's filters that feed each `activity` source now, by its name.

        Whoever spoke through a filter that is gone would be silent for ever: habits on its source start anew. A source
        that nothing feeds vouches for nothing, so what fed it is kept to be compared with what feeds it next.
        """
        before = self.kept("feeds", {})
        identities = self.sources.identities
        now = {identity: before[identity] for identity in identities.values() if identity in before}
        for name, filters in feeds.items():
            if filters:
                gone = [old for old in now.get(identities[name], ()) if not any(filter_covers(f, old) for f in filters)]
                if gone:
                    self.ledger.start_anew(name)
                    LOGGER.warning(
                        "the bridge feeds %s no longer through %s: its devices' habits are learnt anew", name, gone
                    )
                now[identities[name]] = list(filters)
        if now != before:
            self.keep(feeds=now)

    # Time

    def tick(self, at: float) -> None:
        """Let what was not heard go, and say which sources began or stopped to vouch."""
        self.sources.tick(at)
        in_force = set()
        for witness in self.sources.witnesses(at):
            guard = f"source:{witness.name}"
            in_force.add(guard)
            self._note_source(witness.name, vouching=witness.vouching)
            if bool(witness.doubted) != (witness.name in self._doubted):
                (self._doubted.add if witness.doubted else self._doubted.discard)(witness.name)
                LOGGER.warning("source %s: %s", witness.name, witness.doubted or "no session is in doubt any more")
            if witness.vouching:
                self._not_vouching.pop(witness.name, None)
                self.guards.release(guard, witness.reason)
                continue
            since = self._not_vouching.setdefault(witness.name, at)
            patient = at - since <= self.sources.max_quiet_seconds(witness.source_id)
            hold = Hold(guard, witness.reason, SOURCE_REMEDY)
            (self.guards.expect if patient else self.guards.hold)(hold)
        for name in [name for name in self._vouching if f"source:{name}" not in in_force]:
            self._note_source(name, vouching=False)
        for held in self.guards.in_force:
            if held.guard.startswith("source:") and held.guard not in in_force:
                self.guards.release(held.guard, "the source is no longer in force")

    def _note_source(self, name: str, *, vouching: bool) -> None:
        if vouching != (name in self._vouching):
            (self._vouching.add if vouching else self._vouching.discard)(name)
            self.ledger.note("source", "vouching" if vouching else "silent", name)

    def commit_due(self, at: float) -> bool:
        """Whether it is time to write; a state file that could not be opened is tried again."""
        if self.ledger.connection is None and at >= self._next_open:
            self.open()
        first_coverage = self._next_coverage if self._coverage_said is None else float("inf")
        brimming = self.ledger.pending_rows > MAX_PENDING_ROWS and not self.ledger.fault
        return (brimming and self.ledger.connection is not None) or at >= min(self._next_commit, first_coverage)

    # The state file

    def open(self) -> None:
        """Open the state file and begin a run on it; while it cannot be opened, pruning holds."""
        at = self.clock.monotonic()
        try:
            if not self._own():
                reason = "another instance owns the state in this work directory"
                self._hold("instance", reason, "end the other process, or wait until it has ended")
                self._next_open = at + INSTANCE_SECONDS * self.settings.scale
                return
            self.guards.release("instance")
            connection, aside = state_file.open_state(self._path, self.core_device)
        except state_file.NewerSchema as error:
            self._hold("database", f"{self._file} was written by a newer version: {error}", "deploy that version again")
            self._next_open = float("inf")
            return
        except (sqlite3.Error, OSError) as error:
            self._hold("database", f"{self._path} cannot be opened: {error}", "make room, or make it writable")
            self._next_open = at + COMMIT_SECONDS * self.settings.scale
            return
        try:
            state_documents.check(connection)
            self.ledger = Ledger(connection, at, self.clock.wall)
        except (ValueError, TypeError, LookupError) as error:
            # Intact pages with a text that was never written: bits that flipped.
            connection.close()
            state_file.set_aside(self._path)
            aside = f"{self._file} was set aside, since a value in it cannot be read ({error}); absences start anew"
            connection, _nothing = state_file.open_state(self._path, self.core_device)
            self.ledger = Ledger(connection, at, self.clock.wall)
        if aside:
            LOGGER.error("state file set aside", extra={"fields": {"reason": aside}})
        self.guards.release("database")
        self._note_run(get_meta(connection, "status"))
        if not self.configured:
            # Until the configuration has been read, the sources are those of the last run.
            self.settings = self.last_settings()
        self.ledger.loss_window_seconds = self.settings.mass_loss.window_seconds
        self.sources = Sources(self.settings, self.ledger, at)
        begun_or_done = (*self.journal.open_intents(), *self.journal.restorable(self.running_seconds()))
        self.ledger.watched.update(intent.name for intent in begun_or_done)

    def _note_run(self, last_status: dict[str, Any] | None) -> None:
        """Note for the timelines that the run before ended with its last status, and that this one begins."""
        if last_status and "time" in last_status:
            self.ledger.note("run", "stopped", wall=last_status["time"])
        self.ledger.note("run", "started")
        self._vouching, self._in_outage = set(), set()

    def _note_outages(self, now: Circumstances) -> None:
        in_outage = {name for name, _source_id in now.outages.unexplained}
        for name in sorted(in_outage ^ self._in_outage):
            self.ledger.note("outage", "outage" if name in in_outage else "outageEnded", name)
        self._in_outage = in_outage

    def commit(self, at: float) -> None:
        """Write what changed; while the file refuses, pruning holds."""
        interval = self._commit_interval()
        committed = self.ledger.commit(at)
        self._next_commit, self._idle_commit = at + interval, at + IDLE_COMMIT_SECONDS * self.settings.scale
        if committed:
            self._written = self._wording()
            self.guards.release("database")
        elif self.ledger.refusal is not None:
            self.failed(self.ledger.refusal)

    def is_news(self, at: float) -> bool:
        """Whether there is more to write than clocks and figures; if not, that waits, and flash is spared."""
        if self.ledger.pending_rows or self.ledger.fault or at >= self._idle_commit or self._wording() != self._written:
            return True
        self._next_commit = at + self._commit_interval()
        return False

    def _wording(self) -> str:
        """What the status tells people, without its figures."""
        return re.sub(r"[\d.]+", "", json.dumps({**(self.ledger.status or {}), "witnesses": None}))

    def kept(self, key: str, default: Any = None) -> Any:
        """A single value of the state file; the default while none is open."""
        connection = self.ledger.connection
        return default if connection is None else get_meta(connection, key, default)

    def keep(self, **values: Any) -> bool:
        """Write single values at once; while the file refuses, pruning holds. Returns whether they are kept."""
        if self.ledger.connection is None:
            return False
        try:
            with transaction(self.ledger.connection) as write:
                set_meta(write, **values)
        except sqlite3.Error as error:
            self.failed(error)
            return False
        return True

    def attempt(self, step: Callable[..., object], *arguments: Any) -> None:
        """Take a step; whatever the state file refuses holds pruning, and the watch goes on."""
        try:
            step(*arguments)
        except sqlite3.Error as error:
            self.failed(error)

    def failed(self, error: sqlite3.Error) -> None:
        """Take what the state file refused: pruning holds; a file that broke is set aside, and another begun."""
        self.fault(f"the state file cannot be written: {error}")
        broken = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if broken and self.ledger.connection is not None:
            self.ledger.connection.close()
            self.ledger.connection = None
            self._next_open = self.clock.monotonic()

    def fault(self, reason: str) -> None:
        """Hold pruning until a commit succeeds."""
        self.ledger.fault = reason
        self._hold("database", reason, "make room on the file system, or make it writable")

    def _hold(self, guard: str, reason: str, remedy: str) -> None:
        hold = Hold(guard, reason, remedy)
        if self.configured:
            self.guards.hold(hold)
            return
        # Nobody would hear the event before there is a connection: `adopt` says it.
        LOGGER.error("held", extra={"fields": {"guard": guard, "reason": reason, "remedy": remedy}})
        self.guards.expect(hold)

    def _commit_interval(self) -> float:
        """Once a minute, up to a quarter of an hour with more: two rows a second spare flash, and the CPU 100 devices.

        With each commit every device is judged for the status, which takes about 20 µs.
        """
        seconds = max(COMMIT_SECONDS, 0.5 * self.ledger.pending_rows, 0.01 * len(self.ledger.devices))
        return min(seconds, 900.0) * self.settings.scale

    # The status

    def describe(
        self,
        at: float,
        *,
        findings: Collection[Finding],
        plan: tuple[str, Collection[str]],
        next_check_seconds: float,
    ) -> None:
        """Bring the status up to date, to be written with the next commit, and say when coverage changed."""
        now = self.circumstances()
        self._note_outages(now)
        coverage = cover(self.ledger.devices.values(), now, map(str, findings))
        if at >= self._next_coverage:
            self._say_coverage(coverage, at)
        self.ledger.status = describe(
            now,
            self.ledger.devices.values(),
            coverage=coverage,
            holds=self.guards.in_force,
            findings=findings,
            plan=plan,
            next_check_seconds=next_check_seconds,
            wall=self.clock.wall(),
        )
        if self.configured:
            self._reports.shadow(self.settings, self.ledger.status)

    def _say_coverage(self, coverage: Coverage, at: float) -> None:
        figures = (coverage.associated, coverage.provable)
        if figures == self._coverage_said:
            return
        self._coverage_said = figures
        self._next_coverage = at + COVERAGE_SECONDS * self.settings.scale
        reasons = list(coverage.reasons)
        self.event("coverage", associated=coverage.associated, provable=coverage.provable, reasons=reasons)
        if coverage.associated and not coverage.provable:
            LOGGER.error("as things are, nothing can be pruned on this core", extra={"fields": {"reasons": reasons}})
