"""Durations."""

from __future__ import annotations

import pytest

from client_device_pruner.cli.render import about


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0s"),
        (4.26, "4.3s"),
        (59.4, "59s"),
        (3_599.0, "59m59s"),
        (5_400.0, "1h30m"),
        (93_599.0, "1d2h"),
        (30 * 86_400.0, "30d"),
    ],
)
def test_a_duration_is_as_exact_as_a_person_wants_it(seconds: float, said: str) -> None:
    """To the hour from a day on, to the minute from an hour on, to the second, to the tenth below ten."""
    assert about(seconds) == said
