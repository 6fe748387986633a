"""The state file: one SQLite database with a schema version. What cannot be read is set aside, never deleted."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client_device_pruner.store.devices import DEVICE_COLUMNS, save_devices, save_verdicts
from client_device_pruner.store.history import MAX_HISTORY, MAX_TIMELINE, TimelineRow, add_timeline, prune, record

if TYPE_CHECKING:
    from client_device_pruner.presence.devices import Device, Devices

SCHEMA_VERSION = 2
PAGE_BYTES = 1_024
"""SQLite's page: most commits change a few small rows, and each change writes a page to the flash."""
LOCK_ATTEMPTS = 5
"""How often the lock is tried, 20 ms apart, before another instance is taken to have it."""

_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE devices (name TEXT PRIMARY KEY, {DEVICE_COLUMNS}, since REAL) WITHOUT ROWID;
CREATE TABLE verdicts (name TEXT PRIMARY KEY, verdict TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE disassociations (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, association_timestamp REAL, cycle_id TEXT NOT NULL,
    outcome TEXT NOT NULL, evidence TEXT NOT NULL, intended_wall REAL NOT NULL, intended_running_seconds REAL NOT NULL,
    settled_wall REAL, restored_by TEXT, restore_for TEXT);
CREATE INDEX disassociations_by_name ON disassociations (name);
CREATE TABLE history (id INTEGER PRIMARY KEY, wall REAL NOT NULL, type TEXT NOT NULL, name TEXT, data TEXT NOT NULL);
CREATE INDEX history_by_name ON history (name);
CREATE TABLE timeline (id INTEGER PRIMARY KEY, wall REAL NOT NULL, name TEXT, state TEXT NOT NULL);
CREATE TABLE requests (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, argument TEXT NOT NULL);
"""
_REFUSALS = ("disk i/o error", "disk is full", "unable to open", "readonly", "locked", "locking")
"""What SQLite says where the medium refuses, in lower case: the file itself may be sound (Python 3.10 has no codes)."""


class NewerSchema(Exception):
    """A newer version of the component wrote the file: it stays as it is, and pruning holds."""


class _Unusable(Exception):
    """The file holds what this version of the component, on this core device, cannot use; the text says what."""


def lock_instance(work_dir: Path) -> int | None:
    """Take the lock that says which process owns the state; None if another one has it.

    Returns the open file descriptor; the lock goes with it, or with the process.

    Raises:
        OSError: the file system refuses (full, read-only, no permission).
    """
    path = work_dir / "pruner.lock"
    # Where the file exists, a read-only file system is no obstacle.
    create = 0 if path.exists() else os.O_CREAT
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | create, 0o600)
    for _attempt in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # noqa: PERF203 - it waits on purpose
            # A command that looks whether the component runs holds the lock for an instant.
            time.sleep(0.02)
        else:
            return descriptor
    os.close(descriptor)
    return None


def open_database(
    path: Path, core_device: str, read: Callable[[sqlite3.Connection], object] = lambda _connection: None
) -> tuple[sqlite3.Connection, str]:
    """Open the state of this core device, and begin an empty file where there is none.

    A file that is broken, of an older schema or of another core device is set aside under a new name, and an empty
    one begun. It is broken when `read` fails on it, whatever the error.

    Args:
        path: the file.
        core_device: thing name of the core device that it belongs to.
        read: takes all that is stored into memory; called anew with the empty file if the first one is set aside.

    Returns:
        the connection, in autocommit, and what was set aside and why ("" if nothing).

    Raises:
        NewerSchema: the file's schema is newer than this version knows.
        sqlite3.Error, OSError: the medium refuses (full, read-only, unreadable, no permission).
    """
    try:
        return _open(path, core_device, read), ""
    except (NewerSchema, OSError):
        raise
    except _Unusable as unusable:
        why = str(unusable)
    except Exception as error:
        if is_refusal(error):
            raise
        why = f"it cannot be read ({type(error).__name__}: {error})"
    aside = set_aside(path)
    connection = _open(path, core_device, read)
    return connection, f"{path.name} was set aside as {aside.name}, since {why}; every silence begins anew"


def is_refusal(error: Exception) -> bool:
    """Whether the medium refused, so that the file may be sound: SQLite tells that in words only."""
    text = str(error).lower()
    return isinstance(error, sqlite3.OperationalError) and any(words in text for words in _REFUSALS)


def read_only(path: Path) -> sqlite3.Connection:
    """Open the state for reading, while the component runs or not.

    Raises:
        sqlite3.Error: there is none, or it cannot be read.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5, isolation_level=None)
    _set_up(connection)
    return connection


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be used, so that nothing in it is lost; returns its new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _set_up(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    # A text whose bits flipped is no UTF-8: `UnicodeDecodeError` says so, where SQLite's error names no cause.
    connection.text_factory = bytes.decode


def _open(path: Path, core_device: str, read: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        _set_up(connection)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            message = f"a newer version wrote it: schema {version}, this version knows {SCHEMA_VERSION}"
            raise NewerSchema(message)  # noqa: TRY301 - one handler closes for all
        path.chmod(0o600)
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        # A row is read once, at the start: what SQLite keeps of the file (2 MB by default) is of little use.
        connection.execute("PRAGMA cache_size = -256")
        # Where the file system has no shared memory, SQLite stays with its roll-back journal.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version < SCHEMA_VERSION:
            raise _Unusable(f"an older version wrote it (schema {version})")  # noqa: TRY301 - as above
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise _Unusable("the integrity check failed")  # noqa: TRY301 - as above
        owner = get_meta(connection, "core")
        if owner is None:
            set_meta(connection, core=core_device)
        elif owner != core_device:
            raise _Unusable(f"it belongs to core device {owner}")  # noqa: TRY301 - as above
        read(connection)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, *, through: bool = False) -> Iterator[sqlite3.Connection]:
    """A write transaction: committed if the block ends, rolled back if it raises.

    Args:
        connection: in autocommit.
        through: write through to the medium before going on, not only to the operating system.
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
    rows = [(key, json.dumps(value, separators=(",", ":"))) for key, value in values.items()]
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)


class Store:
    """The state file of one core device, and what waits to be written to it. For one thread.

    Args:
        path: the file.
        core_device: thing name of the core device.

    Attributes:
        connection: None while the file is not open.
        fault: why it could not be opened or written last, in words; "" while all is well.
    """

    def __init__(self, path: Path, core_device: str) -> None:
        self.path = path
        self.core_device = core_device
        self.connection: sqlite3.Connection | None = None
        self.fault = ""
        self._history: list[tuple[float, str, str | None, dict[str, Any]]] = []
        self._timeline: list[TimelineRow] = []

    def open(self, read: Callable[[sqlite3.Connection], object]) -> str:
        """Open the file, and have `read` take what it holds; see `open_database`.

        Returns:
            what was set aside and why, "" if nothing.

        Raises:
            NewerSchema, sqlite3.Error, OSError: as `open_database`; `fault` says it too.
        """
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

    def record(self, wall: float, kind: str, name: str | None, data: dict[str, Any]) -> None:
        """Keep an event in the history, with the next commit."""
        self._history.append((wall, kind, name, data))
        del self._history[:-MAX_HISTORY]

    def note(self, wall: float, name: str | None, state: str) -> None:
        """Keep for the timelines, with the next commit, that a device (None: the component) changed its state."""
        self._timeline.append((wall, name, state))
        del self._timeline[:-MAX_TIMELINE]

    @property
    def pending_rows(self) -> int:
        """How many events and changes of state wait to be written."""
        return len(self._history) + len(self._timeline)

    def commit(
        self,
        devices: Devices,
        names: Collection[str],
        *,
        since: Callable[[Device], float | None],
        verdicts: Iterable[tuple[str, str | None]],
        meta: Mapping[str, Any],
    ) -> None:
        """Write in one transaction; what was refused stays changed.

        Args:
            devices: `names` of them are written, and what is `removed` goes.
            names: whose rows to write; afterwards they are neither `changed` nor `urgent`.
            since: the observed seconds at which a device's silence began; None while it is present.
            verdicts: names with their verdict documents that changed, as JSON; None removes one.
            meta: single values that changed.

        Raises:
            sqlite3.Error: the file is not open, or the medium refused; `fault` says why.
        """
        connection = self.opened()
        try:
            with transaction(connection) as write:
                save_devices(write, [devices.by_name[name] for name in names], devices.removed, since)
                save_verdicts(write, verdicts)
                for row in self._history:
                    record(write, *row)
                add_timeline(write, self._timeline)
                if self.pending_rows:
                    prune(write)
                set_meta(write, **meta)
        except sqlite3.Error as error:
            self.failed(error)
            raise
        devices.changed.difference_update(names)
        devices.urgent.difference_update(names)
        for emptied in (devices.changed, devices.urgent):
            if not emptied:
                emptied.clear()  # which gives its memory back
        self._history.clear()
        self._timeline.clear()
        self.fault = ""

    def kept(self, key: str, default: Any = None) -> Any:
        """A single value; the default while the file is not open.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        return default if self.connection is None else get_meta(self.connection, key, default)

    def keep(self, **values: Any) -> None:
        """Write single values at once.

        Raises:
            sqlite3.Error: the file is not open, or the medium refused; `fault` says why.
        """
        try:
            with transaction(self.opened()) as write:
                set_meta(write, **values)
        except sqlite3.Error as error:
            self.failed(error)
            raise

    def opened(self) -> sqlite3.Connection:
        """The connection.

        Raises:
            sqlite3.OperationalError: the file is not open.
        """
        if self.connection is None:
            raise sqlite3.OperationalError(self.fault or "the state file is not open")
        return self.connection

    def failed(self, error: sqlite3.Error) -> None:
        """Take what SQLite raised, here or in the journal; a broken file is closed: `open` then sets it aside."""
        if self.connection is None:
            return
        self.fault = f"{self.path} cannot be written: {error}"
        if isinstance(error, sqlite3.DatabaseError) and not is_refusal(error):
            self.close()
