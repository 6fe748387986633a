"""When counts that agree again are believed: what was heard has to account for it."""

from __future__ import annotations

import pytest

from client_device_pruner.doubt import Doubt


@pytest.fixture
def doubt() -> Doubt:
    """Nobody is in doubt, and no count was taken."""
    return Doubt()


def took(doubt: Doubt, *surpluses: int) -> None:
    """Take these counts one after the other."""
    for surplus in surpluses:
        doubt.took(surplus)


class TestAccounts:
    """Whether what was heard accounts for a mismatch that shrinks."""

    @pytest.mark.parametrize(
        ("surpluses", "then"), [((), 1), ((0,), 1), ((0,), -3), ((1,), 1), ((1, 1), 4), ((-1,), -2)]
    )
    def test_what_gets_no_better_needs_no_account(self, doubt: Doubt, surpluses: tuple[int, ...], then: int) -> None:
        """A mismatch holds the clock by itself."""
        took(doubt, *surpluses)
        assert doubt.accounts_for(then, event_heard=False)

    @pytest.mark.parametrize("surplus", [1, -1, 7])
    def test_a_single_count_is_explained_by_any_event_near_it(self, doubt: Doubt, surplus: int) -> None:
        """The broker takes its count apart from its events."""
        took(doubt, 0, surplus)
        assert doubt.accounts_for(0, event_heard=True)
        assert not doubt.accounts_for(0, event_heard=False)

    def test_what_two_counts_have_shown_is_there(self, doubt: Doubt) -> None:
        """An event near the last of them does not make it go away."""
        took(doubt, 0, 1, 1)
        assert not doubt.accounts_for(0, event_heard=True)

    def test_who_came_unheard_accounts_by_going_or_speaking(self, doubt: Doubt) -> None:
        """One each, and no more than that."""
        took(doubt, 0, 2, 2)
        doubt.account(fewer=1)
        assert doubt.accounts_for(1, event_heard=True)
        assert not doubt.accounts_for(0, event_heard=True)
        doubt.account(fewer=1)
        assert doubt.accounts_for(0, event_heard=True)

    def test_who_went_unheard_accounts_by_coming_back(self, doubt: Doubt) -> None:
        """A known name that connects was perhaps gone: its coming makes up for one that was missing."""
        took(doubt, 0, -1, -1)
        assert not doubt.accounts_for(0, event_heard=True)
        doubt.account(more=1)
        assert doubt.accounts_for(0, event_heard=True)
        assert not doubt.accounts_for(1, event_heard=True)

    def test_each_account_serves_one_count(self, doubt: Doubt) -> None:
        """What the last count has shown already accounts for nothing later."""
        took(doubt, 0, 1, 1)
        doubt.account(fewer=1)
        doubt.took(1)
        assert not doubt.accounts_for(0, event_heard=True)

    def test_figures_forgotten_begin_anew(self, doubt: Doubt) -> None:
        """After the set was emptied there is nothing to compare with."""
        took(doubt, 0, -2, -2)
        doubt.forget_figures()
        assert doubt.accounts_for(0, event_heard=False)


def test_names_are_doubted_until_confirmed(doubt: Doubt) -> None:
    """Each by itself."""
    doubt.raise_for(["a", "b"], 5.0)
    doubt.raise_for(["b", "c"], 7.0)
    doubt.confirm("a")
    doubt.confirm("unknown")
    assert doubt.names == {"b", "c"}
    assert doubt.since == 7.0
