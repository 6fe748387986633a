"""What the commands read: the documents that the component wrote, as of one time, whether it runs or not."""

from __future__ import annotations

import fcntl
import json
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_device_pruner.cli.render import about
from client_device_pruner.store.database import SCHEMA_VERSION, get_meta, read_only
from client_device_pruner.store.history import Happening, read_history, read_timeline
from client_device_pruner.store.journal import Intent, Journal

DATABASE = "pruner.db"  # the state file in the work directory
NOT_UNDERSTOOD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What a document raises, here or where it is shown, that holds what was never written."""
_PLACEHOLDER = re.compile(r"\{(silent|lastSeen|left|due)\}")
_DEVICE_EVENTS = ("marked", "unmarked", "failed", "returned", "restored")


class Failed(Exception):
    """A command could not do what it was asked; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One name that the component keeps; its durations are observed time."""

    name: str
    state: str  # its state in the verdict; "" for a name that is not associated
    evidence: str | None  # what shows that it is gone, or would; None if nothing does, or if it is present
    seen_wall: float | None  # its last sighting in epoch seconds; None if it was never sighted
    seen_by: str
    silent_seconds: float | None  # None while it is present
    patience_seconds: float | None  # None: unlimited
    due_in_seconds: float | None  # until its grace period is over; None if it is not marked
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the component knew when it last wrote its status, at `written` (epoch seconds)."""

    core_device: str
    running: bool  # now
    written: float
    status: dict[str, Any]  # the contract's status document, as of now
    things: Mapping[str, Thing]  # every name that is kept, in order
    plans: Mapping[str, tuple[str, ...]]  # the names in each plan that can be approved, by the plan's id

    @property
    def associated(self) -> tuple[Thing, ...]:
        """The associated devices, by name."""
        return tuple(thing for thing in self.things.values() if thing.state)


def read(work_dir: Path) -> Snapshot:
    """Read how things stand; where that cannot be, it raises `Failed`, as all that follow."""
    with _reading(work_dir) as connection:
        status = get_meta(connection, "status")
        if status is None:
            raise Failed("The component has not written its status yet: try again in a minute.")
        rows = connection.execute(
            "SELECT devices.*, verdict FROM devices LEFT JOIN verdicts USING (name) ORDER BY name"
        )
        # Members are names with the timestamp of their association.
        plans = {
            plan: tuple(member.rpartition("@")[0] for member in members)
            for plan, members in get_meta(connection, "plans", [])
        }
        if waiting := status["plan"]:
            plans[waiting["id"]] = tuple(waiting["devices"])
        running = is_running(work_dir)
        return Snapshot(
            core_device=get_meta(connection, "core", ""),
            running=running,
            written=float(status["time"]),
            status=_as_of_now(status, running=running),
            things={row["name"]: _thing(row, status) for row in rows},
            plans=plans,
        )


def read_happenings(work_dir: Path, name: str | None = None) -> tuple[Happening, ...]:
    """Read what was marked, disassociated and restored, of one device or of all, oldest first.

    Disassociations come from the journal, which is written before the cloud is called, so that none is missing; not
    even one whose outcome is not known yet (`intended`).
    """
    with _reading(work_dir) as connection:
        found = [event for event in read_history(connection, name) if event.kind in _DEVICE_EVENTS]
        rows = connection.execute(
            "SELECT * FROM disassociations WHERE outcome IN ('open', 'done') AND (?1 IS NULL OR name = ?1)", (name,)
        )
        for row in rows:
            data = {**json.loads(row["evidence"]), "cycleId": row["cycle_id"], "restoredBy": row["restored_by"]}
            kind = "disassociated" if row["outcome"] == "done" else "intended"
            found.append(Happening(row["settled_wall"] or row["intended_wall"], kind, row["name"], data))
        return tuple(sorted(found, key=lambda happening: happening.wall))


def read_record(work_dir: Path) -> tuple[list[Happening], list[Happening]]:
    """Read all events, and all changes of state, each in the order in which they were."""
    with _reading(work_dir) as connection:
        return read_history(connection), read_timeline(connection)


def read_restorable(work_dir: Path) -> dict[str, Intent]:
    """Read which disassociations can still be undone, by the device's name."""
    with _reading(work_dir) as connection:
        restorable = Journal(connection).restorable(get_meta(connection, "running", 0.0))
        return {intent.name: intent for intent in restorable}


def is_running(work_dir: Path) -> bool:
    """Whether a component owns the state in this work directory now: whether its lock, asked for shared, is taken."""
    try:
        with (work_dir / "pruner.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def _reading(work_dir: Path) -> Iterator[sqlite3.Connection]:
    """Give the state, all of one time; an error of any kind becomes `Failed`."""
    path = work_dir / DATABASE
    try:
        if not path.exists():
            missing = "the component has never run there, or --work-dir is wrong"
            raise Failed(f"There is no {DATABASE} in {work_dir}: {missing}.")
        with closing(read_only(path)) as connection:
            connection.execute("BEGIN")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                wanted = f"this command reads {SCHEMA_VERSION}: run the component of the same version first"
                raise Failed(f"{path} has schema {version}, {wanted}.")
            yield connection
    except (sqlite3.Error, OSError, *NOT_UNDERSTOOD) as error:
        raise unreadable(work_dir, error) from error


def unreadable(work_dir: Path, error: Exception) -> Failed:
    """What there is to say of a state file that raises this error."""
    return Failed(
        f"{work_dir / DATABASE} cannot be read ({error!r}): run this as root or as the component's user. If it is"
        " broken, the component sets it aside when it starts."
    )


def _as_of_now(status: Mapping[str, Any], *, running: bool) -> dict[str, Any]:
    """The status as of now: time has passed since it was written, and the component may have ended."""
    left, observing = status["nextCheckInSeconds"], status["observing"]
    if running:
        passed = max(0.0, time.time() - status["time"])
        return {**status, "nextCheckInSeconds": None if left is None else round(max(0.0, left - passed), 3)}
    inputs = {
        name: {**one, "alive": False, "reason": "the component does not run"} if one["inUse"] else one
        for name, one in observing["inputs"].items()
    }
    return {**status, "observing": {**observing, "since": None, "inputs": inputs}, "nextCheckInSeconds": None}


def _thing(row: sqlite3.Row, status: Mapping[str, Any]) -> Thing:
    associated = row["unlisted_at"] is None
    verdict = json.loads(row["verdict"]) if row["verdict"] and associated else {}
    observed = status["observedSeconds"]
    state, patience, due_at = verdict.get("state", ""), verdict.get("patienceSeconds"), verdict.get("dueAt")
    silent = None if row["since"] is None else max(0.0, round(observed - row["since"], 3))
    due = None if due_at is None else max(0.0, round(due_at - observed, 3))
    figures = {
        "silent": silent or 0.0,
        "lastSeen": max(0.0, status["time"] - (row["seen_wall"] or status["time"])),
        "left": max(0.0, (patience or 0.0) - (silent or 0.0)),
        "due": due or 0.0,
    }
    sentences = verdict.get("sentences", ())
    return Thing(
        name=row["name"],
        state=state,
        evidence=None if state == "present" else verdict.get("evidence"),
        seen_wall=row["seen_wall"] if row["seen_by"] else None,
        seen_by=row["seen_by"],
        silent_seconds=silent,
        patience_seconds=patience,
        due_in_seconds=due,
        sentences=tuple(_PLACEHOLDER.sub(lambda found: about(figures[found[1]]), text) for text in sentences),
    )
