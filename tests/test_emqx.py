"""Known sessions and the census: what EMQX's events and its count of live connections prove, and what they do not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client_device_pruner import emqx
from client_device_pruner.emqx import EmqxSource
from client_device_pruner.source_clock import SourceClock

NODE = "emqx@127.0.0.1"
OTHER = "emqx@10.0.0.2"
MAX_QUIET = 180.0


class FakeSigns:
    """Keeps what a source reports; names can be announced beforehand."""

    def __init__(self) -> None:
        self.last_alive: dict[str, float] = {}
        self.last_held: dict[str, float] = {}
        self.names: set[str] = set()
        self.associations: set[str] = set()
        self.gone: list[str] = []

    def alive(self, name: str, at: float) -> None:
        """Keep when."""
        self.last_alive[name] = at

    def held_until(self, name: str, at: float) -> None:
        """Keep until when."""
        self.last_held[name] = at

    def left(self, name: str, at: float) -> None:
        """Keep who, and when."""
        self.gone.append(name)
        self.last_alive[name] = at

    def announce(self, name: str) -> None:
        """Keep the name."""
        self.names.add(name)

    def announced(self, name: str) -> bool:
        """Tell whether the name was kept."""
        return name in self.names

    def associated(self, name: str) -> bool:
        """Tell whether it was said to be."""
        return name in self.associations


class Watch:
    """An `emqx` source with a broker that speaks to it; times are seconds, sessions are named by `connected_at`."""

    def __init__(self, *, bridge: str = "mqtt-bridge-*", scale: float = 1.0) -> None:
        self.signs = FakeSigns()
        self.clock = SourceClock(MAX_QUIET)
        self.source = EmqxSource(self.clock, self.signs, bridge_client_id=bridge, scale=scale)

    def connected(self, name: str, session: Any, at: float, node: str = NODE) -> None:
        """Take the event that a session was opened."""
        self.source.connected(node, name, _event(session), at)

    def disconnected(self, name: str, session: Any, at: float, reason: str = "normal", node: str = NODE) -> None:
        """Take the event that a session ended."""
        self.source.disconnected(node, name, _event(session, reason=reason), at)

    def count(self, number: int, at: float, node: str = NODE) -> None:
        """Take a count of live connections."""
        self.source.count(node, str(number).encode(), at)

    def counts(self, number: int, since: float, until: float, node: str = NODE) -> None:
        """The same count every minute, at both ends too."""
        at = since
        while at <= until:
            self.count(number, at, node)
            at += 60.0

    def both(self, here: int, there: int, *moments: float) -> None:
        """At each of these moments a count of the one node, and half a minute later one of the other."""
        for at in moments:
            self.count(here, at)
            self.count(there, at + 30.0, OTHER)

    def uptime(self, milliseconds: int, at: float, node: str = NODE) -> None:
        """Take an uptime."""
        self.source.uptime(node, str(milliseconds).encode(), at)

    @property
    def open(self) -> set[str]:
        """The names whose session is known to be open."""
        return set(self.source.sessions())

    @property
    def doubted(self) -> set[str]:
        """The names whose session is in doubt."""
        return self.source._doubt.names

    @property
    def credit(self) -> float:
        """What the clock has earned."""
        return self.clock.credit_seconds


def _event(session: Any, **more: Any) -> bytes:
    fields = {"clientid": "x", **more}
    if session is not None:
        fields["connected_at"] = session
    return json.dumps(fields).encode()


@pytest.fixture
def watch() -> Watch:
    """A source that has heard nothing yet."""
    return Watch()


@pytest.fixture
def matching(watch: Watch) -> Watch:
    """Devices a and b and the bridge are connected, and the census matches at 60 and 120 s."""
    watch.connected("a", 1, 10.0)
    watch.connected("b", 2, 11.0)
    watch.count(3, 60.0)
    watch.count(3, 120.0)
    assert watch.credit == 60.0
    assert watch.clock.vouching(120.0)
    return watch


class TestSessions:
    """What opens a session, and what closes it."""

    def test_connected_opens_and_the_same_disconnected_closes(self, watch: Watch) -> None:
        """A session is open from its `connected` to the `disconnected` with its number."""
        watch.connected("a", 1, 0.0)
        assert watch.open == {"a"}
        watch.disconnected("a", 1, 5.0)
        assert watch.open == set()
        assert not watch.source.holds("a")

    def test_any_event_is_a_sign_of_life_and_announces(self, watch: Watch) -> None:
        """Connect and disconnect, of known and unknown sessions alike, show that the device was there."""
        watch.connected("a", 1, 1.0)
        watch.disconnected("b", 9, 2.0)
        assert watch.signs.last_alive == {"a": 1.0, "b": 2.0}
        assert watch.signs.names == {"a", "b"}

    def test_who_left_is_told_when_the_last_session_ended(self, watch: Watch) -> None:
        """The end of one of two sessions is no leaving."""
        watch.connected("a", 1, 0.0)
        watch.connected("a", 2, 1.0)
        watch.disconnected("a", 1, 2.0)
        assert watch.signs.gone == []
        assert watch.signs.last_alive == {"a": 2.0}
        watch.disconnected("a", 2, 3.0)
        assert watch.signs.gone == ["a"]

    def test_a_late_disconnected_of_an_old_session_leaves_the_new_one(self, watch: Watch) -> None:
        """A device that came back stays present when the end of its earlier session is told afterwards."""
        watch.connected("a", 1, 0.0)
        watch.connected("a", 2, 10.0)
        watch.disconnected("a", 1, 11.0)
        assert watch.open == {"a"}
        watch.disconnected("a", 2, 12.0)
        assert watch.open == set()

    @pytest.mark.parametrize("reason", ["takenover", "discarded"])
    def test_a_takeover_with_its_number_ends_only_the_old_session(self, watch: Watch, reason: str) -> None:
        """Before or after the new `connected`, a takeover closes the session that it names."""
        watch.connected("a", 1, 0.0)
        watch.connected("a", 2, 10.0)
        watch.disconnected("a", 1, 10.1, reason)
        assert watch.open == {"a"}
        watch.connected("b", 3, 11.0)
        watch.disconnected("b", 3, 11.1, reason)
        watch.connected("b", 4, 11.2)
        assert watch.open == {"a", "b"}

    @pytest.mark.parametrize("reason", ["takenover", "discarded"])
    def test_a_takeover_without_a_number_closes_nothing(self, watch: Watch, reason: str) -> None:
        """Which session ended is not told, and another one took its place."""
        watch.connected("a", 2, 0.0)
        watch.disconnected("a", None, 1.0, reason)
        assert watch.open == {"a"}

    def test_a_disconnected_without_a_number_closes_what_is_open(self, watch: Watch) -> None:
        """Without the number every session of the name is over."""
        watch.connected("a", 1, 0.0)
        watch.connected("a", None, 1.0)
        watch.disconnected("a", None, 2.0, "keepalive_timeout")
        assert watch.open == set()

    def test_sessions_without_a_number_open_once(self, watch: Watch) -> None:
        """A `connected` without a number opens a session too; its repetition is the same one."""
        watch.connected("a", None, 0.0)
        watch.connected("a", None, 1.0)
        watch.count(2, 60.0)
        assert watch.source.matching
        watch.disconnected("a", None, 61.0)
        assert watch.open == set()

    def test_a_repeated_connected_opens_no_second_session(self, watch: Watch) -> None:
        """Events come twice: the session counts once."""
        watch.connected("a", 1, 0.0)
        watch.connected("a", 1, 0.1)
        watch.count(2, 60.0)
        assert watch.source.matching

    def test_an_ended_session_never_opens_again(self, watch: Watch) -> None:
        """The `connected` that comes twice, or after its own `disconnected`, opens nothing."""
        watch.connected("a", 1, 0.0)
        watch.disconnected("a", 1, 1.0)
        watch.connected("a", 1, 2.0)
        watch.disconnected("b", 7, 3.0)
        watch.connected("b", 7, 3.1)
        assert watch.open == set()

    def test_an_ended_session_stays_ended_when_the_known_ones_are_thrown_away(self, watch: Watch) -> None:
        """The memory of ended sessions lasts for the run, over overflows and restarts of the broker."""
        watch.disconnected("a", 1, 1.0)
        watch.source.overflow(2.0)
        watch.uptime(5000, 3.0)
        watch.uptime(10, 4.0)
        watch.connected("a", 1, 5.0)
        assert watch.open == set()

    def test_an_ended_session_of_another_name_is_another_session(self, watch: Watch) -> None:
        """Two devices may connect in the same millisecond, and case matters in names."""
        watch.disconnected("a", 1, 1.0)
        watch.connected("b", 1, 2.0)
        watch.connected("A", 1, 2.0)
        assert watch.open == {"b", "A"}

    def test_connected_at_is_a_name_and_never_compared_as_a_time(self, watch: Watch) -> None:
        """A broker whose wall clock went back by years opens and closes sessions like any other; texts will do."""
        watch.connected("a", 1_790_000_000_000, 0.0)
        watch.disconnected("a", 1_790_000_000_000, 1.0)
        watch.connected("a", 5, 2.0)
        watch.disconnected("a", 1_790_000_000_000, 2.5)
        assert watch.open == {"a"}
        watch.disconnected("a", 5, 3.0)
        watch.connected("a", "2026-11-22", 4.0)
        watch.disconnected("a", 5, 5.0)
        assert watch.open == {"a"}
        watch.disconnected("a", "2026-11-22", 6.0)
        assert watch.open == set()

    @pytest.mark.parametrize("number", [True, [1], {"a": 1}, 1.5])
    def test_what_is_no_name_counts_as_missing(self, watch: Watch, number: object) -> None:
        """A `connected_at` of another type names no session."""
        watch.connected("a", number, 0.0)
        watch.disconnected("a", number, 1.0)
        watch.connected("a", number, 2.0)
        assert watch.open == {"a"}

    def test_a_full_memory_of_ended_sessions_empties_the_known_ones(
        self, matching: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What could open again by mistake is not kept: everything begins anew, as after a gap."""
        monkeypatch.setattr(emqx, "MAX_ENDED", 3)
        for number in (10, 11, 12):
            matching.disconnected("c", number, 121.0)
        assert matching.open == {"a", "b"}
        matching.disconnected("c", 13, 130.0)
        assert matching.open == set()
        assert matching.signs.last_held == {"a": 130.0, "b": 130.0}
        assert not matching.clock.vouching(130.0)
        assert len(matching.source._ended) <= 3

    def test_a_memory_full_of_old_ends_lets_the_oldest_go(
        self, matching: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No event comes an hour late: the known sessions are kept."""
        monkeypatch.setattr(emqx, "MAX_ENDED", 3)
        for number in range(10, 20):
            matching.disconnected("c", number, 4000.0 * number)
        assert matching.open == {"a", "b"} & matching.open
        assert len(matching.source._ended) == 3
        matching.connected("c", 19, 76_001.0)
        assert "c" not in matching.open

    def test_more_sessions_than_a_core_carries_empty_the_set(
        self, matching: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Memory is bounded, whoever connects: everything begins anew, as after a gap."""
        monkeypatch.setattr(emqx, "MAX_SESSIONS", 2)
        matching.connected("a", 3, 121.0)
        assert matching.open == {"a", "b"}
        matching.connected("c", 4, 122.0)
        assert matching.open == set()
        assert not matching.clock.vouching(122.0)

    @pytest.mark.parametrize("payload", [b"", b"[]", b"1", b"\xff\xfe", b"{", b"[" * 50_000, b'{"x":"' + b"y" * 70_000])
    def test_what_is_no_event_is_ignored(self, watch: Watch, payload: bytes) -> None:
        """A payload that is no JSON object of a plausible size opens, closes and shows nothing."""
        watch.connected("a", 1, 0.0)
        watch.source.connected(NODE, "b", payload, 1.0)
        watch.source.disconnected(NODE, "a", payload, 1.0)
        assert watch.open == {"a"}
        assert watch.signs.last_alive == {"a": 0.0}

    def test_strangers_have_sessions_too(self, watch: Watch) -> None:
        """The broker counts every client: also those that are not associated, with whatever client id."""
        for number, name in enumerate(("stranger", "with space", "ü", "pruner-canary")):
            watch.connected(name, number, 0.0)
        watch.count(5, 60.0)
        assert watch.source.matching


class TestCensus:
    """When the clock advances, and when it stands still."""

    def test_the_clock_advances_between_counts_that_match(self, matching: Watch) -> None:
        """Each count that equals the known sessions and the bridge's is a voucher."""
        matching.count(3, 180.0)
        assert matching.credit == 120.0

    def test_nothing_vouches_before_the_second_count(self, watch: Watch) -> None:
        """Events alone, and a single count, prove nothing."""
        watch.connected("a", 1, 0.0)
        assert not watch.clock.vouching(0.0)
        watch.count(2, 60.0)
        assert watch.source.matching
        assert not watch.clock.vouching(60.0)

    def test_counts_further_apart_than_max_quiet_earn_nothing(self, watch: Watch) -> None:
        """Without devices nothing but the bridge is counted; a quiet longer than maxQuiet is a gap all the same."""
        watch.count(1, 0.0)
        watch.count(1, 0.0 + MAX_QUIET + 1)
        assert watch.credit == 0.0

    @pytest.mark.parametrize("payload", [b"", b"-1", b"1.0", b"1e3", b" 3", b"NaN", b"9" * 30, "٣".encode(), b"{}"])
    def test_what_is_no_count_is_ignored(self, matching: Watch, payload: bytes) -> None:
        """Only a decimal number is a count, or an uptime."""
        matching.source.count(NODE, payload, 130.0)
        matching.source.uptime(NODE, payload, 130.0)
        matching.count(3, 180.0)
        assert matching.credit == 120.0

    def test_a_higher_count_keeps_the_sessions_and_stops_the_clock(self, matching: Watch) -> None:
        """Somebody unannounced is there: for hours on end the set is kept, and the clock stands still."""
        matching.counts(4, 180.0, 180.0 + 7200.0)
        assert matching.open == {"a", "b"}
        assert matching.credit == 60.0
        assert not matching.clock.vouching(7380.0)
        assert "more than known" in matching.source.reason(7380.0)

    def test_the_clock_goes_on_when_the_unannounced_one_goes(self, matching: Watch) -> None:
        """His `disconnected` ends the mismatch; the time of the mismatch counts for nothing."""
        matching.counts(4, 180.0, 600.0)
        matching.disconnected("unheard", 99, 630.0)
        matching.count(3, 660.0)
        assert matching.credit == 60.0
        matching.count(3, 720.0)
        assert matching.credit == 120.0
        assert matching.clock.floor_seconds == 0.0

    def test_a_lower_count_for_ten_minutes_on_end_throws_the_sessions_away(self, matching: Watch) -> None:
        """A `disconnected` was lost: not known whose, so nobody is held present any longer."""
        matching.counts(2, 180.0, 720.0)
        assert matching.open == {"a", "b"}
        assert "fewer than known" in matching.source.reason(720.0)
        matching.count(2, 780.0)
        assert matching.open == set()
        assert matching.signs.last_held == {"a": 780.0, "b": 780.0}
        assert matching.credit == 60.0

    @pytest.mark.parametrize("between", [3, 4])
    def test_a_lower_count_that_is_not_on_end_throws_nothing_away(self, matching: Watch, between: int) -> None:
        """One count that matches, or is higher, begins the ten minutes anew."""
        matching.counts(2, 180.0, 600.0)
        matching.count(between, 660.0)
        matching.counts(2, 720.0, 1260.0)
        assert matching.open == {"a", "b"}
        matching.count(2, 1320.0)
        assert matching.open == set()

    def test_the_ten_minutes_scale(self) -> None:
        """With short durations the fixed times scale."""
        watch = Watch(scale=0.1)
        watch.connected("a", 1, 0.0)
        watch.count(1, 1.0)
        watch.count(1, 60.0)
        assert watch.open == {"a"}
        watch.count(1, 61.0)
        assert watch.open == set()

    def test_a_mismatch_without_an_event_restarts_absences(self, matching: Watch) -> None:
        """Somebody came and went unannounced, and it may have been any of the absent ones."""
        matching.count(4, 180.0)
        matching.count(3, 240.0)
        assert matching.clock.floor_seconds == 60.0

    @pytest.mark.parametrize(("event_at", "floor"), [(174.0, 60.0), (175.0, 0.0), (181.0, 0.0), (239.0, 0.0)])
    def test_an_event_from_five_seconds_before_explains_a_mismatch(
        self, matching: Watch, event_at: float, floor: float
    ) -> None:
        """The count is sampled apart from the events: a mismatch beside one says nothing of anybody else."""
        if event_at < 180.0:
            matching.connected("c", 5, event_at)
            matching.count(3, 180.0)
        else:
            matching.count(4, 180.0)
            matching.connected("c", 5, event_at)
        matching.counts(4, 240.0, 360.0)
        assert matching.source.matching
        assert matching.clock.floor_seconds == floor

    def test_an_event_of_an_earlier_mismatch_does_not_explain_the_next(self, matching: Watch) -> None:
        """Each mismatch needs an event of its own."""
        matching.count(4, 180.0)
        matching.disconnected("x", 9, 200.0)
        matching.count(3, 240.0)
        assert matching.clock.floor_seconds == 0.0
        matching.count(4, 300.0)
        matching.count(3, 360.0)
        assert matching.clock.floor_seconds == 60.0

    def test_an_event_that_changed_nothing_does_not_explain_its_end(self, matching: Watch) -> None:
        """The mismatch went on after the event, so what ended it later was something unheard."""
        matching.count(4, 180.0)
        matching.connected("c", 5, 200.0)
        matching.count(5, 240.0)
        matching.counts(4, 300.0, 360.0)
        assert matching.source.matching
        assert matching.clock.floor_seconds == 60.0

    def test_the_broker_that_counts_nobody_has_lost_the_bridge(self, watch: Watch) -> None:
        """The bridge adds exactly one: without it the count never matches."""
        watch.count(0, 0.0)
        watch.count(0, 60.0)
        assert not watch.source.matching
        assert watch.credit == 0.0


class TestDoubt:
    """Sums that agree again may do so by accident: who came unheard is there, and somebody else is not any more."""

    @pytest.fixture
    def doubtful(self, matching: Watch) -> Watch:
        """Somebody came unheard, two counts show it; then somebody left unheard."""
        matching.counts(4, 180.0, 240.0)
        matching.counts(3, 300.0, 420.0)
        assert matching.doubted == {"a", "b"}
        return matching

    def test_the_census_goes_on_and_says_whom_it_waits_for(self, doubtful: Watch) -> None:
        """Its clock goes, since those that turn out to have been there were so all along."""
        assert doubtful.clock.vouching(420.0)
        assert "they match, but 2 of the sessions known to be open are in doubt" in doubtful.source.reason(420.0)
        assert "(a, …)" in doubtful.source.reason(420.0)
        assert doubtful.source.doubted_since == 360.0

    def test_an_end_a_connect_or_two_words_confirm(self, doubtful: Watch) -> None:
        """Each shows that this name's session was no mistake, or is none any more; with the last one doubt is over."""
        doubtful.disconnected("a", 1, 430.0)
        assert doubtful.doubted == {"b"}
        doubtful.source.spoke("b", 431.0)
        assert doubtful.doubted == {"b"}
        doubtful.source.spoke("b", 431.0 + MAX_QUIET / 3)
        assert doubtful.doubted == set()
        assert doubtful.open == {"b"}
        assert doubtful.source.doubted == ""
        assert "in doubt" not in doubtful.source.reason(500.0)

    def test_a_new_connect_confirms(self, doubtful: Watch) -> None:
        """The broker has told that it is there."""
        doubtful.connected("a", 21, 430.0)
        assert doubtful.doubted == {"b"}

    def test_words_from_before_the_doubt_confirm_nothing(self, matching: Watch) -> None:
        """Both messages must have come since."""
        matching.counts(4, 180.0, 240.0)
        matching.counts(3, 300.0, 360.0)
        matching.source.spoke("a", 370.0)
        matching.counts(4, 420.0, 480.0)
        matching.counts(3, 540.0, 600.0)
        matching.source.spoke("a", 610.0)
        assert matching.doubted == {"a", "b"}

    def test_the_end_of_another_session_confirms_nothing(self, doubtful: Watch) -> None:
        """Of that name an unknown session ended, so the known one had been replaced unheard."""
        doubtful.disconnected("a", 77, 430.0)
        assert "a" in doubtful.doubted

    def test_a_set_thrown_away_takes_its_doubt_along(self, doubtful: Watch) -> None:
        """Who is not believed present need not be doubted."""
        doubtful.source.overflow(430.0)
        assert doubtful.doubted == set()

    def test_who_left_or_spoke_leaves_no_doubt(self, matching: Watch) -> None:
        """Those who came unheard account for the mismatch themselves."""
        matching.signs.names.add("quiet")
        matching.counts(5, 180.0, 300.0)
        matching.source.spoke("quiet", 301.0)
        matching.disconnected("unheard", 9, 302.0)
        matching.count(4, 360.0)
        matching.source.spoke("quiet", 370.0)
        matching.count(4, 420.0)
        assert matching.source.matching
        assert matching.doubted == set()

    def test_who_connects_anew_leaves_no_doubt(self, matching: Watch) -> None:
        """Who came unheard and connects again is told by the end of the session that nobody knew."""
        matching.counts(4, 180.0, 300.0)
        matching.connected("unheard", 10, 310.0)
        matching.disconnected("unheard", 9, 310.1, "takenover")
        matching.count(4, 360.0)
        assert matching.source.matching
        assert matching.doubted == set()

    def test_who_was_missing_and_connects_leaves_no_doubt(self, matching: Watch) -> None:
        """Its end was lost; a name counts once."""
        matching.counts(2, 180.0, 300.0)
        matching.connected("a", 10, 310.0)
        matching.count(3, 360.0)
        assert matching.source.matching
        assert matching.doubted == set()

    def test_an_end_that_comes_twice_accounts_for_nobody(self, matching: Watch) -> None:
        """Somebody came unheard; b leaves, is told twice, and a goes unheard."""
        matching.counts(4, 180.0, 300.0)
        matching.disconnected("b", 2, 310.0)
        matching.disconnected("b", 2, 311.0)
        matching.counts(2, 360.0, 480.0)
        assert matching.source.matching
        assert matching.doubted == {"a"}

    def test_an_end_of_a_known_names_unknown_session_accounts_for_nobody(self, matching: Watch) -> None:
        """Device a connected anew unheard, as somebody came; then it leaves: who is known of it is there no more."""
        matching.counts(4, 180.0, 300.0)
        matching.disconnected("a", 9, 310.0)
        matching.counts(3, 360.0, 480.0)
        assert matching.source.matching
        assert matching.doubted == {"a", "b"}

    def test_a_takeover_of_a_known_name_accounts_for_nobody(self, matching: Watch) -> None:
        """Device a connected anew unheard, as somebody came; then it connects heard: a was one all the while."""
        matching.counts(4, 180.0, 300.0)
        matching.connected("a", 12, 310.0)
        matching.disconnected("a", 11, 310.1, "takenover")
        matching.count(4, 360.0)
        assert not matching.source.matching
        assert matching.open == {"a", "b"}

    def test_a_count_beside_an_event_shows_less(self, matching: Watch) -> None:
        """It may not hold the event yet, so nothing has gone away; who came unheard then leaves heard."""
        matching.counts(4, 180.0, 300.0)
        matching.connected("c", 5, 358.0)
        matching.count(4, 360.0)
        matching.count(5, 420.0)
        matching.disconnected("unheard", 9, 479.0)
        matching.count(5, 480.0)
        matching.counts(4, 540.0, 660.0)
        assert matching.source.matching
        assert matching.doubted == set()

    def test_ordinary_life_raises_none(self, matching: Watch) -> None:
        """Counts lag behind comings, goings, takeovers and returns; as nothing is lost, nothing is doubted."""
        number, there = 100, 3
        for minute in range(3, 60):
            at = 60.0 * minute
            number += 1
            if minute % 3 == 0:
                matching.connected("c", number, at - 1.0)
                matching.count(there, at)
                there += 1
            elif minute % 3 == 1:
                matching.connected("c", number, at - 1.0)
                matching.disconnected("c", number - 1, at + 0.5, "takenover")
                matching.count(there, at)
            else:
                matching.disconnected("c", number - 1, at - 0.5)
                matching.count(there, at)
                there -= 1
            assert matching.doubted == set()
        matching.counts(there, 3600.0, 3900.0)
        assert matching.clock.vouching(3900.0)
        assert matching.doubted == set()

    def test_a_takeover_makes_up_for_nobody(self, matching: Watch) -> None:
        """Device b went unheard; then somebody comes unheard, and a is taken over as ever."""
        matching.counts(2, 180.0, 300.0)
        matching.connected("a", 11, 310.0)
        matching.disconnected("a", 1, 310.1, "takenover")
        matching.counts(3, 360.0, 480.0)
        assert matching.doubted == {"a", "b"}

    def test_who_leaves_as_ever_accounts_for_nobody(self, matching: Watch) -> None:
        """Device b went unheard, and is missing still when a has left."""
        matching.counts(2, 180.0, 300.0)
        matching.disconnected("a", 1, 310.0)
        matching.counts(1, 360.0, 480.0)
        assert matching.doubted == set()

    def test_who_came_unheard_and_connects_twice_at_once_leaves_no_doubt(self, matching: Watch) -> None:
        """The end of the first of its sessions, which nobody knew, accounts for it."""
        matching.counts(4, 180.0, 300.0)
        matching.connected("c", 8, 310.0)
        matching.connected("c", 7, 310.2)
        matching.disconnected("c", 6, 310.3, "takenover")
        matching.disconnected("c", 7, 310.4, "takenover")
        matching.counts(4, 360.0, 480.0)
        assert matching.source.matching
        assert matching.doubted == set()

    def test_a_takeover_that_is_told_twice_counts_once(self, matching: Watch) -> None:
        """Device b went unheard, and is missing still: nothing got better."""
        matching.counts(2, 180.0, 300.0)
        matching.connected("a", 11, 310.0)
        matching.disconnected("a", 1, 310.1, "takenover")
        matching.disconnected("a", 1, 311.0, "takenover")
        matching.counts(2, 360.0, 480.0)
        assert matching.doubted == set()

    def test_after_a_gap_nobody_is_known_whatever_was_counted_before(self, matching: Watch) -> None:
        """Two come heard, and two that were there leave unheard: the count agrees, and nothing accounts for that."""
        matching.source.overflow(130.0)
        matching.counts(3, 180.0, 300.0)
        matching.connected("c", 5, 310.0)
        matching.connected("d", 6, 311.0)
        matching.counts(5, 360.0, 480.0)
        matching.counts(3, 540.0, 660.0)
        assert matching.doubted == {"c", "d"}

    def test_a_takeover_of_two_at_once_makes_up_for_nobody(self, matching: Watch) -> None:
        """Device b went unheard; somebody comes unheard, and a is taken over twice within seconds."""
        matching.counts(2, 180.0, 300.0)
        matching.connected("a", 12, 310.0)
        matching.disconnected("a", 1, 310.1, "takenover")
        matching.connected("a", 11, 310.5)
        matching.disconnected("a", 11, 310.6, "takenover")
        matching.counts(3, 360.0, 480.0)
        assert matching.doubted == {"a", "b"}

    def test_a_takeover_of_a_session_opened_by_activity_makes_up_for_nobody(self, matching: Watch) -> None:
        """As above; the number of the session that ends was never heard."""
        matching.signs.names.add("quiet")
        matching.counts(4, 180.0, 240.0)
        matching.source.spoke("quiet", 241.0)
        matching.source.spoke("quiet", 301.0)
        matching.counts(4, 310.0, 430.0)
        matching.counts(3, 490.0, 550.0)
        matching.connected("quiet", 8, 560.0)
        matching.disconnected("quiet", 7, 560.1, "takenover")
        matching.counts(4, 610.0, 730.0)
        assert matching.doubted == {"a", "b", "quiet"}

    def test_a_connected_that_comes_twice_makes_up_for_nobody(self, matching: Watch) -> None:
        """Device b went unheard; a's `connected` is told again, and somebody comes unheard."""
        matching.counts(2, 180.0, 300.0)
        matching.connected("a", 1, 310.0)
        matching.counts(3, 360.0, 480.0)
        assert matching.doubted == {"a", "b"}

    def test_the_end_of_a_bridges_session_accounts_for_nobody(self, matching: Watch) -> None:
        """Somebody came unheard; the bridge reconnects, and b goes unheard."""
        matching.counts(4, 180.0, 300.0)
        matching.disconnected("mqtt-bridge-7", 5, 310.0, "takenover")
        matching.counts(3, 360.0, 480.0)
        assert matching.doubted == {"a", "b"}

    def test_who_is_doubted_and_connects_anew_makes_up_for_nobody(self, doubtful: Watch) -> None:
        """Device a is gone, and somebody is there in its place; b goes unheard, and a comes back: no one is missing."""
        doubtful.disconnected("b", 2, 424.9, "takenover")
        doubtful.connected("b", 22, 425.0)
        assert doubtful.doubted == {"a"}
        doubtful.counts(3, 480.0, 540.0)
        doubtful.counts(2, 600.0, 720.0)
        doubtful.connected("a", 21, 730.0)
        doubtful.counts(3, 780.0, 900.0)
        assert doubtful.doubted >= {"b"}

    @pytest.mark.parametrize("is_first", [True, False])
    def test_who_is_doubted_and_taken_over_was_there(self, doubtful: Watch, is_first: bool) -> None:
        """The end of its session is heard: nobody was missing, and nothing is to be made up for."""
        doubtful.disconnected("b", 2, 425.0)
        if is_first:
            doubtful.disconnected("a", 1, 429.9, "takenover")
        doubtful.connected("a", 21, 430.0)
        if not is_first:
            doubtful.disconnected("a", 1, 430.1, "takenover")
        doubtful.counts(2, 480.0, 600.0)
        assert doubtful.doubted == set()
        assert doubtful.clock.vouching(600.0)

    def test_an_event_far_from_the_count_explains_nothing(self, matching: Watch) -> None:
        """Somebody came unheard, c connects half a minute after the only count that shows it, and b goes unheard."""
        matching.count(4, 180.0)
        matching.connected("c", 9, 210.0)
        matching.counts(4, 240.0, 360.0)
        assert matching.doubted == {"a", "b", "c"}

    def test_who_came_back_leaves_with_all_sessions(self, matching: Watch) -> None:
        """The end of b's first session was lost: it was over when b connected anew, so b is gone when that one ends."""
        matching.connected("b", 22, 140.0)
        matching.counts(3, 180.0, 3600.0)
        matching.disconnected("b", 22, 3605.0)
        assert matching.open == {"a"}
        matching.connected("b", 2, 3606.0)
        assert matching.open == {"a"}, "repeated late"

    def test_who_connects_twice_at_once_keeps_both(self, matching: Watch) -> None:
        """Which of the two is the later one is not told: events come swapped."""
        matching.connected("c", 8, 130.0)
        matching.connected("c", 7, 130.5)
        matching.disconnected("c", 7, 131.0, "takenover")
        assert matching.open == {"a", "b", "c"}

    def test_an_uptime_between_them_changes_nothing_of_that(self, matching: Watch) -> None:
        """It comes every 30 s, whenever it likes."""
        matching.connected("c", 8, 130.0)
        matching.uptime(1_000_000, 130.2)
        matching.connected("c", 7, 130.5)
        matching.disconnected("c", 7, 131.0, "takenover")
        assert matching.open == {"a", "b", "c"}

    def test_a_count_that_cannot_be_taken_forgets_nothing(self, matching: Watch) -> None:
        """The bridge's configuration is unreadable for a while, in which b goes unheard, and who came stays."""
        matching.counts(4, 180.0, 300.0)
        matching.source.set_bridge("mqtt-bridge-*", known=False)
        matching.count(4, 360.0)
        matching.source.set_bridge("mqtt-bridge-*", known=True)
        matching.counts(3, 420.0, 540.0)
        assert matching.doubted == {"a", "b"}

    def test_an_end_without_a_number_that_comes_twice_accounts_once(self, watch: Watch) -> None:
        """Somebody came unheard; c leaves, is told twice, and b goes unheard."""
        for name in ("a", "b", "c"):
            watch.connected(name, None, 10.0)
        watch.counts(4, 60.0, 120.0)
        watch.counts(5, 180.0, 300.0)
        watch.disconnected("c", None, 310.0)
        watch.disconnected("c", None, 310.5)
        watch.counts(3, 360.0, 480.0)
        assert watch.doubted == {"a", "b"}


class TestOneRun:
    """The set of known sessions belongs to one run of broker and subscription."""

    def test_an_overflow_empties_it(self, matching: Watch) -> None:
        """Messages were lost: nothing is known, and those who were held present were so until now."""
        matching.source.overflow(130.0)
        assert matching.open == set()
        assert matching.signs.last_held == {"a": 130.0, "b": 130.0}
        matching.count(3, 180.0)
        matching.count(3, 240.0)
        assert matching.credit == 60.0
        assert matching.open == set()

    def test_an_uptime_that_fell_empties_it(self, matching: Watch) -> None:
        """The broker restarted, and every session of it is gone, with or without events."""
        matching.uptime(1_000_000, 130.0)
        matching.uptime(1_000_000, 135.0)
        matching.uptime(1_030_000, 140.0)
        assert matching.open == {"a", "b"}
        matching.uptime(4_000, 150.0)
        assert matching.open == set()
        assert matching.signs.last_held == {"a": 150.0, "b": 150.0}
        assert not matching.clock.vouching(150.0)

    def test_a_broker_that_began_after_it_was_last_heard_has_restarted(self, matching: Watch) -> None:
        """Its uptime may have risen past the old one unheard: up 130 s, and 200 s later up 150 s, is another run."""
        matching.uptime(130_000, 125.0)
        matching.counts(3, 180.0, 300.0)
        matching.uptime(150_000, 325.0)
        assert matching.open == set()

    def test_a_broker_that_began_after_its_first_word_has_restarted(self, watch: Watch) -> None:
        """Its uptime comes every 30 s; before the first one, too, what was known is of the one before."""
        watch.connected("a", 1, 100.0)
        watch.uptime(10_000, 125.0)
        assert watch.open == set()

    def test_words_from_before_count_for_nothing_afterwards(self, matching: Watch) -> None:
        """A device spoke once, and died with the broker; its retained message comes with the bridge's return."""
        matching.signs.names.add("quiet")
        matching.uptime(1_000_000, 130.0)
        matching.source.spoke("quiet", 131.0)
        matching.uptime(4_000, 150.0)
        matching.source.spoke("quiet", 131.0 + MAX_QUIET / 3)
        assert matching.open == set()

    def test_a_late_uptime_is_no_restart(self, matching: Watch) -> None:
        """What was under way for half a minute still speaks of a broker that began long before."""
        matching.uptime(160_000, 125.0)
        matching.count(3, 180.0)
        matching.uptime(190_000, 185.0)
        assert matching.open == {"a", "b"}

    def test_who_was_announced_by_the_new_broker_stays_known(self, matching: Watch) -> None:
        """Its uptime tells when it began: a came back 6 s after that and was announced, b as it began."""
        matching.uptime(1_000_000, 130.0)
        matching.disconnected("a", 1, 131.0)
        matching.disconnected("b", 2, 131.0)
        matching.connected("b", 12, 144.0)
        matching.connected("a", 11, 146.0)
        matching.uptime(20_000, 160.0)
        assert matching.open == {"a"}
        matching.counts(2, 180.0, 240.0)
        assert matching.credit == 120.0

    def test_who_left_again_before_the_uptime_does_not(self, matching: Watch) -> None:
        """Only sessions that are open stay known."""
        matching.uptime(1_000_000, 130.0)
        matching.connected("c", 11, 146.0)
        matching.disconnected("c", 11, 150.0)
        matching.uptime(20_000, 160.0)
        assert matching.open == set()

    def test_who_stays_with_an_earlier_session_does_not(self, matching: Watch) -> None:
        """Of two opened at once the latest is the new broker's, if any is: it has ended."""
        matching.uptime(1_000_000, 130.0)
        for first, latest, name in ((11, 12, "c"), (21, 22, "d")):
            matching.connected(name, first, 146.0)
            matching.connected(name, latest, 147.0)
        matching.disconnected("c", 12, 148.0)
        matching.disconnected("d", 21, 148.0)
        assert matching.open == {"a", "b", "c", "d"}
        matching.uptime(20_000, 160.0)
        assert matching.open == {"d"}

    def test_only_the_latest_openings_are_remembered(self, matching: Watch) -> None:
        """Those from before the last uptime, but for some seconds: the others' sessions are in the set itself."""
        matching.uptime(1_000_000, 130.0)
        for number in range(100):
            matching.connected(f"n{number}", 1, 131.0 + number / 10)
        matching.uptime(1_010_000, 141.0)
        (node,) = matching.source._nodes.values()
        assert set(node.opened) == {f"n{number}" for number in range(51, 100)}

    def test_what_is_read_late_together_tells_nothing_of_the_new_broker(self, matching: Watch) -> None:
        """The process stood still: the connect is the old broker's, and was read beside the new one's uptime."""
        matching.uptime(1_000_000, 130.0)
        matching.connected("c", 11, 230.0)
        matching.uptime(30_000, 230.0)
        assert matching.open == set()

    def test_events_that_are_mapped_no_more_empty_it(self, matching: Watch) -> None:
        """While only the count is carried people come and go unannounced: nobody is known afterwards."""
        matching.source.set_bridge("mqtt-bridge-*", known=True, mapped=False)
        matching.source.set_bridge("mqtt-bridge-*", known=True, mapped=True)
        matching.count(3, 180.0)
        assert matching.open == set()

    def test_events_heard_before_they_were_unmapped_do_not_make_a_count_vouch(self, matching: Watch) -> None:
        """Those that come and go between two counts are not announced any more."""
        matching.source.set_bridge("mqtt-bridge-*", known=True, mapped=False)
        matching.counts(1, 180.0, 300.0)
        assert matching.credit == 60.0
        assert not matching.source.matching

    def test_who_was_announced_before_the_last_uptime_of_the_old_broker_does_not(self, matching: Watch) -> None:
        """However long the new one says that it is up."""
        matching.connected("c", 11, 129.0)
        matching.uptime(1_000_000, 130.0)
        matching.uptime(900_000, 150.0)
        assert matching.open == set()

    def test_a_broker_that_restarts_and_announces_all_goes_on(self, matching: Watch) -> None:
        """After a restart with events the census matches again; the gap earned nothing."""
        matching.uptime(1_000_000, 130.0)
        matching.uptime(4_000, 150.0)
        matching.connected("a", 11, 151.0)
        matching.connected("b", 12, 152.0)
        matching.count(3, 180.0)
        assert matching.credit == 60.0
        matching.count(3, 240.0)
        assert matching.credit == 120.0

    def test_a_broker_that_restarts_without_events_stops_the_clock(self, matching: Watch) -> None:
        """Devices that came back before the bridge are never announced: the clock stands still for as long."""
        matching.uptime(1_000_000, 130.0)
        matching.uptime(4_000, 150.0)
        matching.counts(3, 180.0, 86_400.0)
        assert matching.credit == 60.0

    def test_a_count_unheard_for_max_quiet_empties_it(self, matching: Watch) -> None:
        """Sessions that no census can confirm are not believed, though events are heard all the while."""
        matching.source.tick(120.0 + MAX_QUIET)
        assert matching.open == {"a", "b"}
        matching.connected("c", 3, 299.0)
        matching.source.tick(301.0)
        assert matching.open == set()
        assert matching.signs.last_held["c"] == 301.0
        matching.connected("d", 4, 302.0)
        assert matching.open == set()

    def test_without_any_count_nobody_is_held(self, watch: Watch) -> None:
        """On a broker that publishes no count the set stays empty once maxQuiet is over."""
        watch.connected("a", 1, 0.0)
        watch.connected("b", 2, 100.0)
        watch.connected("c", 3, MAX_QUIET + 1.0)
        watch.connected("d", 4, MAX_QUIET + 100.0)
        assert watch.open == set()
        assert not watch.clock.vouching(MAX_QUIET + 1.0)
        assert "is not heard" in watch.source.reason(MAX_QUIET + 1.0)

    def test_a_count_heard_again_starts_the_set_anew(self, matching: Watch) -> None:
        """Sessions heard from then on are known again."""
        matching.count(3, 400.0)
        assert matching.open == set()
        matching.connected("a", 9, 401.0)
        assert matching.open == {"a"}
        assert matching.credit == 60.0


class TestBridge:
    """The bridge adds exactly one."""

    def test_its_own_sessions_are_none_of_a_device(self, watch: Watch) -> None:
        """Reconnects of the bridge open and close nothing: it is counted as one, always."""
        watch.connected("mqtt-bridge-x1", 1, 0.0)
        watch.connected("mqtt-bridge-x1", 2, 1.0)
        watch.disconnected("mqtt-bridge-x1", 1, 2.0)
        watch.connected("a", 1, 3.0)
        assert watch.open == {"a"}
        watch.count(2, 60.0)
        assert watch.source.matching

    def test_known_by_its_configuration(self, watch: Watch) -> None:
        """The client id in the bridge's own configuration counts, not the usual glob."""
        watch.source.set_bridge("my-bridge", known=True)
        watch.connected("my-bridge", 1, 0.0)
        watch.connected("mqtt-bridge-of-somebody", 2, 0.0)
        assert watch.open == {"mqtt-bridge-of-somebody"}
        watch.count(2, 60.0)
        assert watch.source.matching

    def test_known_after_its_session_was_heard_opening(self, watch: Watch) -> None:
        """A configuration read later makes the session that was opened under that name the bridge's."""
        watch.connected("my-bridge", 1, 0.0)
        watch.connected("a", 2, 0.0)
        watch.source.set_bridge("my-bridge", known=True)
        assert watch.open == {"a"}
        watch.count(2, 60.0)
        assert watch.source.matching

    def test_where_unknown_nothing_vouches_until_it_is_heard_opening(self, watch: Watch) -> None:
        """Its configuration cannot be read: only a session that matches `bridgeClientId` shows which one it is."""
        watch.source.set_bridge("mqtt-bridge-*", known=False)
        watch.connected("a", 1, 0.0)
        watch.counts(2, 60.0, 300.0)
        assert watch.credit == 0.0
        assert not watch.source.matching
        assert "its configuration could not be read" in watch.source.reason(300.0)
        watch.disconnected("mqtt-bridge-77", 3, 310.0)
        watch.counts(2, 360.0, 420.0)
        assert watch.credit == 0.0
        watch.connected("mqtt-bridge-77", 4, 430.0)
        watch.counts(2, 480.0, 540.0)
        assert watch.credit == 60.0

    def test_while_unknown_what_vouched_before_stops_to(self, matching: Watch) -> None:
        """A configuration that cannot be read any more ends the stretch."""
        matching.source.set_bridge("mqtt-bridge-*", known=False)
        matching.count(3, 180.0)
        assert not matching.source.matching
        assert not matching.clock.vouching(180.0)

    def test_who_turns_out_to_be_the_bridge_was_heard_opening(self, watch: Watch) -> None:
        """A glob that is configured later: its session is no device's, nothing is doubted, and the census goes on."""
        watch.connected("my-bridge", 1, 0.0)
        watch.connected("a", 2, 0.0)
        watch.counts(2, 60.0, 180.0)
        assert not watch.source.matching
        watch.source.doubt_all(190.0)
        watch.source.set_bridge("my-*", known=False)
        assert watch.doubted == {"a"}
        watch.source.spoke("a", 191.0)
        watch.connected("a", 3, 200.0)
        watch.counts(2, 240.0, 420.0)
        assert watch.doubted == set()
        assert watch.clock.vouching(420.0)

    def test_an_associated_thing_is_a_device_whatever_its_name(self, watch: Watch) -> None:
        """`bridgeClientId` names devices by mistake, and the bridge counts as one of them: none is the bridge."""
        watch.signs.associations.add("mqtt-bridge-of-hall-7")
        watch.connected("the-bridge", 1, 0.0)
        watch.connected("mqtt-bridge-of-hall-7", 2, 0.0)
        watch.count(2, 60.0)
        assert not watch.source.matching
        assert watch.source.holds("mqtt-bridge-of-hall-7")
        watch.disconnected("mqtt-bridge-of-hall-7", 2, 70.0)
        assert not watch.source.holds("mqtt-bridge-of-hall-7")

    def test_the_glob_respects_case(self, watch: Watch) -> None:
        """`MQTT-Bridge-1` is a stranger."""
        watch.connected("MQTT-Bridge-1", 1, 0.0)
        assert watch.open == {"MQTT-Bridge-1"}


class TestNodes:
    """Counts and sessions are kept per broker node, and all nodes must agree."""

    @pytest.fixture
    def cluster(self, watch: Watch) -> Watch:
        """Device a and the bridge on one node, b on the other; both count every minute, half a minute apart."""
        watch.connected("mqtt-bridge-1", 1, 0.0)
        watch.connected("a", 2, 0.0)
        watch.connected("b", 3, 0.0, OTHER)
        watch.both(2, 1, 60.0, 120.0, 180.0)
        return watch

    def test_the_stretch_is_as_old_as_the_oldest_latest_count(self, cluster: Watch) -> None:
        """What one node has not confirmed yet is not vouched for."""
        assert cluster.source.matching
        assert cluster.credit == 180.0 - 60.0
        assert cluster.clock.last_voucher_seconds == 180.0

    def test_losses_on_two_nodes_do_not_compensate(self, cluster: Watch) -> None:
        """One more here and one fewer there is a mismatch, not a match of the sums."""
        cluster.count(3, 240.0)
        cluster.count(0, 270.0, OTHER)
        assert not cluster.source.matching
        assert not cluster.clock.vouching(270.0)

    def test_a_node_without_a_count_keeps_all_from_vouching(self, cluster: Watch) -> None:
        """A node that is heard for the first time must be counted before the census goes on."""
        cluster.connected("c", 4, 231.0, "third")
        cluster.count(2, 240.0)
        cluster.count(1, 270.0, OTHER)
        assert not cluster.clock.vouching(270.0)
        cluster.count(1, 280.0, "third")
        for at in (300.0, 360.0):
            cluster.count(2, at)
            cluster.count(1, at, OTHER)
            cluster.count(1, at, "third")
        assert cluster.clock.vouching(360.0)

    def test_a_node_that_vanishes_is_dropped_with_its_sessions(self, cluster: Watch) -> None:
        """Unheard for maxQuiet it is no node any more; the stretch ends, and goes on with the others."""
        cluster.counts(2, 240.0, 360.0)
        assert cluster.open == {"a", "b"}
        cluster.count(2, 420.0)
        assert cluster.open == {"a"}
        assert cluster.signs.last_held["b"] == 420.0
        assert not cluster.clock.vouching(420.0)
        credit = cluster.credit
        cluster.count(2, 480.0)
        assert cluster.credit == credit + 60.0

    def test_a_disconnected_on_one_node_leaves_the_session_on_the_other(self, cluster: Watch) -> None:
        """A device that moved to another node is present there."""
        cluster.connected("a", 9, 220.0, OTHER)
        cluster.disconnected("a", 2, 221.0, "takenover")
        assert cluster.open == {"a", "b"}
        cluster.count(1, 240.0)
        cluster.count(2, 270.0, OTHER)
        assert cluster.source.matching

    def test_while_nothing_happens_nobody_is_doubted(self, cluster: Watch) -> None:
        """Counts of the nodes come in turn, without an event between."""
        for at in range(240, 900, 60):
            cluster.count(2, float(at))
            cluster.count(1, at + 30.0, OTHER)
        assert cluster.doubted == set()
        assert cluster.clock.vouching(870.0)

    def test_a_mismatch_of_a_node_that_goes_away_without_an_event_raises_doubt(self, cluster: Watch) -> None:
        """Somebody came and went unannounced, and need not have been the same one."""
        cluster.counts(3, 240.0, 300.0)
        cluster.count(1, 310.0, OTHER)
        cluster.counts(2, 360.0, 420.0)
        assert cluster.doubted == {"a", "b"}

    def test_who_connects_to_another_node_has_left_the_one_before(self, cluster: Watch) -> None:
        """A client id has one connection at a time: the end of that one was lost, and nobody must stand in for it."""
        cluster.connected("a", 9, 220.0, OTHER)
        cluster.count(1, 240.0)
        cluster.count(2, 270.0, OTHER)
        assert cluster.source.matching
        cluster.disconnected("a", 9, 280.0, node=OTHER)
        assert cluster.open == {"b"}
        assert cluster.signs.gone == ["a"]

    def test_who_connects_to_two_nodes_at_once_keeps_both(self, cluster: Watch) -> None:
        """Which of the two is the later one is not told; the end of one is no leaving, and makes up for nobody."""
        cluster.connected("c", 8, 220.0)
        cluster.connected("c", 7, 220.5, OTHER)
        cluster.disconnected("c", 8, 221.0, "takenover")
        assert cluster.open == {"a", "b", "c"}
        assert cluster.signs.gone == []
        cluster.disconnected("c", 7, 222.0, node=OTHER)
        assert cluster.signs.gone == ["c"]

    def test_two_nodes_at_once_make_up_for_nobody(self, cluster: Watch) -> None:
        """Device a went unheard; c connects to both nodes within seconds, and somebody comes unheard."""
        cluster.both(1, 1, 240.0, 300.0)
        cluster.connected("c", 8, 340.0)
        cluster.connected("c", 7, 340.5, OTHER)
        cluster.disconnected("c", 8, 341.0, "takenover")
        cluster.both(2, 2, 360.0, 420.0, 480.0)
        assert cluster.doubted >= {"a", "b"}

    @pytest.fixture
    def swapped(self, watch: Watch) -> Watch:
        """Nobody knows where the bridge is; a goes unheard on its node, and x comes unheard on the other one."""
        watch.connected("a", 1, 0.0)
        watch.connected("b", 2, 0.0, OTHER)
        watch.both(2, 1, 60.0, 120.0)
        watch.counts(1, 180.0, 240.0)
        watch.count(1, 210.0, OTHER)
        return watch

    @pytest.mark.parametrize("is_heard", [False, True])
    def test_losses_on_two_nodes_raise_doubt_whoever_else_comes(self, swapped: Watch, is_heard: bool) -> None:
        """The bridge may seem to have moved; an event on one node accounts for nothing on the other one."""
        if is_heard:
            swapped.connected("c", 3, 260.0, OTHER)
        for at in (300.0, 360.0, 420.0):
            swapped.count(2 + is_heard, at - 30.0, OTHER)
            swapped.count(1, at)
            assert not swapped.source.matching or swapped.doubted
        assert swapped.doubted >= {"a", "b"}

    def test_a_bridge_that_moves_raises_none(self, watch: Watch) -> None:
        """It is heard to; nobody else came or went."""
        watch.connected("a", 1, 0.0)
        watch.connected("b", 2, 0.0, OTHER)
        watch.both(2, 1, 60.0, 120.0, 180.0)
        watch.connected("mqtt-bridge-1", 3, 230.0, OTHER)
        watch.both(1, 2, 240.0, 300.0, 360.0, 420.0)
        assert watch.source.matching
        assert watch.doubted == set()

    def test_who_came_unheard_beside_the_bridge_leaves_no_doubt(self, watch: Watch) -> None:
        """The bridge is where it was, and he leaves heard."""
        watch.connected("a", 1, 0.0)
        watch.connected("b", 2, 0.0, OTHER)
        watch.both(1, 2, 60.0, 120.0)
        watch.counts(2, 180.0, 240.0)
        watch.count(2, 210.0, OTHER)
        watch.disconnected("unheard", 9, 250.0)
        for at in (300.0, 360.0, 420.0):
            watch.count(2, at - 30.0, OTHER)
            watch.count(1, at)
        assert watch.source.matching
        assert watch.doubted == set()

    def test_ordinary_life_on_two_nodes_raises_none(self, cluster: Watch) -> None:
        """Each count lags behind the comings and goings on its node; as nothing is lost, nothing is doubted."""
        there, number = {NODE: 2, OTHER: 1}, 10
        for minute in range(4, 60):
            for node, at in ((NODE, 60.0 * minute), (OTHER, 60.0 * minute + 30.0)):
                number += 1
                if minute % 2 == 0:
                    cluster.connected(node, number, at - 1.0, node)
                    cluster.count(there[node], at, node)
                    there[node] += 1
                else:
                    cluster.disconnected(node, number - 2, at - 0.5, node=node)
                    cluster.count(there[node], at, node)
                    there[node] -= 1
                assert cluster.doubted == set()
        cluster.both(there[NODE], there[OTHER], 3600.0, 3660.0, 3720.0)
        assert cluster.clock.vouching(3750.0)
        assert cluster.doubted == set()

    def test_an_uptime_that_fell_empties_only_its_node(self, cluster: Watch) -> None:
        """The sessions of the other nodes are still open."""
        cluster.uptime(9_000_000, 220.0, OTHER)
        cluster.uptime(10, 221.0, OTHER)
        assert cluster.open == {"a"}

    def test_a_count_from_before_a_restart_does_not_vouch_after_it(self, cluster: Watch) -> None:
        """The other node's next count must not be compared with what this one counted before it restarted."""
        cluster.uptime(9_000_000, 220.0, OTHER)
        cluster.uptime(10, 221.0, OTHER)
        credit = cluster.credit
        cluster.count(2, 240.0)
        assert not cluster.source.matching
        cluster.count(0, 270.0, OTHER)
        assert cluster.credit == credit
        assert cluster.clock.last_voucher_seconds == 240.0

    def test_a_count_from_before_a_mismatch_elsewhere_does_not_vouch_over_it(self, cluster: Watch) -> None:
        """The time of a mismatch counts for nothing, though the other nodes counted right in it (invariant I2)."""
        credit = cluster.credit
        cluster.count(3, 240.0)
        cluster.count(1, 241.0, OTHER)
        cluster.disconnected("unheard", 9, 290.0)
        marker = cluster.clock.reading(290.0)
        cluster.count(2, 300.0)
        cluster.count(1, 301.0, OTHER)
        cluster.count(2, 302.0)
        assert cluster.credit == credit + 1.0
        assert cluster.credit - marker <= 302.0 - 290.0

    def test_activity_opens_no_session_while_several_nodes_are_heard(self, cluster: Watch) -> None:
        """Which of them it is connected to is not told."""
        cluster.signs.names.add("quiet")
        cluster.source.spoke("quiet", 200.0)
        cluster.source.spoke("quiet", 300.0)
        assert "quiet" not in cluster.open

    def test_a_session_opened_by_activity_ends_with_a_disconnect_on_any_node(self, watch: Watch) -> None:
        """It was opened on the only node heard then, and may have been on another."""
        watch.signs.names.add("a")
        watch.count(2, 0.0)
        watch.source.spoke("a", 1.0)
        watch.source.spoke("a", 70.0)
        assert watch.open == {"a"}
        watch.disconnected("a", 5, 80.0, node=OTHER)
        assert watch.open == set()


class TestActivity:
    """Sessions that began unheard are opened by the second of two messages, and by nothing less."""

    @pytest.fixture
    def gap(self, watch: Watch) -> Watch:
        """The broker counts the bridge and one device that connected unheard; its name is known."""
        watch.signs.names.add("quiet")
        watch.count(2, 0.0)
        return watch

    @pytest.mark.parametrize("apart", [MAX_QUIET / 3, MAX_QUIET, 20 * MAX_QUIET])
    def test_the_second_message_opens_one(self, gap: Watch, apart: float) -> None:
        """Two messages between maxQuiet/3 and 20 maxQuiet apart: the device is there, and the census matches."""
        gap.source.spoke("quiet", 1.0)
        assert gap.open == set()
        gap.counts(2, 60.0, apart)
        gap.source.spoke("quiet", 1.0 + apart)
        assert gap.open == {"quiet"}
        gap.counts(2, 60.0 + apart, 120.0 + apart)
        assert gap.source.matching
        assert gap.clock.floor_seconds == 0.0

    @pytest.mark.parametrize("apart", [0.0, 1.0, MAX_QUIET / 3 - 0.1])
    def test_a_message_too_soon_after_the_first_opens_none(self, gap: Watch, apart: float) -> None:
        """Messages kept for a device, or delivered twice, come at once."""
        gap.source.spoke("quiet", 1.0)
        gap.source.spoke("quiet", 1.0 + apart)
        assert gap.open == set()

    def test_messages_too_far_apart_open_none(self, gap: Watch) -> None:
        """A replayed retained message now and then is no session; the later one is a first message again."""
        gap.source.spoke("quiet", 1.0)
        gap.counts(2, 60.0, 3600.0)
        gap.source.spoke("quiet", 1.1 + 20 * MAX_QUIET)
        assert gap.open == set()
        gap.source.spoke("quiet", 1.1 + 21 * MAX_QUIET)
        assert gap.open == {"quiet"}

    def test_a_name_never_announced_opens_none(self, gap: Watch) -> None:
        """A name in a topic that no broker and no roll call ever named may be no client at all."""
        gap.source.spoke("forwarded", 1.0)
        gap.source.spoke("forwarded", 100.0)
        assert gap.open == set()

    def test_the_bridge_opens_none(self, gap: Watch) -> None:
        """It is counted already."""
        gap.signs.names.add("mqtt-bridge-1")
        gap.source.spoke("mqtt-bridge-1", 1.0)
        gap.source.spoke("mqtt-bridge-1", 100.0)
        assert gap.open == set()

    def test_nothing_opens_within_five_seconds_of_a_close(self, gap: Watch) -> None:
        """The last words of a device may arrive after its `disconnected`; they are no first message either."""
        gap.source.spoke("quiet", 1.0)
        gap.disconnected("quiet", 1, 100.0)
        gap.source.spoke("quiet", 104.9)
        assert gap.open == set()
        gap.source.spoke("quiet", 106.0)
        assert gap.open == set()
        gap.source.spoke("quiet", 104.9 + MAX_QUIET / 3)
        assert gap.open == set()
        gap.source.spoke("quiet", 106.0 + MAX_QUIET / 3)
        assert gap.open == {"quiet"}

    def test_messages_from_before_an_event_do_not_count(self, gap: Watch) -> None:
        """The two messages must lie in the same silence of the broker."""
        gap.source.spoke("quiet", 1.0)
        gap.disconnected("quiet", 1, 50.0)
        gap.source.spoke("quiet", 100.0)
        assert gap.open == set()

    @pytest.mark.parametrize(("session", "reason"), [(5, "normal"), (None, "normal"), (5, "takenover")])
    def test_any_disconnect_closes_it(self, gap: Watch, session: object, reason: str) -> None:
        """Its number was never heard, so whichever ends is taken for it."""
        gap.source.spoke("quiet", 1.0)
        gap.source.spoke("quiet", 100.0)
        assert gap.open == {"quiet"}
        gap.disconnected("quiet", session, 110.0, reason)
        assert gap.open == set()

    def test_a_connected_takes_its_place(self, gap: Watch) -> None:
        """A reconnect that is announced counts once, with its number from now on."""
        gap.source.spoke("quiet", 1.0)
        gap.source.spoke("quiet", 100.0)
        gap.connected("quiet", 8, 110.0)
        gap.count(2, 120.0)
        assert gap.source.matching
        gap.disconnected("quiet", 7, 121.0, "takenover")
        assert gap.open == {"quiet"}

    def test_a_name_with_a_session_gets_no_second(self, matching: Watch) -> None:
        """A device that is known to be connected may speak as much as it likes."""
        for at in (130.0, 200.0, 300.0):
            matching.source.spoke("a", at)
            matching.count(3, at)
        assert matching.source.matching
        matching.disconnected("a", 77, 301.0)
        assert "a" in matching.open, "nor is the one that it has taken for one that began unheard"

    def test_while_no_count_is_heard_none_opens(self, gap: Watch) -> None:
        """On a broker without a count, messages open no session that nobody could confirm."""
        gap.source.tick(MAX_QUIET + 1.0)
        gap.source.spoke("quiet", MAX_QUIET + 2.0)
        gap.source.spoke("quiet", 2 * MAX_QUIET)
        assert gap.open == set()

    def test_while_only_events_are_heard_none_opens(self, gap: Watch) -> None:
        """The node is there, and no count."""
        for at in (100.0, 200.0, 300.0):
            gap.connected("other", at, at)
            gap.source.spoke("quiet", at)
        assert gap.open == set()

    def test_one_that_opens_explains_the_end_of_a_mismatch(self, matching: Watch) -> None:
        """As an event does: nobody else came or went."""
        matching.signs.names.add("quiet")
        matching.counts(4, 180.0, 240.0)
        matching.source.spoke("quiet", 241.0)
        matching.source.spoke("quiet", 241.0 + MAX_QUIET / 3)
        matching.counts(4, 310.0, 370.0)
        assert matching.credit == 120.0
        assert matching.clock.floor_seconds == 0.0

    def test_before_the_broker_is_heard_none_opens(self, watch: Watch) -> None:
        """Nor on a broker that was never heard."""
        watch.signs.names.add("quiet")
        watch.source.spoke("quiet", 0.0)
        watch.source.spoke("quiet", 100.0)
        assert watch.open == set()

    def test_the_names_awaited_are_bounded(self, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
        """The oldest names that spoke once, or were closed, are forgotten first."""
        monkeypatch.setattr(emqx, "MAX_STRANGERS", 10)
        watch.count(1, 0.0)
        for number in range(100):
            watch.signs.names.add(f"n{number}")
            watch.source.spoke(f"n{number}", 1.0)
            watch.disconnected(f"c{number}", 1, 1.0)
        assert list(watch.source._spoken) == [f"n{number}" for number in range(90, 100)]
        assert list(watch.source._closed) == [f"c{number}" for number in range(90, 100)]

    def test_what_matters_shortly_is_kept_no_longer(self, watch: Watch) -> None:
        """Who came or left is known beside its session for a minute, or for seconds: many devices add up."""
        for at in (0.0, 30.0):
            watch.connected(f"a{at:.0f}", 1, at)
            watch.disconnected(f"c{at:.0f}", 1, at)
        watch.uptime(1_000_000, 34.0)
        assert (list(watch.source._arrived), list(watch.source._closed)) == (["a0", "a30"], ["c30"])
        watch.uptime(1_030_000, 64.0)
        assert (list(watch.source._arrived), list(watch.source._closed)) == (["a30"], [])


class TestHabitBesideIt:
    """While a broker is heard whose count does not match, no habit proves anything."""

    def test_a_broker_that_was_never_heard_says_nothing(self, watch: Watch) -> None:
        """On Moquette habits stand alone."""
        assert watch.source.objects(1.0) == ""
        assert watch.source.objects(1e6) == ""

    def test_a_broker_that_has_not_matched_yet_objects(self, watch: Watch) -> None:
        """From the first word of the broker until its first match in this run."""
        watch.connected("a", 1, 0.0)
        assert watch.source.objects(1.0)
        watch.count(2, 60.0)
        assert watch.source.objects(61.0) == ""

    def test_a_mismatch_a_restart_and_an_overflow_object(self, matching: Watch) -> None:
        """Until the count matches again."""
        assert matching.source.objects(121.0) == ""
        matching.count(4, 180.0)
        assert matching.source.objects(181.0)
        matching.counts(3, 240.0, 300.0)
        assert matching.source.objects(301.0) == ""
        matching.source.overflow(310.0)
        assert matching.source.objects(311.0)

    def test_a_broker_that_vouched_before_objects_when_it_is_not_heard_any_more(self, matching: Watch) -> None:
        """Its events may have been unmapped: a device that is connected to it without a word keeps no habit."""
        assert matching.credit > 0
        assert "not heard any more" in matching.source.objects(200.1 + MAX_QUIET)

    def test_a_broker_that_never_vouched_stops_objecting_when_it_is_not_heard(self, watch: Watch) -> None:
        """After maxQuiet without a word it is no witness, neither for nor against."""
        watch.count(4, 180.0)
        assert watch.source.objects(180.0 + MAX_QUIET)
        assert watch.source.objects(180.1 + MAX_QUIET) == ""


def test_the_reason_says_what_it_waits_for(watch: Watch) -> None:
    """Each stand has its words, with figures."""
    assert "nothing heard" in watch.source.reason(0.0)
    watch.connected("a", 1, 0.0)
    assert "is not heard" in watch.source.reason(1.0)
    watch.count(2, 60.0)
    assert "the next count starts the clock" in watch.source.reason(60.0)
    watch.count(2, 120.0)
    assert watch.source.reason(120.0) == (
        "the broker counts 2 connections; 1 sessions are known to be open, and the bridge's: they match"
    )
    watch.count(3, 180.0)
    assert "more than known for 2 min" in watch.source.reason(300.0)


def test_a_count_without_events_does_not_vouch(watch: Watch) -> None:
    """Where the bridge carries the count and not the events, nobody would be known: a count that matches is none."""
    watch.source.set_bridge("mqtt-bridge-*", known=True, mapped=False)
    for minute in range(4):
        watch.count(1, 60.0 * minute)
    assert watch.credit == 0.0
    assert "does not carry" in watch.source.reason(180.0)
    watch.connected("a", 1, 190.0)
    watch.count(2, 240.0)
    watch.count(2, 300.0)
    assert watch.credit == 60.0
