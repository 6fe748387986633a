"""The doctor names what keeps the component from hearing or harms the site, with the JSON that puts it right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from client_device_pruner.config.bridge import (
    bridge_client_id,
    diagnose,
    message_filters,
    missing_inputs,
    required_entries,
)
from client_device_pruner.config.finding import Finding
from client_device_pruner.config.settings import Settings, parse
from fuzz.anything import nearly
from local_core.recipe import merge

IN = "client-device-pruner/in/"
DEFAULTS = parse({"presence": {"clientList": {"url": ""}}})
EMQX: dict[str, Any] = {"dockerOptions": "-p 8883:8883"}
Mapping = dict[str, Any]


def entry(topic: str, source: str = "LocalMqtt", target: str = "Pubsub", prefix: str = IN) -> Mapping:
    """An entry of the bridge."""
    document = {"topic": topic, "source": source, "target": target}
    return document | ({"targetTopicPrefix": prefix} if prefix else {})


CONTRACT: Mapping = {
    "PrunerClients": entry("$SYS/brokers/+/clients/#"),
    "PrunerCount": entry("$SYS/brokers/+/stats/live_connections/count"),
    "PrunerUptime": entry("$SYS/brokers/+/uptime"),
    "PrunerMessages": entry("clients/+/telemetry"),
    "PrunerProbe": entry("pruner-probe/+", "Pubsub", "LocalMqtt", ""),
    "PrunerProbeBack": entry("pruner-probe/+"),
}
MOQUETTE = {key: CONTRACT[key] for key in ("PrunerMessages", "PrunerProbe", "PrunerProbeBack")}


def found(mapping: Any, emqx: Mapping | None = EMQX, settings: Settings = DEFAULTS, **rest: Any) -> tuple[Finding, ...]:
    """Diagnose a mapping."""
    return diagnose(settings, {"mqttTopicMapping": mapping, **rest}, emqx, lite=False)


def merged(mapping: Mapping, remedy: str) -> Mapping:
    """Apply a remedy as a deployment does."""
    return merge(mapping, json.loads(remedy)["mqttTopicMapping"])


def without(*keys: str) -> Mapping:
    """The contract's mapping without some entries."""
    return {key: value for key, value in CONTRACT.items() if key not in keys}


def cloud(topic: str) -> Mapping:
    """An entry to AWS IoT Core."""
    return entry(topic, target="IotCore", prefix="")


@pytest.mark.parametrize(
    "mapping",
    [
        CONTRACT,
        without("PrunerClients", "PrunerCount", "PrunerUptime") | {"All": entry("$SYS/#")},
        without("PrunerMessages") | {"Mine": entry("clients/+/#")},
        without("PrunerMessages") | {"Mine": entry("clients/pump-7/#")},
        CONTRACT | {"Cloud": cloud("clients/+/telemetry")},
        CONTRACT | {"Other": entry("plant/#", "IotCore", "LocalMqtt", "")},
        CONTRACT | {"A": cloud("plant/#"), "B": entry("plant/x", prefix="")},
    ],
)
def test_what_will_do(mapping: Mapping) -> None:
    """The contract's mapping, other keys and wider filters, and entries that mind their own business."""
    assert found(mapping) == found(mapping, mqtt={"version": "mqtt5"}) == ()
    assert missing_inputs(DEFAULTS, {"mqttTopicMapping": mapping}) == frozenset()
    assert required_entries(DEFAULTS) == CONTRACT
    assert found(MOQUETTE, emqx=None) == (), "without EMQX nothing of it is asked for"


@pytest.mark.parametrize("mapping", [{}, None, ["clients/#"]])
def test_an_empty_mapping(mapping: Any) -> None:
    """The remedy is the contract's mapping: with Moquette, without what only EMQX publishes."""
    (finding,) = found(mapping)
    assert merged({}, finding.remedy) == CONTRACT
    (finding,) = found(mapping, emqx=None)
    assert merged({}, finding.remedy) == MOQUETTE
    assert missing_inputs(DEFAULTS, {}) == {"clients", "count"}


@pytest.mark.parametrize("key", CONTRACT)
def test_one_entry_is_missing_or_goes_elsewhere(key: str) -> None:
    """Only what is missing is to be pasted, which puts a wrong entry right as well."""
    (finding,) = found(without(key))
    assert json.loads(finding.remedy) == {"mqttTopicMapping": {key: CONTRACT[key]}}
    wrong = CONTRACT | {key: CONTRACT[key] | {"target": "IotCore"}}
    (finding, *_) = found(wrong)
    assert found(merged(wrong, finding.remedy)) == ()
    expected = {"PrunerClients": {"clients"}, "PrunerCount": {"count"}}.get(key, set())
    for mapping in (without(key), wrong):
        assert missing_inputs(DEFAULTS, {"mqttTopicMapping": mapping}) == expected
    off = {"connectionEvents": False, "messageTopics": [], "clientList": {"url": ""}}
    assert bool(found(without(key), settings=parse({"presence": off}))) is key.startswith("PrunerProbe")


def test_each_topic_has_its_key() -> None:
    """What else the devices publish is mapped beside the usual."""
    settings = parse({"presence": {"messageTopics": ["clients/+/#", "plant/+/state"], "clientList": {"url": ""}}})
    (finding,) = found(CONTRACT, settings=settings)
    assert json.loads(finding.remedy)["mqttTopicMapping"] == {"PrunerMessages2": entry("plant/+/state")}


def test_which_filters_feed_the_messages() -> None:
    """Those of the bridge's entries that lead here."""
    mapping = CONTRACT | {"More": entry("clients/+/state"), "Cloud": cloud("clients/+/x")}
    assert message_filters(DEFAULTS, {"mqttTopicMapping": mapping}) == {"clients/+/telemetry", "clients/+/state"}
    assert message_filters(DEFAULTS, None) == missing_inputs(DEFAULTS, None) == frozenset()


def test_the_bridge_s_client_id_is_a_glob() -> None:
    """The configured one to the letter, else the bridge's default."""
    assert bridge_client_id(None) == bridge_client_id({"clientId": None}) == "mqtt-bridge-*"
    assert bridge_client_id({"clientId": "plant[1]"}) == "plant[[]1]"


def test_a_core_without_a_bridge() -> None:
    """A core is told to deploy it, with the mapping; Greengrass Lite what a publisher has to do (case 31)."""
    (finding,) = diagnose(DEFAULTS, None, EMQX, lite=False)
    assert json.loads(finding.remedy[finding.remedy.index("{") :])["mqttTopicMapping"] == CONTRACT
    (finding,) = diagnose(DEFAULTS, None, None, lite=True)
    assert "mqttTopicMapping" not in finding.remedy
    assert "client-device-pruner/in/pruner-probe/heartbeat" in finding.remedy


def test_entries_left_over_for_the_same_topics() -> None:
    """Case 34: entries that carry the same messages here are named, also together with what is missing."""
    old = {"PrunerConnected": entry("$SYS/brokers/+/clients/+/connected"), "MyCount": CONTRACT["PrunerCount"]}
    findings = found(CONTRACT | old)
    assert [finding.remedy.startswith("Remove one of them") for finding in findings] == [True, True]
    assert "PrunerClients" in findings[0].finding
    assert "PrunerConnected" in findings[0].finding
    missing, *doubled = found(without("PrunerClients") | old)
    assert json.loads(missing.remedy) == {"mqttTopicMapping": {"PrunerClients": CONTRACT["PrunerClients"]}}
    assert len(doubled) == 2


@pytest.mark.parametrize("site", ["clients/#", "clients/+/#", "clients/pump-7/telemetry"])
def test_our_filter_doubles_the_site_s(site: str) -> None:
    """Case 34: EMQX alone sends twice what two filters match; the same topic for both is the remedy."""
    mapping = CONTRACT | {"Cloud": cloud(site)}
    (finding,) = found(mapping)
    assert finding.remedy.startswith("Give both the same topic")
    assert found(mapping | {"PrunerMessages": entry(site)}) == ()
    assert found({key: mapping[key] for key in (*MOQUETTE, "Cloud")}, emqx=None) == ()


@pytest.mark.parametrize("topic", ["#", "+/#", "$SYS/#", "+/brokers/#", "+/+/+/uptime"])
def test_a_wide_entry_to_the_cloud(topic: str) -> None:
    """A LocalMqtt filter that fits `$SYS` topics carries them to AWS IoT Core."""
    wide = [one for one in found(CONTRACT | {"Up": cloud(topic)}) if "$SYS messages" in one.finding]
    assert len(wide) == 1
    assert "Up" in wide[0].remedy
    assert found(CONTRACT | {"Up": cloud("plant/+/state")}) == ()


def test_an_entry_of_ours_that_the_bridge_cannot_use() -> None:
    """A wrong type or case is as good as a missing entry."""
    for change in ({"target": "PubSub"}, {"topic": 5}, {"targetTopicPrefix": 5}, {"source": ["LocalMqtt"]}):
        mapping = CONTRACT | {"PrunerCount": CONTRACT["PrunerCount"] | change}
        (finding,) = found(mapping)
        assert found(merged(mapping, finding.remedy)) == ()


@given(nearly(CONTRACT))
def test_any_mapping_is_diagnosed(mapping: Any) -> None:
    """Whatever the bridge's configuration is, each finding has JSON to paste or a sentence."""
    for finding in found(mapping):
        assert finding.finding
        if finding.remedy.startswith("{"):
            assert json.loads(finding.remedy)["mqttTopicMapping"]
        else:
            assert finding.remedy.endswith(".")
