"""What is measured: the component, and bare SDK subscribers in its place, each on a local core of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import yaml

from local_core.component import State
from local_core.core import BRIDGE, LocalCore
from local_core.pubsub import Message

COMPONENT = "community.greengrass.ClientDevicePruner"
INBOUND = "client-device-pruner/in/"
USUAL_QUIET_SECONDS = 180.0
"""`maxQuiet` of an `emqx` source; a shorter one scales all fixed times of the component with it."""
REPOSITORY = Path(__file__).resolve().parents[3]
_SYS = f"{INBOUND}$SYS/brokers/emqx@127.0.0.1"
_BARE_SUBSCRIBER = """
import concurrent.futures, signal, threading
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc import model
client = GreengrassCoreIPCClientV2(executor={executor})
client.subscribe_to_topic(topic="client-device-pruner/in/#", receive_mode=model.ReceiveMode.RECEIVE_ALL_MESSAGES,
    on_stream_event=lambda event: (event.binary_message.context.topic, event.binary_message.message))
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
done.wait()
"""


class Kind(str, Enum):
    """Who subscribes."""

    BARE = "bare subscriber"
    """As the SDK's documentation shows it, with one thread so that order is kept, and without any of our `Setenv`."""
    LEAN = "leanest subscriber"
    """The SDK's handlers in the network's own thread."""
    COMPONENT = "component"


_EXECUTORS = {Kind.BARE: "concurrent.futures.ThreadPoolExecutor(1)", Kind.LEAN: "None"}


@dataclass(frozen=True, slots=True)
class Subject:
    """One that runs, with its local core and the names of the devices that are associated there."""

    kind: Kind
    core: LocalCore
    names: Sequence[str]

    @property
    def pid(self) -> int:
        """The process."""
        pid = self.core.component.pid
        if pid is None:
            raise RuntimeError(f"the {self.kind.value} has ended: {list(self.core.component.output)[-5:]}")
        return pid

    async def connect_all(self) -> None:
        """Announce each device, as EMQX does."""
        await self.send([event(name, number, opens=True) for number, name in enumerate(self.names)])

    async def send(self, messages: Sequence[Message], *, per_second: float = 2000.0) -> None:
        """Publish messages as the bridge does, evenly."""
        began = time.monotonic()
        for number, message in enumerate(messages):
            self.core.pubsub.publish(message)
            ahead = number / per_second - (time.monotonic() - began)
            if ahead > 0.01 or number % 50 == 0:
                await asyncio.sleep(max(0.0, ahead))

    async def have_state_written(self) -> None:
        """Change a setting, of which the component writes within a second that it was taken over."""
        if self.kind is Kind.COMPONENT:
            before = self.core.configuration[COMPONENT]["limits"]["maxPerCycle"]
            await self.core.deploy({COMPONENT: {"merge": {"limits": {"maxPerCycle": before + 1}}}})
            await asyncio.sleep(3.0)


@asynccontextmanager
async def running(kind: Kind, devices: int = 0, *, scale: float = 1.0) -> AsyncIterator[Subject]:
    """Run one, with so many associated devices; the component after its first cycle, and with the next hours away.

    As on a device, all has been compiled before.

    Args:
        kind: which.
        devices: how many.
        scale: factor of the component's times.
    """
    with tempfile.TemporaryDirectory() as folder:
        core = LocalCore(
            Path(folder) / "core",
            recipe=_recipe(Path(folder), kind),
            artifact=REPOSITORY,
            environment=Path(sys.prefix),
            presence=False,
        )
        names = [f"device-{number:06}" for number in range(devices)]
        core.cloud.associate(*names)
        async with core:
            if kind is Kind.COMPONENT:
                await core.fill_bytecode()
            bridge = json.loads((REPOSITORY / "docs/setups/emqx.json").read_text())[BRIDGE]
            quiet = f"{USUAL_QUIET_SECONDS * scale:g}s"
            settings = {
                "allowShortDurations": True,
                "checkInterval": "1s",
                "offlineThreshold": "1d",
                "sources": {"emqx": {"maxQuiet": quiet}},
            }
            await core.deploy({COMPONENT: {"merge": settings if kind is Kind.COMPONENT else {}}, BRIDGE: bridge})
            await core.component.wait_for_state(State.RUNNING)
            await watching(core)
            if kind is Kind.COMPONENT:
                await core.wait_for_event(lambda event: event["type"].endswith(".cycle"), timeout_seconds=900)
                await core.deploy({COMPONENT: {"merge": {"checkInterval": "6h"}}})
            feed = asyncio.create_task(_count(core, devices, scale))
            try:
                yield Subject(kind, core, names)
            finally:
                feed.cancel()
                with suppress(asyncio.CancelledError):
                    await feed


async def watching(core: LocalCore) -> float:
    """Wait for the subscription; returns how long that took, in seconds, to a hundredth."""
    began = time.monotonic()
    while not any(topic.startswith(INBOUND) for topic in core.pubsub.filters):
        await asyncio.sleep(0.005)
        if time.monotonic() - began > 60:
            raise TimeoutError(f"no subscription within a minute: {list(core.component.output)[-5:]}")
    return time.monotonic() - began


def event(name: str, number: int, *, opens: bool) -> Message:
    """A client event of EMQX; `number` is the session's."""
    fields = {
        "clientid": name,
        "username": "undefined",
        "ipaddress": "127.0.0.1",
        "connected_at": 1_700_000_000_000 + number,
        "ts": 1_700_000_000_000 + number,
    }
    topic = f"{_SYS}/clients/{name}/{'connected' if opens else 'disconnected'}"
    return Message(topic, json.dumps(fields).encode(), BRIDGE)


async def _count(core: LocalCore, devices: int, scale: float) -> None:
    """Count the connections and tell the uptime as EMQX does, all devices and the bridge being there."""
    began = time.monotonic()
    while True:
        for _ in range(2):
            uptime = str(int((time.monotonic() - began + 1000.0) * 1000))
            core.pubsub.publish(Message(f"{_SYS}/uptime", uptime.encode(), BRIDGE))
            await asyncio.sleep(30.0 * scale)
        core.pubsub.publish(Message(f"{_SYS}/stats/live_connections/count", str(devices + 1).encode(), BRIDGE))


def _recipe(folder: Path, kind: Kind) -> Path:
    recipe = REPOSITORY / "recipe.yaml"
    if kind is Kind.COMPONENT:
        return recipe
    document = yaml.safe_load(recipe.read_text())
    script = folder / "subscriber.py"
    script.write_text(_BARE_SUBSCRIBER.format(executor=_EXECUTORS[kind]))
    document["Manifests"][0]["Lifecycle"]["run"] = {"Script": f'exec "{sys.executable}" "{script}"'}
    changed = folder / "recipe.yaml"
    changed.write_text(yaml.safe_dump(document))
    return changed
