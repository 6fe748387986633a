"""Observed time."""

from __future__ import annotations

import pytest

from client_device_pruner.presence.clock import DAY_SECONDS, ObservedClock, Shares


def _returned(clock: ObservedClock, sent: float, *, after: float = 0.1, alive: bool = True) -> float:
    clock.returned(sent, sent + after, interval_seconds=60, hole_seconds=3600, alive=alive, wall=sent)
    return clock.seconds


def test_it_advances_from_one_probe_to_the_next() -> None:
    """The time between the returns of two probes in a row: no sighting before one is older than the clock says."""
    clock = ObservedClock(100)
    assert _returned(clock, 0) == 100
    assert _returned(clock, 60) == 160
    assert clock.advanced_at == pytest.approx(60.1)
    assert _returned(clock, 120, after=20) == pytest.approx(160 + 80 - 0.1)


@pytest.mark.parametrize("sent", [121, 1000])
def test_probes_more_than_two_intervals_apart_show_nothing(sent: float) -> None:
    """A process that was suspended has observed nothing meanwhile."""
    clock = ObservedClock()
    _returned(clock, 0)
    assert _returned(clock, sent) == 0


def test_a_gap_is_not_observed() -> None:
    """However soon the next probe comes back, the time around a lost one does not count."""
    clock = ObservedClock()
    _returned(clock, 0)
    clock.gap()
    assert _returned(clock, 60) == 0
    assert _returned(clock, 120) == pytest.approx(60)


def test_every_input_has_to_be_alive_at_both_ends() -> None:
    """A dead input stops the clock until a whole interval has passed with it alive."""
    clock = ObservedClock()
    _returned(clock, 0)
    assert _returned(clock, 60, alive=False) == 0
    assert _returned(clock, 120) == 0
    assert _returned(clock, 180) == pytest.approx(60)


@pytest.mark.parametrize(("seconds", "is_hole"), [(3_500, False), (3_700, True)])
def test_a_long_standstill_is_a_hole(seconds: float, *, is_hole: bool) -> None:
    """Its reading is kept from over an hour on, and so is the one at the start of a host."""
    clock = ObservedClock(100, advanced_at=0, hole_at=7)
    _returned(clock, seconds)
    assert clock.hole_at == 7, "it may stand still for longer"
    _returned(clock, seconds + 60)
    assert clock.hole_at == (100 if is_hole else 7)
    booted = ObservedClock(100, advanced_at=None, hole_at=7)
    _returned(booted, 5)
    _returned(booted, 65)
    assert booted.hole_at == 100


def test_it_says_since_when_it_has_gone_on() -> None:
    """The beginning of the present stretch is told, and nothing while the clock stands still."""
    clock = ObservedClock()
    _returned(clock, 0)
    assert clock.since_wall is None
    _returned(clock, 60)
    _returned(clock, 120)
    assert clock.since_wall == 60
    clock.gap()
    assert clock.since_wall is None


def test_the_share_of_the_last_day() -> None:
    """Half of the day observed is a share of one half; of a younger component it is the share of its life."""
    shares, observed = Shares(), 0.0
    for hour in range(72):
        shares.sample(hour * 3600.0, observed)
        observed += 3600 if hour % 2 else 0
    assert shares.share(DAY_SECONDS, 72 * 3600.0, observed) == pytest.approx(0.5, abs=0.05)
    young = Shares([(0.0, 0.0)])
    assert young.share(DAY_SECONDS, 7200.0, 3600.0) == 0.5


def test_a_wall_clock_that_is_set_back_spoils_no_share() -> None:
    """Readings from the future are dropped, and a share stays between 0 and 1."""
    shares = Shares([(1_000_000.0, 500.0)])
    assert shares.sample(5_000.0, 600.0)
    assert 0 <= shares.share(DAY_SECONDS, 8_600.0, 4_200.0) <= 1
