"""What reached the component, by which the simulation holds it to account."""

from __future__ import annotations

import pytest

from local_core.simulation.received import Received


@pytest.fixture
def received() -> Received:
    """Device `a` is associated; counts that match come every minute from 60 s to 600 s."""
    received = Received()
    received.associated("a", 0.0)
    for minute in range(1, 11):
        received.counted(0, 60.0 * minute)
    return received


class TestClocks:
    """Between two vouchers there may be no more than the source's longest quiet."""

    def test_what_was_vouched_for_counts(self, received: Received) -> None:
        """From the first voucher to now."""
        assert received.reading(630.0).vouched["emqx"] == 570.0

    def test_a_gap_counts_for_nothing(self, received: Received) -> None:
        """Nor does the end of a run."""
        received.counted(0, 800.0)
        assert received.reading(800.0).vouched["emqx"] == 540.0
        received.died()
        received.counted(0, 820.0)
        assert received.reading(820.0).vouched["emqx"] == 540.0


class TestAbsence:
    """It begins with the last sign of life, or the association."""

    def test_a_sign_ends_it(self, received: Received) -> None:
        """What its interval may still earn is left to the absence."""
        assert received.absence("a", "emqx", received.reading(600.0)) == 540.0
        received.sign("a", 610.0)
        received.counted(0, 660.0)
        assert received.absence("a", "emqx", received.reading(660.0)) == 60.0

    def test_a_sign_that_was_not_committed_was_never_received(self, received: Received) -> None:
        """One that was committed outlives the process."""
        received.sign("a", 300.0)
        received.committed()
        received.sign("a", 600.0)
        received.died()
        assert received.last_sign("a").now == 300.0

    def test_a_mismatch_that_nothing_explains_begins_all_anew(self, received: Received) -> None:
        """Somebody came and went unannounced; with an event between, it may have been he."""
        received.counted(1, 660.0)
        received.counted(0, 720.0)
        assert received.absence("a", "emqx", received.reading(720.0)) == 60.0
        received.counted(1, 780.0)
        received.disconnected("b", 7, 800.0)
        received.counted(0, 840.0)
        assert received.absence("a", "emqx", received.reading(840.0)) == 180.0


class TestSessions:
    """What may be known, and what must be."""

    def test_an_event_opens_and_ends_one(self, received: Received) -> None:
        """Another session's end leaves it, and one that ended never opens again."""
        received.connected("a", 1, 610.0)
        received.disconnected("a", 0, 611.0)
        assert received.told["a"] == {1: 610.0}
        assert received.must == {"a": 1}
        received.disconnected("a", 1, 612.0)
        received.connected("a", 1, 613.0)
        assert not received.told
        assert not received.must

    def test_the_second_of_two_messages_may_open_one(self, received: Received) -> None:
        """Well apart, and not too far."""
        received.spoke("a", 610.0)
        received.spoke("a", 620.0)
        assert not received.told
        received.spoke("a", 680.0)
        assert received.told == {"a": {None: 680.0}}

    def test_the_longest_silence_is_kept(self, received: Received) -> None:
        """Between words; that before the first is none."""
        for at in (610.0, 620.0, 680.0, 700.0):
            received.spoke("a", at)
        assert received.words["a"].longest_silence == 60.0

    @pytest.mark.parametrize("gap", ["died", "overflowed", "quiet"])
    def test_a_gap_that_shows_leaves_none(self, received: Received, gap: str) -> None:
        """They belong to one run."""
        received.connected("a", 1, 610.0)
        if gap == "quiet":
            received.quiet(800.0)
        else:
            getattr(received, gap)()
        assert not received.told
        assert not received.must

    def test_a_broker_that_restarted_has_only_its_own(self, received: Received) -> None:
        """From its uptime on, before its first count: whether the component takes those told since is up to it."""
        received.connected("a", 1, 610.0)
        received.connected("b", 2, 640.0)
        received.uptime(630.0)
        assert received.told == {"b": {2: 640.0}}
        assert not received.must
