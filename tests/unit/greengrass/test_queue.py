"""The queue keeps order and two bounds."""

from __future__ import annotations

import threading

import pytest

from client_device_pruner.greengrass import queue as bounds
from client_device_pruner.greengrass.queue import Overflow, Queue


def test_too_many_messages_leave_an_overflow_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was dropped is counted where it would have stood; news is never dropped."""
    monkeypatch.setattr(bounds, "MOST_MESSAGES", 2)
    queue: Queue[str] = Queue()
    assert [queue.put(item, 1) for item in ("a", "b", "c", "d")] == [True, True, False, False]
    queue.put_always("news")
    assert queue.take_all(0) == ["a", "b", Overflow(2), "news"]
    queue.put("e", 1)
    assert queue.take_all(0) == ["e"]


def test_large_messages_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 23: a flood of large messages is dropped, however few they are; small ones still fit."""
    monkeypatch.setattr(bounds, "MOST_BYTES", 250_000)
    queue: Queue[str] = Queue()
    for _ in range(10):
        queue.put("large", 100_000)
    queue.put("small", 10)
    assert queue.take_all(0) == ["large", "large", Overflow(8), "small"]
    queue.put("huge", 250_001)
    assert queue.take_all(0) == [Overflow(1)]
    queue.put("large", 250_000)
    assert queue.take_all(0) == ["large"]


def test_the_taker_wakes_for_the_first_item() -> None:
    """An item from another thread ends the wait."""
    queue: Queue[str] = Queue()
    thread = threading.Timer(0.01, queue.put, ("late", 4))
    thread.start()
    assert queue.take_all(60) == ["late"]
    thread.join()
