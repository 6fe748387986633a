"""A start in a world that is not ready yet, or that is reached through a proxy alone."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from local_core.cloud import CREDENTIALS, DISASSOCIATE, LIST, Fault
from local_core.core import BRIDGE
from local_core.emqx_api import EmqxApi
from trial_site import COMPONENT, MAPPING, TRIAL, MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


async def test_it_starts_before_everything_else(make_site: MakeSite) -> None:
    """No token exchange, no broker, no bridge, and no entries in it: each may come late, and nothing is restarted."""
    site = await make_site()
    site.core.cloud.associate("dead", "alive")
    await site.core.bridge.stop()
    await site.core.broker.stop()
    site.core.cloud.faults.append(Fault(CREDENTIALS, times=None, drop=True))
    await site.core.deploy({COMPONENT: {"merge": {**TRIAL, "massLoss": {"minDevices": 100}}}})

    failed = await site.event("failed")
    assert "token exchange service" in failed["message"]
    await site.event("held", guard="source:emqx")
    await site.until(lambda: len(site.operations(CREDENTIALS)) > 6, what="it did not try again")
    assert not site.operations(LIST)
    assert len(site.of_type("failed")) == 1, "said once"
    assert not shadow_cycle(site)["complete"]
    site.core.cloud.faults.clear()
    await site.event("cycle", complete=True)
    await site.core.broker.start()
    await site.core.bridge.start()
    await site.core.deploy({BRIDGE: {"merge": {"mqttTopicMapping": MAPPING}}})
    for name in ("dead", "alive"):
        await site.devices.connect(name, process=name)
    await site.event("released", guard="source:emqx")
    await site.devices.kill("dead")

    await site.event("disassociated", "dead")
    await site.until(lambda: shadow_cycle(site)["complete"])
    assert site.associated == {"alive"}
    assert site.core.component.starts == 1
    written = [message.payload for message in site.core.iot_core if "/shadow/" in message.topic]
    assert all(one != following for one, following in pairwise(written)), "only when it changed"
    assert not site.core.shadows.rejected
    site.check_events()


async def test_behind_a_proxy_the_cloud_is_asked_through_it_and_the_device_itself_is_not(
    make_site: MakeSite, tmp_path: Path
) -> None:
    """The API through the nucleus' proxy; token exchange and roll call, which are on loopback, without it."""
    site = await make_site(behind_proxy=True)
    api = EmqxApi(lambda: site.core.broker.connections)
    api.start()
    key_file = tmp_path / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(f"{api.key}:{api.secret}\n", encoding="utf-8")
    try:
        site.core.cloud.associate("dead", "alive")
        await site.deploy(
            rollCall={"url": api.url, "keyFile": str(key_file), "interval": "0.5s"},
            reports={"iotCoreTopic": "client-device-pruner/{thingName}/events"},
        )
        for name in ("dead", "alive"):
            await site.devices.connect(name, process=name)
        await site.event("released", guard="source:rollCall")
        await site.event("cycle", present=2)
        await site.devices.kill("dead")

        await site.event("disassociated", "dead")
        assert site.associated == {"alive"}
        assert len(site.operations(DISASSOCIATE)) == 1
        assert not site.of_type("failed")
        await site.core.stop_component()
        told = [json.loads(m.payload) for m in site.core.iot_core if m.topic == "client-device-pruner/core-1/events"]
        assert told == site.core.events, "AWS IoT Core hears every event, as local pub/sub does"
    finally:
        api.stop()


def shadow_cycle(site: Site) -> dict[str, object]:
    """What the named shadow says of the last cycle."""
    shadow = site.core.shadows.reported.get(("core-1", "client-device-pruner"), {})
    last: dict[str, object] = shadow.get("lastCycle", {"complete": None})
    return last
