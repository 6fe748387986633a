"""Presence that can be trusted, on the local core: what nobody announced, and what nobody can vouch for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from local_core.cloud import DISASSOCIATE
from local_core.core import BRIDGE
from local_core.mqtt_client import MqttClient
from trial_site import EMQX_QUIET_SECONDS, INBOUND, MAPPING, MakeSite, Site, talking

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

THRESHOLD_SECONDS = 3.0
NOTICE_SECONDS = 1.0
GAP_SECONDS = 2 * EMQX_QUIET_SECONDS
"""A gap in which all that was known is forgotten; a short one leaves it known."""
NO_OUTAGE: dict[str, Any] = {"massLoss": {"window": "0.1s", "minDevices": 100}}
"""Devices that a test loses at once are not to be an outage."""

LINE_LOST: dict[str, Any] = {"window": "1s", "minDevices": 3, "minPercent": 30}
"""So many lost within a second are an outage."""


# A device that comes back where nobody hears it -----------------------------------------------------------------


@pytest.mark.parametrize("gap_seconds", [0.0, GAP_SECONDS])
async def test_it_comes_back_while_the_bridge_is_down(make_site: MakeSite, gap_seconds: float) -> None:
    """Marked, and back while the bridge was down: it stays, however long it says nothing."""
    site = await with_a_marked_device(make_site)
    await site.core.bridge.stop()
    await site.devices.connect("returns", process="returns")
    await asyncio.sleep(gap_seconds)
    await site.core.bridge.start()
    await site.until(lambda: site.core.bridge.connected)

    await stays_without_a_word(site)


async def test_it_comes_back_while_the_component_is_down(make_site: MakeSite) -> None:
    """Marked, and back while the component was down: it stays, however long it says nothing."""
    site = await with_a_marked_device(make_site)
    await site.core.component.power_off()
    await site.devices.connect("returns", process="returns")
    site.core.start_component()
    await site.listened()

    await stays_without_a_word(site)


async def test_it_comes_back_while_the_broker_restarts(make_site: MakeSite) -> None:
    """Marked, and back with all others before the bridge after a broker's restart: it stays without a word."""
    site = await with_a_marked_device(make_site)
    await restart_broker(site, bridge_after_seconds=3.0)
    await site.devices.connect("returns", process="returns")
    await site.until(lambda: site.core.broker.connections.keys() >= {"returns", "alive"})
    assert not site.core.bridge.connected, "they were to be faster than the bridge"
    await site.until(lambda: site.core.bridge.connected)

    await stays_without_a_word(site)


async def with_a_marked_device(make_site: MakeSite) -> Site:
    """A site where `returns` is gone and marked; its notice is long enough for what is to come."""
    site = await watching(make_site, "alive", "returns", noticePeriod="3s")
    await site.devices.kill("returns")
    await site.event("marked", "returns")
    return site


async def stays_without_a_word(site: Site) -> None:
    """Nobody announced `returns`: the clock stands still until it speaks, and only then can it be lost again."""
    await unmatched(site)
    before = site.clock("emqx")

    await site.stay()

    assert site.clock("emqx") == before, "while somebody unannounced is there, nothing is vouched for"
    assert not site.status()["sources"]["emqx"]["vouching"]
    assert site.associated == {"alive", "returns"}
    site.core.events.clear()
    async with talking(site, "returns", "alive"):
        await site.event("released", guard="source:emqx", seconds=60)
        await site.until(lambda: site.clock("emqx") > before + THRESHOLD_SECONDS + NOTICE_SECONDS, 60)
    # It spoke until now: what follows can only come from the session that its words have opened.
    await site.until(lambda: site.clock("emqx") > before + 3 * THRESHOLD_SECONDS, 60)
    await site.cycles(2)
    assert site.associated == {"alive", "returns"}
    assert site.status()["counts"]["present"] == 2
    await site.devices.kill("returns")
    await site.event("disassociated", "returns", seconds=60)
    assert site.associated == {"alive"}


# A broker without events ----------------------------------------------------------------------------------------


async def test_a_silent_device_that_used_to_speak_goes_across_a_restart(make_site: MakeSite) -> None:
    """By activity alone: who fell silent goes, a restart between; who is silent no longer than usual stays."""
    site = await make_site(presence=False)
    site.core.cloud.associate("dead", "rare")
    await site.deploy(**NO_OUTAGE)
    await site.event("cycle")
    # Longer silent between two messages than the threshold: its habit raises that to twice its silence.
    await site.devices.connect("rare", telemetry_seconds=1.2 * THRESHOLD_SECONDS)
    await site.devices.connect("dead", process="dead", telemetry_seconds=0.2)
    await site.until(lambda: site.status()["coverage"]["provable"] == 2, 60, "they got no habits")
    await site.devices.kill("dead")
    await site.core.stop_component()
    site.core.start_component()

    gone = await site.event("disassociated", "dead", seconds=60)
    await site.cycles(20, seconds=60)

    assert gone["proof"] == "habit"
    assert site.associated == {"rare"}
    assert not site.of_type("marked", "rare")
    site.check_events()


# A bridge without its entries -----------------------------------------------------------------------------------


async def test_a_mapping_that_is_removed_stops_the_clocks(make_site: MakeSite) -> None:
    """Without the bridge's entries nothing is vouched for: the gone and the living stay until they are back."""
    site = await watching(make_site, "alive", "dead", "returns")
    await site.devices.kill("dead")
    await site.devices.kill("returns")
    await site.core.deploy({BRIDGE: {"reset": ["/mqttTopicMapping"]}})
    await site.event("held", guard="source:emqx")
    await site.event("held", guard="source:messages")
    await site.devices.connect("returns", process="returns")
    before = site.clock("emqx")

    await site.stay()

    assert site.clock("emqx") == before
    assert site.associated == {"alive", "dead", "returns"}
    assert not site.of_type("marked")
    assert site.core.component.starts == 1, "a broken bridge never ends the process"
    findings = [finding["finding"] for finding in site.status()["doctor"]]
    assert any("emqx" in finding for finding in findings)
    await site.core.deploy({BRIDGE: {"merge": {"mqttTopicMapping": MAPPING}}})
    async with talking(site, "alive", "returns"):
        gone = await site.event("disassociated", "dead", seconds=60)
    assert gone["proof"] == "census"
    assert site.associated == {"alive", "returns"}


# Outages ----------------------------------------------------------------------------------------------------------


async def test_a_line_unplugged_together_is_held(make_site: MakeSite) -> None:
    """Lost at once, they wait as a plan; once one is back, the absence of the others counts from there."""
    line = [f"line-{number}" for number in range(4)]
    # From the start: the day's budget is a part of those associated when its window began.
    site = await watching(make_site, "alive", associated=line, massLoss=LINE_LOST)
    await site.devices.connect(*line, process="line")
    await site.event("cycle", present=5)
    await site.devices.kill("line")

    held = await site.event("held", guard="outage")
    await site.event("cycle", due=4)
    await site.stay()

    assert site.associated == {"alive", *line}
    assert "4 due devices were lost together" in held["reason"]
    assert held["plan"] in held["remedy"]
    assert site.status()["plan"] == {"id": held["plan"], "devices": line}
    await site.devices.connect("line-0", process="repaired")
    connected = time.monotonic()
    for name in line[1:]:
        await site.event("disassociated", name, seconds=60)
    batches = site.operations(DISASSOCIATE)
    assert {name for call in batches for name in call.entries} == set(line[1:])
    for name in line[1:]:
        assert site.of_type("unmarked", name), "its absence started anew, and so does its notice"
        (gone,) = site.of_type("disassociated", name)
        assert gone["offlineSeconds"] <= batches[-1].when - connected + EMQX_QUIET_SECONDS
    assert batches[0].when - connected >= THRESHOLD_SECONDS
    await site.event("released", guard="outage")
    assert site.associated == {"alive", "line-0"}
    assert site.status()["plan"] is None
    site.check_events()


async def test_a_site_lost_while_the_core_was_off_is_held(make_site: MakeSite) -> None:
    """The power fails for all, and only the core comes back: nobody goes before one of them has returned."""
    names = [f"machine-{number}" for number in range(4)]
    site = await watching(make_site, *names, massLoss=LINE_LOST)
    # Until it is written that they were present.
    await site.until(lambda: all(row["held"] for row in site.rows("SELECT held FROM devices")))
    reboot = asyncio.create_task(site.core.reboot(off_seconds=GAP_SECONDS))
    await site.until(lambda: site.core.broker.stopping)
    for name in names:
        await site.devices.kill(name)
    site.core.events.clear()
    await reboot

    held = await site.event("held", guard="outage", seconds=60)
    await site.stay()

    assert "4 due devices were lost together" in held["reason"]
    assert site.associated == set(names)
    await site.devices.connect(names[0], process="repaired")
    for name in names[1:]:
        await site.event("disassociated", name, seconds=60)
    assert site.associated == {names[0]}


async def test_the_only_device_of_a_core_is_pruned(make_site: MakeSite) -> None:
    """One device, gone with proof, goes under the default limits: no guard freezes a small site."""
    limits = {"maxPerCycle": 100, "maxPercentPerDay": 10, "approvalPercent": 50}
    site = await watching(
        make_site, "only", limits=limits, massLoss={"window": "10m", "minDevices": 3, "minPercent": 30}
    )
    await site.devices.kill("only")

    gone = await site.event("disassociated", "only")

    assert gone["proof"] == "census"
    assert site.associated == set()
    assert not [data for data in site.of_type("held") if not data["guard"].startswith("source:")]


# Brokers and sessions -------------------------------------------------------------------------------------------


async def test_after_a_brokers_restart_all_announce_themselves(make_site: MakeSite) -> None:
    """The bridge is back first and hears everybody; who does not come back goes, though nobody said so."""
    site = await watching(make_site, "alive", "dead", reconnect_seconds=2.0)
    await site.core.broker.stop()
    await site.devices.kill("dead")
    await site.core.broker.start()

    gone = await site.event("disassociated", "dead", seconds=60)

    assert gone["proof"] == "census"
    await site.stay()
    assert site.associated == {"alive"}
    assert site.status()["counts"]["present"] == 1


async def test_after_a_brokers_restart_nobody_is_announced(make_site: MakeSite) -> None:
    """All are back before the bridge: the clock stands still until the living speak; then the dead one goes."""
    site = await watching(make_site, "alive", "dead")
    await restart_broker(site, bridge_after_seconds=3.0, losing="dead")
    await site.until(lambda: "alive" in site.core.broker.connections)
    assert not site.core.bridge.connected, "it was to be faster than the bridge"
    await site.until(lambda: site.core.bridge.connected)
    await unmatched(site)
    before = site.clock("emqx")

    await site.stay()

    assert site.clock("emqx") == before
    assert site.associated == {"alive", "dead"}
    async with talking(site, "alive"):
        await site.event("disassociated", "dead", seconds=60)
    assert site.associated == {"alive"}


async def test_two_live_clients_of_one_id_take_over_from_each_other(make_site: MakeSite) -> None:
    """Whoever of the two is connected, the name is present; once both are gone, it goes."""
    site = await watching(make_site, "alive")
    site.core.cloud.associate("twin")
    await site.event("cycle", unknown=0, absent=1)
    for process in ("one", "other"):
        await site.devices.connect("twin", process=process, reconnect_seconds=0.4)
    await site.event("cycle", present=2)

    await site.stay()

    assert not site.of_type("marked", "twin")
    assert site.clock("emqx") > 0.0
    for process in ("one", "other"):
        await site.devices.kill(process)
    gone = await site.event("disassociated", "twin", seconds=60)
    assert gone["proof"] == "census"
    assert site.associated == {"alive"}


async def test_a_replayed_retained_message_opens_no_session(make_site: MakeSite) -> None:
    """What a broker replays when the bridge subscribes shows nobody connected: the dead one goes."""
    site = await watching(make_site, "alive", "dead")
    publisher = MqttClient("backend")
    await publisher.connect(site.core.broker.port)
    publisher.publish("clients/dead/telemetry", b"retained", qos=1, retain=True)
    await site.until(lambda: site.core.broker._engine and site.core.broker._engine._retained_messages)
    publisher.disconnect()
    await site.devices.kill("dead")
    await site.until(lambda: "dead" not in site.core.broker.connections)
    await site.core.bridge.stop()
    replays: list[float] = []
    topic = f"{INBOUND}clients/dead/telemetry"
    site.core.pubsub.subscribe(topic, lambda _message: replays.append(time.monotonic()))
    await site.core.bridge.start()
    await site.until(lambda: replays, what="nothing was replayed")
    await hear_all(site, "alive")

    gone = await site.event("disassociated", "dead", seconds=60)

    (call,) = site.operations(DISASSOCIATE)
    assert gone["offlineSeconds"] <= call.when - replays[-1], "for want of better it was taken for a sign of life"
    assert site.associated == {"alive"}


async def test_a_lost_disconnect_is_found_out_by_the_count(make_site: MakeSite) -> None:
    """Fewer counted than known for 10 minutes (5 s here): what was known is thrown away, and the dead one goes."""
    site = await watching(make_site, "alive", "dead")
    site.core.broker.suppress_events = True
    await site.devices.kill("dead")
    await site.until(lambda: "dead" not in site.core.broker.connections)
    site.core.broker.suppress_events = False
    await site.until(lambda: "fewer than known" in site.status()["sources"]["emqx"]["reason"])
    before = site.clock("emqx")
    # Once the known sessions are thrown away, the living are more than known.
    await site.until(lambda: "more than known" in site.status()["sources"]["emqx"]["reason"], 60)
    assert site.clock("emqx") == before
    assert site.associated == {"alive", "dead"}

    async with talking(site, "alive"):
        await site.event("disassociated", "dead", seconds=60)

    assert site.associated == {"alive"}


async def test_somebody_unannounced_stops_the_clock_while_he_is_there(make_site: MakeSite) -> None:
    """More counted than known: the clock stands still until he goes; then every absence starts anew."""
    site = await watching(make_site, "alive", "dead")
    await site.devices.kill("dead")
    await site.event("marked", "dead")
    site.core.broker.suppress_events = True
    await site.devices.connect("stranger", process="stranger")
    await unmatched(site)
    before = site.clock("emqx")

    await site.stay()

    assert site.clock("emqx") == before
    assert site.associated == {"alive", "dead"}
    site.core.events.clear()
    await site.devices.disconnect("stranger")
    left = time.monotonic()
    # Nobody said who it was: it could have been the marked one.
    await site.event("unmarked", "dead", seconds=60)
    gone = await site.event("disassociated", "dead", seconds=60)
    (call,) = site.operations(DISASSOCIATE)
    assert gone["offlineSeconds"] <= call.when - left + EMQX_QUIET_SECONDS
    assert site.associated == {"alive"}


# What the tests are told in ------------------------------------------------------------------------------------


async def watching(
    make_site: MakeSite,
    *names: str,
    associated: Sequence[str] = (),
    reconnect_seconds: float = 0.05,
    **settings: Any,
) -> Site:
    """A site with these devices, each in a process of its own, connected and heard by a census that matches."""
    site = await make_site()
    site.core.bridge.first_backoff_seconds = 0.1
    site.core.cloud.associate(*names, *associated)
    await site.deploy(**{**NO_OUTAGE, **settings})
    await site.event("cycle")
    for name in names:
        await site.devices.connect(name, process=name, reconnect_seconds=reconnect_seconds)
    await site.event("cycle", present=len(names))
    await site.event("released", guard="source:emqx")
    return site


async def restart_broker(site: Site, *, bridge_after_seconds: float, losing: str | None = None) -> None:
    """Restart the broker, the bridge coming back late; a device may be lost while it is down."""
    site.core.bridge.first_backoff_seconds = bridge_after_seconds
    await site.core.broker.stop()
    if losing is not None:
        await site.devices.kill(losing)
    await site.core.broker.start()


async def unmatched(site: Site) -> None:
    """Wait until the component says that more are connected than it knows of."""
    reason = "more than known"
    await site.until(
        lambda: reason in site.status()["sources"]["emqx"]["reason"], 60, "the count matched all the while"
    )


async def hear_all(site: Site, *names: str) -> None:
    """Have these devices speak until the census matches."""
    async with talking(site, *names):
        await site.until(lambda: site.status()["sources"]["emqx"]["vouching"], 60, "the census does not match")
