"""The component: one thread that owns the state, takes what arrives, and does what is due."""

from __future__ import annotations

import json
import logging
import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client_device_pruner import policy, state_file
from client_device_pruner.cloud_worker import CallFailed, Reply
from client_device_pruner.coverage import Coverage, cover
from client_device_pruner.cycle import Check, Cycle, restore_steps
from client_device_pruner.doctor import Finding, diagnose
from client_device_pruner.guards import Guards
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
from client_device_pruner.job import Job, Worker
from client_device_pruner.journal import Intent, Journal
from client_device_pruner.ledger import Ledger, get_meta, set_meta, transaction
from client_device_pruner.model import Association, Clock, Hold
from client_device_pruner.moment import Moment
from client_device_pruner.outages import find_outages
from client_device_pruner.policy import Circumstances, Plan, Verdict, assess
from client_device_pruner.reports import LOGGER, Reports, rfc3339
from client_device_pruner.roll_call import NoAnswer, RollCall, RollCaller
from client_device_pruner.self_test import Remedy, SelfTest
from client_device_pruner.settings import DEFAULTS, Settings, SettingsRefused, parse
from client_device_pruner.sources import ROLL_CALL, Sources
from client_device_pruner.status import describe

BRIDGE = "aws.greengrass.clientdevices.mqtt.Bridge"
"""The component whose configuration tells what reaches local pub/sub."""
OWN_TOPICS = "client-device-pruner/in/"
"""Where the self-test goes if the sources' topics have no prefix."""
INBOX_LIMIT = 20_000
"""Messages held at most, some 300 bytes each."""
COMMIT_SECONDS = 60.0
"""How often the ledger is written at most; with many changed rows more rarely (see `_commit_interval`)."""
COVERAGE_SECONDS = 600.0
"""When coverage is reported after a start, and how often at most it changes (CONTRACT, events)."""
BACK_OFF_SECONDS = (60.0, 600.0)
"""The delay after a cycle that failed doubles from the first to the second (CONTRACT, cloud calls)."""
EXIT_SECONDS = 3600.0
"""The component gives itself up at most once in so much running time: three errors make it BROKEN."""
DEFER_SECONDS = 30.0
"""How long a deployment waits for a batch in flight at most."""
RECONNECT_SECONDS = 5.0
"""How long after a lost connection a new one is tried; six times that after a refused one."""
REQUEST_SECONDS = 2.0
"""How often requests of the command line are looked for."""
MAX_PLANS = 20
"""Plans remembered for late approvals."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection to Greengrass stands."""

    ipc: Ipc


@dataclass(frozen=True, slots=True)
class NotConnected:
    """Connecting failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A child process answered the job that it belongs to."""

    job: int
    reply: Reply


Item = News | Connected | NotConnected | Answered | RollCall | NoAnswer


@dataclass(slots=True)
class Edges:
    """The ways out of the process, to be replaced in tests.

    Attributes:
        connect: begins to connect; `Connected` or `NotConnected` will be put into the inbox.
        worker: makes a child process that delivers its replies to the given callable.
        roll_caller: makes the client of EMQX's HTTP API, delivering to the given callable.
    """

    connect: Callable[[Inbox[Item]], None]
    worker: Callable[[Callable[[Reply], None]], Worker]
    roll_caller: Callable[[Callable[[RollCall | NoAnswer], None]], RollCaller]


@dataclass(slots=True)
class Timers:
    """When what is due next, in monotonic seconds."""

    commit: float = 0.0
    cycle: float = float("inf")
    requests: float = 0.0
    roll_call: float = 0.0
    coverage: float = float("inf")
    reconnect: float = float("inf")
    reopen: float = float("inf")
    canaries: dict[str, float] = field(default_factory=dict)


class Component:
    """Runs until it is told to stop; `run` returns the exit status.

    Args:
        work_dir: holds `pruner.db`.
        core_device: thing name of the core device.
        clock: the machine's clocks.
        edges: the ways out.
        jitter: gives numbers in [0, 1), to shift the cycles.
    """

    def __init__(
        self,
        work_dir: Path,
        core_device: str,
        clock: Clock,
        edges: Edges,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.clock = clock
        self.inbox: Inbox[Item] = Inbox(INBOX_LIMIT)
        self.settings = parse(DEFAULTS)
        self.stopping = False
        self._status = 0
        self._path = work_dir / "pruner.db"
        self._core_device = core_device
        self._edges = edges
        self._jitter = jitter
        self._started = clock.monotonic()
        self._ipc: Ipc | None = None
        self._jobs: dict[int, Job] = {}
        self._cycle: Cycle | None = None
        self._job_number = 0
        self._timers = Timers()
        self._failures = 0
        self._failed_kind = ""
        self._bridge: dict[str, Any] | None = None
        self._bridge_read = False
        self._changed: set[str | None] = set()
        self._deferred = ("", 0.0)
        self._refusals: dict[tuple[str, str], Finding | None] = {}
        self._findings: tuple[Finding, ...] = ()
        self._coverage: Coverage | None = None
        self._coverage_said: tuple[int, int, tuple[str, ...]] | None = None
        self._configured = False
        self._returned_said: set[int] = set()
        self._not_vouching: dict[str, float] = {}
        self._reports = Reports(
            core_device,
            wall=clock.wall,
            publish=self._publish,
            publish_to_iot_core=self._publish_to_iot_core,
            record=lambda *event: self.ledger.record(*event),
        )
        self.guards = Guards(self.event)
        self.self_test = SelfTest(1.0)
        self._roll_caller = edges.roll_caller(self.inbox.put_always)
        self.ledger = Ledger(None, self._started)
        self.sources = Sources(self.settings, self.ledger, self._started)
        self._open_ledger()

    # The loop

    def run(self) -> int:
        """Watch until told to stop."""
        self._edges.connect(self.inbox)
        while not self.stopping:
            self.turn(self._patience())
        self.close()
        return self._status

    def turn(self, patience_seconds: float) -> None:
        """Take what has arrived, waiting for it up to the given time; then do what is due."""
        for item in self.inbox.take_all(patience_seconds):
            self._take(item)
        at = self.clock.monotonic()
        self.sources.tick(at)
        self._heed_returned()
        self._do_due(at)

    def stop(self) -> None:
        """Ask the loop to end; safe in a signal handler."""
        self.stopping = True

    def close(self) -> None:
        """Leave everything so that the next start goes on from here."""
        for job in self._jobs.values():
            job.end()
        self._describe(self.clock.monotonic(), running=False)
        self.ledger.commit(self.clock.monotonic())
        if self.ledger.connection is not None:
            self.ledger.connection.close()
        if self._ipc is not None:
            self._ipc.close()

    def _patience(self) -> float:
        return min(1.0, max(0.05, self.settings.scale))

    # What arrives

    def _take(self, item: Item | Gap) -> None:
        at = self.clock.monotonic()
        match item:
            case Message(topic, payload, received):
                if topic == self._self_test_topic:
                    self.self_test.echo(payload)
                else:
                    self.sources.take(topic, payload, received)
            case Gap():
                LOGGER.warning("messages were dropped since too many came at once: every source has a gap here")
                self.sources.overflow(at)
            case Answered(number, reply):
                if number in self._jobs:
                    self._run(lambda: self._jobs[number].reply(reply, at))
            case RollCall(names):
                self.sources.roll_call_answered(names, at)
            case NoAnswer():
                self.sources.roll_call_failed(item.reason)
            case Connected(ipc):
                self._connected(ipc)
            case Disconnected(reason):
                self._disconnect(reason)
                self._timers.reconnect = at + RECONNECT_SECONDS * self.settings.scale
            case NotConnected(reason):
                self._disconnect(reason)
                self._give_up("Greengrass does not let this process connect: after its restart the token is void")
                self._timers.reconnect = at + 6 * RECONNECT_SECONDS * self.settings.scale
            case ConfigurationChanged(component):
                self._changed.add(component)
            case Configuration(None, value, error):
                self._refusals.clear()
                self._configure(value, error)
            case Configuration(_, value, error):
                self._take_bridge(value, error)
            case Refused():
                self._refused(item)
            case StreamClosed():
                self.self_test.alive = False
            case PreUpdate(deployment_id):
                self._pre_update(deployment_id)
            case Subscribed(topic):
                self._refusals.pop(("SubscribeToTopic", topic), None)
                LOGGER.info("subscribed", extra={"fields": {"topic": topic}})

    def _heed_returned(self) -> None:
        """Act on signs of life of marked devices, of those in flight, and of those disassociated."""
        if not self.ledger.returned:
            return
        names, self.ledger.returned = dict.fromkeys(self.ledger.returned), []
        for name in names:
            device = self.ledger.devices.get(name)
            if device is not None and device.mark is not None:
                self.ledger.set_mark(name, None)
                self.event("unmarked", name, reason="it showed life")
            if self._cycle and name in self._cycle.in_flight:
                self._cycle.lively.add(name)
            else:
                self._heed_return(name)

    def _heed_return(self, name: str) -> None:
        if self.ledger.connection is None:
            return
        running = self.ledger.running_seconds(self.clock.monotonic())
        intents = [intent for intent in self.journal.restorable(running) if intent.name == name]
        if not intents:
            self.ledger.watched.discard(name)
            return
        intent = intents[0]
        if intent.intent_id in self._returned_said or name in self.ledger.devices:
            return
        self._returned_said.add(intent.intent_id)
        will = self.settings.restore_on_return
        self.event("returned", name, disassociatedAt=rfc3339(intent.intended_wall), willRestore=will)
        if will:
            self._restore([intent], "return")

    # The connection

    def _connected(self, ipc: Ipc) -> None:
        self._ipc = ipc
        self._timers.reconnect = float("inf")
        for component in (None, BRIDGE):
            ipc.read_configuration(component)
            ipc.follow_configuration(component)
        ipc.follow_deployments()
        if self._configured:
            self._subscribe()

    def _subscribe(self) -> None:
        if self._ipc is None:
            return
        for topic in dict.fromkeys((*self.settings.subscriptions(), self._self_test_filter)):
            self._ipc.subscribe(topic)
        at = self.clock.monotonic()
        self._send_self_test(self.self_test.next(at))

    def _disconnect(self, reason: str) -> None:
        LOGGER.error("no connection to Greengrass", extra={"fields": {"reason": reason}})
        if self._ipc is not None:
            self._ipc.close()
            self._ipc = None
        self.self_test.alive = False

    def _give_up(self, reason: str) -> None:
        """End the process so that the nucleus starts it anew, at most once an hour of running time."""
        connection = self.ledger.connection
        running = self.ledger.running_seconds(self.clock.monotonic())
        if connection is not None:
            last = get_meta(connection, "gave_up_running_seconds")
            if last is not None and running - last < EXIT_SECONDS * self.settings.scale:
                return
            try:
                with transaction(connection) as write:
                    set_meta(write, gave_up_running_seconds=running)
            except sqlite3.Error:
                return
        LOGGER.error("ending, to be started anew", extra={"fields": {"reason": reason}})
        self._status, self.stopping = 1, True

    def _refused(self, refused: Refused) -> None:
        """Say once what Greengrass refuses; a missing permission stays among the findings."""
        key = (refused.operation, refused.resource)
        if key in self._refusals:
            return
        fields = {"operation": refused.operation, "resource": refused.resource, "error": refused.error}
        finding = None
        if refused.unauthorized:
            fields["remedy"] = permission(*key)
            text = f"Greengrass refuses {refused.operation} on {refused.resource}: a permission is missing."
            finding = Finding(text, fields["remedy"])
        self._refusals[key] = finding
        # Greengrass Lite has no such operations; all goes on without them.
        unsupported = refused.operation in ("SubscribeToComponentUpdates", "DeferComponentUpdate")
        LOGGER.log(
            logging.INFO if unsupported else logging.ERROR, "Greengrass refused a call", extra={"fields": fields}
        )

    def _pre_update(self, deployment_id: str) -> None:
        if self._ipc is not None:
            at = self.clock.monotonic()
            busy = any(job.batch_in_flight for job in self._jobs.values())
            if self._deferred[0] != deployment_id:
                self._deferred = (deployment_id, at)
            wait = busy and at - self._deferred[1] < DEFER_SECONDS
            self._ipc.defer(deployment_id, 1000 if wait else 0)

    def _publish(self, topic: str, payload: bytes) -> None:
        if self._ipc is not None:
            self._ipc.publish(topic, payload)

    def _publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        if self._ipc is not None:
            self._ipc.publish_to_iot_core(topic, payload)

    @property
    def _self_test_topic(self) -> str:
        return (self.settings.inbound_prefix or OWN_TOPICS) + "pruner-self-test"

    @property
    def _self_test_filter(self) -> str:
        prefix = self.settings.inbound_prefix
        return f"{prefix}#" if prefix else self._self_test_topic

    def _send_self_test(self, text: str) -> None:
        self._publish(self._self_test_topic, text.encode())

    # The configuration

    def _configure(self, document: Any, error: str) -> None:
        if error:
            self._hold_configuration((f"the configuration could not be read: {error}",))
            document = None
        try:
            settings = parse(document) if document is not None else self._last_settings()
        except SettingsRefused as refused:
            self._hold_configuration(refused.problems)
            if self._configured:
                return
            settings = self._last_settings()
        else:
            if document is not None:
                self.guards.release("configuration")
                self._keep_last_good(document)
                if settings != self.settings or not self._configured:
                    self._apply(settings)
                    self.event("configuration", accepted=True, problems=[])
                return
        if not self._configured:
            self._apply(settings)

    def _hold_configuration(self, problems: Sequence[str]) -> None:
        for problem in problems:
            LOGGER.error("configuration refused", extra={"fields": {"problem": problem}})
        self.event("configuration", accepted=False, problems=list(problems))
        self.guards.hold(
            Hold(
                "configuration",
                f"the configuration was refused: {'; '.join(problems)}",
                "correct it with a deployment; the last good one is in force for watching until then",
            )
        )

    def _last_good(self) -> Any:
        connection = self.ledger.connection
        return get_meta(connection, "configuration", DEFAULTS) if connection is not None else DEFAULTS

    def _last_settings(self) -> Settings:
        try:
            return parse(self._last_good())
        except SettingsRefused:
            # Another version's: what it meant cannot be told.
            return parse(DEFAULTS)

    def _keep_last_good(self, document: Any) -> None:
        document = {key: value for key, value in document.items() if key != "accessControl"}
        if self.ledger.connection is not None and document != self._last_good():
            self._write(lambda connection: set_meta(connection, configuration=document))

    def _apply(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        first, self._configured = not self._configured, True
        at = self.clock.monotonic()
        LOGGER.setLevel(settings.log_level)
        if settings.allow_short_durations:
            LOGGER.warning("allowShortDurations is on: for trials and tests only, never for a site that works")
        self.self_test.scale = settings.scale
        self.ledger.loss_window_seconds = settings.mass_loss.window_seconds
        self.sources = Sources(settings, self.ledger, at, self.sources)
        self._tell_bridge()
        self._timers.roll_call = at
        self._timers.coverage = min(self._timers.coverage, at + COVERAGE_SECONDS * settings.scale)
        if before.dry_run and not settings.dry_run:
            self._unmark_all("the dry run ended")
        if first or before.subscriptions() != settings.subscriptions():
            if not first and self._ipc is not None:
                self._ipc.unsubscribe()
            self._subscribe()
        if first or before.check_interval_seconds != settings.check_interval_seconds:
            self._timers.cycle = at + self._first_delay()
        self._spare()

    def _spare(self) -> None:
        """Take the marks off that the settings no longer allow, at once."""
        now = self.circumstances("")
        for device in list(self.ledger.devices.values()):
            if device.mark is not None and assess(device, now).mark is None:
                self.ledger.set_mark(device.name, None)
                self.event("unmarked", device.name, reason="the settings spare it")

    def _unmark_all(self, reason: str) -> None:
        for device in list(self.ledger.devices.values()):
            if device.mark is not None:
                self.ledger.set_mark(device.name, None)
                self.event("unmarked", device.name, reason=reason)

    def _take_bridge(self, value: Any, error: str) -> None:
        self._bridge_read = True
        self._bridge = value if isinstance(value, dict) and not error else None
        self._tell_bridge()

    def _tell_bridge(self) -> None:
        client_id = self._bridge.get("clientId") if self._bridge else None
        self.sources.set_bridge(client_id if isinstance(client_id, str) else "", known=self._bridge is not None)
        findings = diagnose(self._bridge, self.settings) if self._bridge_read else ()
        for finding in findings:
            if finding not in self._findings:
                LOGGER.warning("doctor", extra={"fields": {"finding": finding.finding, "remedy": finding.remedy}})
        self._findings = findings

    # What is due

    def _do_due(self, at: float) -> None:
        timers, scale = self._timers, self.settings.scale
        for job in list(self._jobs.values()):
            self._run(lambda job=job: job.tick(at))  # type: ignore[misc]
        self._jobs = {number: job for number, job in self._jobs.items() if not job.over}
        while self._ipc is not None and self._changed:
            # One change of a deployment comes as one event for each value.
            self._ipc.read_configuration(self._changed.pop())
        if self._ipc is not None and self._configured:
            self._do_self_test(at)
            self._send_canaries(at)
        if at >= timers.reconnect:
            timers.reconnect = float("inf")
            self._edges.connect(self.inbox)
        if self.settings.roll_call and at >= timers.roll_call:
            timers.roll_call = at + self.settings.roll_call.interval_seconds
            self._call_roll()
        if at >= timers.requests:
            timers.requests = at + REQUEST_SECONDS * min(1.0, scale)
            self._heed_requests()
        if at >= timers.cycle and self._cycle is None:
            self._begin_cycle(at)
        self._watch_sources(at)
        if at >= timers.reopen:
            self._open_ledger()
        if at >= timers.commit:
            self._commit(at)

    def _do_self_test(self, at: float) -> None:
        remedy = self.self_test.remedy(at)
        if remedy is None:
            if self.self_test.due(at):
                self._send_self_test(self.self_test.next(at))
            return
        LOGGER.warning("the self-test did not come back", extra={"fields": {"remedy": remedy.value}})
        if remedy is Remedy.SUBSCRIBE and self._ipc is not None:
            self._ipc.unsubscribe()
            self._subscribe()
        else:
            if remedy is Remedy.EXIT:
                self._give_up("the subscription stays dead, also on a new connection")
            self._disconnect("the subscription is dead")
            self._edges.connect(self.inbox)

    def _send_canaries(self, at: float) -> None:
        for canary in self.sources.canaries:
            if at >= self._timers.canaries.get(canary.topic, 0.0):
                self._timers.canaries[canary.topic] = at + canary.interval_seconds
                self._publish(canary.topic, b"canary")

    def _call_roll(self) -> None:
        roll_call = self.settings.roll_call
        if roll_call is not None and not self._roll_caller.busy:
            self.sources.roll_call_begins()
            self._roll_caller.call(roll_call.url, roll_call.key_file)

    def _watch_sources(self, at: float) -> None:
        """Say when a source stopped to vouch for longer than its maxQuiet, and when it began."""
        for witness in self.sources.witnesses(at):
            guard = f"source:{witness.name}"
            if witness.vouching:
                self._not_vouching.pop(witness.name, None)
                self.guards.release(guard, witness.reason)
            else:
                since = self._not_vouching.setdefault(witness.name, at)
                patient = at - since <= self.sources.max_quiet_seconds(witness.source_id)
                hold = Hold(guard, witness.reason, "pruner status says what is missing")
                (self.guards.expect if patient else self.guards.hold)(hold)
        in_force = {f"source:{witness.name}" for witness in self.sources.witnesses(at)}
        for hold in self.guards.in_force:
            if hold.guard.startswith("source:") and hold.guard not in in_force:
                self.guards.release(hold.guard)

    # Cycles and restores

    def _first_delay(self) -> float:
        interval = self.settings.check_interval_seconds
        if not self.ledger.devices:
            interval = min(interval, COVERAGE_SECONDS * self.settings.scale)
        return interval * self._jitter()

    def _begin_cycle(self, at: float) -> None:
        self._timers.cycle = float("inf")
        if self.ledger.connection is None:
            self._timers.cycle = at + self._delay()
            return
        self._cycle = Cycle(self)
        self._add_job(self._cycle.steps(), at)

    def _add_job(self, steps: Any, at: float) -> None:
        self._job_number += 1
        number = self._job_number
        worker = self._edges.worker(lambda reply: self.inbox.put_always(Answered(number, reply)))
        job = self._jobs[number] = Job(steps, worker, self._moment)
        self._run(lambda: job.begin(at))

    def _run(self, step: Callable[[], None]) -> None:
        """Take a step of a job; a state file that refuses ends the job and holds pruning."""
        try:
            step()
        except sqlite3.Error as error:
            self.ledger.fault = f"the state file cannot be written: {error}"
            self._heed_fault()

    def _moment(self, check: Check, at: float) -> Moment:
        self._timers.canaries.clear()
        if any(w.name == ROLL_CALL and w.source_id in check.source_ids for w in self.sources.witnesses(at)):
            self._call_roll()
        return Moment(
            check.source_ids,
            at,
            sources=lambda: self.sources,
            self_test=self.self_test,
            send_echo=self._send_self_test,
            scale=self.settings.scale,
        )

    def _delay(self) -> float:
        interval = self.settings.check_interval_seconds
        shift = 0.9 + 0.2 * self._jitter()
        if not self._failures:
            return interval * shift
        first, most = BACK_OFF_SECONDS
        back_off = min(first * 2.0 ** (self._failures - 1), most) * self.settings.scale
        return min(back_off * shift, interval)

    def _restore(self, intents: Sequence[Intent], requested_by: str) -> None:
        if intents:
            self._add_job(restore_steps(self, intents, requested_by), self.clock.monotonic())

    def _heed_requests(self) -> None:
        connection = self.ledger.connection
        if connection is None:
            return
        try:
            rows = connection.execute("SELECT id, kind, argument FROM requests ORDER BY id").fetchall()
            if not rows:
                return
            with transaction(connection, through=True) as write:
                write.executemany("DELETE FROM requests WHERE id = ?", [(row["id"],) for row in rows])
                for row in rows:
                    if row["kind"] == "approve":
                        approved = [*get_meta(write, "approved", []), json.loads(row["argument"])]
                        set_meta(write, approved=approved[-MAX_PLANS:])
        except sqlite3.Error as error:
            LOGGER.error("requests could not be read", extra={"fields": {"error": str(error)}})
            return
        for row in rows:
            if row["kind"] == "restore":
                self._restore(self._wanted(json.loads(row["argument"])), "command")

    def _wanted(self, argument: dict[str, Any]) -> list[Intent]:
        """The intents that a request to restore means: `{"names": […]}`, `{"cycle": id}` or `{"all": true}`."""
        intents = self.journal.restorable(self.ledger.running_seconds(self.clock.monotonic()))
        names = argument.get("names") or []
        cycle = argument.get("cycle")
        return [i for i in intents if argument.get("all") or i.name in names or i.cycle_id == cycle]

    # What a cycle asks for (`cycle.Desk`)

    @property
    def journal(self) -> Journal:
        """The journal; raises `sqlite3.OperationalError` while there is no state file to keep it in."""
        if self.ledger.connection is None:
            raise sqlite3.OperationalError("the state file is not open")
        return Journal(self.ledger.connection)

    def circumstances(self, cycle_id: str) -> Circumstances:
        """By what devices are judged at this moment."""
        at = self.clock.monotonic()
        witnesses, present = self.sources.witnesses(at), self.sources.present_names()
        outages = find_outages(
            self.ledger.devices.values(),
            present,
            self.ledger.ended_absences,
            [witness.source_id for witness in witnesses],
            self.settings.mass_loss,
        )
        return Circumstances(self.settings, witnesses, present, cycle_id, outages)

    def plan(self, due: Sequence[Verdict]) -> Plan:
        """The due devices after all guards."""
        running = self.ledger.running_seconds(self.clock.monotonic())
        associated = len(self.ledger.devices)
        approved, current_id, members = self._approvals()
        unexplained = self.circumstances("").outages.unexplained
        budget = self.journal.budget(associated, running)

        def made(plan_id: str) -> Plan:
            return policy.plan(
                due,
                associated=associated,
                settings=self.settings,
                budget=budget,
                approved=approved,
                plan_id=plan_id,
                unexplained=unexplained,
                standing=self.guards.standing,
            )

        plan = made("")
        waiting = {policy.member(v.device) for v in due if v.device.name in plan.waiting}
        if waiting:
            if not waiting <= members:
                current_id = policy.new_plan_id(waiting)
                self._remember_plan(current_id, waiting)
            plan = made(current_id)
        return plan

    def _approvals(self) -> tuple[set[str], str, set[str]]:
        """The members that are approved, and the plan that waits: its id and members."""
        connection = self.ledger.connection
        plans = get_meta(connection, "plans", []) if connection is not None else []
        ids = {self.settings.approved_plan, *(get_meta(connection, "approved", []) if connection else [])}
        approved = {name for plan_id, names in plans if plan_id in ids for name in names}
        return (approved, plans[-1][0], set(plans[-1][1])) if plans else (approved, "", set())

    def _remember_plan(self, plan_id: str, members: set[str]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            plans = [plan for plan in get_meta(connection, "plans", []) if plan[0] != plan_id]
            set_meta(connection, plans=[*plans, [plan_id, sorted(members)]][-MAX_PLANS:])

        self._write(write)

    def plausible(self, listed: Sequence[Association]) -> bool:
        """Whether a list can be believed: not less than half of last time after our own removals."""
        connection = self.journal.connection
        removed = len(self.journal.open_intents())
        expected = len(self.ledger.devices) - removed
        names = sorted(association.name for association in listed)
        if len(listed) * 2 >= expected:
            self.guards.release("list")
            return True
        before = get_meta(connection, "implausible", [[], 0])
        times = before[1] + 1 if before[0] == names else 1
        self._write(lambda write: set_meta(write, implausible=[names, times]))
        if times >= 3:
            self.guards.release("list")
            return True
        self.guards.hold(
            Hold(
                "list",
                f"{len(listed)} associated devices are listed, where {expected} were expected",
                "nothing to do if that is so: it is believed once three cycles in a row say the same",
            )
        )
        return False

    def event(self, kind: str, name: str | None = None, **data: Any) -> None:
        """Publish an event of the contract."""
        self._reports.event(self.settings, kind, name, **data)
        self._timers.commit = min(self._timers.commit, self.clock.monotonic() + 1.0)

    def failed(self, failure: CallFailed, cycle_id: str, *, names: Sequence[str] = ()) -> None:
        """A call failed: guards, back-off, and one event for each kind."""
        self._failures += 1
        if failure.kind == "accessDenied":
            self.guards.hold(Hold("accessDenied", failure.message, iam_permission(failure.message)))
        elif failure.kind == "coreNotFound":
            reason = f"the cloud does not know core device {self._core_device}: {failure.message}"
            self.guards.hold(Hold("coreNotFound", reason, "has the core device been deleted or renamed?"))
        if failure.kind != self._failed_kind or names:
            self._failed_kind = failure.kind
            self.event("failed", code=failure.code or failure.kind, message=failure.message, cycleId=cycle_id)

    def succeeded(self) -> None:
        """The cloud answered as it should."""
        self.guards.release("coreNotFound")
        self.guards.release("accessDenied")

    def ended(self, cycle: Cycle) -> None:
        """The cycle ended, in whatever way."""
        self._cycle = None
        at = self.clock.monotonic()
        tally = cycle.tally
        if tally.complete:
            self._failures, self._failed_kind = 0, ""
            self.guards.planned(tally.held)
        self._timers.cycle = at + self._delay()
        if self.stopping or not tally.complete:
            return
        counts: dict[str, Any] = dict(tally.states)
        if self.settings.dry_run:
            counts["wouldDisassociate"] = tally.would_disassociate
        self.event(
            "cycle",
            cycleId=cycle.cycle_id,
            disassociated=tally.disassociated,
            held=sorted({hold.guard for hold in (*tally.held, *self.guards.standing)}),
            dryRun=self.settings.dry_run,
            nextCheckInSeconds=round(self._timers.cycle - at, 3),
            **counts,
        )

    # The state file

    def _open_ledger(self) -> None:
        """Open the state file and begin a run on it; while it cannot be opened, pruning holds."""
        at = self.clock.monotonic()
        try:
            connection, aside = state_file.open_state(self._path, self._core_device)
        except state_file.NewerSchema as error:
            self._hold_database(f"{self._path.name} was written by a newer version: {error}", "deploy that version")
            self._timers.reopen = float("inf")
            return
        except (sqlite3.Error, OSError) as error:
            self._hold_database(f"{self._path} cannot be opened: {error}", "make room, or make it writable")
            self._timers.reopen = at + COMMIT_SECONDS * self.settings.scale
            return
        self._timers.reopen = float("inf")
        if aside:
            LOGGER.error("state file set aside", extra={"fields": {"reason": aside}})
        self.guards.release("database")
        self.ledger = Ledger(connection, at)
        if not self._configured:
            # Until the configuration has been read, the sources are those of the last run.
            self.settings = self._last_settings()
        self.ledger.loss_window_seconds = self.settings.mass_loss.window_seconds
        self.sources = Sources(self.settings, self.ledger, at)
        self._tell_bridge()
        for intent in self.journal.restorable(self.ledger.running_seconds(at)):
            self.ledger.watched.add(intent.name)

    def _commit(self, at: float) -> None:
        self._describe(at)
        committed = self.ledger.commit(at)
        self._timers.commit = at + self._commit_interval()
        if committed:
            self.guards.release("database")
        elif self.ledger.connection is not None:
            self._heed_fault()

    def _commit_interval(self) -> float:
        """Once a minute; with many changing rows more rarely, so that flash sees at most some two rows a second."""
        return min(max(COMMIT_SECONDS, 0.5 * self.ledger.pending_rows), 900.0) * self.settings.scale

    def _heed_fault(self) -> None:
        self._hold_database(self.ledger.fault, "make room on the file system, or make it writable")

    def _hold_database(self, reason: str, remedy: str) -> None:
        self.guards.hold(Hold("database", reason, remedy))

    def _write(self, change: Callable[[sqlite3.Connection], None]) -> None:
        connection = self.ledger.connection
        if connection is None:
            return
        try:
            with transaction(connection) as write:
                change(write)
        except sqlite3.Error as error:
            self.ledger.fault = f"the state file cannot be written: {error}"
            self._heed_fault()

    def _describe(self, at: float, *, running: bool = True) -> None:
        """Bring the status up to date, and say when coverage changed."""
        now = self.circumstances("")
        found = (*filter(None, self._refusals.values()), *self._findings)
        findings = [f"{finding.finding} {finding.remedy}" for finding in found]
        self._coverage = cover(self.ledger.devices.values(), now, findings)
        if at >= self._timers.coverage and running:
            said = (self._coverage.associated, self._coverage.provable, self._coverage.reasons)
            if said[:2] != (self._coverage_said or ())[:2]:
                self._coverage_said = said
                self._timers.coverage = at + COVERAGE_SECONDS * self.settings.scale
                self.event("coverage", associated=said[0], provable=said[1], reasons=list(said[2]))
                if said[0] and not said[1]:
                    LOGGER.error("nothing can ever be pruned on this core", extra={"fields": {"reasons": said[2]}})
        self.ledger.status = describe(
            now,
            self.ledger.devices.values(),
            coverage=self._coverage,
            holds=self.guards.in_force,
            findings=found,
            plan=self._approvals()[1:] if self.ledger.connection is not None else ("", set()),
            next_check_seconds=max(0.0, self._timers.cycle - at) if self._cycle is None else 0.0,
            wall=self.clock.wall(),
            running=running,
        )


def permission(operation: str, resource: str) -> str:
    """The JSON that grants a refused call, to be merged into the component's configuration."""
    service = "aws.greengrass.ipc.mqttproxy" if operation == "PublishToIoTCore" else "aws.greengrass.ipc.pubsub"
    policy_id = f"community.greengrass.ClientDevicePruner:granted:{operation}"
    grant = {"operations": [f"aws.greengrass#{operation}"], "resources": [resource]}
    return json.dumps({"accessControl": {service: {policy_id: grant}}})


def iam_permission(message: str) -> str:
    """What to add to the token exchange role when the cloud refuses access."""
    actions = (
        "ListClientDevicesAssociatedWithCoreDevice",
        "BatchDisassociateClientDeviceFromCoreDevice",
        "BatchAssociateClientDeviceWithCoreDevice",
    )
    named = [action for action in actions if action in message] or [actions[0], actions[1]]
    return "allow the token exchange role: " + ", ".join(f"greengrass:{action}" for action in named)
