"""The sources of a configuration: what they are, and how they are read."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from client_device_pruner.document import (
    Key,
    Reading,
    Schema,
    anything,
    defaults,
    duration,
    flag,
    number,
    shown,
    step,
    text,
    texts,
)
from client_device_pruner.topics import is_filter, is_topic, level_of, topic_matches


@dataclass(frozen=True, slots=True)
class EmqxSource:
    """Sessions that an EMQX broker announces, and its own count of them."""

    type: ClassVar[str] = "emqx"
    name: str
    connected_topic: str
    """Filter of the events that open a session; its second `+` matches the thing name."""
    disconnected_topic: str
    """Filter of the events that close one; the thing name is on the same level."""
    count_topic: str
    """Filter of the count of live connections, the census."""
    uptime_topic: str
    """Filter of the broker's uptime."""
    max_quiet_seconds: float
    """Longest time between vouchers that is still vouched for; 10s to 7d."""
    bridge_client_id: str
    """Glob of the bridge's client id, used where the bridge's configuration does not name one."""
    thing_name_level: int
    """Topic level (0-based) of the thing name."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The filters that the source needs, as on the broker."""
        return (self.connected_topic, self.disconnected_topic, self.count_topic, self.uptime_topic)

    @property
    def identity(self) -> str:
        """What the source is, whatever it is called."""
        return _identity(self)


@dataclass(frozen=True, slots=True)
class ActivitySource:
    """Messages that only the devices themselves publish."""

    type: ClassVar[str] = "activity"
    name: str
    topic: str
    """Filter of the messages; its first `+` matches the thing name."""
    max_quiet_seconds: float
    """Longest time between messages that is still vouched for; 10s to 7d."""
    canary_topic: str
    """Topic on local pub/sub where the canary is published; empty: no canary."""
    payload_field: str
    """Dotted path in a JSON payload to the value that `ignored_values` names; empty: the whole payload."""
    ignored_values: tuple[str, ...]
    """Payloads that are no sign of life, a will's `offline` for instance."""
    thing_name_level: int
    """Topic level (0-based) of the thing name."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The filters that the source needs, as on the broker."""
        return (self.topic,)

    @property
    def identity(self) -> str:
        """What the source is, whatever it is called."""
        return _identity(self)


Source = EmqxSource | ActivitySource


def _identity(source: Source) -> str:
    return json.dumps([source.type, *source.topics, source.thing_name_level])


def _is_field(value: str) -> bool:
    return all(value.split("."))


def _filter(default: str) -> Key:
    return text(default, is_filter, "a topic filter, in which + fills a level and # stands only at the end")


def _max_quiet(default: str) -> Key:
    return duration(default, 10, 7 * 86400)


@dataclass(frozen=True, slots=True)
class _Type:
    """A type of source; its class takes the name, the values of `keys` in their order, and the level."""

    make: Callable[..., Source]
    keys: Schema
    named_topics: tuple[str, ...]
    """The keys of the topics that hold the thing name,"""
    nth_plus: int
    """and which of their `+` matches it."""


_COMMON_KEYS: Schema = {
    "type": anything(None),
    "enabled": flag(True),
    "thingNameLevel": number(None, 0, 65535, whole=True),
}
_TYPES = {
    "emqx": _Type(
        make=EmqxSource,
        keys={
            "connectedTopic": _filter("$SYS/brokers/+/clients/+/connected"),
            "disconnectedTopic": _filter("$SYS/brokers/+/clients/+/disconnected"),
            "countTopic": _filter("$SYS/brokers/+/stats/live_connections/count"),
            "uptimeTopic": _filter("$SYS/brokers/+/uptime"),
            "maxQuiet": _max_quiet("3m"),
            "bridgeClientId": text("mqtt-bridge-*", str.isprintable, "a client id, in which * is a wildcard"),
        },
        named_topics=("connectedTopic", "disconnectedTopic"),
        nth_plus=2,
    ),
    "activity": _Type(
        make=ActivitySource,
        keys={
            "topic": _filter("clients/+/#"),
            "maxQuiet": _max_quiet("1h"),
            "canaryTopic": text("pruner-canary/telemetry", is_topic, "a topic without wildcards", or_empty=True),
            "payloadField": text("", _is_field, 'a dotted path such as "state.value"', or_empty=True),
            "ignoredValues": texts([], lambda _: True, "a text in quotes"),
        },
        named_topics=("topic",),
        nth_plus=1,
    ),
}
_DEFAULT_TYPES = {"emqx": "emqx", "messages": "activity"}

DEFAULT_SOURCES: Mapping[str, Any] = {
    name: {"type": kind, **defaults(_COMMON_KEYS), **defaults(_TYPES[kind].keys)}
    for name, kind in _DEFAULT_TYPES.items()
}
"""The sources that exist unless they are switched off."""


def read_sources(reading: Reading, document: object, prefix: str | None) -> tuple[tuple[Source, ...], float | None]:
    """Read the map of sources; problems are kept in `reading`.

    Returns:
        The enabled ones, by name; and maxQuiet (seconds) of the one named `emqx`, be it on or off.
    """
    named: dict[str, Any] = {name: {} for name in _DEFAULT_TYPES}
    for name, body in reading.names(document, "sources").items():
        folded = name.casefold()  # as the nucleus does: EMQX is the default source emqx
        if folded == "rollcall":
            reading.problem(f"sources.{name}", "this name stands for the roll call", "another name")
            continue
        named[folded if folded in _DEFAULT_TYPES else name] = body
    sources: dict[tuple[str, ...], Source] = {}
    emqx_quiet_seconds = None
    for name, body in sorted(named.items()):
        path, before = f"sources.{step(name)}", len(reading.problems)
        kind = _type(reading, path, _DEFAULT_TYPES.get(name), body)
        if kind is None:
            continue
        values = reading.section({**_COMMON_KEYS, **_TYPES[kind].keys}, body, path)
        level = _thing_name_level(reading, path, _TYPES[kind], values)
        if len(reading.problems) > before:
            continue
        source = _TYPES[kind].make(name, *(values[key] for key in _TYPES[kind].keys), level)
        if name == "emqx":
            emqx_quiet_seconds = source.max_quiet_seconds
        if values["enabled"]:
            twin = sources.setdefault((kind, *source.topics), source)
            if twin is not source:
                what = f"sources.{step(twin.name)} has the same type and topics"
                reading.problem(path, what, "other topics, or enabled: false in one of them")
    _refuse_echoes(reading, sources.values(), prefix)
    return tuple(sources.values()), emqx_quiet_seconds


def _type(reading: Reading, path: str, usual: str | None, body: object) -> str | None:
    given = body.get("type") if isinstance(body, Mapping) else usual
    kind = usual if given is None else given
    if isinstance(kind, str) and kind in _TYPES and usual in {None, kind}:
        return kind
    what = "missing" if kind is None else f"{shown(kind)} will not do"
    write = f"{usual}, or give the source another name" if usual else f"one of {', '.join(_TYPES)}"
    reading.problem(f"{path}.type", what, write)
    return None


def _thing_name_level(reading: Reading, path: str, kind: _Type, values: Mapping[str, Any]) -> int | None:
    """Give the topic level of the thing name, which all of the source's topics with a thing name share."""
    given, levels = values["thingNameLevel"], set()
    for key in kind.named_topics:
        topic = values[key]
        if topic is None:
            continue  # it has a problem already
        level = level_of(topic, kind.nth_plus) if given is None else given
        last = topic.count("/")
        if level is None:
            what = f"the thing name stands where + number {kind.nth_plus} is, and {shown(topic)} has fewer"
            reading.problem(f"{path}.{key}", what, "a topic with it, or give thingNameLevel")
        elif level > last and not topic.endswith("#"):
            reading.problem(f"{path}.thingNameLevel", f"{key} has no level {level}", f"a level from 0 to {last}")
        else:
            levels.add(level)
    if len(levels) > 1:
        what = f"its thing name is not on the same level as that of {kind.named_topics[0]}"
        reading.problem(f"{path}.{kind.named_topics[-1]}", what, "both with equal levels")
    return min(levels, default=None)


def _refuse_echoes(reading: Reading, sources: Iterable[Source], prefix: str | None) -> None:
    """Refuse a canary that is heard as it is published: it would vouch for a bridge that is dead."""
    heard = [f"{prefix}{topic}" for source in sources for topic in source.topics if prefix is not None]
    for source in sources:
        canary = source.canary_topic if isinstance(source, ActivitySource) else ""
        if canary and any(topic_matches(topic, canary) for topic in heard):
            what = f"{shown(canary)} is heard without the bridge, which would prove nothing"
            reading.problem(f"sources.{step(source.name)}.canaryTopic", what, 'a topic that no source hears, or ""')
