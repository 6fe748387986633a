"""Roll calls on the local core: EMQX's HTTP API says who is connected; without an answer, nobody is absent."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from local_core.cloud import DISASSOCIATE
from local_core.emqx_api import EmqxApi
from trial_site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

THRESHOLD_SECONDS = 3.0
INTERVAL_SECONDS = 0.5
CROWD = {f"other-{number:04}": 1 for number in range(1500)}
"""Clients of other cores or of none: enough for a second page."""


async def test_a_gone_device_is_pruned_and_a_named_one_stays(make_site: MakeSite, tmp_path: Path) -> None:
    """On a broker that says nothing by itself: who is named is present without a word; who is not goes."""
    async with called(make_site, tmp_path) as (site, _api):
        await site.devices.kill("dead")

        gone = await site.event("disassociated", "dead")
        await site.stay()

        assert gone["proof"] == "rollCall"
        assert gone["offlineSeconds"] >= THRESHOLD_SECONDS
        (call,) = site.operations(DISASSOCIATE)
        assert call.entries == ("dead",)
        assert site.associated == {"alive"}
        assert not site.of_type("marked", "alive")
        assert site.of_type("cycle")[-1]["present"] == 1
        site.check_events()


async def test_who_is_back_unannounced_is_present_once_named(make_site: MakeSite, tmp_path: Path) -> None:
    """Back in a gap of the bridge: the census stands still for good, the roll call does not, and spares it."""
    async with called(make_site, tmp_path, presence=True, noticePeriod="4s") as (site, _api):
        await site.event("released", guard="source:emqx")
        for name in ("returns", "dead"):
            site.core.cloud.associate(name)
            await site.devices.connect(name, process=name)
        await site.event("cycle", present=3)
        await site.devices.kill("dead")
        await site.devices.kill("returns")
        await site.event("marked", "returns")
        await site.core.bridge.stop()
        await site.devices.connect("returns", process="returns")
        await site.core.bridge.start()

        await site.event("unmarked", "returns", reason="it showed life")
        await site.event("disassociated", "dead", seconds=60)
        await site.stay()

        assert site.associated == {"alive", "returns"}
        assert not site.status()["sources"]["emqx"]["vouching"], "nobody announced it"
        assert site.of_type("cycle")[-1]["present"] == 2


@contextlib.contextmanager
def wrong_key(_site: Site, api: EmqxApi, _key_file: Path) -> Any:
    """The key was revoked."""
    api.secret, secret = "another", api.secret
    yield
    api.secret = secret


@contextlib.contextmanager
def readable_key(_site: Site, _api: EmqxApi, key_file: Path) -> Any:
    """Others may read the key."""
    key_file.chmod(0o644)
    yield
    key_file.chmod(0o600)


@contextlib.contextmanager
def no_key(_site: Site, _api: EmqxApi, key_file: Path) -> Any:
    """The key file is gone."""
    away = key_file.rename(key_file.with_suffix(".away"))
    yield
    away.rename(key_file)


@contextlib.contextmanager
def half_answers(_site: Site, api: EmqxApi, _key_file: Path) -> Any:
    """The server breaks off within a page."""
    api.faults.cut = True
    yield
    api.faults.cut = False


@contextlib.contextmanager
def server_error(_site: Site, api: EmqxApi, _key_file: Path) -> Any:
    """The server fails."""
    api.faults.status = 503
    yield
    api.faults.status = 200


@contextlib.contextmanager
def nonsense(_site: Site, api: EmqxApi, _key_file: Path) -> Any:
    """Something else answers in its place."""
    api.faults.body = b"<html>Log in</html>"
    yield
    api.faults.body = None


@contextlib.contextmanager
def nobody(_site: Site, api: EmqxApi, _key_file: Path) -> Any:
    """The answer is whole, and names nobody at all, the bridge neither."""
    api.faults.body = json.dumps({"data": [], "meta": {"page": 1, "limit": 1000, "hasnext": False}}).encode()
    yield
    api.faults.body = None


@contextlib.contextmanager
def without_end(_site: Site, api: EmqxApi, _key_file: Path) -> Any:
    """Each page says that there is another."""
    api.faults.has_next_for_ever = True
    yield
    api.faults.has_next_for_ever = False


@contextlib.contextmanager
def changing_pages(_site: Site, api: EmqxApi, _key_file: Path) -> Any:
    """Somebody comes between two pages, so that one is named on both."""
    connections, newcomers = api._connections, dict[str, int]()

    def come(page: int) -> None:
        if page > 1:
            newcomers[f"a-{len(newcomers)}"] = 1

    api._connections = lambda: {**connections(), **CROWD, **newcomers}
    api.faults.before_page = come
    yield
    api.faults.before_page = None
    api._connections = connections


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (wrong_key, "401"),
        (readable_key, "is open to others than its owner"),
        (no_key, "rollCall.keyFile cannot be read"),
        (half_answers, "broke off within a page"),
        (server_error, "503"),
        (nonsense, "is not JSON"),
        (nobody, "names neither the bridge nor a session known to be open"),
        (without_end, "says that there are more"),
        (changing_pages, "clients came or went meanwhile"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_no_answer_says_nothing_of_anybody(
    make_site: MakeSite,
    tmp_path: Path,
    fault: Callable[[Site, EmqxApi, Path], contextlib.AbstractContextManager[None]],
    reason: str,
) -> None:
    """Without a whole answer to believe the clock stands still, the status says why, and nobody is pruned."""
    async with called(make_site, tmp_path) as (site, api):
        await site.devices.kill("dead")
        with fault(site, api, tmp_path / "key"):
            held = await site.event("held", guard="source:rollCall")
            assert reason in held["reason"]
            before = site.clock("rollCall")

            await site.stay()

            assert site.clock("rollCall") == before
            status = site.status()["sources"]["rollCall"]
            assert not status["vouching"]
            assert reason in status["reason"]
            assert site.associated == {"alive", "dead"}
            assert not site.of_type("marked")

        gone = await site.event("disassociated", "dead", seconds=60)

        assert gone["proof"] == "rollCall"
        assert site.associated == {"alive"}


async def test_two_pages_are_one_answer(make_site: MakeSite, tmp_path: Path) -> None:
    """With more clients than fit a page, all pages count: who is named on the second only is present."""
    async with called(make_site, tmp_path) as (site, api):
        connections = api._connections
        api._connections = lambda: {**CROWD, **{f"z-{n}": 1 for n in range(900)}, **connections()}
        site.core.cloud.associate("zz-late")
        await site.devices.connect("zz-late")
        await site.event("cycle", present=3)
        await site.devices.kill("dead")

        await site.event("disassociated", "dead", seconds=60)

        assert any("page=3" in request for request in api.requests)
        assert site.associated == {"alive", "zz-late"}


async def test_an_answer_that_lacks_somebody_connected_is_not_believed(make_site: MakeSite, tmp_path: Path) -> None:
    """It must name every client whose session was known to be open from before the call until after it."""
    async with called(make_site, tmp_path, presence=True) as (site, api):
        await site.event("released", guard="source:emqx")
        connections = api._connections
        api._connections = lambda: {k: v for k, v in connections().items() if k != "alive"}

        held = await site.event("held", guard="source:rollCall")

        assert "the answer lacks 1 clients that are connected: alive" in held["reason"]
        await site.stay()
        assert site.associated == {"alive", "dead"}
        assert site.of_type("cycle")[-1]["present"] == 2


@contextlib.asynccontextmanager
async def called(
    make_site: MakeSite, tmp_path: Path, *, presence: bool = False, **settings: Any
) -> AsyncIterator[tuple[Site, EmqxApi]]:
    """A site with roll calls that are believed, and two silent devices connected: `alive` and `dead`."""
    site = await make_site(presence=presence)
    site.core.bridge.first_backoff_seconds = 0.1
    api = EmqxApi(lambda: site.core.broker.connections)
    api.start()
    try:
        key_file = tmp_path / "key"
        key_file.write_text(f"{api.key}:{api.secret}\n")
        key_file.chmod(0o600)
        site.core.cloud.associate("alive", "dead")
        roll_call = {"url": api.url, "keyFile": str(key_file), "interval": f"{INTERVAL_SECONDS:g}s"}
        await site.deploy(rollCall=roll_call, massLoss={"minDevices": 100}, **settings)
        await site.event("cycle")
        for name in ("alive", "dead"):
            await site.devices.connect(name, process=name)
        await site.event("cycle", present=2)
        await site.event("released", guard="source:rollCall")
        yield site, api
    finally:
        api.stop()
