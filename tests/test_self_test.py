"""The self-test shows that the one subscription lives, and names what to do when it does not."""

from __future__ import annotations

import pytest

from client_device_pruner.self_test import Remedy, SelfTest


@pytest.fixture
def self_test() -> SelfTest:
    """A self-test that was not sent yet, with the usual times."""
    return SelfTest(1.0)


def test_it_is_sent_every_minute(self_test: SelfTest) -> None:
    """At once after a start, and a minute after the last one, once that came back."""
    assert self_test.due(0.0)
    text = self_test.next(0.0)
    assert not self_test.due(100.0)
    self_test.echo(text.encode())
    assert not self_test.due(59.9)
    assert self_test.due(60.0)
    assert self_test.next(60.0) != text


def test_its_echo_shows_life(self_test: SelfTest) -> None:
    """Only the text that is awaited, and only once it has come."""
    text = self_test.next(0.0)
    assert not self_test.alive
    self_test.echo(text.encode())
    assert self_test.alive
    assert self_test.echoed == text
    assert self_test.remedy(1000.0) is None


@pytest.mark.parametrize("payload", [b"", b"\xff\xff", b"None", b"x" * 100_000])
def test_another_text_shows_nothing(self_test: SelfTest, payload: bytes) -> None:
    """Neither garbage nor another process' test is an echo, awaited or not."""
    self_test.echo(payload)
    self_test.next(0.0)
    self_test.echo(payload)
    other = SelfTest(1.0)
    self_test.echo(other.next(0.0).encode())
    assert not self_test.alive
    assert self_test.echoed is None


def test_an_old_echo_shows_nothing(self_test: SelfTest) -> None:
    """What was sent before the last one says nothing of now."""
    old = self_test.next(0.0)
    self_test.next(60.0)
    self_test.echo(old.encode())
    assert self_test.echoed is None


def test_the_remedies_come_one_after_the_other(self_test: SelfTest) -> None:
    """Subscribe anew, then connect anew, then exit; each time a new test is sent at once."""
    at = 0.0
    taken = []
    for _ in range(4):
        assert self_test.due(at)
        self_test.next(at)
        assert self_test.remedy(at + 14.9) is None
        at += 15.0
        taken.append(self_test.remedy(at))
        assert self_test.remedy(at) is None
        assert not self_test.alive
    assert taken == [Remedy.SUBSCRIBE, Remedy.CONNECT, Remedy.EXIT, Remedy.EXIT]


def test_an_echo_starts_the_remedies_over(self_test: SelfTest) -> None:
    """After a success the mildest comes first again."""
    self_test.next(0.0)
    assert self_test.remedy(15.0) is Remedy.SUBSCRIBE
    self_test.echo(self_test.next(15.0).encode())
    self_test.next(75.0)
    assert self_test.remedy(90.0) is Remedy.SUBSCRIBE


def test_its_times_scale_down_to_a_second_of_patience() -> None:
    """With short durations it is sent more often; an echo may still take a second."""
    self_test = SelfTest(0.01)
    self_test.echo(self_test.next(0.0).encode())
    assert self_test.due(0.6)
    self_test.next(0.6)
    assert self_test.remedy(1.5) is None
    assert self_test.remedy(1.6) is Remedy.SUBSCRIBE
