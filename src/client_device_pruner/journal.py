"""The journal: every disassociation from its intent to its outcome, and the budget that they use."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from client_device_pruner.ledger import get_meta, set_meta, transaction
from client_device_pruner.model import Association
from client_device_pruner.policy import Budget

WINDOW_SECONDS = 86_400.0
"""The budget's fixed window, of the component's running time (CONTRACT, `limits.maxPercentPerDay`)."""
KEPT_SECONDS = 90 * 86_400.0
"""How long a disassociation can be undone, of the component's running time (DESIGN, model 10)."""


class Intent(NamedTuple):
    """One journalled disassociation.

    `outcome` is `open`, `done` (no longer listed), `notDone` (still listed) or `refused` (by the cloud).
    `restore_for` says at whose request it is to be undone, `restored_by` that it was.
    """

    intent_id: int
    association: Association
    cycle_id: str
    outcome: str
    evidence: dict[str, Any]
    intended_wall: float
    restored_by: str | None
    restore_for: str | None = None

    @property
    def name(self) -> str:
        """The thing name."""
        return self.association.name


class Journal:
    """Reads and writes the disassociations in the state file; every write raises `sqlite3.Error` if it fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def budget(self, associated: int, running_seconds: float) -> Budget:
        """What the current window has left; a new window begins with the associated devices of this moment."""
        window = get_meta(self.connection, "budget", {"number": -1})
        number = int(running_seconds // WINDOW_SECONDS)
        left = WINDOW_SECONDS * (number + 1) - running_seconds
        # A crash can take back some running time: a window never comes twice.
        if number > window["number"]:
            window = {"number": number, "base": associated, "used": 0}
            with transaction(self.connection) as write:
                set_meta(write, budget=window)
        return Budget(window["base"], window["used"], left)

    def intend(
        self,
        cycle_id: str,
        devices: Iterable[tuple[Association, dict[str, Any]]],
        *,
        wall: float,
        running_seconds: float,
    ) -> tuple[Intent, ...]:
        """Write the intent to disassociate these devices through to the medium, and what it uses of the budget."""
        intents = []
        with transaction(self.connection, through=True) as write:
            write.execute(
                "DELETE FROM disassociations WHERE outcome != 'open' AND intended_running_seconds < ?",
                (running_seconds - KEPT_SECONDS,),
            )
            for association, evidence in devices:
                cursor = write.execute(
                    "INSERT INTO disassociations (name, associated_at, cycle_id, outcome, evidence, intended_wall,"
                    " intended_running_seconds) VALUES (?, ?, ?, 'open', ?, ?, ?)",
                    (
                        association.name,
                        association.timestamp,
                        cycle_id,
                        json.dumps(evidence),
                        wall,
                        running_seconds,
                    ),
                )
                intents.append(Intent(cursor.lastrowid or 0, association, cycle_id, "open", evidence, wall, None))
            self._use(write, len(intents))
        return tuple(intents)

    def settle(self, intents: Sequence[Intent], outcome: str, wall: float) -> None:
        """Close intents; refused ones give their budget back."""
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

    def restorable(self, running_seconds: float) -> tuple[Intent, ...]:
        """The latest disassociation of each device that can still be undone."""
        return self._select(
            "outcome = 'done' AND restored_by IS NULL AND intended_running_seconds >= ?"
            " AND id IN (SELECT max(id) FROM disassociations WHERE outcome = 'done' GROUP BY name)",
            running_seconds - KEPT_SECONDS,
        )

    def want(self, intents: Iterable[Intent], requested_by: str | None) -> None:
        """Note who wants these undone, so that it outlives a crash; None: nobody any more."""
        with transaction(self.connection, through=True) as write:
            write.executemany(
                "UPDATE disassociations SET restore_for = ? WHERE id = ?",
                [(requested_by, intent.intent_id) for intent in intents],
            )

    def wanted(self) -> tuple[Intent, ...]:
        """The disassociations that are to be undone and are not yet."""
        return self._select("outcome = 'done' AND restored_by IS NULL AND restore_for IS NOT NULL")

    def restored(self, intent: Intent, requested_by: str) -> bool:
        """Note that a disassociation was undone, and at whose request; False if that was noted before."""
        with transaction(self.connection, through=True) as write:
            cursor = write.execute(
                "UPDATE disassociations SET restored_by = ? WHERE id = ? AND restored_by IS NULL",
                (requested_by, intent.intent_id),
            )
            return cursor.rowcount == 1

    def _select(self, where: str, *arguments: Any) -> tuple[Intent, ...]:
        # `where` is one of the constant texts above; values go in as arguments.
        rows = self.connection.execute(f"SELECT * FROM disassociations WHERE {where} ORDER BY id", arguments)  # noqa: S608
        return tuple(_intent(row) for row in rows)

    @staticmethod
    def _use(write: sqlite3.Connection, number: int) -> None:
        window = get_meta(write, "budget")
        set_meta(write, budget={**window, "used": max(0, window["used"] + number)})


def _intent(row: sqlite3.Row) -> Intent:
    return Intent(
        row["id"],
        Association(row["name"], row["associated_at"]),
        row["cycle_id"],
        row["outcome"],
        json.loads(row["evidence"]),
        row["intended_wall"],
        row["restored_by"],
        row["restore_for"],
    )
