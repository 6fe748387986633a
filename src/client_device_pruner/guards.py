"""The guards that hold pruning back, and what is said when one begins or stops to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from client_device_pruner.model import Hold

PLANNED = ("approval", "outage", "maxPerCycle", "maxPercentPerDay")
"""Guards that a cycle's plan decides anew each time; all others stand until what they are about has changed."""


class Guards:
    """Knows which guards hold; each change becomes one event.

    Args:
        event: publishes an event of the contract.
    """

    def __init__(self, event: Callable[..., None]) -> None:
        self._event = event
        self._holds: dict[str, Hold] = {}
        self._unsaid: set[str] = set()
        # What held the last moment up is no state of its source, which may vouch again by now.
        self._obstacles: set[Hold] = set()

    def expect(self, hold: Hold) -> None:
        """Let a guard hold without a word, until `hold` says it or `release` ends it."""
        if hold.guard not in self._holds:
            self._unsaid.add(hold.guard)
        self._holds[hold.guard] = hold

    def hold(self, hold: Hold) -> None:
        """Let a guard hold; said once, and again only if another plan waits."""
        before = self._holds.get(hold.guard)
        self._holds[hold.guard] = hold
        if before is None or before.plan != hold.plan or hold.guard in self._unsaid:
            self._unsaid.discard(hold.guard)
            self._event("held", **_data(hold))

    def release(self, guard: str, reason: str = "") -> None:
        """Let a guard no longer hold, and say why if there is more to say than why it held."""
        hold = self._holds.pop(guard, None)
        self._unsaid.discard(guard)
        if hold is not None:
            self._event("released", **{**_data(hold), "reason": reason or hold.reason, "remedy": "nothing to do"})

    def planned(self, holds: Iterable[Hold]) -> None:
        """Take what a cycle came to: guards of a plan or a last moment that it does not name no longer hold."""
        holding = {hold.guard: hold for hold in holds}
        for guard in PLANNED:
            if guard in holding:
                self.hold(holding[guard])
            else:
                self.release(guard)
        obstacles = {hold for hold in holding.values() if hold.guard.startswith("source:")}
        for hold in self._obstacles - obstacles:
            self._event("released", **{**_data(hold), "remedy": "nothing to do"})
        for hold in obstacles - self._obstacles:
            self._event("held", **_data(hold))
        self._obstacles = obstacles

    def holds(self, guard: str) -> bool:
        """Whether a guard holds now."""
        return guard in self._holds

    @property
    def in_force(self) -> tuple[Hold, ...]:
        """All that hold now."""
        return (*self._holds.values(), *sorted(self._obstacles, key=lambda hold: hold.guard))

    @property
    def standing(self) -> tuple[Hold, ...]:
        """Those that hold everything back, whatever is due."""
        return tuple(
            hold for name, hold in self._holds.items() if name not in PLANNED and not name.startswith("source:")
        )


def _data(hold: Hold) -> dict[str, Any]:
    data = {"guard": hold.guard, "reason": hold.reason, "remedy": hold.remedy}
    return {**data, "plan": hold.plan} if hold.plan else data
