"""What is known of the whole core at one time: by this, each device is judged."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from client_device_pruner.presence.devices import Device


@dataclass(frozen=True, slots=True)
class Input:
    """One of the inputs, for `status`.

    Attributes:
        in_use: whether observed time depends on it.
        alive: whether it works now.
        reason: what is wrong with it, or why it is not in use, in words; empty if all is well.
        remedy: what to do about that.
    """

    in_use: bool
    alive: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What all devices are judged by.

    Attributes:
        observed_seconds: the observed clock.
        sighted: names that were sighted since the last probe came back: their silence is zero.
        events_in_use: whether connection events are.
        count_in_use: whether the broker's count of connections is.
        unnamed: how many of the broker's connections cannot be named now; None if no figure tells.
        count_problem: why the count is no evidence for anybody now, in words; empty if it is.
        list_in_use: whether the broker's client list is.
        listed: the names on the latest client list; None if there is none in this run.
    """

    observed_seconds: float
    sighted: Container[str] = frozenset()
    events_in_use: bool = False
    count_in_use: bool = False
    unnamed: int | None = None
    count_problem: str = ""
    list_in_use: bool = False
    listed: Container[str] | None = None

    def is_present(self, device: Device) -> bool:
        """Whether it is on the latest client list, or, without a list, has a session."""
        if self.list_in_use:
            return self.listed is not None and device.name in self.listed
        return device.session

    def silent_seconds(self, device: Device) -> float:
        """The observed time since it was last sighted, present, or first listed; zero if it is present."""
        if device.name in self.sighted or self.is_present(device):
            return 0.0
        return max(0.0, self.observed_seconds - device.silent_since)
