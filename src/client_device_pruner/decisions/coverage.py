"""Coverage: how many devices would be removed once they are gone, and why the others would not."""

from __future__ import annotations

from collections import Counter

from client_device_pruner.config.settings import Settings
from client_device_pruner.decisions.explain import why_missing
from client_device_pruner.decisions.policy import Missing, Verdict
from client_device_pruner.presence.devices import Device
from client_device_pruner.presence.facts import Facts


class Coverage:
    """How many devices are associated, how many would be removed once gone, and for what reasons others would not."""

    def __init__(self) -> None:
        self.associated = 0
        self._why: Counter[str] = Counter()

    def add(self, verdict: Verdict, device: Device, settings: Settings, facts: Facts) -> None:
        """Count one device."""
        self.associated += 1
        if why := _obstacle(verdict, device, settings, facts):
            self._why[why] += 1

    @property
    def removable(self) -> int:
        """How many would be removed once they are gone."""
        return self.associated - sum(self._why.values())

    @property
    def reasons(self) -> list[str]:
        """Why the others would not, the most frequent reason first."""
        return [f"{number} cannot be removed: {why}" for why, number in self._why.most_common()]


def _obstacle(verdict: Verdict, device: Device, settings: Settings, facts: Facts) -> str:
    if settings.is_protected(device.name):
        return "protectedDevices names them"
    if verdict.patience_seconds is None:
        return "they were never seen, and neverSeenThreshold is empty"
    if verdict.missing is Missing.UNNAMED and facts.is_present(device):
        return ""  # it will have its own figure when it leaves
    return why_missing(verdict.missing, facts)
