"""A core device with four client devices, one of each kind, as its component wrote it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_device_pruner.store.database import lock_instance
from fakes.state import DAY, Pruner, WrittenState


@pytest.fixture
def stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pruner:
    """The command line while the component does not run."""
    state = WrittenState(tmp_path / "work")
    state.add("press-1", "present", evidence="connectionCount", sentences=("It is connected.",))
    state.add(
        "press-2",
        "silent",
        3 * DAY,
        sentences=("It was last seen {lastSeen} ago, when it published a message.", "It is gone in {left}."),
    )
    state.add(
        "press-3",
        "marked",
        30.5 * DAY,
        evidence="connectionCount",
        due_in_seconds=DAY / 2,
        sentences=("It has been silent for {silent}.", "It will be disassociated in {due}."),
    )
    state.add("quiet-1", "neverSeen", 50 * DAY, seen=False, patience_seconds=None)
    state.write()
    return Pruner(state, capsys)


@pytest.fixture
def pruner(stopped: Pruner) -> Iterator[Pruner]:
    """The command line while the component runs."""
    lock = lock_instance(stopped.state.work_dir)
    assert lock is not None
    yield stopped
    os.close(lock)
