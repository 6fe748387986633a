"""Observed time: the one clock on which all thresholds are measured (DESIGN, model 2)."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import Protocol

DAY_SECONDS = 86_400.0
MONTH_SECONDS = 30 * DAY_SECONDS
SAMPLE_SECONDS = 3_600.0  # how often a reading is kept for the share of the last month that was observed


class Clock(Protocol):
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds that only go forward, the same for all processes of one boot."""

    def wall(self) -> float:
        """Seconds since the epoch; for people to read, it decides nothing."""

    def boot_id(self) -> str:
        """Which boot of the host this is."""


class ObservedClock:
    """Advances from one probe to the next, while both come back and every input in use is alive."""

    def __init__(self, seconds: float = 0.0, advanced_at: float | None = None, hole_at: float = 0.0) -> None:
        self.seconds = seconds  # the reading
        self.advanced_at = advanced_at  # when it advanced last, in monotonic seconds; None if not in this boot
        self.hole_at = hole_at  # the reading at which it stood still for long; a device may have spoken unheard then
        # since when it has advanced without a break, in epoch seconds; None while it stands still
        self.since_wall: float | None = None
        self._last: tuple[float, float] | None = None  # when the last probe that counts was sent, and came back

    def returned(
        self, sent: float, received: float, *, interval_seconds: float, hole_seconds: float, alive: bool, wall: float
    ) -> None:
        """Take a probe that came back before its successor was due; `alive` is whether every input in use is.

        To stand still for more than `hole_seconds` is a hole, and so is a start of the host.
        """
        last, self._last = self._last, (sent, received) if alive else None
        farthest = 2 * interval_seconds
        if last is None or not alive or sent - last[0] > farthest or received - last[1] > farthest:
            self.since_wall = None
            return
        self.hole_at = self.hole(last[1], hole_seconds)
        self.seconds += received - last[1]
        self.advanced_at = received
        if self.since_wall is None:
            self.since_wall = wall

    def hole(self, at: float, hole_seconds: float) -> float:
        """The reading at the last hole, which may last still, at monotonic seconds `at`."""
        lasts = self.advanced_at is None or at - self.advanced_at > hole_seconds
        return self.seconds if lasts else self.hole_at

    def gap(self) -> bool:
        """Something was lost here: the time around it is not observed. Returns whether a probe had come back before."""
        began, self._last, self.since_wall = self._last is not None, None, None
        return began


class Shares:
    """How much of the last day and month was observed, by the wall clock, for people.

    The samples are (epoch seconds, observed seconds), oldest first.
    """

    def __init__(self, samples: Iterable[tuple[float, float]] = ()) -> None:
        self.samples = deque(samples)

    @property
    def since(self) -> float | None:
        """Since when anything is known, in epoch seconds."""
        return self.samples[0][0] if self.samples else None

    def sample(self, wall: float, observed_seconds: float) -> bool:
        """Keep a reading if the last one is old enough; returns whether one was kept."""
        if self.samples and 0 <= wall - self.samples[-1][0] < SAMPLE_SECONDS:
            return False
        # A wall clock that was set back leaves no readings from its future behind.
        while self.samples and self.samples[-1][0] > wall:
            self.samples.pop()
        while self.samples and self.samples[0][0] < wall - MONTH_SECONDS - SAMPLE_SECONDS:
            self.samples.popleft()
        self.samples.append((wall, observed_seconds))
        return True

    def share(self, period_seconds: float, wall: float, observed_seconds: float) -> float:
        """The share of the last so many seconds that was observed, 0 to 1; of less if less is known."""
        first = bisect_left(self.samples, wall - period_seconds - SAMPLE_SECONDS, key=lambda sample: sample[0])
        begun, observed_then = self.samples[first] if first < len(self.samples) else (wall, 0.0)
        if wall <= begun:
            return 0.0
        return min(1.0, max(0.0, (observed_seconds - observed_then) / (wall - begun)))
