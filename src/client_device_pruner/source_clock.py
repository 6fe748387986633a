"""The clock of a source: it advances only over what the source vouches for (DESIGN, model 2)."""

from __future__ import annotations


class SourceClock:
    """Sums the intervals between successive vouchers; all absences on the source are measured on it.

    All times are monotonic seconds given by the caller. `credit_seconds` never goes back and outlives the run;
    everything else belongs to one run.

    Args:
        max_quiet_seconds: two vouchers further apart than this vouch for nothing in between.
        credit_seconds: what earlier runs earned.
        floor_seconds: the reading at which every absence on this source begins at the earliest.
    """

    __slots__ = (
        "_last",
        "_latest",
        "_over",
        "_pauses",
        "_read",
        "credit_seconds",
        "floor_seconds",
        "max_quiet_seconds",
        "stretch_seconds",
    )

    def __init__(self, max_quiet_seconds: float, credit_seconds: float = 0.0, floor_seconds: float = 0.0) -> None:
        self.max_quiet_seconds = max_quiet_seconds
        self.credit_seconds = credit_seconds
        self.floor_seconds = floor_seconds
        self.stretch_seconds = credit_seconds
        self._last: float | None = None
        self._latest = self._read = float("-inf")
        self._over = False
        self._pauses: list[tuple[float, float]] = []

    def vouch(self, at: float) -> None:
        """Take a voucher: the interval since the one before counts if it is no longer than the longest quiet."""
        # Not even after a break: time that was counted is never counted again.
        if at <= self._latest:
            return
        last, self._latest = self._last, at
        if last is None or self._over or at - last > self.max_quiet_seconds:
            self.break_stretch()
            # A voucher can be older than a sign that was heard before it: of the time before that nothing counts.
            at = self._latest = max(at, self._read)
        else:
            pause = at - last
            self.credit_seconds += pause
            while self._pauses and self._pauses[-1][0] <= pause:
                self._pauses.pop()
            self._pauses.append((pause, self.credit_seconds))
        self._last, self._over = at, False

    def break_stretch(self) -> None:
        """End the unbroken stretch: what comes until the next voucher counts for nothing."""
        self._last = None
        self.stretch_seconds = self.credit_seconds
        self._pauses.clear()

    def restart_absences(self) -> None:
        """Let every absence on this source begin anew here."""
        self.floor_seconds = self.credit_seconds

    def reading(self, at: float) -> float:
        """The clock for a sign of life: the credit, and what the running interval may still earn.

        The sign lies between two vouchers; counting the interval so far keeps the absence from ever exceeding the
        true time since the sign.
        """
        self._read = max(self._read, at)
        if self._last is None or at < self._last:
            return self.credit_seconds
        if at - self._last > self.max_quiet_seconds:
            # Whatever voucher comes, and however long a quiet it may end by then, this sign's absence begins here.
            self._over = True
            return self.credit_seconds
        return self.credit_seconds + (at - self._last)

    def vouching(self, at: float) -> bool:
        """Whether it vouches now: credit earned since the last break, and the last voucher not too old."""
        return (
            self._last is not None
            and at - self._last <= self.max_quiet_seconds
            and self.credit_seconds > self.stretch_seconds
        )

    @property
    def last_voucher_seconds(self) -> float | None:
        """When the last voucher of the current stretch came."""
        return self._last

    @property
    def pauses(self) -> tuple[tuple[float, float], ...]:
        """The stretch's intervals between vouchers, each longer than all after it (see `Witness.pauses`)."""
        return tuple(self._pauses)
