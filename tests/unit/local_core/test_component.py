"""The life of a component's process."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.waiting import until
from local_core.component import Component, State
from local_core.recipe import Phase

_Make = Callable[..., Component]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[_Make]:
    """Makes components from scripts, and stops them in the end."""
    made: list[Component] = []
    (tmp_path / "work").mkdir()

    def component(
        run: str, install: str | None = None, timeout_seconds: float | None = None, path: str = "", **options: Any
    ) -> Component:
        phases = {"run": Phase(run, {"FROM_RECIPE": "yes", "PYTHONPATH": "/nowhere", "LD_LIBRARY_PATH": "/nowhere"})}
        if install is not None:
            phases["install"] = Phase(install, timeout_seconds=timeout_seconds)
        made.append(
            Component(
                "com.example.Test",
                phase=phases.get,
                environment=lambda: {"PATH": f"{path}/usr/bin:/bin", "START": str(made[0].starts), "ENV": "/nowhere"},
                work_dir=tmp_path / "work",
                log_path=tmp_path / "logs" / "test.log",
                **options,
            )
        )
        return made[-1]

    yield component
    for each in made:
        each.resume()
        await each.power_off()


async def test_install_then_run_in_the_work_directory(make: _Make, tmp_path: Path) -> None:
    """With the device's environment and the recipe's, less what sudo strips (case 32); all output is kept."""
    component = make("pwd; echo $FROM_RECIPE; echo oops >&2; cat installed; env | cut -d= -f1", "echo ok > installed")
    component.start()
    await component.wait_for_state(State.FINISHED)
    assert {str(tmp_path / "work"), "yes", "oops", "ok", "START"} <= set(component.output)
    assert {"HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "ENV"}.isdisjoint(component.output)
    assert component.pid is None


async def test_it_is_started_through_sudo(make: _Make, tmp_path: Path) -> None:
    """As the nucleus starts it: each phase, as the user and group that are asked for (case 32)."""
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\necho "sudo $*"\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    sudo.chmod(0o755)
    component = make("echo ran", "echo installed", path=f"{tmp_path}:", user="ggc_user:ggc_group")
    component.start()
    await component.wait_for_state(State.FINISHED)
    prefix = "sudo -n -E -H -u ggc_user -g ggc_group -- sh -c"
    assert component.output[:2] == [f"{prefix} echo installed", "installed"]
    assert component.output[3:5] == [f"{prefix} echo ran", "ran"]


async def test_three_errors_make_it_broken(make: _Make) -> None:
    """Each is followed by a new start, but the third."""
    component = make("echo start $START; exit 3")
    component.start()
    await component.wait_for_state(State.BROKEN)
    assert [line for line in component.output if line.startswith("start")] == ["start 0", "start 1", "start 2"]


async def test_stop_lets_it_end_by_itself(make: _Make) -> None:
    """SIGTERM first; whatever the exit status, it is finished and not started again."""
    component = make("trap 'echo bye; exit 1' TERM; echo ready; while true; do sleep 0.05; done")
    component.start()
    await until(lambda: "ready" in component.output)
    await component.stop()
    assert component.state is State.FINISHED
    assert "bye" in component.output


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has reaped yet runs no more.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
