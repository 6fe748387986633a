"""The life of a component's process."""

from pathlib import Path
from typing import Any

from local_core.component import Component, State
from local_core.recipe import Phase

NOWHERE = {"FROM_RECIPE": "yes", "PYTHONPATH": "/nowhere", "LD_LIBRARY_PATH": "/nowhere"}


async def ended(tmp_path: Path, run: str, install: str, state: State, **options: Any) -> list[str]:
    """Have a component of these scripts come to that state; returns its output."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    component = Component(
        "com.example.Test",
        phase={"run": Phase(run, NOWHERE), "install": Phase(install)}.get,
        environment=lambda: {"PATH": f"{tmp_path}:/usr/bin:/bin", "START": str(component.starts), "ENV": "/nowhere"},
        work_dir=work_dir,
        log_path=tmp_path / "logs" / "test.log",
        **options,
    )
    component.start()
    await component.wait_for_state(state)
    assert component.pid is None
    return component.output


async def test_install_then_run_in_the_work_directory(tmp_path: Path) -> None:
    """With the device's environment and the recipe's, less what sudo strips (case 32); all output is kept."""
    run = "pwd; echo $FROM_RECIPE; echo oops >&2; cat installed; env | cut -d= -f1"
    output = await ended(tmp_path, run, "echo ok > installed", State.FINISHED)
    assert {str(tmp_path / "work"), "yes", "oops", "ok", "START"} <= set(output)
    assert {"HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "ENV"}.isdisjoint(output)


async def test_it_is_started_through_sudo(tmp_path: Path) -> None:
    """As the nucleus starts it: each phase, as the user and group that are asked for (case 32)."""
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\necho "sudo $*"\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    sudo.chmod(0o755)
    output = await ended(tmp_path, "echo ran", "echo installed", State.FINISHED, user="ggc_user:ggc_group")
    prefix = "sudo -n -E -H -u ggc_user -g ggc_group -- sh -c"
    assert output[:2] == [f"{prefix} echo installed", "installed"]
    assert output[3:5] == [f"{prefix} echo ran", "ran"]


async def test_three_errors_make_it_broken(tmp_path: Path) -> None:
    """Each is followed by a new start, but the third."""
    output = await ended(tmp_path, "echo start $START; exit 3", "true", State.BROKEN)
    assert [line for line in output if line.startswith("start")] == ["start 0", "start 1", "start 2"]
