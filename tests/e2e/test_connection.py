"""What dies between Greengrass and the component, on the local core: subscription, connection, token, time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from local_core.cloud import DISASSOCIATE
from local_core.component import State
from trial_site import COMPONENT, EMQX_QUIET_SECONDS, MakeSite, Site, talking

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

THRESHOLD_SECONDS = 3.0
EXIT_SECONDS = 3600.0 * EMQX_QUIET_SECONDS / 180.0
"""The hour between two exits, under the trial's settings."""


async def test_a_subscription_that_dies_silently_is_made_anew(make_site: MakeSite) -> None:
    """Pub/sub dead without a word: the self-test notices, subscribes anew, and the watch goes on."""
    site = await watching(make_site, "alive", "dead")

    site.core.ipc.mute_pubsub()
    await site.logged("the self-test did not come back", remedy="subscribe")
    await goes_on(site, "alive", "dead")
    await site.devices.kill("dead")

    await site.event("disassociated", "dead", seconds=60)
    assert site.associated == {"alive"}
    assert site.core.component.starts == 1


async def test_who_dies_unheard_with_the_subscription_goes_all_the_same(make_site: MakeSite) -> None:
    """A disconnect lost with the subscription: fewer are counted than known, and that is found out."""
    site = await watching(make_site, "alive", "dead")

    site.core.ipc.mute_pubsub()
    await site.devices.kill("dead")

    async with talking(site, "alive"):
        await site.event("disassociated", "dead", seconds=60)
    assert site.associated == {"alive"}


async def test_the_process_stands_still_for_longer_than_the_threshold(make_site: MakeSite) -> None:
    """Suspended for long: nothing that happened is lost, no time of it counts, and nothing living goes."""
    site = await watching(make_site, "alive", "dead", "returns")
    await site.devices.kill("returns")
    await site.until(lambda: site.absences("emqx").get("returns", 0.0) > 1.0)
    site.core.component.suspend()
    before = site.clock("emqx")
    await site.devices.kill("dead")
    await site.devices.connect("returns", process="returns")
    await asyncio.sleep(3 * THRESHOLD_SECONDS)
    site.core.component.resume()
    resumed = time.monotonic()
    # What waited comes at once, and no count for the time that nobody watched: what was known is forgotten.
    await site.stay()
    assert site.clock("emqx") <= before + EMQX_QUIET_SECONDS
    assert site.associated == {"alive", "dead", "returns"}

    async with talking(site, "alive", "returns"):
        gone = await site.event("disassociated", "dead", seconds=60)

    (call,) = site.operations(DISASSOCIATE)
    assert call.entries == ("dead",)
    assert gone["offlineSeconds"] <= call.when - resumed
    assert site.associated == {"alive", "returns"}
    assert site.core.component.starts == 1


async def test_a_lost_connection_is_made_anew(make_site: MakeSite) -> None:
    """Dropped with the token still good: the process connects again, and the watch goes on."""
    site = await watching(make_site, "alive", "dead")

    site.core.ipc.drop_connections()
    await site.logged("no connection to Greengrass")
    await site.until(lambda: COMPONENT in site.core.ipc.connected, what="it did not connect again")
    await site.listened()
    await goes_on(site, "alive", "dead")
    await site.devices.kill("dead")

    await site.event("disassociated", "dead", seconds=60)
    assert site.associated == {"alive"}
    assert site.core.component.starts == 1


async def test_connections_that_were_lost_leave_no_thread_behind(make_site: MakeSite) -> None:
    """Each has an event loop of its own in the SDK, with a thread and descriptors (found by `make soak`)."""
    site = await watching(make_site, "alive")
    pid = site.core.component.pid
    assert pid is not None

    def event_loops() -> int:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum("AwsEventLoop" in (task / "comm").read_text() for task in tasks)

    assert event_loops() == 1
    for _time in range(5):
        site.core.ipc.drop_connections()
        await site.until(lambda: COMPONENT not in site.core.ipc.connected, what="it was not dropped")
        await site.until(lambda: COMPONENT in site.core.ipc.connected, what="it did not connect again")
        await site.listened()

    # The one that was lost last may still be on its way out.
    await site.until(lambda: event_loops() <= 2, 10, "threads of lost connections stay")
    assert site.core.component.starts == 1


async def test_who_dies_while_there_is_no_connection_goes_all_the_same(make_site: MakeSite) -> None:
    """A disconnect that nobody heard: the count tells, and who lives has to speak once."""
    site = await watching(make_site, "alive", "dead", "returns")
    await site.devices.kill("returns")
    await site.event("marked", "returns")
    await site.core.ipc.stop()
    await site.devices.kill("dead")
    await site.devices.connect("returns", process="returns")
    await asyncio.sleep(2 * EMQX_QUIET_SECONDS)
    await site.core.ipc.start(site.core.socket_path)
    await site.until(lambda: COMPONENT in site.core.ipc.connected, 60, "it did not connect again")
    await site.listened()

    await site.stay()
    assert site.associated == {"alive", "dead", "returns"}
    async with talking(site, "alive", "returns"):
        await site.event("disassociated", "dead", seconds=60)

    (call,) = site.operations(DISASSOCIATE)
    assert call.entries == ("dead",)
    assert site.associated == {"alive", "returns"}


async def test_a_service_that_hangs_is_outlasted(make_site: MakeSite) -> None:
    """Calls that hang, then connecting that hangs: once it answers again the watch goes on, and nobody living goes."""
    site = await watching(make_site, "alive", "dead")

    site.core.ipc.freeze()
    await site.logged("the self-test did not come back", remedy="connect")
    await site.logged("no connection to Greengrass", 60)
    await site.devices.kill("dead")
    site.core.ipc.thaw()
    await site.until(lambda: COMPONENT in site.core.ipc.connected, 60, "it did not connect again")
    await site.listened()
    await site.cycles(3)
    assert site.associated == {"alive", "dead"}

    async with talking(site, "alive"):
        await site.event("disassociated", "dead", seconds=60)
    assert site.associated == {"alive"}


async def test_a_void_token_ends_the_process_at_most_once_an_hour(make_site: MakeSite) -> None:
    """The token is void: it exits non-zero to be given another; again only after an hour (30 s here) of running."""
    site = await watching(make_site, "alive", "dead")

    site.core.ipc.drop_connections(forget_tokens=True)
    assert await site.core.component.wait_for_state(State.ERRORED) is State.ERRORED
    await site.until(lambda: site.core.component.starts == 2, what="it was not started anew")
    await site.until(lambda: COMPONENT in site.core.ipc.connected, what="the new one did not connect")
    restarted = time.monotonic()
    assert not [line for line in site.log() if line["message"] == "run exited with 0"]
    await site.listened()
    site.core.component.output.clear()
    site.core.ipc.drop_connections(forget_tokens=True)

    def refusals() -> int:
        return sum(line["message"] == "no connection to Greengrass" for line in site.log())

    await site.until(lambda: refusals() > 20, EXIT_SECONDS, "it gave up trying")
    if time.monotonic() - restarted < 0.8 * EXIT_SECONDS:
        assert site.core.component.starts == 2, "the exit before is remembered in the state file"
    await site.until(lambda: site.core.component.starts == 3, 3 * EXIT_SECONDS, "it did not give up in the end")
    assert time.monotonic() - restarted >= 0.9 * EXIT_SECONDS
    await site.until(lambda: COMPONENT in site.core.ipc.connected, what="the third one did not connect")
    await site.listened()
    await goes_on(site, "alive", "dead")
    await site.devices.kill("dead")
    await site.event("disassociated", "dead", seconds=60)
    assert site.associated == {"alive"}


async def watching(make_site: MakeSite, *names: str) -> Site:
    """A site with these devices, each in a process of its own, connected and heard by a census that matches."""
    site = await make_site()
    site.core.cloud.associate(*names)
    await site.deploy(massLoss={"window": "0.1s", "minDevices": 100})
    await site.event("cycle")
    for name in names:
        await site.devices.connect(name, process=name)
    await site.event("cycle", present=len(names))
    await site.event("released", guard="source:emqx")
    return site


async def goes_on(site: Site, *names: str) -> None:
    """Wait until the census vouches for new time; these devices speak meanwhile."""
    before = site.clock("emqx")
    async with talking(site, *names):
        # More than was earned before, and not yet written then.
        await site.until(lambda: site.clock("emqx") > before + EMQX_QUIET_SECONDS, 60, "the clock stands still")
