"""What is measured: the component, or a bare SDK subscriber in its place, each on a local core of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import cpu_seconds
from client_device_pruner.config.bridge import required_entries
from client_device_pruner.config.settings import parse
from client_device_pruner.greengrass.link import IN
from local_core.component import State
from local_core.core import BRIDGE, LocalCore
from local_core.pubsub import Message

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = "core-1"
"""The thing name of the local core."""
HURRIED: dict[str, Any] = {"allowShortDurations": True, "presence": {"probeInterval": "2s"}}
"""A trial's settings: all that the component does by the minute it does in two seconds."""
COUNT_SECONDS = 60.0
"""How often EMQX publishes its count of connections."""
_SYS = f"{IN}$SYS/brokers/emqx@127.0.0.1"
_NEVER = 1e9
_BARE = """
import signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from awsiot.greengrasscoreipc import model
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

messages = 0

def count(event):
    global messages
    messages += 1

client = GreengrassCoreIPCClientV2(executor=ThreadPoolExecutor(1) if sys.argv[1] == "executor" else None)
client.subscribe_to_topic(
    topic="client-device-pruner/in/#", receive_mode=model.ReceiveMode.RECEIVE_ALL_MESSAGES, on_stream_event=count)
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
done.wait()
"""
# The command that `install` writes, with another program in it: same interpreter, same environment.
_RUN_BARE = """sed 's|-m client_device_pruner.*|"{script}" {way}|' "{{work:path}}/pruner" >bare; exec sh bare"""


class Kind(str, Enum):
    """What subscribes."""

    BARE = "executor"
    """The SDK's client with its callbacks in an executor, as is usual; of one thread, so that order is kept."""
    LEANEST = "network"
    """The SDK's client with its callbacks in the network's own thread, where they must never wait."""
    COMPONENT = "component"


@dataclass(frozen=True, slots=True)
class Subject:
    """One that runs.

    Attributes:
        core: its local core.
        names: the devices that are associated there.
        sessions: numbers for their sessions.
    """

    core: LocalCore
    names: Sequence[str]
    sessions: Iterable[int]

    @property
    def pid(self) -> int:
        """The process."""
        if (pid := self.core.component.pid) is None:
            raise RuntimeError(f"the process has ended: {self.core.component.output[-5:]}")
        return pid

    async def connect(self, names: Iterable[str]) -> None:
        """Announce devices as the broker does when they connect, slowly: bursts would leave memory behind."""
        coming = [event(name, number, "connected") for name, number in zip(names, self.sessions, strict=False)]
        await self.send(coming, per_second=1_000.0)

    async def send(self, messages: Sequence[Message], *, per_second: float = 2_000.0) -> None:
        """Publish messages as the bridge does, evenly."""
        began = time.monotonic()
        for number, message in enumerate(messages):
            self.core.pubsub.publish(message)
            ahead = number / per_second - (time.monotonic() - began)
            if ahead > 0.01 or number % 50 == 0:
                await asyncio.sleep(max(0.0, ahead))

    async def cpu_of(self, messages: Sequence[Message]) -> float:
        """The CPU seconds that messages take, from the first to when nothing is left to do."""
        before = cpu_seconds(self.pid)
        await self.send(messages)
        await self.rest()
        return cpu_seconds(self.pid) - before

    async def rest(self) -> None:
        """Wait until the process does next to nothing for two seconds."""
        used, before = 1.0, cpu_seconds(self.pid)
        while used > 0.02:
            await asyncio.sleep(2.0)
            now = cpu_seconds(self.pid)
            used, before = now - before, now


def event(name: str, session: int, kind: str) -> Message:
    """A client event of EMQX, `connected` or `disconnected`, with the fields that it has."""
    at = 1_700_000_000_000 + session
    fields: dict[str, Any] = {
        "clientid": name,
        "username": "undefined",
        "ipaddress": "127.0.0.1",
        "sockport": 8883,
        "protocol": "mqtt",
        "proto_name": "MQTT",
        "proto_ver": 4,
        "connected_at": at,
        "ts": at,
    }
    if kind == "connected":
        fields |= {"keepalive": 60, "clean_start": True, "expiry_interval": 0}
    else:
        fields |= {"reason": "normal", "disconnected_at": at}
    return Message(f"{_SYS}/clients/{name}/{kind}", json.dumps(fields).encode(), BRIDGE)


def telemetry(name: str, number: int) -> Message:
    """What a device publishes."""
    return Message(f"{IN}clients/{name}/telemetry", b'{"temperature": 21.5, "number": %d}' % number, BRIDGE)


@asynccontextmanager
async def running(
    kind: Kind,
    devices: int = 0,
    *,
    settings: dict[str, Any] | None = None,
    before: Callable[[Path], object] = lambda _work_dir: None,
) -> AsyncIterator[Subject]:
    """Run one on a core device with EMQX; the component after its first cycle, with the next one hours away.

    As on a device that runs for long, bytecode is there.

    Args:
        kind: which.
        devices: how many are associated.
        settings: the component's, from its first cycle on, beside the defaults.
        before: called with the work directory before the process starts.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        core = LocalCore(
            root / "core",
            recipe=_recipe(root, kind),
            artifact=REPOSITORY,
            environment=Path(sys.prefix),
            count_interval_seconds=_NEVER,
        )
        subject = Subject(core, [f"device-{number:06}" for number in range(devices)], count(1))
        core.cloud.associate(*subject.names)
        async with core:
            before(core.work_dir)
            bridge = {"merge": {"mqttTopicMapping": required_entries(parse({}))}}
            await core.deploy({core.recipe.name: {"merge": HURRIED}, BRIDGE: bridge})
            await core.component.wait_for_state(State.RUNNING)
            feed = asyncio.create_task(_count(subject, HURRIED))
            try:
                await _watching(core)
                if kind is Kind.COMPONENT:
                    await core.wait_for_event(lambda said: said["type"].endswith(".cycle"), timeout_seconds=900)
                    await core.deploy({core.recipe.name: {"reset": [""], "merge": settings or {}}})
                    feed.cancel()
                    feed = asyncio.create_task(_count(subject, settings or {}))
                yield subject
            finally:
                feed.cancel()
                with suppress(asyncio.CancelledError):
                    await feed


async def _count(subject: Subject, settings: dict[str, Any]) -> None:
    """Publish the number of connections as EMQX does: all devices and the bridge."""
    topic, number = f"{_SYS}/stats/live_connections/count", len(subject.names) + 1
    while True:
        await asyncio.sleep(COUNT_SECONDS * parse(settings).scale)
        subject.core.pubsub.publish(Message(topic, str(number).encode(), BRIDGE))


async def _watching(core: LocalCore) -> None:
    """Wait for the subscription of what runs."""
    for _attempt in range(600):
        if f"{IN}#" in core.pubsub.filters:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"no subscription within a minute: {core.component.output[-5:]}")


def _recipe(folder: Path, kind: Kind) -> Path:
    recipe = REPOSITORY / "recipe.yaml"
    if kind is Kind.COMPONENT:
        return recipe
    script = folder / "subscriber.py"
    script.write_text(_BARE, "utf-8")
    document = yaml.safe_load(recipe.read_text("utf-8"))
    document["Manifests"][0]["Lifecycle"]["run"] = {"Script": _RUN_BARE.format(script=script, way=kind.value)}
    changed = folder / "recipe.yaml"
    changed.write_text(yaml.safe_dump(document), "utf-8")
    return changed
