"""Durations."""

from __future__ import annotations

from client_device_pruner.cli.render import about


def test_a_duration_is_as_exact_as_a_person_wants_it() -> None:
    """To the hour from a day on, to the minute from an hour on, to the second, to the tenth below ten."""
    said = [about(seconds) for seconds in (0.0, 4.26, 59.4, 3_599.0, 5_400.0, 93_599.0, 30 * 86_400.0)]
    assert said == ["0s", "4.3s", "59s", "59m59s", "1h30m", "1d2h", "30d"]
