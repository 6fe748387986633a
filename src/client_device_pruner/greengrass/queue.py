"""The bounded queue through which everything reaches the one thread that owns the state."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_MESSAGES = 20_000
MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Overflow:
    """So many messages were dropped here: the queue was full."""

    messages: int


class Queue(Generic[T]):
    """Keeps order and two bounds (case 23); where messages had to be dropped, an `Overflow` stands in their place."""

    def __init__(self) -> None:
        self._items: list[T | Overflow] = []
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, item: T, size_bytes: int) -> bool:
        """Add a message, unless the queue is full: then it is dropped, and this returns False; never blocks."""
        with self._changed:
            last = self._items[-1] if self._items else None
            has_room = len(self._items) < MOST_MESSAGES and self._bytes + size_bytes <= MOST_BYTES
            if has_room:
                self._bytes += size_bytes
                self._items.append(item)
            elif isinstance(last, Overflow):
                self._items[-1] = Overflow(last.messages + 1)
            else:
                self._items.append(Overflow(1))
            self._changed.notify()
            return has_room

    def put_always(self, item: T) -> None:
        """Add one of the few whose number is bounded by what they answer; never blocks."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def take_all(self, timeout_seconds: float) -> list[T | Overflow]:
        """Take everything that is there, in order; waits up to the time-out for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._items, timeout_seconds)
            items, self._items, self._bytes = self._items, [], 0
            return items
