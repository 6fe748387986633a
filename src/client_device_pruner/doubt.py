"""Doubt: counts that agree again may do so by accident (DESIGN, model 3 and I4)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

MAX_ACCOUNTS = 3_600
"""What was heard in so many seconds is remembered until the next count; of more, the latest."""
CHANGES_PART = 0.01
"""Changes of what is known within so much of `apart_seconds` are one: a storm takes no more room than its time."""


class Figures:
    """Follows by how many the counts of one node exceed the sessions known there.

    A census compares numbers. When somebody comes unheard, and later somebody else leaves unheard, they agree again:
    the one who left is believed present, and the one who came is believed gone. So what is believed of the *surplus*
    changes only by what is heard: whoever came unheard leaves, or speaks. When counts show that it shrank otherwise,
    every session known at that moment is in doubt (see `Doubt`).

    A broker takes its count apart from its events, by `apart_seconds` at most. So a count shows a range: it is
    compared with the most and the fewest sessions that were known so shortly before and after it, and judged when the
    next one comes.
    """

    __slots__ = ("_accounts", "_believed", "_changes", "_count", "_fewest", "_known", "_most")

    def __init__(self) -> None:
        self.forget(0)

    def forget(self, known: int) -> None:
        """Begin anew, with so many sessions known: what was counted before was compared with another set."""
        self._believed: tuple[int, int] | None = None
        self._count: tuple[float, int] | None = None
        self._most = self._fewest = self._known = known
        self._changes = deque[tuple[float, int, int]]()
        self._accounts = deque[tuple[float, int, int]](maxlen=MAX_ACCOUNTS)

    def knows(self, known: int, at: float, apart_seconds: float) -> None:
        """So many sessions are known from that moment."""
        before, self._known = self._known, known
        if known == before:
            return
        changes, fewest, most = self._changes, min(before, known), max(before, known)
        if changes and at - changes[-1][0] < apart_seconds * CHANGES_PART:
            began, fewest_then, most_then = changes.pop()
            changes.append((began, min(fewest, fewest_then), max(most, most_then)))
        else:
            self._forget_changes(at, apart_seconds)
            changes.append((at, fewest, most))
        if self._count is not None and at <= self._count[0] + apart_seconds:
            self._most, self._fewest = max(self._most, known), min(self._fewest, known)

    def account(self, at: float, *, fewer: int = 0, more: int = 0) -> None:
        """Something was heard that may have made the surplus lower, or higher, by so much."""
        if self._accounts and at - self._accounts[-1][0] < 1.0:
            # A storm takes no more room than its seconds.
            began, less, greater = self._accounts.pop()
            self._accounts.append((began, less + fewer, greater + more))
        else:
            self._accounts.append((at, fewer, more))

    def take(self, clients: int, at: float, apart_seconds: float) -> bool:
        """Take a count of the clients connected; True if what the one before it shows is not accounted for."""
        unaccounted = self._judge(apart_seconds)
        self._forget_changes(at, apart_seconds)
        self._fewest = min((fewest for _at, fewest, _most in self._changes), default=self._known)
        self._most = max((most for _at, _fewest, most in self._changes), default=self._known)
        self._count = (at, clients)
        return unaccounted

    def expects_none(self) -> bool:
        """Whether by what was heard since the last count that was judged a surplus of 0 is no surprise."""
        if self._believed is None:
            return True
        low, high = self._shifted(float("inf"), 0.0)
        # A range is no knowledge: it may have been wrong all the while.
        return self._believed[0] == self._believed[1] and low <= 0 <= high

    def _forget_changes(self, at: float, apart_seconds: float) -> None:
        """Let those go that lie too far back to show in a count taken now."""
        while self._changes and self._changes[0][0] < at - apart_seconds * (1 + CHANGES_PART):
            self._changes.popleft()

    def _judge(self, apart_seconds: float) -> bool:
        if self._count is None:
            return False
        at, clients = self._count
        shown = (clients - self._most, clients - self._fewest)
        if self._believed is None:
            self._believed, unaccounted, used = shown, False, (0, 0)
        else:
            before, (low, high) = self._believed, self._shifted(at, apart_seconds)
            both = (max(low, shown[0]), min(high, shown[1]))
            self._believed = both if both[0] <= both[1] else shown
            unaccounted = (before[0] > 0 and shown[1] < low) or (before[1] < 0 and shown[0] > high)
            used = (before[0] - self._believed[1], self._believed[0] - before[1])
        self._use(*used, at, apart_seconds)
        return unaccounted

    def _use(self, fewer: int, more: int, at: float, apart_seconds: float) -> None:
        """Let accounts go that the count shows; those near it may show in the next one, but for what shows already."""
        accounts, self._accounts = self._accounts, deque(maxlen=MAX_ACCOUNTS)
        for when, less, greater in accounts:
            used = (0, 0)
            if when <= at + apart_seconds:
                used = (min(max(fewer, 0), less), min(max(more, 0), max(greater, 0)))
                fewer, more = fewer - used[0], more - used[1]
            if when > at - apart_seconds:
                self._accounts.append((when, less - used[0], greater - used[1]))

    def _shifted(self, until: float, apart_seconds: float) -> tuple[int, int]:
        """What is believed of the surplus then, by what was heard since the last count that was judged."""
        low, high = self._believed or (0, 0)
        for at, fewer, more in self._accounts:
            if at <= until + apart_seconds:
                low, high = low - fewer, high + more
        return low, high


class Doubt:
    """Whose sessions, known to be open, need not be open any more.

    Each is in doubt until it is confirmed: by its end, by its name's next `connected`, or by its device's word. Those
    that are confirmed were open all along; once all are, the set was right all along.
    """

    __slots__ = ("names", "since")

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.since = float("-inf")

    def raise_for(self, names: Collection[str], at: float) -> None:
        """Doubt the sessions of all these, from that monotonic moment."""
        self.names.update(names)
        self.since = at

    def confirm(self, name: str) -> None:
        """The name is there, or no longer believed to be."""
        self.names.discard(name)
