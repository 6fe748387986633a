"""When counts that agree again are believed: what was heard has to account for it."""

from __future__ import annotations

import pytest

from client_device_pruner import doubt
from client_device_pruner.doubt import Doubt, Figures

APART = 5.0


class Broker:
    """The figures of a node, told of 10 sessions known, and a count each minute; all times are seconds."""

    def __init__(self) -> None:
        self.figures = Figures()
        self.known = 0
        self.now = 0.0
        self.knows(10, -100.0)

    def knows(self, known: int, at: float) -> None:
        """Tell how many sessions are known."""
        self.known = known
        self.figures.knows(known, at, APART)

    def counts(self, *surpluses: int) -> list[bool]:
        """Take counts that show these surpluses; True where the one before a count was not accounted for."""
        return [self.count(surplus) for surplus in surpluses]

    def count(self, surplus: int) -> bool:
        """Take the next minute's count."""
        self.now += 60.0
        return self.figures.take(self.known + surplus, self.now, APART)


@pytest.fixture
def broker() -> Broker:
    """A broker whose count matches."""
    broker = Broker()
    assert broker.counts(0, 0) == [False, False]
    return broker


class TestAccounts:
    """Whether what was heard accounts for a mismatch that shrinks."""

    @pytest.mark.parametrize("surpluses", [(1, 1), (-3, -3), (1, 4, 4), (-1, -2, -2), (0, 0)])
    def test_what_gets_no_better_needs_no_account(self, broker: Broker, surpluses: tuple[int, ...]) -> None:
        """A mismatch holds the clock by itself."""
        assert not any(broker.counts(*surpluses, surpluses[-1]))

    @pytest.mark.parametrize("surpluses", [(1, 0), (-1, 0), (1, 1, 0), (3, 2), (-2, -1), (1, -1), (-1, 2)])
    def test_what_shrinks_without_a_word_is_not_accounted_for(self, broker: Broker, surpluses: tuple[int, ...]) -> None:
        """It is told with the next count, when all that lies near has been heard."""
        assert broker.counts(*surpluses, surpluses[-1]) == [False] * len(surpluses) + [True]

    def test_who_came_unheard_accounts_by_going_or_speaking(self, broker: Broker) -> None:
        """One each, and no more than that."""
        broker.counts(2, 2)
        broker.figures.account(broker.now + 10.0, fewer=1)
        assert broker.counts(1, 1) == [False, False]
        broker.figures.account(broker.now + 10.0, fewer=1)
        assert broker.counts(0, 0) == [False, False]
        broker.counts(2, 2)
        broker.figures.account(broker.now + 10.0, fewer=1)
        assert broker.counts(0, 0) == [False, True]

    def test_who_went_unheard_accounts_by_coming_back(self, broker: Broker) -> None:
        """Unless it turns out not to have been away."""
        broker.counts(-1, -1)
        broker.figures.account(broker.now + 10.0, more=1)
        assert broker.counts(0, 0) == [False, False]
        broker.counts(-1, -1)
        broker.figures.account(broker.now + 10.0, more=1)
        broker.figures.account(broker.now + 12.0, more=-1)
        assert broker.counts(0, 0) == [False, True]

    def test_an_account_beside_a_count_may_show_in_the_next_one(self, broker: Broker) -> None:
        """The count was sampled before it."""
        broker.counts(1, 1)
        broker.figures.account(broker.now + 58.0, fewer=1)
        assert broker.counts(1, 0, 0) == [False, False, False]

    def test_each_account_serves_one_change(self, broker: Broker) -> None:
        """What a count far from it has shown already accounts for nothing later."""
        broker.counts(2, 2)
        broker.figures.account(broker.now + 10.0, fewer=1)
        assert broker.counts(2, 2, 1, 1) == [False, False, False, True]

    def test_an_account_beside_a_count_that_shows_it_serves_no_second_change(self, broker: Broker) -> None:
        """Two who came unheard leave right before a count, which shows it; then two others leave unheard."""
        broker.counts(4, 4)
        broker.figures.account(broker.now + 58.0, fewer=2)
        assert broker.counts(2, 0, 0) == [False, False, True]

    def test_who_comes_back_beside_a_count_that_shows_it_makes_up_for_no_second_one(self, broker: Broker) -> None:
        """As above, with two that were missing."""
        broker.counts(-4, -4)
        broker.figures.account(broker.now + 58.0, more=2)
        assert broker.counts(-2, 0, 0) == [False, False, True]

    def test_accounts_of_a_storm_are_kept_by_the_second(self, broker: Broker) -> None:
        """They add up all the same."""
        broker.counts(1000, 1000)
        for number in range(1000):
            broker.figures.account(broker.now + 10.0 + number / 100, fewer=1)
        assert len(broker.figures._accounts) <= 11
        assert broker.counts(0, 0) == [False, False]

    def test_accounts_that_no_count_ever_meets_are_bounded(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a census is never taken they would grow for ever; to forget leaves more in doubt, never less."""
        monkeypatch.setattr(doubt, "MAX_ACCOUNTS", 10)
        broker.figures.forget(10)
        for number in range(100):
            broker.figures.account(float(number), fewer=1)
        assert len(broker.figures._accounts) == 10


class TestApart:
    """The broker takes its count apart from its events."""

    @pytest.mark.parametrize("after", [-5.0, -1.0, 0.5, 5.0])
    def test_a_session_known_near_a_count_may_be_in_it_or_not(self, broker: Broker, after: float) -> None:
        """So the count shows nothing that would have to be accounted for."""
        at = broker.now + 60.0
        if after < 0:
            broker.knows(11, at + after)
            assert broker.counts(-1) == [False]
        else:
            assert broker.counts(1) == [False]
            broker.knows(11, at + after)
        assert broker.counts(0, 0) == [False, False]
        assert broker.figures.expects_none()

    @pytest.mark.parametrize("after", [-5.1, 5.1])
    def test_one_farther_off_cannot_be(self, broker: Broker, after: float) -> None:
        """Events and counts lie seconds apart, no more."""
        at = broker.now + 60.0
        if after < 0:
            broker.knows(11, at + after)
            broker.counts(-1)
        else:
            broker.counts(1)
            broker.knows(11, at + after)
        assert broker.counts(0, 0) == [False, True]

    def test_the_sizes_remembered_are_those_of_seconds(self, broker: Broker) -> None:
        """Memory is bounded, however much happens between two counts."""
        for number in range(10_000):
            broker.knows(10 + number % 2, broker.now + number / 100)
        assert len(broker.figures._changes) <= 101

    def test_changes_at_nearly_the_same_time_show_alike(self, broker: Broker) -> None:
        """A count beside them may be any of the sizes in between."""
        for known in (12, 9, 10):
            broker.knows(known, broker.now + 56.0 + known / 1000)
        assert broker.counts(2) == [False]
        for known in (12, 9, 10):
            broker.knows(known, broker.now + 56.0 + known / 1000)
        assert broker.counts(-1) == [False]
        assert broker.counts(0, 0) == [False, False]

    def test_what_was_known_before_does_not_last(self, broker: Broker) -> None:
        """A storm long ago, and a change now: the sizes of the storm show no more."""
        for known in (20, 5, 10):
            broker.knows(known, broker.now + 1.0 + known / 1000)
        broker.knows(11, broker.now + 57.0)
        broker.counts(5)
        assert broker.counts(0, 0) == [False, True]


class TestExpects:
    """Whether a match is no surprise."""

    def test_before_anything_was_counted(self) -> None:
        """There is nothing to compare with."""
        assert Broker().figures.expects_none()

    def test_after_what_accounts_for_it(self, broker: Broker) -> None:
        """And not before."""
        broker.counts(1, 1)
        assert not broker.figures.expects_none()
        broker.figures.account(broker.now + 10.0, fewer=1)
        assert broker.figures.expects_none()

    def test_not_while_a_range_is_all_that_is_known(self) -> None:
        """The counts so far lay near events: somebody may have been there unheard all the while."""
        broker = Broker()
        broker.knows(11, 58.0)
        broker.counts(0, 0)
        assert not broker.figures.expects_none()
        broker.counts(0)
        assert broker.figures.expects_none()

    def test_figures_forgotten_begin_anew(self, broker: Broker) -> None:
        """After the set was emptied there is nothing to compare with."""
        broker.counts(-2, -2)
        broker.figures.forget(10)
        assert broker.figures.expects_none()
        assert broker.counts(0, 0) == [False, False]


def test_names_are_doubted_until_confirmed() -> None:
    """Each by itself."""
    doubt = Doubt()
    doubt.raise_for(["a", "b"], 5.0)
    doubt.raise_for(["b", "c"], 7.0)
    doubt.confirm("a")
    doubt.confirm("unknown")
    assert doubt.names == {"b", "c"}
    assert doubt.since == 7.0
