"""The ledger: what is known of every associated client device, and the clocks that it is measured on."""

from __future__ import annotations

import json
import sqlite3
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Any

from client_device_pruner import state_documents
from client_device_pruner.model import ANNOUNCED, AWAY, HERE, SEEN, Absence, Association, Device, Habit, Mark, pack
from client_device_pruner.source_clock import SourceClock
from client_device_pruner.topics import THING_NAME

MAX_STRANGERS = 10_000
"""Names announced by a broker but not associated with this core, kept at most; the oldest go first."""
MAX_ENDED = 20_000
"""Ended absences remembered between two commits at most."""
MAX_HISTORY = 20_000
"""Rows of history kept at most."""
MAX_TRANSITIONS = 50_000
"""Rows of what timelines are drawn from kept at most: some 3 MB."""


class SourceRecord:
    """A source as the ledger keeps it: what it is, its clock, and whether it is in force now."""

    def __init__(self, source_id: int, name: str, identity: str, clock: SourceClock, *, active: bool) -> None:
        self.source_id = source_id
        self.name = name
        self.identity = identity
        self.clock = clock
        self.active = active


KINDS = ("started", "stopped", "vouching", "silent", "arrived", "left", "unlisted", "outage", "outageEnded")
"""What the component, a source or a device can turn to."""
_TRANSITION = Struct("=qdBLd")
"""What turned, as it waits for the commit: its number, the wall clock, its place in `KINDS`, turns, and seconds ago.

Packed, it takes a third of the memory; all devices of a site can arrive within seconds.
"""


class Ledger:
    """Owned by one thread. All times are monotonic seconds, given by the caller.

    Signs of life change the memory at once and reach the file grouped, in one transaction with the clocks' credit
    (invariant I6): a crash loses both or none.

    Args:
        connection: the open state file, or None while there is none to write to.
        started: the monotonic moment at which this run began.
        wall: the wall clock in epoch seconds, for people to read.
    """

    def __init__(
        self, connection: sqlite3.Connection | None, started: float, wall: Callable[[], float] = time.time
    ) -> None:
        self.connection = connection
        self.devices: dict[str, Device] = {}
        self.sources: dict[str, SourceRecord] = {}
        self.watched: set[str] = set()
        self.returned: list[str] = []
        self.fault = ""
        self.refusal: sqlite3.Error | None = None
        self.status: dict[str, Any] | None = None
        self._wall = wall
        self._history: list[tuple[int, float, str, str | None, str]] = []
        self._transitions: defaultdict[str, dict[str | None, bytes]] = defaultdict(dict)
        self._number = 0
        self._records: list[SourceRecord] = []
        self._active: list[tuple[int, SourceClock]] = []
        self._latest_markers = b""
        self._strangers: dict[str, None] = {}
        self._started = started
        self._running_seconds = 0.0
        self._dirty: set[str] = set()
        self._ended: dict[tuple[str, float], Absence] = {}
        self._stored_ended: set[tuple[str, float]] = set()
        self.loss_window_seconds = 600.0
        self._dirty_strangers = False
        self._gone: set[str] = set()
        self.present: Callable[[str], bool] = lambda _name: False
        if connection is not None:
            self._load(connection)

    # Sources

    def adopt(self, sources: Iterable[tuple[str, str, float]], at: float) -> dict[str, SourceRecord]:
        """Put these sources in force, as (name, identity, maxQuiet in seconds), and all others out.

        A source is its identity (type and topics), so a renamed one goes on. One that is new, or was off, or whose
        topics changed keeps its clock's reading while habits and markers on it start anew.
        """
        wanted = {identity: (name, max_quiet) for name, identity, max_quiet in sources}
        self.sources = {}
        for record in self._records:
            if record.identity not in wanted:
                record.active = False
        for identity, (name, max_quiet) in wanted.items():
            record = self._record(name, identity)
            record.name, record.clock.max_quiet_seconds = name, max_quiet
            if not record.active:
                record.active = True
                self._start_anew(record)
            self.sources[name] = record
        self._active = [(record.source_id, record.clock) for record in self._records if record.active]
        for device in self.devices.values():
            self._extend(device, at)
        return self.sources

    def _record(self, name: str, identity: str) -> SourceRecord:
        for record in self._records:
            if record.identity == identity:
                return record
        for record in self._records:
            if record.name == name and not record.active:
                record.identity = identity
                return record
        record = SourceRecord(len(self._records), name, identity, SourceClock(0.0), active=False)
        self._records.append(record)
        return record

    def start_anew(self, name: str) -> None:
        """Let the habits and markers on this source start anew: it hears less than it did."""
        self._start_anew(self.sources[name])

    def _start_anew(self, record: SourceRecord) -> None:
        record.clock.break_stretch()
        record.clock.restart_absences()
        for device in self.devices.values():
            if device.habits and device.habits.pop(record.source_id, None):
                self._dirty.add(device.name)

    # Signs of life

    def alive(self, name: str, at: float) -> None:
        """The name showed life: its absence on every source begins here."""
        device = self.devices.get(name)
        if device is not None:
            flags = device.flags
            if not flags & HERE:
                self.note("presence", "arrived", name)
            before = tuple(device.readings) if flags & AWAY and flags & SEEN else ()
            self._mark_present(device, at)
            device.flags = (flags | SEEN | HERE) & ~AWAY
            if before and len(self._ended) < MAX_ENDED:
                self._ended.setdefault((name, before[0]), Absence(name, before, tuple(device.readings)))
        if name in self.watched:
            self.returned.append(name)

    def held_until(self, name: str, at: float) -> None:
        """The name was held present until now, and no longer is."""
        device = self.devices.get(name)
        if device is not None:
            self._mark_present(device, at)
            device.away = True
            self._note_left(device)

    def left(self, name: str, at: float) -> None:
        """The name showed life by leaving, which is no return: its next sign of life is."""
        device = self.devices.get(name)
        if device is not None:
            self._mark_present(device, at)
            device.flags |= SEEN | AWAY
            self._note_left(device)
        if name in self.watched:
            self.returned.append(name)

    def hear(self, name: str, source_id: int, at: float) -> None:
        """The name spoke on an activity source: a sign of life, and part of its habit."""
        device = self.devices.get(name)
        if device is None:
            self.alive(name, at)
            return
        if device.habits is None:
            device.habits = {}
        habit = device.habits.get(source_id, Habit())
        running = self.running_seconds(at)
        silence = running - habit.last_running_seconds
        if silence > max(habit.longest_silence_seconds, self.loss_window_seconds):
            device.away = True
            self._note_left(device, silence)
        self.alive(name, at)
        device.habits[source_id] = habit.after(device.marker(source_id), running)

    def announce(self, name: str) -> None:
        """A broker's event or a roll call named it: from now on its activity can open a session."""
        device = self.devices.get(name)
        if device is not None:
            if not device.flags & ANNOUNCED:
                device.announced = True
                self._dirty.add(name)
        elif name not in self._strangers and THING_NAME.fullmatch(name):
            if len(self._strangers) >= MAX_STRANGERS:
                del self._strangers[next(iter(self._strangers))]
            self._strangers[name] = None
            self._dirty_strangers = True

    def known_name(self, name: str) -> str:
        """The name, in the ledger's own copy if it is associated: what many keep is in memory once."""
        device = self.devices.get(name)
        return name if device is None else device.name

    def announced(self, name: str) -> bool:
        """Whether a broker's event or a roll call ever named it."""
        device = self.devices.get(name)
        return device.announced if device is not None else name in self._strangers

    def associated(self, name: str) -> bool:
        """Whether a device of that name is associated with this core."""
        return name in self.devices

    def _mark_present(self, device: Device, at: float) -> None:
        readings = device.readings
        if len(readings) != len(self._records):
            readings = self._extend(device, at)
        for source_id, clock in self._active:
            readings[source_id] = clock.reading(at)
        self._set_markers(device, readings.tobytes())
        self._dirty.add(device.name)

    def _extend(self, device: Device, at: float) -> array[float]:
        """Give the device a marker for each source, and return them; one that it did not have begins now."""
        readings = device.readings
        if len(readings) < len(self._records):
            readings.extend([record.clock.reading(at) for record in self._records[len(readings) :]])
            self._set_markers(device, readings.tobytes())
            self._dirty.add(device.name)
        return readings

    def _set_markers(self, device: Device, markers: bytes) -> None:
        # While no clock goes, they are the same for all, and in memory once.
        if markers != self._latest_markers:
            self._latest_markers = markers
        device.markers = self._latest_markers

    # Associations

    def reconcile(self, associations: Iterable[Association], at: float) -> tuple[str, ...]:
        """Take the list of associations as the cloud tells it; returns the names that lost a mark by it.

        A new timestamp is a new incarnation: nothing that was held against the old one counts, and its absence
        begins with this listing. It has shown life only if it is present now.
        """
        listed = {association.name: association for association in associations}
        unmarked = []
        for name in [name for name in self.devices if name not in listed]:
            device = self.devices.pop(name)
            self.note("presence", "unlisted", name)
            if device.mark:
                unmarked.append(name)
            if device.announced:
                self.announce(name)
            self._dirty.discard(name)
            self._gone.add(name)
        for name, association in listed.items():
            known = self.devices.get(name)
            if known is not None and known.associated_at == association.timestamp:
                continue
            if known is not None and known.mark:
                unmarked.append(name)
            present = self.present(name)
            announced = self.announced(name)
            device = Device(name, association.timestamp, seen=present, announced=announced, away=not present)
            self.devices[name] = device
            self._gone.discard(name)
            self._strangers.pop(name, None)
            self._mark_present(device, at)
            if present:
                device.here = True
                self.note("presence", "arrived", name)
        return tuple(unmarked)

    def set_mark(self, name: str, mark: Mark | None) -> None:
        """Mark a device as stale, or take the mark off."""
        self.devices[name].mark = mark
        self._dirty.add(name)
        if mark:
            self.watched.add(name)

    @property
    def ended_absences(self) -> tuple[Absence, ...]:
        """The absences that ended while others, begun about the same time, may still last."""
        return tuple(self._ended.values())

    def _drop_ended(self) -> None:
        """Forget ended absences that nobody who is still away shares."""
        if not self._ended:
            return
        window = max(self.loss_window_seconds, 1e-9)
        begun = {
            (source_id, int(device.marker(source_id) // window))
            for device in self.devices.values()
            if not self.present(device.name)
            for source_id, _clock in self._active
        }
        for key, absence in list(self._ended.items()):
            near = (
                (source_id, int(began // window) + step)
                for source_id, began in enumerate(absence.began)
                for step in (-1, 0, 1)
            )
            if not any(place in begun for place in near):
                del self._ended[key]

    def record(self, wall: float, kind: str, name: str | None, data: dict[str, Any]) -> None:
        """Keep an event in the history, with the next commit."""
        self._history.append((self._next_number(), wall, kind, name, json.dumps(data)))
        del self._history[:-MAX_HISTORY]

    # For timelines

    def note(
        self,
        subject: str,
        kind: str,
        name: str | None = None,
        *,
        ago_seconds: float = 0.0,
        wall: float | None = None,
    ) -> None:
        """Keep for timelines, with the next commit, that something turned.

        Of what comes between two commits the first and the last are kept, and in `turns` how often it turned to and
        fro after the first.

        Args:
            subject: what it is about the name that turns: its presence, for instance.
            kind: what it turned to, of `KINDS`.
            name: a device or a source; None for the component.
            ago_seconds: how long it has been so already.
            wall: when, by the wall clock; absent: now.
        """
        pending, size = self._transitions[subject], _TRANSITION.size
        waiting = pending.get(name, b"")
        if len(waiting) >= 2 * size:
            rest, before = waiting[: -2 * size], waiting[-2 * size : -size]
            number, then, place, turns, ago = _TRANSITION.unpack(before)
            if KINDS[place] == kind:
                pending[name] = rest + _TRANSITION.pack(number, then, place, turns + 1, ago)
                return
        wall = self._wall() if wall is None else wall
        pending[name] = waiting + _TRANSITION.pack(self._next_number(), wall, KINDS.index(kind), 0, ago_seconds)

    def _note_left(self, device: Device, silent_seconds: float = 0.0) -> None:
        if device.here and not self.present(device.name):
            device.here = False
            self.note("presence", "left", device.name, ago_seconds=silent_seconds)

    def _next_number(self) -> int:
        """The order of events and transitions, whatever the wall clock says."""
        self._number += 1
        return self._number

    # Time

    def running_seconds(self, at: float) -> float:
        """The component's running time over all runs, so far."""
        return self._running_seconds + (at - self._started)

    # The file

    @property
    def pending_rows(self) -> int:
        """How many rows changed since the last commit."""
        transitions = sum(map(len, self._transitions.values()))
        return len(self._dirty) + len(self._gone) + len(self._history) + transitions

    def commit(self, at: float) -> bool:
        """Write what changed, and the clocks' credit with it, in one transaction; False if the file refused.

        What was refused stays pending; `fault` says why until a commit succeeds.
        """
        if self.connection is None:
            return False
        self._drop_ended()
        # In the order of the table, and one at a time: there can be very many.
        rows = (self._row(self.devices[name]) for name in sorted(self._dirty) if name in self.devices)
        try:
            with transaction(self.connection) as write:
                write.executemany(
                    "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (r.source_id, r.name, r.identity, r.clock.credit_seconds, r.clock.floor_seconds, r.active)
                        for r in self._records
                    ],
                )
                write.executemany("DELETE FROM devices WHERE name = ?", [(name,) for name in self._gone])
                write.executemany("INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
                if self._dirty_strangers:
                    write.execute("DELETE FROM strangers")
                    write.executemany("INSERT INTO strangers VALUES (?)", [(name,) for name in self._strangers])
                if self._ended.keys() != self._stored_ended:
                    write.execute("DELETE FROM absences")
                    write.executemany(
                        "INSERT INTO absences VALUES (?, ?, ?)",
                        [(a.name, json.dumps(a.began), json.dumps(a.ended)) for a in self._ended.values()],
                    )
                if self._history:
                    write.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?)", self._history)
                    write.execute(_FORGET.format("history"), (MAX_HISTORY,))
                if self._transitions:
                    write.executemany("INSERT INTO transitions VALUES (?, ?, ?, ?, ?, ?)", self._transition_rows())
                    write.execute(_FORGET.format("transitions"), (MAX_TRANSITIONS,))
                set_meta(write, running_seconds=self.running_seconds(at), status=self.status)
        except sqlite3.Error as error:
            self.fault = f"the state file cannot be written: {error}"
            self.refusal = error
            return False
        self._dirty.clear()
        self._gone.clear()
        self._stored_ended = set(self._ended)
        self._history.clear()
        self._transitions.clear()
        self._dirty_strangers = False
        self.fault = ""
        return True

    def _transition_rows(self) -> Iterator[tuple[Any, ...]]:
        for pending in self._transitions.values():
            for name, waiting in pending.items():
                for number, wall, place, turns, ago_seconds in _TRANSITION.iter_unpack(waiting):
                    yield number, wall, KINDS[place], name, turns, ago_seconds

    def _row(self, device: Device) -> tuple[Any, ...]:
        mark = device.mark
        return (
            device.name,
            device.associated_at,
            device.seen,
            device.announced,
            self.present(device.name),
            json.dumps(device.readings.tolist()),
            json.dumps(device.habits or {}),
            mark and json.dumps([mark.source_id, mark.proof.value, mark.clock_seconds, mark.cycle_id]),
        )

    def _load(self, connection: sqlite3.Connection) -> None:
        self._running_seconds = float(get_meta(connection, "running_seconds", 0.0))
        numbers = "SELECT max(coalesce((SELECT max(id) FROM {}), 0), coalesce((SELECT max(id) FROM {}), 0))"
        (self._number,) = connection.execute(numbers.format("history", "transitions")).fetchone()
        for row in connection.execute("SELECT * FROM sources ORDER BY id"):
            clock = state_documents.clock(row["credit_seconds"], row["floor_seconds"])
            if row["id"] != len(self._records):
                raise ValueError(f"source {row['id']} stands in the place of {len(self._records)}")
            self._records.append(
                SourceRecord(row["id"], row["name"], row["identity"], clock, active=row["active"] != 0)
            )
        self._strangers = dict.fromkeys(
            state_documents.name(row["name"]) for row in connection.execute("SELECT name FROM strangers")
        )
        for row in connection.execute("SELECT * FROM absences"):
            began, ended = (state_documents.markers(row[key]) for key in ("began", "ended"))
            self._ended[row["name"], began[0]] = Absence(row["name"], began, ended)
        self._stored_ended = set(self._ended)
        for row in connection.execute("SELECT * FROM devices"):
            device = self._device(row)
            self._set_markers(device, device.markers)
            self.devices[device.name] = device
            if device.mark:
                self.watched.add(device.name)
            if row["held"]:
                # Held present when the credit was committed, and by that up to it.
                self._set_markers(device, pack(record.clock.credit_seconds for record in self._records))
                self._dirty.add(device.name)

    @staticmethod
    def _device(row: sqlite3.Row) -> Device:
        return Device(
            name=state_documents.name(row["name"]),
            associated_at=row["associated_at"],
            seen=bool(row["seen"]),
            announced=bool(row["announced"]),
            markers=pack(state_documents.markers(row["markers"])),
            habits=state_documents.habits(row["habits"]),
            mark=state_documents.mark(row["mark"]),
        )


_FORGET = "DELETE FROM {0} WHERE id <= (SELECT id FROM {0} ORDER BY id DESC LIMIT 1 OFFSET ?)"
"""Keeps the latest rows of a table: history and transitions share their numbers, so it cannot go by those."""


class transaction:  # noqa: N801 - used like a function
    """A write transaction: committed if the block ends, rolled back if it raises.

    Args:
        connection: in autocommit.
        through: write through to the medium before going on (the journal's), not only to the WAL.
    """

    def __init__(self, connection: sqlite3.Connection, *, through: bool = False) -> None:
        self._connection = connection
        self._through = through

    def __enter__(self) -> sqlite3.Connection:
        if self._through:
            self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: object, *_rest: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if self._through:
                self._connection.execute("PRAGMA synchronous = NORMAL")


def get_meta(connection: sqlite3.Connection, key: str, default: Any = None) -> Any:
    """A single value kept beside the tables, as JSON."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if row is None else json.loads(row[0])


def set_meta(connection: sqlite3.Connection, **values: Any) -> None:
    """Keep single values, as JSON."""
    connection.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in values.items()]
    )
