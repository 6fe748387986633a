"""Each permission of the recipe is needed: without it what it grants fails, and the log says how to grant it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from client_device_pruner.settings import DEFAULTS
from local_core.cloud import DISASSOCIATE, LIST
from local_core.core import BRIDGE
from trial_site import COMPONENT, INBOUND, MAPPING, REPOSITORY, TRIAL, MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PUBSUB, MQTT_PROXY = "aws.greengrass.ipc.pubsub", "aws.greengrass.ipc.mqttproxy"
SUBSCRIBE = f"{COMPONENT}:pubsub:subscribe:1"
PUBLISH = f"{COMPONENT}:pubsub:publish:1"
PUBLISH_TO_IOT_CORE = f"{COMPONENT}:mqttproxy:publish:1"
OWN, CANARY = "client-device-pruner/*", "pruner-canary/*"
SHADOW = "$aws/things/*/shadow/name/client-device-pruner/update"

# What each test below takes away.
TESTED = {
    (SUBSCRIBE, OWN),
    (PUBLISH, OWN),
    (PUBLISH, CANARY),
    (PUBLISH_TO_IOT_CORE, OWN),
    (PUBLISH_TO_IOT_CORE, SHADOW),
}


def test_every_permission_of_the_recipe_is_tested() -> None:
    """The recipe grants what the tests here take away, each resource of each policy, and nothing else."""
    granted = {
        (policy_id, resource)
        for policies in access_control(recipe()).values()
        for policy_id, policy in policies.items()
        for resource in policy["resources"]
    }

    assert granted == TESTED


async def test_without_subscribing_nothing_is_heard(make_site: MakeSite, tmp_path: Path) -> None:
    """Without the subscription no source vouches and a dead device stays, until the logged JSON is deployed."""
    site = await make_site(recipe=recipe_without(tmp_path, PUBSUB, SUBSCRIBE, OWN))
    await lose_one(site)

    await site.cycles(8)

    assert not site.of_type("marked")
    assert not site.operations(DISASSOCIATE)
    assert site.status()["sources"]["emqx"] == {
        "vouching": False,
        "clockSeconds": 0.0,
        "reason": "nothing heard from the broker in this run",
    }
    await site.event("held", guard="source:emqx")

    await grant(site, "SubscribeToTopic", "client-device-pruner/in/#")
    await lose_one(site)
    await site.event("disassociated", "dead", seconds=60)


async def test_without_publishing_there_are_no_events(make_site: MakeSite, tmp_path: Path) -> None:
    """Without publishing no event comes out, and without the self-test's echo nothing is disassociated."""
    site = await make_site(recipe=recipe_without(tmp_path, PUBSUB, PUBLISH, OWN))
    await lose_one(site)
    await site.until(lambda: len(site.operations(LIST)) >= 15)

    assert not site.core.events
    assert not site.operations(DISASSOCIATE)

    await grant(site, "PublishToTopic", "client-device-pruner/events")
    await site.until(lambda: site.core.events, what="no event came")
    await grant(site, "PublishToTopic", "client-device-pruner/in/pruner-self-test")
    await site.event("cycle")
    await lose_one(site)
    await site.event("disassociated", "dead", seconds=60)
    await site.event("cycle", disassociated=1)


async def test_without_the_canary_the_last_device_cannot_be_missed(make_site: MakeSite, tmp_path: Path) -> None:
    """Without the canary nothing vouches once the only device is silent, until the logged JSON is deployed."""
    site = await make_site(recipe=recipe_without(tmp_path, PUBSUB, PUBLISH, CANARY), presence=False)
    await lose_one(site, telemetry_seconds=0.2)
    await site.event("held", guard="source:messages")

    await site.stay()

    assert not site.of_type("marked")
    assert site.associated == {"dead", "never-seen"}

    await grant(site, "PublishToTopic", "pruner-canary/telemetry")
    gone = await site.event("disassociated", "dead")
    assert gone["proof"] == "habit"


async def test_without_iot_core_the_cloud_hears_no_event(make_site: MakeSite, tmp_path: Path) -> None:
    """Without publishing to AWS IoT Core events stay on the core, and everything else goes on."""
    site = await make_site(recipe=recipe_without(tmp_path, MQTT_PROXY, PUBLISH_TO_IOT_CORE, OWN))
    reports = {"iotCoreTopic": "client-device-pruner/{thingName}/events"}
    await lose_one(site, reports=reports)
    await site.event("disassociated", "dead")

    topic = "client-device-pruner/core-1/events"
    assert topic not in {message.topic for message in site.core.iot_core}

    await grant(site, "PublishToIoTCore", topic)
    (message, *_) = await site.until(lambda: [m for m in site.core.iot_core if m.topic == topic])
    assert json.loads(message.payload)["specversion"] == "1.0"


async def test_without_the_shadow_the_fleet_knows_nothing(make_site: MakeSite, tmp_path: Path) -> None:
    """Without publishing to the shadow's topic it is not written, and everything else goes on."""
    site = await make_site(recipe=recipe_without(tmp_path, MQTT_PROXY, PUBLISH_TO_IOT_CORE, SHADOW))
    await lose_one(site)
    await site.event("disassociated", "dead")

    topic = "$aws/things/core-1/shadow/name/client-device-pruner/update"
    assert topic not in {message.topic for message in site.core.iot_core}

    await grant(site, "PublishToIoTCore", topic)
    (message, *_) = await site.until(lambda: [m for m in site.core.iot_core if m.topic == topic])
    assert json.loads(message.payload)["state"]["reported"]["version"]


async def test_without_a_prefix_each_topic_needs_what_the_log_offers(make_site: MakeSite) -> None:
    """An empty inboundPrefix: topics are subscribed to as they are, each refused until its logged JSON is deployed."""
    site = await make_site()
    mapping = {name: {k: v for k, v in entry.items() if v != INBOUND} for name, entry in MAPPING.items()}
    await site.core.deploy({BRIDGE: {"merge": {"mqttTopicMapping": mapping}}})
    site.core.cloud.associate("dead", "never-seen")
    sources = {**TRIAL["sources"], "messages": {"maxQuiet": "2s", "canaryTopic": ""}}
    await site.core.deploy({COMPONENT: {"merge": {**TRIAL, "inboundPrefix": "", "sources": sources}}})
    emqx = DEFAULTS["sources"]["emqx"]
    topics = [emqx[key] for key in ("connectedTopic", "disconnectedTopic", "countTopic", "uptimeTopic")]
    for topic in (*topics, "clients/+/#"):
        await grant(site, "SubscribeToTopic", topic)
    await site.event("cycle")

    await site.devices.connect("dead", process="dead")
    await site.event("released", guard="source:emqx")
    await site.devices.kill("dead")
    await site.event("disassociated", "dead", seconds=60)
    await site.until(lambda: not any("permission" in found["finding"] for found in site.status()["doctor"]))


async def lose_one(site: Site, telemetry_seconds: float | None = None, **settings: Any) -> None:
    """Associate two devices, one of which is never seen, and connect and kill the other."""
    site.core.cloud.associate("dead", "never-seen")
    await site.deploy(**settings)
    await site.until(lambda: len(site.operations(LIST)) >= 2)
    await site.devices.connect("dead", process="dead", telemetry_seconds=telemetry_seconds)
    if telemetry_seconds:
        # Heard over a quarter of its threshold, and more than five times.
        rows = "SELECT * FROM devices, json_each(devices.habits) AS h WHERE json_extract(h.value, '$[0]') > 7"
        await site.until(lambda: site.rows(rows))
    else:
        await site.until(lambda: site.heard.get("dead"))
        listed = len(site.operations(LIST))
        await site.until(lambda: len(site.operations(LIST)) >= listed + 3)
    await site.devices.kill("dead")


async def grant(site: Site, operation: str, resource: str) -> None:
    """Deploy the JSON that the log offers for what was refused, as it stands there."""
    refused = await site.logged("Greengrass refused a call", operation=operation, resource=resource)
    assert refused["level"] == "ERROR"
    assert "Unauthorized" in refused["error"]
    await site.core.deploy({COMPONENT: {"merge": json.loads(refused["remedy"])}})


def recipe() -> dict[str, Any]:
    """The component's recipe."""
    document: dict[str, Any] = yaml.safe_load((REPOSITORY / "recipe.yaml").read_text("utf-8"))
    return document


def access_control(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A recipe's policies, by service and id."""
    policies: dict[str, dict[str, Any]] = document["ComponentConfiguration"]["DefaultConfiguration"]["accessControl"]
    return policies


def recipe_without(directory: Path, service: str, policy_id: str, resource: str) -> Path:
    """A copy of the recipe from which one resource of one policy is removed; an empty policy goes with it."""
    document = recipe()
    policies = access_control(document)[service]
    policies[policy_id]["resources"].remove(resource)
    if not policies[policy_id]["resources"]:
        del policies[policy_id]
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return path
