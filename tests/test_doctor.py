"""The doctor names what keeps the component blind or harms the site, with the JSON that puts it right."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.doctor import Finding, diagnose, required_entries
from client_device_pruner.settings import parse

PREFIX = "client-device-pruner/in/"
DEFAULTS = parse({})
NO_EVENTS = parse({"sources": {"emqx": {"enabled": False}}})
Mapping = dict[str, Any]


def entry(topic: str, source: str = "LocalMqtt", target: str = "Pubsub", prefix: str = PREFIX) -> Mapping:
    """Make an entry of the bridge."""
    return {"topic": topic, "source": source, "target": target, "targetTopicPrefix": prefix}


CONTRACT: Mapping = {
    "PrunerConnected": entry("$SYS/brokers/+/clients/+/connected"),
    "PrunerDisconnected": entry("$SYS/brokers/+/clients/+/disconnected"),
    "PrunerCount": entry("$SYS/brokers/+/stats/live_connections/count"),
    "PrunerUptime": entry("$SYS/brokers/+/uptime"),
    "PrunerMessages": entry("clients/+/telemetry"),
    "PrunerCanary": entry("pruner-canary/+", "Pubsub", "LocalMqtt", "clients/"),
}


def found(mapping: Any, settings: Any = DEFAULTS, **rest: Any) -> tuple[Finding, ...]:
    """Diagnose a mapping."""
    return diagnose({"mqttTopicMapping": mapping, **rest}, settings)


def merged(mapping: Mapping, remedy: str) -> Mapping:
    """Apply a remedy as a deployment does, which merges maps by key."""
    result = copy.deepcopy(mapping)
    for key, change in json.loads(remedy)["mqttTopicMapping"].items():
        result[key] = {**(result[key] if isinstance(result.get(key), dict) else {}), **change}
    return result


def cured(mapping: Mapping, settings: Any = DEFAULTS) -> Mapping:
    """Apply all remedies, after which nothing is to be found."""
    result = mapping
    for finding in found(mapping, settings):
        result = merged(result, finding.remedy)
    assert found(result, settings) == ()
    return result


def without(*keys: str) -> Mapping:
    """Make the contract's mapping without some entries."""
    return {key: value for key, value in CONTRACT.items() if key not in keys}


# --- what is right ------------------------------------------------------------------------------------------


def test_the_contract_mapping_has_nothing_wrong() -> None:
    """With default settings the contract's mapping is what is required."""
    assert found(CONTRACT) == ()
    assert required_entries(DEFAULTS) == CONTRACT


@pytest.mark.parametrize(
    "mapping",
    [
        without("PrunerConnected", "PrunerDisconnected") | {"Events": entry("$SYS/brokers/+/clients/+/+")},
        without("PrunerConnected", "PrunerDisconnected", "PrunerCount", "PrunerUptime") | {"All": entry("$SYS/#")},
        without("PrunerMessages") | {"Mine": entry("clients/+/#")},
        CONTRACT | {"Cloud": entry("clients/+/telemetry", target="IotCore", prefix="")},
        CONTRACT | {"Other": {"topic": "plant/#", "source": "IotCore", "target": "LocalMqtt"}},
        CONTRACT
        | {
            "ShadowsUp": entry("$aws/things/+/shadow/#", prefix=""),
            "ShadowsDown": entry("$aws/things/+/shadow/#", "Pubsub", "LocalMqtt", ""),
        },
    ],
)
def test_what_does_as_well(mapping: Mapping) -> None:
    """Filters that cover a topic, part of an activity topic, and entries that mind their own business."""
    assert found(mapping) == ()


def test_nothing_is_required_of_the_bridge_without_sources() -> None:
    """With all sources off, an unreadable bridge is no finding."""
    off = parse({"sources": {"emqx": {"enabled": False}, "messages": {"enabled": False}}})
    assert diagnose(None, off) == diagnose({}, off) == ()
    assert required_entries(off) == {}


# --- blindness ----------------------------------------------------------------------------------------------


def test_a_bridge_that_cannot_be_read() -> None:
    """The whole mapping is given."""
    (finding,) = diagnose(None, DEFAULTS)
    assert json.loads(finding.remedy)["mqttTopicMapping"] == CONTRACT


def test_a_mapping_that_is_no_map() -> None:
    """The whole mapping is given."""
    (finding,) = found(["clients/#"])
    assert found(merged({}, finding.remedy)) == ()


@pytest.mark.parametrize("mapping", [{}, None])
def test_an_empty_mapping(mapping: Mapping | None) -> None:
    """Each source that hears nothing is named, and the remedies together make the contract's mapping."""
    findings = found(mapping)
    assert len(findings) == 3
    assert cured({}) == CONTRACT


@pytest.mark.parametrize("key", ["PrunerConnected", "PrunerDisconnected", "PrunerCount", "PrunerUptime"])
def test_one_entry_is_missing(key: str) -> None:
    """Only what is missing is to be pasted."""
    (finding,) = found(without(key))
    assert f"{key} is missing" in finding.finding
    assert json.loads(finding.remedy) == {"mqttTopicMapping": {key: CONTRACT[key]}}
    assert cured(without(key)) == CONTRACT


def test_an_unmapped_emqx_says_what_it_costs_and_how_to_silence_it() -> None:
    """A broker without events is legitimate, and somebody may have forgotten all four."""
    mapping = {key: CONTRACT[key] for key in ("PrunerMessages", "PrunerCanary")}
    (finding,) = found(mapping)
    assert "not pruned" in finding.finding
    assert "sources.emqx.enabled" in finding.finding
    assert cured(mapping) == CONTRACT
    assert found(mapping, NO_EVENTS) == ()


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("PrunerConnected", {"targetTopicPrefix": ""}),
        ("PrunerConnected", {"targetTopicPrefix": "elsewhere/"}),
        ("PrunerCount", {"target": "IotCore"}),
        ("PrunerUptime", {"source": "IotCore"}),
        ("PrunerDisconnected", {"topic": "$SYS/brokers/node/clients/+/disconnected"}),
        ("PrunerMessages", {"topic": "devices/+/telemetry"}),
        ("PrunerMessages", {"targetTopicPrefix": "elsewhere/"}),
    ],
)
def test_an_entry_differs(key: str, change: dict[str, str]) -> None:
    """What differs is named, and put right."""
    mapping = CONTRACT | {key: CONTRACT[key] | change}
    finding = found(mapping)[0]
    (field,) = change
    assert f"{key} has {field}" in finding.finding
    assert list(json.loads(finding.remedy)["mqttTopicMapping"]) == [key]
    assert cured(mapping) == CONTRACT


def test_an_absent_prefix_is_an_empty_one() -> None:
    """Without an inbound prefix the entries need none, and one that is there is taken away."""
    settings = parse({"inboundPrefix": ""})
    bare = {key: {k: v for k, v in value.items() if v != PREFIX} for key, value in CONTRACT.items()}
    assert found(bare, settings) == ()
    assert found(cured(CONTRACT, settings), settings) == ()


def test_a_fitting_filter_of_the_site_is_used() -> None:
    """The entry to paste has the very filter that the site uses, so that EMQX doubles nothing."""
    cloud = entry("clients/+/data", target="IotCore", prefix="")
    mapping = without("PrunerMessages") | {"Cloud": cloud, "One": entry("clients/plc/x", target="IotCore")}
    missing = found(mapping)[0]
    assert json.loads(missing.remedy)["mqttTopicMapping"]["PrunerMessages"]["topic"] == "clients/+/data"


def test_further_sources_have_their_own_keys() -> None:
    """Keys are made of the sources' names."""
    settings = parse(
        {
            "sources": {
                "births": {"type": "activity", "topic": "births/+"},
                "south": {"type": "emqx", "connectedTopic": "s/+/+/up", "disconnectedTopic": "s/+/+/down"},
                "count": {"type": "activity", "topic": "c/+/n", "canaryTopic": ""},
            }
        }
    )
    required = required_entries(settings)
    assert required["PrunerBirths"] == entry("births/+")
    assert required["PrunerBirthsCanary"] == entry("pruner-canary/+", "Pubsub", "LocalMqtt", "births/")
    assert required["PrunerSouthConnected"] == entry("s/+/+/up")
    assert required["PrunerCountSource"] == entry("c/+/n")
    assert required["PrunerCount"] == CONTRACT["PrunerCount"]
    assert "PrunerCountCanary" not in required


# --- the canary ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "canary",
    [
        None,
        CONTRACT["PrunerCanary"] | {"targetTopicPrefix": ""},
        CONTRACT["PrunerCanary"] | {"targetTopicPrefix": "devices/"},
        CONTRACT["PrunerCanary"] | {"target": "IotCore"},
        CONTRACT["PrunerCanary"] | {"topic": "canary/+"},
    ],
)
def test_a_canary_that_does_not_get_to_the_broker(canary: Mapping | None) -> None:
    """Its entry is missing, or takes it elsewhere."""
    mapping = without("PrunerCanary") | ({"PrunerCanary": canary} if canary else {})
    (finding,) = found(mapping)
    assert "canary" in finding.finding
    assert cured(mapping) == CONTRACT


@pytest.mark.parametrize(
    ("topic", "canary", "better"),
    [
        ("clients/+/data", "pruner-canary/telemetry", "pruner-canary/data"),
        ("clients/+/#", "canary/telemetry", "pruner-canary/telemetry"),
        ("+/state", "pruner-canary/telemetry", "pruner-canary/state"),
        ("a/b/+/+/x", "pruner-canary/telemetry", "pruner-canary/canary/x"),
        ("a/+", "pruner-canary/telemetry", "pruner-canary"),
    ],
)
def test_a_canary_that_does_not_fit_the_topic(topic: str, canary: str, better: str) -> None:
    """A canary topic is proposed that comes back through the source's entry, once that is taken over."""

    def settings_with(canary_topic: str) -> Any:
        messages = {"topic": topic, "canaryTopic": canary_topic}
        return parse({"sources": {"emqx": {"enabled": False}, "messages": messages}})

    mapping = {"PrunerMessages": entry(topic)}
    (finding,) = found(mapping, settings_with(canary))
    assert f'canaryTopic of this component to "{better}"' in finding.remedy
    cured(mapping, settings_with(better))


def test_a_thing_name_below_the_levels_of_another_canary() -> None:
    """What passes through the filter and has no level for a thing name is no canary of it (found by fuzzing)."""
    deep = {"messages": {"topic": "#", "thingNameLevel": 9}, "more": {"type": "activity"}}
    settings = parse({"sources": deep})
    assert any("messages" in finding.finding for finding in found(CONTRACT, settings))
    found(required_entries(settings), settings)


def test_a_canary_that_the_bridge_does_not_hear() -> None:
    """With noLocal, which only an MQTT 5 bridge has, it does not come back."""
    options = {"PrunerMessages": {"noLocal": True}}
    (finding,) = found(CONTRACT, mqtt={"version": "mqtt5"}, mqtt5RouteOptions=options)
    assert "noLocal" in finding.remedy
    assert found(CONTRACT, mqtt={"version": "mqtt3"}, mqtt5RouteOptions=options) == ()


def test_a_source_without_a_canary_needs_no_entry_for_it() -> None:
    """An empty canaryTopic asks for nothing."""
    settings = parse({"sources": {"messages": {"canaryTopic": ""}}})
    assert found(without("PrunerCanary"), settings) == ()
    assert "PrunerCanary" not in required_entries(settings)


@pytest.mark.parametrize(
    ("topic", "level"),
    [
        *((topic, level) for topic in ("#", "+/#", "/+/#", "a/#", "a/+/+/b/#", "+/+/x") for level in (0, 1, 2)),
        ("+", 0),
        ("+", None),
        ("a/+/+/b/#", None),
    ],
)
@pytest.mark.parametrize("canary", ["", "pruner-canary", "pruner-canary/telemetry", "x/y/z"])
def test_what_is_required_is_enough(topic: str, level: int | None, canary: str) -> None:
    """For any source, all that can be found in the required mapping is a canary that does not fit."""
    messages = {"topic": topic, "canaryTopic": canary, "thingNameLevel": level}
    settings = parse({"sources": {"messages": messages}})
    findings = found(required_entries(settings), settings)
    assert all("canaryTopic of this component" in finding.remedy for finding in findings)
    assert not findings or canary


# --- malformed entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"target": "PubSub"},
        {"source": "localmqtt"},
        {"target": "Local"},
        {"topic": 5},
        {"targetTopicPrefix": 5},
    ],
)
def test_an_entry_of_ours_that_the_bridge_cannot_use(change: Mapping) -> None:
    """A wrong type or case is named once, with the entry put right."""
    mapping = CONTRACT | {"PrunerCount": CONTRACT["PrunerCount"] | change}
    (finding,) = found(mapping)
    assert "PrunerCount" in finding.finding
    assert cured(mapping) == CONTRACT


def test_an_entry_of_the_site_that_the_bridge_cannot_use() -> None:
    """Case is put right in JSON, the rest in words."""
    (cased,) = found(CONTRACT | {"Mine": entry("plant/x", target="iotcore", prefix="")})
    assert json.loads(cased.remedy)["mqttTopicMapping"]["Mine"]["target"] == "IotCore"
    for broken in ("plant/#", {"topic": "a/#/b"}, entry("plant/x", target="cloud")):
        (finding,) = found(CONTRACT | {"Mine": broken})
        assert finding.remedy.startswith("Give the entry Mine")


# --- harm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries",
    [
        {"A": entry("x/y", "Pubsub", "LocalMqtt", ""), "B": entry("x/y", prefix="")},
        {"A": entry("x/y", "Pubsub", "LocalMqtt", ""), "B": entry("x/+", prefix="")},
        {"A": entry("x/#", "IotCore", "LocalMqtt", ""), "B": entry("x/#", target="IotCore", prefix="")},
        {"A": entry("x/#", "IotCore", "LocalMqtt", "x/"), "B": entry("x/#", target="IotCore", prefix="x/")},
        {"A": entry("x/#", target="LocalMqtt", prefix="x/")},
        {
            "A": entry("x/y", target="IotCore", prefix=""),
            "B": entry("x/y", "IotCore", "Pubsub", ""),
            "C": entry("x/y", "Pubsub", "LocalMqtt", ""),
        },
    ],
)
def test_entries_that_loop(entries: Mapping) -> None:
    """Entries that get back what they send are named, once for each circle."""
    (finding,) = found(CONTRACT | entries)
    assert all(key in finding.finding for key in entries)
    last = max(entries)
    better = {key: value | {"targetTopicPrefix": "up/"} if key == last else value for key, value in entries.items()}
    assert found(CONTRACT | better) == ()


@pytest.mark.parametrize(
    "entries",
    [
        {"A": entry("x/+", "Pubsub", "LocalMqtt", ""), "B": entry("x/+", prefix="")},
        {"A": entry("x/y", "Pubsub", "LocalMqtt", "down/"), "B": entry("x/y", prefix="up/")},
        {"A": entry("x/y", "IotCore", "LocalMqtt", ""), "B": entry("x/z", target="IotCore", prefix="")},
    ],
)
def test_entries_that_do_not_loop(entries: Mapping) -> None:
    """A wildcard Pubsub entry is not given the bridge's own messages, and prefixes lead away."""
    assert found(CONTRACT | entries) == ()


def test_no_local_breaks_a_loop() -> None:
    """An MQTT 5 bridge with noLocal does not hear itself."""
    entries = {"A": entry("x/#", "IotCore", "LocalMqtt", ""), "B": entry("x/#", target="IotCore", prefix="")}
    assert found(CONTRACT | entries, mqtt={"version": "mqtt5"}, mqtt5RouteOptions={"B": {"noLocal": True}}) == ()


@pytest.mark.parametrize("topic", ["#", "+/#", "$SYS/#", "+/brokers/#", "+/+/+/uptime"])
def test_a_wide_entry_to_the_cloud(topic: str) -> None:
    """A LocalMqtt filter that fits `$SYS` topics carries them to AWS IoT Core."""
    mapping = CONTRACT | {"Up": entry(topic, target="IotCore", prefix="")}
    wide = [finding for finding in found(mapping) if "$SYS messages" in finding.finding]
    assert len(wide) == 1
    assert "Up" in wide[0].remedy
    assert found(CONTRACT | {"Up": entry("plant/#", target="IotCore", prefix="")}) == ()


def test_a_wide_entry_is_told_without_events_too() -> None:
    """Other components may subscribe to `$SYS` as well."""
    mapping = {key: CONTRACT[key] for key in ("PrunerMessages", "PrunerCanary")}
    (finding,) = found(mapping | {"Up": entry("#", target="IotCore", prefix="")}, NO_EVENTS)
    assert "Up" in finding.remedy


def test_our_filter_doubles_the_site_s() -> None:
    """Ours becomes the site's."""
    mapping = CONTRACT | {
        "PrunerMessages": entry("clients/+/#"),
        "Cloud": entry("clients/+/telemetry", target="IotCore", prefix=""),
    }
    (finding,) = found(mapping)
    assert "overlap" in finding.finding
    assert cured(mapping)["PrunerMessages"] == CONTRACT["PrunerMessages"]


def test_filters_of_the_site_that_double() -> None:
    """Entries that are not ours are the site's to change, and only EMQX doubles."""
    site = {"A": entry("plant/#", target="IotCore", prefix=""), "B": entry("plant/x", prefix="")}
    (finding,) = found(CONTRACT | site)
    assert finding.remedy.startswith("Give A and B the same topic")
    few = {key: CONTRACT[key] for key in ("PrunerMessages", "PrunerCanary")}
    assert found(few | site, NO_EVENTS) == ()


# --- robustness ---------------------------------------------------------------------------------------------

FIELDS: st.SearchStrategy[Any] = st.sampled_from(
    ["LocalMqtt", "Pubsub", "IotCore", "pubsub", "a/+", "#", "", PREFIX, 5, None, ["a"], {}]
)
ENTRIES = FIELDS | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("topic", "source", "target", "targetTopicPrefix"), FIELDS)
)
KEYS = st.sampled_from([*CONTRACT, "Mine", ""])


@given(st.dictionaries(KEYS, ENTRIES), FIELDS | st.dictionaries(KEYS, FIELDS | st.just({"noLocal": []})))
def test_any_mapping_is_diagnosed(mapping: Mapping, options: Any) -> None:
    """Whatever the bridge's configuration is, each finding has JSON to paste or a sentence."""
    for finding in found(mapping, mqtt={"version": "mqtt5"}, mqtt5RouteOptions=options):
        assert finding.finding
        if finding.remedy.startswith("{"):
            assert json.loads(finding.remedy)["mqttTopicMapping"]
        else:
            assert finding.remedy.endswith(".")


def test_a_large_mapping_is_diagnosed_in_time() -> None:
    """The search for loops is bounded."""
    many = {
        f"E{n}": entry(f"t{n}/#" if n % 2 else "#", *ends, prefix=f"p{n}/")
        for n, ends in enumerate([("IotCore", "LocalMqtt"), ("LocalMqtt", "IotCore")] * 40)
    }
    assert found(many)
