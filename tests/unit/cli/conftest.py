"""A core device with four client devices, one of each kind, as its component wrote it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.cli.commands import carry_out, parser
from client_device_pruner.store.database import lock_instance
from fakes.state import DAY, WrittenState


class Pruner:
    """The command line of that core device; `state` is what the component wrote."""

    def __init__(self, state: WrittenState, capture: pytest.CaptureFixture[str]) -> None:
        self.state = state
        self._capture = capture

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; returns exit status, standard output and standard error."""
        status = carry_out(parser().parse_args([*arguments, "--work-dir", str(self.state.work_dir)]))
        out, err = self._capture.readouterr()
        return status, out, err

    def text(self, *arguments: str) -> str:
        """Run a command, which succeeds; returns what it says."""
        status, out, err = self.run(*arguments)
        assert (status, err) == (0, "")
        return out

    def value(self, *arguments: str) -> Any:
        """Run a command for machines, which succeeds; returns its value."""
        return json.loads(self.text(*arguments, "--json"))

    def failure(self, *arguments: str) -> str:
        """Run a command, which fails; returns why."""
        status, out, err = self.run(*arguments)
        assert (status, out) == (1, "")
        return err


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
