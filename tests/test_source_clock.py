"""A source's clock advances only over what the source vouches for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_device_pruner.source_clock import SourceClock


def clock_with(*vouchers: float, max_quiet_seconds: float = 60.0) -> SourceClock:
    """Make a clock that took these vouchers."""
    clock = SourceClock(max_quiet_seconds)
    for at in vouchers:
        clock.vouch(at)
    return clock


def test_a_single_voucher_earns_nothing() -> None:
    """Credit lies between two vouchers; after one of them the source does not vouch yet."""
    clock = clock_with(100.0)
    assert clock.credit_seconds == 0.0
    assert not clock.vouching(100.0)


def test_intervals_between_vouchers_add_up() -> None:
    """The clock is the sum of the monotonic intervals between successive vouchers."""
    clock = clock_with(100.0, 130.0, 190.0)
    assert clock.credit_seconds == 90.0
    assert clock.vouching(190.0)


@pytest.mark.parametrize(("quiet", "credit"), [(60.0, 60.0), (60.001, 0.0), (1e9, 0.0)])
def test_a_longer_quiet_than_the_longest_adds_nothing(quiet: float, credit: float) -> None:
    """Two vouchers further apart than maxQuiet vouch for nothing between them: a process that was suspended, too."""
    clock = clock_with(100.0, 100.0 + quiet)
    assert clock.credit_seconds == credit
    assert clock.vouching(100.0 + quiet) is (credit > 0)


def test_it_vouches_no_longer_when_quiet_for_too_long() -> None:
    """A source that vouched stops to, as soon as its last voucher is older than maxQuiet, though nobody calls it."""
    clock = clock_with(0.0, 30.0)
    assert clock.vouching(90.0)
    assert not clock.vouching(90.001)


def test_a_break_ends_the_stretch_and_keeps_the_credit() -> None:
    """After a break the first voucher earns nothing, and the source vouches only with credit earned since."""
    clock = clock_with(0.0, 30.0)
    clock.break_stretch()
    assert not clock.vouching(30.0)
    assert clock.last_voucher_seconds is None
    clock.vouch(40.0)
    assert (clock.credit_seconds, clock.stretch_seconds) == (30.0, 30.0)
    assert not clock.vouching(40.0)
    clock.vouch(50.0)
    assert clock.credit_seconds == 40.0
    assert clock.vouching(50.0)


def test_a_new_run_goes_on_from_the_credit_but_vouches_anew() -> None:
    """What earlier runs earned stays; the time between the runs counts for nothing."""
    clock = SourceClock(60.0, credit_seconds=1000.0, floor_seconds=400.0)
    clock.vouch(5.0)
    assert (clock.credit_seconds, clock.floor_seconds) == (1000.0, 400.0)
    assert not clock.vouching(5.0)


def test_an_earlier_or_equal_voucher_changes_nothing() -> None:
    """Time that was counted is not counted again, and the clock never goes back."""
    clock = clock_with(0.0, 30.0)
    clock.vouch(30.0)
    clock.vouch(10.0)
    assert clock.credit_seconds == 30.0
    clock.vouch(40.0)
    assert clock.credit_seconds == 40.0


def test_time_that_was_counted_is_not_counted_again_after_a_break() -> None:
    """A voucher from before the break, that is read after it, does not begin a stretch in the past."""
    clock = clock_with(0.0, 30.0)
    clock.break_stretch()
    clock.vouch(10.0)
    clock.vouch(30.0)
    assert clock.credit_seconds == 30.0
    assert not clock.vouching(30.0)


def test_absences_restart_at_the_credit_of_that_moment() -> None:
    """When somebody came and went unannounced, every absence begins anew."""
    clock = clock_with(0.0, 30.0)
    clock.restart_absences()
    clock.vouch(50.0)
    assert (clock.floor_seconds, clock.credit_seconds) == (30.0, 50.0)


def test_a_sign_of_life_lies_ahead_of_the_last_voucher() -> None:
    """A sign between two vouchers is read with the interval so far: the absence never exceeds the true time."""
    clock = clock_with(0.0, 30.0)
    marker = clock.reading(50.0)
    clock.vouch(90.0)
    assert marker == 50.0
    assert clock.credit_seconds - marker == 40.0


def test_a_sign_of_life_in_a_gap_reads_the_credit() -> None:
    """Where nothing vouches, before the first voucher, after too long a quiet, or before the last one."""
    assert SourceClock(60.0, 7.0).reading(3.0) == 7.0
    clock = clock_with(0.0, 30.0)
    assert clock.reading(91.0) == 30.0
    assert clock.reading(20.0) == 30.0


def test_the_unbroken_stretch_remembers_its_pauses() -> None:
    """Each kept pause is longer than all after it, with the reading at its end; a break forgets them."""
    clock = clock_with(0.0, 40.0, 50.0, 70.0, 75.0)
    assert clock.pauses == ((40.0, 40.0), (20.0, 70.0), (5.0, 75.0))
    clock.break_stretch()
    assert not clock.pauses


KINDS = ["vouch", "vouch", "late", "sign", "sign", "break", "restart", "shorter", "longer"]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 120)), min_size=10, max_size=60)


@settings(max_examples=500)
@given(STEPS)
def test_the_clock_never_goes_back_nor_ahead_of_time(steps: list[tuple[str, int]]) -> None:
    """Whatever comes: credit only grows, never faster than time, and no absence exceeds the time since the sign."""
    clock, at = SourceClock(60.0), 0.0
    signs: list[tuple[float, float]] = []
    for step, wait in steps:
        before, at = clock.credit_seconds, at + wait
        match step:
            case "vouch":
                clock.vouch(at)
            case "late":
                clock.vouch(max(0.0, at - 45.0))
            case "sign":
                signs.append((at, clock.reading(at)))
            case "break":
                clock.break_stretch()
            case "restart":
                clock.restart_absences()
            case _:
                clock.max_quiet_seconds = 30.0 if step == "shorter" else 120.0
        assert before <= clock.credit_seconds <= at
        assert clock.floor_seconds <= clock.credit_seconds
        for signed, marker in signs:
            assert clock.credit_seconds - marker <= at - signed + 1e-6


@pytest.mark.parametrize(
    ("before", "signed", "late"),
    [
        pytest.param((), 100.0, 90.0, id="none before: a roll call vouches up to where it began"),
        pytest.param((0.0,), 61.0, 59.0, id="one within the longest quiet, which seemed over"),
    ],
)
def test_a_voucher_older_than_a_sign_begins_a_stretch_at_the_sign(
    before: tuple[float, ...], signed: float, late: float
) -> None:
    """The device may have left only after its sign: what lies before that is not held against it."""
    clock = clock_with(*before)
    sign = clock.reading(signed)
    for at in (late, late + 50.0):
        clock.vouch(at)
    assert clock.credit_seconds - sign == late + 50.0 - signed


def test_a_longer_max_quiet_counts_nothing_before_a_sign() -> None:
    """What a change of the configuration vouches for afterwards is not held against who was there meanwhile."""
    clock = clock_with(0.0)
    sign = clock.reading(500.0)
    clock.max_quiet_seconds = 3600.0
    for at in (700.0, 750.0):
        clock.vouch(at)
    assert clock.credit_seconds - sign == 50.0
