"""Unnamed connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes.site import BRIDGE, Site


def test_the_bridge_is_always_one_of_the_unnamed() -> None:
    """Its own events are ignored, so its connection stays unnamed; a client id with a slash is named (case 5)."""
    site = Site()
    site.connected(BRIDGE, 1)
    site.connected("pump-7", 2)
    site.connected("tool/88741-laptop", 3)
    site.count(3)
    assert site.facts.unnamed == 1


@pytest.mark.parametrize("before", [True, False])
def test_a_count_beside_an_event_does_not_count(before: bool) -> None:
    """EMQX samples its count apart from its events: within 3 s of one, on either side, it says nothing."""
    site = Site()
    steps: list[Callable[[], object]] = [
        lambda: site.connected("pump-7", 2),
        lambda: site.heard("stats/live_connections/count", b"9"),
    ]
    for step in steps if before else reversed(steps):
        step()
        site.clock.advance(1)
    site.clock.advance(10)
    assert site.facts.unnamed is None


def test_then_is_the_lowest_figure_of_the_ten_minutes_around_its_departure() -> None:
    """Each device keeps how many connections could not be named when it left; never less than the bridge's."""
    site = Site()
    for name in ("pump-7", "pump-8"):
        site.connected(name, 2)
    site.count(5)
    site.disconnected("pump-7", 2)
    site.clock.advance(10)
    site.count(5)
    assert site.facts.unnamed == 4
    assert site.device("pump-7").then == 3, "as before, also if it is back unheard by the next count"
    site.count(3)
    site.count(5)
    assert site.device("pump-7").then == 2
    site.clock.advance(700)
    site.count(2)
    assert site.device("pump-7").then == 2
    site.clock.advance(700)
    site.disconnected("pump-8", 2)
    site.clock.advance(10)
    site.count(3)
    assert site.facts.unnamed == 3
    assert site.device("pump-8").then == 3, "what was counted before is too old"
    site.count(0)
    assert site.facts.unnamed == 3
    assert site.device("pump-8").then == 1


def test_a_figure_from_before_its_session_was_known_is_no_then() -> None:
    """The device itself may have been among the connections that could not be named."""
    site = Site()
    for known in (True, False):
        site.count(2)
        if known:
            site.connected("pump-7", 2)
            site.clock.advance(60)
        site.disconnected("pump-7", 2 if known else 3)
        site.clock.advance(10)
        site.count(6)
        assert site.facts.unnamed == 6
        assert site.device("pump-7").then == 6
        site.clock.advance(700)


def test_a_gap_ends_the_search_for_then_and_what_tells_of_now() -> None:
    """A device may have come back unheard meanwhile, also during a restart of the component.

    What was counted before is no figure of its departure either: other clients may have left with it.
    """
    site = Site()
    for name in ("pump-7", "pump-8"):
        site.connected(name, 2)
    site.count(4)
    site.disconnected("pump-7", 2)
    site.presence.gap()
    assert site.facts.unnamed is None
    site.disconnected("pump-8", 2)
    site.presence.gap()
    site.clock.advance(10)
    site.count(1)
    assert site.facts.unnamed == 1
    assert [site.device(name).then for name in ("pump-7", "pump-8")] == [None, None]
    assert site.restarted().facts.unnamed is None


def test_now_is_the_highest_figure_of_ten_minutes_or_the_latest_of_an_hour() -> None:
    """One count may be too low; one an hour old is none."""
    site = Site()
    site.connected("pump-7", 2)
    site.clock.advance(10)
    site.count(5)
    site.clock.advance(300)
    site.count(3)
    assert site.facts.unnamed == 4
    site.clock.advance(1_000)
    assert site.facts.unnamed == 2
    site.clock.advance(3_000)
    assert site.facts.unnamed is None
    assert "no connection count" in site.facts.count_problem


def test_a_takeover_that_is_counted_twice_costs_nothing() -> None:
    """One odd count raises the figure for ten minutes, and no session is lost by it (case 7)."""
    site = Site()
    site.connected("pump-7", 10)
    site.clock.advance(3_600)
    site.connected("pump-7", 20)
    site.disconnected("pump-7", 10, "takenover")
    site.count(4)
    site.counts = 3
    site.minutes(12)
    assert (site.facts.unnamed, site.facts.count_problem) == (2, "")
    assert site.device("pump-7").session


def test_a_figure_below_one_for_ten_minutes_holds_the_count_back() -> None:
    """More sessions than connections: somebody's end was lost, until the figure is one again (case 13)."""
    site = Site()
    site.connected("pump-7", 1)
    site.connected("pump-8", 2)
    site.counts = 2
    site.minutes(9)
    assert site.facts.count_problem == ""
    site.minutes(3)
    assert "a disconnect event was lost" in site.facts.count_problem
    again = site.restarted()
    assert "a disconnect event was lost" in again.facts.count_problem
    site.disconnected("pump-8", 2)
    site.clock.advance(10)
    site.count(2)
    assert site.facts.count_problem == ""


def test_a_repeated_connected_keeps_then() -> None:
    """Events come twice: nothing opened, so the device is as far away as before."""
    site = Site()
    for event in (site.connected, site.disconnected, site.connected):
        event("pump-7", 2)
    site.clock.advance(10)
    site.count(3)
    assert site.facts.unnamed == 3
    assert site.device("pump-7").then == 3


def test_only_what_was_heard_is_missed() -> None:
    """A mapping that never had the count stops no clock; one that loses the connections does, and that is said."""
    site = Site()
    site.connected("pump-7", 1)
    site.presence.use_bridge("mqtt-bridge-*", (), frozenset({"count"}))
    site.minutes(5)
    assert site.presence.observed.seconds > 200
    site.presence.use_bridge("mqtt-bridge-*", (), frozenset({"clients"}))
    events = site.presence.inputs(site.clock.now)["connectionEvents"]
    assert (events.alive, events.reason) == (False, "the bridge no longer maps connections")


def test_too_many_names_end_the_count_as_evidence() -> None:
    """With a session that had to be dropped, the sessions are incomplete, and that is said."""
    site = Site()
    site.associate("pump-7")
    for number in range(11_500):
        site.connected(f"tool-{number}", number)
    assert len(site.presence.devices.by_name) <= 10_001
    assert "more client ids" in site.facts.count_problem
