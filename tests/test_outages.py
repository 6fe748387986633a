"""Devices that were lost together share a cause: who is in an outage, and from where its absence counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from client_device_pruner.model import Absence, Device, pack
from client_device_pruner.outages import NO_OUTAGES, Outages, find_outages
from client_device_pruner.settings import MassLoss

WINDOW = 600.0
LIMITS = MassLoss(window_seconds=WINDOW, min_devices=3, min_percent=30.0)


def away(name: str, *began: float, seen: bool = True) -> Device:
    """A device whose absence began at these readings of the sources' clocks."""
    return Device(name, seen=seen, markers=pack(began))


def back(name: str, began: float, ended: float) -> Absence:
    """An absence, on the one source, that ended with a return."""
    return Absence(name, (began,), (ended,))


def find(
    lost: Sequence[Device],
    *,
    present: Iterable[Device] = (),
    ended: Sequence[Absence] = (),
    source_ids: Iterable[int] = (0,),
    limits: MassLoss = LIMITS,
) -> Outages:
    """The outages of a site: who is away, who is present, and whose absence ended."""
    there = list(present)
    return find_outages([*lost, *there], {device.name for device in there}, ended, source_ids, limits)


def names(outages: Outages) -> set[str]:
    """The names in an outage from which nobody has come back."""
    return {name for name, _source_id in outages.unexplained}


def test_a_line_unplugged_together_is_an_outage() -> None:
    """Enough devices within the window, none of them back: nothing explains their absence."""
    outages = find([away("a", 100.0), away("b", 103.0), away("c", 100.0 + WINDOW)], present=[away("d", 900.0)])

    assert outages.unexplained == {("a", 0), ("b", 0), ("c", 0)}
    assert not outages.returns


def test_a_site_lost_while_the_core_was_off_is_an_outage() -> None:
    """All were present at the last reading before; the clock stood still since, so they began together."""
    assert names(find([away(name, 5000.0) for name in "abcd"])) == set("abcd")


@pytest.mark.parametrize("count", [1, 2])
def test_a_small_site_is_never_held(count: int) -> None:
    """A site of one device, or of two, has no outages: nothing may hold it for ever."""
    assert find([away(name, 100.0) for name in "ab"[:count]]) == NO_OUTAGES


def test_too_few_within_the_window_share_no_cause() -> None:
    """Three, of which no window holds more than two."""
    lost = [away("a", 0.0), away("b", WINDOW), away("c", 2 * WINDOW + 1.0)]

    assert find(lost) == NO_OUTAGES


def test_one_back_of_too_few_starts_nothing() -> None:
    """Two within a window, and others before or after it, are no outage, whoever of them is back."""
    before, after = away("a", 0.0), away("d", 100 * WINDOW)

    assert find([before, away("b", WINDOW)], ended=[back("c", 2 * WINDOW, 5000.0)]) == NO_OUTAGES
    assert find([away("b", 100.0), after], ended=[back("c", 101.0, 5000.0)]) == NO_OUTAGES


@pytest.mark.parametrize(("present", "outage"), [(7, True), (8, False)])
def test_too_small_a_part_of_those_present_then_shares_no_cause(present: int, outage: bool) -> None:
    """Three of ten are 30 %, three of eleven are less."""
    there = [away(f"p{number}", 9000.0) for number in range(present)]

    outages = find([away("a", 1.0), away("b", 2.0), away("c", 3.0)], present=there)

    assert names(outages) == (set("abc") if outage else set())


def test_who_was_lost_before_was_not_present_then() -> None:
    """The part is of those present when the window began: ten gone long ago do not make it smaller."""
    before = [away(f"old{number}", number * 2 * WINDOW) for number in range(10)]
    late = 100 * WINDOW
    lost = [away("a", late), away("b", late), away("c", late)]

    assert names(find([*before, *lost], present=[away("p", 0.0)])) == set("abc")


def test_who_was_lost_since_was_present_then() -> None:
    """Three of eleven are no outage, also once the other eight have gone one by one."""
    since = [away(f"later{number}", (number + 2) * 2 * WINDOW) for number in range(8)]

    assert find([away("a", 1.0), away("b", 2.0), away("c", 3.0), *since]) == NO_OUTAGES


def test_one_back_starts_the_absence_of_the_others() -> None:
    """Once one has returned, the others' absence counts from there."""
    outages = find([away("a", 100.0), away("b", 101.0)], ended=[back("c", 102.0, 5000.0)])

    assert not outages.unexplained
    assert outages.returns == {"a": {0: 5000.0}, "b": {0: 5000.0}}


def test_the_first_return_counts() -> None:
    """More returns after the first change nothing."""
    ended = [back("c", 102.0, 7000.0), back("d", 99.0, 5000.0), back("e", 100.0, 6000.0)]

    assert find([away("a", 100.0)], ended=ended).returns == {"a": {0: 5000.0}}


def test_who_left_again_within_the_window_counts_once() -> None:
    """A device that flaps is one device, however many absences it has."""
    flaps = [back("a", float(second), second + 0.5) for second in range(5)]

    assert find([away("a", 6.0), away("b", 7.0)], ended=flaps) == NO_OUTAGES


def test_overlapping_windows_are_one_outage() -> None:
    """A failure that spreads: each window holds enough, and they overlap; one return counts for all."""
    lost = [away(name, number * 250.0) for number, name in enumerate("abcdef")]

    assert names(find(lost)) == set("abcdef")
    outages = find(lost[:-1], ended=[back("f", 1250.0, 9000.0)])
    assert outages.returns == {name: {0: 9000.0} for name in "abcde"}


def test_a_nested_outage_is_part_of_the_larger_one() -> None:
    """A cabinet fails while its whole hall does: one outage, explained by whoever of the hall is back."""
    hall = [away("h1", 0.0), away("h2", 10.0), away("h3", 500.0)]
    cabinet = [away("c1", 200.0), away("c2", 201.0), away("c3", 202.0)]

    assert names(find([*hall, *cabinet])) == {"h1", "h2", "h3", "c1", "c2", "c3"}
    outages = find([*hall[1:], *cabinet], ended=[back("h1", 0.0, 800.0)])
    assert set(outages.returns) == {"h2", "h3", "c1", "c2", "c3"}


def test_outages_far_apart_explain_nothing_of_one_another() -> None:
    """Two lines fail in different weeks: one back on the first says nothing of the second."""
    week = 1000 * WINDOW
    lost = [away("a", 0.0), away("b", 1.0), *(away(name, week) for name in "xyz")]

    outages = find(lost, ended=[back("c", 2.0, 3000.0)])

    assert names(outages) == set("xyz")
    assert set(outages.returns) == {"a", "b"}


def test_a_straggler_outside_every_window_is_in_no_outage() -> None:
    """Lost later than the window allows: an absence of its own, judged by itself."""
    outages = find([*(away(name, 0.0) for name in "abc"), away("d", WINDOW + 1.0)])

    assert names(outages) == set("abc")


def test_each_source_has_its_own_clock() -> None:
    """Together on one source's clock, apart on another's: an outage on the first only."""
    lost = [away("a", 10.0, 0.0), away("b", 10.0, 9000.0), away("c", 10.0, 18000.0)]

    outages = find(lost, source_ids=(0, 1))

    assert outages.unexplained == {("a", 0), ("b", 0), ("c", 0)}


def test_a_source_younger_than_an_absence_knows_nothing_of_it() -> None:
    """An absence that ended before a source was added has no reading of it, and counts for nothing there."""
    lost = [away("a", 10.0, 3.0), away("b", 10.0, 3.0)]

    outages = find(lost, ended=[back("c", 10.0, 20.0)], source_ids=(0, 1))

    assert outages.returns == {"a": {0: 20.0}, "b": {0: 20.0}}
    assert not outages.unexplained


def test_who_was_never_there_cannot_be_lost() -> None:
    """Devices without a sign of life since they were associated, all listed at once, are no outage."""
    assert find([away(name, 0.0, seen=False) for name in "abcdef"]) == NO_OUTAGES


def test_nobody_is_lost() -> None:
    """An empty site, and one where all are present."""
    assert find([]) == NO_OUTAGES
    assert find([], present=[away("a", 1.0)], ended=[back("a", 0.0, 1.0)]) == NO_OUTAGES


def test_who_was_back_before_the_loss_has_no_part_in_it() -> None:
    """A flicker of the whole site does not explain the line that is lost a little later: it is held."""
    flickered = [back(f"p{number}", 1.0, 10.0) for number in range(10)]
    there = [away(f"p{number}", 9000.0) for number in range(10)]

    outages = find([away(f"l{number}", 300.0 + number) for number in range(10)], present=there, ended=flickered)

    assert names(outages) == {f"l{number}" for number in range(10)}
    assert not outages.returns


def test_a_device_lost_alone_after_a_flicker_is_in_no_outage() -> None:
    """Those who flickered were back before it went: they are no company."""
    flickered = [back(f"p{number}", 1.0, 10.0) for number in range(10)]
    there = [away(f"p{number}", 9000.0) for number in range(10)]

    assert find([away("l", 300.0)], present=there, ended=flickered) == NO_OUTAGES
