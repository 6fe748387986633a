"""Undo: devices that return, and what the command line asks for."""

from __future__ import annotations

from collections.abc import Sequence

from client_device_pruner.pruning.cloud import CallFailed
from client_device_pruner.pruning.core import Core
from client_device_pruner.pruning.cycle import Cycle, Start, Steps, associate, is_same
from client_device_pruner.pruning.failures import ASSOCIATE, Failures
from client_device_pruner.pruning.plans import approve
from client_device_pruner.reports.events import rfc3339
from client_device_pruner.store.database import transaction
from client_device_pruner.store.journal import Intent


class Restores:
    """Notes in the journal which devices to restore; a run of `steps` then does it."""

    def __init__(self, core: Core, failures: Failures) -> None:
        self.due = True  # whether something was noted, in an earlier run too, since the last `steps` began
        self.unsettled = False  # whether a device was sighted whose disassociation is open
        self._core = core
        self._failures = failures

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
        yield from associate(self._core, self._failures, intents, "")

    def take_sighted(self, cycle: Cycle | None) -> None:
        """Act on sightings of devices that are marked, in flight, or disassociated."""
        core, presence = self._core, self._core.presence
        names = list(dict.fromkeys(presence.sighted_watched))
        presence.sighted_watched.clear()
        for name in names:
            if device := core.devices.by_name.get(name):
                core.unmark(device, "it was sighted")
            in_flight = cycle.in_flight if cycle is not None else {}
            if cycle is not None and name in in_flight:
                cycle.sighted.add(name)
            if name in presence.watched and core.store.connection is not None:
                core.attempt(self._note, name, name in in_flight)

    def _note(self, name: str, in_flight: bool) -> None:
        """Note the sighting of a device that was, or is being, disassociated, so that it outlives a crash."""
        core = self._core
        begun = [intent for intent in core.journal.open_intents() if intent.name == name]
        if begun and begun[0].restore_for is None:
            core.journal.want(begun, "lastMoment")
            self.unsettled = True
        if begun or in_flight:
            return
        for intent in core.journal.restorable(core.running_seconds(), name):
            if intent.restore_for is None and not self._is_associated_again(intent):
                will = core.settings.restore_on_return
                if will:
                    self._want([intent], "return")
                core.event("returned", name, disassociatedAt=rfc3339(intent.intended_wall), willRestore=will)
        # Said and noted once, and then watched no longer: a device that speaks each second costs nothing.
        core.presence.watched.discard(name)

    def _is_associated_again(self, intent: Intent) -> bool:
        """Whether a later association gave it another timestamp; the known one may be older than the disassociation."""
        device = self._core.devices.by_name.get(intent.name)
        if device is None or not device.associated:
            return False
        return not is_same(device.association_timestamp, intent.association_timestamp)

    def take_requests(self) -> None:
        """Take what the command line asks for; raises `sqlite3.Error` where the state file refuses."""
        connection = self._core.store.opened()
        rows = connection.execute("SELECT id, kind, subject FROM requests ORDER BY id").fetchall()
        # Noted before the request goes: a crash between leaves it to be asked for twice, never lost.
        for row in rows:
            if row["kind"] == "approve":
                approve(self._core, row["subject"])
        names = {row["subject"] for row in rows if row["kind"] == "restore"}
        restorable = self._core.journal.restorable(self._core.running_seconds()) if names else ()
        self._want([intent for intent in restorable if intent.name in names], "command")
        if rows:
            with transaction(connection, through=True) as write:
                write.executemany("DELETE FROM requests WHERE id = ?", [(row["id"],) for row in rows])

    def _want(self, intents: Sequence[Intent], requested_by: str) -> None:
        if intents:
            self._core.journal.want(intents, requested_by)
            self.due = True
