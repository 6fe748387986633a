"""A local core under the settings of a trial, with client devices, and ways to wait for what happens on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_core.cloud import DISASSOCIATE, Call
from local_core.component import State
from local_core.core import BRIDGE, LocalCore
from local_core.devices import ClientDevices
from local_core.http_server import Fault

REPOSITORY = Path(__file__).resolve().parents[2]
COMPONENT = "community.greengrass.ClientDevicePruner"
TYPE_PREFIX = "community.greengrass.pruner."
IN = "client-device-pruner/in/"
WAIT_SECONDS = 60.0


def documented(name: str) -> dict[str, Any]:
    """What the deployment document `deploy/NAME.json` merges, by component."""
    components = json.loads((REPOSITORY / "deploy" / f"{name}.json").read_text("utf-8"))["components"]
    return {name: json.loads(one["configurationUpdate"]["merge"]) for name, one in components.items()}


MAPPING: dict[str, dict[str, str]] = documented("deployment-live")[BRIDGE]["mqttTopicMapping"]
"""The bridge's entries, as deployed."""
THRESHOLD_SECONDS = 10.0
GRACE_SECONDS = 1.0
TRIAL: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": f"{THRESHOLD_SECONDS:g}s",
    "gracePeriod": f"{GRACE_SECONDS:g}s",
    "checkInterval": "1s",
    # At most a tenth of the threshold. The fixed times of the model are a sixtieth then: ten minutes are 10 s.
    "presence": {"probeInterval": "1s"},
    "limits": {"approvalPercent": 100, "maxPercentPerDay": 100},
    "massLoss": {"minDevices": 1000},
}
"""Thresholds as short as a slow machine allows, and no guard that a handful of devices would set off."""
QUICK: dict[str, Any] = {"offlineThreshold": "5s", "gracePeriod": "0s", "presence": {"probeInterval": "0.5s"}}
"""For tests in which each living device has a session: one without is gone, and goes, after half the time."""

MakeTrial = Callable[..., Awaitable["Trial"]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A core with its client devices."""

    core: LocalCore
    devices: ClientDevices

    # Doing

    async def deploy(self, mapping: dict[str, Any] | None = None, *, listens: bool = True, **settings: Any) -> None:
        """Deploy a trial's settings, and the bridge's mapping if there is one; it `listens` once a cycle ended."""
        updates: dict[str, Any] = {COMPONENT: {"merge": {**TRIAL, **settings}}}
        if not self.core.lite:
            updates[BRIDGE] = {"merge": {"mqttTopicMapping": MAPPING if mapping is None else mapping}}
        await self.core.deploy(updates)
        if listens:
            await self.event("cycle", complete=True)

    async def watch(self, *names: str, **settings: Any) -> None:
        """Associate these devices, deploy, connect them, and wait until they are known to be present."""
        self.core.cloud.associate(*names)
        await self.deploy(**settings)
        await self.devices.connect(*names)
        await self.known(len(names))

    async def known(self, number: int) -> None:
        """Wait for a cycle to come in which so many devices are present or protected."""
        before = len(self.of_type("cycle"))

        def reached() -> bool:
            return any(one["present"] + one["protected"] >= number for one in self.of_type("cycle")[before:])

        await self.until(reached, f"{number} devices present or protected")

    async def cycles(self, number: int) -> None:
        """Wait until so many more cycles have ended."""
        before = len(self.of_type("cycle"))
        await self.until(lambda: len(self.of_type("cycle")) >= before + number, f"{number} more cycles")

    # Waiting

    async def event(
        self, kind: str, name: str | None = None, /, *, since: int = 0, seconds: float = WAIT_SECONDS, **data: Any
    ) -> dict[str, Any]:
        """Wait for an event, past (from the one with index `since` on) or to come; returns its data."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.of_type(kind, name, since=since) if data.items() <= one.items()]

        first: dict[str, Any] = (await self.until(found, f"{kind} {name or ''} {data or ''}", seconds))[0]
        return first

    async def until(self, reached: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
        """Wait until what is asked again and again is true, and return it; `what` says what did not come."""
        end = asyncio.get_running_loop().time() + seconds
        while not (answer := reached()):
            in_time = asyncio.get_running_loop().time() < end and self.core.component.state is not State.BROKEN
            assert in_time, f"{what}: not in {seconds:g} s\n{self.last_words()}"
            await asyncio.sleep(0.05)
        return answer

    async def status(self, reached: Callable[[dict[str, Any]], Any] = bool, what: str = "a status") -> dict[str, Any]:
        """Ask `pruner status --json` until it is as wanted, and return it."""
        end = asyncio.get_running_loop().time() + WAIT_SECONDS
        await self.until((self.core.work_dir / "pruner").exists, "the command")
        while True:
            code, answer, _error = await self.pruner("status", "--json")
            status: dict[str, Any] = json.loads(answer) if code == 0 else {}
            if status and reached(status):
                return status
            in_time = asyncio.get_running_loop().time() < end and self.core.component.state is not State.BROKEN
            assert in_time, f"{what}: not in time; the last status: {status}\n{self.last_words()}"
            await asyncio.sleep(0.5)  # each costs a process

    async def observes(self, seconds: float) -> None:
        """Wait until so many more seconds of observed time have passed."""
        began = (await self.status())["observedSeconds"]
        await self.status(lambda status: status["observedSeconds"] >= began + seconds, f"{seconds:g} s observed")

    # Looking

    async def pruner(self, *arguments: str) -> tuple[int, str, str]:
        """Run the component's own command; returns its exit status and what it wrote."""
        process = await asyncio.create_subprocess_exec(
            self.core.work_dir / "pruner",
            *arguments,
            cwd="/",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        return process.returncode or 0, output.decode(), errors.decode()

    async def value(self, *arguments: str) -> Any:
        """Run a command for machines, which succeeds; returns its value."""
        code, output, errors = await self.pruner(*arguments, "--json")
        assert (code, errors) == (0, "")
        return json.loads(output)

    async def explain(self, name: str) -> str:
        """What `pruner explain` says of a device."""
        code, output, errors = await self.pruner("explain", name)
        assert code == 0, errors
        return " ".join(output.split())

    def of_type(self, kind: str, name: str | None = None, *, since: int = 0) -> list[dict[str, Any]]:
        """The data of the events so far of that type (from that index on), about that device if one is named."""
        return [
            event["data"]
            for event in self.core.events[since:]
            if event["type"] == TYPE_PREFIX + kind and name in (None, event.get("subject"))
        ]

    def process(self, file: str) -> list[str]:
        """What a file of /proc has of the component's process, such as `cmdline` or `environ`."""
        return Path(f"/proc/{self.core.component.pid}/{file}").read_text("utf-8").rstrip("\0").split("\0")

    def log(self) -> list[dict[str, Any]]:
        """What the component has logged; lines of others have only a `message`."""
        return [_fields(line) for line in self.core.component.output]

    @property
    def associated(self) -> set[str]:
        """The names that are associated now."""
        return set(self.core.cloud.associations)

    def calls(self, operation: str) -> list[Call]:
        """The calls of that operation so far."""
        return [call for call in self.core.cloud.calls if call.operation == operation]

    @property
    def batches(self) -> list[tuple[str, ...]]:
        """The names of each disassociation call so far."""
        return [call.entries for call in self.calls(DISASSOCIATE)]

    def last_words(self) -> str:
        """The latest events and log lines, for a test that fails."""
        lines = [line for line in self.core.component.output if '"message": "cycle"' not in line]
        return "\n".join([*lines[-20:], str(self.of_type("cycle")[-1:])])


@contextlib.contextmanager
def failing(trial: Trial, operation: str, *, times: int | None = None, **fault: Any) -> Iterator[None]:
    """Have the cloud fail in this operation while the block runs, or so many times; see `Fault`."""
    trial.core.cloud.faults.append(Fault(operation=operation, times=times, **fault))
    yield
    trial.core.cloud.faults.clear()


@contextlib.asynccontextmanager
async def meanwhile(doing: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do this while the block runs; it must not end before."""
    task = asyncio.create_task(doing)
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _fields(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(fields := json.loads(line), dict):
            return fields
    return {"message": line}
