"""What the MQTT bridge's configuration has that keeps the component blind, or harms the site."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from client_device_pruner.activity import CANARY
from client_device_pruner.document import shown
from client_device_pruner.settings import ActivitySource, EmqxSource, Settings, Source
from client_device_pruner.topics import (
    filter_covers,
    filters_overlap,
    intersection,
    is_filter,
    is_topic,
    topic_matches,
)

BRIDGE = "aws.greengrass.clientdevices.mqtt.Bridge"
"""The bridge's component name."""

_LOCAL, _PUBSUB, _CLOUD = "LocalMqtt", "Pubsub", "IotCore"
_ENDS = {end.casefold(): end for end in (_LOCAL, _PUBSUB, _CLOUD)}
_PARTS = ("Connected", "Disconnected", "Count", "Uptime", "Canary")  # ends of the keys of entries
_MOST_STEPS = 2000  # of the search for loops; a mapping that needs more is searched in part


class Finding(NamedTuple):
    """Something that is wrong, and what to do."""

    finding: str
    """What is wrong, and what it costs."""
    remedy: str
    """JSON to merge into the bridge's configuration, or a sentence."""

    def __str__(self) -> str:
        """Both in one text, as coverage has it among its reasons."""
        return f"{self.finding} → {self.remedy}"


class _Entry(NamedTuple):
    """An entry of the mapping: messages on `topic` go from `source` to `target`, below `prefix`."""

    key: str
    topic: str
    source: str
    target: str
    prefix: str
    hears_bridge: bool = True
    """It takes what the bridge itself publishes at its source."""

    def document(self) -> dict[str, str]:
        """Write the entry; the prefix always, since a merge would keep another one."""
        return {
            "topic": self.topic,
            "source": self.source,
            "target": self.target,
            "targetTopicPrefix": self.prefix,
        }


class _Need(NamedTuple):
    """One of a source's topics, the entry to make for it, and whether an entry for a part of it is enough."""

    topic: str
    entry: _Entry
    part_enough: bool
    thing_name_level: int

    def met_by(self, entry: _Entry) -> bool:
        """Tell whether an entry brings the topic to the component."""
        path = (entry.source, entry.target, entry.prefix)
        return path == (_LOCAL, _PUBSUB, self.entry.prefix) and self.met_by_filter(entry.topic)

    def met_by_filter(self, topic_filter: str) -> bool:
        """Tell whether enough of the topic goes through a filter."""
        return (filters_overlap if self.part_enough else filter_covers)(topic_filter, self.topic)


def diagnose(bridge: Mapping[str, Any] | None, settings: Settings) -> tuple[Finding, ...]:
    """Find what is wrong with the bridge's configuration; None means that it could not be read."""
    required = required_entries(settings)
    if bridge is None:
        finding = (
            f"The configuration of the bridge ({BRIDGE}) could not be read, so it is unknown what reaches "
            f'"{settings.inbound_prefix}" on local pub/sub; where there is no bridge, publish there instead'
        )
        return (Finding(finding, _paste(required)),) if required else ()
    mapping = bridge.get("mqttTopicMapping")
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        return (Finding("The bridge's mqttTopicMapping is not a map, so it relays nothing", _paste(required)),)
    entries, findings = _read(bridge, mapping, required)
    findings += _blind(entries, settings)
    findings += _loops(entries)
    findings += _too_wide(entries, settings)
    findings += _doubled(entries, settings)
    return tuple(findings)


def required_entries(settings: Settings) -> dict[str, dict[str, str]]:
    """Give the bridge's mapping for the settings, as in `mqttTopicMapping`."""
    found = {}
    for source in settings.sources:
        for need in _needs(source, settings):
            found[need.entry.key] = need.entry.document()
            if isinstance(source, ActivitySource) and source.canary_topic:
                canary = _canary_entry(source, need.entry.topic)
                found[canary.key] = canary.document()
    return found


def without_events(bridge: Mapping[str, Any] | None, settings: Settings) -> frozenset[str]:
    """Name the `emqx` sources of which the bridge carries the count, but not the connected and disconnected events."""
    entries = _entries(bridge, settings)
    found = set()
    for source in settings.sources:
        if isinstance(source, EmqxSource):
            connected, disconnected, count, _uptime = (
                any(map(need.met_by, entries)) for need in _needs(source, settings)
            )
            if count and not (connected and disconnected):
                found.add(source.name)
    return frozenset(found)


def feeds(bridge: Mapping[str, Any] | None, settings: Settings) -> dict[str, list[str]]:
    """Name the filters through which the bridge feeds each `activity` source; none where that cannot be read."""
    entries, found = _entries(bridge, settings), {}
    for source in settings.sources:
        if isinstance(source, ActivitySource):
            (need,) = _needs(source, settings)
            found[source.name] = sorted({entry.topic for entry in entries if need.met_by(entry)})
    return found


def _entries(bridge: Mapping[str, Any] | None, settings: Settings) -> list[_Entry]:
    mapping = (bridge or {}).get("mqttTopicMapping")
    return _read(bridge or {}, mapping, required_entries(settings))[0] if isinstance(mapping, Mapping) else []


# --- What a source needs ------------------------------------------------------------------------------------


def _needs(source: Source, settings: Settings) -> tuple[_Need, ...]:
    name = source.name[:1].upper() + source.name[1:]
    if isinstance(source, EmqxSource):
        stem = "Pruner" if source.name == "emqx" else f"Pruner{name}"
        keys = [stem + part for part in _PARTS[:4]]
        carried = source.topics
    else:
        keys, carried = [f"Pruner{name}" + ("Source" if name in _PARTS else "")], (_narrowed(source),)
    return tuple(
        _Need(
            topic=topic,
            entry=_Entry(key, carry, _LOCAL, _PUBSUB, settings.inbound_prefix),
            part_enough=isinstance(source, ActivitySource),
            thing_name_level=source.thing_name_level,
        )
        for key, topic, carry in zip(keys, source.topics, carried, strict=True)
    )


def _all_needs(settings: Settings) -> dict[str, _Need]:
    return {need.entry.key: need for source in settings.sources for need in _needs(source, settings)}


def _narrowed(source: ActivitySource) -> str:
    """Give the part of the source's topic through which the canary passes, rather than all below a `#`."""
    *stem, last = source.topic.split("/")
    canary = [*_above(source.topic, source), *source.canary_topic.split("/")]
    narrowed = stem + canary[len(stem) :]
    if last != "#" or not source.canary_topic or source.thing_name_level >= len(narrowed):
        return source.topic
    narrowed[source.thing_name_level] = "+"
    return "/".join(narrowed) if topic_matches("/".join(narrowed), "/".join(canary)) else source.topic


def _above(topic_filter: str, source: ActivitySource) -> list[str]:
    """Give the levels above the thing name, of a topic that the filter matches."""
    levels = [CANARY if level in {"+", "#"} else level for level in topic_filter.split("/")]
    missing = source.thing_name_level - len(levels)
    return levels[: source.thing_name_level] + [CANARY] * missing


def _canary_entry(source: ActivitySource, topic_filter: str) -> _Entry:
    """Make the entry that brings the canary to the broker so that it can come back through a filter."""
    key = "PrunerCanary" if source.name == "messages" else f"Pruner{source.name[:1].upper()}{source.name[1:]}Canary"
    # A wildcard entry is not given what the bridge itself publishes, so it cannot loop.
    head, slash, _ = source.canary_topic.rpartition("/")
    topic = f"{head}/+" if slash else source.canary_topic
    prefix = "".join(f"{level}/" for level in _above(topic_filter, source))
    return _Entry(key, topic, _PUBSUB, _LOCAL, prefix)


# --- What is wrong with it ----------------------------------------------------------------------------------


def _read(
    bridge: Mapping[str, Any], mapping: Mapping[Any, Any], required: Mapping[str, Mapping[str, str]]
) -> tuple[list[_Entry], list[Finding]]:
    """Read the entries; one that is malformed is taken as its remedy has it, or left out."""
    mqtt, routes = (bridge.get(key) for key in ("mqtt", "mqtt5RouteOptions"))
    mqtt5 = isinstance(mqtt, Mapping) and mqtt.get("version") == "mqtt5"
    options = routes if mqtt5 and isinstance(routes, Mapping) else {}
    entries, findings = [], []
    for name, raw in mapping.items():
        key = str(name)
        fixed, wrong = _checked(raw)
        if wrong:
            fixed = fixed or (dict(required[key]) if key in required else {})
            write = f"Give the entry {key} a topic, and a source and target out of {', '.join(_ENDS.values())}."
            remedy = _paste({key: fixed}) if fixed else write
            findings.append(Finding(f"The bridge cannot use its entry {key}: {wrong}", remedy))
        if fixed:
            route = options.get(key)
            deaf = isinstance(route, Mapping) and route.get("noLocal") in (True, "true")
            prefix = fixed.get("targetTopicPrefix", "")
            entries.append(_Entry(key, fixed["topic"], fixed["source"], fixed["target"], prefix, not deaf))
    return entries, findings


def _checked(raw: object) -> tuple[dict[str, str], str]:
    """Give an entry with what can be put right put right (else empty), and what is wrong with it."""
    if not isinstance(raw, Mapping):
        return {}, "it is not a map"
    topic, prefix = raw.get("topic"), raw.get("targetTopicPrefix")
    if not isinstance(topic, str) or not is_filter(topic):
        return {}, "its topic is not a topic filter"
    if not isinstance(prefix, (str, type(None))):
        return {}, "its targetTopicPrefix is not a text"
    fixed, wrong = {"topic": topic, "targetTopicPrefix": prefix or ""}, ""
    for end in ("source", "target"):
        given = raw.get(end)
        fixed[end] = _ENDS.get(given.casefold(), "") if isinstance(given, str) else ""
        if fixed[end] != given:
            wrong = wrong or f"its {end} is {shown(given)}, not one of {', '.join(_ENDS.values())}"
    return fixed if all(fixed[end] for end in ("source", "target")) else {}, wrong


def _blind(entries: list[_Entry], settings: Settings) -> Iterator[Finding]:
    """Find the sources that do not hear what they need."""
    keys = {entry.key for entry in entries}
    for source in settings.sources:
        needs = _needs(source, settings)
        missing = [need for need in needs if not any(map(need.met_by, entries))]
        unwanted = isinstance(source, EmqxSource) and len(missing) == len(needs)
        if unwanted and keys.isdisjoint(need.entry.key for need in needs):
            finding = (
                f"Nothing of the source {source.name} is mapped: devices without regular messages, and those "
                "never seen, are not pruned for want of it. If that is meant, as for a broker without these "
                f"events (Moquette), set sources.{source.name}.enabled of this component to false; if not, merge into "
                "the bridge"
            )
            yield _told(finding, (_remade(need, entries) for need in missing))
        elif missing:
            remade = [_remade(need, entries) for need in missing]
            wrong = "; ".join(_difference(entry, entries) for entry in remade)
            yield _told(f"The source {source.name} does not hear all that it needs: {wrong}", remade)
        if isinstance(source, ActivitySource) and source.canary_topic:
            yield from _without_canary(source, needs[0], entries)


def _without_canary(source: ActivitySource, need: _Need, entries: list[_Entry]) -> Iterator[Finding]:
    """Find that a source's canary does not come back through the entries that feed the source."""

    def comes_back(sender: _Entry, carrier: _Entry) -> bool:
        topic = f"{sender.prefix}{source.canary_topic}"
        sent = (sender.source, sender.target) == (_PUBSUB, _LOCAL) and topic_matches(sender.topic, source.canary_topic)
        heard = carrier.hears_bridge and topic_matches(carrier.topic, topic) and topic_matches(source.topic, topic)
        return sent and heard and topic.split("/")[source.thing_name_level :][:1] == [CANARY]

    carriers = [entry for entry in entries if need.met_by(entry)] or [_remade(need, entries)]
    if any(comes_back(sender, carrier) for sender in entries for carrier in carriers):
        return
    senders = [(_canary_entry(source, carrier.topic), carrier) for carrier in carriers]
    fitting = [sender for sender, carrier in senders if comes_back(sender, carrier)]
    finding = f"The canary of the source {source.name} does not come back, so it vouches only while devices speak"
    if fitting:
        yield _told(f"{finding}: {_difference(fitting[0], entries)}", fitting[:1])
    elif not any(carrier.hears_bridge for carrier in carriers):
        deaf = carriers[0].key
        yield Finding(f"{finding}: its entry {deaf} has noLocal", f"Set mqtt5RouteOptions.{deaf}.noLocal to false.")
    else:
        carrier = carriers[0].topic
        canary = json.dumps(_canary_for(source, carrier))
        remedy = f'Set sources.{source.name}.canaryTopic of this component to {canary}, or to "" for none.'
        yield Finding(f'{finding}: "{source.canary_topic}" does not fit the filter "{carrier}"', remedy)


def _canary_for(source: ActivitySource, topic_filter: str) -> str:
    levels = topic_filter.split("/")[source.thing_name_level + 1 :]
    names = {"+": "canary", "#": "telemetry"}
    return "/".join([CANARY, *(names.get(level, level) for level in levels)])


def _remade(need: _Need, entries: Iterable[_Entry]) -> _Entry:
    """Make the entry for a need, with a filter that doubles nothing, and rather one that is there already."""
    own = [entry.topic for entry in entries if entry.key == need.entry.key]
    others = sorted({entry.topic for entry in entries if entry.source == _LOCAL and entry.key != need.entry.key})
    usual, shared = need.entry.topic, [other for other in others if _shareable(other, need)]
    parts = [other for other in shared if filter_covers(need.topic, other)]
    for topic in (*own, *({usual} & set(others)), *parts, usual, *shared):
        doubles = any(other != topic and filters_overlap(other, topic) for other in others)
        if need.met_by_filter(topic) and not doubles:
            return need.entry._replace(topic=topic)
    return need.entry._replace(topic=next(filter(need.met_by_filter, own), usual))


def _shareable(topic_filter: str, need: _Need) -> bool:
    """Tell whether a need can do with another entry's filter: for any thing, but not for all topics."""
    levels = topic_filter.split("/")
    any_thing = levels[min(need.thing_name_level, len(levels) - 1)] in {"+", "#"}
    return any_thing and (levels[0] not in {"+", "#"} or need.topic[0] in {"+", "#"})


def _difference(wanted: _Entry, entries: Iterable[_Entry]) -> str:
    """Say what an entry has that is wrong, or that it is missing."""
    found = next((entry.document() for entry in entries if entry.key == wanted.key), None)
    if found is None:
        return f"{wanted.key} is missing"
    fields = wanted.document().items()
    wrong = [f"{name} {shown(found[name])} instead of {shown(value)}" for name, value in fields if found[name] != value]
    return f"{wanted.key} has {' and '.join(wrong)}"


def _loops(entries: list[_Entry]) -> Iterator[Finding]:
    """Find the entries that get back what they send."""
    told = set()
    for path in _circles(entries):
        if frozenset(path) not in told:
            told.add(frozenset(path))
            circle = " to ".join((*path, path[0]))
            yield Finding(
                f"Messages go round in the bridge, from {circle}, again and again",
                f"Give the entry {path[-1]} a targetTopicPrefix that takes it out of the others' topics.",
            )


def _circles(entries: list[_Entry]) -> Iterator[tuple[str, ...]]:
    steps = 0
    for start in entries:
        paths: list[tuple[_Entry, str, tuple[str, ...]]] = [(start, start.topic, (start.key,))]
        seen = set()
        while paths and steps < _MOST_STEPS:
            entry, topics, path = paths.pop(0)
            steps += 1
            for follower in entries:
                common = (
                    intersection(_sent(entry.prefix, topics), follower.topic) if _follows(follower, entry) else None
                )
                if common is None or (follower.key, common) in seen:
                    continue
                seen.add((follower.key, common))
                if follower is start:
                    yield path
                elif len(path) < len(entries):
                    paths.append((follower, common, (*path, follower.key)))


def _follows(entry: _Entry, sender: _Entry) -> bool:
    """Tell whether an entry is given what the bridge sends to the sender's target."""
    wild = entry.source == _PUBSUB and not is_topic(entry.topic)
    return entry.source == sender.target and entry.hears_bridge and not wild


def _sent(prefix: str, topics: str) -> str:
    """Give the filter of the topics below a prefix, which need not end at a level."""
    above, slash, part = prefix.rpartition("/")
    first, *rest = topics.split("/")
    first = first if not part or first in {"+", "#"} else part + first
    return above + slash + "/".join([first, *rest])


def _too_wide(entries: list[_Entry], settings: Settings) -> Iterator[Finding]:
    """Find what carries the broker's own topics to the cloud.

    The bridge gives an entry all that arrives and fits, by whatever subscription, a leading `$` or not.
    """
    needs = _all_needs(settings)
    system = [topic for source in settings.sources if isinstance(source, EmqxSource) for topic in source.topics]
    system += [entry.topic for entry in entries if entry.source == _LOCAL and entry.topic.startswith("$SYS/")]
    for entry in entries:
        wide = entry.topic in {"#", "+/#"} or any(filters_overlap(f"/{entry.topic}", f"/{topic}") for topic in system)
        if wide and (entry.source, entry.target) == (_LOCAL, _CLOUD):
            finding = (
                f'The entry {entry.key} ("{entry.topic}") carries $SYS messages to AWS IoT Core if anything '
                "subscribes to them; AWS IoT may drop the connection for that"
            )
            sentence = f'Narrow the topic of the entry {entry.key} to what devices publish to, such as "clients/#".'
            ours = [_remade(needs[entry.key], entries)] if entry.key in needs else []
            yield _told(finding, ours) if ours else Finding(finding, sentence)


def _doubled(entries: list[_Entry], settings: Settings) -> Iterator[Finding]:
    """Find filters that overlap; only EMQX delivers a message once for each of them."""
    if not settings.roll_call and not any(isinstance(source, EmqxSource) for source in settings.sources):
        return
    local = [entry for entry in entries if entry.source == _LOCAL]
    needs = _all_needs(settings)
    for one, other in combinations(local, 2):
        if one.topic == other.topic or not filters_overlap(one.topic, other.topic):
            continue
        finding = (
            f'The entries {one.key} ("{one.topic}") and {other.key} ("{other.topic}") overlap: EMQX delivers '
            "what both match twice, and the bridge passes each copy to both"
        )
        remade = [(entry, _remade(needs[entry.key], entries)) for entry in (one, other) if entry.key in needs]
        better = [new for entry, new in remade if new.topic != entry.topic]
        sentence = f"Give {one.key} and {other.key} the same topic, or narrow one so that no message matches both."
        yield _told(finding, better[:1]) if better else Finding(finding, sentence)


def _told(finding: str, entries: Iterable[_Entry]) -> Finding:
    return Finding(finding, _paste({entry.key: entry.document() for entry in entries}))


def _paste(mapping: Mapping[str, Mapping[str, str]]) -> str:
    return json.dumps({"mqttTopicMapping": mapping}, ensure_ascii=False)
