"""A cycle, from the list of associations to confirmed disassociations, as a generator of steps.

The generator does no waiting itself: it yields what it needs next and is sent the answer, so that one thread can run
it beside all else, a test can crash it at every step, and a simulation can run it in virtual time.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from client_device_pruner.decisions.guards import (
    LIST_BELIEVED_AFTER,
    Hold,
    Plan,
    list_hold,
    new_plan_id,
    preflight_hold,
)
from client_device_pruner.decisions.policy import State, Verdict, judge
from client_device_pruner.presence.client_list import Asked, ListFailed
from client_device_pruner.pruning.cloud import NOT_CARRIED_OUT, Batch, Batched, CallFailed, Listed, ListPage
from client_device_pruner.pruning.core import Core
from client_device_pruner.pruning.failures import ASSOCIATE, DISASSOCIATE, LIST, Failures
from client_device_pruner.pruning.plans import expire_approvals, make_plan
from client_device_pruner.reports.events import LOGGER
from client_device_pruner.store.journal import Intent

BATCH = 100  # entries of one batch call at most: the API's limit
MAX_PAGES = 10_000
"""Pages of one listing at most: more devices than any core has; a service that turns in circles ends there."""


@dataclass(frozen=True, slots=True)
class Start:
    """Wait until the child process is ready; answered by `Ready` or `CallFailed`."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the broker which of these devices are connected; answered by `Asked` or `ListFailed`."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send a probe; answered by whether it came back within so long."""

    within_seconds: float


Step = Start | ListPage | Batch | Ask | SendProbe
Steps = Generator[Step, Any, None]
Associations = Mapping[str, float | None]  # thing names with their associationTimestamps, as listed


class Cycle:
    """One cycle."""

    def __init__(self, core: Core, failures: Failures) -> None:
        self.cycle_id = os.urandom(5).hex()
        self.in_flight: dict[str, Intent] = {}  # disassociations that were journalled and are not confirmed
        self.sighted: set[str] = set()  # those of them that were sighted since, as `Restores` notes it
        self.disassociated = 0  # confirmed ones
        self.would_disassociate = 0  # in a dry run
        self.holds: tuple[Hold, ...] = ()  # what its plan came to, and what the preflight missed
        self.complete = False
        self._sent = 0  # disassociations that were journalled
        self._accepted = set[str]()  # the names of those that the cloud accepted
        self._core = core
        self._failures = failures

    def steps(self) -> Steps:
        """Run the cycle; raises `sqlite3.Error` where the state file refuses."""
        core = self._core
        ready = yield Start()
        if isinstance(ready, CallFailed):
            self._failures.failed(ready, self.cycle_id, LIST)
            return
        listed = yield from self._list()
        if listed is None:
            return
        self._take_over(core.journal.open_intents(), listed)
        yield from associate(core, self._failures, core.journal.wanted(), self.cycle_id)
        due = self._judge()
        expire_approvals(core, due)
        plan = self._plan(due)
        self.holds = plan.holds
        if core.settings.dry_run:
            self.would_disassociate = len(plan.take)
        else:
            for start in range(0, len(plan.take), BATCH):
                if not (yield from self._disassociate(plan.take[start : start + BATCH])):
                    break
        if self.in_flight:
            listed = yield from self._list()
            if listed is not None:
                self._confirm(listed)
            yield from self._restore_sighted()
            yield from associate(core, self._failures, core.journal.wanted(), self.cycle_id)
        self.complete = listed is not None

    # Listing

    def _list(self) -> Generator[Step, Any, Associations | None]:
        """All associations, or None if the list is incomplete or implausible."""
        found: dict[str, float | None] = {}
        token: str | None = None
        for _page in range(MAX_PAGES):
            reply: Listed | CallFailed = yield ListPage(token)
            if isinstance(reply, CallFailed):
                self._failures.failed(reply, self.cycle_id, LIST)
                return None
            found.update(reply.devices)
            token = reply.next_token
            if token is None:
                self._failures.succeeded(LIST)
                return found if self._is_plausible(found) else None
        failure = CallFailed("garbage", "Paging", f"the list of associations has more than {MAX_PAGES:,} pages")
        self._failures.failed(failure, self.cycle_id, LIST)
        return None

    def _is_plausible(self, listed: Associations) -> bool:
        """Whether a list can be believed: at least half of what was expected, or the same in three cycles in a row."""
        core = self._core
        expected = core.devices.associated_count - len(core.journal.open_intents())
        before, times = core.store.kept("implausible", ("", 0))
        now = ("", 0)
        if len(listed) * 2 < expected:
            fingerprint = new_plan_id(listed)
            now = (fingerprint, times + 1 if before == fingerprint else 1)
        if now != (before, times):
            core.store.keep(implausible=now)
        if not now[1] or now[1] >= LIST_BELIEVED_AFTER:
            core.guards.release("list")
            return True
        core.guards.hold(list_hold(len(listed), expected))
        return False

    def _confirm(self, listed: Associations) -> None:
        """Take over the list after the batches; it may be behind: what it names though accepted stays open."""
        left = {name: i for name, i in self.in_flight.items() if name in self._accepted and is_listed(i, listed)}
        self._take_over([intent for name, intent in self.in_flight.items() if name not in left], listed)
        # What is settled is in flight no longer: from now on a sighting is a return.
        self.in_flight = left

    def _take_over(self, intents: Sequence[Intent], listed: Associations) -> None:
        """Close open intents by what the list says: no longer listed, done; still listed, not done; take it over."""
        core, wall = self._core, self._core.clock.wall()
        not_done = [intent for intent in intents if is_listed(intent, listed)]
        done = [intent for intent in intents if intent not in not_done]
        core.journal.settle(done, "done", wall)
        core.journal.settle(not_done, "notDone", wall)
        for intent in done:
            self.disassociated += 1
            core.event("disassociated", intent.name, **intent.evidence, cycleId=intent.cycle_id)
        ours = {intent.name for intent in intents}
        for name in core.presence.reconcile(listed):
            if name not in ours:
                core.event("unmarked", name, reason="its association ended, or a new one began")

    # Judging

    def _judge(self) -> list[Verdict]:
        """Judge all devices, and return those that are due; marks are set and taken off, and said so."""
        core, due, facts = self._core, [], self._core.facts()
        for device in core.devices.associated():
            verdict = judge(device, core.settings, facts)
            if verdict.gone and device.marked_at is None:
                core.mark(device, verdict)
                verdict = judge(device, core.settings, facts)
            elif not verdict.gone:
                core.unmark(device, verdict.reason)
            if verdict.state is State.DUE:
                due.append(verdict)
        core.commit(urgent=not core.survey())
        return due

    def _plan(self, due: Sequence[Verdict]) -> Plan:
        # A denied disassociation is found to be granted by asking again: one device may try.
        return make_plan(self._core, due, trying=self._failures.only_disassociation_denied)

    # Disassociating

    def _disassociate(self, batch: Sequence[Verdict]) -> Generator[Step, Any, bool]:
        """Send one batch; returns whether the next may follow."""
        core = self._core
        if missed := (yield from self._preflight(tuple(verdict.name for verdict in batch))):
            hold = preflight_hold(missed)
            self.holds = (*self.holds, hold)
            self._failures.missed(hold)
            LOGGER.warning("held in the preflight", extra={"fields": {"reason": hold.reason, "remedy": hold.remedy}})
            return False
        taken = self._still_due(batch)
        if not taken:
            return False
        issued = core.clock.monotonic()
        intents = core.journal.intend(
            self.cycle_id,
            [(v.name, core.devices.by_name[v.name].association_timestamp, v.figures()) for v in taken],
            wall=core.clock.wall(),
            running_seconds=core.running_seconds(),
        )
        self._sent += len(intents)
        self.in_flight.update({intent.name: intent for intent in intents})
        core.presence.watched.update(self.in_flight)
        reply: Batched | CallFailed = yield Batch("disassociate", tuple(i.name for i in intents), issued)
        if isinstance(reply, Batched):
            self._failures.succeeded(DISASSOCIATE)
            self._accepted.update(intent.name for intent in intents if intent.name not in reply.errors)
            refused = [intent for intent in intents if intent.name in reply.errors]
            self._forget(refused)
            for intent in refused:
                self._failures.refused(intent.name, reply.errors[intent.name], self.cycle_id, DISASSOCIATE)
            yield from self._restore_sighted()
            return True
        self._failures.failed(reply, self.cycle_id, DISASSOCIATE)
        if reply.kind in NOT_CARRIED_OUT:
            self._forget(intents)
        return False

    def _preflight(self, names: tuple[str, ...]) -> Generator[Step, Any, str]:
        """Check that all that was sent before is processed, and that the broker names none of the devices.

        Returns what is missing; empty if nothing is. A device that was sighted meanwhile is no longer due, as ever.
        """
        core = self._core
        if core.facts().list_in_use:
            answer: Asked | ListFailed = yield Ask(names)
            if isinstance(answer, ListFailed):
                return answer.reason
            for name in answer.connected:
                core.presence.sight(name, "clientList")
        gaps = core.presence.gaps
        # Where a heartbeat takes the probe's place, at least two come in each interval.
        came_back: bool = yield SendProbe(max(1.0, core.settings.presence.probe_interval_seconds))
        if not came_back:
            return "the probe did not come back"
        return "" if core.presence.gaps == gaps else "messages may have been lost"

    def _still_due(self, batch: Sequence[Verdict]) -> Sequence[Verdict]:
        """What the rule and the guards let go now: what was heard, or configured, since the plan counts."""
        core, facts = self._core, self._core.facts()
        if core.settings.dry_run:
            return []
        devices = [core.devices.by_name[verdict.name] for verdict in batch if verdict.name in core.devices.by_name]
        verdicts = [judge(device, core.settings, facts) for device in devices if device.associated]
        # The limit is of the whole cycle, and may be lower now than when its first batch was sent.
        left = max(0, core.settings.limits.max_per_cycle - self._sent)
        return self._plan([verdict for verdict in verdicts if verdict.state is State.DUE]).take[:left]

    def _forget(self, intents: Sequence[Intent]) -> None:
        """Take that the cloud did not carry these out."""
        self._core.journal.settle(intents, "refused", self._core.clock.wall())
        for intent in intents:
            self.in_flight.pop(intent.name, None)

    # Restoring

    def _restore_sighted(self) -> Generator[Step, Any, None]:
        """Associate again at once what was sighted between preflight and confirmation."""
        tried = set[str]()  # a device that speaks each second is asked back once
        while names := sorted((self.sighted & self.in_flight.keys()) - tried):
            tried.update(names)
            self.sighted.difference_update(names)
            intents = [replace(self.in_flight.pop(name), restore_for="lastMoment") for name in names]
            self._core.journal.settle(intents, "done", self._core.clock.wall())
            restored = yield from associate(self._core, self._failures, intents, self.cycle_id)
            # What the cloud did not take back is confirmed, and told, as any other.
            self.in_flight.update({intent.name: intent for intent in intents if intent.name not in restored})


def associate(
    core: Core, failures: Failures, intents: Sequence[Intent], cycle_id: str
) -> Generator[Step, Any, frozenset[str]]:
    """Associate these devices again, in batches, and say what came of it; returns the names that were taken back.

    An entry is given up where its thing does not exist; all else is tried again later.
    """
    restored = set[str]()
    for start in range(0, len(intents), BATCH):
        part = intents[start : start + BATCH]
        names = tuple(intent.name for intent in part)
        reply: Batched | CallFailed = yield Batch("associate", names, core.clock.monotonic())
        if isinstance(reply, CallFailed):
            failures.failed(reply, cycle_id, ASSOCIATE, names)
            break
        for intent in part:
            requested_by = intent.restore_for or "command"
            if intent.name in reply.errors:
                if "NotFound" in reply.errors[intent.name][0]:
                    core.journal.want([intent], None)
                failures.refused(intent.name, reply.errors[intent.name], cycle_id, ASSOCIATE)
                continue
            restored.add(intent.name)
            failures.restored(intent.name)
            if core.journal.restored(intent, requested_by):
                core.presence.sight(intent.name, "restore")
                core.event("restored", intent.name, requestedBy=requested_by)
    return frozenset(restored)


def is_listed(intent: Intent, listed: Associations) -> bool:
    """Whether the incarnation that was meant is still listed."""
    return intent.name in listed and is_same(listed[intent.name], intent.association_timestamp)


def is_same(listed: float | None, intended: float | None) -> bool:
    """Whether what is listed is the incarnation that was meant; where a timestamp is missing, it may well be."""
    return listed == intended or None in (listed, intended)
