"""The journal: every disassociation from its intent to its outcome, and the budget that they use."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from client_device_pruner.decisions.guards import Budget
from client_device_pruner.store.database import get_meta, set_meta, transaction

WINDOW_SECONDS = 86_400.0  # the budget's fixed window, of the component's running time (`limits.maxPercentPerDay`)
KEPT_SECONDS = 90 * 86_400.0  # how long a disassociation can be undone, of the component's running time


@dataclass(frozen=True, slots=True)
class Intent:
    """One journalled disassociation."""

    intent_id: int
    name: str
    association_timestamp: float | None  # with the name, the incarnation that was meant; None where the cloud gave none
    cycle_id: str
    evidence: dict[str, Any]  # `silentSeconds`, `patienceSeconds` and `evidence`, as the events have them
    intended_wall: float  # epoch seconds
    restore_for: str | None = None  # at whose request to restore it: `command`, `return`, `lastMoment`


class Journal:
    """Reads and writes the disassociations in the state file; every method raises `sqlite3.Error` if it fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def budget(self, associated: int, running_seconds: float) -> Budget:
        """What the current window has left; a new window begins with the devices that are associated now."""
        window = get_meta(self.connection, "budget", {"number": -1})
        number = int(running_seconds // WINDOW_SECONDS)
        # A crash can take back some running time: a window never comes twice.
        if number > window["number"]:
            window = {"number": number, "base": associated, "used": 0}
            with transaction(self.connection) as write:
                set_meta(write, budget=window)
        left = WINDOW_SECONDS * (window["number"] + 1) - running_seconds
        return Budget(window["base"], window["used"], left)

    def use_up(self, associated: int, running_seconds: float) -> None:
        """Leave nothing of the current window: what was used of it is not known any more."""
        self.budget(associated, running_seconds)
        with transaction(self.connection) as write:
            self._use(write, associated)

    def intend(
        self,
        cycle_id: str,
        devices: Iterable[tuple[str, float | None, dict[str, Any]]],
        *,
        wall: float,
        running_seconds: float,
    ) -> tuple[Intent, ...]:
        """Write through the intent to disassociate these devices: names, associationTimestamps and evidence."""
        intents = []
        with transaction(self.connection, through=True) as write:
            write.execute(
                "DELETE FROM disassociations WHERE outcome != 'open' AND intended_running_seconds < ?",
                (running_seconds - KEPT_SECONDS,),
            )
            for name, timestamp, evidence in devices:
                cursor = write.execute(
                    "INSERT INTO disassociations (name, association_timestamp, cycle_id, outcome, evidence,"
                    " intended_wall, intended_running_seconds) VALUES (?, ?, ?, 'open', ?, ?, ?)",
                    (name, timestamp, cycle_id, json.dumps(evidence), wall, running_seconds),
                )
                intents.append(Intent(cursor.lastrowid or 0, name, timestamp, cycle_id, evidence, wall))
            self._use(write, len(intents))
        return tuple(intents)

    def settle(self, intents: Sequence[Intent], outcome: str, wall: float) -> None:
        """Close intents: `done` (no longer listed), `notDone` (still listed) or `refused` (by the cloud).

        Refused ones give their budget back.
        """
        if not intents:
            return
        with transaction(self.connection, through=True) as write:
            write.executemany(
                "UPDATE disassociations SET outcome = ?, settled_wall = ? WHERE id = ?",
                [(outcome, wall, intent.intent_id) for intent in intents],
            )
            if outcome == "refused":
                self._use(write, -len(intents))

    def open_intents(self) -> tuple[Intent, ...]:
        """The intents whose outcome is not known."""
        return self._select("outcome = 'open'")

    def restorable(self, running_seconds: float, name: str | None = None) -> tuple[Intent, ...]:
        """The latest disassociation of each device, or of one, that can still be undone."""
        return self._select(
            "outcome = 'done' AND restored_by IS NULL AND intended_running_seconds >= ? AND (? IS NULL OR name = ?)"
            " AND NOT EXISTS (SELECT 1 FROM disassociations AS later"
            " WHERE later.name = disassociations.name AND later.outcome = 'done' AND later.id > disassociations.id)",
            running_seconds - KEPT_SECONDS,
            name,
            name,
        )

    def unsuccessful(self) -> frozenset[str]:
        """The names of devices whose latest disassociation was refused, or accepted and not carried out."""
        query = "SELECT name, outcome, max(id) FROM disassociations GROUP BY name"
        rows = self.connection.execute(query)
        return frozenset(row["name"] for row in rows if row["outcome"] in ("refused", "notDone"))

    def want(self, intents: Iterable[Intent], requested_by: str | None) -> None:
        """Note at whose request to restore these, so that it outlives a crash; None: at no request any more."""
        with transaction(self.connection, through=True) as write:
            write.executemany(
                "UPDATE disassociations SET restore_for = ? WHERE id = ?",
                [(requested_by, intent.intent_id) for intent in intents],
            )

    def wanted(self) -> tuple[Intent, ...]:
        """The disassociations that are still to be restored."""
        return self._select("outcome = 'done' AND restored_by IS NULL AND restore_for IS NOT NULL")

    def restored(self, intent: Intent, requested_by: str) -> bool:
        """Note that a disassociation was undone, and at whose request; False if that was noted before."""
        with transaction(self.connection, through=True) as write:
            cursor = write.execute(
                "UPDATE disassociations SET restored_by = ? WHERE id = ? AND restored_by IS NULL",
                (requested_by, intent.intent_id),
            )
            return cursor.rowcount == 1

    def _select(self, where: str, *values: Any) -> tuple[Intent, ...]:
        columns = "id, name, association_timestamp, cycle_id, evidence, intended_wall, restore_for"
        # `where` is one of the constant texts above.
        query = f"SELECT {columns} FROM disassociations WHERE {where} ORDER BY id"  # noqa: S608
        rows = [(*row[:4], json.loads(row[4]), *row[5:]) for row in self.connection.execute(query, values)]
        return tuple(Intent(*row) for row in rows)

    @staticmethod
    def _use(write: sqlite3.Connection, number: int) -> None:
        window = get_meta(write, "budget")
        set_meta(write, budget={**window, "used": max(0, window["used"] + number)})
