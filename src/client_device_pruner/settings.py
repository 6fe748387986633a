"""The component's configuration: a document is read whole, or refused with every problem that it has."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from client_device_pruner.document import (
    Key,
    Reading,
    Schema,
    anything,
    defaults,
    duration,
    flag,
    format_duration,
    number,
    parse_duration,
    step,
    text,
    texts,
)
from client_device_pruner.source_settings import (
    DEFAULT_SOURCES,
    ActivitySource,
    EmqxSource,
    Source,
    read_sources,
)
from client_device_pruner.topics import is_topic

__all__ = [
    "DEFAULTS",
    "ActivitySource",
    "EmqxSource",
    "Limits",
    "MassLoss",
    "Reports",
    "RollCallSettings",
    "Settings",
    "SettingsRefused",
    "Source",
    "ThresholdRule",
    "format_duration",
    "parse",
    "parse_duration",
]

_DAY = 86400.0
_USUAL_QUIET_SECONDS = 180.0  # maxQuiet of `emqx` for which the times that are not configurable are made


class SettingsRefused(Exception):
    """A document was refused; `problems` are texts `path: what is wrong and what to write`."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class RollCallSettings:
    """How to ask EMQX's HTTP API who is connected."""

    url: str
    """Base of the API: https, or http to a loopback host."""
    key_file: str
    """Absolute path of a file that holds `key:secret`."""
    interval_seconds: float
    """Time between roll calls; 10s to 7d."""


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """A threshold of their own for some client devices."""

    name: str
    clients: tuple[str, ...]
    """Thing-name globs."""
    offline_threshold_seconds: float
    """Absence after which a device that matches is stale; 1d to 3650d."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be disassociated; 0 means nothing, never everything."""

    max_per_cycle: int
    """Most disassociations in one cycle."""
    max_percent_per_day: float
    """Most disassociations in 24 h of running time, as a percentage of the associated devices, rounded up."""
    approval_percent: float
    """More than 3 due devices, and more than this percentage of the associated ones, wait for approval."""


@dataclass(frozen=True, slots=True)
class MassLoss:
    """When absences that began together are one outage."""

    window_seconds: float
    """Longest time between the beginnings of two of them; 10s to 7d."""
    min_devices: int
    """Fewest devices that are an outage; 1 or more."""
    min_percent: float
    """Smallest part, in percent, of the devices present then that is an outage."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Where events and status go; an empty text switches one off."""

    local_topic: str
    """Topic of the events on local pub/sub."""
    iot_core_topic: str
    """Topic of the events on AWS IoT Core, `{thingName}` standing for the core device."""
    shadow_name: str
    """Named shadow of the core device that holds the status."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration that was accepted; all durations in seconds."""

    offline_threshold_seconds: float
    """Absence after which a client device is stale; 1d to 3650d."""
    notice_seconds: float
    """Time on the proving source's clock between marking and disassociating; 0s to 90d."""
    check_interval_seconds: float
    """Time between cycles; 5m to 7d."""
    dry_run: bool
    """Do all but the disassociation."""
    inbound_prefix: str
    """Prefix of the sources' topics on local pub/sub; empty: they are subscribed to as they are."""
    sources: tuple[Source, ...]
    """The enabled sources, by name."""
    roll_call: RollCallSettings | None
    """The roll call, None when it is off."""
    thresholds: tuple[ThresholdRule, ...]
    """Thresholds for some devices; where several match, the longest counts."""
    protected_clients: tuple[str, ...]
    """Thing-name globs that are never disassociated."""
    never_seen_seconds: float | None
    """Threshold of devices without any sign of life since they were associated (1d to 3650d); None: never."""
    limits: Limits
    """How much may be disassociated."""
    approved_plan: str
    """Id of the plan that is approved; empty: none."""
    mass_loss: MassLoss
    """What an outage is."""
    restore_on_return: bool
    """Associate a device again when it shows life after this component disassociated it."""
    reports: Reports
    """Where events and status go."""
    allow_short_durations: bool
    """Durations below their bounds, down to 100 ms, are accepted: for trials and tests."""
    log_level: str
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
    scale: float
    """Factor of the times that are not configurable: 1, but `emqx`'s maxQuiet / 3m with short durations."""
    _longest_first: tuple[tuple[re.Pattern[str], float], ...] = field(init=False, repr=False, compare=False)
    _protected: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the globs, once."""
        rules = sorted(self.thresholds, key=lambda rule: -rule.offline_threshold_seconds)
        compiled = tuple((_any_of(rule.clients), rule.offline_threshold_seconds) for rule in rules)
        object.__setattr__(self, "_longest_first", compiled)
        object.__setattr__(self, "_protected", _any_of(self.protected_clients))

    def threshold_seconds(self, name: str) -> float:
        """Give the threshold of a device: that of the longest rule that matches, else the general one."""
        for pattern, seconds in self._longest_first:
            if pattern.match(name):
                return seconds
        return self.offline_threshold_seconds

    def is_protected(self, name: str) -> bool:
        """Tell whether a device is never to be disassociated."""
        return self._protected.match(name) is not None

    def subscriptions(self) -> tuple[str, ...]:
        """Give the filters to subscribe to on local pub/sub."""
        if self.inbound_prefix:
            return (f"{self.inbound_prefix}#",)
        return tuple(dict.fromkeys(topic for source in self.sources for topic in source.topics))


# --- What texts are accepted --------------------------------------------------------------------------------


def _is_prefix(value: str) -> bool:
    return value.endswith("/") and is_topic(value)


def _is_absolute_path(value: str) -> bool:
    return value.startswith("/") and value.isprintable()


def _is_iot_core_topic(value: str) -> bool:
    topic = value.replace("{thingName}", "thing")
    return is_topic(topic) and not set(topic) & set("{}")


def _is_glob(value: str) -> bool:
    if not re.fullmatch(r"(?:[a-zA-Z0-9:_*?-]|\[!?[a-zA-Z0-9:_-]+\])+", value):
        return False
    try:
        return bool(_any_of((value,)))
    except re.error:  # a range that runs backwards, on Python 3.10
        return False


def _is_api_url(value: str) -> bool:
    if not re.fullmatch(r"https?://[!-~]+", value) or set(value) & set("@?#"):
        return False
    # Few sites make roll calls, and these hold 0.5 MiB.
    import ipaddress
    from urllib.parse import urlsplit

    try:
        url = urlsplit(value)
        host, port = url.hostname or "", url.port

        here = host == "localhost" or (url.scheme == "http" and ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False
    return host != "" and port != 0 and (here or url.scheme == "https")


def _any_of(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")


# --- The keys, with the defaults and bounds of the contract's tables ----------------------------------------

_GLOB_FORM = "a thing-name glob (letters, digits, : _ - and the wildcards * ? [ ])"
_TOPIC_FORM = "a topic without wildcards"
_URL_FORM = "an https URL, or http to a loopback host, without credentials"
_SHADOW_NAME = re.compile(r"[a-zA-Z0-9:_-]{1,64}")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_MOST = 2**31 - 1


def _threshold(default: str | None, *, or_never: bool = False) -> Key:
    return duration(default, _DAY, 3650 * _DAY, or_never=or_never)


_RULE: Schema = {"clients": texts(None, _is_glob, _GLOB_FORM), "offlineThreshold": _threshold(None)}
_DOCUMENT: Schema = {
    "offlineThreshold": _threshold("30d"),
    "noticePeriod": duration("1d", 0, 90 * _DAY),
    "checkInterval": duration("6h", 300, 7 * _DAY),
    "dryRun": flag(False),
    "inboundPrefix": text("client-device-pruner/in/", _is_prefix, 'a topic that ends in "/"', or_empty=True),
    "sources": anything({}),
    "rollCall": {
        "url": text("", _is_api_url, _URL_FORM, or_empty=True),
        "keyFile": text("", _is_absolute_path, "an absolute path", or_empty=True),
        "interval": duration("15m", 10, 7 * _DAY),
    },
    "thresholds": anything({}),
    "protectedClients": texts([], _is_glob, _GLOB_FORM),
    "neverSeenThreshold": _threshold("", or_never=True),
    "limits": {
        "maxPerCycle": number(100, 0, _MOST, whole=True),
        "maxPercentPerDay": number(10, 0, 100),
        "approvalPercent": number(50, 0, 100),
    },
    "approvedPlan": text("", str.isprintable, "a plan's id in quotes", or_empty=True),
    "massLoss": {
        "window": duration("10m", 10, 7 * _DAY),
        "minDevices": number(3, 1, _MOST, whole=True),
        "minPercent": number(30, 0, 100),
    },
    "restoreOnReturn": flag(False),
    "reports": {
        "localTopic": text("client-device-pruner/events", is_topic, _TOPIC_FORM, or_empty=True),
        "iotCoreTopic": text("", _is_iot_core_topic, f"{_TOPIC_FORM} or braces but {{thingName}}", or_empty=True),
        "shadowName": text(
            "client-device-pruner",
            _SHADOW_NAME.fullmatch,
            "up to 64 letters, digits, : _ or -",
            or_empty=True,
        ),
    },
    "allowShortDurations": flag(False),
    "logLevel": text("INFO", _LEVELS.__contains__, f"one of {', '.join(_LEVELS)}"),
}

DEFAULTS: Mapping[str, Any] = MappingProxyType(defaults(_DOCUMENT) | {"sources": DEFAULT_SOURCES})
"""The default document, as in the contract's tables and the recipe."""


# --- How a document is read ---------------------------------------------------------------------------------


def parse(document: object) -> Settings:
    """Read a configuration document; what is absent or null has its default.

    Raises:
        SettingsRefused: The document has problems; all of them are told.
    """
    document = {} if document is None else document
    reading = Reading()
    if isinstance(document, Mapping):
        document = {key: value for key, value in document.items() if key != "accessControl"}  # the nucleus'
        allow = document.get("allowShortDurations")
        reading.short = allow is True or (isinstance(allow, str) and allow.lower() == "true")
    values = reading.section(_DOCUMENT, document)
    sources, emqx_quiet_seconds = read_sources(reading, values["sources"], values["inboundPrefix"])
    thresholds = tuple(
        ThresholdRule(name, *reading.section(_RULE, body, f"thresholds.{step(name)}").values())
        for name, body in sorted(reading.names(values["thresholds"], "thresholds").items())
    )
    url, key_file, interval_seconds = values["rollCall"].values()
    if url and key_file == "":
        reading.problem("rollCall.keyFile", "missing", "the absolute path of a file that holds key:secret")
    if reading.problems:
        raise SettingsRefused(tuple(reading.problems))
    return Settings(
        offline_threshold_seconds=values["offlineThreshold"],
        notice_seconds=values["noticePeriod"],
        check_interval_seconds=values["checkInterval"],
        dry_run=values["dryRun"],
        inbound_prefix=values["inboundPrefix"],
        sources=sources,
        roll_call=RollCallSettings(url, key_file, interval_seconds) if url else None,
        thresholds=thresholds,
        protected_clients=values["protectedClients"],
        never_seen_seconds=values["neverSeenThreshold"],
        limits=Limits(*values["limits"].values()),
        approved_plan=values["approvedPlan"],
        mass_loss=MassLoss(*values["massLoss"].values()),
        restore_on_return=values["restoreOnReturn"],
        reports=Reports(*values["reports"].values()),
        allow_short_durations=values["allowShortDurations"],
        log_level=values["logLevel"],
        scale=(emqx_quiet_seconds or _USUAL_QUIET_SECONDS) / _USUAL_QUIET_SECONDS if reading.short else 1.0,
    )
