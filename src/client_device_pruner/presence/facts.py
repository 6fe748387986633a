"""What is known of the whole core at one time: by this, each device is judged."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from client_device_pruner.presence.devices import Device


@dataclass(frozen=True, slots=True)
class Input:
    """One of the inputs, for `status`."""

    in_use: bool  # whether observed time depends on it
    alive: bool  # whether it works now
    reason: str = ""  # what is wrong with it, or why it is not in use, in words; empty if all is well
    remedy: str = ""  # what to do about that


@dataclass(frozen=True, slots=True)
class Facts:
    """What all devices are judged by."""

    observed_seconds: float  # the observed clock
    hole_at: float = 0.0  # its reading at the last hole
    # names that were sighted since the last probe came back: their silence is zero
    sighted: Container[str] = frozenset()
    events_in_use: bool = False  # whether connection events are
    count_in_use: bool = False  # whether the broker's count of connections is
    unnamed: int | None = None  # how many of the broker's connections cannot be named now; None if no figure tells
    count_problem: str = ""  # why the count is no evidence for any device now, in words; empty if it is
    list_in_use: bool = False  # whether the broker's client list is
    listed: Container[str] | None = None  # the names on the latest client list; None if there is none in this run

    @property
    def tells_connections(self) -> bool:
        """Whether the broker tells anything about connections."""
        return self.list_in_use or self.count_in_use or self.events_in_use

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
