"""The state file: one SQLite database with a schema version, opened so that nothing in it is ever lost."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time

SCHEMA_VERSION = 1
Location = str | os.PathLike[str]
"""A path; what runs on the device does without `pathlib`, which holds 0.7 MiB on Python 3.11."""
CACHE_KIB = 96
"""SQLite's page cache, which by default keeps up to 2 MiB of what was written last for ever.

With it, a commit of up to 3,000 rows writes no page twice, and one of 20,000 an eighth more than with 2 MiB.
"""
LOCK_ATTEMPTS = 5
"""How often the lock is tried, 20 ms apart, before another instance is taken to have it."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, identity TEXT NOT NULL,
    credit_seconds REAL NOT NULL, floor_seconds REAL NOT NULL, active INTEGER NOT NULL);
CREATE TABLE devices (
    name TEXT PRIMARY KEY, associated_at REAL, seen INTEGER NOT NULL, announced INTEGER NOT NULL,
    held INTEGER NOT NULL, markers TEXT NOT NULL, habits TEXT NOT NULL, mark TEXT) WITHOUT ROWID;
CREATE TABLE strangers (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE absences (name TEXT NOT NULL, began TEXT NOT NULL, ended TEXT NOT NULL);
CREATE TABLE disassociations (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, associated_at REAL, cycle_id TEXT NOT NULL, outcome TEXT NOT NULL,
    evidence TEXT NOT NULL, intended_wall REAL NOT NULL, intended_running_seconds REAL NOT NULL,
    settled_wall REAL, restored_by TEXT, restore_for TEXT);
CREATE INDEX disassociations_by_name ON disassociations (name);
CREATE TABLE history (id INTEGER PRIMARY KEY, wall REAL NOT NULL, type TEXT NOT NULL, name TEXT, data TEXT NOT NULL);
CREATE INDEX history_by_name ON history (name);
CREATE TABLE transitions (
    id INTEGER PRIMARY KEY, wall REAL NOT NULL, type TEXT NOT NULL, name TEXT, turns INTEGER NOT NULL,
    ago_seconds REAL NOT NULL);
CREATE TABLE requests (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, argument TEXT NOT NULL);
"""

_MIGRATIONS: dict[int, str] = {}
"""From each older schema version, the statements that lead to the next."""


class NewerSchema(Exception):
    """The file was written by a newer version of the component: it is only read, and pruning holds."""


class ForeignState(Exception):
    """The file belongs to another core device, whose name (in JSON) it carries."""


def lock_instance(work_dir: Location) -> int | None:
    """Take the lock that says which process owns the state; None if another one has it.

    Returns the open file descriptor; the lock goes with it, or with the process.

    Raises:
        OSError: the file system refuses (full, read-only, no permission).
    """
    path = os.path.join(work_dir, "pruner.lock")
    # Where it exists, a read-only file system is no obstacle.
    create = 0 if os.path.exists(path) else os.O_CREAT
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


def open_state(path: Location, core_device: str) -> tuple[sqlite3.Connection, str]:
    """Open the state of this core device, making or migrating it as needed.

    A file that is corrupt or of another core device is set aside under a new name, and an empty one begun.

    Returns:
        the connection, in autocommit, and what was set aside and why ("" if nothing).

    Raises:
        NewerSchema: the file's schema is newer than this version knows.
        sqlite3.Error: the file system refuses (full, read-only, no permission).
    """
    try:
        return _open(path, core_device), ""
    except ForeignState as foreign:
        why = f"it belongs to core device {foreign}"
    except UnicodeDecodeError as error:
        why = f"it is corrupt ({error})"
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            raise
        why = f"it is corrupt ({error})"
    aside = set_aside(path)
    name, new_name = os.path.basename(path), os.path.basename(aside)
    return _open(path, core_device), f"{name} was set aside as {new_name}, since {why}; absences start anew"


def read_only(path: Location) -> sqlite3.Connection:
    """Open the state for reading, while the component runs or not.

    Raises:
        sqlite3.Error: there is none, or it cannot be read.
    """
    from pathlib import Path

    connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=5, isolation_level=None)
    _set_up(connection)
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    # A text whose bits flipped is no UTF-8: `UnicodeDecodeError` says so, where SQLite's error names no cause.
    connection.text_factory = bytes.decode


def _open(path: Location, core_device: str) -> sqlite3.Connection:
    _refuse_newer(_written_version(path))
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    os.chmod(path, 0o600)
    connection = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        _set_up(connection)
        # Where the file system has no shared memory, SQLite stays with its roll-back journal.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        _migrate(connection)
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("the integrity check failed")  # noqa: TRY301 - one handler closes for all
        owner = connection.execute("SELECT value FROM meta WHERE key = 'core'").fetchone()
        if owner is None:
            connection.execute("INSERT INTO meta VALUES ('core', ?)", (json.dumps(core_device),))
        elif owner[0] != json.dumps(core_device):
            raise ForeignState(owner[0])  # noqa: TRY301 - as above
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    _refuse_newer(version)
    while version < SCHEMA_VERSION:
        script, version = (_SCHEMA, SCHEMA_VERSION) if version == 0 else (_MIGRATIONS[version], version + 1)
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {version}; COMMIT;")


def _written_version(path: Location) -> int:
    """The schema version in the file's header, read without SQLite, which would write to the file; 0 if unknown."""
    try:
        with open(path, "rb") as file:
            header = file.read(64)
    except OSError:
        return 0
    # SQLite's file format: a magic text, and the user version at offset 60, big-endian.
    return int.from_bytes(header[60:64], "big") if header.startswith(b"SQLite format 3\0") else 0


def _refuse_newer(version: int) -> None:
    if version > SCHEMA_VERSION:
        raise NewerSchema(f"schema {version}; this version knows {SCHEMA_VERSION}")


def set_aside(path: Location) -> str:
    """Rename a file that cannot be used, so that nothing in it is lost; returns its new path."""
    number = 1
    while os.path.exists(aside := f"{os.fspath(path)}.aside-{number}"):
        number += 1
    for suffix in ("", "-wal", "-shm"):
        part = os.fspath(path) + suffix
        if os.path.exists(part):
            os.rename(part, aside + suffix)
    return aside
