"""The configuration: the component's own, and the bridge's as the doctor reads it."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from client_device_pruner.component import Component, Edges
from client_device_pruner.doctor import diagnose, required_entries, without_events
from client_device_pruner.document import format_duration, parse_duration, step
from client_device_pruner.ledger import Ledger
from client_device_pruner.settings import (
    DEFAULTS,
    ActivitySource,
    EmqxSource,
    Settings,
    SettingsRefused,
    Source,
    parse,
)
from client_device_pruner.sources import Sources
from client_device_pruner.topics import is_filter
from local_core.fuzz.target import Target, document, folder, require, seeds
from local_core.pubsub import topic_matches

_LONGEST_PROBLEM = 4000
_DAY = 86_400.0


# --- The component's configuration -------------------------------------------------------------------------------


def check_configuration(data: bytes) -> None:
    """A document is refused with problems that each have a path, and changes nothing; or it is read, and says so again.

    What is accepted keeps the contract's bounds, means the same when it is written out from what was read, and when
    every scalar comes as a text, as from Greengrass Lite.
    """
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    kept = copy.deepcopy(given)
    try:
        settings = parse(given)
    except SettingsRefused as refused:
        _check_problems(refused.problems, given)
        _check_refusal(given)
        return
    finally:
        require(repr(given) == repr(kept), "the document was changed")
    _check_bounds(settings)
    require(parse(kept) == settings, "the same document means something else")
    if _is_to_the_millisecond(settings):
        require(parse(_written(settings)) == settings, "what was read means something else when it is written")
    if (lite := _as_lite(given)) is not None:
        require(parse(lite) == settings, "as Greengrass Lite gives it, it means something else")
    Sources(settings, Ledger(None, 0.0), 0.0).witnesses(0.0)
    diagnose({"mqttTopicMapping": required_entries(settings)}, settings)


def _check_problems(problems: tuple[str, ...], given: Any) -> None:
    require(problems, "it was refused without a problem")
    known = [*DEFAULTS, *map(step, given)] if isinstance(given, Mapping) else []
    for problem in problems:
        path, colon, what = problem.partition(": ")
        require(path and colon and "; write " in what, f"a problem without a path or a remedy: {problem!r}")
        require(len(problem) <= _LONGEST_PROBLEM, f"a problem of {len(problem)} characters: {problem[:200]!r}")
        named = path == "configuration" or any(problem.startswith(key) for key in known)
        require(named, f"its path is of no key: {problem!r}")


class _NoClock:
    """A moment that does not pass."""

    def monotonic(self) -> float:
        return 1.0

    def wall(self) -> float:
        return 1.0


class _NoWorker:
    """A child process that is never needed here."""

    def start(self) -> None:
        raise NotImplementedError

    def send(self, request: object) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


@cache
def _component() -> Component:
    """A component with the default configuration and without a connection; a refusal must leave it as it is."""
    logging.getLogger("client_device_pruner").disabled = True

    def worker(_deliver: object) -> Any:
        return _NoWorker()

    edges = Edges(connect=lambda _inbox: None, worker=worker, roll_caller=lambda _deliver: _NoWorker())  # type: ignore[arg-type, return-value]
    component = Component(folder("configuration"), "core-1", _NoClock(), edges, own=lambda: False)
    component._configure({}, "")  # noqa: SLF001 - the way that a configuration takes
    return component


def _check_refusal(given: Any) -> None:
    component = _component()
    watch = component.watch
    settings, sources, devices = watch.settings, watch.sources, dict(watch.ledger.devices)
    component._configure(given, "")  # noqa: SLF001 - as above
    require(watch.settings is settings and watch.sources is sources, "a refused document was taken over")
    require(watch.ledger.devices == devices, "a refused document changed a device")
    require(watch.guards.holds("configuration"), "a refused document does not hold pruning")


def _check_bounds(settings: Settings) -> None:
    least = 0.1 if settings.allow_short_durations else None
    _within(settings.offline_threshold_seconds, least or _DAY, 3650 * _DAY)
    _within(settings.notice_seconds, 0, 90 * _DAY)
    _within(settings.check_interval_seconds, least or 300, 7 * _DAY)
    _within(settings.mass_loss.window_seconds, least or 10, 7 * _DAY)
    if settings.never_seen_seconds is not None:
        _within(settings.never_seen_seconds, least or _DAY, 3650 * _DAY)
    for rule in settings.thresholds:
        _within(rule.offline_threshold_seconds, least or _DAY, 3650 * _DAY)
    for percent in (
        settings.limits.max_percent_per_day,
        settings.limits.approval_percent,
        settings.mass_loss.min_percent,
    ):
        _within(percent, 0, 100)
    for source in settings.sources:
        _within(source.max_quiet_seconds, least or 10, 7 * _DAY)
        require(all(map(is_filter, source.topics)), f"{source.name} has a topic that is no filter")
    require(all(map(is_filter, settings.subscriptions())), "a subscription is no filter")
    require(settings.scale > 0 and (settings.scale == 1.0 or settings.allow_short_durations), "the scale is wrong")
    for name in ("a", "x" * 128, "a:b_c-0"):
        settings.is_protected(name)
        _within(settings.threshold_seconds(name), least or _DAY, 3650 * _DAY)


def _within(value: float, least: float, most: float) -> None:
    require(least <= value <= most, f"{value} is not from {least} to {most}")


def _is_to_the_millisecond(settings: Settings) -> bool:
    """Whether all durations can be written as they are (see `format_duration`)."""
    rolls = [settings.roll_call.interval_seconds] if settings.roll_call else []
    durations = (
        *(settings.offline_threshold_seconds, settings.notice_seconds, settings.check_interval_seconds),
        *(settings.never_seen_seconds or 0.0, settings.mass_loss.window_seconds, settings.scale * 180.0),
        *(rule.offline_threshold_seconds for rule in settings.thresholds),
        *(source.max_quiet_seconds for source in settings.sources),
        *rolls,
    )
    return all(parse_duration(format_duration(seconds), decimals=True) == seconds for seconds in durations)


def _written(settings: Settings) -> dict[str, Any]:
    """Write settings as the document that means them."""
    roll_call, limits, loss, reports = settings.roll_call, settings.limits, settings.mass_loss, settings.reports
    never = settings.never_seen_seconds
    return {
        "offlineThreshold": format_duration(settings.offline_threshold_seconds),
        "noticePeriod": format_duration(settings.notice_seconds),
        "checkInterval": format_duration(settings.check_interval_seconds),
        "dryRun": settings.dry_run,
        "inboundPrefix": settings.inbound_prefix,
        "sources": _written_sources(settings),
        "rollCall": roll_call
        and {
            "url": roll_call.url,
            "keyFile": roll_call.key_file,
            "interval": format_duration(roll_call.interval_seconds),
        },
        "thresholds": {
            rule.name: {
                "clients": list(rule.clients),
                "offlineThreshold": format_duration(rule.offline_threshold_seconds),
            }
            for rule in settings.thresholds
        },
        "protectedClients": list(settings.protected_clients),
        "neverSeenThreshold": "" if never is None else format_duration(never),
        "limits": {
            "maxPerCycle": limits.max_per_cycle,
            "maxPercentPerDay": limits.max_percent_per_day,
            "approvalPercent": limits.approval_percent,
        },
        "approvedPlan": settings.approved_plan,
        "massLoss": {
            "window": format_duration(loss.window_seconds),
            "minDevices": loss.min_devices,
            "minPercent": loss.min_percent,
        },
        "restoreOnReturn": settings.restore_on_return,
        "reports": {
            "localTopic": reports.local_topic,
            "iotCoreTopic": reports.iot_core_topic,
            "shadowName": reports.shadow_name,
        },
        "allowShortDurations": settings.allow_short_durations,
        "logLevel": settings.log_level,
    }


def _written_sources(settings: Settings) -> dict[str, Any]:
    # The scale comes from the source named emqx, be it on or off.
    off = {"enabled": False, "maxQuiet": format_duration(settings.scale * 180.0)}
    written: dict[str, Any] = {"emqx": off if settings.allow_short_durations else {"enabled": False}}
    written["messages"] = {"enabled": False}
    for source in settings.sources:
        common = {
            "type": "emqx" if isinstance(source, EmqxSource) else "activity",
            "maxQuiet": format_duration(source.max_quiet_seconds),
            "thingNameLevel": source.thing_name_level,
        }
        if isinstance(source, EmqxSource):
            own: dict[str, Any] = {
                "connectedTopic": source.connected_topic,
                "disconnectedTopic": source.disconnected_topic,
                "countTopic": source.count_topic,
                "uptimeTopic": source.uptime_topic,
                "bridgeClientId": source.bridge_client_id,
            }
        else:
            own = {
                "topic": source.topic,
                "canaryTopic": source.canary_topic,
                "payloadField": source.payload_field,
                "ignoredValues": list(source.ignored_values),
            }
        written[source.name] = common | own
    return written


def _as_lite(given: Any) -> Any:
    """Write each scalar as a text, as Greengrass Lite's configuration file has them; None if one has no such form."""
    if isinstance(given, Mapping):
        members = {key: _as_lite(value) for key, value in given.items() if value is not None}
        return None if None in members.values() else members
    if isinstance(given, list):
        entries = [_as_lite(entry) for entry in given]
        return None if None in entries else entries
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, float) and not re.fullmatch(r"[0-9]{1,15}\.[0-9]{1,15}", repr(given)):
        return None
    return None if given is None else str(given)


_DOCUMENT = {
    "offlineThreshold": "30d",
    "noticePeriod": "1d12h",
    "checkInterval": "6h",
    "dryRun": True,
    "sources": {
        "emqx": {"maxQuiet": "5m", "bridgeClientId": "bridge-?"},
        "messages": {"topic": "site/+/+/#", "thingNameLevel": 2, "ignoredValues": ["offline"], "payloadField": "a.b"},
        "more": {"type": "activity", "topic": "more/+", "canaryTopic": "", "enabled": False},
        "second": {"type": "emqx", "connectedTopic": "a/+/+", "disconnectedTopic": "b/+/+", "countTopic": "c/+"},
    },
    "rollCall": {"url": "http://127.0.0.1:18083/api/v5", "keyFile": "/key", "interval": "15m"},
    "thresholds": {"slow": {"clients": ["slow-*", "[a-c]?"], "offlineThreshold": "90d"}},
    "protectedClients": ["alarm-*"],
    "neverSeenThreshold": "60d",
    "limits": {"maxPerCycle": 5, "maxPercentPerDay": 2.5, "approvalPercent": 100},
    "approvedPlan": "0123456789",
    "massLoss": {"window": "30m", "minDevices": 3, "minPercent": 30},
    "restoreOnReturn": True,
    "reports": {"localTopic": "", "iotCoreTopic": "client-device-pruner/{thingName}/events", "shadowName": "x"},
    "logLevel": "DEBUG",
}
_SHORT = {
    "allowShortDurations": True,
    "offlineThreshold": "3s",
    "noticePeriod": "0.5s",
    "checkInterval": "1s",
    "sources": {"emqx": {"maxQuiet": "1.5s"}, "messages": {"enabled": "false"}},
    "limits": {"maxPerCycle": "100.0"},
    "inboundPrefix": "",
}
_CONFIGURATION_WORDS = (
    *DEFAULTS,
    *(key for section in ("rollCall", "limits", "massLoss", "reports") for key in DEFAULTS[section]),
    *(key for source in DEFAULTS["sources"].values() for key in source),
    *("accessControl", "clients", "emqx", "activity", "EMQX", "rollcall", "_x", "0s", "100ms", "0.1s", "3650d", "1d1d"),
    *("9" * 9 + "d", "true", "100.0", "1e400", 1e400, -0.0, 100, 101, 2**31, 10**400, "clients/+/#", "#", "$SYS/#"),
    *("a/+/+", "+", "client-device-pruner/in/", "x/", "https://[::1]:1/", "http://127.0.0.1:0/", "[z-a]", "[!a]*", "*"),
    *(
        "a.b",
        ".",
        "{thingName}",
        "pruner-canary/telemetry",
        _SHORT["sources"],
        _DOCUMENT["sources"],
        "\N{LATIN SMALL LETTER LONG S}",
        "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}",
        "offline",
    ),
)


# --- Durations ---------------------------------------------------------------------------------------------------


def check_durations(data: bytes) -> None:
    """A text is no duration and the reason shows it, or it is finite, and reads the same when it is written."""
    text = data.decode("utf-8", "surrogateescape")
    for decimals in (False, True):
        try:
            seconds = parse_duration(text, decimals=decimals)
        except ValueError as wrong:
            require("is no duration; write" in str(wrong), f"refused without a remedy: {wrong}")
            continue
        require(math.isfinite(seconds) and seconds >= 0, f"{text!r} is {seconds} s")
        require(decimals or seconds == int(seconds), f"{text!r} is {seconds} s without decimals")
        again = parse_duration(format_duration(seconds), decimals=True)
        require(abs(again - seconds) <= 0.0005 + seconds * 1e-12, f"{text!r} is {seconds} s, and written {again} s")


# --- The bridge's configuration ----------------------------------------------------------------------------------

_BRIDGE_SETTINGS = (parse({}), parse(_DOCUMENT), parse({"sources": {"emqx": {"enabled": False}}}))
_PARTS = {"topic", "source", "target", "targetTopicPrefix"}


def check_bridge(data: bytes) -> None:
    """Whatever the bridge's configuration holds, each finding has a remedy; none means that all really arrives.

    The input is `[which settings, the bridge's configuration]`. Remedies in JSON are entries that the bridge can use.
    Where nothing is found, a model of the bridge brings every topic of an `emqx` source to the component, and each
    canary back.
    """
    match document(data):
        case [int(which), dict() | None as bridge]:
            settings = _BRIDGE_SETTINGS[which % len(_BRIDGE_SETTINGS)]
        case _:
            return
    kept = repr(bridge)
    findings = diagnose(bridge, settings)
    for finding in findings:
        require(finding.finding and finding.remedy, f"a finding without words or a remedy: {finding}")
        _check_remedy(finding.remedy)
    names = {source.name for source in settings.sources if isinstance(source, EmqxSource)}
    require(without_events(bridge, settings) <= names, "a source without events that is none")
    if not findings and bridge is not None:
        for source in settings.sources:
            _check_arrival(_entries(bridge["mqttTopicMapping"]), source, settings.inbound_prefix)
    require(repr(bridge) == kept, "the bridge's configuration was changed")


def _check_remedy(remedy: str) -> None:
    pasted = document(remedy.encode("utf-8", "surrogatepass"))
    if pasted is None:
        require(remedy.endswith("."), f"neither JSON nor a sentence: {remedy!r}")
        return
    for key, entry in pasted["mqttTopicMapping"].items():
        usable = entry.keys() == _PARTS and is_filter(entry["topic"])
        ends = {entry["source"], entry["target"]} <= {"LocalMqtt", "Pubsub", "IotCore"}
        require(usable and ends, f"the bridge cannot use {key}: {entry}")


Entry = tuple[str, str, str, str]
"""Topic filter, source, target and prefix."""


def _entries(mapping: Mapping[str, Any]) -> list[Entry]:
    return [
        (entry["topic"], entry["source"], entry["target"], entry.get("targetTopicPrefix") or "")
        for entry in mapping.values()
    ]


def _carried(entries: Iterable[Entry], topic: str, source: str, target: str) -> list[str]:
    """The topics under which a message arrives: the bridge gives an entry all that fits, a leading `$` or not."""
    return [
        prefix + topic
        for wanted, origin, aim, prefix in entries
        if (origin, aim) == (source, target) and topic_matches(f"/{wanted}", f"/{topic}")
    ]


def _check_arrival(entries: list[Entry], source: Source, prefix: str) -> None:
    for wanted in source.topics:
        if isinstance(source, EmqxSource):
            topic = wanted.replace("+", "x").replace("#", "y")
            arrived = _carried(entries, topic, "LocalMqtt", "Pubsub")
            require(prefix + topic in arrived, f"nothing is found, and {topic!r} does not arrive: {arrived}")
    if isinstance(source, ActivitySource) and source.canary_topic:
        sent = _carried(entries, source.canary_topic, "Pubsub", "LocalMqtt")
        back = [topic for one in sent for topic in _carried(entries, one, "LocalMqtt", "Pubsub")]
        heard = [topic for topic in back if topic_matches(prefix + source.topic, topic)]
        require(heard, f"nothing is found, and the canary of {source.name} does not come back: {back}")


_MAPPING: dict[str, Any] = {"mqttTopicMapping": required_entries(_BRIDGE_SETTINGS[0])}
_LARGE: dict[str, Any] = {"mqttTopicMapping": required_entries(_BRIDGE_SETTINGS[1]), "clientId": "bridge-1"}
_LOOP = {
    "One": {"topic": "a/b", "source": "LocalMqtt", "target": "Pubsub"},
    "Two": {"topic": "a/b", "source": "Pubsub", "target": "LocalMqtt", "targetTopicPrefix": None},
    "Wide": {"topic": "#", "source": "LocalMqtt", "target": "IotCore", "targetTopicPrefix": "x"},
}
_BRIDGE_WORDS = (
    *("mqttTopicMapping", "clientId", "mqtt", "mqtt5RouteOptions", "noLocal", "version", "mqtt5", "true", *_PARTS),
    *("LocalMqtt", "Pubsub", "IotCore", "localmqtt", "client-device-pruner/in/", "clients/", "#", "+/#", "$SYS/#"),
    *("clients/+/#", "clients/+/telemetry", "pruner-canary/+", "pruner-canary/telemetry", "$SYS/brokers/+/uptime"),
    *(*_MAPPING["mqttTopicMapping"], *_MAPPING["mqttTopicMapping"].values(), *_LOOP.values()),
    {"PrunerMessages": {"noLocal": True}},
)

TARGETS = (
    Target(
        "configuration",
        check_configuration,
        seeds({}, _DOCUMENT, _SHORT, dict(DEFAULTS), {"x": 1, "limits": {"maxPerCycle": "many"}}, [], "no map"),
        _CONFIGURATION_WORDS,
    ),
    Target("durations", check_durations, (b"30d", b"1d12h30m15s", b"0.5s", b"45", b"1h1d", b"999999999d", b"")),
    Target(
        "bridge",
        check_bridge,
        seeds(
            [0, _MAPPING],
            [1, _LARGE],
            [2, {"mqttTopicMapping": {**_MAPPING["mqttTopicMapping"], **_LOOP}}],
            [0, {}],
            [2, None],
        ),
        _BRIDGE_WORDS,
    ),
)
