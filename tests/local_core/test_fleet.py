"""A fleet of core devices shares the account's calls."""

from __future__ import annotations

import pytest

from client_device_pruner.pruning import BACK_OFF_SECONDS
from local_core.fleet import Fleet, Pace, main, paces, simulate

AT_ONCE, NEW, UPGRADED = paces()
PLENTY = 1e6
HOUR_SECONDS = 3600.0


def test_a_fleet_within_its_quota_is_never_throttled() -> None:
    """Four cycles a day and the first, one call each; within ten minutes and one all are listed."""
    figures = simulate(Fleet(50, rate=PLENTY, burst=PLENTY, due_share=0.0), NEW)
    assert figures.throttled == 0
    assert 50 * 4 <= figures.calls <= 50 * 5
    assert len(figures.listed_seconds) == 50
    assert max(figures.listed_seconds) <= 660


def test_a_core_that_knows_its_list_takes_the_whole_interval() -> None:
    """After an upgrade the first cycles are spread over six hours."""
    listed = simulate(Fleet(200, rate=PLENTY, burst=PLENTY), UPGRADED).listed_seconds
    assert max(listed) <= 6 * HOUR_SECONDS + 60
    assert max(listed) > 5 * HOUR_SECONDS
    assert sum(at < 3 * HOUR_SECONDS for at in listed) == pytest.approx(100, abs=30)


@pytest.mark.parametrize(("devices", "pages"), [(0, 1), (100, 1), (101, 2), (450, 5)])
def test_a_listing_takes_a_call_a_page(devices: int, pages: int) -> None:
    """With something to do, a cycle lists, disassociates and lists again."""
    hour = Fleet(10, rate=PLENTY, burst=PLENTY, devices=devices, due_share=0.0, seconds=HOUR_SECONDS)
    assert simulate(hour, NEW).calls == 10 * pages
    due = Fleet(10, rate=PLENTY, burst=PLENTY, devices=devices, due_share=1.0, seconds=HOUR_SECONDS)
    assert simulate(due, NEW).calls == 10 * (2 * pages + 1)


def test_the_bucket_gives_no_more_than_it_holds() -> None:
    """What is not throttled is the burst, and the rate for as long as it goes on, to the call."""
    fleet = Fleet(100, rate=0.01, burst=5.0, seconds=HOUR_SECONDS)
    figures = simulate(fleet, AT_ONCE)
    granted = figures.calls * (1 - figures.throttled)
    assert granted == pytest.approx(5 + 0.01 * HOUR_SECONDS, abs=2)
    assert len(figures.listed_seconds) == round(granted)


def test_the_back_off_is_the_components() -> None:
    """A core that is always throttled tries three times at 0, 1, 3, 7, 15, 25, 35 and 45 minutes."""
    pace = Pace("new, at once", lambda _jitter: 0.0, NEW.next_seconds)
    figures = simulate(Fleet(1, rate=0.0, burst=0.0, seconds=2_900.0), pace)
    assert figures.calls == 8 * 3
    assert figures.throttled == 1
    assert not figures.listed_seconds
    assert NEW.next_seconds(0.5, 100) == BACK_OFF_SECONDS[1]


def test_jitter_and_back_off_are_worth_their_while() -> None:
    """The fleet that calls at once asks for more, and in a busier second; all are listed either way."""
    fleet = Fleet(2_000, rate=2.0, burst=5.0, seconds=6 * HOUR_SECONDS)
    ours, theirs = simulate(fleet, NEW), simulate(fleet, AT_ONCE)
    assert len(ours.listed_seconds) == len(theirs.listed_seconds) == 2_000
    assert ours.calls * 2 < theirs.calls
    assert ours.busiest_second * 2 < theirs.busiest_second
    assert len(ours.busiest_minutes) == 4


def test_a_seed_gives_the_same_day_again() -> None:
    """And another seed another one."""
    one, again, other = (simulate(Fleet(200, rate=1.0, seconds=HOUR_SECONDS, seed=s), NEW) for s in (1, 1, 2))
    assert one == again
    assert one != other


def test_the_table_has_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Each size of fleet without, new and upgraded; who is not listed in a day is said not to be."""
    assert main(["--cores", "20", "40", "--rate", "0", "--burst", "1", "--back-off", "60", "3600"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines() if "never" in line] == ["20"] * 3 + ["40"] * 3
    assert table.count("new") == table.count("upgraded") == 2
