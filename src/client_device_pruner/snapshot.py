"""The state as a reader finds it: read at one moment, while the component runs or not, and never written."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from client_device_pruner import state_documents, state_file
from client_device_pruner.journal import Intent, Journal
from client_device_pruner.ledger import Ledger, get_meta
from client_device_pruner.model import Device
from client_device_pruner.outages import find_outages
from client_device_pruner.policy import Circumstances
from client_device_pruner.settings import DEFAULTS, SettingsRefused, parse
from client_device_pruner.status import witnesses_of

STATE = "pruner.db"
"""The state file in the work directory."""
_DEVICE_EVENTS = ("marked", "unmarked", "failed", "returned", "restored")


class StateUnreadable(Exception):
    """The state cannot be read, or does not say yet what was asked for; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the component knew when it last wrote.

    Attributes:
        core_device: thing name of the core device.
        running: whether the component runs now.
        written: when the status was written, in epoch seconds.
        running_seconds: the component's running time then.
        status: the contract's status, without `running`; no source in it vouches while the component does not run.
        now: by what devices are judged, as things stood when the status was written.
        devices: the associated devices, by name.
        plans: the plans that can be approved, oldest first: id -> members (see `policy.member`).
        approved: the ids of those that are.
    """

    core_device: str
    running: bool
    written: float
    running_seconds: float
    status: dict[str, Any]
    now: Circumstances
    devices: Mapping[str, Device]
    plans: Mapping[str, tuple[str, ...]]
    approved: frozenset[str]

    @property
    def approved_members(self) -> frozenset[str]:
        """The members of all plans that are approved."""
        return frozenset(chain.from_iterable(self.plans.get(plan_id, ()) for plan_id in self.approved))


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the history: when (epoch seconds), what (an event's type), to whom (None: to a whole call)."""

    wall: float
    kind: str
    name: str | None
    data: dict[str, Any]


def read(work_dir: Path) -> Snapshot:
    """Read the state in this work directory.

    Raises:
        StateUnreadable: there is none, or it cannot be read.
    """
    with _reading(work_dir) as connection:
        return _read(connection, running=is_running(work_dir))


def read_history(work_dir: Path, name: str | None = None) -> tuple[Happening, ...]:
    """Read what was marked, disassociated and restored, of one device or of all, oldest first.

    Disassociations come from the journal, which is written through before the cloud is called; so that none is
    missing, not even one whose outcome is not known yet (`intended`).

    Raises:
        StateUnreadable: there is no state, or it cannot be read.
    """
    with _reading(work_dir) as connection:
        return tuple(sorted(_happenings(connection, name), key=lambda happening: happening.wall))


def read_record(work_dir: Path) -> tuple[Happening, ...]:
    """Read all that happened, in order, whatever the wall clock did: every event, and what timelines are drawn from.

    Transitions carry `turns` and `agoSeconds` (see `ledger.Ledger.note`) as data.

    Raises:
        StateUnreadable: there is no state, or it cannot be read.
    """
    with _reading(work_dir) as connection:
        rows = connection.execute(
            "SELECT id, wall, type, name, data, NULL AS turns, NULL AS ago_seconds FROM history"
            " UNION ALL SELECT id, wall, type, name, NULL, turns, ago_seconds FROM transitions ORDER BY id"
        )
        return tuple(
            Happening(
                state_documents.moment(row["wall"]),
                row["type"],
                row["name"],
                state_documents.mapping(row["data"])
                if row["data"] is not None
                else {"turns": row["turns"], "agoSeconds": row["ago_seconds"]},
            )
            for row in rows
        )


def read_journal(work_dir: Path) -> tuple[tuple[Intent, ...], frozenset[str]]:
    """Read which disassociations can still be undone, and the names of all that ever took place.

    Raises:
        StateUnreadable: there is no state, or it cannot be read.
    """
    with _reading(work_dir) as connection:
        restorable = Journal(connection).restorable(get_meta(connection, "running_seconds", 0.0))
        rows = connection.execute("SELECT DISTINCT name FROM disassociations WHERE outcome = 'done'")
        return restorable, frozenset(row["name"] for row in rows)


def is_running(work_dir: Path) -> bool:
    """Whether a component owns the state in this work directory now.

    It asks for the component's lock, shared and for an instant; a component that starts in just that instant waits
    and asks again.
    """
    try:
        descriptor = os.open(work_dir / "pruner.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def _reading(work_dir: Path) -> Iterator[sqlite3.Connection]:
    """Give the state to read from, all of one moment; whatever is wrong with it becomes `StateUnreadable`."""
    try:
        with closing(_open(work_dir)) as connection:
            state_documents.check(connection)
            yield connection
    except (sqlite3.Error, OSError) as error:
        raise _unreadable(work_dir, error) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StateUnreadable(
            f"What {work_dir / STATE} holds is of another version of the component ({error!r}): try again once this"
            " version has run for a minute."
        ) from error


def _open(work_dir: Path) -> sqlite3.Connection:
    """Open the state and begin to read, so that all that is read is of one moment."""
    path = work_dir / STATE
    if not path.exists():
        raise StateUnreadable(
            f"There is no {STATE} in {work_dir}: the component has never run there, or --work-dir is another one."
        )
    connection = state_file.read_only(path)
    try:
        connection.execute("BEGIN")
        _check_version(path, connection.execute("PRAGMA user_version").fetchone()[0])
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(path: Path, version: int) -> None:
    if version == 0:
        raise StateUnreadable(f"{path} holds nothing yet: wait until the component has started.")
    if version != state_file.SCHEMA_VERSION:
        raise StateUnreadable(
            f"{path} has schema {version}, this version of the command reads {state_file.SCHEMA_VERSION}:"
            " use the command of the version that runs."
        )


def _unreadable(work_dir: Path, error: Exception) -> StateUnreadable:
    corrupt = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    remedy = (
        "the component sets it aside and begins a new one when it starts"
        if corrupt
        else "run this as root or as the component's user"
    )
    return StateUnreadable(f"{work_dir / STATE} cannot be read ({error}): {remedy}.")


def _read(connection: sqlite3.Connection, *, running: bool) -> Snapshot:
    document = get_meta(connection, "status")
    if document is None:
        raise StateUnreadable("The component has not written its status yet: try again in a minute.")
    try:
        settings = parse(get_meta(connection, "configuration", DEFAULTS))
    except SettingsRefused as refused:
        raise StateUnreadable(
            f"The configuration last in force is none for this version: {'; '.join(refused.problems)}"
        ) from refused
    ledger = Ledger(connection, 0.0)
    witnesses = witnesses_of(document)
    present = frozenset(row["name"] for row in connection.execute("SELECT name FROM devices WHERE held"))
    source_ids = [witness.source_id for witness in witnesses]
    outages = find_outages(ledger.devices.values(), present, ledger.ended_absences, source_ids, settings.mass_loss)
    written = float(document.get("time", 0.0))
    approved = {settings.approved_plan, *get_meta(connection, "approved", [])}
    return Snapshot(
        core_device=get_meta(connection, "core", ""),
        running=running,
        written=written,
        running_seconds=get_meta(connection, "running_seconds", 0.0),
        status=_status(document, written, running=running),
        now=Circumstances(settings, witnesses, present, outages=outages),
        devices=ledger.devices,
        plans={plan_id: tuple(members) for plan_id, members in get_meta(connection, "plans", [])},
        approved=frozenset(approved - {""}),
    )


def _status(document: Mapping[str, Any], written: float, *, running: bool) -> dict[str, Any]:
    """The status as it is to be read now: time has passed since, and the component may have ended."""
    kept = ("sources", "counts", "coverage", "guards", "plan", "nextCheckInSeconds", "doctor")
    status = {key: document[key] for key in kept}
    if not running:
        status["sources"] = {
            name: {**source, "vouching": False, "reason": f"the component does not run; at its end: {source['reason']}"}
            for name, source in status["sources"].items()
        }
        return {**status, "nextCheckInSeconds": None}
    left = status["nextCheckInSeconds"]
    if left is not None:
        passed = max(0.0, time.time() - written)
        status["nextCheckInSeconds"] = round(max(0.0, left - passed), 3)
    return status


def _happenings(connection: sqlite3.Connection, name: str | None) -> list[Happening]:
    events = connection.execute(
        "SELECT wall, type, name, data FROM history WHERE ?1 IS NULL OR name = ?1 ORDER BY id", (name,)
    )
    found = [
        Happening(state_documents.moment(row["wall"]), row["type"], row["name"], state_documents.mapping(row["data"]))
        for row in events
        if row["type"] in _DEVICE_EVENTS
    ]
    intents = connection.execute(
        "SELECT * FROM disassociations WHERE outcome IN ('open', 'done') AND (?1 IS NULL OR name = ?1) ORDER BY id",
        (name,),
    )
    for row in intents:
        data = {**state_documents.mapping(row["evidence"]), "cycleId": row["cycle_id"]}
        if row["restored_by"]:
            data["restoredBy"] = row["restored_by"]
        kind, wall = ("disassociated", row["settled_wall"]) if row["outcome"] == "done" else ("intended", None)
        found.append(Happening(wall or row["intended_wall"], kind, row["name"], data))
    return found
