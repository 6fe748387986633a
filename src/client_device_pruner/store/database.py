"""The state file: one SQLite database with a schema version. What cannot be read is set aside, never deleted."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from client_device_pruner.presence.devices import Device, Devices
from client_device_pruner.store.devices import DEVICE_COLUMNS, columns, save_devices, save_verdicts
from client_device_pruner.store.history import (
    MAX_HISTORY,
    MAX_TIMELINE,
    Happening,
    add_history,
    add_timeline,
    prune,
)

SCHEMA_VERSION = 2
_DISASSOCIATION = {
    "name": "str",
    "association_timestamp": "float | None",
    "cycle_id": "str",
    "outcome": "str",
    "evidence": "str",
    "intended_wall": "float",
    "intended_running_seconds": "float",
    "settled_wall": "float | None",
    "restored_by": "str | None",
    "restore_for": "str | None",
}
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE devices ({DEVICE_COLUMNS}, PRIMARY KEY (name)) WITHOUT ROWID;
CREATE TABLE verdicts (name TEXT PRIMARY KEY, verdict TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE disassociations (id INTEGER PRIMARY KEY, {columns(_DISASSOCIATION)});
CREATE INDEX disassociations_by_name ON disassociations (name);
CREATE TABLE history (id INTEGER PRIMARY KEY, wall REAL NOT NULL, type TEXT NOT NULL, name TEXT, data TEXT NOT NULL);
CREATE INDEX history_by_name ON history (name);
CREATE TABLE timeline (id INTEGER PRIMARY KEY, wall REAL NOT NULL, name TEXT, state TEXT NOT NULL);
CREATE TABLE requests (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL);
"""
_REFUSALS = ("disk i/o error", "disk is full", "unable to open", "readonly", "locked", "locking")
"""What SQLite says where the medium refuses, in lower case: the file itself may be sound (Python 3.10 has no codes)."""


class NewerSchema(Exception):
    """A newer version of the component wrote the file: it stays as it is, and pruning holds."""


def lock_instance(work_dir: Path) -> int | None:
    """Take the lock that says which process owns the state, and give its file descriptor; None if another one has it.

    Raises `OSError` where the file system refuses (full, read-only, no permission).
    """
    descriptor = os.open(work_dir / "pruner.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_CREAT, 0o600)
    for _attempt in range(5):
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        # A command that looks whether the component runs holds the lock for an instant.
        time.sleep(0.02)
    os.close(descriptor)
    return None


def open_database(
    path: Path, core_device: str, read: Callable[[sqlite3.Connection], object] = lambda _connection: None
) -> tuple[sqlite3.Connection, str]:
    """Open the state of this core device in autocommit; also says what was set aside and why ("" if nothing).

    A file that is broken, of an older schema or of another core device is set aside under a new name, and an empty
    one begun. It is broken when `read`, which takes all that is stored into memory, fails on it, with any error.
    Raises `NewerSchema`, or `sqlite3.Error` or `OSError` where the medium refuses (full, read-only, no permission).
    """
    try:
        return _open(path, core_device, read), ""
    except (NewerSchema, OSError):
        raise
    except Exception as error:
        if _is_refusal(error):
            raise
        why = str(error)
    number = 1
    while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
        number += 1
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    said = f"{path.name} was set aside as {aside.name}, since it cannot be used ({why}); all silences begin at zero"
    return _open(path, core_device, read), said


def _is_refusal(error: Exception) -> bool:
    """Whether the medium refused, so that the file may be sound: SQLite tells that in words only."""
    text = str(error).lower()
    return isinstance(error, sqlite3.OperationalError) and any(words in text for words in _REFUSALS)


def read_only(path: Path) -> sqlite3.Connection:
    """Open the state for reading, while the component runs or not; raises `sqlite3.Error` if it cannot be read."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def _open(path: Path, core_device: str, read: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=5, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        _prepare(connection, core_device)
        read(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, core_device: str) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise NewerSchema(f"a newer version wrote it: schema {version}, this version knows {SCHEMA_VERSION}")
    # Most commits change a few small rows, and each change writes a page to the flash.
    connection.execute("PRAGMA page_size = 1024")
    # Rows are read once, at the start, and written in their order: SQLite needs to keep little (2 MB by default).
    connection.execute("PRAGMA cache_size = -16")
    # Where the file system has no shared memory, SQLite stays with its roll-back journal.
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = NORMAL")
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version < SCHEMA_VERSION:
        raise ValueError(f"an older version wrote it, with schema {version}")
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise ValueError("the integrity check failed")
    for key, value, checksum in connection.execute("SELECT * FROM meta"):
        if _checksum(key, value) != checksum:
            raise ValueError(f"what it holds as {key} was damaged")
    # What is no text or no JSON would come up later in the run.
    for row in connection.execute("SELECT * FROM disassociations"):
        if not isinstance(json.loads(row["evidence"]), dict):
            raise TypeError(f"what it holds against {row['name']} was damaged")
    connection.execute("SELECT * FROM requests").fetchall()
    owner = get_meta(connection, "core")
    if owner is None:
        set_meta(connection, core=core_device)
    elif owner != core_device:
        raise ValueError(f"it belongs to core device {owner}")


@contextmanager
def transaction(connection: sqlite3.Connection, *, through: bool = False) -> Iterator[sqlite3.Connection]:
    """A write transaction: committed if the block ends, rolled back if it raises.

    `through` writes through to the medium before going on, not only to the operating system.
    """
    if through:
        connection.execute("PRAGMA synchronous = FULL")
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if through:
            connection.execute("PRAGMA synchronous = NORMAL")


def get_meta(connection: sqlite3.Connection, key: str, default: Any = None) -> Any:
    """A single value kept beside the tables, as JSON."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if row is None else json.loads(row[0])


def set_meta(connection: sqlite3.Connection, **values: Any) -> None:
    """Keep single values, as JSON."""
    texts = [(key, json.dumps(value, separators=(",", ":"))) for key, value in values.items()]
    rows = [(key, text, _checksum(key, text)) for key, text in texts]
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", rows)


def _checksum(key: str, value: str) -> int:
    return crc32(f"{key}={value}".encode())


class Store:
    """The state file of one core device, and what waits to be written to it. For one thread.

    Where it raises `sqlite3.Error`, the file is not open, or the medium refused: the caller says `failed`.
    """

    def __init__(self, path: Path, core_device: str) -> None:
        self.path = path
        self.core_device = core_device
        self.connection: sqlite3.Connection | None = None  # while the file is open
        self.fault = ""  # why it could not be opened or written last, in words
        self._history: list[Happening] = []
        self._timeline: list[tuple[float, str | None, str]] = []

    def open(self, read: Callable[[sqlite3.Connection], object]) -> str:
        """Open the file, and have `read` take what it holds: as `open_database`; returns what was set aside and why."""
        try:
            self.connection, aside = open_database(self.path, self.core_device, read)
        except (NewerSchema, sqlite3.Error, OSError) as error:
            self.fault = f"{self.path} cannot be opened: {error}"
            raise
        self.fault = ""
        return aside

    def close(self) -> None:
        """Close the file; what waits to be written goes on waiting."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def failed(self, error: sqlite3.Error) -> None:
        """Take what SQLite raised, here or in the journal; a broken file is closed: `open` then sets it aside."""
        if self.connection is not None:
            self.fault = f"{self.path} cannot be written: {error}"
            if isinstance(error, sqlite3.DatabaseError) and not _is_refusal(error):
                self.close()

    def opened(self) -> sqlite3.Connection:
        """The connection."""
        if self.connection is None:
            raise sqlite3.OperationalError(self.fault or "the state file is not open")
        return self.connection

    def kept(self, key: str, default: Any = None) -> Any:
        """A single value; the default while the file is not open."""
        return default if self.connection is None else get_meta(self.connection, key, default)

    def keep(self, **values: Any) -> None:
        """Write single values at once."""
        with transaction(self.opened()) as write:
            set_meta(write, **values)

    def record(self, wall: float, kind: str, name: str | None, data: dict[str, Any]) -> None:
        """Keep an event in the history, with the next commit."""
        self._history.append(Happening(wall, kind, name, data))
        del self._history[:-MAX_HISTORY]

    def note(self, wall: float, state: str) -> None:
        """Keep for the timelines, with the next commit, that the component changed its state."""
        self._timeline.append((wall, None, state))
        del self._timeline[:-MAX_TIMELINE]

    def commit(
        self,
        devices: Devices,
        names: Collection[str],
        *,
        since: Callable[[Device], float | None],
        verdicts: Iterable[tuple[str, str]],
        states: Iterable[tuple[float, str, str]],
        meta: Mapping[str, Any],
    ) -> None:
        """Write these rows and values, and what is removed, in one transaction; what was refused stays changed.

        `since` and `verdicts` are as of `save_devices` and `save_verdicts`; `states` tell when what became what.
        """
        with transaction(self.opened()) as write:
            save_devices(write, map(devices.by_name.__getitem__, names), devices.removed, since)
            save_verdicts(write, verdicts)
            add_history(write, self._history)
            add_timeline(write, self._timeline)
            add_timeline(write, states)
            if self._history:
                prune(write)
            set_meta(write, **meta)
        devices.written(names)
        self._history.clear()
        self._timeline.clear()
        self.fault = ""
