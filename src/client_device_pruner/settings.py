"""The component's configuration: a document is read whole, or refused with every problem that it has."""

# Without `from __future__ import annotations`: the keys are read from the annotations.
import fnmatch
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from client_device_pruner.document import (
    Key,
    Reading,
    Section,
    anything,
    defaults,
    duration,
    flag,
    format_duration,
    keys_of,
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
_GLOB_FORM = "a thing-name glob (letters, digits, : _ - and the wildcards * ? [ ])"
_TOPIC_FORM = "a topic without wildcards"
_URL_FORM = "an https URL, or http to a loopback host, without credentials"
_SHADOW_NAME = re.compile(r"[a-zA-Z0-9:_-]{1,64}")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_MOST = 2**31 - 1


class SettingsRefused(Exception):
    """A document was refused; `problems` are texts `path: what is wrong and what to write`."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


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


def _threshold(name: str, default: str | None, *, or_never: bool = False) -> Key:
    return duration(name, default, _DAY, 3650 * _DAY, or_never=or_never)


# --- The keys, with the defaults and bounds of the contract's tables, beside what they configure --------------


class RollCallSettings(NamedTuple):
    """How to ask EMQX's HTTP API who is connected."""

    url: Annotated[str, text("url", "", _is_api_url, _URL_FORM, or_empty=True)]
    """Base of the API: https, or http to a loopback host."""
    key_file: Annotated[str, text("keyFile", "", _is_absolute_path, "an absolute path", or_empty=True)]
    """Absolute path of a file that holds `key:secret`."""
    interval_seconds: Annotated[float, duration("interval", "15m", 10, 7 * _DAY)]
    """Time between roll calls."""


class ThresholdRule(NamedTuple):
    """A threshold of their own for some client devices."""

    name: str
    clients: Annotated[tuple[str, ...], texts("clients", None, _is_glob, _GLOB_FORM)]
    """Thing-name globs."""
    offline_threshold_seconds: Annotated[float, _threshold("offlineThreshold", None)]
    """Absence after which a device that matches is stale."""


class Limits(NamedTuple):
    """How much may be disassociated; 0 means nothing, never everything."""

    max_per_cycle: Annotated[int, number("maxPerCycle", 100, 0, _MOST, whole=True)]
    """Most disassociations in one cycle."""
    max_percent_per_day: Annotated[float, number("maxPercentPerDay", 10, 0, 100)]
    """Most disassociations in 24 h of running time, as a percentage of the associated devices, rounded up."""
    approval_percent: Annotated[float, number("approvalPercent", 50, 0, 100)]
    """More than 3 due devices, and more than this percentage of the associated ones, wait for approval."""


class MassLoss(NamedTuple):
    """When absences that began together are one outage."""

    window_seconds: Annotated[float, duration("window", "10m", 10, 7 * _DAY)]
    """Longest time between the beginnings of two of them."""
    min_devices: Annotated[int, number("minDevices", 3, 1, _MOST, whole=True)]
    """Fewest devices that are an outage."""
    min_percent: Annotated[float, number("minPercent", 30, 0, 100)]
    """Smallest part, in percent, of the devices present then that is an outage."""


class Reports(NamedTuple):
    """Where events and status go; an empty text switches one off."""

    local_topic: Annotated[str, text("localTopic", "client-device-pruner/events", is_topic, _TOPIC_FORM, or_empty=True)]
    """Topic of the events on local pub/sub."""
    iot_core_topic: Annotated[
        str,
        text("iotCoreTopic", "", _is_iot_core_topic, f"{_TOPIC_FORM} or braces but {{thingName}}", or_empty=True),
    ]
    """Topic of the events on AWS IoT Core, `{thingName}` standing for the core device."""
    shadow_name: Annotated[
        str,
        text(
            "shadowName",
            "client-device-pruner",
            _SHADOW_NAME.fullmatch,
            "up to 64 letters, digits, : _ or -",
            or_empty=True,
        ),
    ]
    """Named shadow of the core device that holds the status."""


class Settings(NamedTuple):
    """A configuration that was accepted; all durations in seconds."""

    offline_threshold_seconds: Annotated[float, _threshold("offlineThreshold", "30d")]
    """Absence after which a client device is stale."""
    notice_seconds: Annotated[float, duration("noticePeriod", "1d", 0, 90 * _DAY)]
    """Time on the proving source's clock between marking and disassociating."""
    check_interval_seconds: Annotated[float, duration("checkInterval", "6h", 300, 7 * _DAY)]
    """Time between cycles."""
    dry_run: Annotated[bool, flag("dryRun", False)]
    """Do all but the disassociation."""
    inbound_prefix: Annotated[
        str,
        text("inboundPrefix", "client-device-pruner/in/", _is_prefix, 'a topic that ends in "/"', or_empty=True),
    ]
    """Prefix of the sources' topics on local pub/sub; empty: they are subscribed to as they are."""
    sources: Annotated[tuple[Source, ...], anything("sources", {})]
    """The enabled sources, by name."""
    roll_call: Annotated[RollCallSettings | None, Section("rollCall", RollCallSettings)]
    """The roll call, None when it is off."""
    thresholds: Annotated[tuple[ThresholdRule, ...], anything("thresholds", {})]
    """Thresholds for some devices; where several match, the longest counts."""
    protected_clients: Annotated[tuple[str, ...], texts("protectedClients", [], _is_glob, _GLOB_FORM)]
    """Thing-name globs that are never disassociated."""
    never_seen_seconds: Annotated[float | None, _threshold("neverSeenThreshold", "", or_never=True)]
    """Threshold of devices without any sign of life since they were associated; None: never."""
    limits: Annotated[Limits, Section("limits", Limits)]
    """How much may be disassociated."""
    approved_plan: Annotated[str, text("approvedPlan", "", str.isprintable, "a plan's id in quotes", or_empty=True)]
    """Id of the plan that is approved; empty: none."""
    mass_loss: Annotated[MassLoss, Section("massLoss", MassLoss)]
    """What an outage is."""
    restore_on_return: Annotated[bool, flag("restoreOnReturn", False)]
    """Associate a device again when it shows life after this component disassociated it."""
    reports: Annotated[Reports, Section("reports", Reports)]
    """Where events and status go."""
    allow_short_durations: Annotated[bool, flag("allowShortDurations", False)]
    """Durations below their bounds, down to 100 ms, are accepted: for trials and tests."""
    log_level: Annotated[str, text("logLevel", "INFO", _LEVELS.__contains__, f"one of {', '.join(_LEVELS)}")]
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
    scale: float
    """Factor of the times that are not configurable: 1, but `emqx`'s maxQuiet / 3m with short durations."""
    longest_first: tuple[tuple[re.Pattern[str], float], ...]
    """The globs of `thresholds`, compiled by `parse`; `_replace` would not make them anew."""
    protected: re.Pattern[str]
    """The globs of `protected_clients`, compiled by `parse`; `_replace` would not make them anew."""

    def threshold_seconds(self, name: str) -> float:
        """Give the threshold of a device: that of the longest rule that matches, else the general one."""
        for pattern, seconds in self.longest_first:
            if pattern.match(name):
                return seconds
        return self.offline_threshold_seconds

    def is_protected(self, name: str) -> bool:
        """Tell whether a device is never to be disassociated."""
        return self.protected.match(name) is not None

    def subscriptions(self) -> tuple[str, ...]:
        """Give the filters to subscribe to on local pub/sub."""
        if self.inbound_prefix:
            return (f"{self.inbound_prefix}#",)
        return tuple(dict.fromkeys(topic for source in self.sources for topic in source.topics))


DEFAULTS: Mapping[str, Any] = MappingProxyType(defaults(keys_of(Settings)) | {"sources": DEFAULT_SOURCES})
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
    values = reading.section(keys_of(Settings), document)
    sources, emqx_quiet_seconds = read_sources(reading, values["sources"], values["inbound_prefix"])
    thresholds = tuple(
        ThresholdRule(name, **reading.section(keys_of(ThresholdRule), body, f"thresholds.{step(name)}"))
        for name, body in sorted(reading.names(values["thresholds"], "thresholds").items())
    )
    roll_call: RollCallSettings = values["roll_call"]
    if roll_call.url and roll_call.key_file == "":
        reading.problem("rollCall.keyFile", "missing", "the absolute path of a file that holds key:secret")
    if reading.problems:
        raise SettingsRefused(tuple(reading.problems))
    scale = (emqx_quiet_seconds or _USUAL_QUIET_SECONDS) / _USUAL_QUIET_SECONDS if reading.short else 1.0
    rules = sorted(thresholds, key=lambda rule: -rule.offline_threshold_seconds)
    read = {
        "sources": sources,
        "thresholds": thresholds,
        "roll_call": roll_call if roll_call.url else None,
        "scale": scale,
        "longest_first": tuple((_any_of(rule.clients), rule.offline_threshold_seconds) for rule in rules),
        "protected": _any_of(values["protected_clients"]),
    }
    return Settings(**values | read)
