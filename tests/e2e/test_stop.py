"""SIGTERM on the local core: the component ends at once, and the next start goes on from there."""

from __future__ import annotations

import time
from typing import Any

import pytest

from client_device_pruner.commands import carry_out, parser
from local_core.cloud import ASSOCIATE, CREDENTIALS, DISASSOCIATE, LIST, Call, Fault
from local_core.component import State
from local_core.emqx_api import EmqxApi
from trial_site import COMPONENT, MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STOP_SECONDS = 2.0
"""The bound that DESIGN gives; the nucleus itself waits for five seconds."""


async def test_sigterm_while_idle(make_site: MakeSite) -> None:
    """Between cycles it ends with exit status 0 and its state saved, and goes on from there."""
    site = await make_site()
    await absent_device(site, checkInterval="1h", offlineThreshold="1h")

    await stop(site)

    clock = site.clock("emqx")
    assert clock > 0
    stopped = site.status()["time"]
    site.core.start_component()
    await site.until(lambda: site.status()["time"] > stopped)
    assert site.clock("emqx") >= clock


@pytest.mark.parametrize("operation", [CREDENTIALS, LIST])
async def test_sigterm_while_the_cloud_hangs(make_site: MakeSite, operation: str) -> None:
    """In a cycle whose call is not answered it ends as fast, child process and all."""
    site = await make_site()
    await absent_device(site, offlineThreshold="1h")
    site.core.cloud.faults.append(Fault(operation, times=None, hang=True))
    await site.until(lambda: hanging(site, operation))

    await stop(site)

    site.core.cloud.faults.clear()
    site.core.events.clear()
    site.core.start_component()
    await site.event("cycle")


async def test_sigterm_while_the_confirmation_hangs(make_site: MakeSite) -> None:
    """Between the batch and the list that confirms it: settled by the next start's own list."""
    site = await make_site()

    async def hang_from_now_on(call: Call) -> None:
        if call.operation == DISASSOCIATE:
            site.core.cloud.faults.append(Fault(LIST, times=None, hang=True))

    site.core.cloud.before = hang_from_now_on
    await absent_device(site)
    await site.until(lambda: site.operations(DISASSOCIATE) and site.core.cloud.calls[-1].operation == LIST)

    await stop(site)

    assert [row["outcome"] for row in site.rows("SELECT outcome FROM disassociations")] == ["open"]
    site.core.cloud.faults.clear()
    site.core.start_component()
    await site.event("disassociated", "dead")
    assert len(site.operations(DISASSOCIATE)) == 1


async def test_sigterm_while_a_restore_hangs(make_site: MakeSite) -> None:
    """What was asked for stays asked for, and is done by the next start."""
    site = await make_site()
    await absent_device(site)
    await site.event("disassociated", "dead")
    site.core.cloud.faults.append(Fault(ASSOCIATE, hang=True))
    assert carry_out(parser().parse_args(["restore", "--all", "--work-dir", str(site.core.work_dir)])) == 0
    await site.until(lambda: site.operations(ASSOCIATE))

    await stop(site)

    assert "dead" not in site.associated
    site.core.start_component()
    await site.event("restored", "dead", requestedBy="command")


async def test_sigterm_while_greengrass_and_the_broker_hang(make_site: MakeSite) -> None:
    """Connected to an IPC service that answers nothing, in a roll call, and connecting to it: it ends as fast."""
    site = await make_site()
    api = EmqxApi(lambda: site.core.broker.connections)
    api.start()
    api.faults.delay_seconds = 60.0
    key_file = site.core.work_dir / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(f"{api.key}:{api.secret}\n", encoding="utf-8")
    try:
        await absent_device(site, rollCall={"url": api.url, "keyFile": str(key_file), "interval": "0.5s"})
        site.core.ipc.freeze()
        await site.until(lambda: any(line["message"] == "the self-test did not come back" for line in site.log()))

        await stop(site, thaw=True)

        site.core.ipc.freeze()
        began = time.time()
        site.core.start_component()
        await site.until(lambda: site.status()["time"] > began)
        await stop(site, thaw=True)
    finally:
        api.stop()


@pytest.mark.parametrize("carried_out", [False, True])
async def test_sigterm_while_a_batch_hangs(make_site: MakeSite, *, carried_out: bool) -> None:
    """A batch without an answer stays journalled; the next start settles it by listing."""
    site = await make_site()
    site.core.cloud.faults.append(Fault(DISASSOCIATE, hang=True, carried_out=carried_out))
    await absent_device(site)
    await site.until(lambda: site.operations(DISASSOCIATE))
    await site.until(lambda: ("dead" not in site.associated) == carried_out)

    await stop(site)

    (intent,) = site.rows("SELECT name, outcome FROM disassociations")
    assert tuple(intent) == ("dead", "open")
    assert not site.of_type("disassociated")
    site.core.start_component()
    await site.event("disassociated", "dead")
    await site.cycles(2)
    assert len(site.of_type("disassociated")) == 1
    assert len(site.operations(DISASSOCIATE)) == (1 if carried_out else 2)
    assert [row["outcome"] for row in site.rows("SELECT outcome FROM disassociations ORDER BY id")] == (
        ["done"] if carried_out else ["notDone", "done"]
    )


async def test_sigterm_during_the_check(make_site: MakeSite) -> None:
    """In the check of the last moment it ends without a call, and keeps the mark."""
    site = await make_site()
    # With a maxQuiet of a third of the usual one, the check takes 5/3 s from the mark on.
    slow = {"emqx": {"maxQuiet": "60s"}, "messages": {"maxQuiet": "60s"}}
    await absent_device(site, sources=slow, noticePeriod="0s")
    await site.event("marked", "dead")

    await stop(site)

    assert not site.operations(DISASSOCIATE)
    (row,) = site.rows("SELECT mark FROM devices WHERE name = 'dead'")
    assert row["mark"]
    assert not site.rows("SELECT * FROM disassociations")
    site.core.start_component()
    await site.event("disassociated", "dead", seconds=60)
    assert len(site.of_type("marked", "dead")) == 1


async def test_sigterm_right_after_the_start(make_site: MakeSite) -> None:
    """Before it has connected, or even read its configuration, it ends with exit status 0."""
    site = await make_site()
    await absent_device(site)
    await site.core.stop_component()
    lock = site.core.work_dir / "pruner.lock"
    lock.unlink()
    site.core.start_component()
    await site.until(lock.exists)

    await stop(site, saved=False)


async def absent_device(site: Site, **settings: Any) -> None:
    """Associate two devices, of which one is never seen, and lose the other, `dead`."""
    site.core.cloud.associate("dead", "never-seen")
    await site.deploy(**settings)
    await site.event("cycle", seconds=60)
    await site.devices.connect("dead", process="dead")
    await site.event("released", guard="source:emqx", seconds=60)
    await site.devices.kill("dead")


def hanging(site: Site, operation: str) -> bool:
    """Whether the last call is of that operation, and has been for longer than any answer takes."""
    last = site.core.cloud.calls[-1]
    return last.operation == operation and time.monotonic() - last.when > 2.0


async def stop(site: Site, *, saved: bool = True, thaw: bool = False) -> None:
    """Stop as the nucleus does, and look at how it went; with `thaw` a frozen IPC service goes on afterwards."""
    wall, began = time.time(), time.monotonic()
    await site.core.stop_component()
    took = time.monotonic() - began
    if thaw:
        site.core.ipc.thaw()
        await site.until(lambda: COMPONENT not in site.core.ipc.connected)

    assert site.core.component.output[-1] == "run exited with 0"
    assert took < STOP_SECONDS
    assert site.core.component.state is State.FINISHED
    if saved:
        assert site.status()["time"] >= wall
    assert COMPONENT not in site.core.ipc.connected
