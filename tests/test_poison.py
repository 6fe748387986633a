"""Poison never hurts: nothing raises, no clock goes back, memory stays bounded, and nobody is touched by it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from client_device_pruner import emqx as emqx_module
from client_device_pruner import ledger as ledger_module
from client_device_pruner.ledger import Ledger
from client_device_pruner.model import Association, Device
from client_device_pruner.settings import parse
from client_device_pruner.sources import Sources

PREFIX = "client-device-pruner/in/"
NODE = "emqx@127.0.0.1"
EVENTS = ("connected", "disconnected")
MESSAGES = 60_000
BOUND = 500
"""Stands for each of the bounds of 10,000 and more in the test of plausible lies."""

SETTINGS = parse(
    {
        "sources": {
            "deep": {
                "type": "activity",
                "topic": "deep/+/#",
                "payloadField": "a.b.c",
                "ignoredValues": ["offline", ""],
                "canaryTopic": "",
            },
            "loose": {
                "type": "emqx",
                "connectedTopic": "loose/#",
                "disconnectedTopic": "loose-end/#",
                "countTopic": "loose-count/#",
                "uptimeTopic": "loose-uptime/#",
                "thingNameLevel": 4,
            },
        },
        "rollCall": {"url": "http://127.0.0.1:18083/api/v5", "keyFile": "/key"},
    }
)

NAMES = [
    *("", " ", "A", "b ", " b", "b\0", "b\n", "B", "bb", "\uff42", "x/y", "../x", "+", "#", "$SYS", "%62", "b\u200b"),
    *("\ud800", "\udfff\ud800", "ü", "x" * 129, "x" * 10_000, "pruner-canary", "mqtt-bridge-1", "null", "None"),
    *("mqtt-bridge-", "nan", "0", "-1", "true", "[a-b]", "*", "?", "'; DROP TABLE devices; --", "\u202eb", "😀"),
]
"""Client ids and topic levels that are not `a` or `b`, but some would be with a careless comparison."""

NO_EVENTS = [
    *(
        b"",
        b" ",
        b"\0",
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe{",
    ),
    *(
        b"{",
        b"}",
        b"[]",
        b'"b"',
        b"'b'",
        b"{'a': 1}",
        b'{"a": 1',
        b'{"a": 1}{',
        b'{"a"}',
        b"{,}",
        b"[{}]",
        b'"\\ud800"',
    ),
    *(b"9" * 5_000, b"[" * 20_000, b'{"a":' * 20_000, b"[" * 500 + b"]" * 500, b'{"x": "' + b"y" * 70_000 + b'"}'),
    *(b"1.0", b"+1", b"1_0", b"0x10", b" 2", b"2 ", b"2\n", b"\xd9\xa3", b"2" * 19, b"-2", b"1e1", b"offline"),
    '{"connected_at": 1}'.encode("utf-16")[:-1],
]
"""Payloads that are neither a JSON object nor a count."""

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**53, 2**64, -(10**300), 10**4000, 1.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "1", "unheard", "takenover", "\ud800", "x" * 5_000, [], [1], {}, {"connected_at": 1}, [[[[[]]]]]),
]


def _nested(depth: int) -> Any:
    value: Any = "offline"
    for _ in range(depth):
        value = {"a": {"b": {"c": value}}}
    return value


class Target:
    """A ledger without a file, in which `a` and `b` are associated, and sources that are fed with poison."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.at = 0.0
        self.ledger = Ledger(None, 0.0)
        self.sources = Sources(SETTINGS, self.ledger, 0.0)
        self.ledger.reconcile([Association("a", 1.0), Association("b", 2.0)], 0.0)
        self._credits = dict.fromkeys(self.ledger.sources, 0.0)
        self._floors = dict(self._credits)

    def device(self, name: str) -> Device:
        """An associated device."""
        return self.ledger.devices[name]

    def noise(self) -> bytes:
        """Bytes of any value, that are no JSON object and no number."""
        return b"\xfe" + self.random.randbytes(self.random.randrange(60))

    def check_clocks(self) -> None:
        """No clock went back, or faster than time."""
        for name, record in self.ledger.sources.items():
            clock = record.clock
            assert self._credits[name] <= clock.credit_seconds <= self.at
            assert self._floors[name] <= clock.floor_seconds <= clock.credit_seconds
            self._credits[name], self._floors[name] = clock.credit_seconds, clock.floor_seconds

    def check_bounds(self) -> None:
        """What is kept of others than the associated devices is bounded."""
        assert len(self.ledger._strangers) <= BOUND
        for source in self.sources.emqx.values():
            assert max(len(source._ended), len(source._spoken), len(source._closed)) <= BOUND

    def interfere(self, number: int, names: frozenset[str]) -> None:
        """Now and then time passes, messages are lost, a roll call names these, or the bridge is another one."""
        if number % 97 == 0:
            self.sources.tick(self.at)
        if number % 1009 == 0:
            self.sources.overflow(self.at)
        if number % 211 == 0:
            self.sources.roll_call_begins()
            self.sources.roll_call_answered(names, self.at)
        if number % 503 == 0:
            self.sources.set_bridge(self.random.choice(NAMES), known=self.random.random() < 0.5)

    def ask(self) -> None:
        """Everything that is asked of sources can be answered."""
        for witness in self.sources.witnesses(self.at):
            json.dumps([witness.reason, witness.silenced, witness.clock_seconds])
        self.sources.present_names()


@pytest.mark.parametrize("seed", [1, 20261122])
def test_garbage_changes_nothing(seed: int) -> None:
    """What is no event, count or message of a device leaves everything as the honest broker alone would have it."""
    target = Target(seed)
    rng, sources = target.random, target.sources
    sources.take(f"{PREFIX}$SYS/brokers/{NODE}/clients/a/connected", b'{"connected_at": 7}', 0.0)
    untouched = target.device("b").markers

    def any_of(*more: str) -> str:
        return rng.choice([*more, *NAMES])

    def levels(most: int) -> str:
        return "/".join(any_of("a", "b") for _ in range(rng.randrange(most)))

    astray = ["", "/", "//", "$SYS", "clients", "Clients/b/x", "//clients/b/x", "client/b", "\ud800/b/x"]
    topics = [
        lambda: f"$SYS/brokers/{any_of(NODE)}/clients/{any_of('a', 'b')}/{rng.choice(EVENTS)}",
        lambda: f"$SYS/brokers/{any_of(NODE)}/stats/live_connections/count",
        lambda: f"$SYS/brokers/{any_of(NODE)}/uptime",
        lambda: f"loose{rng.choice(['', '-end', '-count', '-uptime'])}/{levels(7)}",
        lambda: f"clients/{any_of()}/telemetry",
        lambda: f"deep/{any_of()}/{any_of()}",
        lambda: rng.choice(astray),
        lambda: levels(9),
    ]
    counted: list[float] = []
    for number in range(MESSAGES):
        target.at += 0.01
        if target.at >= 60.0 * len(counted):
            sources.take(f"{PREFIX}$SYS/brokers/{NODE}/stats/live_connections/count", b"2", target.at)
            counted.append(target.at)
        payload = rng.choice(NO_EVENTS) if rng.random() < 0.1 else target.noise()
        prefix = PREFIX if rng.random() < 0.9 else rng.choice(["", "/", PREFIX[:-1], PREFIX.upper(), PREFIX * 2])
        sources.take(prefix + rng.choice(topics)(), payload, target.at)
        if number % 500 == 0:
            sources.tick(target.at)
            target.check_clocks()
            target.ask()
        assert sources.present("a"), (seed, number, payload)
        assert not target.device("b").seen, (seed, number, prefix, payload[:50])
        assert not sources.present("b"), (seed, number, payload)
    assert sources.present_names() == {"a"}
    assert target.device("b").markers == untouched
    assert not target.device("b").seen
    assert not target.device("b").habits
    assert target.ledger.sources["emqx"].clock.credit_seconds == pytest.approx(counted[-1] - counted[0])
    assert target.ledger.sources["emqx"].clock.floor_seconds == 0.0
    assert target.ledger.sources["loose"].clock.credit_seconds == 0.0


@pytest.mark.parametrize("seed", [2, 31337])
def test_plausible_lies_touch_no_one_else(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events with odd fields, endless odd clients and nodes, and gaps, calls and jumps between: all within bounds."""
    monkeypatch.setattr(emqx_module, "MAX_ENDED", BOUND)
    monkeypatch.setattr(emqx_module, "MAX_STRANGERS", BOUND)
    monkeypatch.setattr(ledger_module, "MAX_STRANGERS", BOUND)
    target = Target(seed)
    rng, sources = target.random, target.sources
    untouched = target.device("b").markers
    values = [json.dumps(value).encode() for value in ODD_VALUES] + [b"1" * 5_000, b"1e999"]
    fields = [b"connected_at", b"reason", b"clientid", b"disconnected_at", b"ts"]
    nested = [json.dumps(_nested(depth)).encode() for depth in (1, 2, 200)]

    def client() -> str:
        return rng.choice(NAMES) if rng.random() < 0.2 else f"stranger-{rng.randrange(20_000)}"

    def event() -> bytes:
        if rng.random() < 0.5:
            return b'{"connected_at": %d, "reason": "%s"}' % (rng.randrange(100), rng.choice([b"normal", b"takenover"]))
        pairs = (b'"%s": %s' % (rng.choice(fields), rng.choice(values)) for _ in range(rng.randrange(5)))
        return b"{" + b", ".join(pairs) + b"}"

    def figure() -> bytes:
        return str(rng.randrange(10 ** rng.randrange(1, 18))).encode()

    def node() -> str:
        return NODE if rng.random() < 0.9 else rng.choice([f"n{rng.randrange(1000)}", *NAMES])

    kinds = [
        lambda: (f"$SYS/brokers/{node()}/clients/{client()}/{rng.choice(EVENTS)}", event()),
        lambda: (f"$SYS/brokers/{node()}/clients/{client()}/{rng.choice(EVENTS)}", event()),
        lambda: (f"$SYS/brokers/{node()}/stats/live_connections/count", figure()),
        lambda: (f"$SYS/brokers/{node()}/uptime", figure()),
        lambda: (f"clients/{client()}/telemetry", rng.choice(NO_EVENTS)),
        lambda: (f"deep/{client()}/x", rng.choice(nested + NO_EVENTS)),
        lambda: (f"loose/{rng.randrange(5)}/{client()}/{client()}/{client()}", event()),
        lambda: (f"loose-count/{rng.randrange(5)}", figure()),
    ]
    for number in range(MESSAGES):
        # Mostly a little later; now and then messages that were received earlier, or much later.
        target.at += rng.choice([0.0, 0.01, 0.1]) if rng.random() < 0.999 else rng.choice([61.0, 200.0, 1e6])
        received = target.at - rng.choice([0.0, 0.0, 0.5, 30.0])
        topic, payload = rng.choice(kinds)()
        sources.take(PREFIX + topic, payload, max(0.0, received))
        target.interfere(number, frozenset(client() for _ in range(5)))
        if number % 500 == 0:
            target.check_clocks()
            target.check_bounds()
            target.ask()
        assert not sources.present("b"), (seed, number, topic, payload)
    assert target.device("b").markers == untouched
    assert not target.device("b").seen
    assert set(target.ledger.devices) == {"a", "b"}
    assert target.ledger.returned == []
