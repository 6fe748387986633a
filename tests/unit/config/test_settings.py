"""A configuration document is read whole, or refused with every problem that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from client_device_pruner.config.schema import SettingsRefused
from client_device_pruner.config.settings import DEFAULTS, Settings, changed_keys, parse, protection_lost
from fakes.documents import leaves, nested
from local_core.recipe import as_texts

RECIPE = Path(__file__).parents[3] / "recipe.yaml"
SHORT = {"allowShortDurations": True}
DAY = 86400


def refusals(document: object) -> tuple[str, ...]:
    """The problems of a document, none if it is accepted."""
    try:
        parse(document)
    except SettingsRefused as refused:
        return refused.problems or ("refused without a reason",)
    return ()


def paths_of(document: object) -> list[str]:
    """The paths of the problems of a document."""
    return [problem.partition(": ")[0] for problem in refusals(document)]


def test_an_empty_document_means_the_defaults() -> None:
    """Absent, null and the defaults written out are the same."""
    nulls = dict.fromkeys(DEFAULTS) | {"limits": {"maxPerCycle": None}, "presence": {"clientList": None}}
    assert Settings() == parse({}) == parse(None) == parse(DEFAULTS) == parse(nulls)


def test_the_defaults_are_those_of_the_recipe() -> None:
    """The recipe's DefaultConfiguration, without the nucleus's accessControl, is DEFAULTS."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    configuration = recipe["ComponentConfiguration"]["DefaultConfiguration"]
    assert parse(configuration) == Settings()
    assert {key: value for key, value in configuration.items() if key != "accessControl"} == DEFAULTS


def test_scalars_of_greengrass_lite_are_texts() -> None:
    """Every scalar as a string means the same as the scalar, and a whole number may have a fraction of zero."""
    document = DEFAULTS | {"dryRun": True, "limits": {"maxPerCycle": 7, "approvalPercent": 12.5}}
    assert parse(as_texts(document)) == parse(document)
    assert parse(nested("limits.maxPerCycle", 7.0)) == parse(nested("limits.maxPerCycle", "7.0"))
    assert isinstance(parse(nested("limits.maxPerCycle", 7.0)).limits.max_per_cycle, int)


def test_all_problems_are_told_with_their_paths() -> None:
    """Each mistake gives a message, with its path and what to write."""
    limits = {"maxPerCycle": -1, "maxPercentPerDya": 5}
    document = {"presence": {"clientList": {"interval": "5s"}}, "thresholds": {"slow": {}}, "limits": limits}
    problems = refusals(document)
    assert set(paths_of(document)) == {
        "limits.maxPerCycle",
        "limits.maxPercentPerDya",
        "presence.clientList.interval",
        "thresholds.slow.devices",
        "thresholds.slow.offlineThreshold",
    }
    assert all("; write " in problem for problem in problems)
    assert "limits.maxPerCycle: -1 is not valid; write a whole number from 0 to 2147483647" in problems
    assert any("write only maxPerCycle, maxPercentPerDay" in problem for problem in problems)


REFUSED: dict[str, list[Any]] = {
    "offlineThreshold": ["23h", "3651d", "-30d", "1.5d", True],
    "offlinethreshold": ["40d"],
    "gracePeriod": ["91d"],
    "checkInterval": ["4m", "8d"],
    "dryRun": ["yes", 1],
    "neverSeenThreshold": ["1h"],
    "thresholds": [[1]],
    "protectedDevices": ["gate-1", ["a.b"], ["a[b"], [""]],
    "presence.probeInterval": ["9s", "11m"],
    "presence.messageTopics": [["clients/#"], ["clients/+/#/x"], ["$SYS/brokers/+/clients/#"]],
    "presence.ignoredPayloads": [["offline", 0]],
    "presence.clientList.url": [
        "http://10.0.0.5:18083/api/v5",
        "http://admin:public@127.0.0.1:18083",
        "127.0.0.1:18083",
    ],
    "presence.clientList.credentialsFile": ["relative/key"],
    "limits.maxPerCycle": [1.5, True, 10**400],
    "limits.maxPercentPerDay": [101, float("nan")],
    "limits": [5],
    "massLoss.minDevices": [0],
    "massLoss.window": ["5s"],
    "reports.localTopic": ["a/#"],
    "reports.iotCoreTopic": ["a/{thing}"],
    "reports.shadowName": ["a b"],
    "approvedPlan": [5],
    "logLevel": ["TRACE"],
    "inboundPrefix": ["client-device-pruner/in/", None],
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path in REFUSED for value in REFUSED[path]])
def test_what_is_refused(path: str, value: object) -> None:
    """A value out of its bounds or of a wrong type, or an unknown key, is refused, at its path."""
    assert paths_of(nested(path, value)) == [path]
    assert paths_of([value]) == ["configuration"]


ACCEPTED: dict[str, list[Any]] = {
    "offlineThreshold": ["1d", "3650d"],
    "gracePeriod": ["0s"],
    "checkInterval": ["5m"],
    "neverSeenThreshold": [""],
    "presence.probeInterval": ["10m"],
    "presence.messageTopics": [[], ["+/state", "a/b/+/c"]],
    "presence.ignoredPayloads": [['*"state":"offline"*', ""]],
    "presence.clientList.url": [
        "",
        "http://127.0.0.1:18083/api/v5",
        "http://[::1]:18083/api/v5",
        "https://emqx.plant.example/api/v5",
    ],
    "limits.maxPerCycle": [0],
    "limits.maxPercentPerDay": [0.5],
    "protectedDevices": [["*", "gate-[0-9]?", "[!a-c]:x_"]],
    "reports.iotCoreTopic": ["pruner/{thingName}/events"],
    "reports.shadowName": [""],
    "massLoss.window": ["10s"],
    "accessControl": [{"aws.greengrass.ipc.pubsub": {}}],
    "thresholds": [{"gateways": {"devices": ["gate-*"], "offlineThreshold": "90d"}, "gone": None}],
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path in ACCEPTED for value in ACCEPTED[path]])
def test_what_is_accepted(path: str, value: object) -> None:
    """Bounds are inclusive, and empty texts switch off what can be switched off."""
    parse(nested(path, value))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ODD = st.sampled_from(["_x", "\ud800", "1d", "0.5s", "NaN", "http://[::1", "1" * 5000, 10**400, -0.0])
JSON = st.recursive(
    SCALARS | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = ("thresholds.a", "thresholds.a.devices", "thresholds.a.x", "presence", "presence.clientList", "limits")
PATHS = st.sampled_from([*dict(leaves(DEFAULTS)), *SECTIONS, "massLoss", "reports"])


@given(PATHS, JSON)
@example("offlineThreshold", "\ud800")
def test_any_value_at_any_key_is_read_or_refused(path: str, value: object) -> None:
    """Whatever stands at a key, the document is read, or refused in texts that can be encoded."""
    problems = refusals(nested(path, value)) + refusals(nested(path, value) | SHORT) + refusals(value)
    assert all(problem.encode() and ": " in problem for problem in problems)


def test_a_trial_with_two_settings_fits() -> None:
    """Case 21: whatever does not fit a threshold of 20 s is made smaller, and each value is named."""
    settings = parse(SHORT | {"offlineThreshold": "20s"})
    assert settings.presence.probe_interval_seconds == 2
    assert settings.presence.client_list.interval_seconds == 10
    assert settings.mass_loss.window_seconds == 2
    assert (settings.check_interval_seconds, settings.grace_period_seconds) == (10, 10)
    assert settings.scale == pytest.approx(2 / 60)
    assert len(settings.warnings) == 6
    assert parse({"allowShortDurations": "true", "offlineThreshold": "20s"}) == settings


def test_what_fits_a_trial_stays() -> None:
    """Only larger values change; the shortest of all thresholds counts; nothing falls below 100 ms."""
    document = {"offlineThreshold": "20s", "gracePeriod": "0s", "checkInterval": "1s", "neverSeenThreshold": "0.5s"}
    settings = parse(document | SHORT)
    assert (settings.grace_period_seconds, settings.check_interval_seconds) == (0, 0.25)
    assert settings.presence.probe_interval_seconds == 0.1
    rule = {"devices": ["*"], "offlineThreshold": "10s"}
    assert parse({"thresholds": {"fast": rule}} | SHORT).presence.probe_interval_seconds == 1
    assert len(parse(SHORT).warnings) == 1


def test_short_durations_need_to_be_allowed() -> None:
    """Without allowShortDurations bounds hold and decimals are refused; with it they end at 100 ms."""
    short = {"offlineThreshold": "0.1s", "checkInterval": "0.5s"}
    assert paths_of(short) == ["offlineThreshold", "checkInterval"]
    assert parse(short | SHORT).offline_threshold_seconds == 0.1
    assert paths_of({"offlineThreshold": "0.09s"} | SHORT) == ["offlineThreshold"]
    assert paths_of({"checkInterval": "8d"} | SHORT) == ["checkInterval"]
    assert parse(nested("presence.probeInterval", "10s")).scale == 1
    assert parse(nested("presence.probeInterval", "10m") | SHORT).scale == 1


# --- what the settings tell ---------------------------------------------------------------------------------

RULES = {
    "gates": {"devices": ["gate-*"], "offlineThreshold": "10d"},
    "slow": {"devices": ["gate-slow-*", "visitor"], "offlineThreshold": "90d"},
}


def test_the_longest_threshold_that_matches_counts() -> None:
    """Several may match; without one the general threshold counts; case matters."""
    settings = parse({"thresholds": RULES, "protectedDevices": ["gate-0"]})
    found = {name: settings.threshold_name(name) for name in ("gate-1", "gate-slow-1", "visitor", "Gate-1")}
    assert found == {
        "gate-1": "thresholds.gates",
        "gate-slow-1": "thresholds.slow",
        "visitor": "thresholds.slow",
        "Gate-1": "offlineThreshold",
    }
    assert [settings.threshold_seconds(name) / DAY for name in found] == [10, 90, 90, 30]
    assert [settings.is_protected(name) for name in ("gate-0", "gate-01", "Gate-0")] == [True, False, False]


def test_changed_keys_are_paths() -> None:
    """The keys that changed are named by their paths."""
    new = parse({"limits": {"maxPerCycle": 5}, "thresholds": RULES, "dryRun": True})
    assert set(changed_keys(Settings(), new)) == {"limits.maxPerCycle", "dryRun", "thresholds"}
    assert changed_keys(new, new) == ()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({}, {"offlineThreshold": "7d"}, "offlineThreshold is shorter: 30d became 7d"),
        ({"neverSeenThreshold": ""}, {}, "neverSeenThreshold is shorter: never became 90d"),
        ({}, {"gracePeriod": "0s"}, "gracePeriod is shorter: 1d became 0s"),
        ({}, {"limits": {"maxPerCycle": 200}}, "limits.maxPerCycle is higher: 100 became 200"),
        ({}, {"massLoss": {"minPercent": 80}}, "massLoss.minPercent is higher: 30 became 80"),
        ({"thresholds": RULES}, {}, 'thresholds: "visitor" had 90d and has 30d'),
        (
            {},
            {"thresholds": {"presses": {"devices": ["press-*"], "offlineThreshold": "2d"}}},
            'thresholds: "press-*" had 30d and has 2d',
        ),
    ],
)
def test_protection_that_ends_is_told(old: Any, new: Any, told: str) -> None:
    """Case 14: a deployment that resets protection is told in a sentence."""
    assert any(sentence.startswith(told) for sentence in protection_lost(parse(old), parse(new)))


def test_protection_that_grows_is_not_told() -> None:
    """More protection is no loss, nor is a threshold that the general one has outgrown."""
    old = parse({"thresholds": {"gates": RULES["gates"]}, "limits": {"maxPerCycle": 200}})
    new = parse({"protectedDevices": ["gate-*"], "dryRun": True, "offlineThreshold": "60d", "neverSeenThreshold": ""})
    assert protection_lost(old, new) == ()
