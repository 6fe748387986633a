"""What arrives over local pub/sub: client events, counts, uptimes, messages of devices, and the self-test's echo."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from client_device_pruner import emqx
from client_device_pruner.activity import CANARY, ActivitySource
from client_device_pruner.emqx import EmqxSource
from client_device_pruner.ledger import MAX_STRANGERS, Ledger
from client_device_pruner.model import Association
from client_device_pruner.self_test import SelfTest
from client_device_pruner.settings import parse
from client_device_pruner.source_clock import SourceClock
from client_device_pruner.sources import Sources
from client_device_pruner.topics import (
    filter_covers,
    filters_overlap,
    intersection,
    is_filter,
    is_topic,
    topic_matches,
)
from local_core import pubsub
from local_core.fuzz.target import Target, document, payload_of, require, seeds

_THING = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_MOST_STEPS = 40


# --- The emqx source alone: a history of events ------------------------------------------------------------------


class _Signs:
    """Takes what the source tells of single names."""

    def __init__(self) -> None:
        self.named: set[str] = set()
        self.told = 0

    def alive(self, name: str, at: float) -> None:
        self._tell(name, at)

    def held_until(self, name: str, at: float) -> None:
        self._tell(name, at)

    def left(self, name: str, at: float) -> None:
        self._tell(name, at)

    def announce(self, name: str) -> None:
        self.told += 1
        self.named.add(name)

    def associated(self, name: str) -> bool:
        """See `emqx.Signs`."""
        return name == "a"

    def announced(self, name: str) -> bool:
        return name in self.named

    def _tell(self, name: str, _at: float) -> None:
        self.told += 1
        require(name in self.named, f"{name!r} is told of, and no event ever named it")


def _emqx_state(source: EmqxSource) -> tuple[Any, ...]:
    clock = source.clock
    nodes = [(name, repr(node)) for name, node in source._nodes.items()]  # noqa: SLF001 - a refused input changes nothing
    return (nodes, len(source._ended), clock.credit_seconds, clock.floor_seconds, clock.last_voucher_seconds)  # noqa: SLF001 - as above


def _is_object(payload: bytes) -> bool:
    return len(payload) <= emqx.MAX_PAYLOAD_BYTES and isinstance(document(payload), dict)


def _is_count(payload: bytes) -> bool:
    return re.fullmatch(rb"[0-9]{1,18}", payload) is not None


def check_emqx(data: bytes) -> None:
    """A history `[[seconds, kind, node, name, payload], …]` earns no credit that time did not give.

    What is refused changes nothing; sessions are only of those that an event named; and the clock goes only while
    the count of the only node is what is known, and the bridge.
    """
    steps = document(data)
    if not isinstance(steps, list):
        return
    signs, at, credit = _Signs(), 0.0, 0.0
    source = EmqxSource(SourceClock(180.0), signs, bridge_client_id="mqtt-bridge-*")
    for step in steps[:_MOST_STEPS]:
        match step:
            case [int() | float() as seconds, str(kind), str(node), str(name), payload] if 0 <= seconds <= 1e6:
                at += seconds
                _emqx_step(source, signs, at, kind, node, name, payload_of(payload))
        clock = source.clock
        require(credit <= clock.credit_seconds <= at, f"credit {credit} became {clock.credit_seconds} at {at}")
        credit = clock.credit_seconds
        held = source.sessions()
        require(held <= signs.named, f"sessions of {held - signs.named}, whom no event named")
        require(not any(map(source.is_bridge, held)), "the bridge is taken for a client device")
        require(source.reason(at), "no reason is given")


def _emqx_step(source: EmqxSource, signs: _Signs, at: float, kind: str, node: str, name: str, payload: bytes) -> None:
    before, told = _emqx_state(source), signs.told
    refused = False
    if kind == "connected":
        source.connected(node, name, payload, at)
        refused = not _is_object(payload)
    elif kind == "disconnected":
        source.disconnected(node, name, payload, at)
        refused = not _is_object(payload)
    elif kind == "count":
        source.count(node, payload, at)
        refused = not _is_count(payload)
        _check_census(source, payload, at, refused=refused)
    elif kind == "uptime":
        source.uptime(node, payload, at)
        refused = not _is_count(payload)
    elif kind == "spoke":
        source.spoke(name, at)
    elif kind == "tick":
        source.tick(at)
    elif kind == "overflow":
        source.overflow(at)
        require(not source.sessions() and not source.clock.vouching(at), "something is known after an overflow")
    if refused:
        require(_emqx_state(source) == before and signs.told == told, f"a refused {kind} changed something")


def _check_census(source: EmqxSource, payload: bytes, at: float, *, refused: bool) -> None:
    nodes = list(source._nodes.values())  # noqa: SLF001 - the clock is held against what it was made of
    if refused or len(nodes) != 1:
        return
    known = len(nodes[0].sessions)
    # A count that comes with an event may have been taken before it: the next one decides.
    decides = at - source._last_event >= 5.0  # noqa: SLF001 - as above
    wrong = decides and int(payload) != known + 1
    require(not wrong or not source.clock.vouching(at), f"it vouches with a count of {payload!r} and {known} known")


_EVENT: dict[str, Any] = {
    "clientid": "a",
    "username": "undefined",
    "ipaddress": "127.0.0.1",
    "sockport": 1883,
    "proto_ver": 5,
    "keepalive": 60,
    "connected_at": 1_700_000_000_001,
    "ts": 1_700_000_000_001,
}
_LEAVE = {**_EVENT, "reason": "tcp_closed", "disconnected_at": 1_700_000_009_001}
_NODE = "emqx@127.0.0.1"
_HISTORY = [
    [0.0, "connected", _NODE, "mqtt-bridge-x", _EVENT],
    [1.0, "connected", _NODE, "a", _EVENT],
    [1.0, "connected", _NODE, "b", {**_EVENT, "connected_at": 2}],
    [20.0, "count", _NODE, "", "3"],
    [60.0, "count", _NODE, "", "3"],
    [0.0, "uptime", _NODE, "", "60000"],
    [30.0, "disconnected", _NODE, "a", _LEAVE],
    [30.0, "count", _NODE, "", "2"],
    [60.0, "count", _NODE, "", "2"],
]
_TAKEOVER = [
    [0.0, "count", _NODE, "", "1"],
    [0.0, "connected", _NODE, "a", {**_EVENT, "connected_at": 5}],
    [0.0, "connected", _NODE, "a", {**_EVENT, "connected_at": 6}],
    [0.0, "disconnected", _NODE, "a", {**_LEAVE, "connected_at": 5, "reason": "takenover"}],
    [1.0, "disconnected", _NODE, "a", {"reason": "discarded"}],
    [60.0, "uptime", _NODE, "", "1000"],
    [60.0, "count", _NODE, "", "2"],
    [60.0, "spoke", _NODE, "a", ""],
    [100.0, "spoke", _NODE, "a", ""],
    [200.0, "tick", _NODE, "", ""],
    [0.0, "overflow", "", "", ""],
    [1.0, "count", "emqx@10.0.0.2", "", "0"],
]
_PAYLOAD_WORDS = (
    *("connected_at", "reason", "takenover", "discarded", "normal", _EVENT, _LEAVE, {"connected_at": 5}, "", "null"),
    *('{"a": 1', '{"connected_at": NaN}', "0", "1", "2", "3", "-1", "٣", "1e3", "18446744073709551616", "x" * 300),
)
_EMQX_WORDS = (
    *("connected", "disconnected", "count", "uptime", "spoke", "tick", "overflow", _NODE, "emqx@10.0.0.2"),
    *("a", "b", "mqtt-bridge-x", 0.0, 5.0, 60.0, 61, 181, 600, 4000, *_PAYLOAD_WORDS, *_HISTORY, *_TAKEOVER),
)


# --- All sources together: topics and payloads -------------------------------------------------------------------

_PREFIX = "client-device-pruner/in/"
_SETTINGS = parse(
    {
        "sources": {
            "state": {
                "type": "activity",
                "topic": "state/+/+/#",
                "thingNameLevel": 2,
                "payloadField": "state.value",
                "ignoredValues": ["offline", "0"],
                "canaryTopic": "",
            }
        },
        "rollCall": {"url": "http://127.0.0.1:18083/api/v5", "keyFile": "/key"},
    }
)
_ASSOCIATED = ("a", "b")


def _device_state(ledger: Ledger, name: str) -> tuple[Any, ...]:
    device = ledger.devices[name]
    return (device.seen, device.announced, device.away, repr(device.habits), device.readings.tolist())


def check_messages(data: bytes) -> None:
    """Messages `[[seconds, topic, payload], …]` concern those that their topics name, and nobody else.

    No clock goes back or ahead of the time, what is foreign changes nothing, and no memory grows beyond its bound.
    """
    steps = document(data)
    if not isinstance(steps, list):
        return
    ledger = Ledger(None, 0.0)
    ledger.reconcile([Association(name, 1.0) for name in _ASSOCIATED], 0.0)
    all_sources = Sources(_SETTINGS, ledger, 0.0)
    untouched = {name: _device_state(ledger, name) for name in _ASSOCIATED}
    named: set[str] = set()
    at, readings = 0.0, [0.0] * len(all_sources.witnesses(0.0))
    for step in steps[:_MOST_STEPS]:
        match step:
            case [int() | float() as seconds, str(topic), payload] if 0 <= seconds <= 1e6:
                at += seconds
                all_sources.take(topic, payload_of(payload), at)
                all_sources.tick(at)
                named.update(topic.split("/"))
        witnesses = all_sources.witnesses(at)
        for before, witness in zip(readings, witnesses, strict=True):
            require(before <= witness.clock_seconds <= at, f"{witness.name}: {before} became {witness.clock_seconds}")
        readings = [witness.clock_seconds for witness in witnesses]
    for name in _ASSOCIATED:
        same = _device_state(ledger, name) == untouched[name]
        require(same or name in named, f"{name} changed, and no topic names it")
    _check_bounds(ledger, named)


def _check_bounds(ledger: Ledger, named: set[str]) -> None:
    strangers = set(ledger._strangers)  # noqa: SLF001 - memory is what it is about
    require(ledger.devices.keys() == set(_ASSOCIATED), "a message changed who is associated")
    require(strangers <= named, "a name is remembered that no topic has")
    require(all(map(_THING.fullmatch, strangers)), "a name is remembered that no thing can have")
    require(len(strangers) <= MAX_STRANGERS, "too many names are remembered")


_SYS = f"{_PREFIX}$SYS/brokers/{_NODE}"
_MESSAGES = [
    [0.0, f"{_SYS}/clients/a/connected", _EVENT],
    [1.0, f"{_SYS}/stats/live_connections/count", "2"],
    [1.0, f"{_SYS}/uptime", "1000"],
    [60.0, f"{_SYS}/stats/live_connections/count", "2"],
    [1.0, f"{_PREFIX}clients/b/telemetry", {"t": 21.5}],
    [1.0, f"{_PREFIX}clients/{CANARY}/telemetry", ""],
    [1.0, f"{_PREFIX}state/site/a/x", {"state": {"value": "offline"}}],
    [1.0, f"{_PREFIX}state/site/b", {"state": {"value": 1}}],
    [1.0, f"{_SYS}/clients/a/disconnected", _LEAVE],
    [1.0, f"{_SYS}/clients/stranger/connected", _EVENT],
    [1.0, "elsewhere/a/telemetry", "x"],
]
_MESSAGE_WORDS = (*(topic for _, topic, _ in _MESSAGES), *_MESSAGES, _PREFIX, "clients/a/telemetry", *_PAYLOAD_WORDS)


# --- The activity source alone -----------------------------------------------------------------------------------


class _Speakers:
    def __init__(self) -> None:
        self.said: list[str] = []

    def spoke(self, name: str, source_id: int, at: float) -> None:
        del source_id, at
        self.said.append(name)


def check_activity(data: bytes) -> None:
    """A message of a thing is a sign of life and vouches, unless its payload is one of the ignored; the canary vouches.

    The input is `{"name": …, "payload": …, "field": dotted path, "ignored": [texts]}`.
    """
    match document(data):
        case {"name": str(name), "payload": raw, "field": str(path), "ignored": list(given)}:
            pass
        case _:
            return
    payload, ignored = payload_of(raw), [value for value in given if isinstance(value, str)]
    speakers, clock = _Speakers(), SourceClock(3600.0)
    source = ActivitySource(0, clock, speakers, payload_field=path, ignored_values=ignored)
    source.message(name, payload, 1.0)
    is_thing = _THING.fullmatch(name) is not None and name != CANARY
    expected = [name] if is_thing and _value_of(payload, path) not in ignored else []
    require(speakers.said == expected, f"said {speakers.said} instead of {expected}")
    vouched = clock.last_voucher_seconds is not None
    require(vouched == (name == CANARY or bool(expected)), f"vouched: {vouched}")


def _value_of(payload: bytes, path: str) -> str | None:
    """What `ignoredValues` is compared with, by the contract's words."""
    if not path:
        return payload.decode(errors="replace").strip()
    value = document(payload)
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None


_WILL = {"name": "a", "payload": {"state": {"value": "offline"}}, "field": "state.value", "ignored": ["offline"]}
_ACTIVITY_WORDS = (
    *("name", "payload", "field", "ignored", "state", "value", "state.value", "state.value.x", "offline", "true"),
    *(
        "1",
        "1.0",
        "NaN",
        "null",
        "a",
        CANARY,
        {"state": {"value": True}},
        {"state": [1]},
        " offline\n",
        "\xff",
        "x" * 129,
    ),
)


# --- The self-test's echo ----------------------------------------------------------------------------------------


def check_self_test(data: bytes) -> None:
    """Only what was sent, and is awaited, shows that the subscription lives; a `$` of the input stands for it."""
    test = SelfTest(1.0)
    sent = test.next(0.0)
    payload = data.replace(b"$", sent.encode())
    test.echo(payload)
    own = payload == sent.encode()
    require(test.alive == own and (test.echoed == sent) == own, f"{payload!r} was taken for an echo")
    test.echo(sent.encode())
    require(test.alive and test.remedy(1e9) is None, "its own echo was not taken")


# --- Topics and filters ------------------------------------------------------------------------------------------


def check_topics(data: bytes) -> None:
    """Matching, covering and intersecting agree with one another, and with the local core's own matching.

    The input is three lines: two filters and a topic.
    """
    one, other, topic = (*data.decode("utf-8", "surrogateescape").split("\n"), "", "", "")[:3]
    if not (is_filter(one) and is_filter(other)):
        return
    common = intersection(one, other)
    require((common is not None) == filters_overlap(one, other), "intersection and overlap disagree")
    require(filters_overlap(other, one) == filters_overlap(one, other), "overlap is not symmetrical")
    require(filter_covers(one, one), f"{one!r} does not cover itself")
    if common is not None:
        require(is_filter(common), f"{common!r} is no filter")
    if not is_topic(topic):
        return
    matches = topic_matches(one, topic), topic_matches(other, topic)
    for text, found in zip((one, other), matches, strict=True):
        require(found == pubsub.topic_matches(text, topic), f"{text!r} and {topic!r}: one matches, the other does not")
    if filter_covers(one, other):
        require(matches[0] or not matches[1], f"{one!r} covers {other!r}, and not {topic!r}")
        require(common is not None, f"{one!r} covers {other!r}, and they do not overlap")
    if all(matches):
        require(common is not None and topic_matches(common, topic), f"{topic!r} is not in {common!r}")
    elif common is not None:
        require(not topic_matches(common, topic), f"{topic!r} is in {common!r}")


def _pairs(filters: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(f"{one}\n{other}\nclients/a/telemetry".encode() for one, other in pairwise(filters))


_FILTERS = (
    *("#", "+/#", "clients/+/#", "clients/+/telemetry", "clients/a/telemetry", "clients/#", "clients/+", "+/a/+"),
    *("$SYS/#", "$SYS/brokers/+/clients/+/connected", "/#", "/", "//+", "clients/+/telemetry/#", "#"),
)

TARGETS = (
    Target("emqx", check_emqx, seeds(_HISTORY, _TAKEOVER, [[0.0, "connected", "", "x", "[]"]]), _EMQX_WORDS),
    Target("messages", check_messages, seeds(_MESSAGES, _MESSAGES[4:6]), _MESSAGE_WORDS),
    Target(
        "activity",
        check_activity,
        seeds(_WILL, {**_WILL, "name": CANARY}, {**_WILL, "field": "", "payload": " offline"}),
        _ACTIVITY_WORDS,
    ),
    Target("self-test", check_self_test, (b"$", b"$ ", b"x$", b"", b"0011aabb-1")),
    Target("topics", check_topics, _pairs(_FILTERS)),
)
