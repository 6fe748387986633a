"""What the MQTT bridge must carry for us, and what in its configuration keeps us from hearing or harms the site."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

from client_device_pruner.config import emqx as emqx_api
from client_device_pruner.config.finding import Finding
from client_device_pruner.config.settings import Settings
from client_device_pruner.config.topics import IN, PROBE, filter_covers, filters_overlap

BRIDGE = "aws.greengrass.clientdevices.mqtt.Bridge"  # the component's name
EMQX = emqx_api.EMQX

Entry = dict[str, str]  # an entry of `mqttTopicMapping`: topic, source, target, and perhaps targetTopicPrefix


def _inbound(topic: str) -> Entry:
    return {"topic": topic, "source": "LocalMqtt", "target": "Pubsub", "targetTopicPrefix": IN}


_EVENTS = {
    "PrunerClients": _inbound("$SYS/brokers/+/clients/#"),
    "PrunerCount": _inbound("$SYS/brokers/+/stats/live_connections/count"),
    "PrunerUptime": _inbound("$SYS/brokers/+/uptime"),
}
_PROBE = {
    "PrunerProbe": {"topic": f"{PROBE}+", "source": "Pubsub", "target": "LocalMqtt"},
    "PrunerProbeBack": _inbound(f"{PROBE}+"),
}
_WHAT = {
    "PrunerClients": "EMQX's connect and disconnect events, also for client ids with a /",
    "PrunerCount": "EMQX's connection count",
    "PrunerUptime": "EMQX's uptime",
    "PrunerMessages": "what the devices publish (presence.messageTopics; if they publish nothing, set that to [])",
    "PrunerProbe": "the probe (without it nothing is observed)",
}


def diagnose(
    settings: Settings, bridge: Mapping[str, Any] | None, emqx: Mapping[str, Any] | None, *, lite: bool
) -> tuple[Finding, ...]:
    """Find what is wrong with the configurations of the bridge and of EMQX; None: that component is not deployed."""
    found = _without_bridge(settings, lite=lite)
    if bridge is not None:
        found = _with_bridge(settings, bridge, on_emqx=emqx is not None)
    return (*found, *emqx_api.diagnose_client_list(settings, emqx))


def required_entries(settings: Settings) -> dict[str, Entry]:
    """The entries of `mqttTopicMapping` that the settings need."""
    return _missing(settings, {}, events=settings.presence.connection_events)


def missing_inputs(settings: Settings, bridge: Mapping[str, Any] | None) -> frozenset[str]:
    """Name which of `clients` and `count` the bridge does not map; none without a bridge."""
    if bridge is None or not settings.presence.connection_events:
        return frozenset()
    wanted, entries = {"clients": "PrunerClients", "count": "PrunerCount"}, _read(bridge)
    return frozenset(name for name, key in wanted.items() if not _carried(_EVENTS[key], entries, filters_overlap))


def message_filters(settings: Settings, bridge: Mapping[str, Any] | None) -> frozenset[str]:
    """The filters through which the bridge feeds presence.messageTopics."""
    topics = {entry["topic"] for entry in _read(bridge or {}).values() if _path(entry) == _path(_inbound(""))}
    wanted = settings.presence.message_topics
    return frozenset(topic for topic in topics if any(filters_overlap(topic, other) for other in wanted))


def bridge_client_id(bridge: Mapping[str, Any] | None) -> str:
    """Give a glob of the bridge's client id: the configured one, or that of its default, which has a random part."""
    client_id = (bridge or {}).get("clientId")
    return glob.escape(client_id) if isinstance(client_id, str) and client_id else "mqtt-bridge-*"


def _read(bridge: Mapping[str, Any]) -> dict[str, Entry]:
    """Read the entries of the mapping, without those that the bridge cannot use."""
    mapping, found = bridge.get("mqttTopicMapping"), {}
    for key, entry in mapping.items() if isinstance(mapping, Mapping) else ():
        match entry:
            case {"topic": str(), "source": str(), "target": str()}:
                found[key] = entry
    return found


def _path(entry: Entry) -> tuple[str, str, str]:
    return entry["source"], entry["target"], entry.get("targetTopicPrefix") or ""


def _carried(needed: Entry, entries: Mapping[str, Entry], fits: Callable[[str, str], bool]) -> bool:
    """Whether an entry, under any key, does what one of ours does."""
    return any(_path(entry) == _path(needed) and fits(entry["topic"], needed["topic"]) for entry in entries.values())


def _missing(settings: Settings, entries: Mapping[str, Entry], *, events: bool) -> dict[str, Entry]:
    """Our entries, but for those whose messages are carried; of what devices publish, some will do."""
    missing = {k: need for k, need in _EVENTS.items() if events and not _carried(need, entries, filter_covers)}
    for number, topic in enumerate(settings.presence.message_topics, 1):
        if not _carried(_inbound(topic), entries, filters_overlap):
            narrow = "clients/+/telemetry" if topic == "clients/+/#" else topic  # all below `#` would be a lot
            missing[f"PrunerMessages{number if number > 1 else ''}"] = _inbound(narrow)
    return missing | {k: need for k, need in _PROBE.items() if not _carried(need, entries, filter_covers)}


def _without_bridge(settings: Settings, *, lite: bool) -> Iterator[Finding]:
    if lite:
        yield Finding(
            "Greengrass Lite has no MQTT bridge: a component of your own has to report the devices",
            f"It publishes {IN}clients/<thing name>/… for each sign of life, and echoes {PROBE}<id> to"
            f" {IN}{PROBE}<id>. If it cannot echo, it publishes {IN}{PROBE}heartbeat at least twice in each"
            " presence.probeInterval.",
        )
    else:
        yield Finding(
            "The MQTT bridge is not deployed, or its configuration cannot be read: nothing is heard from the broker",
            f"Deploy {BRIDGE} with {json.dumps({'mqttTopicMapping': required_entries(settings)})}",
        )


def _with_bridge(settings: Settings, bridge: Mapping[str, Any], *, on_emqx: bool) -> Iterator[Finding]:
    entries = _read(bridge)
    missing = _missing(settings, entries, events=on_emqx and settings.presence.connection_events)
    if missing:
        lacks = "; ".join(what for start, what in _WHAT.items() if any(key.startswith(start) for key in missing))
        yield Finding(
            f"The bridge does not map all that the component needs: {lacks}. Merge into {BRIDGE}",
            json.dumps({"mqttTopicMapping": missing}),
        )
    local = {key: entry for key, entry in {**entries, **missing}.items() if entry["source"] == "LocalMqtt"}
    yield from _doubled(local, on_emqx=on_emqx)
    for key, entry in local.items():
        # An entry takes all that arrives, by any subscription; behind the added level a wildcard matches `$SYS` too.
        if entry["target"] == "IotCore" and filters_overlap(f"/{entry['topic']}", "/$SYS/brokers/#"):
            yield Finding(
                f'The entry {key} ("{entry["topic"]}") carries $SYS messages to AWS IoT Core, which may close the'
                " connection because of them",
                f'Narrow the topic of the entry {key} to what devices publish, such as "clients/#".',
            )
    mqtt = bridge.get("mqtt")
    if isinstance(mqtt, Mapping) and mqtt.get("version") == "mqtt5" and not on_emqx:
        yield Finding(
            "The bridge speaks MQTT 5, and EMQX is not deployed: Moquette disconnects it again and again, and"
            f" nothing arrives. Merge into {BRIDGE}",
            json.dumps({"mqtt": {"version": "mqtt3"}}),
        )


def _doubled(local: Mapping[str, Entry], *, on_emqx: bool) -> Iterator[Finding]:
    """Find entries that make messages arrive twice here, or where the site wants them (case 34).

    EMQX delivers a message once for each filter, and the bridge passes each copy to every entry that matches.
    """
    for (key, one), (other_key, other) in combinations(local.items(), 2):
        same_path, same_topic = _path(one) == _path(other), one["topic"] == other["topic"]
        twice = same_path if same_topic else on_emqx and filters_overlap(one["topic"], other["topic"])
        if twice and _path(_inbound("")) in (_path(one), _path(other)):
            told = f'{key} ("{one["topic"]}") and {other_key} ("{other["topic"]}")'
            mend = "Remove one of them" if same_path else "Give both the same topic"
            yield Finding(
                f"The entries {told} of the bridge overlap: a message that matches both arrives twice",
                f"{mend}, or narrow one so that no message matches both.",
            )
