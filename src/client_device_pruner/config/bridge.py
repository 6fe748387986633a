"""What the MQTT bridge must carry for us, and what in its configuration keeps us from hearing or harms the site."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from client_device_pruner.config import emqx as emqx_api
from client_device_pruner.config.finding import Finding as Finding  # noqa: PLC0414 - others take it from here
from client_device_pruner.config.settings import Settings
from client_device_pruner.config.topics import (
    IN,
    PROBE,
    filter_covers,
    filters_overlap,
    intersection,
    is_filter,
    is_topic,
)

BRIDGE = "aws.greengrass.clientdevices.mqtt.Bridge"
"""The bridge's component name."""
EMQX = emqx_api.EMQX

_LOCAL, _PUBSUB, _CLOUD = "LocalMqtt", "Pubsub", "IotCore"
_ENDS = (_LOCAL, _PUBSUB, _CLOUD)
_EVENTS = {
    "clients": "$SYS/brokers/+/clients/#",
    "count": "$SYS/brokers/+/stats/live_connections/count",
    "uptime": "$SYS/brokers/+/uptime",
}
_USUAL_TOPIC, _USUAL_MAPPED = "clients/+/#", "clients/+/telemetry"  # a mapping of all below `#` would be a lot
_WHAT = {
    "probe": "the probe, without which nothing is observed",
    "clients": "EMQX's connect and disconnect events, those of client ids with a / too",
    "count": "EMQX's connection count",
    "uptime": "EMQX's uptime",
    "messages": "what the devices publish (presence.messageTopics; if they publish nothing, set that to [])",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the mapping: messages on `topic` go from `source` to `target`, below `prefix`."""

    key: str
    topic: str
    source: str
    target: str
    prefix: str
    hears_bridge: bool = True

    def document(self, *, replaces: bool = False) -> dict[str, str]:
        """The entry as the bridge has it; one that replaces another must say that its prefix is empty."""
        document = {"topic": self.topic, "source": self.source, "target": self.target}
        return document | ({"targetTopicPrefix": self.prefix} if self.prefix or replaces else {})

    @property
    def path(self) -> tuple[str, str, str]:
        return (self.source, self.target, self.prefix)


@dataclass(frozen=True, slots=True)
class _Need:
    """One of our inputs: the topics that must be carried for it, and the entry that does."""

    input: str
    topics: str
    entry: _Entry

    def fed(self, entries: Iterable[_Entry]) -> bool:
        """Whether entries carry some of it, under whatever keys."""
        return any(self._carries(entry) and filters_overlap(entry.topic, self.topics) for entry in entries)

    def met(self, entries: Iterable[_Entry]) -> bool:
        """Whether an entry carries all of it; of the messages, some will do."""
        if self.input == "messages":
            return self.fed(entries)
        return any(self._carries(entry) and filter_covers(entry.topic, self.topics) for entry in entries)

    def _carries(self, entry: _Entry) -> bool:
        return entry.path == self.entry.path and (entry.hears_bridge or self.input != "probe")


def diagnose(
    settings: Settings, bridge: Mapping[str, Any] | None, emqx: Mapping[str, Any] | None, *, lite: bool
) -> tuple[Finding, ...]:
    """Find what is wrong with the configurations of the bridge and of EMQX; None: that component is not deployed."""
    found = _without_bridge(settings, lite=lite) if bridge is None else _with_bridge(settings, bridge, emqx)
    return (*found, *emqx_api.diagnose_client_list(settings, emqx))


def required_entries(settings: Settings) -> dict[str, dict[str, str]]:
    """The entries of `mqttTopicMapping` that the settings need."""
    events = settings.presence.connection_events
    needs = [need for need in _needs(settings, ()) if events or need.input not in _EVENTS]
    return {need.entry.key: need.entry.document() for need in needs}


def missing_inputs(settings: Settings, bridge: Mapping[str, Any] | None) -> frozenset[str]:
    """Name the inputs of which nothing is mapped: probe, clients, count, uptime, messages; none without a bridge."""
    if bridge is None:
        return frozenset()
    entries = _read(bridge)
    unfed = {need.input for need in _needs(settings, ()) if not need.fed(entries)}
    return frozenset(unfed - ({"messages"} if message_filters(settings, bridge) else set()))


def message_filters(settings: Settings, bridge: Mapping[str, Any] | None) -> frozenset[str]:
    """The filters through which the bridge feeds presence.messageTopics."""
    needs = [need for need in _needs(settings, ()) if need.input == "messages"]
    entries = [entry for entry in _read(bridge or {}) if not filter_covers(f"{PROBE}#", entry.topic)]
    return frozenset(entry.topic for entry in entries if any(need.fed([entry]) for need in needs))


def bridge_client_id(bridge: Mapping[str, Any] | None) -> str:
    """Give a glob of the bridge's client id: the configured one, or that of its default, which has a random part."""
    client_id = (bridge or {}).get("clientId")
    return glob.escape(client_id) if isinstance(client_id, str) and client_id else "mqtt-bridge-*"


# --- What we need -------------------------------------------------------------------------------------------


def _needs(settings: Settings, entries: Iterable[_Entry]) -> list[_Need]:
    """What must be carried; for messages by a filter that fits those of `entries`."""

    def inbound(name: str, topics: str, key: str, carried: str = "") -> _Need:
        return _Need(name, topics, _Entry(key, carried or topics, _LOCAL, _PUBSUB, IN))

    probe, numbered = f"{PROBE}+", enumerate(settings.presence.message_topics, 1)
    return [
        *(inbound(name, topics, f"Pruner{name.capitalize()}") for name, topics in _EVENTS.items()),
        *(
            inbound("messages", topic, f"PrunerMessages{number if number > 1 else ''}", _message_filter(topic, entries))
            for number, topic in numbered
        ),
        _Need("probe", probe, _Entry("PrunerProbe", probe, _PUBSUB, _LOCAL, "")),
        inbound("probe", probe, "PrunerProbeBack"),
    ]


def _message_filter(topic: str, entries: Iterable[_Entry]) -> str:
    """Choose the filter to map for messages: one that the site has, if any, since EMQX doubles what two match."""
    others = [entry.topic for entry in entries if entry.source == _LOCAL and not entry.key.startswith("Pruner")]
    shared = [other for other in others if _is_for_any_device(other, topic)]
    parts = [other for other in shared if filter_covers(topic, other)]
    return next(iter(parts + shared), _USUAL_MAPPED if topic == _USUAL_TOPIC else topic)


def _is_for_any_device(other: str, topic: str) -> bool:
    levels, place = other.split("/"), topic.split("/").index("+")
    any_device = levels[min(place, len(levels) - 1)] in {"+", "#"}
    return any_device and filters_overlap(other, topic) and (levels[0] not in {"+", "#"} or place == 0)


# --- What is wrong ------------------------------------------------------------------------------------------


def _without_bridge(settings: Settings, *, lite: bool) -> Iterator[Finding]:
    if lite:
        yield Finding(
            "There is no MQTT bridge on Greengrass Lite: presence comes from a component of your own, if one runs",
            f"Let it publish {IN}clients/<thing name>/… for each sign of life, and echo {PROBE}<id> to"
            f" {IN}{PROBE}<id>, or, if it cannot echo, publish {IN}{PROBE}heartbeat at least twice in each"
            " presence.probeInterval.",
        )
        return
    yield Finding(
        "The MQTT bridge is not deployed, or its configuration cannot be read: nothing of the broker reaches us",
        f"Deploy {BRIDGE} with {_paste(required_entries(settings))}",
    )


def _with_bridge(settings: Settings, bridge: Mapping[str, Any], emqx: Mapping[str, Any] | None) -> Iterator[Finding]:
    entries = _read(bridge)
    needs = _needs(settings, entries)
    # Moquette publishes no events; but who maps some of them has another broker that does.
    on_emqx = emqx is not None or any(need.input in _EVENTS and need.fed(entries) for need in needs)
    events = on_emqx and settings.presence.connection_events
    missing = [need for need in needs if (events or need.input not in _EVENTS) and not need.met(entries)]
    if missing:
        lacks = "; ".join(dict.fromkeys(_WHAT[need.input] for need in missing))
        keys = {entry.key for entry in entries}
        remedy = _paste({need.entry.key: need.entry.document(replaces=need.entry.key in keys) for need in missing})
        yield Finding(f"The bridge does not map all that we listen to: {lacks}. Merge into {BRIDGE}", remedy)
    with_missing = {entry.key: entry for entry in (*entries, *(need.entry for need in missing))}
    yield from _doubled(list(with_missing.values()), needs, on_emqx=on_emqx)
    yield from _system_to_cloud(entries)
    yield from _loops(entries)
    mqtt = bridge.get("mqtt")
    if isinstance(mqtt, Mapping) and mqtt.get("version") == "mqtt5" and not on_emqx:
        yield Finding(
            "The bridge speaks MQTT 5, and EMQX is not deployed: Moquette throws it out again and again, so that"
            f" nothing arrives. Merge into {BRIDGE}",
            json.dumps({"mqtt": {"version": "mqtt3"}}),
        )


def _read(bridge: Mapping[str, Any]) -> list[_Entry]:
    """Read the entries of the mapping, without those that the bridge cannot use."""
    mapping, routes = bridge.get("mqttTopicMapping"), bridge.get("mqtt5RouteOptions")
    entries = []
    for key, raw in mapping.items() if isinstance(mapping, Mapping) else ():
        entry = raw if isinstance(raw, Mapping) else {}
        topic, source, target = (entry.get(name) for name in ("topic", "source", "target"))
        prefix = entry.get("targetTopicPrefix") or ""
        usable = source in _ENDS and target in _ENDS and isinstance(prefix, str)
        if usable and isinstance(topic, str) and is_filter(topic):
            route = routes.get(key) if isinstance(routes, Mapping) else None
            deaf = isinstance(route, Mapping) and route.get("noLocal") in (True, "true")
            entries.append(_Entry(str(key), topic, str(source), str(target), prefix, not deaf))
    return entries


def _doubled(entries: list[_Entry], needs: list[_Need], *, on_emqx: bool) -> Iterator[Finding]:
    """Find entries that make one message arrive twice.

    EMQX delivers a message once for each filter that matches, and the bridge passes each copy to every entry that
    matches; entries with exactly the same filter share one subscription.
    """
    ours = {need.entry.key: need.entry for need in needs}
    for one, other in combinations([entry for entry in entries if entry.source == _LOCAL], 2):
        same = one.topic == other.topic
        if not (one.path == other.path if same else on_emqx and filters_overlap(one.topic, other.topic)):
            continue
        told = (
            f'The entries {one.key} ("{one.topic}") and {other.key} ("{other.topic}") overlap: what both match arrives'
        )
        pairs = sorted(((one, other), (other, one)), key=lambda pair: pair[0].key in ours)
        needless = [a.key for a, b in pairs if a.path == b.path and filter_covers(b.topic, a.topic)]
        better = [ours[a.key] for a, b in pairs if a.key in ours and ours[a.key].topic == b.topic != a.topic]
        if needless:
            reset = json.dumps([f"/mqttTopicMapping/{needless[0]}"])
            yield Finding(f"{told} here twice", f"{needless[0]} is needless: reset {reset} of {BRIDGE}.")
        elif better:
            remedy = _paste({better[0].key: better[0].document()})
            yield Finding(f"{told} twice at both targets. Merge into {BRIDGE}", remedy)
        else:
            remedy = f"Give {one.key} and {other.key} the same topic, or narrow one so that no message matches both."
            yield Finding(f"{told} twice at both targets", remedy)


def _system_to_cloud(entries: list[_Entry]) -> Iterator[Finding]:
    """Find what carries the broker's own topics to the cloud: an entry takes all that arrives, by any subscription."""
    for entry in entries:
        # Behind the added level a wildcard matches `$SYS` too.
        takes = any(filters_overlap(f"/{entry.topic}", f"/{topics}") for topics in _EVENTS.values())
        if takes and (entry.source, entry.target) == (_LOCAL, _CLOUD):
            yield Finding(
                f'The entry {entry.key} ("{entry.topic}") carries $SYS messages to AWS IoT Core, which may drop the'
                " connection for that",
                f'Narrow the topic of the entry {entry.key} to what devices publish, such as "clients/#".',
            )


def _loops(entries: list[_Entry]) -> Iterator[Finding]:
    """Find pairs of entries that send each other's messages round and round."""
    for one, other in combinations(entries, 2):
        there = _passed_on(one, one.topic, other)
        if there and _passed_on(other, there, one):
            yield Finding(
                f"Messages go round between the entries {one.key} and {other.key} of the bridge for ever",
                f"Give one of {one.key} and {other.key} a targetTopicPrefix that the other does not match.",
            )


def _passed_on(sender: _Entry, topics: str, taker: _Entry) -> str | None:
    """The filter of what the taker gets of the sender's messages; the bridge's own reach only exact Pubsub entries."""
    wild = taker.source == _PUBSUB and not is_topic(taker.topic)
    if sender.target != taker.source or wild or not taker.hears_bridge:
        return None
    return intersection(f"{sender.prefix}{topics}", taker.topic)


def _paste(mapping: Mapping[str, Mapping[str, str]]) -> str:
    return json.dumps({"mqttTopicMapping": mapping}, ensure_ascii=False)
