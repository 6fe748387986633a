"""Durations are read as people write them, and written as they are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.config.schema import Wrong, duration, format_duration

READ = duration(0, 10**9)


@given(st.integers(0, 10**9), st.booleans())
def test_durations_come_back(number: int, short: bool) -> None:
    """What is written is read as the same: seconds, and milliseconds in a trial."""
    seconds = number / 1000 if short else number
    assert READ(format_duration(seconds), short) == pytest.approx(seconds, abs=1e-6)


def test_how_durations_are_written() -> None:
    """Largest unit first, none that is zero."""
    written = [format_duration(seconds) for seconds in (0, 0.5, 45, 90, 129600, 3650 * 86400)]
    assert written == ["0s", "0.5s", "45s", "1m30s", "1d12h", "3650d"]


@pytest.mark.parametrize("text", ["", "30", "d", "1h1d", "1d1d", "1 d", "1D", "-1d", "1w", "٣d", "1.d", "0.5s", "1d\n"])
def test_what_is_no_duration(text: str) -> None:
    """Anything but whole numbers with units, largest first, is refused, with an example."""
    with pytest.raises(Wrong, match="1d12h"):
        READ(text, False)
