"""The bounded queue: order is kept, and where messages were dropped a gap says so."""

from __future__ import annotations

import threading

from client_device_pruner.inbox import Gap, Inbox


def test_order_is_kept() -> None:
    """What came first is taken first, whichever way it came."""
    inbox: Inbox[int] = Inbox(10)
    inbox.put(1)
    inbox.put_always(2)
    inbox.put(3)
    assert list(inbox.take_all(0.0)) == [1, 2, 3]
    assert list(inbox.take_all(0.0)) == []


def test_what_does_not_fit_is_dropped_and_leaves_one_gap() -> None:
    """Memory is bounded; a gap stands where the lost messages would, and says how many they were."""
    inbox: Inbox[int] = Inbox(3)
    for number in range(10):
        inbox.put(number)
    assert list(inbox.take_all(0.0)) == [0, 1, 2, Gap(7)]
    inbox.put(10)
    assert list(inbox.take_all(0.0)) == [10]


def test_the_few_that_must_arrive_always_fit() -> None:
    """An answer is never dropped, and comes after the gap that lies before it."""
    inbox: Inbox[int] = Inbox(2)
    for number in range(5):
        inbox.put(number)
    inbox.put_always(9)
    inbox.put(10)
    assert list(inbox.take_all(0.0)) == [0, 1, Gap(3), 9, Gap(1)]


def test_a_message_wakes_the_waiting_thread() -> None:
    """Who waits gets the first message as soon as it comes."""
    inbox: Inbox[int] = Inbox(2)
    taken: list[object] = []
    for put in (inbox.put, inbox.put_always):
        waiter = threading.Thread(target=lambda: taken.extend(inbox.take_all(30.0)))
        waiter.start()
        put(7)
        waiter.join(20.0)
        assert not waiter.is_alive()
    assert taken == [7, 7]


def test_many_threads_lose_nothing() -> None:
    """Each message is taken once, in its sender's order."""
    inbox: Inbox[tuple[int, int]] = Inbox(100_000)

    def send(sender: int) -> None:
        for number in range(2_000):
            inbox.put((sender, number))

    senders = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in senders:
        thread.start()
    taken: list[object] = []
    while any(thread.is_alive() for thread in senders):
        taken.extend(inbox.take_all(0.01))
    taken.extend(inbox.take_all(0.0))
    for sender in range(4):
        assert [item for item in taken if isinstance(item, tuple) and item[0] == sender] == [
            (sender, number) for number in range(2_000)
        ]
