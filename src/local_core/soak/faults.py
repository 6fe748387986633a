"""What goes wrong: each fault is a context, in which it is so."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType

from local_core.cloud import CREDENTIALS, DISASSOCIATE, LIST, Fault
from local_core.soak.plan import Step
from local_core.soak.site import Site
from local_core.soak.truth import Style

_WALL_JUMPS_SECONDS = (-86_400.0, -3_000.0, -30.0, 0.0, 30.0, 2_000.0)
_UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


async def follow(site: Site, plan: tuple[Step, ...]) -> None:
    """Let everything go wrong as planned, one after another."""
    truth = site.truth
    for step in plan:
        await asyncio.sleep(max(0.0, truth.began + step.at_seconds - time.monotonic()))
        truth.tell(time.monotonic(), f"FAULT {step.kind}")
        site.faults[step.kind] += 1
        begin = FAULTS.get(step.kind, _of_the_cloud)
        async with begin(site, step):
            await asyncio.sleep(step.seconds)
        truth.tell(time.monotonic(), f"{step.kind}: over")


@asynccontextmanager
async def _killed(site: Site, _step: Step) -> AsyncIterator[None]:
    site.kills += site.core.component.pid is not None
    site.core.component.kill()
    yield


@asynccontextmanager
async def _suspended(site: Site, _step: Step) -> AsyncIterator[None]:
    site.core.component.suspend()
    yield
    site.core.component.resume()


@asynccontextmanager
async def _ipc_dropped(site: Site, _step: Step) -> AsyncIterator[None]:
    site.core.ipc.drop_connections()
    yield


@asynccontextmanager
async def _ipc_muted(site: Site, _step: Step) -> AsyncIterator[None]:
    site.core.ipc.mute_pubsub()
    yield


@asynccontextmanager
async def _ipc_frozen(site: Site, _step: Step) -> AsyncIterator[None]:
    site.core.ipc.freeze()
    yield
    site.core.ipc.thaw()


@asynccontextmanager
async def _bridge_away(site: Site, _step: Step) -> AsyncIterator[None]:
    await site.core.bridge.stop()
    yield
    await site.core.bridge.start()


@asynccontextmanager
async def _broker_down(site: Site, _step: Step) -> AsyncIterator[None]:
    await site.core.broker.stop()
    yield
    await site.core.broker.start()


@asynccontextmanager
async def _broker_clock_ahead(site: Site, step: Step) -> AsyncIterator[None]:
    site.core.broker.jump(3600.0 * (1 + step.number % 24))
    yield


@asynccontextmanager
async def _wall_clock_off(site: Site, step: Step) -> AsyncIterator[None]:
    site.clock.shift(_WALL_JUMPS_SECONDS[step.number % len(_WALL_JUMPS_SECONDS)])
    yield


@asynccontextmanager
async def _disk_full(site: Site, _step: Step) -> AsyncIterator[None]:
    """Limit the size of the files that the process writes, as a quota does."""
    pid = site.core.component.pid
    with contextlib.suppress(ProcessLookupError):
        if pid is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    yield
    with contextlib.suppress(ProcessLookupError):
        if pid is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, _UNLIMITED)


@asynccontextmanager
async def _configuration_refused(site: Site, _step: Step) -> AsyncIterator[None]:
    await site.deploy(offlineThreshold="a while")
    yield
    await site.deploy()


@asynccontextmanager
async def _roll_call_turned(site: Site, _step: Step) -> AsyncIterator[None]:
    site.calls_roll = not site.calls_roll
    await site.deploy()
    yield


@asynccontextmanager
async def _devices_frozen(site: Site, _step: Step) -> AsyncIterator[None]:
    await site.devices.freeze(Style.TALKER.value)
    yield
    await site.devices.thaw(Style.TALKER.value)


@asynccontextmanager
async def _of_the_cloud(site: Site, step: Step) -> AsyncIterator[None]:
    dead = {name: "InternalServerException" for name, life in site.truth.lives.items() if life.died is not None}
    faults = {
        "cloud throttles": Fault(status=429, error="ThrottlingException", times=None),
        "cloud fails": Fault(status=(500, 502, 503)[step.number % 3], error="InternalServerException", times=None),
        "cloud hangs": Fault(LIST, hang=True),
        "cloud is slow": Fault(delay_seconds=step.seconds / 2, times=None),
        "cloud answers garbage": Fault(body=b"<html>sign in</html>", content_type="text/html", times=None),
        "cloud lists nobody": Fault(LIST, body=b'{"associatedClientDevices": []}', times=None),
        "cloud's answer is lost": Fault(DISASSOCIATE, drop=True, carried_out=True),
        "cloud refuses entries": Fault(DISASSOCIATE, error_entries=dead),
        "no credentials": Fault(CREDENTIALS, status=500, error="InternalServerException", times=None),
    }
    site.core.cloud.faults.append(faults[step.kind])
    yield
    site.core.cloud.faults.clear()


FAULTS: Mapping[str, Callable[[Site, Step], AbstractAsyncContextManager[None]]] = MappingProxyType(
    {
        "kill": _killed,
        "suspend": _suspended,
        "ipc dropped": _ipc_dropped,
        "ipc muted": _ipc_muted,
        "ipc frozen": _ipc_frozen,
        "bridge away": _bridge_away,
        "broker restarted": _broker_down,
        "broker's clock jumps": _broker_clock_ahead,
        "wall clock jumps": _wall_clock_off,
        "disk full": _disk_full,
        "configuration refused": _configuration_refused,
        "roll call on or off": _roll_call_turned,
        "devices frozen": _devices_frozen,
    }
)
"""All but those of the cloud, by their kind in the plan."""
