"""EMQX's client list as a test or the simulation sets it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from client_device_pruner.config.emqx import Access
from client_device_pruner.presence.client_list import Answer, Asked, ClientList, ListFailed


class FakeClientLists:
    """`ClientLists` without HTTP: each answer is handed in at once, within the call, or when `release` is called."""

    def __init__(self, deliver: Callable[[Answer], None], monotonic: Callable[[], float]) -> None:
        self.connected: set[str] = set()  # the client ids that the broker has connected now; a test changes it
        self.failure = ""  # why calls fail; "" while they do not
        self.held = False  # while true, answers wait for `release`; they say what was so when the call was made
        self.asked: list[tuple[str, ...]] = []  # the names of each `ask` so far
        self._deliver = deliver
        self._monotonic = monotonic
        self._waiting: list[Answer] = []

    def fetch(self, access: Access) -> None:  # noqa: ARG002 - see `ClientLists`
        """Answer with all that are connected."""
        now = self._monotonic()
        if self.failure:
            self._answer(ListFailed(None, self.failure))
        else:
            self._answer(ClientList(frozenset(self.connected), now, now))

    def ask(self, access: Access, names: Sequence[str], request: int) -> None:  # noqa: ARG002 - see `ClientLists`
        """Answer which of the names are connected."""
        self.asked.append(tuple(names))
        if self.failure:
            self._answer(ListFailed(request, self.failure))
        else:
            self._answer(Asked(request, frozenset(self.connected.intersection(names))))

    def release(self) -> None:
        """Hand in the answers that wait."""
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            self._deliver(answer)

    def close(self) -> None:
        """Hand in nothing from now on."""
        self._deliver = lambda _answer: None

    def _answer(self, answer: Answer) -> None:
        self._waiting.append(answer)
        if not self.held:
            self.release()
