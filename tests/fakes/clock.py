"""A clock that a test sets."""

from __future__ import annotations


class FakeClock:
    """The machine's clocks, moved by hand."""

    def __init__(self, now: float = 1_000.0, *, wall_ahead: float = 1_800_000_000.0) -> None:
        self.now = now  # monotonic seconds
        self.wall_ahead = wall_ahead  # by how many seconds the wall clock is ahead of the monotonic one
        self.boot = "boot-1"  # the boot's id

    def monotonic(self) -> float:
        """Seconds since the boot."""
        return self.now

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self.now + self.wall_ahead

    def boot_id(self) -> str:
        """Which boot this is."""
        return self.boot

    def advance(self, seconds: float) -> float:
        """Let time pass; returns the new monotonic time."""
        self.now += seconds
        return self.now
