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
    component = make("echo ran", "echo installed", path=f"{tmp_path}:", user=65534, sudo=True)
    component.start()
    await component.wait_for_state(State.FINISHED)
    prefix = "sudo -n -E -H -u #65534 -g #65534 -- sh -c"
    assert component.output[:2] == [f"{prefix} echo installed", "installed"]
    assert component.output[3:5] == [f"{prefix} echo ran", "ran"]


async def test_it_is_installed_once(make: _Make, tmp_path: Path) -> None:
    """A later start only runs."""
    component = make("true", "echo again >> count")
    for _ in range(2):
        component.start()
        await component.wait_for_state(State.RUNNING)
        await component.stop()
    assert (tmp_path / "work" / "count").read_text() == "again\n"
    assert component.starts == 2


async def test_three_errors_make_it_broken(make: _Make) -> None:
    """Each is followed by a new start, but the third."""
    component = make("echo start $START; exit 3")
    component.start()
    await component.wait_for_state(State.BROKEN)
    assert [line for line in component.output if line.startswith("start")] == ["start 0", "start 1", "start 2"]


async def test_a_failed_install_is_an_error(make: _Make) -> None:
    """So is one that takes too long; run is never reached."""
    component = make("echo ran", "sleep 60", timeout_seconds=0.1)
    component.start()
    await component.wait_for_state(State.BROKEN)
    assert "ran" not in component.output
    assert "install took longer than 0.1 s" in component.output


async def test_killed_it_is_started_again(make: _Make) -> None:
    """An `exec`ed process has the pid that is told, and a new one after the restart."""
    component = make("exec sleep 60")
    component.start()
    await component.wait_for_state(State.RUNNING)
    first = component.pid
    component.kill()
    await component.wait_for_state(State.ERRORED)
    await component.wait_for_state(State.RUNNING)
    assert component.starts == 2
    assert component.pid not in {None, first}


async def test_stop_lets_it_end_by_itself(make: _Make) -> None:
    """SIGTERM first; whatever the exit status, it is finished and not started again."""
    component = make("trap 'echo bye; exit 1' TERM; echo ready; while true; do sleep 0.05; done")
    component.start()
    await until(lambda: "ready" in component.output)
    await component.stop()
    assert component.state is State.FINISHED
    assert "bye" in component.output


async def test_a_suspended_process_is_killed_in_the_end(make: _Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot take SIGTERM; SIGKILL comes when the time is up, for its children as well."""
    monkeypatch.setattr("local_core.component._STOP_SECONDS", 0.2)
    component = make("sleep 60 & echo $!; wait")
    component.start()
    await until(lambda: component.output)
    child = int(component.output[0])
    component.suspend()
    await component.stop()
    assert component.state is State.FINISHED
    await until(lambda: not _runs(child))


async def test_what_a_process_leaves_behind_is_ended(make: _Make) -> None:
    """A child that outlives the component does not keep it running."""
    component = make("sleep 60 & echo $!")
    component.start()
    await component.wait_for_state(State.FINISHED)
    await until(lambda: not _runs(int(component.output[0])))


async def test_waiting_in_vain_shows_the_last_output(make: _Make) -> None:
    """The error tells the state and what the component said."""
    component = make("echo here I am; exec sleep 60")
    component.start()
    await until(lambda: component.output)
    with pytest.raises(TimeoutError, match=r"RUNNING, not BROKEN(.|\n)*here I am"):
        await component.wait_for_state(State.BROKEN, timeout_seconds=0.1)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has reaped yet runs no more.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
