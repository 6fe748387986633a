"""Durations and values are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.config.schema import format_duration, parse_duration, shown, step


@given(st.integers(0, 3650 * 86400))
def test_whole_durations_come_back(seconds: int) -> None:
    """A number of seconds that is written is read as the same."""
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 10**9))
def test_short_durations_come_back(milliseconds: int) -> None:
    """Milliseconds come back as well, where decimals are allowed."""
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds), decimals=True) == pytest.approx(seconds, abs=1e-6)


def test_how_durations_are_written() -> None:
    """Largest unit first, none that is zero."""
    written = [format_duration(seconds) for seconds in (0, 0.5, 45, 90, 129600, 3650 * 86400, -60)]
    assert written == ["0s", "0.5s", "45s", "1m30s", "1d12h", "3650d", "-1m"]


@pytest.mark.parametrize("text", ["", "30", "d", "1h1d", "1d1d", "1 d", "1D", "-1d", "1w", "٣d", "1.d", "0.5s", "1d\n"])
def test_what_is_no_duration(text: str) -> None:
    """Anything but whole numbers with units, largest first, is refused, with an example."""
    with pytest.raises(ValueError, match="1d12h"):
        parse_duration(text)


def test_how_values_and_keys_are_shown() -> None:
    """Long values are cut, and a key that could blur its path stands in quotes."""
    assert shown("x" * 100) == '"' + "x" * 60 + '…"'
    assert shown("\ud800") == '"\\ud800"'
    assert shown(10**5000) == "a number of so many digits"
    assert [step(key) for key in ("slow", "a:b c-1@x", "a: b", " a", 5)] == ["slow", "a:b c-1@x", '"a: b"', '" a"', "5"]
