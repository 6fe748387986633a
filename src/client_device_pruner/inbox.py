"""The bounded queue through which everything reaches the one thread that owns the state."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Gap(NamedTuple):
    """So many messages were lost here: the queue was full."""

    messages: int


class Inbox(Generic[T]):
    """Keeps order and a bound; where messages had to be dropped, a `Gap` stands in their place.

    Args:
        limit: messages held at most (DESIGN, shape: an overflow is a gap, so memory is bounded).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[T | Gap] = deque()
        self._changed = threading.Condition()
        self._dropped = 0

    def put(self, item: T) -> None:
        """Add a message of the many, which is dropped when the queue is full; never blocks."""
        with self._changed:
            if len(self._items) >= self._limit:
                self._dropped += 1
                return
            self._mark_gap()
            self._items.append(item)
            if len(self._items) == 1:
                self._changed.notify()

    def put_always(self, item: T) -> None:
        """Add one of the few whose number is bounded by what they answer."""
        with self._changed:
            self._mark_gap()
            self._items.append(item)
            self._changed.notify()

    def take_all(self, timeout_seconds: float) -> deque[T | Gap]:
        """Everything that is there, in order; waits up to the time-out for the first."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not self._items and not self._dropped:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            self._mark_gap()
            items, self._items = self._items, deque()
            return items

    def _mark_gap(self) -> None:
        if self._dropped:
            self._items.append(Gap(self._dropped))
            self._dropped = 0
