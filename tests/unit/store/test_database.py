"""The state file: made, kept, set aside, only read; nothing in it is ever deleted."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.presence.devices import Devices
from client_device_pruner.store.database import (
    SCHEMA_VERSION,
    NewerSchema,
    Store,
    get_meta,
    lock_instance,
    open_database,
    read_only,
    set_meta,
)
from client_device_pruner.store.devices import load_devices


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state is."""
    return tmp_path / "pruner.db"


def write_something(path: Path) -> None:
    """Begin a file and keep one value in it."""
    with closing(open_database(path, "core-1")[0]) as connection:
        set_meta(connection, kept=1)


def test_a_new_file_is_ours_alone(path: Path) -> None:
    """It has mode 0600, as has its log, the schema's version, and the name of its core device."""
    connection, aside = open_database(path, "core-1")
    with closing(connection):
        assert {stat.S_IMODE(part.stat().st_mode) for part in path.parent.iterdir()} == {0o600}
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        assert get_meta(connection, "core") == "core-1"
    assert aside == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:1024] + b"\xa5" * (len(content) - 1024),
        lambda _content: b"this is not a database" * 500,
        "PRAGMA user_version = 1",
        """UPDATE meta SET value = '"core-2"', checksum = 3619027596 WHERE key = 'core'""",
        "UPDATE meta SET value = CAST(X'22ff22' AS TEXT) WHERE key = 'core'",
        "UPDATE meta SET value = '2' WHERE key = 'kept'",
        "INSERT INTO disassociations VALUES (1, 'a', NULL, '', 'done', '[]', 1.0, 1.0, NULL, NULL, NULL)",
        "INSERT INTO requests VALUES (1, CAST(X'22ff22' AS TEXT), 'x')",
    ],
)
def test_a_file_that_is_of_no_use_is_set_aside(path: Path, damage: str | Callable[[bytes], bytes]) -> None:
    """Broken, older, another core's, or with values that nobody wrote: it stays as it is, under another name."""
    path.with_name("pruner.db.aside-1").touch()
    write_something(path)
    if isinstance(damage, str):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(damage)
    else:
        path.write_bytes(damage(path.read_bytes()))
    broken = path.read_bytes()

    connection, aside = open_database(path, "core-1")

    assert get_meta(connection, "kept") is None
    connection.close()
    assert "pruner.db.aside-2" in aside
    assert path.with_name("pruner.db.aside-1").read_bytes() == b""
    assert path.with_name("pruner.db.aside-2").read_bytes() == broken


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), AttributeError("x"), sqlite3.DatabaseError("x")])
def test_whatever_fails_while_reading_sets_the_file_aside(path: Path, error: Exception) -> None:
    """The component goes on with an empty file, from which everything is read anew."""
    write_something(path)
    read: list[Any] = []

    def once(connection: sqlite3.Connection) -> None:
        read.append(get_meta(connection, "kept"))
        if len(read) == 1:
            raise error

    connection, aside = open_database(path, "core-1", once)

    connection.close()
    assert str(error) in aside
    assert read == [1, None]


@pytest.mark.parametrize("words", ["disk I/O error", "database or disk is full", "readonly database"])
def test_a_medium_that_refuses_while_reading_sets_nothing_aside(path: Path, words: str) -> None:
    """Case 20: the file may be sound, so it stays, and it is said why it cannot be opened."""
    write_something(path)

    def refuse(_connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError(words)

    store = Store(path, "core-1")
    with pytest.raises(sqlite3.OperationalError):
        store.open(refuse)

    assert words in store.fault
    assert store.connection is None
    assert [part.name for part in path.parent.iterdir()] == ["pruner.db"]
    assert store.open(lambda _connection: None) == ""
    assert store.fault == ""
    store.close()


def test_a_newer_schema_is_only_read(path: Path) -> None:
    """After a roll-back the newer version's file stays as it is, to the byte, its mode included."""
    write_something(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        connection.execute("PRAGMA journal_mode = DELETE")
    path.chmod(0o640)
    before = path.read_bytes()

    with pytest.raises(NewerSchema, match=str(SCHEMA_VERSION + 1)):
        open_database(path, "core-1")

    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == ["pruner.db"]
    with closing(read_only(path)) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM meta")


def test_a_newer_schema_that_is_still_in_the_log_is_refused_too(path: Path, tmp_path: Path) -> None:
    """A newer version that was killed leaves its schema's number in the write-ahead log."""
    connection, _aside = open_database(path, "core-1")
    with closing(connection):
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        copy = tmp_path / "copy"
        copy.mkdir()
        for part in ("pruner.db", "pruner.db-wal"):
            shutil.copy(tmp_path / part, copy)

    with pytest.raises(NewerSchema):
        open_database(copy / "pruner.db", "core-1")


def test_one_instance_owns_the_state(tmp_path: Path) -> None:
    """The lock goes to one, and to the next when that has ended."""
    first = lock_instance(tmp_path)
    assert first is not None
    assert lock_instance(tmp_path) is None
    assert stat.S_IMODE((tmp_path / "pruner.lock").stat().st_mode) == 0o600

    os.close(first)

    second = lock_instance(tmp_path)
    assert second is not None
    os.close(second)


class Trial:
    """A store, with a device that was sighted and has not been committed to it."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path, "core-1")
        self.store.open(lambda _connection: None)
        self.devices = Devices()
        device = self.devices.get("pump-7")
        device.silent_since = 5.0
        self.devices.touch(device)

    def commit(self, *verdicts: tuple[str, str], **meta: Any) -> None:
        """Commit what changed."""
        names = sorted(self.devices.changed)
        states = [(1.0, name, "marked") for name, _verdict in verdicts]
        self.store.commit(self.devices, names, since=lambda _device: 4.0, verdicts=verdicts, states=states, meta=meta)


def test_a_commit_writes_all_that_changed_in_one_transaction(path: Path) -> None:
    """Devices, verdicts, history, timeline and single values; the next one writes nothing of it again."""
    trial = Trial(path)
    trial.store.record(1.0, "marked", "pump-7", {"silentSeconds": 3.0})
    trial.commit(("pump-7", '{"state":"marked"}'), presence=[1])

    with closing(read_only(path)) as connection:
        row = connection.execute("SELECT silent_since, since FROM devices").fetchone()
        assert tuple(row) == (5.0, 4.0)
        assert connection.execute("SELECT verdict FROM verdicts").fetchone()[0] == '{"state":"marked"}'
        assert connection.execute("SELECT type, name, data FROM history").fetchall()[0]["type"] == "marked"
        assert connection.execute("SELECT state FROM timeline").fetchone()[0] == "marked"
        assert get_meta(connection, "presence") == [1]
    assert not trial.devices.changed

    trial.devices.removed.add("pump-7")
    trial.commit()
    with closing(read_only(path)) as connection:
        counts = [connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("devices", "verdicts")]  # noqa: S608
        assert counts == [0, 0]
    assert not trial.devices.removed
    trial.store.close()


def test_what_a_commit_could_not_write_waits_for_the_next(path: Path) -> None:
    """A full disk loses nothing; the fault is said until a commit succeeds."""
    trial = Trial(path)
    assert trial.store.connection is not None
    trial.store.connection.execute("PRAGMA max_page_count = 1")
    trial.store.record(1.0, "cycle", None, {"text": "x" * 5_000})

    with pytest.raises(sqlite3.OperationalError, match="full") as refused:
        trial.commit(presence="x" * 5_000)
    trial.store.failed(refused.value)
    assert "full" in trial.store.fault
    assert set(trial.devices.changed) == {"pump-7"}

    trial.store.connection.execute("PRAGMA max_page_count = 1000000")
    trial.commit(presence="x")
    assert trial.store.fault == ""
    assert load_devices(trial.store.connection)["pump-7"].silent_since == 5.0
    assert trial.store.connection.execute("SELECT count(*) FROM history").fetchone()[0] == 1
    trial.store.close()
