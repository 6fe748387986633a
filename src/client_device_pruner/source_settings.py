"""The sources of a configuration: what they are, and how they are read."""

# Without `from __future__ import annotations`: the keys are read from the annotations.
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from client_device_pruner.document import (
    Key,
    Keys,
    Reading,
    anything,
    defaults,
    duration,
    flag,
    keys_of,
    number,
    shown,
    step,
    text,
    texts,
)
from client_device_pruner.topics import is_filter, is_topic, level_of, topic_matches


def _is_field(value: str) -> bool:
    return all(value.split("."))


def _filter(name: str, default: str) -> Key:
    return text(name, default, is_filter, "a topic filter, in which + fills a level and # stands only at the end")


def _max_quiet(default: str) -> Key:
    return duration("maxQuiet", default, 10, 7 * 86400)


_THING_NAME_LEVEL = number("thingNameLevel", None, 0, 65535, whole=True)


class EmqxSource(NamedTuple):
    """Sessions that an EMQX broker announces, and its own count of them."""

    name: str
    thing_name_level: Annotated[int, _THING_NAME_LEVEL]
    """Topic level (0-based) of the thing name."""
    connected_topic: Annotated[str, _filter("connectedTopic", "$SYS/brokers/+/clients/+/connected")]
    """Filter of the events that open a session; its second `+` matches the thing name."""
    disconnected_topic: Annotated[str, _filter("disconnectedTopic", "$SYS/brokers/+/clients/+/disconnected")]
    """Filter of the events that close one; the thing name is on the same level."""
    count_topic: Annotated[str, _filter("countTopic", "$SYS/brokers/+/stats/live_connections/count")]
    """Filter of the count of live connections, the census."""
    uptime_topic: Annotated[str, _filter("uptimeTopic", "$SYS/brokers/+/uptime")]
    """Filter of the broker's uptime."""
    max_quiet_seconds: Annotated[float, _max_quiet("3m")]
    """Longest time between vouchers that is still vouched for."""
    bridge_client_id: Annotated[
        str, text("bridgeClientId", "mqtt-bridge-*", str.isprintable, "a client id, in which * is a wildcard")
    ]
    """Glob of the bridge's client id, used where the bridge's configuration does not name one."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The filters that the source needs, as on the broker."""
        return (self.connected_topic, self.disconnected_topic, self.count_topic, self.uptime_topic)

    @property
    def identity(self) -> str:
        """What the source is, whatever it is called."""
        return json.dumps(["emqx", *self.topics, self.thing_name_level])


class ActivitySource(NamedTuple):
    """Messages that only the devices themselves publish."""

    name: str
    thing_name_level: Annotated[int, _THING_NAME_LEVEL]
    """Topic level (0-based) of the thing name."""
    topic: Annotated[str, _filter("topic", "clients/+/#")]
    """Filter of the messages; its first `+` matches the thing name."""
    max_quiet_seconds: Annotated[float, _max_quiet("1h")]
    """Longest time between messages that is still vouched for."""
    canary_topic: Annotated[
        str, text("canaryTopic", "pruner-canary/telemetry", is_topic, "a topic without wildcards", or_empty=True)
    ]
    """Topic on local pub/sub where the canary is published; empty: no canary."""
    payload_field: Annotated[
        str, text("payloadField", "", _is_field, 'a dotted path such as "state.value"', or_empty=True)
    ]
    """Dotted path in a JSON payload to the value that `ignored_values` names; empty: the whole payload."""
    ignored_values: Annotated[tuple[str, ...], texts("ignoredValues", [], lambda _: True, "a text in quotes")]
    """Payloads that are no sign of life, a will's `offline` for instance."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The filters that the source needs, as on the broker."""
        return (self.topic,)

    @property
    def identity(self) -> str:
        """What the source is, whatever it is called; one that ignores something else hears others."""
        ignored = (self.payload_field, *sorted(self.ignored_values)) if self.ignored_values else ()
        return json.dumps(["activity", *self.topics, self.thing_name_level, *ignored])


Source = EmqxSource | ActivitySource


class _Kind(NamedTuple):
    """A type of sources: its class, the fields of the topics that hold the thing name, and which `+` matches it."""

    source: type[Source]
    named_topics: tuple[str, ...]
    nth_plus: int


_KINDS: Mapping[str, _Kind] = {
    "emqx": _Kind(EmqxSource, ("connected_topic", "disconnected_topic"), 2),
    "activity": _Kind(ActivitySource, ("topic",), 1),
}
_DEFAULT_TYPES = {"emqx": "emqx", "messages": "activity"}
_COMMON_KEYS: Keys = {"type": anything("type", None), "enabled": flag("enabled", True)}

DEFAULT_SOURCES: Mapping[str, Any] = {
    name: {"type": kind, **defaults(_COMMON_KEYS), **defaults(keys_of(_KINDS[kind].source))}
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
        keys = keys_of(kind.source)
        values = reading.section({**_COMMON_KEYS, **keys}, body, path)
        level = _thing_name_level(reading, path, kind, values)
        if len(reading.problems) > before:
            continue
        source = kind.source(**{field: values[field] for field in keys} | {"name": name, "thing_name_level": level})
        if name == "emqx":
            emqx_quiet_seconds = source.max_quiet_seconds
        if values["enabled"]:
            twin = sources.setdefault((kind.source.__name__, *source.topics), source)
            if twin is not source:
                what = f"sources.{step(twin.name)} has the same type and topics"
                reading.problem(path, what, "other topics, or enabled: false in one of them")
    _refuse_echoes(reading, sources.values(), prefix)
    return tuple(sources.values()), emqx_quiet_seconds


def _type(reading: Reading, path: str, usual: str | None, body: object) -> _Kind | None:
    given = body.get("type") if isinstance(body, Mapping) else usual
    kind = usual if given is None else given
    if isinstance(kind, str) and kind in _KINDS and usual in {None, kind}:
        return _KINDS[kind]
    what = "missing" if kind is None else f"{shown(kind)} will not do"
    write = f"{usual}, or give the source another name" if usual else f"one of {', '.join(_KINDS)}"
    reading.problem(f"{path}.type", what, write)
    return None


def _thing_name_level(reading: Reading, path: str, kind: _Kind, values: Mapping[str, Any]) -> int | None:
    """Give the topic level of the thing name, which all of the source's topics with a thing name share."""
    given, levels, keys = values["thing_name_level"], set(), keys_of(kind.source)
    for field in kind.named_topics:
        key, topic = keys[field].name, values[field]
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
        first, *_between, last_key = (keys[field].name for field in kind.named_topics)
        what = f"its thing name is not on the same level as that of {first}"
        reading.problem(f"{path}.{last_key}", what, "both with equal levels")
    return min(levels, default=None)


def _refuse_echoes(reading: Reading, sources: Iterable[Source], prefix: str | None) -> None:
    """Refuse a canary that is heard as it is published: it would vouch for a bridge that is dead."""
    heard = [f"{prefix}{topic}" for source in sources for topic in source.topics if prefix is not None]
    for source in sources:
        canary = source.canary_topic if isinstance(source, ActivitySource) else ""
        if canary and any(topic_matches(topic, canary) for topic in heard):
            what = f"{shown(canary)} is heard without the bridge, which would prove nothing"
            reading.problem(f"sources.{step(source.name)}.canaryTopic", what, 'a topic that no source hears, or ""')
