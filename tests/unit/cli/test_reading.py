"""A state file that is not as it should be, and who owns it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from client_device_pruner.cli.reading import is_running
from client_device_pruner.store.database import lock_instance
from fakes.state import Pruner, WrittenState


def _of_schema(version: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")

    return make


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda _path: None, "There is no pruner.db"),
        (lambda path: path.write_bytes(b"no database" * 1_000), "the component sets it aside"),
        (lambda path: path.touch(), "has schema 0"),
        (lambda path: path.mkdir(), "cannot be read"),
        (_of_schema(1), "has schema 1, this command reads 2"),
        (_of_schema(99), "has schema 99"),
    ],
    ids=["missing", "broken", "empty", "directory", "older", "newer"],
)
@pytest.mark.parametrize(
    "command", ["status", "list", "explain x", "history", "restore x", "restore --all", "approve x"]
)
def test_a_state_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, stopped: Pruner, make: Callable[[Path], None], sentence: str, command: str
) -> None:
    """Status 1, and one line on standard error that says what to do."""
    stopped.state.work_dir = tmp_path / "elsewhere"
    stopped.state.work_dir.mkdir()
    make(stopped.state.work_dir / "pruner.db")

    said = stopped.failure(*command.split())

    assert sentence in said
    assert said.count("\n") == 1


def test_before_the_first_status(tmp_path: Path, stopped: Pruner) -> None:
    """Just after the first start there is a state but no status."""
    stopped.state = WrittenState(tmp_path / "new")
    stopped.state.connect().close()

    assert stopped.failure("status") == "The component has not written its status yet: try again in a minute.\n"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE meta SET value = '{' WHERE key = 'status'",
        "UPDATE meta SET value = '{}' WHERE key = 'status'",
        "UPDATE verdicts SET verdict = '[]'",
        "UPDATE devices SET seen_wall = 'x'",
        "UPDATE devices SET since = CAST(X'7bff7d' AS TEXT)",
    ],
)
def test_what_this_version_did_not_write_is_a_sentence(stopped: Pruner, change: str) -> None:
    """Another version's documents, or bits that flipped in an intact page."""
    with closing(stopped.state.connect()) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.execute(change)

    assert "cannot be read" in stopped.failure("list")


def test_a_reader_leaves_the_lock_to_the_component(stopped: Pruner) -> None:
    """After a command has looked, the component takes its lock; readers do not take each other for it."""
    work_dir = stopped.state.work_dir
    lock = lock_instance(work_dir)
    assert lock is not None
    assert is_running(work_dir)
    os.close(lock)
    reader = os.open(work_dir / "pruner.lock", os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    assert not is_running(work_dir)
    os.close(reader)

    lock = lock_instance(work_dir)

    assert lock is not None
    os.close(lock)
