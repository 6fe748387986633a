"""The component: one thread takes what arrives, in order, and does what is due."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from client_device_pruner.cloud_worker import Reply
from client_device_pruner.connection import Connection
from client_device_pruner.cycle import Check
from client_device_pruner.doctor import BRIDGE, Finding, diagnose, feeds, without_events
from client_device_pruner.inbox import Gap, Inbox
from client_device_pruner.ipc import (
    Configuration,
    ConfigurationChanged,
    Disconnected,
    Ipc,
    Message,
    News,
    PreUpdate,
    Refused,
    StreamClosed,
    Subscribed,
)
from client_device_pruner.job import Worker
from client_device_pruner.model import Clock, Hold
from client_device_pruner.moment import Moment
from client_device_pruner.pruning import Pruning
from client_device_pruner.reports import LOGGER
from client_device_pruner.roll_call import NoAnswer, RollCall, RollCaller
from client_device_pruner.settings import Settings, SettingsRefused, parse
from client_device_pruner.sources import ROLL_CALL
from client_device_pruner.state_file import Location
from client_device_pruner.watch import Watch

INBOX_LIMIT = 20_000
"""Messages held at most, some 300 bytes each."""
BURST_SECONDS = 0.05
"""How long messages gather before they are taken; a sign of life is to be heeded within a second."""
REREAD_SECONDS = 60.0
"""After how long a configuration that could not be read is asked for again."""
EXIT_SECONDS = 3600.0
"""The component gives itself up at most once in so much running time: three errors make it BROKEN."""


class Connected(NamedTuple):
    """A connection to Greengrass stands."""

    ipc: Ipc


class NotConnected(NamedTuple):
    """Connecting failed."""

    reason: str


class Answered(NamedTuple):
    """A child process answered the job that it belongs to."""

    job: int
    reply: Reply


Item = News | Connected | NotConnected | Answered | RollCall | NoAnswer


class Edges(NamedTuple):
    """The ways out of the process, to be replaced in tests.

    Attributes:
        connect: begins to connect; `Connected` or `NotConnected` will be put into the inbox.
        worker: makes a child process that delivers its replies to the given callable.
        roll_caller: makes the client of EMQX's HTTP API, delivering to the given callable.
    """

    connect: Callable[[Inbox[Item]], None]
    worker: Callable[[Callable[[Reply], None]], Worker]
    roll_caller: Callable[[Callable[[RollCall | NoAnswer], None]], RollCaller]


class Component:
    """Runs until it is told to stop; `run` returns the exit status.

    Args:
        work_dir: holds `pruner.db`.
        core_device: thing name of the core device.
        clock: the machine's clocks.
        edges: the ways out.
        jitter: gives numbers in [0, 1), to shift the cycles.
        own: takes the lock on the state; False while another instance has it.
    """

    def __init__(
        self,
        work_dir: Location,
        core_device: str,
        clock: Clock,
        edges: Edges,
        jitter: Callable[[], float] = lambda: int.from_bytes(os.urandom(6), "big") / 2**48,
        own: Callable[[], bool] = lambda: True,
    ) -> None:
        self.inbox: Inbox[Item] = Inbox(INBOX_LIMIT)
        self.connection = Connection(lambda: edges.connect(self.inbox), self._give_up)
        self.watch = Watch(
            os.path.join(work_dir, "pruner.db"),
            core_device,
            clock,
            publish=self.connection.publish,
            publish_to_iot_core=self.connection.publish_to_iot_core,
            own=own,
        )
        self.pruning = Pruning(
            self.watch,
            lambda number: edges.worker(lambda reply: self.inbox.put_always(Answered(number, reply))),
            self._begin_check,
            jitter,
        )
        self._clock = clock
        self._edges = edges
        self._stopping = False
        self._status = 0
        self._roll_caller = edges.roll_caller(self.inbox.put_always)
        self._next_roll_call = float("-inf")
        self._roll_call_url = ""
        self._roll_call_wanted = False
        self._unread: dict[str | None, float] = {}
        self._told: object = None
        self._jitter = jitter
        self._changed: set[str | None] = set()
        self._bridge: dict[str, Any] | None = None
        self._bridge_read = False
        self._findings: tuple[Finding, ...] = ()

    # The loop

    def run(self) -> int:
        """Watch until told to stop."""
        self._edges.connect(self.inbox)
        while not self._stopping:
            self.turn(min(1.0, max(0.05, self.watch.settings.scale)))
            # Messages come in bursts: taking them together costs a fraction of a wake-up for each.
            time.sleep(BURST_SECONDS)
        self.close()
        return self._status

    def turn(self, patience_seconds: float) -> None:
        """Take what has arrived, waiting for it up to the given time; then do what is due."""
        for item in self.inbox.take_all(patience_seconds):
            self.watch.attempt(self._take, item, self._clock.monotonic())
        self.watch.attempt(self._do_due, self._clock.monotonic())

    def stop(self) -> None:
        """Ask the loop to end; safe in a signal handler."""
        self._stopping = True

    def close(self) -> None:
        """Leave everything so that the next start goes on from here."""
        at = self._clock.monotonic()
        self.pruning.end()
        self._describe(at)
        self.watch.commit(at)
        if self.watch.ledger.connection is not None:
            self.watch.ledger.connection.close()
        self.connection.close()

    def _do_due(self, at: float) -> None:
        self.watch.tick(at)
        self.pruning.heed_returned()
        for component, due in list(self._unread.items()):
            if at >= due:
                self._unread[component] = at + REREAD_SECONDS * self.watch.settings.scale
                self.connection.read_configuration(component, follow=True)
        if self._told is not self.watch.sources:
            # A state file that was opened anew brings new sources.
            self._tell_bridge()
        while self._changed:
            # One change of a deployment comes as one event for each value.
            self.connection.read_configuration(self._changed.pop())
        self.connection.tick(at)
        if self.watch.configured:
            self.connection.send_canaries(self.watch.sources.canaries, at)
            if at >= self._next_roll_call:
                self._call_roll(at)
        self.pruning.tick(at)
        if self.watch.commit_due(at):
            self._describe(at)
            if self.watch.is_news(at):
                self.watch.commit(at)

    # What arrives

    def _take(self, item: Item | Gap, at: float) -> None:
        match item:
            case Message(topic, payload, received):
                if not self.connection.echoed(topic, payload):
                    self.watch.sources.take(topic, payload, received)
            case Gap(messages):
                LOGGER.warning(
                    "messages were dropped since too many came at once: every source has a gap here",
                    extra={"fields": {"messages": messages}},
                )
                self.watch.sources.overflow(at)
            case Answered(number, reply):
                self.pruning.reply(number, reply, at)
            case RollCall() | NoAnswer():
                self._take_roll_call(item, at)
            case _:
                self._take_news(item, at)

    def _take_roll_call(self, answer: RollCall | NoAnswer, at: float) -> None:
        """Take an answer of the API that is in force; one that was waited for with a check is asked anew."""
        roll_call = self.watch.settings.roll_call
        if roll_call is not None and roll_call.url == self._roll_call_url:
            if isinstance(answer, RollCall):
                self.watch.sources.roll_call_answered(answer.names, at, answer.began_seconds)
            else:
                self.watch.sources.roll_call_failed(answer.reason)
        if self._roll_call_wanted:
            self._roll_call_wanted = False
            self._call_roll(at)

    def _take_news(self, item: Item | Gap, at: float) -> None:
        match item:
            case Connected(ipc):
                self.connection.connected(ipc, at)
                self._unread = dict.fromkeys((None, BRIDGE), at)
            case Disconnected(reason):
                self.connection.lost(reason, at)
            case NotConnected(reason):
                self.connection.lost(reason, at, refused=True)
            case Subscribed(topic):
                self.connection.granted("SubscribeToTopic", topic)
                self.watch.sources.listens_anew(at)
            case Refused():
                self.connection.refused(item)
                if item.resource.startswith("$aws/things/"):
                    self.watch.forget_shadow()
            case StreamClosed():
                self.connection.self_test.alive = False
            case PreUpdate(deployment_id):
                self.connection.answer_deployment(deployment_id, at, busy=self.pruning.batch_in_flight)
            case ConfigurationChanged(component):
                self._changed.add(component)
            case Configuration(None, value, error):
                self._heed_read(None, error, at)
                self.connection.deployed()
                self._configure(value, error)
            case Configuration(component, value, error):
                self._heed_read(component, error, at)
                self._bridge_read = True
                self._bridge = value if isinstance(value, dict) and not error else None
                self._tell_bridge()

    # The configuration

    def _heed_read(self, component: str | None, error: str, at: float) -> None:
        """A configuration that could not be read is read again: its component may be deployed later."""
        if error:
            self._unread[component] = at + REREAD_SECONDS * self.watch.settings.scale
        else:
            self._unread.pop(component, None)

    def _configure(self, document: Any, error: str) -> None:
        """Take a configuration over; one that is refused leaves the last good one in force for watching."""
        watch = self.watch
        problems: Sequence[str] = (f"the configuration could not be read: {error}",) if error else ()
        if not problems:
            try:
                settings = parse(document)
            except SettingsRefused as refused:
                problems = refused.problems
        if problems:
            self._refuse(problems)
            if not watch.configured:
                self._apply(watch.last_settings())
            return
        corrected = watch.guards.holds("configuration")
        watch.guards.release("configuration")
        watch.keep_good(document)
        changed = settings != watch.settings or not watch.configured
        if changed:
            self._apply(settings)
        if changed or corrected:
            watch.event("configuration", accepted=True, problems=[])

    def _refuse(self, problems: Sequence[str]) -> None:
        hold = Hold(
            "configuration",
            f"the configuration was refused: {'; '.join(problems)}",
            "correct it with a deployment; the last good one is in force for watching until then",
        )
        if hold not in self.watch.guards.in_force:
            for problem in problems:
                LOGGER.error("configuration refused", extra={"fields": {"problem": problem}})
            self.watch.event("configuration", accepted=False, problems=list(problems))
        self.watch.guards.hold(hold)

    def _apply(self, settings: Settings) -> None:
        watch, at = self.watch, self._clock.monotonic()
        before, first = watch.settings, not watch.configured
        LOGGER.setLevel(settings.log_level)
        if settings.allow_short_durations:
            LOGGER.warning("allowShortDurations is on: for trials and tests only, never for a site that works")
        watch.adopt(settings)
        self._tell_bridge()
        self._next_roll_call = at
        self.connection.use(settings, at)
        if before.dry_run and not settings.dry_run:
            for name in list(watch.ledger.devices):
                watch.unmark(name, "the dry run ended")
        self.pruning.spare()
        if first or before.check_interval_seconds != settings.check_interval_seconds:
            self.pruning.schedule(at)

    def _tell_bridge(self) -> None:
        """Tell the sources who the bridge is, and the log what its configuration lacks."""
        client_id = self._bridge.get("clientId") if self._bridge else None
        self._told = self.watch.sources
        self.watch.sources.set_bridge(
            client_id if isinstance(client_id, str) else "",
            known=self._bridge is not None,
            unmapped=without_events(self._bridge, self.watch.settings),
        )
        self.watch.heed_feeds(feeds(self._bridge, self.watch.settings))
        findings = diagnose(self._bridge, self.watch.settings) if self._bridge_read else ()
        for finding in findings:
            if finding not in self._findings:
                LOGGER.warning("doctor", extra={"fields": {"finding": finding.finding, "remedy": finding.remedy}})
        self._findings = findings

    # What cycles need of the edges

    def _begin_check(self, check: Check, at: float) -> Moment:
        sources = self.watch.sources
        self.connection.send_canaries(sources.canaries, at, now=True)
        if any(w.name == ROLL_CALL and w.source_id in check.source_ids for w in sources.witnesses(at)):
            # A call that is under way began too early for this check.
            self._roll_call_wanted = self._roll_caller.busy
            self._call_roll(at)
        return Moment(
            check.source_ids,
            at,
            sources=lambda: self.watch.sources,
            self_test=self.connection.self_test,
            send_echo=self.connection.send_self_test,
            scale=self.watch.settings.scale,
        )

    def _call_roll(self, at: float) -> None:
        roll_call = self.watch.settings.roll_call
        if roll_call is not None:
            # Not exactly periodic: what comes and goes with the same period would never be met.
            self._next_roll_call = at + roll_call.interval_seconds * (0.9 + 0.1 * self._jitter())
            if not self._roll_caller.busy:
                self._roll_call_url = roll_call.url
                self.watch.sources.roll_call_begins()
                self._roll_caller.call(roll_call.url, roll_call.key_file)

    # The end, and the status

    def _give_up(self, reason: str) -> None:
        """End the process so that the nucleus starts it anew, at most once an hour of running time."""
        running, last = self.watch.running_seconds(), self.watch.kept("gave_up_running_seconds")
        lately = last is not None and running - last < EXIT_SECONDS * self.watch.settings.scale
        # What cannot be kept cannot be counted.
        if lately or not self.watch.keep(gave_up_running_seconds=running):
            return
        LOGGER.error("ending, to be started anew", extra={"fields": {"reason": reason}})
        self._status, self._stopping = 1, True

    def _describe(self, at: float) -> None:
        self.watch.describe(
            at,
            findings=(*self.connection.findings, *self._findings),
            plan=self.pruning.waiting_plan(),
            next_check_seconds=self.pruning.next_check_seconds(at),
        )
