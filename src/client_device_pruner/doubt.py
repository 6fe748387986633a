"""Doubt: a count that went wrong and right again may be right by accident (DESIGN, model 3 and I4)."""

from __future__ import annotations

from collections.abc import Collection


class Doubt:
    """Which of the sessions known to be open need not be open any more.

    A census compares numbers. When somebody comes unheard, and later somebody else leaves unheard, they agree again:
    the one who left is believed present, and the one who came is believed gone. So a mismatch must go away the way
    it is known to: whoever came unheard leaves, or speaks. If it goes away otherwise, every session known at that
    moment is in doubt until it is confirmed: by its end, by its name's next `connected`, or by its device's word.
    Those that are confirmed were open all along; once all are, the set was right all along.
    """

    __slots__ = ("_accounted_down", "_accounted_up", "_before", "_lasting", "names", "since")

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.since = float("-inf")
        self.forget_figures()

    def forget_figures(self) -> None:
        """Begin the comparison of successive counts anew."""
        self._before = 0
        self._lasting = False
        self._accounted_down = self._accounted_up = 0

    def account(self, *, fewer: int = 0, more: int = 0) -> None:
        """Something was heard that makes the next surplus lower, or higher, by so much."""
        self._accounted_down += fewer
        self._accounted_up += more

    def accounts_for(self, surplus: int, *, event_heard: bool) -> bool:
        """Whether what was heard since the last count accounts for the new surplus.

        Args:
            surplus: how many more connections are counted than known.
            event_heard: whether any event lies between the two counts, or shortly before the first: the broker takes
                its count apart from its events, so that alone explains what a single count showed.
        """
        change = surplus - self._before
        if change * self._before >= 0:
            # It was right before, or is no better than before.
            return True
        if not self._lasting:
            return event_heard
        return -self._accounted_down <= change <= self._accounted_up

    def took(self, surplus: int) -> None:
        """The count was taken: the next one is compared with it."""
        self._lasting = surplus != 0 and self._before != 0
        self._before = surplus
        self._accounted_down = self._accounted_up = 0

    def raise_for(self, names: Collection[str], at: float) -> None:
        """Doubt the sessions of all these, from that monotonic moment."""
        self.names.update(names)
        self.since = at

    def confirm(self, name: str) -> None:
        """The name is there, or no longer believed to be."""
        self.names.discard(name)
