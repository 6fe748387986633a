"""What is measured of processes on the local core, over the real IPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, closing
from pathlib import Path

from benchmarks.processes import Memory, cpu_seconds, memory_bytes
from benchmarks.subjects import CORE, HURRIED, Kind, Subject, event, running, telemetry
from client_device_pruner.presence.devices import Device
from client_device_pruner.store.database import open_database, transaction
from client_device_pruner.store.devices import save_devices
from client_device_pruner.store.journal import Journal

MIB = 2**20
FEW, MANY, MOST = 10, 1_000, 100_000
"""With how many devices memory is measured."""
EVENTS = 20_000
IDLE_SECONDS = 120.0
SETTLED_SECONDS = 25.0
"""After so long `HURRIED` has written all, and holds nothing of what was heard: two commits."""

Figures = Mapping[str, float]
"""Figures of one run, by name."""


async def memory() -> Figures:
    """Measure all at the same moment, so that other processes count the same for each."""
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(running(Kind.BARE))
        few = await stack.enter_async_context(running(Kind.COMPONENT, FEW, settings=HURRIED))
        many = await stack.enter_async_context(running(Kind.COMPONENT, MANY, settings=HURRIED))
        await _settle(bare, few, many)
        base, ours = ({which: memory_bytes(subject.pid, which) for which in Memory} for subject in (bare, few))
        grown = memory_bytes(many.pid, Memory.OWN) - ours[Memory.OWN]
    return {
        "memory idle (RSS), the bare subscriber, MiB": base[Memory.ALL] / MIB,
        "memory idle (RSS), the component with 10 devices, MiB": ours[Memory.ALL] / MIB,
        "memory idle (RSS), times the bare subscriber's": ours[Memory.ALL] / base[Memory.ALL],
        "memory idle (PSS), times the bare subscriber's": ours[Memory.SHARE] / base[Memory.SHARE],
        "memory of each further device of 1,000, bytes": grown / (MANY - FEW),
    }


async def memory_of_100_000() -> Figures:
    """Measure what each further device of very many takes."""
    async with (
        running(Kind.COMPONENT, FEW, settings=HURRIED) as few,
        running(Kind.COMPONENT, MOST, settings=HURRIED) as most,
    ):
        await _settle(few, most)
        grown = memory_bytes(most.pid, Memory.OWN) - memory_bytes(few.pid, Memory.OWN)
    return {"memory of each further device of 100,000, bytes": grown / (MOST - FEW)}


async def _settle(*subjects: Subject) -> None:
    for subject in subjects:
        await subject.connect(subject.names)
    await asyncio.gather(*(subject.rest() for subject in subjects))
    await asyncio.sleep(SETTLED_SECONDS)


async def events() -> Figures:
    """Measure the CPU that a client event and a message take, of 1,000 devices."""
    figures = {}
    for kind in Kind:
        async with running(kind, MANY) as subject:
            await subject.connect(subject.names)
            await subject.rest()
            coming = []
            for number in range(EVENTS // 2):
                name, session = subject.names[number % MANY], MANY + number
                # Each device leaves, and comes back at once.
                coming += [event(name, session - MANY + 1, "disconnected"), event(name, session + 1, "connected")]
            told = [telemetry(subject.names[number % MANY], number) for number in range(EVENTS)]
            figures[f"event, {kind.value}"] = await subject.cpu_of(coming) / EVENTS * 1e6
            figures[f"message, {kind.value}"] = await subject.cpu_of(told) / EVENTS * 1e6
    table: dict[str, float] = {}
    for what in ("event", "message"):
        bare, leanest, ours = (figures[f"{what}, {kind.value}"] for kind in Kind)
        table |= {
            f"CPU of a client {what}, the bare subscriber, µs": bare,
            f"CPU of a client {what}, the leanest subscriber, µs": leanest,
            f"CPU of a client {what}, the component, µs": ours,
            f"CPU of a client {what}, times the bare subscriber's": ours / bare,
        }
    return table


async def idle() -> Figures:
    """Measure the CPU of a component that has nothing to do, with the default settings."""
    async with running(Kind.BARE) as bare, running(Kind.COMPONENT, FEW) as ours:
        await ours.connect(ours.names)
        await ours.rest()
        before, began = [cpu_seconds(subject.pid) for subject in (bare, ours)], time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        seconds = time.monotonic() - began
        base, used = (cpu_seconds(subject.pid) - at for subject, at in zip((bare, ours), before, strict=True))
    return {
        "CPU idle, the bare subscriber, % of a core": base / seconds * 100,
        "CPU idle, the component, % of a core": used / seconds * 100,
    }


async def disassociated() -> Figures:
    """Compare messages of associated devices with those of devices that the component disassociated (case 17)."""
    gone = [f"gone-{number:06}" for number in range(MANY)]
    settings = {"restoreOnReturn": False}
    async with running(
        Kind.COMPONENT, MANY, settings=settings, before=lambda path: _disassociate(path, gone)
    ) as subject:
        ours = [telemetry(subject.names[number % 100], number) for number in range(EVENTS)]
        theirs = [telemetry(gone[number % 100], number) for number in range(EVENTS)]
        # Each of them is announced once as returned.
        for messages in (ours, theirs):
            await subject.cpu_of(messages[:1_000])
        usual, other = await subject.cpu_of(ours), await subject.cpu_of(theirs)
        # What changes in time counts the same for both.
        other, usual = other + await subject.cpu_of(theirs), usual + await subject.cpu_of(ours)
    return {"CPU of a message of a disassociated device, times another's": other / usual}


def _disassociate(work_dir: Path, names: list[str]) -> None:
    """Leave a state file in which the component has disassociated these devices an hour ago."""
    connection, _aside = open_database(work_dir / "pruner.db", CORE)
    with closing(connection):
        journal = Journal(connection)
        journal.budget(len(names), 0.0)
        wall, evidence = time.time() - 3_600, {"silentSeconds": 1.0, "patienceSeconds": 1.0, "evidence": "rhythm"}
        intents = journal.intend("earlier", [(name, 1.0, evidence) for name in names], wall=wall, running_seconds=0.0)
        journal.settle(intents, "done", wall)
        with transaction(connection) as write:
            save_devices(write, map(Device, names), (), lambda device: device.silent_since)
