"""The bounded queue through which everything reaches the one thread that owns the state."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_MESSAGES = 20_000
MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Overflow:
    """So many messages were dropped here: the queue was full."""

    messages: int


class Queue(Generic[T]):
    """Keeps order and two bounds; where messages had to be dropped, an `Overflow` stands in their place.

    Args:
        most_messages: messages held at most.
        most_bytes: bytes held at most, by the sizes that `put` is told (case 23).
    """

    def __init__(self, most_messages: int = MOST_MESSAGES, most_bytes: int = MOST_BYTES) -> None:
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._items: list[T | Overflow] = []
        self._bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()

    def put(self, item: T, size_bytes: int) -> None:
        """Add a message, which is dropped when the queue is full; never blocks."""
        with self._changed:
            if len(self._items) >= self._most_messages or self._bytes + size_bytes > self._most_bytes:
                self._dropped += 1
            else:
                self._bytes += size_bytes
                self._add(item)
            self._changed.notify()

    def put_always(self, item: T) -> None:
        """Add one of the few whose number is bounded by what they answer; never blocks."""
        with self._changed:
            self._add(item)
            self._changed.notify()

    def take_all(self, timeout_seconds: float) -> list[T | Overflow]:
        """Take everything that is there, in order; waits up to the time-out for the first."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not self._items and not self._dropped:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            self._mark_overflow()
            items, self._items, self._bytes = self._items, [], 0
            return items

    def _add(self, item: T) -> None:
        self._mark_overflow()
        self._items.append(item)

    def _mark_overflow(self) -> None:
        if self._dropped:
            self._items.append(Overflow(self._dropped))
            self._dropped = 0
