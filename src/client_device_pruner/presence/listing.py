"""The latest client list of the broker, if it can be believed (DESIGN, model 5 and 7)."""

from __future__ import annotations

from collections.abc import Callable

from client_device_pruner.config.emqx import Access, NoAccess
from client_device_pruner.presence.client_list import ClientList
from client_device_pruner.presence.facts import Input

INTERVALS = 3  # a call must have succeeded within so many intervals (DESIGN, model 2)
_GONE_FOR_GOOD = 'if the list is switched off for good, set presence.clientList.url to ""'


class Listing:
    """Keeps the latest list that can be believed."""

    def __init__(self, *, in_use: bool) -> None:
        self.in_use = in_use  # whether observed time depends on the list
        self.latest: ClientList | None = None  # the latest list of this run that was believed
        self.access: Access | NoAccess | None = None  # None before the configuration says how to get it
        self._failure = ""

    @property
    def _off(self) -> bool:
        return isinstance(self.access, NoAccess) and self.access.off

    def use(self, access: Access | NoAccess) -> None:
        """Take over how to get the list; one that is switched off is forgotten."""
        self.access = access
        if self._off:
            self.in_use, self.latest, self._failure = False, None, ""

    def take(self, answer: ClientList, is_known_open: Callable[[str], bool]) -> bool:
        """Take an answer, and return True, unless it cannot be believed.

        `is_known_open`: whether a name is the bridge's, or has a session that was open before the call and still is.
        """
        if self.access is None or self._off:
            return False
        if not any(map(is_known_open, answer.names)):
            self._failure = "the list names neither the bridge nor a session that is known to be open"
            return False
        self.latest, self._failure, self.in_use = answer, "", True
        return True

    def failed(self, reason: str) -> None:
        """The call for the list failed."""
        self._failure = reason

    def input(self, at: float, interval_seconds: float) -> Input:
        """The list as an input, at monotonic seconds `at`."""
        why, remedy = "", ""
        if isinstance(self.access, NoAccess):
            why, remedy = self.access.reason, self.access.finding.remedy if self.access.finding else ""
        reason = why or self._failure
        if not self.in_use:
            return Input(in_use=False, alive=True, reason=reason, remedy=remedy)
        if why or self.latest is None or at - self.latest.ended > INTERVALS * interval_seconds:
            remedy = "\n".join(filter(None, (remedy, _GONE_FOR_GOOD)))
            return Input(in_use=True, alive=False, reason=reason or "it has not answered yet", remedy=remedy)
        return Input(in_use=True, alive=True, reason=reason)
