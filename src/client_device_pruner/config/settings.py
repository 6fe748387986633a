"""The component's configuration: a document is read whole, or refused with every problem that it has."""
# ruff: noqa: RUF009 - each field is made by the key that fills it

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from client_device_pruner.config.schema import (
    SHORTEST_SECONDS,
    Reading,
    defaults,
    duration,
    flag,
    flatten,
    named,
    number,
    section,
    setting,
    step,
    text,
    texts,
)
from client_device_pruner.config.schema import format_duration as format_duration  # noqa: PLC0414 - others take it from here
from client_device_pruner.config.topics import is_filter, is_topic

_DAY = 86400.0
_USUAL_PROBE_SECONDS = 60.0  # the presence.probeInterval for which the fixed times of the model are made
_MOST = 2**31 - 1
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_SHADOW_NAME = re.compile(r"[a-zA-Z0-9:_-]{1,64}")


class SettingsRefused(Exception):
    """A document was refused; `problems` are texts `path: what is wrong; write what is right`."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


# --- What texts are accepted --------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether a host of a URL, or an address, is this machine's loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_api_url(value: str) -> bool:
    if not re.fullmatch(r"https?://[!-~]+", value) or set(value) & set("@?#"):
        return False
    try:
        url = urlsplit(value)
        host, port = url.hostname or "", url.port
    except ValueError:
        return False
    return host != "" and port != 0 and (url.scheme == "https" or is_loopback(host))


def _is_absolute_path(value: str) -> bool:
    return value.startswith("/") and value.isprintable()


def _is_iot_core_topic(value: str) -> bool:
    topic = value.replace("{thingName}", "thing")
    return is_topic(topic) and not set(topic) & set("{}")


def _is_message_topic(value: str) -> bool:
    return is_filter(value) and "+" in value.split("/") and not value.startswith("$SYS/")


def _is_glob(value: str) -> bool:
    return bool(re.fullmatch(r"(?:[a-zA-Z0-9:_*?-]|\[!?[a-zA-Z0-9:_-]+\])+", value)) and _compiles(value)


def _compiles(glob: str) -> bool:
    try:
        return bool(_any_of((glob,)))
    except re.error:  # a range that runs backwards, on Python 3.10
        return False


@lru_cache(maxsize=256)
def _any_of(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")


_THRESHOLD = duration(_DAY, 3650 * _DAY)
_USUAL = duration(10, 7 * _DAY)
_PERCENT = number(0, 100)
_GLOBS = texts(_is_glob, "a thing-name glob (letters, digits, : _ - and the wildcards * ? [ ])")
_TOPIC_FORM = "a topic without wildcards"


# --- The keys, with the contract's defaults and bounds -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientList:
    """EMQX's HTTP API, which tells who is connected."""

    url: str = setting(
        "url",
        "auto",
        text(
            lambda value: value == "auto" or _is_api_url(value),
            '"auto", or an https URL, or an http one of the loopback, without credentials',
            or_empty=True,
        ),
    )
    """`auto`: out of EMQX's own configuration; base of the API; empty: off."""
    credentials_file: str = setting(
        "credentialsFile", "", text(_is_absolute_path, "the absolute path of a file", or_empty=True)
    )
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
    message_topics: tuple[str, ...] = setting(
        "messageTopics",
        ["clients/+/#"],
        texts(_is_message_topic, 'a topic filter whose first "+" is the thing name, such as "clients/+/#"'),
    )
    """Filters of what the devices publish; the level of the first `+` is the thing name."""
    ignored_payloads: tuple[str, ...] = setting("ignoredPayloads", ["offline"], texts(_compiles, "a glob in quotes"))
    """Globs of payloads that are no sign of life, case aside."""
    client_list: ClientList = section("clientList", ClientList)
    """EMQX's HTTP API."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold of their own for some devices."""

    name: str
    devices: tuple[str, ...] = setting("devices", None, _GLOBS)
    """Thing-name globs."""
    offline_threshold_seconds: float = setting("offlineThreshold", None, _THRESHOLD)
    """Silence after which a device that matches is gone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be disassociated; 0 means nothing, never everything."""

    max_per_cycle: int = setting("maxPerCycle", 100, number(0, _MOST, whole=True))
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

    local_topic: str = setting("localTopic", "client-device-pruner/events", text(is_topic, _TOPIC_FORM, or_empty=True))
    """Topic of the events on local pub/sub."""
    iot_core_topic: str = setting(
        "iotCoreTopic", "", text(_is_iot_core_topic, f"{_TOPIC_FORM} or braces but {{thingName}}", or_empty=True)
    )
    """Topic of the events on AWS IoT Core, `{thingName}` standing for the core device."""
    shadow_name: str = setting(
        "shadowName",
        "client-device-pruner",
        text(_SHADOW_NAME.fullmatch, "up to 64 letters, digits, : _ or -", or_empty=True),
    )
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
    never_seen_threshold_seconds: float | None = setting(
        "neverSeenThreshold", "90d", duration(_DAY, 3650 * _DAY, or_never=True)
    )
    """Threshold of devices without any sighting since they were associated; None: never."""
    thresholds: tuple[Threshold, ...] = named("thresholds", Threshold)
    """Thresholds for some devices; where several match, the longest counts."""
    protected_devices: tuple[str, ...] = setting("protectedDevices", [], _GLOBS)
    """Thing-name globs that are never disassociated."""
    restore_on_return: bool = setting("restoreOnReturn", True, flag)
    """Associate a device again when it is sighted after this component disassociated it."""
    presence: Presence = section("presence", Presence)
    """What is listened to."""
    limits: Limits = section("limits", Limits)
    """How much may be disassociated."""
    mass_loss: MassLoss = section("massLoss", MassLoss)
    """What counts as lost together."""
    approved_plan: str = setting("approvedPlan", "", text(str.isprintable, "a plan's id in quotes", or_empty=True))
    """Id of the plan that is approved; empty: none."""
    reports: Reports = section("reports", Reports)
    """Where events and status go."""
    allow_short_durations: bool = setting("allowShortDurations", False, flag)
    """Accept durations below their bounds, down to 100 ms: for trials."""
    log_level: str = setting("logLevel", "INFO", text(_LEVELS.__contains__, f"one of {', '.join(_LEVELS)}"))
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
    warnings: tuple[str, ...] = ()
    """What to warn about at each start: short durations, and each value that was made smaller for them."""

    @property
    def scale(self) -> float:
        """Factor of the times that are not configurable: below 1 in a trial with a short probe interval."""
        if not self.allow_short_durations:
            return 1.0
        return min(1.0, self.presence.probe_interval_seconds / _USUAL_PROBE_SECONDS)

    def threshold_seconds(self, name: str) -> float:
        """Threshold of a device: the longest one that matches, else the general one."""
        rule = self._rule(name)
        return rule.offline_threshold_seconds if rule else self.offline_threshold_seconds

    def threshold_name(self, name: str) -> str:
        """Key path of the threshold of a device."""
        rule = self._rule(name)
        return f"thresholds.{step(rule.name)}" if rule else "offlineThreshold"

    def is_protected(self, name: str) -> bool:
        """Whether a device is never to be disassociated."""
        return _any_of(self.protected_devices).match(name) is not None

    def _rule(self, name: str) -> Threshold | None:
        rules = (rule for rule in self.thresholds if _any_of(rule.devices).match(name))
        return max(rules, key=lambda rule: rule.offline_threshold_seconds, default=None)


DEFAULTS: dict[str, Any] = defaults(Settings)
"""The default document, equal to that of the recipe."""


# --- Reading a document, and comparing two -------------------------------------------------------------------


def parse(document: Any) -> Settings:
    """Read a configuration document; what is absent or null has its default.

    Raises:
        SettingsRefused: The document has problems; all of them are told.
    """
    document = {} if document is None else document
    short = False
    if isinstance(document, Mapping):
        document = {key: value for key, value in document.items() if key != "accessControl"}  # the nucleus's own
        allow = document.get("allowShortDurations")
        short = allow is True or (isinstance(allow, str) and allow.lower() == "true")
    reading = Reading(short=short)
    values = reading.section(Settings, document)
    if reading.problems:
        raise SettingsRefused(tuple(reading.problems))
    return _shortened(Settings(**values)) if short else Settings(**values)


def _shortened(settings: Settings) -> Settings:
    """Make smaller what does not fit the short thresholds of a trial, so that it works with these alone."""
    thresholds = [rule.offline_threshold_seconds for rule in settings.thresholds]
    thresholds += [settings.offline_threshold_seconds, settings.never_seen_threshold_seconds or _MOST]
    shortest, warnings = min(thresholds), ["allowShortDurations is on: for trials only, never for a site that works"]

    def fitting(path: str, seconds: float, divisor: int) -> float:
        most = max(SHORTEST_SECONDS, shortest / divisor)
        if seconds <= most:
            return seconds
        share = "half" if divisor == 2 else "a tenth"
        warnings.append(
            f"{path} is {format_duration(most)} instead of {format_duration(seconds)}:"
            f" {share} of the shortest threshold, {format_duration(shortest)}"
        )
        return most

    presence, client_list, mass_loss = settings.presence, settings.presence.client_list, settings.mass_loss
    probe = fitting("presence.probeInterval", presence.probe_interval_seconds, 10)
    asked = fitting("presence.clientList.interval", client_list.interval_seconds, 2)
    window = fitting("massLoss.window", mass_loss.window_seconds, 10)
    client_list = replace(client_list, interval_seconds=asked)
    return replace(
        settings,
        check_interval_seconds=fitting("checkInterval", settings.check_interval_seconds, 2),
        grace_period_seconds=fitting("gracePeriod", settings.grace_period_seconds, 2),
        presence=replace(presence, probe_interval_seconds=probe, client_list=client_list),
        mass_loss=replace(mass_loss, window_seconds=window),
        warnings=tuple(warnings),
    )


def changed_keys(old: Settings, new: Settings) -> tuple[str, ...]:
    """Name the key paths whose values differ, such as `limits.maxPerCycle`."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return tuple(path for path in {**before, **after} if before.get(path) != after.get(path))


_DURATIONS_THAT_PROTECT = ("offlineThreshold", "gracePeriod", "neverSeenThreshold", "massLoss.window")
_FIGURES_THAT_LIMIT = (
    "limits.maxPerCycle",
    "limits.maxPercentPerDay",
    "limits.approvalPercent",
    "massLoss.minDevices",
    "massLoss.minPercent",
)


def protection_lost(old: Settings, new: Settings) -> tuple[str, ...]:
    """Say in a sentence each what protection of the devices a new configuration ends."""
    return tuple(_lost(old, new))


def _lost(old: Settings, new: Settings) -> Iterator[str]:
    before, after = dict(flatten(old)), dict(flatten(new))
    if old.dry_run and not new.dry_run:
        yield "dryRun ended: from now on devices are disassociated"
    if old.restore_on_return and not new.restore_on_return:
        yield "restoreOnReturn ended: a device that comes back is not associated again"
    for glob in old.protected_devices:
        # A plain name may be covered by a glob that took its place.
        covered = not set(glob) & set("*?[") and new.is_protected(glob)
        if glob not in new.protected_devices and not covered:
            yield f'protectedDevices lost "{glob}"'
    for path in _DURATIONS_THAT_PROTECT:
        was, now = before[path], after[path]  # None is never
        if now is not None and (was is None or now < was):
            yield f"{path} is shorter: {'never' if was is None else format_duration(was)} became {format_duration(now)}"
    for path in _FIGURES_THAT_LIMIT:
        if after[path] > before[path]:
            yield f"{path} is higher: {before[path]:g} became {after[path]:g}"
    yield from _thresholds_lost(old, new)


def _thresholds_lost(old: Settings, new: Settings) -> Iterator[str]:
    """Compare the thresholds of some devices, glob by glob."""
    kept = {(glob, rule.offline_threshold_seconds) for rule in new.thresholds for glob in rule.devices}
    had = {(glob, rule.offline_threshold_seconds) for rule in old.thresholds for glob in rule.devices}
    for glob, seconds in sorted(had):
        left = max((now for other, now in kept if other == glob), default=new.offline_threshold_seconds)
        if left < seconds:
            yield f'thresholds: "{glob}" had {format_duration(seconds)} and has {format_duration(left)}'
    for glob, seconds in sorted(kept):
        if seconds < old.offline_threshold_seconds and not any(glob == other for other, _ in had):
            yield f'thresholds: "{glob}" has {format_duration(seconds)}, less than offlineThreshold'
