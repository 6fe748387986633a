"""A whole life on Greengrass Lite: no bridge, no deployments that ask, no long messages, texts for numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from local_core.cloud import DISASSOCIATE
from local_core.core import BRIDGE
from local_core.pubsub import Message
from local_core.recipe import merge
from trial_site import COMPONENT, INBOUND, REPOSITORY, TRIAL, MakeSite, Site, publishing

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


async def test_a_life_on_greengrass_lite(make_site: MakeSite) -> None:
    """Configured by its file it watches, marks and disassociates; a deployment restarts it, and it goes on."""
    site = await make_site(lite=True, presence=False)
    site.core.cloud.associate("alive", "dead", "later")
    lay_out(site)
    heard = {"alive", "dead", "later"}
    async with publishing(site, heard):
        site.core.start_component()
        accepted = await site.event("configuration")
        await site.until(lambda: site.status()["coverage"]["provable"] == 3, 60, "they got no habits")
        heard.remove("dead")
        await site.event("marked", "dead", proof="habit")
        await site.event("disassociated", "dead")
        await site.core.deploy({COMPONENT: {"merge": {"protectedClients": ["later"]}}})
        await site.until(lambda: site.core.component.starts == 2, what="it was not started anew")
        heard.remove("later")
        await site.event("cycle", protected=1)
        await site.cycles(7)  # threshold and notice are 4 s
        await site.core.deploy({COMPONENT: {"merge": {"protectedClients": []}}})
        await site.event("disassociated", "later")
        await site.until(lambda: shadow(site)["counts"]["present"] == shadow(site)["coverage"]["associated"] == 1)

    assert accepted == {"accepted": True, "problems": []}
    assert [call.entries for call in site.operations(DISASSOCIATE)] == [("dead",), ("later",)]
    assert site.associated == {"alive"}
    assert not site.core.shadows.rejected
    assert shadow(site)["lastCycle"]["complete"]
    # The bridge is missing here as it should be; the component's own permissions are all there.
    (finding,) = site.status()["doctor"]
    assert BRIDGE in finding["finding"]
    site.check_events()


async def test_what_lite_lacks_and_cannot_carry_is_done_without(make_site: MakeSite) -> None:
    """Each refusal is one line of the log, also over a lost connection; a long message costs no watch and no event."""
    site = await make_site(lite=True, presence=False)
    site.core.cloud.associate("alive")
    lay_out(site)
    async with publishing(site, {"alive"}):
        site.core.start_component()
        await site.event("released", guard="source:presence")
        await site.event("cycle", present=1)
        site.core.ipc.drop_connections()
        await site.logged("no connection to Greengrass")
        await site.until(lambda: COMPONENT in site.core.ipc.connected, what="it did not connect again")
        await site.listened()
        # Somebody's long message silences the subscription for good.
        site.core.pubsub.publish(Message(f"{INBOUND}presence/alive", b"x" * 9_000, "com.example.Presence"))
        before = site.clock("presence")
        await site.logged("the self-test did not come back", remedy="subscribe")
        await site.until(lambda: site.clock("presence") > before + 2.0, what="the watch did not go on")

        await site.core.deploy({COMPONENT: {"merge": {f"unknown{number}": "1" for number in range(200)}}})
        refused = await site.event("configuration", accepted=False)
        held = await site.event("held", guard="configuration")
        await site.cycles(2)

    lines = [line for line in site.log() if line["message"] == "Greengrass refused a call"]
    # A publication under way when the connection was dropped is refused, too, and for another reason.
    subscriptions = [line for line in lines if line["operation"].startswith("Subscribe")]
    first_run = [(line["level"], line["operation"]) for line in subscriptions if line["time"] < restarted(site)]
    assert sorted(first_run) == [("INFO", "SubscribeToComponentUpdates"), ("INFO", "SubscribeToConfigurationUpdate")]
    assert refused["problems"][-1].endswith("more: see the log")
    assert held["reason"].endswith("…")
    told = [line for line in site.log() if line["message"] == "configuration refused"]
    assert len(told) == 200, "the log has every problem"
    assert sum(line["message"] == "no connection to Greengrass" for line in site.log()) == 1
    assert site.core.component.starts == 2, "the deployment's"
    site.check_events()


def lay_out(site: Site) -> None:
    """Configure the core as its configuration file does: the set-up of the README for a trial, each scalar a text."""
    del site.core.configuration[BRIDGE]  # there is none on Lite
    document = json.loads((REPOSITORY / "docs" / "setups" / "lite.json").read_text("utf-8"))[COMPONENT]["merge"]
    trial = merge(TRIAL, {"massLoss": {"minDevices": 100}, "sources": {"presence": {"maxQuiet": "2s"}}})
    before = site.core.configuration[COMPONENT]
    site.core.configuration[COMPONENT] = texts(merge(before, merge(document, trial)))


def texts(value: Any) -> Any:
    """A configuration as Lite reads it from its file."""
    if isinstance(value, dict):
        return {key: texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [texts(inner) for inner in value]
    return value if isinstance(value, str) else json.dumps(value)


def shadow(site: Site) -> dict[str, Any]:
    """The named shadow of the core device."""
    return site.core.shadows.reported.get(
        ("core-1", "client-device-pruner"), {"counts": {"present": -1}, "coverage": {"associated": -2}}
    )


def restarted(site: Site) -> str:
    """When the component ended its first run, as the log tells times."""
    lines = site.log()
    end = next(number for number, line in enumerate(lines) if line["message"] == "run exited with 0")
    return str(next(line["time"] for line in lines[end:] if "time" in line))
