"""A child process, always a real one: its pipes, its end, and what must be left of it, which is nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import client_device_pruner
from client_device_pruner.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
LONG = 30.0


def shell(script: str, **environment: str) -> Child:
    """Start a shell."""
    return Child(("/bin/sh", "-c", script), ENVIRONMENT | environment)


@contextlib.contextmanager
def running(script: str, **environment: str) -> Iterator[Child]:
    """Start a shell, of which nothing is left afterwards."""
    child = shell(script, **environment)
    try:
        yield child
    finally:
        child.kill()
        child.end(LONG)
        child.input.close()
        child.output.close()


def descriptors() -> set[int]:
    """The open descriptors of this process; that of the listing is closed again when they are looked at."""
    return {int(path.name) for path in list(Path("/proc/self/fd").iterdir()) if path.exists()}


def ended(child: Child) -> None:
    """Wait until a child has ended, without reaping it."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_its_pipes_are_its_standard_streams() -> None:
    """What is written is its input, what it prints is read, and the end of the one ends the other."""
    with running("cat; echo $WORD", WORD="bye") as child:
        assert child.input.write(b"hello\n") == 6
        assert child.output.readline() == b"hello\n"
        assert child.poll() is None
        child.input.close()
        assert child.output.read() == b"bye\n"
        assert child.end(LONG) == 0


def test_the_environment_is_all_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the parent's own environment is added."""
    monkeypatch.setenv("SECRET", "x")
    with running("echo ${SECRET-unset}") as child:
        assert child.output.read() == b"unset\n"


def test_a_full_pipe_does_not_block() -> None:
    """A child that does not read is written to in part, then not at all."""
    with running("sleep 60") as child:
        taken = child.input.write(bytes(1 << 20))
        assert taken is not None
        assert 0 < taken < 1 << 20
        assert child.input.write(b"more") is None


def test_a_pipe_that_nobody_reads_is_broken() -> None:
    """What is written to a child that has ended raises, and signals nobody."""
    with running("exit") as child:
        ended(child)
        with pytest.raises(BrokenPipeError):
            child.input.write(b"x")


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("exit 0", 0), ("kill -TERM $$", -15)])
def test_the_status_is_that_of_its_end(script: str, status: int) -> None:
    """An exit status is told as it is, a signal by its negated number; however often it is asked for."""
    with running(script) as child:
        assert child.end(LONG) == status
        assert child.poll() == status
        assert child.end(0) == status


@pytest.mark.parametrize("name", ["PIPE", "XFSZ"])
def test_it_does_not_ignore_what_python_ignores(name: str) -> None:
    """Signals that Python ignores, and that a child would ignore as well, end it as they end any other program."""
    with running(f"ulimit -c 0; kill -{name} $$") as child:
        assert child.end(LONG) == -signal.Signals[f"SIG{name}"]


def test_it_is_reaped() -> None:
    """No zombie is left: its number is free again."""
    with running("exit") as child:
        child.end(LONG)
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)


def test_kill_ends_it() -> None:
    """It ends at once, whatever it does with other signals."""
    with running("trap '' TERM INT HUP; echo; while :; do sleep 60; done") as child:
        child.output.readline()
        child.kill()
        ended(child)
        assert child.end(LONG) == -signal.SIGKILL


def test_kill_after_its_end_changes_nothing() -> None:
    """It had ended on its own: that is what is told, though nobody had asked yet."""
    with running("exit 3") as child:
        ended(child)
        child.kill()
        assert child.poll() == 3


def test_kill_spares_who_has_its_number_now() -> None:
    """Once reaped, its number is another process's."""
    with running("exit") as child, running("sleep 60") as other:
        child.end(LONG)
        number, child.pid = child.pid, other.pid
        child.kill()
        assert other.poll() is None
        child.pid = number


def test_who_ignores_the_end_of_its_input_is_killed() -> None:
    """The grace is for those that need a moment; then it is over."""
    with running("exec sleep 60") as child:
        child.input.close()
        assert child.end(0.05) == -signal.SIGKILL


def test_who_ends_within_the_grace_is_not_killed() -> None:
    """A child that closes its output and is about to end tells its own status."""
    with running("exec >&-; sleep 0.1; exit 3") as child:
        assert child.output.read() == b""
        assert child.end(LONG) == 3


def test_one_thread_kills_while_another_one_reaps() -> None:
    """Whoever comes first, it ends once, and neither stumbles over the other."""
    for number in range(30):
        with running("exit 3" if number % 2 else "exec sleep 60") as child:
            statuses: list[int] = []
            reaper = threading.Thread(target=lambda: statuses.append(child.end(LONG)))  # noqa: B023 - joined below
            reaper.start()
            for _ in range(50):
                child.kill()
            reaper.join(LONG)
            assert statuses in ([3], [-signal.SIGKILL])


def test_children_that_are_not_to_be_waited_for() -> None:
    """Where SIGCHLD is ignored, by whoever started the component, the kernel reaps: its end is noticed all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with running("cat") as child:
            assert child.poll() is None
            child.input.close()
            assert child.end(LONG) == 0
            child.kill()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_fifty_leave_nothing() -> None:
    """Neither descriptors nor zombies gather."""
    before = descriptors()
    for number in range(50):
        with running("cat" if number % 2 else "exit"):
            assert len(descriptors()) == len(before) + 2
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    ("program", "argument", "raised"),
    [("/nonexistent", "", FileNotFoundError), ("/", "", PermissionError), ("/bin/sh", "\0", ValueError)],
)
def test_what_cannot_be_started_leaves_nothing(program: str, argument: str, raised: type[Exception]) -> None:
    """The parent is told why, and keeps neither descriptors nor a process."""
    before = descriptors()
    with pytest.raises(raised):
        Child((program, argument), ENVIRONMENT)
    assert descriptors() == before


@pytest.mark.parametrize("left", range(5))
def test_without_descriptors_it_is_not_started(left: int) -> None:
    """However few are left, those that it had taken by then are given back."""
    before = descriptors()
    free = sorted(set(range(1_000)) - before)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[left], hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            shell("exit")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before


def test_it_inherits_no_other_descriptor() -> None:
    """The SDK's connection, which it lets be inherited, stays with the component."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with running(f"[ -e /proc/self/fd/2 ] && [ ! -e /proc/self/fd/{writing} ]") as child:
        assert child.end(LONG) == 0
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_standard_streams_that_are_closed(closed: tuple[int, ...]) -> None:
    """A pipe does not take their numbers: the child's streams are its own, and what goes to a closed one is lost."""
    script = f"""
        import os, sys
        from client_device_pruner.child import Child
        for number in {closed}:
            os.close(number)
        child = Child(("/bin/sh", "-c", "cat; echo lost >&2 && exit 3"), {ENVIRONMENT})
        for number in {closed}:
            os.write(number, b"lost")
        child.input.write(b"hello")
        child.input.close()
        os._exit(0 if child.output.read() == b"hello" and child.end(60) == 3 else 1)
    """
    source = str(Path(client_device_pruner.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env={"PYTHONPATH": source}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")
