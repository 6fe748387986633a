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


async def test_install_then_run_through_sudo(tmp_path: Path) -> None:
    """Case 32: each phase as the user that is asked for, with the recipe's environment, less what sudo strips."""
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\necho "sudo $*"\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    sudo.chmod(0o755)
    install, run = "echo ok > installed", "pwd; echo $FROM_RECIPE; echo oops >&2; cat installed; env | cut -d= -f1"
    output = await ended(tmp_path, run, f"{install}; cat installed", State.FINISHED, user="ggc_user:ggc_group")
    prefix = "sudo -n -E -H -u ggc_user -g ggc_group -- sh -c"
    assert output[:2] == [f"{prefix} {install}; cat installed", "ok"]
    assert {f"{prefix} {run}", str(tmp_path / "work"), "yes", "oops", "START"} <= set(output[3:])
    assert output.count("ok") == 2
    assert {"HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "ENV"}.isdisjoint(output)


async def test_three_errors_make_it_broken(tmp_path: Path) -> None:
    """Each is followed by a new start, but the third."""
    output = await ended(tmp_path, "echo start $START; exit 3", "true", State.BROKEN)
    assert [line for line in output if line.startswith("start")] == ["start 0", "start 1", "start 2"]
