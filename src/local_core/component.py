"""The life of one component's process, as the nucleus leads it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from local_core.recipe import Phase

_STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.01
_ERRORS_WITHIN_SECONDS = 3600.0
_ERRORS_UNTIL_BROKEN = 3
_STRIPPED = {"PYTHONPATH", "PYTHONHOME", "PYTHONINSPECT", "PYTHONUSERBASE", "ENV", "BASH_ENV"}
"""What sudo removes from the environment, even with `-E`, and all that begins with `LD_`."""


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
        phase: Returns a lifecycle phase by name, or None.
        environment: Returns the device's environment for one start.
        work_dir: The component's current directory.
        log_path: Where stdout and stderr go.
        user: The user and group, ``ggc_user:ggc_group``, for which ``sudo`` starts it; empty: as the core itself.

    Attributes:
        starts: How often ``run`` was started.
    """

    def __init__(
        self,
        name: str,
        *,
        phase: Callable[[str], Phase | None],
        environment: Callable[[], Mapping[str, str]],
        work_dir: Path,
        log_path: Path,
        user: str = "",
    ) -> None:
        self.name = name
        self.starts = 0
        self._states = [State.NEW]
        self._phase = phase
        self._environment = environment
        self._work_dir = work_dir
        self._log_path = log_path
        user_name, _, group = user.partition(":")
        self._sudo = ["sudo", "-n", "-E", "-H", "-u", user_name, "-g", group, "--"] if user else []
        self._installed = ""
        self._stopping = False
        self._errors: deque[float] = deque(maxlen=_ERRORS_UNTIL_BROKEN)
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """Where it is in its lifecycle."""
        return self._states[-1]

    @property
    def output(self) -> list[str]:
        """Every line that it wrote so far, and how each phase ended."""
        return self._log_path.read_text("utf-8", "replace").splitlines() if self._log_path.exists() else []

    @property
    def pid(self) -> int | None:
        """The running process' id (the shell's, what it has replaced itself with, or sudo's), else None."""
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
        await self._end(signal.SIGTERM)

    async def power_off(self) -> None:
        """End it as a power cut does: SIGKILL, and no restart."""
        await self._end(signal.SIGKILL)

    def kill(self) -> None:
        """Send SIGKILL to its process group; the nucleus then takes it for an error and restarts it."""
        self._signal(signal.SIGKILL)

    async def wait_for_state(self, *states: State, timeout_seconds: float = 30.0) -> State:
        """Return as soon as it is, or has meanwhile been, in one of the states.

        Raises:
            TimeoutError: If it is in none of them in time; the message ends with its last output.
        """
        looked, deadline = len(self._states) - 1, time.monotonic() + timeout_seconds
        while True:
            for state in self._states[looked:]:
                if state in states:
                    return state
            looked = len(self._states)
            if time.monotonic() > deadline:
                wanted, last = ", ".join(states), "\n".join(self.output[-20:])
                raise TimeoutError(f"{self.name} is {self.state.value}, not {wanted}; its last output:\n{last}")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _supervise(self) -> None:
        while await self._install_and_run() != 0 and not self._stopping:
            self._errors.append(time.monotonic())
            self._set(State.ERRORED)
            quickly = self._errors[-1] - self._errors[0] < _ERRORS_WITHIN_SECONDS
            if len(self._errors) == _ERRORS_UNTIL_BROKEN and quickly:
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
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**self._environment(), **phase.environment}
        with self._log_path.open("ab", buffering=0) as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._sudo,
                "sh",
                "-c",
                phase.script,
                cwd=self._work_dir,
                env={k: v for k, v in environment.items() if k not in _STRIPPED and not k.startswith("LD_")},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            if self._stopping:
                self._signal(signal.SIGTERM)
            if name == "run":
                self.starts += 1
                self._set(State.RUNNING)
            try:
                await asyncio.wait_for(process.wait(), phase.timeout_seconds)
            except asyncio.TimeoutError:
                log.write(f"{name} took longer than {phase.timeout_seconds:g} s\n".encode())
            finally:
                # Whatever it has left behind must not go on.
                self._signal(signal.SIGKILL)
                await process.wait()
            log.write(f"{name} exited with {process.returncode}\n".encode())
        self._process = None
        return process.returncode or 0

    async def _end(self, first: signal.Signals) -> None:
        if self._supervision is None or self._supervision.done():
            return
        self._set(State.STOPPING)
        self._stopping = True
        self._signal(first)
        _, unfinished = await asyncio.wait({self._supervision}, timeout=_STOP_SECONDS)
        if unfinished:
            self._signal(signal.SIGKILL)
            await self._supervision

    def _signal(self, number: signal.Signals) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _set(self, state: State) -> None:
        if not self._stopping or state is State.FINISHED:
            self._states.append(state)
