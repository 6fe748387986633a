"""The state file: made, migrated, set aside, only read; nothing in it is ever deleted."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from client_device_pruner import state_file
from client_device_pruner.state_file import NewerSchema, lock_instance, open_state, read_only
from desk import Site


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state is."""
    return tmp_path / "pruner.db"


def write_something(path: Path, core_device: str = "core-1") -> None:
    """Begin a file and keep one value in it."""
    connection, _aside = open_state(path, core_device)
    with closing(connection):
        connection.execute("INSERT INTO meta VALUES ('kept', '1')")


def read_kept(path: Path) -> bool:
    """Whether the value is in the file."""
    with closing(sqlite3.connect(path)) as connection:
        row: object = connection.execute("SELECT value FROM meta WHERE key = 'kept'").fetchone()
        return row == ("1",)


def test_a_new_file_is_ours_alone(path: Path) -> None:
    """It has mode 0600, WAL, the schema's version, and the name of its core device."""
    connection, aside = open_state(path, "core-1")
    with closing(connection):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA user_version").fetchone()[0] == state_file.SCHEMA_VERSION
        assert json.loads(connection.execute("SELECT value FROM meta WHERE key = 'core'").fetchone()[0]) == "core-1"
        assert stat.S_IMODE(path.with_name("pruner.db-wal").stat().st_mode) == 0o600
    assert aside == ""


def test_a_mode_that_is_too_wide_is_narrowed(path: Path) -> None:
    """A file that others could read is theirs no longer after the next start."""
    write_something(path)
    path.chmod(0o644)

    write_something_else, _aside = open_state(path, "core-1")

    write_something_else.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_kept_from_start_to_start(path: Path) -> None:
    """A file of this core device is gone on with."""
    write_something(path)

    connection, aside = open_state(path, "core-1")

    connection.close()
    assert aside == ""
    assert read_kept(path)


@pytest.mark.parametrize("damage", ["no database", "a hole", "cut short"])
def test_a_corrupt_file_is_set_aside_and_never_deleted(path: Path, damage: str) -> None:
    """The component starts with an empty file; the corrupt one stays, byte by byte, under another name."""
    write_something(path)
    content = path.read_bytes()
    broken = {
        "no database": b"this is not a database" * 500,
        "a hole": content[:4096] + b"\xa5" * (len(content) - 4096),
        "cut short": content[: len(content) // 2],
    }[damage]
    path.write_bytes(broken)

    connection, aside = open_state(path, "core-1")

    with closing(connection):
        assert connection.execute("SELECT count(*) FROM devices").fetchone()[0] == 0
    assert "pruner.db.aside-1" in aside
    assert "corrupt" in aside
    assert path.with_name("pruner.db.aside-1").read_bytes() == broken


def test_each_file_set_aside_gets_a_name_of_its_own(path: Path) -> None:
    """A second corrupt file does not take the place of the first."""
    for text in (b"first" * 1000, b"second" * 1000):
        path.write_bytes(text)
        open_state(path, "core-1")[0].close()

    assert path.with_name("pruner.db.aside-1").read_bytes().startswith(b"first")
    assert path.with_name("pruner.db.aside-2").read_bytes().startswith(b"second")


def test_a_file_of_another_core_device_is_set_aside(path: Path) -> None:
    """A copied SD card's clocks say nothing of this core's devices."""
    write_something(path, "core-1")

    connection, aside = open_state(path, "core-2")

    connection.close()
    assert "core-1" in aside
    assert not read_kept(path)
    assert read_kept(path.with_name("pruner.db.aside-1"))


def test_an_owner_that_is_no_text_is_corruption(path: Path) -> None:
    """One flipped bit of the core device's name, in a page that is intact."""
    write_something(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = CAST(X'22ff22' AS TEXT) WHERE key = 'core'")
    connection, aside = open_state(path, "core-1")
    connection.close()
    assert "corrupt" in aside


def test_a_newer_schema_is_only_read(path: Path) -> None:
    """After a roll-back the newer version's file stays as it is, to the byte, its mode included."""
    write_something(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {state_file.SCHEMA_VERSION + 1}")
        connection.execute("PRAGMA journal_mode = DELETE")
    path.chmod(0o640)
    before = path.read_bytes()

    with pytest.raises(NewerSchema, match=str(state_file.SCHEMA_VERSION + 1)):
        open_state(path, "core-1")

    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == ["pruner.db"]
    with closing(read_only(path)) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM meta")


def test_a_newer_schema_that_is_still_in_the_log_is_refused_too(path: Path, tmp_path: Path) -> None:
    """A newer version that was killed leaves its schema's number in the write-ahead log."""
    connection, _aside = open_state(path, "core-1")
    with closing(connection):
        connection.execute(f"PRAGMA user_version = {state_file.SCHEMA_VERSION + 1}")
        copy = tmp_path / "copy"
        copy.mkdir()
        for part in ("pruner.db", "pruner.db-wal"):
            (copy / part).write_bytes((tmp_path / part).read_bytes())

    with pytest.raises(NewerSchema):
        open_state(copy / "pruner.db", "core-1")


def test_a_newer_schema_holds_pruning(tmp_path: Path) -> None:
    """The guard `database` holds, no cycle calls the cloud, and the watch goes on."""
    site = Site(tmp_path)
    write_something(tmp_path / "run-0" / "pruner.db")
    with closing(sqlite3.connect(tmp_path / "run-0" / "pruner.db")) as connection:
        connection.execute("PRAGMA user_version = 99")

    site.run(1_200)

    assert site.guards() == {"database"}
    assert not site.cloud.calls
    assert site.component is not None
    assert site.component.watch.sources.witnesses(site.clock.now)[0].vouching
    site.stop()


def test_an_older_schema_is_migrated_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version's statements lead to the next, and nothing is lost on the way."""
    write_something(path)
    monkeypatch.setattr(state_file, "SCHEMA_VERSION", 3)
    steps = {1: "ALTER TABLE meta ADD COLUMN a TEXT;", 2: "ALTER TABLE meta ADD COLUMN b TEXT;"}
    monkeypatch.setattr(state_file, "_MIGRATIONS", steps)

    connection, aside = open_state(path, "core-1")

    with closing(connection):
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 3
        assert tuple(connection.execute("SELECT value, a, b FROM meta WHERE key = 'kept'").fetchone()) == (
            "1",
            None,
            None,
        )
    assert aside == ""


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is done whole or not at all."""
    write_something(path)
    monkeypatch.setattr(state_file, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(state_file, "_MIGRATIONS", {1: "ALTER TABLE meta ADD COLUMN a TEXT; SELECT no_such();"})

    with pytest.raises(sqlite3.OperationalError, match="no_such"):
        open_state(path, "core-1")

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 1
        assert [row[1] for row in connection.execute("PRAGMA table_info(meta)")] == ["key", "value"]


def test_every_schema_version_has_its_migration() -> None:
    """From each released version there is a way to the present one."""
    assert set(state_file._MIGRATIONS) == set(range(1, state_file.SCHEMA_VERSION))


def test_without_shared_memory_it_stays_with_the_roll_back_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where WAL cannot be had, SQLite keeps its roll-back journal, and all else is the same."""

    class WithoutWal(sqlite3.Connection):
        def execute(self, sql: str, *arguments: object) -> sqlite3.Cursor:
            wanted = "PRAGMA journal_mode" if sql == "PRAGMA journal_mode = WAL" else sql
            return super().execute(wanted, *arguments)  # type: ignore[arg-type]

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **o: real(*a, factory=WithoutWal, **o))

    connection, _aside = open_state(path, "core-1")

    with closing(connection):
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        connection.execute("INSERT INTO meta VALUES ('kept', '1')")
    assert read_kept(path)


def test_an_interrupted_creation_is_taken_up_again(path: Path) -> None:
    """A file of length nothing, as a process leaves it that died while it made it, is no corrupt one."""
    path.touch()

    connection, aside = open_state(path, "core-1")

    connection.close()
    assert aside == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes wherever it likes")
def test_a_read_only_directory_is_a_refusal_and_no_corruption(path: Path) -> None:
    """What cannot be written is not set aside."""
    path.parent.chmod(0o500)
    try:
        with pytest.raises((sqlite3.Error, OSError)):
            open_state(path, "core-1")
    finally:
        path.parent.chmod(0o700)
    assert not list(path.parent.iterdir())


def test_one_instance_owns_the_state(tmp_path: Path) -> None:
    """The lock goes to one, and to the next when that has ended."""
    first = lock_instance(tmp_path)
    assert first is not None
    assert lock_instance(tmp_path) is None
    assert stat.S_IMODE((tmp_path / "pruner.lock").stat().st_mode) == 0o600, (
        "nobody else may keep it from the component"
    )

    os.close(first)

    second = lock_instance(tmp_path)
    assert second is not None
    os.close(second)
