"""The rule."""

from __future__ import annotations

import pytest

from client_device_pruner.decisions.policy import BRIEF_MESSAGES, NO_LIST, UNNAMED, Evidence, State
from fakes.site import DAY, Site


def _seen(*, counts: int | None = None) -> Site:
    """A site with one associated device, seen by a message or, with a count, by a session that ended."""
    site = Site()
    site.associate("pump-7")
    if counts is None:
        site.message("pump-7")
    else:
        site.connected("pump-7", 1)
        site.minutes(1)
        site.disconnected("pump-7", 1)
        site.counts = counts
    site.minutes(12)
    return site


@pytest.mark.parametrize(("then", "now", "gone"), [(1, 1, True), (2, 2, True), (2, 1, True), (1, 2, False)])
def test_a_device_that_was_silent_for_its_threshold_is_gone(then: int, now: int, gone: bool) -> None:
    """If no more connections are unnamed than when it left: one more might be the device, back unannounced."""
    site = _seen(counts=then)
    site.counts = now
    site.days(29)
    assert not site.verdict("pump-7").gone
    site.days(1)
    verdict = site.verdict("pump-7")
    assert (verdict.state, verdict.gone) == (State.SILENT, gone)
    assert verdict.evidence is (Evidence.CONNECTION_COUNT if gone else None)
    assert verdict.missing == ("" if gone else UNNAMED)


def test_a_device_that_left_unheard_has_one_as_then() -> None:
    """The bridge's connection alone: the strictest figure (also where its session ended with the broker)."""
    site = Site()
    site.associate("pump-7")
    site.uptime(1_000)
    site.connected("pump-7", 1)
    site.minutes(1)
    site.uptime(10)
    site.counts = 2
    site.minutes(2)
    site.days(31)
    assert site.verdict("pump-7").missing == UNNAMED
    site.counts = 1
    site.minutes(12)
    assert site.verdict("pump-7").gone


def test_the_client_list_is_the_first_evidence() -> None:
    """Who is on it is present, who is not may be gone; the count does not matter then."""
    site = _seen(counts=9)
    site.days(31)
    site.list()
    assert site.verdict("pump-7").evidence is Evidence.CLIENT_LIST
    assert site.verdict("pump-7").gone
    site.list("pump-7")
    assert site.verdict("pump-7").state is State.PRESENT


def test_without_a_list_in_this_run_nobody_is_gone() -> None:
    """A list that was in use before has to come again."""
    site = _seen()
    site.list()
    site.days(31)
    again = site.restarted()
    assert again.verdict("pump-7").missing == NO_LIST


def test_events_without_a_count_are_no_evidence() -> None:
    """A device may have come back unannounced: only the count would show it."""
    site = Site()
    site.associate("pump-7")
    site.connected("pump-7", 1)
    site.disconnected("pump-7", 1)
    site.minutes(1)
    site.days(31)
    assert "count" in site.verdict("pump-7").missing


def test_rhythm_needs_messages_over_a_quarter_of_the_threshold() -> None:
    """Where the broker tells nothing, a device that we used to hear is gone when it falls silent; few take long."""
    site = Site()
    site.associate("once", "brief", "few", "regular")
    site.message("once")
    for _minute in range(60):
        site.message("brief")
        site.minutes(1)
    for day in range(5):
        for name in ("few", "regular") if day != 2 else ("regular",):  # four in the same time as five
            site.message(name)
        site.minutes(1)
        site.days(2)
    site.days(31)
    assert site.verdict("regular").evidence is Evidence.RHYTHM
    assert [site.verdict(name).gone for name in ("regular", "few")] == [True, False]
    site.days(4 * 30 - 31 - 3)
    assert not site.verdict("few").gone
    site.days(2)
    assert site.verdict("few").gone
    assert [site.verdict(name).missing for name in ("once", "brief")] == [BRIEF_MESSAGES] * 2
    # What was heard by another mapping says nothing of what would be heard by this one.
    for topic, missing in (("a/+", ""), ("a/+", ""), ("b/+", BRIEF_MESSAGES)):
        site.presence.use_bridge("mqtt-bridge-*", [topic], frozenset())
        assert site.verdict("few").missing == missing


def test_where_the_broker_tells_nothing_a_hole_in_observing_makes_patient() -> None:
    """A word may have been said in it: the silence since has to be as long as the longest, up to four thresholds."""
    site = Site()
    site.associate("actuator")
    for _word in range(6):
        site.message("actuator")
        site.minutes(1)
        site.days(20)
    site.message("actuator")
    site.minutes(1)
    assert site.verdict("actuator").patience_seconds == pytest.approx(40 * DAY, rel=0.01)
    site.days(39)
    site.clock.advance(5 * DAY)
    site.presence.gap()
    site.minutes(3)
    assert site.verdict("actuator").patience_seconds == pytest.approx(59 * DAY, rel=0.01)
    site.days(18)
    assert not site.verdict("actuator").gone
    again = site.restarted(boot="another")
    assert again.verdict("actuator").patience_seconds == pytest.approx(77 * DAY, rel=0.01)
    again.minutes(3)
    again.days(19)
    assert not again.verdict("actuator").gone
    again.days(2)
    assert again.verdict("actuator").gone


def test_a_device_that_speaks_often_goes_in_spite_of_holes() -> None:
    """A core device that is switched off each night: what is silent for four times its longest silence was heard."""
    site = _seen()
    for _hour in range(200):
        site.message("pump-7")
        site.minutes(60)
    for night in range(31):
        site.days(1)
        site = site.restarted(boot=str(night))
        site.minutes(3)
    assert site.verdict("pump-7").gone


def test_where_the_broker_tells_of_connections_a_hole_makes_nobody_patient() -> None:
    """A device may have come and gone in it, but whether it is connected now the broker tells."""
    site = _seen(counts=1)
    site.presence.observed.hole_at = 50 * DAY
    assert site.verdict("pump-7").patience_seconds == 30 * DAY


def test_the_backlog_goes_after_never_seen_threshold() -> None:
    """A device that was dead before the component came, where the broker tells about connections (case 15)."""
    site = Site()
    site.associate("pump-7", "pump-8")
    site.connected("pump-8", 1)
    site.counts = 2
    site.minutes(5)
    site.days(89)
    assert site.verdict("pump-7").state is State.NEVER_SEEN
    assert not site.verdict("pump-7").gone
    site.days(2)
    assert site.verdict("pump-7").gone
    site.settings = Site({"neverSeenThreshold": ""}).settings
    assert not site.verdict("pump-7").gone, "empty means never"


def test_a_blind_time_makes_nobody_gone_and_nobody_patient() -> None:
    """The bridge is broken for 40 days, then the device speaks hourly as ever (case 18)."""
    site = _seen()
    for _hour in range(400):
        site.message("pump-7")
        site.minutes(60)
    site.presence.gap()
    site.clock.advance(40 * DAY)
    assert site.verdict("pump-7").silent_seconds < 3_700
    site.probe()
    site.message("pump-7")
    site.minutes(1)
    assert site.verdict("pump-7").patience_seconds == 30 * DAY


def test_a_storm_of_unheard_connections_holds_the_count_back() -> None:
    """The count is far above the sessions: nobody goes on its strength; who speaks twice is named (case 35)."""
    site = _seen(counts=1)
    site.associate("pump-7", *(f"lamp-{number}" for number in range(20)))
    for number in range(20):
        site.connected(f"lamp-{number}", number)
        site.disconnected(f"lamp-{number}", number)
    site.counts = 21
    site.days(31)
    assert site.verdict("pump-7").missing == UNNAMED
    for _time in range(2):
        for number in range(20):
            site.message(f"lamp-{number}")
        site.minutes(12)
    assert site.verdict("pump-7").gone
