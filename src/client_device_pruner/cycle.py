"""A cycle, from the list of associations to confirmed disassociations, as a generator of steps.

The generator does no waiting itself: it yields what it needs next and is sent the answer, so that one thread can
run it beside the watch, a test can crash it at every step, and a simulation can run it in virtual time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple, Protocol

from client_device_pruner.cloud_worker import Batch, Batched, CallFailed, EntryError, Listed, ListPage, Ready, Reply
from client_device_pruner.journal import Intent, Journal
from client_device_pruner.ledger import Ledger
from client_device_pruner.model import Association, Clock, Device, Hold, State
from client_device_pruner.policy import Circumstances, Plan, Verdict, assess, member
from client_device_pruner.reports import LOGGER
from client_device_pruner.topics import THING_NAME

BATCH = 100
"""Entries of one batch call at most: the API's limit."""
NOT_CARRIED_OUT = frozenset({"throttled", "accessDenied", "coreNotFound", "credentials", "refused", "tooOld"})
"""Kinds of failure after which it is certain that a batch changed nothing."""
START, LIST, DISASSOCIATE, ASSOCIATE = "start", "list", "disassociate", "associate"
"""What the cloud is asked, as failures are told apart."""
MAX_PAGES = 10_000
"""Pages of one listing at most: more devices than any core has."""


class Start(NamedTuple):
    """Wait until the child process has its client ready."""


class Check(NamedTuple):
    """Wait for fresh vouchers of these sources and the self-test's echo; answered by what held it up, or None."""

    source_ids: frozenset[int]


Step = Start | ListPage | Batch | Check
Steps = Generator[Step, Any, None]


class Known(Protocol):
    """What a cycle needs to know and to tell, as `watch.Watch`."""

    @property
    def clock(self) -> Clock:
        """The machine's clocks."""

    @property
    def ledger(self) -> Ledger:
        """The ledger in force."""

    @property
    def journal(self) -> Journal:
        """The journal in the state file; raises `sqlite3.Error` while there is none."""

    def circumstances(self, cycle_id: str) -> Circumstances:
        """By what devices are judged at this moment."""

    def event(self, kind: str, name: str | None = None, /, **data: Any) -> None:
        """Publish an event of the contract."""


class Desk(Protocol):
    """What a cycle asks of the component around it, as `pruning.Pruning`."""

    @property
    def watch(self) -> Known:
        """What is known."""

    def plan(self, due: Sequence[Verdict]) -> Plan:
        """The due devices after all guards."""

    def plausible(self, listed: Sequence[Association]) -> bool:
        """Whether a list of associations can be believed; the guard `list` holds if not."""

    def failed(self, failure: CallFailed, cycle_id: str, operation: str = START, *, names: Sequence[str] = ()) -> None:
        """A call failed: guards, back-off, and one event for each kind of failure of an operation."""

    def refused(self, error: EntryError, cycle_id: str, operation: str) -> None:
        """The cloud refused one entry of a batch."""

    def succeeded(self, operation: str) -> None:
        """The cloud answered that operation as it should."""

    def ended(self, cycle: Cycle) -> None:
        """The cycle ended, in whatever way."""


class Tally:
    """What one cycle did, for its event."""

    def __init__(self) -> None:
        self.states: dict[str, int] = {}
        self.disassociated = 0
        self.would_disassociate = 0
        self.held: tuple[Hold, ...] = ()
        self.complete = False
        self.failed = False
        self.broken = False


class Cycle:
    """One cycle.

    Args:
        desk: the component around it.

    Attributes:
        in_flight: names whose disassociation was journalled and is not confirmed.
        lively: those of them that showed life since.
        sent: disassociations that this cycle asked for.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.watch = desk.watch
        self.cycle_id = os.urandom(5).hex()
        self.tally = Tally()
        self.in_flight: dict[str, Intent] = {}
        self.lively: set[str] = set()
        self.sent = 0
        self._requests = count(1)

    def steps(self) -> Steps:
        """Run the cycle."""
        try:
            yield from self._run()
        except sqlite3.Error:
            self.tally.broken = True
            raise
        finally:
            self._count_states()
            self.desk.ended(self)

    def _run(self) -> Steps:
        watch, desk = self.watch, self.desk
        ready: Ready | CallFailed = yield Start()
        if isinstance(ready, CallFailed):
            self._failed(ready, START)
            return
        listed = yield from self._list()
        if listed is None or not desk.plausible(listed):
            return
        begun = watch.journal.open_intents()
        self._settle(begun, listed)
        self._reconcile(listed, {intent.name for intent in begun})
        yield from self._restore_wanted()
        due = self._judge()
        plan = desk.plan(due)
        self.tally.held = plan.holds
        settings = watch.circumstances(self.cycle_id).settings
        attempted = False
        if settings.dry_run:
            self.tally.would_disassociate = len(plan.take)
        else:
            for batch in _batches(plan.take):
                went = yield from self._disassociate(batch)
                attempted = attempted or went is not None
                if not went:
                    break
        if attempted:
            confirmed = yield from self._list()
            if confirmed is not None and desk.plausible(confirmed):
                self._settle(tuple(self.in_flight.values()), confirmed)
                self._reconcile(confirmed, self.in_flight.keys())
            yield from self._restore_lively()
            yield from self._restore_wanted()
        self.tally.complete = True

    # Listing

    def _list(self) -> Generator[Step, Any, list[Association] | None]:
        """All associations, or None if the list cannot be had whole."""
        found: dict[str, Association] = {}
        token: str | None = None
        tokens: set[str] = set()
        for _page in range(MAX_PAGES):
            reply: Reply = yield ListPage(next(self._requests), token)
            if not isinstance(reply, Listed):
                self._failed(_as_failure(reply), LIST)
                return None
            for name, timestamp in reply.devices:
                if THING_NAME.fullmatch(name):
                    found[name] = Association(name, timestamp)
            token = reply.next_token
            if token is None:
                self.desk.succeeded(LIST)
                return list(found.values())
            if token in tokens:
                break
            tokens.add(token)
        failure = CallFailed(None, "garbage", "Paging", "the list of associations repeats a page token")
        self._failed(failure, LIST)
        return None

    def _failed(self, failure: CallFailed, operation: str) -> None:
        self.tally.failed = True
        self.desk.failed(failure, self.cycle_id, operation)

    def _reconcile(self, listed: Iterable[Association], ours: Collection[str]) -> None:
        """Take the list over; what became of our own disassociations is said elsewhere."""
        for name in self.watch.ledger.reconcile(listed, self.watch.clock.monotonic()):
            if name not in ours:
                self.watch.event("unmarked", name, reason="its association ended or was made anew")

    def _settle(self, intents: Sequence[Intent], listed: Iterable[Association]) -> None:
        """Close open intents by what the list says: no longer listed, done; still listed, not done."""
        if not intents:
            return
        watch = self.watch
        still = {association.name: association for association in listed}
        not_done = [i for i in intents if _is_same(still.get(i.name), i.association)]
        done = [i for i in intents if i not in not_done]
        wall = watch.clock.wall()
        watch.journal.settle(done, "done", wall)
        watch.journal.settle(not_done, "notDone", wall)
        for intent in done:
            self.tally.disassociated += 1
            watch.event("disassociated", intent.name, **{**intent.evidence, "cycleId": intent.cycle_id})
            watch.ledger.watched.add(intent.name)
        for intent in not_done:
            self.in_flight.pop(intent.name, None)

    # Judging

    def _judge(self) -> list[Verdict]:
        """Judge all devices, and return those that are due; marks are set and taken off, and said so."""
        watch = self.watch
        now = watch.circumstances(self.cycle_id)
        due = []
        for device in list(watch.ledger.devices.values()):
            verdict = assess(device, now)
            if verdict.mark != device.mark:
                self._change_mark(device, verdict, now)
                if verdict.mark is not None:
                    verdict = assess(device, now)
            if verdict.state is State.DUE:
                due.append(verdict)
        watch.ledger.commit(watch.clock.monotonic())
        return due

    def _change_mark(self, device: Device, verdict: Verdict, now: Circumstances) -> None:
        watch = self.watch
        watch.ledger.set_mark(device.name, verdict.mark)
        if verdict.mark is None:
            watch.event("unmarked", device.name, reason=verdict.reason)
        else:
            watch.event(
                "marked",
                device.name,
                **evidence(verdict),
                dueInSeconds=round(now.settings.notice_seconds, 3),
            )

    def _count_states(self) -> None:
        now = self.watch.circumstances(self.cycle_id)
        self.tally.states = {state.value: 0 for state in State}
        for device in self.watch.ledger.devices.values():
            self.tally.states[assess(device, now).state.value] += 1

    # Disassociating

    def _disassociate(self, batch: Sequence[Verdict]) -> Generator[Step, Any, bool | None]:
        """Send one batch: True if the next may follow, False if not, None if nothing was sent."""
        watch, desk = self.watch, self.desk
        sources = frozenset(v.testimony.witness.source_id for v in batch if v.testimony)
        obstacle: Hold | None = yield Check(sources)
        if obstacle:
            self.tally.held = (*self.tally.held, obstacle)
            LOGGER.warning("held in the last moment", extra={"fields": {"reason": obstacle.reason}})
            return None
        now = watch.circumstances(self.cycle_id)
        if now.settings.dry_run:
            # Deployed while the check was under way.
            return None
        proven = []
        for verdict in batch:
            device = watch.ledger.devices.get(verdict.device.name)
            if device is not None and member(device) == member(verdict.device):
                again = assess(device, now)
                if again.state is State.DUE and again.mark == device.mark:
                    proven.append(again)
        allowed = {v.device.name for v in desk.plan(proven).take}
        left = max(0, now.settings.limits.max_per_cycle - self.sent)
        taken = [v for v in proven if v.device.name in allowed][:left]
        if not taken:
            return None
        issued = watch.clock.monotonic()
        intents = watch.journal.intend(
            self.cycle_id,
            [(v.device.association, evidence(v)) for v in taken],
            wall=watch.clock.wall(),
            running_seconds=watch.ledger.running_seconds(issued),
        )
        self.sent += len(intents)
        for intent in intents:
            self.in_flight[intent.name] = intent
            watch.ledger.watched.add(intent.name)
        reply: Reply = yield Batch(next(self._requests), "disassociate", tuple(i.name for i in intents), issued)
        if isinstance(reply, Batched):
            desk.succeeded(DISASSOCIATE)
            self._refused(intents, reply)
            yield from self._restore_lively()
            return True
        failure = _as_failure(reply)
        self._failed(failure, DISASSOCIATE)
        if failure.kind in NOT_CARRIED_OUT:
            watch.journal.settle(intents, "refused", watch.clock.wall())
            for intent in intents:
                self.in_flight.pop(intent.name, None)
            return None
        return False

    def _refused(self, intents: Sequence[Intent], reply: Batched) -> None:
        """Take the entries that the cloud refused; names that were not asked for say nothing."""
        watch = self.watch
        errors = {error.thing_name: error for error in reply.errors}
        refused = [intent for intent in intents if intent.name in errors]
        watch.journal.settle(refused, "refused", watch.clock.wall())
        for intent in refused:
            self.in_flight.pop(intent.name, None)
            self.desk.refused(errors[intent.name], self.cycle_id, DISASSOCIATE)

    def _restore_lively(self) -> Generator[Step, Any, None]:
        """Associate again at once who showed life between check and confirmation."""
        while self.lively:
            names = sorted(self.lively & self.in_flight.keys())
            intents = [self.in_flight.pop(name)._replace(restore_for="lastMoment") for name in names]
            self.lively.clear()
            self.watch.journal.settle(intents, "done", self.watch.clock.wall())
            restored = yield from associate(self.desk, intents, self._requests, self.cycle_id)
            # Whom the cloud did not take back is confirmed, and told, as any other.
            self.in_flight.update({intent.name: intent for intent in intents if intent.name not in restored})

    def _restore_wanted(self) -> Generator[Step, Any, None]:
        """Associate again what is still to be restored: a crash or a refusal came between."""
        yield from associate(self.desk, self.watch.journal.wanted(), self._requests, self.cycle_id)


def restore_steps(desk: Desk, intents: Sequence[Intent]) -> Steps:
    """Associate again what was disassociated."""
    ready: Ready | CallFailed = yield Start()
    if isinstance(ready, CallFailed):
        desk.failed(ready, "", ASSOCIATE, names=tuple(i.name for i in intents))
        return
    yield from associate(desk, intents, count(1), "")


def associate(
    desk: Desk, intents: Sequence[Intent], requests: Iterator[int], cycle_id: str
) -> Generator[Step, Any, frozenset[str]]:
    """Call the cloud to associate these devices again, in batches, and say what came of it; returns whom it took back.

    An entry that the cloud refuses is given up; after a call that failed, the next cycle tries again.
    """
    watch, restored = desk.watch, set[str]()
    for start in range(0, len(intents), BATCH):
        part = intents[start : start + BATCH]
        names = tuple(intent.name for intent in part)
        reply: Reply = yield Batch(next(requests), "associate", names, watch.clock.monotonic())
        if not isinstance(reply, Batched):
            desk.failed(_as_failure(reply), cycle_id, ASSOCIATE, names=names)
            break
        errors = {error.thing_name: error for error in reply.errors}
        for intent in part:
            requested_by = intent.restore_for or "command"
            if intent.name in errors:
                watch.journal.want([intent], None)
                desk.refused(errors[intent.name], cycle_id, ASSOCIATE)
                continue
            restored.add(intent.name)
            if watch.journal.restored(intent, requested_by):
                watch.event("restored", intent.name, requestedBy=requested_by)
    return frozenset(restored)


def evidence(verdict: Verdict) -> dict[str, Any]:
    """What proves an absence, flat: for events and the journal."""
    testimony = verdict.testimony
    if testimony is None:
        return {}
    return {
        "offlineSeconds": round(testimony.absence_seconds, 3),
        "thresholdSeconds": round(testimony.threshold_seconds, 3),
        "proof": testimony.witness.proof.value,
        "sourceName": testimony.witness.name,
    }


def _batches(verdicts: Sequence[Verdict]) -> Iterator[Sequence[Verdict]]:
    for start in range(0, len(verdicts), BATCH):
        yield verdicts[start : start + BATCH]


def _is_same(listed: Association | None, intended: Association) -> bool:
    """Whether what is listed is the incarnation that was meant; where a timestamp is missing, it may well be."""
    if listed is None:
        return False
    return listed.timestamp == intended.timestamp or None in (listed.timestamp, intended.timestamp)


def _as_failure(reply: Any) -> CallFailed:
    if isinstance(reply, CallFailed):
        return reply
    return CallFailed(None, "garbage", "Protocol", f"an answer of another kind came: {type(reply).__name__}")
