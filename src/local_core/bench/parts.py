"""The single benchmarks; each gives figures by name, and by whom they are of."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, replace

from local_core.bench.processes import cpu_seconds, pss_mib, written_kib
from local_core.bench.subjects import REPOSITORY, Kind, Subject, event, running, watching
from local_core.cloud import CREDENTIALS

SETTLED_SECONDS = 3.0
"""How long after the last message all is done but what waits for the next commit."""
DISK_SCALE = 0.05
"""Factor of the component's times while its quiet writing is measured: five minutes pass in 15 s."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        devices: with how many devices memory and calls are measured; the first is what the others are compared with.
        events: client events for the CPU an event takes, and for the bytes that 1,000 cause.
        storm: client events that arrive at once.
        storm_devices: whose they are.
        idle_seconds: how long nothing happens.
        decision: devices that are judged at once.
    """

    devices: tuple[int, ...] = (10, 1_000, 100_000)
    events: int = 20_000
    storm: int = 100_000
    storm_devices: int = 1_000
    idle_seconds: float = 60.0
    decision: int = 100_000


Figures = Mapping[tuple[str, str], float]
"""Figures of one run: (name with unit, whose) to value."""


async def memory(sizes: Sizes) -> Figures:
    """Measure both at the same moment, so that what they share with other processes counts the same for both."""
    first, *others = sizes.devices
    figures: dict[tuple[str, str], float] = {}
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(running(Kind.BARE))
        ours = await stack.enter_async_context(running(Kind.COMPONENT, first))
        for subject in (bare, ours):
            await _at_rest(subject)
        small = pss_mib(ours.pid)
        figures[f"memory idle, {first:,} devices, MiB", Kind.BARE.value] = pss_mib(bare.pid)
        figures[f"memory idle, {first:,} devices, MiB", Kind.COMPONENT.value] = small
        for devices in others:
            async with running(Kind.COMPONENT, devices) as larger:
                await _at_rest(larger)
                grown = pss_mib(larger.pid)
                per_device = (grown - pss_mib(ours.pid)) * 2**20 / (devices - first)
            figures[f"memory idle, {devices:,} devices, MiB", Kind.COMPONENT.value] = grown
            figures[f"memory of each further of {devices:,} devices, bytes", Kind.COMPONENT.value] = per_device
    return figures


async def _at_rest(subject: Subject) -> None:
    await subject.connect_all()
    await subject.have_state_written()
    # The next uptime comes within 30 s; until then, the latest sessions are kept with their moment.
    await asyncio.sleep(32.0 if len(subject.names) > 100 else SETTLED_SECONDS)


async def events(sizes: Sizes) -> Figures:
    """Measure the CPU that one event takes, and what 1,000 of them write."""
    figures = {}
    devices = min(1_000, sizes.devices[-1])
    for kind in Kind:
        async with running(kind, devices) as subject:
            await subject.connect_all()
            await subject.have_state_written()
            messages = [
                event(subject.names[number // 2 % devices], devices + number // 2, opens=number % 2 == 0)
                for number in range(sizes.events)
            ]
            cpu, disk = cpu_seconds(subject.pid), written_kib(subject.pid)
            await subject.send(messages)
            await asyncio.sleep(SETTLED_SECONDS)
            figures["CPU per event, µs", kind.value] = (cpu_seconds(subject.pid) - cpu) / sizes.events * 1e6
            if kind is Kind.COMPONENT:
                await subject.have_state_written()
                written = written_kib(subject.pid) - disk
                figures["written for 1,000 events, KiB", kind.value] = written / sizes.events * 1000
    return figures


async def storm(sizes: Sizes) -> Figures:
    """Let many events arrive at once, and compare what the component makes of them with the truth."""
    rng = random.Random(1)  # noqa: S311 - to be the same each time
    async with running(Kind.COMPONENT, sizes.storm_devices) as subject:
        await subject.have_state_written()
        connected: dict[str, int] = {}
        messages = []
        for number in range(sizes.storm):
            name = rng.choice(subject.names)
            opens = name not in connected
            messages.append(event(name, number if opens else connected[name], opens=opens))
            if opens:
                connected[name] = number
            else:
                del connected[name]
        cpu, disk = cpu_seconds(subject.pid), written_kib(subject.pid)
        # Suspended, it finds them all when it goes on: they come as fast as the SDK can read.
        subject.core.component.suspend()
        await subject.send(messages, per_second=50_000.0)
        subject.core.component.resume()
        await _done(subject)
        used = cpu_seconds(subject.pid) - cpu
        await subject.have_state_written()
        written = written_kib(subject.pid) - disk
        state = subject.core.work_dir / "pruner.db"
        output = list(subject.core.component.output)
        await subject.core.stop_component()
        with closing(sqlite3.connect(state)) as connection:
            held = {name for (name,) in connection.execute("SELECT name FROM devices WHERE held")}
    ours = Kind.COMPONENT.value
    return {
        (f"storm of {sizes.storm:,} events: CPU, s", ours): used,
        ("storm: dropped events, counted", ours): float(_dropped(output)),
        ("storm: held present, but gone", ours): float(len(held - connected.keys())),
        ("storm: connected, but not held present", ours): float(len(connected.keys() - held)),
        ("storm: written, KiB", ours): written,
    }


async def _done(subject: Subject) -> None:
    """Wait until the process no longer works: less than a twentieth of a core for a second."""
    before, used = cpu_seconds(subject.pid), 1.0
    while used > 0.05:
        await asyncio.sleep(1.0)
        now = cpu_seconds(subject.pid)
        before, used = now, now - before


def _dropped(output: list[str]) -> int:
    total = 0
    for line in output:
        if "were dropped" in line:
            total += json.loads(line)["messages"]
    return total


async def idle(sizes: Sizes) -> Figures:
    """Measure the CPU at rest, and what a quiet day writes: a part of it at a twentieth of all times, scaled up."""
    figures = {}
    for kind in (Kind.BARE, Kind.COMPONENT):
        async with running(kind, sizes.devices[0]) as subject:
            await subject.connect_all()
            await asyncio.sleep(SETTLED_SECONDS)
            cpu, began = cpu_seconds(subject.pid), time.monotonic()
            await asyncio.sleep(sizes.idle_seconds)
            used = (cpu_seconds(subject.pid) - cpu) / (time.monotonic() - began)
            figures["CPU idle, % of a core", kind.value] = used * 100
    async with running(Kind.COMPONENT, sizes.devices[0], scale=DISK_SCALE) as subject:
        await subject.connect_all()
        # Until the census vouches, the status changes.
        await asyncio.sleep(min(sizes.idle_seconds, 300.0 * DISK_SCALE))
        disk, began = written_kib(subject.pid), time.monotonic()
        await asyncio.sleep(sizes.idle_seconds)
        days = (time.monotonic() - began) / DISK_SCALE / 86_400
        figures["written on a quiet day, MiB", Kind.COMPONENT.value] = (written_kib(subject.pid) - disk) / days / 1024
    return figures


async def start(sizes: Sizes) -> Figures:
    """Measure from the start of the process to its subscription; the bytecode is there."""
    figures = {}
    for kind in (Kind.BARE, Kind.COMPONENT):
        async with running(kind, sizes.devices[0]) as subject:
            core = subject.core
            await core.stop_component()
            began = time.monotonic()
            core.start_component()
            await watching(core)
            figures["start to watching, s", kind.value] = time.monotonic() - began
            figures["start to watching, CPU s", kind.value] = cpu_seconds(subject.pid)
    return figures


async def calls(sizes: Sizes) -> Figures:
    """Count what one cycle with nothing to do asks of the cloud."""
    figures = {}
    for devices in sizes.devices:
        async with running(Kind.COMPONENT, devices) as subject:
            cycles = [e for e in subject.core.events if e["type"].endswith(".cycle")]
            asked = [call for call in subject.core.cloud.calls if call.operation != CREDENTIALS]
            figures[f"API calls per cycle, {devices:,} devices", Kind.COMPONENT.value] = len(asked) / len(cycles)
    return figures


async def decision(sizes: Sizes) -> Figures:
    """Judge many devices at once, in a process of its own: CPU."""
    figures = {}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    for case in ("all connected", "all stale"):
        arguments = ["-m", "local_core.bench.decision", str(sizes.decision), case]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=subprocess.PIPE, env=environment
        )
        out, _err = await process.communicate()
        name = f"decision over {sizes.decision:,} devices, {case}, CPU s"
        figures[name, Kind.COMPONENT.value] = float(out)
    return figures


PARTS: Mapping[str, Callable[[Sizes], Awaitable[Figures]]] = {
    part.__name__: part for part in (memory, events, storm, idle, start, decision, calls)
}
"""All parts, by name."""
SHORT = replace(Sizes(), devices=(3, 5), events=200, storm=300, storm_devices=5, idle_seconds=0.5, decision=50)
"""Sizes that only show that all parts run."""
