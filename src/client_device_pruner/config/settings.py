"""The component's configuration: a document is read whole, or refused with every problem that it has."""
# ruff: noqa: RUF009 - each field is made by the key that fills it

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from client_device_pruner.config.schema import (
    SHORTEST_SECONDS,
    SettingsRefused,
    Wrong,
    defaults,
    duration,
    flag,
    format_duration,
    number,
    read_map,
    read_section,
    section,
    setting,
    text,
    texts,
    values_by_path,
)

_DAY = 86400.0
_MOST = 2**31 - 1

# --- What values are accepted ---------------------------------------------------------------------------------

_THRESHOLD = duration(_DAY, 3650 * _DAY)
_OR_NEVER = duration(_DAY, 3650 * _DAY, or_never=True)
_USUAL = duration(10, 7 * _DAY)
_COUNT = number(0, _MOST, whole=True)
_PERCENT = number(0, 100)
_THING_NAMES = texts(
    r"(?:[a-zA-Z0-9:_*?-]|\[!?[a-zA-Z0-9:_-]+\])+",
    "a thing-name glob (letters, digits, : _ - and the wildcards * ? [ ])",
)
_PAYLOADS = texts("(?s:.*)", "a glob in quotes")
_MESSAGE_TOPICS = texts(
    r"(?!\$SYS/)(?:[^+#/]*/)*\+(?:/[^+#/]*|/\+)*(?:/#)?",
    'a topic filter whose first "+" is the thing name, such as "clients/+/#"',
)
_API_URL = text(
    r"(?:auto|(?:https://[\w.-]+|http://(?:localhost|127\.[\d.]+|\[::1\]))(?::\d{1,5})?(?:/[\w./-]*)?)?",
    '"auto", an https URL, an http URL of the loopback (both without credentials), or ""',
)
_ABSOLUTE_PATH = text("(?:/.*)?", 'the absolute path of a file, or ""')
_TOPIC = text("[^+#]*", 'a topic without wildcards, or ""')
_IOT_CORE_TOPIC = text(
    r"(?:[^+#{}]|\{thingName\})*", 'a topic without wildcards, and without braces except {thingName}, or ""'
)
_SHADOW_NAME = text("[a-zA-Z0-9:_-]{0,64}", 'up to 64 letters, digits, : _ or -, or ""')

# --- The keys, with the contract's defaults and bounds -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientList:
    """EMQX's HTTP API, which lists the connected clients."""

    url: str = setting("url", "auto", _API_URL)
    """`auto`: out of EMQX's own configuration; base of the API; empty: off."""
    credentials_file: str = setting("credentialsFile", "", _ABSOLUTE_PATH)
    """File that holds `key:secret` or `user:password`."""
    interval_seconds: float = setting("interval", "5m", _USUAL)
    """Time between two calls."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What is listened to."""

    probe_interval_seconds: float = setting("probeInterval", "1m", duration(10, 600))
    """How often the component sends itself a message through the broker."""
    connection_events: bool = setting("connectionEvents", True, flag)
    """Use EMQX's connect and disconnect events and its count."""
    message_topics: tuple[str, ...] = setting("messageTopics", ["clients/+/#"], _MESSAGE_TOPICS)
    """Filters of what the devices publish; the level of the first `+` is the thing name."""
    ignored_payloads: tuple[str, ...] = setting("ignoredPayloads", ["offline"], _PAYLOADS)
    """Globs of payloads that are no sign of life, case aside."""
    client_list: ClientList = section("clientList", ClientList)
    """EMQX's HTTP API."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold of their own for some devices."""

    devices: tuple[str, ...] = setting("devices", None, _THING_NAMES)
    """Thing-name globs."""
    offline_threshold_seconds: float = setting("offlineThreshold", None, _THRESHOLD)
    """Silence after which a device that matches is gone."""
    name: str = ""  # its key in the map of thresholds


def _read_thresholds(document: Any, short: bool) -> tuple[Threshold, ...]:
    if not isinstance(document, Mapping):
        raise Wrong("a map of names")
    named = {name: rule for name, rule in sorted(document.items()) if rule is not None}
    rules = read_map(named, dict.fromkeys(named, partial(read_section, Threshold)), short)
    return tuple(replace(rule, name=name) for name, rule in rules.items())


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be disassociated; 0 means nothing, never everything."""

    max_per_cycle: int = setting("maxPerCycle", 100, _COUNT)
    """Most disassociations in one cycle."""
    max_percent_per_day: float = setting("maxPercentPerDay", 10, _PERCENT)
    """Most in 24 h of running time, in percent of the associated devices, rounded up."""
    approval_percent: float = setting("approvalPercent", 50, _PERCENT)
    """More than 3 due devices, and more than this percentage of the associated ones, wait for approval."""


@dataclass(frozen=True, slots=True)
class MassLoss:
    """What counts as lost together."""

    window_seconds: float = setting("window", "10m", _USUAL)
    """Longest time between the first one's last sighting and another's."""
    min_devices: int = setting("minDevices", 3, number(1, _MOST, whole=True))
    """Fewest devices."""
    min_percent: float = setting("minPercent", 30, _PERCENT)
    """Smallest part of the core's seen devices, in percent."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Where events and status go; an empty text switches one off."""

    local_topic: str = setting("localTopic", "client-device-pruner/events", _TOPIC)
    """Topic of the events on local pub/sub."""
    iot_core_topic: str = setting("iotCoreTopic", "", _IOT_CORE_TOPIC)
    """Topic of the events on AWS IoT Core, `{thingName}` standing for the core device."""
    shadow_name: str = setting("shadowName", "client-device-pruner", _SHADOW_NAME)
    """Named shadow of the core device that holds the status."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration that was accepted; all durations in seconds. `Settings()` has the defaults."""

    offline_threshold_seconds: float = setting("offlineThreshold", "30d", _THRESHOLD)
    """Silence after which a client device is gone."""
    grace_period_seconds: float = setting("gracePeriod", "1d", duration(0, 90 * _DAY))
    """Observed time between marking and disassociating."""
    check_interval_seconds: float = setting("checkInterval", "6h", duration(300, 7 * _DAY))
    """Time between cycles."""
    dry_run: bool = setting("dryRun", False, flag)
    """Do all but the disassociation."""
    never_seen_threshold_seconds: float | None = setting("neverSeenThreshold", "90d", _OR_NEVER)
    """Threshold of devices without any sighting since they were associated; None: never."""
    thresholds: tuple[Threshold, ...] = setting("thresholds", {}, _read_thresholds)
    """Thresholds for some devices; where several match, the longest counts."""
    protected_devices: tuple[str, ...] = setting("protectedDevices", [], _THING_NAMES)
    """Thing-name globs that are never disassociated."""
    restore_on_return: bool = setting("restoreOnReturn", True, flag)
    """Associate a device again when it is sighted after this component disassociated it."""
    presence: Presence = section("presence", Presence)
    """What is listened to."""
    limits: Limits = section("limits", Limits)
    """How much may be disassociated."""
    mass_loss: MassLoss = section("massLoss", MassLoss)
    """What counts as lost together."""
    approved_plan: str = setting("approvedPlan", "", text(".*", "a plan's id in quotes"))
    """Id of the plan that is approved; empty: none."""
    reports: Reports = section("reports", Reports)
    """Where events and status go."""
    allow_short_durations: bool = setting("allowShortDurations", False, flag)
    """Accept durations below their bounds, down to 100 ms: for trials."""
    log_level: str = setting("logLevel", "INFO", text("DEBUG|INFO|WARNING|ERROR", "DEBUG, INFO, WARNING or ERROR"))
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
    warnings: tuple[str, ...] = ()
    """What to warn about at each start: short durations, and each value that was made smaller for them."""

    @property
    def scale(self) -> float:
        """Factor of the times that are not configurable, made for a probe a minute: below 1 in a quick trial."""
        return min(1.0, self.presence.probe_interval_seconds / 60.0) if self.allow_short_durations else 1.0

    def threshold_seconds(self, name: str) -> float:
        """Threshold of a device: the longest one that matches, else the general one."""
        rule = self._rule(name)
        return rule.offline_threshold_seconds if rule else self.offline_threshold_seconds

    def threshold_name(self, name: str) -> str:
        """Key path of the threshold of a device."""
        rule = self._rule(name)
        return f"thresholds.{rule.name}" if rule else "offlineThreshold"

    def is_protected(self, name: str) -> bool:
        """Whether a device is never to be disassociated."""
        return any(fnmatchcase(name, glob) for glob in self.protected_devices)

    def _rule(self, name: str) -> Threshold | None:
        if not self.thresholds:
            return None
        rules = (rule for rule in self.thresholds if any(fnmatchcase(name, glob) for glob in rule.devices))
        return max(rules, key=lambda rule: rule.offline_threshold_seconds, default=None)


DEFAULTS: dict[str, Any] = defaults(Settings)  # the default document, equal to that of the recipe


# --- Reading a document, and comparing two -------------------------------------------------------------------


def parse(document: Any) -> Settings:
    """Read a configuration document, with defaults for what is absent or null; SettingsRefused tells all problems."""
    document = {} if document is None else document
    if not isinstance(document, Mapping):
        raise SettingsRefused(("configuration: this is not valid; write a map of keys and values",))
    short = str(document.get("allowShortDurations")).lower() == "true"
    ours = {key: value for key, value in document.items() if key != "accessControl"}
    settings: Settings = read_section(Settings, ours, short)
    return _shortened(settings) if short else settings


def _shortened(settings: Settings) -> Settings:
    """Make smaller what does not fit the short thresholds of a trial, so that it works with these alone."""
    shortest = min(
        settings.offline_threshold_seconds,
        settings.never_seen_threshold_seconds or _MOST,
        *(rule.offline_threshold_seconds for rule in settings.thresholds),
    )
    warnings = ["allowShortDurations is on: for trials only, never on a production site"]

    def fitting(path: str, seconds: float, divisor: int) -> float:
        most = max(SHORTEST_SECONDS, shortest / divisor)
        if seconds > most:
            fits = f"to fit the shortest threshold, {format_duration(shortest)}"
            warnings.append(f"{path} is {format_duration(most)} instead of {format_duration(seconds)}, {fits}")
        return min(seconds, most)

    presence, window = settings.presence, settings.mass_loss.window_seconds
    interval = fitting("presence.clientList.interval", presence.client_list.interval_seconds, 2)
    presence = replace(
        presence,
        probe_interval_seconds=fitting("presence.probeInterval", presence.probe_interval_seconds, 10),
        client_list=replace(presence.client_list, interval_seconds=interval),
    )
    return replace(
        settings,
        check_interval_seconds=fitting("checkInterval", settings.check_interval_seconds, 2),
        grace_period_seconds=fitting("gracePeriod", settings.grace_period_seconds, 2),
        presence=presence,
        mass_loss=replace(settings.mass_loss, window_seconds=fitting("massLoss.window", window, 10)),
        warnings=tuple(warnings),
    )


def changed_keys(old: Settings, new: Settings) -> tuple[str, ...]:
    """Name the key paths whose values differ, such as `limits.maxPerCycle`."""
    before = dict(values_by_path(old))
    return tuple(path for path, value in values_by_path(new) if before[path] != value)


def _threshold_by_glob(settings: Settings) -> dict[str, float]:
    """The glob of each rule, with the longest threshold that it has, in seconds."""
    found: dict[str, float] = {}
    for rule in settings.thresholds:
        for glob in rule.devices:
            found[glob] = max(rule.offline_threshold_seconds, found.get(glob, 0.0))
    return found


def protection_lost(old: Settings, new: Settings) -> tuple[str, ...]:
    """Say in a sentence each what protection of the devices a new configuration ends (case 14)."""
    before, after = dict(values_by_path(old)), dict(values_by_path(new))
    lost = [
        f'protectedDevices no longer names "{glob}"'
        for glob in old.protected_devices
        if glob not in new.protected_devices
    ]
    if old.dry_run and not new.dry_run:
        lost.insert(0, "dryRun ended: from now on devices are disassociated")
    if old.restore_on_return and not new.restore_on_return:
        lost.append("restoreOnReturn ended: a device that comes back is not associated again")
    for path in ("offlineThreshold", "gracePeriod", "neverSeenThreshold", "massLoss.window"):
        was, now = before[path], after[path]  # None is never
        if now is not None and (was is None or now < was):
            told = "never" if was is None else format_duration(was)
            lost.append(f"{path} is shorter: {told} became {format_duration(now)}")
    for path, figure in before.items():
        if path.startswith(("limits.", "massLoss.min")) and after[path] > figure:
            lost.append(f"{path} is higher: {figure:g} became {after[path]:g}")
    had, has = _threshold_by_glob(old), _threshold_by_glob(new)
    for glob in {**had, **has}:
        was, now = had.get(glob, old.offline_threshold_seconds), has.get(glob, new.offline_threshold_seconds)
        if now < was:
            lost.append(f'thresholds: "{glob}" had {format_duration(was)} and has {format_duration(now)}')
    return tuple(lost)
