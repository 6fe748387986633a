"""`make soak`: a lively core on the real wire. What the component takes stays flat, the dead go, and nobody else."""
# ruff: noqa: T201 - for people

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from random import uniform
from typing import Any

from benchmarks.processes import Memory, memory_bytes

from e2e.trial import TRIAL, TYPE_PREFIX, Trial
from local_core.core import EMQX, EVENTS_TOPIC, LocalCore
from local_core.devices import ClientDevices, DeviceError

SPEAKING, SILENT, FLAPPING, MORTAL = (
    tuple(f"{kind}-{number}" for number in range(size))
    for kind, size in {"speaking": 12, "silent": 12, "flapping": 6, "mortal": 6}.items()
)
SPARES_A_MINUTE = 50  # protected, and never connected: with them a day's budget is large enough for all that die
SETTINGS: dict[str, Any] = {
    **TRIAL,
    "offlineThreshold": "20s",
    "checkInterval": "10s",
    "presence": {"probeInterval": "2s", "clientList": {"interval": "2s"}},
    "protectedDevices": ["spare-*"],
}
GONE_SECONDS = 240.0  # how long a dead device may take to go: its threshold is observed time, and each restart a gap
SAMPLE_SECONDS, PARTS = 3.0, 12
WARM_UP = 3  # parts of the time, of which the next as many are compared with the last
FIGURES = {"memory/MiB": 1.05, "descriptors": 1.0, "threads": 1.0}  # what is measured, by what factor it may grow


@dataclass(slots=True)
class Site:
    """The devices of a core, what befalls it, and what went wrong."""

    trial: Trial
    dead: set[str] = field(default_factory=set)
    gone: int = 0  # how many that died went, each time
    problems: list[str] = field(default_factory=list)

    async def connect(self, name: str, **options: Any) -> None:
        """Connect a device, as soon as the broker is there."""
        while True:
            with suppress(DeviceError):
                return await self.trial.devices.connect(name, **options)
            await asyncio.sleep(0.5)

    async def flap(self, name: str) -> None:
        """Come and leave again and again."""
        for leave in cycle((self.trial.devices.disconnect, self.trial.devices.drop)):
            await self.connect(name)
            await asyncio.sleep(uniform(2, 6))
            await leave(name)
            await asyncio.sleep(uniform(1, 4))

    async def live_and_die(self, name: str) -> None:
        """Live for a while, and die: politely, in silence or without power; once it is gone, associate it anew."""
        devices, core = self.trial.devices, self.trial.core
        for die in cycle((devices.disconnect, devices.drop, devices.freeze)):
            await self.connect(name, keepalive=2, telemetry_seconds=1, reconnect_seconds=0.5)
            await asyncio.sleep(uniform(10, 20))
            self.dead.add(name)
            since = len(core.events)
            await die(name)
            await self.trial.event("disassociated", name, since=since, seconds=GONE_SECONDS)
            self.gone += 1
            self.dead.discard(name)
            core.cloud.associate(name)
            await self.trial.cycles(1)

    async def restart(self) -> None:
        """Restart a part of the core now and then."""
        core = self.trial.core
        begins: dict[Any, Any] = {core.broker.stop: core.broker.start, core.bridge.stop: core.bridge.start}
        begins[core.emqx_api.stop] = partial(core.emqx_api.start, core.configuration[EMQX])
        begins[core.broker.restart_listener] = core.broker.restart_listener
        for stop, start in cycle(begins.items()):
            await asyncio.sleep(uniform(20, 40))
            await stop()
            await asyncio.sleep(uniform(0.5, 3))
            await start()

    def hear(self, event: dict[str, Any]) -> None:
        """Note whether a device was cut off that is alive."""
        if event["type"] == f"{TYPE_PREFIX}disassociated" and event["subject"] not in self.dead:
            self.problems.append(f"{event['subject']} is alive and was cut off: {event['data']}")

    async def measure(self, seconds: float) -> tuple[float, ...]:
        """Give the `FIGURES` at rest: the least of each, since child processes and calls by HTTP add some."""
        samples = []
        for _sample in range(max(1, round(seconds / SAMPLE_SECONDS))):
            await asyncio.sleep(SAMPLE_SECONDS)
            pid = self.trial.core.component.pid or 0
            with suppress(OSError):  # it is just being started anew, which is told in the end
                held = (len(os.listdir(f"/proc/{pid}/{kind}")) for kind in ("fd", "task"))  # noqa: PTH208
                samples.append((memory_bytes(pid, Memory.ALL) / 2**20, *held))
        return tuple(map(min, zip(*samples, strict=True)))


async def soak(minutes: float) -> int:
    """Run for so long, and print the figures and what went wrong; returns 1 if anything did, else 0."""
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        core = await stack.enter_async_context(LocalCore(root, environment=Path(sys.prefix), count_interval_seconds=2))
        devices = await stack.enter_async_context(ClientDevices(lambda: core.broker.port))
        site = Site(Trial(core, devices))
        core.pubsub.subscribe(EVENTS_TOPIC, lambda message: site.hear(json.loads(message.payload)))
        core.cloud.associate(*SPEAKING, *SILENT, *FLAPPING, *MORTAL)
        core.cloud.associate(*(f"spare-{number}" for number in range(round(SPARES_A_MINUTE * minutes))))
        await core.deploy({EMQX: {"merge": core.emqx_api.configuration()}})
        await devices.connect(*SPEAKING, telemetry_seconds=2, reconnect_seconds=0.5)
        await devices.connect(*SILENT, reconnect_seconds=0.5)
        await site.trial.deploy(**SETTINGS)
        lives = [*map(site.flap, FLAPPING), *map(site.live_and_die, MORTAL), site.restart()]
        tasks = [asyncio.create_task(life) for life in lives]
        row = ("{:>11}  " * (len(FIGURES) + 2)).format
        print(row("minute", *FIGURES, "gone"))
        parts = []
        for part in range(1, PARTS + 1):
            parts.append(await site.measure(minutes * 60 / PARTS))
            print(row(*(f"{figure:.4g}" for figure in (part * minutes / PARTS, *parts[-1])), site.gone), flush=True)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        site.problems += [str(end) for end in ended if isinstance(end, Exception)]  # what did not happen in time
        if core.component.starts > 1:
            site.problems.append(f"the component was started {core.component.starts} times")
    before, after = (list(zip(*some, strict=True)) for some in (parts[WARM_UP : 2 * WARM_UP], parts[-WARM_UP:]))
    grown = zip(FIGURES.items(), map(max, before), map(min, after), strict=True)
    site.problems += [
        f"{what} grew from {was:.4g} to {now:.4g}" for (what, most), was, now in grown if now > most * was
    ]
    print(*site.problems or ("Nothing grew, nobody was cut off, and the dead went.",), sep="\n")
    return 1 if site.problems else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(soak(float(sys.argv[1]))))
