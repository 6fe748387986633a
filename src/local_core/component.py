"""The life of one component's process, as the nucleus leads it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from local_core.recipe import Phase

_STOP_SECONDS = 5.0
_ERRORS_WITHIN_SECONDS = 3600.0
_ERRORS_UNTIL_BROKEN = 3
_LINE_LIMIT_BYTES = 1 << 20


class State(str, Enum):
    """A state of the nucleus' component lifecycle."""

    NEW = "NEW"
    INSTALLED = "INSTALLED"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    FINISHED = "FINISHED"
    ERRORED = "ERRORED"
    BROKEN = "BROKEN"


class Component:
    """Installs, runs, restarts and stops a component.

    Args:
        name: The component's name.
        phase: Returns a lifecycle phase by name, interpolated anew at each start, or None.
        environment: Returns the device's environment for one start, with an auth token of its own.
        work_dir: The component's current directory; made if it is missing.
        log_path: Receives stdout and stderr, line by line.
        user: The numeric user and group that its processes run as; None leaves them as they are.
    """

    def __init__(
        self,
        name: str,
        *,
        phase: Callable[[str], Phase | None],
        environment: Callable[[], Mapping[str, str]],
        work_dir: Path,
        log_path: Path,
        user: int | None = None,
    ) -> None:
        self.name = name
        self.state = State.NEW
        self.output: deque[str] = deque(maxlen=20_000)
        self.starts = 0
        self._phase = phase
        self._environment = environment
        self._work_dir = work_dir
        self._log_path = log_path
        self._credentials: dict[str, Any] = (
            {} if user is None else {"user": user, "group": user, "extra_groups": [], "umask": 0o022}
        )
        self._installed = ""
        self._stopping = False
        self._errors: deque[float] = deque(maxlen=_ERRORS_UNTIL_BROKEN)
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._waiters: list[tuple[frozenset[State], asyncio.Future[State]]] = []

    @property
    def pid(self) -> int | None:
        """The running process' id (the shell's, or what it has replaced itself with), else None."""
        running = self._process and self._process.returncode is None
        return self._process.pid if self._process and running else None

    def start(self) -> None:
        """Install if needed, and run, in the background; a component that runs is left alone."""
        if self._supervision is None or self._supervision.done():
            self._errors.clear()
            self._stopping = False
            self._supervision = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End it: SIGTERM to its process group, SIGKILL after five seconds."""
        await self._end(signal.SIGTERM, patience_seconds=_STOP_SECONDS)

    async def power_off(self) -> None:
        """End it as a power cut does: SIGKILL, and no restart."""
        await self._end(signal.SIGKILL, patience_seconds=_STOP_SECONDS)

    def kill(self) -> None:
        """Send SIGKILL to its process group; the nucleus then takes it for an error and restarts it."""
        self._signal(signal.SIGKILL)

    def suspend(self) -> None:
        """Stop its processes where they are (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let suspended processes go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    async def wait_for_state(self, *states: State, timeout_seconds: float = 30.0) -> State:
        """Return as soon as it is, or has meanwhile been, in one of the states.

        Raises:
            TimeoutError: If it is in none of them in time; the message ends with its last output.
        """
        if self.state in states:
            return self.state
        reached: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        waiter = (frozenset(states), reached)
        self._waiters.append(waiter)
        try:
            return await asyncio.wait_for(reached, timeout_seconds)
        except asyncio.TimeoutError:
            wanted = ", ".join(state.value for state in states)
            last = "\n".join(list(self.output)[-20:])
            message = f"{self.name} is {self.state.value}, not {wanted}; its last output:\n{last}"
            raise TimeoutError(message) from None
        finally:
            self._waiters.remove(waiter)

    async def _supervise(self) -> None:
        while await self._install_and_run() != 0 and not self._stopping:
            self._errors.append(time.monotonic())
            self._set(State.ERRORED)
            if (
                len(self._errors) == _ERRORS_UNTIL_BROKEN
                and self._errors[-1] - self._errors[0] < _ERRORS_WITHIN_SECONDS
            ):
                self._set(State.BROKEN)
                return
        self._set(State.FINISHED)

    async def _install_and_run(self) -> int:
        install, run = self._phase("install"), self._phase("run")
        # The nucleus installs again only when the script has changed.
        if install and install.script != self._installed:
            self._set(State.NEW)
            if (code := await self._run("install", install)) != 0:
                return code
            self._installed = install.script
        if self._stopping or run is None:
            return 0
        self._set(State.INSTALLED)
        return await self._run("run", run)

    async def _run(self, name: str, phase: Phase) -> int:
        self._work_dir.mkdir(parents=True, exist_ok=True)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        # Pipes of our own: asyncio's would have `wait` wait for children that hold them open, too.
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        pumps = [asyncio.create_task(self._pump(out, "INFO")), asyncio.create_task(self._pump(err, "WARN"))]
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                "sh",
                "-c",
                phase.script,
                cwd=self._work_dir,
                env={**self._environment(), **phase.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out_end,
                stderr=err_end,
                start_new_session=True,
                **self._credentials,
            )
        finally:
            os.close(out_end)
            os.close(err_end)
        if self._stopping:
            self._signal(signal.SIGTERM)
        if name == "run":
            self.starts += 1
            self._set(State.RUNNING)
        try:
            await asyncio.wait_for(process.wait(), phase.timeout_seconds)
        except asyncio.TimeoutError:
            self._note("ERROR", f"{name} took longer than {phase.timeout_seconds:g} s")
        finally:
            # Whatever it has left behind must not hold the pipes open.
            self._signal(signal.SIGKILL)
            await asyncio.gather(process.wait(), *pumps)
        self._note("INFO", f"{name} exited with {process.returncode}")
        self._process = None
        return process.returncode or 0

    async def _pump(self, source: int, level: str) -> None:
        reader = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(source, "rb", 0)
        )
        try:
            while line := await _next_line(reader):
                self._note(level, line.decode(errors="replace").rstrip("\n"))
        finally:
            transport.close()

    def _note(self, level: str, line: str) -> None:
        self.output.append(line)
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        with self._log_path.open("a", encoding="utf-8") as log:
            log.write(f"{now} [{level}] {self.name}: {line}\n")

    async def _end(self, first: signal.Signals, *, patience_seconds: float) -> None:
        if self._supervision is None or self._supervision.done():
            return
        self._set(State.STOPPING)
        self._stopping = True
        self._signal(first)
        _, unfinished = await asyncio.wait({self._supervision}, timeout=patience_seconds)
        if unfinished:
            self._signal(signal.SIGKILL)
            await self._supervision

    def _signal(self, number: signal.Signals) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _set(self, state: State) -> None:
        if self._stopping and state is not State.FINISHED:
            return
        self.state = state
        for states, reached in self._waiters:
            if state in states and not reached.done():
                reached.set_result(state)


async def _next_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:
        return b"(a line too long to keep)"
