"""Undo: devices that return, and what the command line asks for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from client_device_pruner.pruning.cloud import CallFailed
from client_device_pruner.pruning.cycle import Cycle, Start, Steps, associate, is_same
from client_device_pruner.pruning.failures import ASSOCIATE, Failures
from client_device_pruner.reports.events import LOGGER, rfc3339
from client_device_pruner.store.database import transaction

if TYPE_CHECKING:
    from client_device_pruner.pruning.core import Core
    from client_device_pruner.pruning.plans import Plans
    from client_device_pruner.store.journal import Intent


class Restores:
    """Notes in the journal what is to be restored; a run of `steps` then does it.

    Args:
        core: what is known.
        plans: takes approvals.
        failures: what is said of calls that fail.

    Attributes:
        due: whether something was noted since the last run began.
    """

    def __init__(self, core: Core, plans: Plans, failures: Failures) -> None:
        self.due = False
        self._core = core
        self._plans = plans
        self._failures = failures

    def resume(self) -> None:
        """Take up what an earlier run left: what could return, and what was to be restored."""
        journal = self._core.journal
        may_return = (*journal.open_intents(), *journal.restorable(self._core.running_seconds()))
        self._core.watched.update(intent.name for intent in may_return)
        self.due = bool(journal.wanted())

    def steps(self) -> Steps:
        """Associate again what was noted; raises `sqlite3.Error` where the state file refuses."""
        self.due = False
        intents = self._core.journal.wanted()
        if not intents:
            return
        ready = yield Start()
        if isinstance(ready, CallFailed):
            self._failures.failed(ready, "", ASSOCIATE, [intent.name for intent in intents])
            return
        yield from associate(self._core, self._failures, intents, count(1), "")

    def take_sighted(self, cycle: Cycle | None) -> None:
        """Act on sightings of devices that are marked, in flight, or disassociated."""
        core = self._core
        names = list(dict.fromkeys(core.sighted))
        core.sighted.clear()
        for name in names:
            if device := core.devices.by_name.get(name):
                core.unmark(device, "it was sighted")
            in_flight = cycle is not None and name in cycle.in_flight
            if cycle is not None and in_flight:
                cycle.sighted.add(name)
            if name in core.watched and core.store.connection is not None:
                core.attempt(self._note_in_flight if in_flight else self._note_return, name)

    def _note_in_flight(self, name: str) -> bool:
        """Note that a device was sighted before it was confirmed, so that it outlives a crash."""
        begun = [intent for intent in self._core.journal.open_intents() if intent.name == name]
        if begun and begun[0].restore_for is None:
            self._core.journal.want(begun, "lastMoment")
        return bool(begun)

    def _note_return(self, name: str) -> None:
        core = self._core
        if self._note_in_flight(name):
            return
        intents = core.journal.restorable(core.running_seconds(), name)
        # Said once, and then watched no longer: a device that speaks each second costs nothing.
        core.watched.discard(name)
        for intent in intents:
            if intent.restore_for is None and not self._is_associated_again(intent):
                will = core.settings.restore_on_return
                core.event("returned", name, disassociatedAt=rfc3339(intent.intended_wall), willRestore=will)
                if will:
                    self._want([intent], "return")

    def _is_associated_again(self, intent: Intent) -> bool:
        """Whether somebody did, which gave it another timestamp; what is known may be older than the disassociation."""
        device = self._core.devices.by_name.get(intent.name)
        if device is None or not device.associated:
            return False
        return not is_same(device.association_timestamp, intent.association_timestamp)

    def take_requests(self) -> None:
        """Take what the command line asks for; raises `sqlite3.Error` where the state file refuses."""
        connection = self._core.store.opened()
        rows = connection.execute("SELECT id, kind, argument FROM requests ORDER BY id").fetchall()
        if not rows:
            return
        # Noted before the request goes: a crash between leaves it to be asked for twice, never lost.
        for row in rows:
            if row["kind"] == "restore":
                self._want(self._meant(_argument(row)), "command")
        approvals = [_argument(row) for row in rows if row["kind"] == "approve"]
        if approved := [plan_id for plan_id in approvals if isinstance(plan_id, str)]:
            self._plans.approve(approved)
        with transaction(connection, through=True) as write:
            write.executemany("DELETE FROM requests WHERE id = ?", [(row["id"],) for row in rows])

    def _meant(self, argument: Any) -> list[Intent]:
        """What a request to restore means: `{"names": […]}`, `{"cycle": id}` or `{"all": true}`."""
        intents = self._core.journal.restorable(self._core.running_seconds())
        match argument:
            case {"all": True}:
                return list(intents)
            case {"names": list(names)}:
                return [intent for intent in intents if intent.name in names]
            case {"cycle": str(cycle)}:
                return [intent for intent in intents if intent.cycle_id == cycle]
        return []

    def _want(self, intents: Sequence[Intent], requested_by: str) -> None:
        if intents:
            self._core.journal.want(intents, requested_by)
            self.due = True


def _argument(row: sqlite3.Row) -> Any:
    """What a request is about; None, which asks for nothing, where it cannot be read: it must not end the process."""
    try:
        return json.loads(row["argument"])
    except (ValueError, RecursionError):
        LOGGER.error("request dropped", extra={"fields": {"kind": row["kind"], "argument": row["argument"][:100]}})
        return None
