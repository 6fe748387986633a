"""Tables and durations."""

from __future__ import annotations

import io

import pytest

from client_device_pruner.cli.render import about, evidence_of, say, table, utc


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


def test_a_table_is_aligned_and_each_row_a_line() -> None:
    """A line break in a cell ends no row."""
    assert (
        table([("A", "B"), ("a", "b"), ("long\nname", "c")], "  ") == "  A          B\n  a          b\n  long name  c"
    )


def test_what_steers_a_terminal_is_made_harmless() -> None:
    """Whatever a name or a message of the cloud holds."""
    stream = io.StringIO()
    say("a\x1b[2Jb\n\u202e", stream)
    assert stream.getvalue() == "a?[2Jb\n?\n"


def test_evidence_has_a_label_for_each_figure() -> None:
    """What an event lacks is not told; a patience that is endless has no figure."""
    assert evidence_of("marked", {"silentSeconds": 60, "patienceSeconds": None, "reason": ""}) == [("silent", "1m")]
    assert evidence_of("intended", {"cycleId": "c1"}) == [("outcome", "not known yet"), ("cycle", "c1")]
    assert evidence_of("failed", {"code": "X", "remedy": "y"}) == [("code", "X"), ("what to do", "y")]


def test_a_moment_is_in_utc() -> None:
    """To the second."""
    assert utc(1_800_000_000.4) == "2027-01-15 08:00:00Z"
