"""A configuration document is read whole, or refused with every problem that it has."""

import copy
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from client_device_pruner.settings import (
    DEFAULTS,
    ActivitySource,
    EmqxSource,
    SettingsRefused,
    format_duration,
    parse,
    parse_duration,
)

RECIPE = Path(__file__).parent.parent / "recipe.yaml"
SHORT = {"allowShortDurations": True}


def problems_of(document: object) -> tuple[str, ...]:
    """Give the problems for which a document is refused."""
    with pytest.raises(SettingsRefused) as refused:
        parse(document)
    return refused.value.problems


def refusals(document: object) -> tuple[str, ...]:
    """Give the problems of a document, none if it is accepted."""
    try:
        parse(document)
    except SettingsRefused as refused:
        return refused.problems or ("refused without a reason",)
    return ()


def paths_of(document: object) -> list[str]:
    """Give the paths of the problems of a document."""
    return [problem.partition(": ")[0] for problem in problems_of(document)]


def at(path: str, value: object) -> dict[str, Any]:
    """Make a document with one value at a dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def all_paths(document: Mapping[str, Any], start: str = "") -> Iterator[str]:
    """Give the path of every key of a document."""
    for key, value in document.items():
        yield start + key
        if isinstance(value, Mapping):
            yield from all_paths(value, f"{start}{key}.")


# --- defaults -----------------------------------------------------------------------------------------------


def test_an_empty_document_means_the_defaults() -> None:
    """Absent, null and the defaults written out are the same."""
    nulls = dict.fromkeys(DEFAULTS) | {"limits": {"maxPerCycle": None}, "sources": {"emqx": None}}
    assert parse({}) == parse(None) == parse(DEFAULTS) == parse(nulls)


def test_the_defaults_are_those_of_the_recipe() -> None:
    """The recipe's DefaultConfiguration, without the nucleus' accessControl, is DEFAULTS."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    configuration = recipe["ComponentConfiguration"]["DefaultConfiguration"]
    assert parse(configuration) == parse({})
    assert {key: value for key, value in configuration.items() if key != "accessControl"} == dict(DEFAULTS)


def test_what_the_defaults_are() -> None:
    """The contract's figures, in seconds."""
    settings = parse({})
    assert settings.offline_threshold_seconds == 30 * 86400
    assert settings.notice_seconds == 86400
    assert settings.check_interval_seconds == 6 * 3600
    assert (settings.limits.max_per_cycle, settings.limits.max_percent_per_day) == (100, 10)
    assert settings.limits.approval_percent == 50
    assert (settings.mass_loss.window_seconds, settings.mass_loss.min_devices) == (600, 3)
    assert settings.roll_call is None
    assert settings.never_seen_seconds is None
    assert settings.scale == 1
    emqx, messages = settings.sources
    assert isinstance(emqx, EmqxSource)
    assert (emqx.name, emqx.max_quiet_seconds, emqx.thing_name_level) == ("emqx", 180, 4)
    assert isinstance(messages, ActivitySource)
    assert (messages.topic, messages.max_quiet_seconds, messages.thing_name_level) == ("clients/+/#", 3600, 1)
    assert settings.subscriptions() == ("client-device-pruner/in/#",)


def test_scalars_of_greengrass_lite_are_texts() -> None:
    """Every scalar as a string means the same as the scalar."""

    def stringed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: stringed(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [stringed(inner) for inner in value]
        return value if isinstance(value, str) else json.dumps(value)

    document = dict(DEFAULTS) | {"dryRun": True, "limits": {"maxPerCycle": 7, "approvalPercent": 12.5}}
    assert parse(stringed(document)) == parse(document)
    assert parse(at("limits.maxPerCycle", 7.0)) == parse(at("limits.maxPerCycle", "7.0"))
    assert isinstance(parse(at("limits.maxPerCycle", 7.0)).limits.max_per_cycle, int)


# --- problems -----------------------------------------------------------------------------------------------


def test_all_problems_are_told_with_their_paths() -> None:
    """Five mistakes give five messages, each with its path and what to write."""
    problems = problems_of(
        {
            "offlineThreshold": 30,
            "limits": {"maxPerCycle": -1, "maxPercentPerDya": 5},
            "protectedClients": ["gate-*", "a/b"],
            "sources": {"emqx": {"maxQuiet": "5s"}},
        }
    )
    assert {problem.partition(": ")[0] for problem in problems} == {
        "offlineThreshold",
        "limits.maxPerCycle",
        "limits.maxPercentPerDya",
        "protectedClients",
        "sources.emqx.maxQuiet",
    }
    assert len(problems) == 5
    assert all("; write " in problem for problem in problems)
    assert any("maxPercentPerDay" in problem for problem in problems)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("offlineThreshold", "23h"),
        ("offlineThreshold", "3651d"),
        ("offlineThreshold", "-30d"),
        ("offlineThreshold", "30"),
        ("offlineThreshold", "1.5d"),
        ("offlineThreshold", "1h1d"),
        ("offlineThreshold", True),
        ("noticePeriod", "91d"),
        ("checkInterval", "4m"),
        ("checkInterval", "8d"),
        ("checkInterval", "0s"),
        ("dryRun", "yes"),
        ("dryRun", 1),
        ("inboundPrefix", "no/slash"),
        ("inboundPrefix", "a/+/"),
        ("inboundPrefix", "/\0/"),
        ("sources", []),
        ("sources", {"_mine": {"type": "activity"}}),
        ("sources", {"": {"type": "activity"}}),
        ("rollCall.interval", "9s"),
        ("rollCall.keyFile", "relative/key"),
        ("thresholds", [1]),
        ("protectedClients", "gate-1"),
        ("protectedClients", [1]),
        ("protectedClients", ["a.b"]),
        ("protectedClients", ["a[b"]),
        ("protectedClients", ["[]"]),
        ("protectedClients", [""]),
        ("neverSeenThreshold", "1h"),
        ("limits.maxPerCycle", 1.5),
        ("limits.maxPerCycle", True),
        ("limits.maxPerCycle", 1e300),
        ("limits.maxPerCycle", 10**400),
        ("limits.maxPercentPerDay", 101),
        ("limits.maxPercentPerDay", float("nan")),
        ("limits.approvalPercent", float("inf")),
        ("limits", 5),
        ("massLoss.minDevices", 0),
        ("massLoss.window", "5s"),
        ("reports.localTopic", "a/#"),
        ("reports.iotCoreTopic", "a/{thing}"),
        ("reports.shadowName", "a b"),
        ("reports.shadowName", "a" * 65),
        ("approvedPlan", 5),
        ("logLevel", "TRACE"),
    ],
)
def test_what_is_refused(path: str, value: object) -> None:
    """A value out of its bounds or of a wrong type is refused, at its path."""
    (problem,) = problems_of(at(path, value))
    assert problem.startswith(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("offlineThreshold", "1d"),
        ("offlineThreshold", "3650d"),
        ("noticePeriod", "0s"),
        ("checkInterval", "5m"),
        ("inboundPrefix", ""),
        ("neverSeenThreshold", "90d"),
        ("limits.maxPerCycle", 0),
        ("limits.maxPercentPerDay", 0.5),
        ("protectedClients", ["*", "gate-[0-9]?", "[!a-c]:x_"]),
        ("reports.localTopic", ""),
        ("reports.iotCoreTopic", "pruner/{thingName}/events"),
        ("reports.shadowName", ""),
        ("massLoss.window", "10s"),
        ("accessControl", {"aws.greengrass.ipc.pubsub": {}}),
        ("thresholds", {"gateways": {"clients": ["gate-*"], "offlineThreshold": "90d"}, "gone": None}),
    ],
)
def test_what_is_accepted(path: str, value: object) -> None:
    """Bounds are inclusive, and empty texts switch off what can be switched off."""
    parse(at(path, value))


def test_what_is_no_map_is_refused() -> None:
    """A document that is not a map has one problem."""
    assert paths_of([1]) == ["configuration"]


def test_unknown_keys_are_answered_with_the_likely_one() -> None:
    """An unknown key is named with the one that was perhaps meant, in another section too."""
    assert "write offlineThreshold," in problems_of({"offlinethreshold": "40d"})[0]
    assert "write limits.maxPerCycle," in problems_of({"maxPerCycle": 4})[0]
    assert "only url, keyFile, interval" in problems_of(at("rollCall.zzz", 4))[0]


@pytest.mark.parametrize("key", [": x", "a: b", "a:", ":", " a", "a ", ""])
def test_a_key_that_would_blur_its_path_is_quoted(key: str) -> None:
    """Where the path ends and the problem begins is plain, whatever the key is (found by fuzzing)."""
    assert problems_of({key: 1})[0].startswith(f'"{key}": unknown key; ')
    assert problems_of({"a:b c-1@x": 1})[0].startswith("a:b c-1@x: unknown key; ")


def test_names_are_unique_ignoring_case() -> None:
    """Two names that the nucleus would fold into one are refused."""
    rule = {"clients": ["*"], "offlineThreshold": "40d"}
    assert paths_of({"thresholds": {"slow": rule, "Slow": rule}}) == ["thresholds.Slow"]
    assert paths_of({"sources": {"emqx": {}, "EMQX": {}}}) == ["sources.EMQX"]


def test_rules_need_both_keys() -> None:
    """A rule has no defaults."""
    assert paths_of({"thresholds": {"slow": {}}}) == [
        "thresholds.slow.clients",
        "thresholds.slow.offlineThreshold",
    ]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ODD = st.sampled_from(["_x", "\ud800", "1d", "0.5s", "-1", "NaN", "http://[::1", "[z-a]", "1" * 5000, 10**400, -0.0])
JSON = st.recursive(
    SCALARS | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from([*all_paths(DEFAULTS), "thresholds.a", "thresholds.a.clients", "sources.x", "sources.x.type"])


@given(PATHS, JSON)
@example("offlineThreshold", "\ud800")
def test_any_value_at_any_key_is_read_or_refused(path: str, value: object) -> None:
    """Whatever stands at a key, the document is read, or refused in texts that can be encoded."""
    problems = refusals(at(path, value)) + refusals(at(path, value) | SHORT)
    assert all(problem.encode() and ": " in problem for problem in problems)


@given(JSON)
def test_any_document_is_read_or_refused(document: object) -> None:
    """Whatever the document is, it is read or refused."""
    assert all(": " in problem for problem in refusals(document))


def test_a_number_too_long_to_be_written_is_refused() -> None:
    """A number of more digits than Python writes is told without them."""
    assert paths_of(at("limits.maxPerCycle", 10**5000)) == ["limits.maxPerCycle"]


def test_a_deeply_nested_value_is_refused() -> None:
    """Depth is no danger."""
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert paths_of({"dryRun": value, "allowShortDurations": value}) == ["dryRun", "allowShortDurations"]
    while value:  # else its destruction would recurse
        value = value.pop()


# --- durations ----------------------------------------------------------------------------------------------


@given(st.integers(0, 3650 * 86400))
def test_whole_durations_come_back(seconds: int) -> None:
    """A number of seconds that is written is read as the same."""
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 10**9))
def test_short_durations_come_back(milliseconds: int) -> None:
    """Milliseconds come back as well, where decimals are allowed."""
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds), decimals=True) == pytest.approx(seconds, abs=1e-6)


def test_how_durations_are_written() -> None:
    """Largest unit first, none that is zero."""
    written = [format_duration(seconds) for seconds in (0, 0.5, 45, 90, 129600, 3650 * 86400, -60)]
    assert written == ["0s", "0.5s", "45s", "1m30s", "1d12h", "3650d", "-1m"]


@pytest.mark.parametrize("text", ["", "30", "d", "1h1d", "1d1d", "1 d", "1D", "-1d", "1w", "٣d", "1.d", "0.5s", "1d\n"])
def test_what_is_no_duration(text: str) -> None:
    """Anything but whole numbers with units, largest first, is refused."""
    with pytest.raises(ValueError, match="1d12h"):
        parse_duration(text)


def test_short_durations_need_to_be_allowed() -> None:
    """With allowShortDurations lower bounds fall to 100 ms and decimals are read, else not."""
    short = {"offlineThreshold": "0.1s", "checkInterval": "0.5s", "rollCall": {"interval": "1s"}}
    assert paths_of(short) == ["offlineThreshold", "checkInterval", "rollCall.interval"]
    for allow in (True, "true"):
        settings = parse(short | {"allowShortDurations": allow})
        assert settings.offline_threshold_seconds == 0.1
        assert settings.check_interval_seconds == 0.5
    assert paths_of({"offlineThreshold": "0.09s"} | SHORT) == ["offlineThreshold"]
    assert paths_of({"checkInterval": "8d"} | SHORT) == ["checkInterval"]


def test_the_scale_follows_the_quiet_of_emqx() -> None:
    """Fixed times scale with the `emqx` source's maxQuiet, on or off, but only with short durations."""
    quiet = at("sources.emqx.maxQuiet", "1.8s") | SHORT
    assert parse(quiet).scale == pytest.approx(0.01)
    quiet["sources"]["emqx"]["enabled"] = False
    assert parse(quiet).scale == pytest.approx(0.01)
    assert parse(at("sources.emqx.maxQuiet", "18s")).scale == 1


# --- sources ------------------------------------------------------------------------------------------------


def test_sources_are_added_changed_and_switched_off() -> None:
    """A partial document changes a default source; others need a type; enabled: false takes one away."""
    settings = parse(
        {
            "sources": {
                "EMQX": {"enabled": "false"},
                "messages": {"maxQuiet": "2h", "ignoredValues": ["offline"]},
                "births": {"type": "activity", "topic": "spBv1.0/site/DBIRTH/line/+"},
            }
        }
    )
    births, messages = settings.sources
    assert (births.name, births.thing_name_level) == ("births", 4)
    assert isinstance(messages, ActivitySource)
    assert (messages.max_quiet_seconds, messages.ignored_values) == (7200, ("offline",))
    assert messages.topic == "clients/+/#"


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({}, "type"),
        ({"type": "mqtt"}, "type"),
        ({"type": ["emqx"]}, "type"),
        ({"type": "activity", "countTopic": "a"}, "countTopic"),
        ({"type": "activity", "topic": "a/#/b"}, "topic"),
        ({"type": "activity", "topic": "a/b"}, "topic"),
        ({"type": "activity", "topic": "a/b", "thingNameLevel": 2}, "thingNameLevel"),
        ({"type": "activity", "topic": "a/+", "thingNameLevel": -1}, "thingNameLevel"),
        ({"type": "activity", "topic": "a/+", "canaryTopic": "a/+"}, "canaryTopic"),
        ({"type": "activity", "topic": "a/+", "payloadField": "a..b"}, "payloadField"),
        ({"type": "activity", "topic": "a/+", "ignoredValues": [0]}, "ignoredValues"),
        ({"type": "emqx", "connectedTopic": "up/+"}, "connectedTopic"),
        ({"type": "emqx", "connectedTopic": "+/up/+"}, "disconnectedTopic"),
        ({"type": "emqx", "bridgeClientId": ""}, "bridgeClientId"),
    ],
)
def test_what_is_no_source(source: dict[str, Any], key: str) -> None:
    """A source with a problem is refused at the key that has it."""
    assert paths_of({"sources": {"mine": source}}) == [f"sources.mine.{key}"]


def test_a_default_source_keeps_its_type() -> None:
    """Its other keys come from the recipe, and would not fit."""
    assert paths_of(at("sources.emqx.type", "activity")) == ["sources.emqx.type"]


def test_the_thing_name_level_can_be_given() -> None:
    """It overrides the `+`, below a `#` too."""
    given = {"type": "activity", "topic": "a/#", "thingNameLevel": "2"}
    assert parse({"sources": {"a": given}}).sources[0].thing_name_level == 2
    single = {
        "type": "emqx",
        "connectedTopic": "up/+",
        "disconnectedTopic": "down/+",
        "thingNameLevel": 1,
    }
    assert parse({"sources": {"a": single}}).sources[0].thing_name_level == 1


def test_twins_are_refused_unless_one_is_off() -> None:
    """Two enabled sources of the same type and topics would be one."""
    twin: dict[str, Any] = {"type": "activity", "topic": "clients/+/#", "maxQuiet": "5m"}
    assert paths_of({"sources": {"twin": twin}}) == ["sources.twin"]
    assert len(parse({"sources": {"twin": twin, "messages": {"enabled": False}}}).sources) == 2


@pytest.mark.parametrize("prefix", ["", "in/"])
def test_a_canary_must_go_through_the_bridge(prefix: str) -> None:
    """A canary that the subscription hears as it is published would vouch for a dead bridge."""
    document: dict[str, Any] = at("sources.messages.canaryTopic", f"{prefix}clients/pruner-canary/x")
    assert paths_of(document | {"inboundPrefix": prefix}) == ["sources.messages.canaryTopic"]


def test_identity_is_what_a_source_is() -> None:
    """The identity tells type, topics, thing name level and what is ignored apart, and nothing else."""
    base = {"type": "activity", "topic": "a/+/+"}
    changes: list[dict[str, Any]] = [
        {},
        {"maxQuiet": "5m"},
        {"canaryTopic": ""},
        {"payloadField": "state"},
        {"topic": "b/+/+"},
        {"thingNameLevel": 2},
        {"ignoredValues": ["offline"]},
        {"ignoredValues": ["offline"], "payloadField": "state"},
    ]
    found = [parse({"sources": {f"s{n}": base | change}}).sources[-1] for n, change in enumerate(changes)]
    identities = [source.identity for source in found]
    assert len(set(identities[:4])) == 1
    assert len(set(identities)) == 5
    assert parse({}).sources[0].identity != parse({}).sources[1].identity


def test_without_a_prefix_each_topic_is_subscribed_to() -> None:
    """The topics of all enabled sources, as they are."""
    subscriptions = parse({"inboundPrefix": "", "sources": {"emqx": {"uptimeTopic": "up"}}}).subscriptions()
    assert subscriptions == (
        "$SYS/brokers/+/clients/+/connected",
        "$SYS/brokers/+/clients/+/disconnected",
        "$SYS/brokers/+/stats/live_connections/count",
        "up",
        "clients/+/#",
    )


# --- roll call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://broker.example:18084/api/v5",
        "http://127.0.0.1:18083/api/v5",
        "http://127.9.9.9/api/v5",
        "http://[::1]:18083/api/v5",
        "http://localhost:18083",
    ],
)
def test_where_a_roll_call_may_go(url: str) -> None:
    """By https anywhere, by http to the core itself."""
    settings = parse({"rollCall": {"url": url, "keyFile": "/etc/emqx/key", "interval": "1m"}})
    assert settings.roll_call is not None
    assert settings.roll_call == (url, "/etc/emqx/key", 60)


@pytest.mark.parametrize(
    "url",
    [
        "http://broker.example/api/v5",
        "http://localhost.example",
        "http://127.0.0.1.example/api/v5",
        "http://192.0.2.1:18083/api/v5",
        "http://127.0.0.1@broker.example",
        "http://key:secret@127.0.0.1/api/v5",
        "https://key:secret@broker.example",
        "http://",
        "https://",
        "ftp://127.0.0.1",
        "127.0.0.1:18083",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999/api/v5",
        "http://[::1",
        "http://127.0.0.1/\n",
        "https://broker.example/?a=b",
        "http://127.0.0.1/api/v5#clients",
        "file:///etc/passwd",
    ],
)
def test_where_a_roll_call_may_not_go(url: str) -> None:
    """Not in the clear over a network, and not with a secret in the URL."""
    assert paths_of({"rollCall": {"url": url, "keyFile": "/key"}}) == ["rollCall.url"]


def test_a_roll_call_needs_its_key() -> None:
    """An URL without a key file is refused."""
    assert paths_of(at("rollCall.url", "https://broker.example/api/v5")) == ["rollCall.keyFile"]


# --- what the settings answer -------------------------------------------------------------------------------


RULES = {
    "gateways": {"clients": ["gate-*"], "offlineThreshold": "90d"},
    "north": {"clients": ["*-north", "x?"], "offlineThreshold": "60d"},
    "short": {"clients": ["lamp-[0-9]"], "offlineThreshold": "2d"},
}


@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("gate-1", 90),
        ("gate-north", 90),
        ("pump-north", 60),
        ("xy", 60),
        ("lamp-7", 2),
        ("Gate-1", 30),
        ("lamp-77", 30),
    ],
)
def test_the_longest_rule_that_matches_counts(name: str, days: int) -> None:
    """Case matters; a rule may be shorter than the general threshold."""
    assert parse({"thresholds": RULES}).threshold_seconds(name) == days * 86400


def test_protection() -> None:
    """A glob of protectedClients protects, and nothing is protected without one."""
    settings = parse({"protectedClients": ["gate-*", "plc"]})
    assert [settings.is_protected(name) for name in ("gate-1", "plc", "plc-1", "PLC")] == [
        True,
        True,
        False,
        False,
    ]
    assert not parse({}).is_protected("")


def test_a_hundred_thousand_questions_are_quick() -> None:
    """Globs are compiled once."""
    settings = parse({"thresholds": RULES, "protectedClients": [f"site-{n}-*" for n in range(20)]})
    began = time.perf_counter()
    for _ in range(100_000):
        settings.threshold_seconds("device-0123456789")
        settings.is_protected("device-0123456789")
    assert time.perf_counter() - began < 2


@given(st.from_regex(r"(?:[a-z*?-]|\[!?[a-z0-9:_-]{1,3}\]){1,5}", fullmatch=True), st.text("abz-", max_size=6))
def test_any_glob_answers_or_is_refused(glob: str, name: str) -> None:
    """A glob that is accepted can be asked; one that is not is refused with its path."""
    document = {"protectedClients": [glob]}
    problems = refusals(document)
    assert all(problem.startswith("protectedClients") for problem in problems)
    assert problems or parse(document).is_protected(name) in {True, False}


def test_settings_are_values() -> None:
    """Equal documents give equal, hashable settings that remember nothing of the document."""
    document = {"thresholds": copy.deepcopy(RULES)}
    settings = parse(document)
    document["thresholds"].clear()
    assert settings == parse({"thresholds": RULES})
    assert len({settings, parse({"thresholds": RULES}), parse({})}) == 2
