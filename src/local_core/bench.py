"""Benchmarks of the component on the local core, against a bare SDK subscriber in the same run.

Both get the same messages over the same wire. Memory is PSS (`/proc/PID/smaps_rollup`), CPU is user and system time
(`/proc/PID/stat`), bytes to disk are `write_bytes` (`/proc/PID/io`). Figures depend on the machine; ratios are what
counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

import yaml
from rich.console import Console
from rich.table import Table

from local_core.component import State
from local_core.core import BRIDGE, LocalCore
from local_core.pubsub import Message

REPOSITORY = Path(__file__).resolve().parents[2]
COMPONENT = "community.greengrass.ClientDevicePruner"
INBOUND = "client-device-pruner/in/"
_TICKS = os.sysconf("SC_CLK_TCK")

BARE_SUBSCRIBER = """
import concurrent.futures, signal, sys, threading
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc import model
client = GreengrassCoreIPCClientV2(executor=concurrent.futures.ThreadPoolExecutor(1))
client.subscribe_to_topic(topic="client-device-pruner/in/#", receive_mode=model.ReceiveMode.RECEIVE_ALL_MESSAGES,
    on_stream_event=lambda event: (event.binary_message.context.topic, event.binary_message.message))
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
done.wait()
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one process cost: memory in MiB, CPU per event in µs, idle CPU in percent of a core, and bytes to disk."""

    memory_mib: float
    event_us: float
    idle_percent: float
    idle_kib_a_day: float
    kib_per_1000_events: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks and print a table."""
    parser = argparse.ArgumentParser(prog="python -m local_core.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--idle-seconds", type=float, default=180.0)
    parser.add_argument("--commit-seconds", type=float, default=62.0, help="until all is written; below 60 for trials")
    options = parser.parse_args(arguments)
    headers = (
        "devices",
        "",
        "memory MiB",
        "CPU per event µs",
        "idle CPU %",
        "disk KiB/day idle",
        "disk KiB/1000 events",
    )
    table = Table(*headers, title="median of the runs (spread)")
    for devices in options.devices:
        asyncio.run(_compare(table, devices, options))
    Console().print(table)
    return 0


async def _compare(table: Table, devices: int, options: argparse.Namespace) -> None:
    bare, ours = [], []
    for _run in range(options.runs):
        bare.append(await _measure(devices, options, bare=True))
        ours.append(await _measure(devices, options, bare=False))
    for name, runs in (("bare subscriber", bare), ("component", ours)):
        columns = [[getattr(run, field.name) for run in runs] for field in fields(Figures)]
        table.add_row(str(devices), name, *(f"{median(c):.5g} ({min(c):.5g} to {max(c):.5g})" for c in columns))
    ratios = [
        median(getattr(run, field) for run in ours) / median(getattr(run, field) for run in bare)
        for field in ("memory_mib", "event_us")
    ]
    table.add_row("", "ratio", *(f"{ratio:.2f} x" for ratio in ratios))


async def _measure(devices: int, options: argparse.Namespace, *, bare: bool) -> Figures:
    async with _core(devices, bare=bare) as core:
        pid = core.component.pid
        if pid is None:
            raise RuntimeError("the process did not start")
        names = [f"device-{number}" for number in range(devices)]
        await _send(core, [_event(name, number, opens=True) for number, name in enumerate(names)])
        await asyncio.sleep(2.0)
        memory = _pss_mib(pid)
        cpu, disk, began = _cpu_seconds(pid), _disk_bytes(pid), time.monotonic()
        await asyncio.sleep(options.idle_seconds)
        idle = (_cpu_seconds(pid) - cpu) / (time.monotonic() - began) * 100
        idle_disk = (_disk_bytes(pid) - disk) / (time.monotonic() - began) * 86_400 / 1024
        events = [
            _event(names[number // 2 % devices], devices + number // 2, opens=number % 2 == 0)
            for number in range(options.events)
        ]
        cpu, disk = _cpu_seconds(pid), _disk_bytes(pid)
        await _send(core, events)
        await asyncio.sleep(3.0)
        event = (_cpu_seconds(pid) - cpu) / len(events) * 1e6
        # The component writes at least once in a minute.
        await asyncio.sleep(0.0 if bare else options.commit_seconds)
        return Figures(memory, event, idle, idle_disk, (_disk_bytes(pid) - disk) / len(events) * 1000 / 1024)


@asynccontextmanager
async def _core(devices: int, *, bare: bool) -> AsyncIterator[LocalCore]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        recipe = REPOSITORY / "recipe.yaml"
        if bare:
            document = yaml.safe_load(recipe.read_text())
            script = root / "bare.py"
            script.write_text(BARE_SUBSCRIBER)
            document["Manifests"][0]["Lifecycle"]["run"]["Script"] = f'exec "{sys.executable}" "{script}"'
            recipe = root / "recipe.yaml"
            recipe.write_text(yaml.safe_dump(document))
        core = LocalCore(root / "core", recipe=recipe, artifact=REPOSITORY, environment=Path(sys.prefix))
        async with core:
            core.cloud.associate(*(f"device-{number}" for number in range(devices)))
            short = {"allowShortDurations": True, "checkInterval": "1s", "offlineThreshold": "1d"}
            await core.deploy({COMPONENT: {"merge": {} if bare else short}, BRIDGE: {"merge": {}}})
            await core.component.wait_for_state(State.RUNNING)
            if bare:
                await asyncio.sleep(3.0)
            else:
                await core.wait_for_event(lambda event: event["type"].endswith(".cycle"), timeout_seconds=60)
                await core.deploy({COMPONENT: {"merge": {"checkInterval": "6h"}}})
            yield core


async def _send(core: LocalCore, messages: Sequence[Message], per_second: int = 2000) -> None:
    began = time.monotonic()
    for number, message in enumerate(messages):
        core.pubsub.publish(message)
        ahead = number / per_second - (time.monotonic() - began)
        if ahead > 0.01 or number % 50 == 0:
            await asyncio.sleep(max(0.0, ahead))


def _event(name: str, number: int, *, opens: bool) -> Message:
    kind = "connected" if opens else "disconnected"
    fields = {"clientid": name, "username": "undefined", "ipaddress": "127.0.0.1", "connected_at": number, "ts": number}
    topic = f"{INBOUND}$SYS/brokers/emqx@127.0.0.1/clients/{name}/{kind}"
    return Message(topic, json.dumps(fields).encode(), BRIDGE)


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this kernel does not tell PSS")


def _disk_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise RuntimeError("this kernel does not tell what a process writes")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    sys.exit(main())
