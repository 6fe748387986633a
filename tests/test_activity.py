"""The `activity` source: what a device's own message vouches for, and which messages are none."""

from __future__ import annotations

import pytest

from client_device_pruner.activity import CANARY, ActivitySource
from client_device_pruner.source_clock import SourceClock


class FakeSigns:
    """Keeps who spoke, on which source and when."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, float]] = []

    def spoke(self, name: str, source_id: int, at: float) -> None:
        """Keep it."""
        self.said.append((name, source_id, at))


def make(
    payload_field: str = "", ignored_values: tuple[str, ...] = ()
) -> tuple[ActivitySource, SourceClock, FakeSigns]:
    """Make a source of id 3 whose maxQuiet is an hour."""
    clock, signs = SourceClock(3600.0), FakeSigns()
    source = ActivitySource(3, clock, signs, payload_field=payload_field, ignored_values=ignored_values)
    return source, clock, signs


def is_heard(payload: bytes, payload_field: str = "", *ignored_values: str) -> bool:
    """Tell whether a message with this payload is a sign of life, and check that it vouches if and only if it is."""
    source, clock, signs = make(payload_field, ignored_values)
    source.message("a", payload, 5.0)
    assert (clock.last_voucher_seconds == 5.0) is bool(signs.said)
    return bool(signs.said)


def test_a_message_is_a_sign_of_life_and_a_voucher() -> None:
    """What a device says shows that it was there, and that messages come through."""
    source, clock, signs = make()
    source.message("a", b"21.5", 0.0)
    source.message("b", b"", 60.0)
    assert signs.said == [("a", 3, 0.0), ("b", 3, 60.0)]
    assert clock.credit_seconds == 60.0


def test_the_canary_vouches_and_is_no_device() -> None:
    """The component's own message shows that the way through broker and bridge is open, and nothing else."""
    source, clock, signs = make(ignored_values=("",))
    source.message(CANARY, b"", 0.0)
    source.message(CANARY, b"{}", 60.0)
    assert signs.said == []
    assert clock.credit_seconds == 60.0


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", "a\n", "\ud800", "x" * 129, "a.b", "$SYS", "a\0"])
def test_what_is_no_thing_name_is_nobody(name: str) -> None:
    """A name that no thing can have neither lives nor vouches."""
    source, clock, signs = make()
    source.message(name, b"1", 0.0)
    assert signs.said == []
    assert clock.last_voucher_seconds is None


def test_names_of_every_allowed_form_are_heard() -> None:
    """Letters, digits, colon, underscore, hyphen; up to 128; case matters."""
    source, _, signs = make()
    for name in ("a", "A", "x:_-9", "y" * 128):
        source.message(name, b"1", 0.0)
    assert [name for name, _, _ in signs.said] == ["a", "A", "x:_-9", "y" * 128]


def test_an_ignored_payload_is_no_sign_of_life() -> None:
    """The will that the broker publishes for a dead device does not show that it lives."""
    assert not is_heard(b"offline", "", "offline")
    assert not is_heard(b" offline\n", "", "offline")
    assert is_heard(b"online", "", "offline")
    assert is_heard(b"OFFLINE", "", "offline")
    assert not is_heard(b"", "", "", "offline")
    assert is_heard(b"\xff\xfe", "", "offline")


@pytest.mark.parametrize(
    ("payload", "ignored"),
    [
        (b'{"state": {"value": "offline"}}', "offline"),
        (b'{"state": {"value": 0}}', "0"),
        (b'{"state": {"value": 1.5}}', "1.5"),
        (b'{"state": {"value": false}}', "false"),
        (b'{"state": {"value": ""}}', ""),
        ('{"state": {"value": "aus geschaltet ü"}}'.encode(), "aus geschaltet ü"),
    ],
)
def test_an_ignored_value_stands_at_a_path(payload: bytes, ignored: str) -> None:
    """Scalars are compared as they are written in JSON, texts without their quotes."""
    assert not is_heard(payload, "state.value", ignored)
    assert is_heard(payload, "state.value", "something else")


@pytest.mark.parametrize(
    "payload",
    [
        b"offline",
        b"",
        b"{}",
        b"[]",
        b'{"state": "offline"}',
        b'{"state": {"value": null}}',
        b'{"state": {"value": ["offline"]}}',
        b'{"state": {"value": {"offline": 1}}}',
        b'{"value": "offline"}',
        b"[" * 100_000,
        b"1" * 10_000,
        b'{"state": {"value": NaN}}',
        b'{"state": {"value": 1e999}}',
        b'{"state": {"value": "\\ud800"}}',
        b'{"state": {"value": "offline", "pad": "' + b"x" * 1_100_000 + b'"}}',
    ],
)
def test_what_has_no_such_value_is_a_sign_of_life(payload: bytes) -> None:
    """A message without the field, or that is no JSON, is not among those to ignore, whatever they are."""
    assert is_heard(payload, "state.value", "offline", "")


def test_the_reason_says_what_it_waits_for() -> None:
    """Each stand has its words, with figures."""
    source, _, _ = make()
    assert source.reason(0.0) == "no message of a device or of the canary in this run"
    source.message("a", b"1", 0.0)
    assert source.reason(10.0) == "the last message came 10 s ago; the next one starts the clock"
    source.message("a", b"1", 20.0)
    assert source.reason(25.0) == "the last message came 5 s ago"
    source.clock.reading(4000.0)
    assert source.reason(5000.0) == "the last message came 4980 s ago, longer than its maxQuiet of 3600 s"
