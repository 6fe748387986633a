"""When cycles and restores run, and all that they ask for: guards, plans, approvals, requests."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Any

from client_device_pruner import policy
from client_device_pruner.cloud_worker import CallFailed, EntryError, Reply
from client_device_pruner.cycle import ASSOCIATE, DISASSOCIATE, LIST, START, Check, Cycle, Steps, restore_steps
from client_device_pruner.job import Job, MomentCheck, Worker
from client_device_pruner.journal import Intent
from client_device_pruner.ledger import get_meta, set_meta, transaction
from client_device_pruner.model import Association, Hold
from client_device_pruner.policy import Plan, Verdict, assess
from client_device_pruner.reports import LOGGER, rfc3339
from client_device_pruner.settings import Settings
from client_device_pruner.watch import COVERAGE_SECONDS, Watch

BACK_OFF_SECONDS = (60.0, 600.0)
"""The delay after a cycle that failed doubles from the first to the second (CONTRACT, cloud calls)."""
REQUEST_SECONDS = 2.0
"""How often requests of the command line are looked for."""
MAX_PLANS = 20
"""Plans remembered for late approvals."""
BELIEVED_AFTER = 3
"""An implausible list is believed once so many cycles in a row say the same (DESIGN, model 9)."""


def first_delay_seconds(settings: Settings, jitter: float, *, listed: bool) -> float:
    """How long after a start, or a change of the interval, the first cycle comes.

    Args:
        settings: those in force.
        jitter: at random in [0, 1).
        listed: whether any association is known: nothing can be said of coverage before a first list.
    """
    interval = settings.check_interval_seconds
    return jitter * (interval if listed else min(interval, COVERAGE_SECONDS * settings.scale))


def next_delay_seconds(
    settings: Settings, jitter: float, *, failures: int, back_off_seconds: tuple[float, float] = BACK_OFF_SECONDS
) -> float:
    """How long after a cycle the next one comes.

    Args:
        settings: those in force.
        jitter: at random in [0, 1).
        failures: since the last cycle that went well.
        back_off_seconds: the delay after the first of them, and the longest.
    """
    shift = 0.9 + 0.2 * jitter
    if not failures:
        return settings.check_interval_seconds * shift
    first, most = back_off_seconds
    # A power of the failures of a week would be beyond what a number can hold.
    back_off = min(first * 2.0 ** min(failures - 1, 30), most) * settings.scale
    return min(back_off * shift, settings.check_interval_seconds)


class Pruning:
    """Owned by the one thread; it is the desk that a cycle turns to (`cycle.Desk`).

    Args:
        watch: what is known.
        worker: makes a child process that delivers its replies with the given job's number.
        check: begins a check in the moment.
        jitter: gives numbers in [0, 1), to shift the cycles.
    """

    def __init__(
        self,
        watch: Watch,
        worker: Callable[[int], Worker],
        check: Callable[[Check, float], MomentCheck],
        jitter: Callable[[], float],
    ) -> None:
        self.watch = watch
        self._worker = worker
        self._check = check
        self._jitter = jitter
        self._jobs: dict[int, Job] = {}
        self._job_number = 0
        self._cycle: Cycle | None = None
        self._next_cycle = float("inf")
        self._next_requests = float("-inf")
        self._failures = 0
        self._ending = False
        self._failures_said: set[tuple[str, str, str]] = set()
        self._denied: dict[str, Hold] = {}
        self._returned_said: set[int] = set()
        self._resumed: sqlite3.Connection | None = None

    # Time

    def schedule(self, at: float) -> None:
        """Set the time of the next cycle, after a start or when the interval changed."""
        listed = bool(self.watch.ledger.devices)
        self._next_cycle = at + first_delay_seconds(self.watch.settings, self._jitter(), listed=listed)

    def tick(self, at: float) -> None:
        """Do what is due."""
        for job in list(self._jobs.values()):
            self.watch.attempt(job.tick, at)
        self._jobs = {number: job for number, job in self._jobs.items() if not job.over}
        if at >= self._next_requests:
            self._next_requests = at + REQUEST_SECONDS * min(1.0, self.watch.settings.scale)
            self.watch.attempt(self._heed_requests)
        if at >= self._next_cycle and self._cycle is None:
            self._begin_cycle(at)

    def reply(self, number: int, reply: Reply, at: float) -> None:
        """Take what a child process answered."""
        job = self._jobs.get(number)
        if job is not None:
            self.watch.attempt(job.reply, reply, at)

    def end(self) -> None:
        """End all children; what was begun stays journalled and is settled by the next cycle."""
        self._ending = True
        for job in self._jobs.values():
            job.end()
        self._jobs.clear()

    @property
    def batch_in_flight(self) -> bool:
        """Whether a batch call is under way."""
        return any(job.batch_in_flight for job in self._jobs.values())

    def next_check_seconds(self, at: float) -> float:
        """How long until the next cycle; 0 while one runs."""
        return 0.0 if self._cycle else max(0.0, self._next_cycle - at)

    def _begin_cycle(self, at: float) -> None:
        if self.watch.ledger.connection is None:
            settings = self.watch.settings
            self._next_cycle = at + min(BACK_OFF_SECONDS[0] * settings.scale, settings.check_interval_seconds)
            return
        self._next_cycle = float("inf")
        self._cycle = Cycle(self)
        self._add_job(self._cycle.steps(), at)

    def _add_job(self, steps: Steps, at: float) -> None:
        self._job_number += 1
        job = self._jobs[self._job_number] = Job(steps, self._worker(self._job_number), self._check)
        self.watch.attempt(job.begin, at)

    # Signs of life that matter at once

    def heed_returned(self) -> None:
        """Act on signs of life of marked devices, of those in flight, and of those disassociated."""
        ledger = self.watch.ledger
        if not ledger.returned:
            return
        names, ledger.returned = dict.fromkeys(ledger.returned), []
        for name in names:
            self.watch.unmark(name, "it showed life")
            in_flight = self._cycle is not None and name in self._cycle.in_flight
            if self._cycle is not None and in_flight:
                self._cycle.lively.add(name)
            if ledger.connection is not None:
                self.watch.attempt(self._heed_begun if in_flight else self._heed_return, name)

    def _heed_begun(self, name: str) -> bool:
        """Keep it in the journal that a device in flight showed life, so that it outlives a crash."""
        begun = [intent for intent in self.watch.journal.open_intents() if intent.name == name]
        self.watch.journal.want(begun, "lastMoment")
        return bool(begun)

    def _heed_return(self, name: str) -> None:
        watch = self.watch
        if self._heed_begun(name):
            return
        intents = [i for i in watch.journal.restorable(watch.running_seconds()) if i.name == name]
        if not intents:
            watch.ledger.watched.discard(name)
            return
        intent = intents[0]
        if name in watch.ledger.devices:
            return
        will = watch.settings.restore_on_return
        if intent.intent_id not in self._returned_said:
            self._returned_said.add(intent.intent_id)
            watch.event("returned", name, disassociatedAt=rfc3339(intent.intended_wall), willRestore=will)
        if will and intent.restore_for is None:
            self._restore([intent], "return")

    # Requests of the command line

    def _heed_requests(self) -> None:
        connection = self.watch.ledger.connection
        if connection is None:
            return
        if connection is not self._resumed:
            self._resumed = connection
            self._restore_now(self.watch.journal.wanted())
        rows = connection.execute("SELECT id, kind, argument FROM requests ORDER BY id").fetchall()
        if not rows:
            return
        # Wanted before the request goes: a crash between leaves it to be asked for twice, never lost.
        for row in rows:
            if row["kind"] == "restore":
                self._restore(self._wanted(_argument(row)), "command")
        with transaction(connection, through=True) as write:
            write.executemany("DELETE FROM requests WHERE id = ?", [(row["id"],) for row in rows])
            approvals = [_argument(row) for row in rows if row["kind"] == "approve"]
            if approved := [plan_id for plan_id in approvals if isinstance(plan_id, str)]:
                set_meta(write, approved=[*get_meta(write, "approved", []), *approved][-MAX_PLANS:])

    def _wanted(self, argument: Any) -> list[Intent]:
        """The intents that a request to restore means: `{"names": […]}`, `{"cycle": id}` or `{"all": true}`."""
        intents = self.watch.journal.restorable(self.watch.running_seconds())
        match argument:
            case {"all": True}:
                return list(intents)
            case {"names": list(names)}:
                return [intent for intent in intents if intent.name in names]
            case {"cycle": str(cycle)}:
                return [intent for intent in intents if intent.cycle_id == cycle]
        return []

    def _restore(self, intents: Sequence[Intent], requested_by: str) -> None:
        if not intents:
            return
        self.watch.journal.want(intents, requested_by)
        self._forget_failures(ASSOCIATE, {intent.name for intent in intents})
        self._restore_now([intent._replace(restore_for=requested_by) for intent in intents])

    def _restore_now(self, intents: Sequence[Intent]) -> None:
        if intents:
            self._add_job(restore_steps(self, intents), self.watch.clock.monotonic())

    # The desk

    def plan(self, due: Sequence[Verdict]) -> Plan:
        """See `cycle.Desk`."""
        watch = self.watch
        associated = len(watch.ledger.devices)
        budget = watch.journal.budget(associated, watch.running_seconds())
        unexplained = watch.circumstances().outages.unexplained
        approved = self._approved()
        # A refused disassociation is released by one that is not: a single device may try.
        probing = self._denied.keys() == {DISASSOCIATE}
        standing = [hold for hold in watch.guards.standing if not (probing and hold.guard == "accessDenied")]

        def made(plan_id: str) -> Plan:
            plan = policy.plan(
                due,
                associated=associated,
                settings=watch.settings,
                budget=budget,
                approved=approved,
                plan_id=plan_id,
                unexplained=unexplained,
                standing=standing,
            )
            return plan._replace(take=plan.take[:1]) if probing else plan

        plan = made("")
        waiting = {policy.member(v.device) for v in due if v.device.name in plan.waiting}
        if not waiting:
            return plan
        plan_id, members = self.waiting_plan()
        if not waiting <= members:
            plan_id = policy.new_plan_id(waiting)
            self._remember_plan(plan_id, waiting)
        return made(plan_id)

    def waiting_plan(self) -> tuple[str, frozenset[str]]:
        """The latest plan that had to wait: its id, and the keys of its members (see `policy.member`)."""
        plans = self._plans()
        return (plans[-1][0], frozenset(plans[-1][1])) if plans else ("", frozenset())

    def _plans(self) -> list[tuple[str, list[str]]]:
        plans: list[tuple[str, list[str]]] = self.watch.kept("plans", [])
        return plans

    def _approved(self) -> set[str]:
        """The members of all plans that were approved, by the configuration or by command."""
        ids = {self.watch.settings.approved_plan, *self.watch.kept("approved", [])}
        return {name for plan_id, names in self._plans() if plan_id in ids for name in names}

    def _remember_plan(self, plan_id: str, members: set[str]) -> None:
        plans = [plan for plan in self._plans() if plan[0] != plan_id]
        self.watch.keep(plans=[*plans, (plan_id, sorted(members))][-MAX_PLANS:])

    def plausible(self, listed: Sequence[Association]) -> bool:
        """See `cycle.Desk`: not less than half of last time after our own removals, or three times the same."""
        watch = self.watch
        expected = len(watch.ledger.devices) - len(watch.journal.open_intents())
        names = sorted(association.name for association in listed)
        before, times, last_cycle = watch.kept("implausible", ([], 0, ""))
        if len(listed) * 2 >= expected:
            if times:
                watch.keep(implausible=([], 0, ""))
            watch.guards.release("list")
            return True
        cycle_id = self._cycle.cycle_id if self._cycle else ""
        if before != names or cycle_id != last_cycle:
            times = times + 1 if before == names else 1
            watch.keep(implausible=(names, times, cycle_id))
        if times >= BELIEVED_AFTER:
            watch.guards.release("list")
            return True
        watch.guards.hold(
            Hold(
                "list",
                f"{len(listed)} associated devices are listed, where {expected} were expected",
                f"nothing to do if that is so: it is believed once {BELIEVED_AFTER} cycles in a row say the same",
            )
        )
        return False

    def failed(self, failure: CallFailed, cycle_id: str, operation: str = START, *, names: Sequence[str] = ()) -> None:
        """See `cycle.Desk`; a restore that failed names its devices, and holds no disassociation back."""
        watch = self.watch
        remedy = {"remedy": iam_permission(operation)} if failure.kind == "accessDenied" else {}
        code = failure.code or failure.kind
        for name in names or (None,):
            if self._is_news(operation, failure.kind, name):
                self.watch.event("failed", name, code=code, message=failure.message, cycleId=cycle_id, **remedy)
        if operation == ASSOCIATE:
            return
        self._failures += 1
        if failure.kind == "accessDenied":
            self._denied[operation] = Hold("accessDenied", failure.message, iam_permission(operation))
            watch.guards.hold(self._denied[operation])
        elif failure.kind == "garbage" and operation == LIST:
            watch.guards.hold(Hold("list", failure.message, "nothing was disassociated; the next cycle lists again"))
        elif failure.kind == "coreNotFound":
            reason = f"the cloud does not know core device {watch.core_device}: {failure.message}"
            watch.guards.hold(Hold("coreNotFound", reason, "has the core device been deleted or renamed?"))

    def refused(self, error: EntryError, cycle_id: str, operation: str) -> None:
        """See `cycle.Desk`; an entry refused in each cycle with the same code is said once."""
        if self._is_news(operation, f"entry {error.code}", error.thing_name) or operation == ASSOCIATE:
            self.watch.event("failed", error.thing_name, code=error.code, message=error.message, cycleId=cycle_id)

    def _is_news(self, operation: str, kind: str, name: str | None) -> bool:
        key = (operation, kind, name or "")
        is_news = key not in self._failures_said
        self._failures_said.add(key)
        return is_news

    def _forget_failures(self, operation: str, names: Collection[str]) -> None:
        self._failures_said = {key for key in self._failures_said if key[0] != operation or key[2] not in names}

    def succeeded(self, operation: str) -> None:
        """See `cycle.Desk`; access denied to one operation is not granted by another."""
        self.watch.guards.release("coreNotFound")
        self._denied.pop(operation, None)
        self._denied.pop(START, None)
        if not self._denied:
            self.watch.guards.release("accessDenied")

    def ended(self, cycle: Cycle) -> None:
        """See `cycle.Desk`."""
        watch, tally, at = self.watch, cycle.tally, self.watch.clock.monotonic()
        self._cycle = None
        if tally.complete and not tally.failed:
            self._failures = 0
            # What is said of a single device is not said again while it is so.
            devices = watch.ledger.devices
            self._failures_said = {k for k in self._failures_said if k[2] in devices or k[0] == ASSOCIATE}
        if tally.complete:
            watch.guards.planned(tally.held)
        self._failures += tally.broken
        self._next_cycle = at + next_delay_seconds(watch.settings, self._jitter(), failures=self._failures)
        if self._ending:
            return
        counts: dict[str, Any] = dict(tally.states)
        if watch.settings.dry_run:
            counts["wouldDisassociate"] = tally.would_disassociate
        self.watch.event(
            "cycle",
            cycleId=cycle.cycle_id,
            complete=tally.complete,
            disassociated=tally.disassociated,
            held=sorted({hold.guard for hold in (*tally.held, *watch.guards.standing)}),
            dryRun=watch.settings.dry_run,
            nextCheckInSeconds=round(self._next_cycle - at, 3),
            **counts,
        )

    def spare(self) -> None:
        """Take the marks off that changed settings no longer allow."""
        now = self.watch.circumstances()
        for device in list(self.watch.ledger.devices.values()):
            if device.mark is not None and assess(device, now).mark is None:
                self.watch.unmark(device.name, "the settings spare it")


def _argument(row: sqlite3.Row) -> Any:
    """What a request is about; None, which asks for nothing, where it cannot be read: it must not end the process."""
    try:
        return json.loads(row["argument"])
    except (ValueError, RecursionError):
        LOGGER.error("request dropped", extra={"fields": {"kind": row["kind"], "argument": row["argument"][:100]}})
        return None


_ACTIONS = {
    LIST: "greengrass:ListClientDevicesAssociatedWithCoreDevice",
    DISASSOCIATE: "greengrass:BatchDisassociateClientDeviceFromCoreDevice",
    ASSOCIATE: "greengrass:BatchAssociateClientDeviceWithCoreDevice",
}


def iam_permission(operation: str) -> str:
    """What to add to the token exchange role when the cloud refuses access to an operation."""
    actions = [_ACTIONS[operation]] if operation in _ACTIONS else [_ACTIONS[LIST], _ACTIONS[DISASSOCIATE]]
    return "allow the token exchange role: " + ", ".join(actions)
