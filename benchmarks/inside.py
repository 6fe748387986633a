"""What is measured in this process: a cycle's decision, and a day in virtual time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path

from benchmarks.processes import written_bytes
from benchmarks.subjects import CORE
from benchmarks.wire import FEW, MOST, Figures
from client_device_pruner.config.settings import parse
from client_device_pruner.pruning.cloud import Listed, Ready
from client_device_pruner.pruning.core import Core
from client_device_pruner.pruning.cycle import Cycle
from client_device_pruner.pruning.failures import Failures
from client_device_pruner.reports.events import LOGGER
from fakes.broker import FakeBroker
from fakes.clock import FakeClock
from fakes.component import Component, World

HOUR, DAY = 3_600.0, 86_400.0
FLUSH_SECONDS = 30.0
"""So often the kernel writes to the disk what has changed (vm.dirty_expire_centisecs)."""
_SYS = "$SYS/brokers/emqx@127.0.0.1"


async def decision() -> Figures:
    """Measure a cycle over 100,000 devices from the last page of its list to the preflight, or its end."""
    LOGGER.setLevel(logging.ERROR)
    return {
        "a cycle's decision over 100,000 devices, all connected, CPU s": _decide(gone=False),
        "a cycle's decision over 100,000 devices, all marked, CPU s": _decide(gone=True),
    }


def _decide(*, gone: bool) -> float:
    """The CPU seconds of the second cycle: in the first, those that are gone are marked."""
    clock = FakeClock()
    with tempfile.TemporaryDirectory() as folder:
        core = Core(
            Path(folder), CORE, clock, publish=lambda *_message: True, publish_to_iot_core=lambda *_message: True
        )
        core.adopt(parse({"offlineThreshold": "1d"}))
        page = tuple((f"device-{number:06}", float(number)) for number in range(MOST))
        core.presence.reconcile(dict(page))
        for name, number in page:
            payload = json.dumps({"clientid": name, "connected_at": int(number)}).encode()
            core.presence.take(f"{_SYS}/clients/{name}/connected", payload, clock.now)
            if gone:
                core.presence.take(f"{_SYS}/clients/{name}/disconnected", payload, clock.now)
        connections = str(1 if gone else MOST + 1).encode()
        for _minute in range(60):
            core.presence.take(f"{_SYS}/stats/live_connections/count", connections, clock.advance(30.0))
            core.presence.take(f"{_SYS}/uptime", str(int(clock.now * 1000)).encode(), clock.now)
            core.presence.probe_returned(clock.advance(30.0), clock.now)
        core.presence.observed.seconds += 3 * DAY
        _cycle(core, page)
        used = _cycle(core, page)
        marked = sum(device.marked_at is not None for device in core.devices.associated())
        if marked != (MOST if gone else 0):
            raise RuntimeError(f"{marked} devices are marked")
        core.store.close()
    return used


def _cycle(core: Core, page: tuple[tuple[str, float], ...]) -> float:
    steps = Cycle(core, Failures(core)).steps()
    next(steps)
    steps.send(Ready())
    began = time.process_time()
    with contextlib.suppress(StopIteration):
        steps.send(Listed(dict(page), None))
    used = time.process_time() - began
    steps.close()
    return used


async def quiet_day() -> Figures:
    """Let a day pass in virtual time, and measure what it writes; the disk is as slow to write as a real day's."""
    LOGGER.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        world, names = World(), [f"device-{number:06}" for number in range(FEW)]
        component = Component(world, Path(folder))
        broker = FakeBroker(component)
        component.cloud.associate(*names)
        component.start()
        for place, name in enumerate(names):
            broker.connect(name)
            _speak_hourly(world, broker, name, place * HOUR / FEW)
        _pass(world, Path(folder), DAY)
        before = written_bytes(os.getpid())
        _pass(world, Path(folder), DAY)
        written = written_bytes(os.getpid()) - before
        component.stop()
    return {"written on a quiet day, 10 devices that speak hourly, MB": written / 1e6}


def _speak_hourly(world: World, broker: FakeBroker, name: str, at: float) -> None:
    def speak() -> None:
        broker.publish(f"clients/{name}/telemetry")
        world.after(HOUR, speak)

    world.at(at, speak)


def _pass(world: World, work_dir: Path, seconds: float) -> None:
    """Let time pass; what has changed in a file goes to the disk as often as the kernel would write it."""
    for _time in range(int(seconds / FLUSH_SECONDS)):
        world.run(FLUSH_SECONDS)
        for path in work_dir.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
