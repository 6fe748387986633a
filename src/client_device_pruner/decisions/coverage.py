"""Coverage: how many devices would be removed once they are gone, and why the others would not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from client_device_pruner.config.settings import Settings
from client_device_pruner.decisions.policy import Missing, Verdict
from client_device_pruner.presence.devices import Device
from client_device_pruner.presence.facts import Facts

_LIST = "the broker's client list would tell"
_WHY = {
    Missing.NO_LIST: "no client list has come from the broker yet",
    Missing.NO_COUNT: "the broker announces connections, but its connection count or the announcements are not heard",
    Missing.UNNAMED: f"the broker has more connections that cannot be named than when they left; {_LIST}",
    Missing.FEW_MESSAGES: "the broker announces no connections, and too few of their messages were heard",
    Missing.NEVER_HEARD: "the broker announces no connections, and they were never heard",
}


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many devices are associated, how many would be removed once gone, and for what reasons others would not."""

    associated: int
    removable: int
    reasons: tuple[str, ...]


class Tally:
    """Counts the verdicts into a coverage, one device after the other."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        self._settings = settings
        self._facts = facts
        self._associated = 0
        self._why: Counter[str] = Counter()

    def add(self, verdict: Verdict, device: Device) -> None:
        """Count one device."""
        self._associated += 1
        if why := self._obstacle(verdict, device):
            self._why[why] += 1

    def _obstacle(self, verdict: Verdict, device: Device) -> str:
        if self._settings.is_protected(device.name):
            return "protectedDevices names them"
        if verdict.patience_seconds is None:
            return "they were never seen, and neverSeenThreshold is empty"
        missing = verdict.missing
        # a device that is connected will have its own figure when it leaves.
        if missing is Missing.NONE or (missing is Missing.UNNAMED and self._facts.is_present(device)):
            return ""
        return self._facts.count_problem if missing is Missing.COUNT_PROBLEM else _WHY[missing]

    def coverage(self) -> Coverage:
        """What was counted."""
        reasons = tuple(f"{number} cannot be removed: {why}" for why, number in self._why.most_common())
        return Coverage(self._associated, self._associated - sum(self._why.values()), reasons)
