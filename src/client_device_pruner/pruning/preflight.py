"""The check before a batch: all that was sent before it is processed, and the broker names none of the devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from client_device_pruner.config.emqx import Access
from client_device_pruner.decisions.guards import Hold
from client_device_pruner.greengrass.link import Link, Probe
from client_device_pruner.presence.client_list import Asked, ClientLists, ListFailed
from client_device_pruner.pruning.core import Core

ASK_SECONDS = 120.0  # how long the broker may take to answer for up to 100 names, one call each


class PreflightCheck:
    """One check at a time; all times are monotonic seconds.

    With the client list in use, each device is asked for by name first. Then a probe is sent: when it comes back,
    whatever was sent before it has been taken in. A device that was sighted meanwhile is no longer due, as ever.
    """

    def __init__(self, core: Core, link: Link, lists: ClientLists, access: Callable[[], Access | None]) -> None:
        self.deadline = 0.0
        self._core = core
        self._link = link
        self._lists = lists
        self._access = access
        self._request = 0
        self._probe: Probe | None = None
        self._hold: Hold | None = None

    def begin(self, names: Sequence[str], at: float) -> None:
        """Begin to check these devices."""
        self._hold = self._probe = None
        if not self._core.facts().list_in_use:
            self._send_probe(at)
        elif access := self._access():
            self._request, self.deadline = self._request + 1, at + ASK_SECONDS
            self._lists.ask(access, names, self._request)
        else:
            self._miss("the client list, which is in use, cannot be asked")

    def answered(self, answer: Asked | ListFailed, at: float) -> None:
        """Take what the broker answered; an answer to another request is dropped."""
        if answer.request != self._request or self._probe or self._hold:
            return
        if isinstance(answer, ListFailed):
            self._miss(f"the client list did not say whether the devices are connected: {answer.reason}")
            return
        for name in answer.connected:
            self._core.presence.sight(name, "clientList")
        self._send_probe(at)

    def poll(self, at: float) -> tuple[bool, Hold | None]:
        """Whether it is over, and what is missing if anything is."""
        if self._probe and self._probe.returned:
            return True, None
        if self._hold is None and at >= self.deadline:
            what = "the probe did not come back" if self._probe else "the client list did not answer in time"
            self._miss(f"{what} in the check before the batch")
        return self._hold is not None, self._hold

    def _send_probe(self, at: float) -> None:
        # Where a heartbeat takes the probe's place, at least two come in each interval.
        self.deadline = at + max(1.0, self._core.settings.presence.probe_interval_seconds)
        self._probe = self._link.send_extra(at)

    def _miss(self, reason: str) -> None:
        self._hold = Hold("notObserving", reason, "nothing was disassociated; the next cycle tries again")
