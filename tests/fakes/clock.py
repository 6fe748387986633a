"""A clock that a test sets."""

from __future__ import annotations


class FakeClock:
    """The machine's clocks, moved by hand.

    Attributes:
        now: monotonic seconds.
        wall_ahead: how far the wall clock is ahead of the monotonic one, in seconds.
        boot: the boot's id.
    """

    def __init__(self, now: float = 1_000.0, *, wall_ahead: float = 1_800_000_000.0, boot: str = "boot-1") -> None:
        self.now = now
        self.wall_ahead = wall_ahead
        self.boot = boot

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
