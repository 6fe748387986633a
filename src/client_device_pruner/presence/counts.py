"""Unnamed connections: the broker's own count less the sessions that we know (DESIGN, model 6)."""

from __future__ import annotations

from collections import deque

from client_device_pruner.presence.devices import Device, Devices

QUIET_SECONDS = 3.0
"""A count is believed if no connection event was heard within so long of it: EMQX samples it apart from its events."""
THEN_SECONDS = (5.0, 600.0)
"""How long after a device left a figure tells how many unnamed connections there were then, at least and at most.

A figure from before, as old as the latter at most, while its session was known, may lower that: if it comes back
unheard before the next count, no other is without it. Alone it tells nothing, since others may have left with it.
"""
NOW_SECONDS = 600.0  # the highest figure of so long is how many there are now
KEPT_SECONDS = 3_600.0  # without one, the latest figure is, until it is so old
BELOW_SECONDS = 600.0  # a figure that stays below one for so long says that the end of a session was lost
BRIDGE = 1  # the bridge's connection, whose events are ignored, is always one of the unnamed


class Counts:
    """Works a figure out of each count, and keeps those of the last hour; times are monotonic seconds of this boot."""

    def __init__(self, devices: Devices, below_since: float | None = None) -> None:
        self.below_since = below_since  # since when the figure is below one
        self.heard_at: float | None = None  # when the last count arrived in this run
        self.scale = 1.0  # what the fixed times are multiplied by
        self._devices = devices
        self._figures: deque[tuple[float, int]] = deque()
        self._event_at = float("-inf")
        self._pending: tuple[float, int] | None = None
        self._left: dict[str, tuple[float, int | None]] = {}  # when each device left, and the lowest figure before

    def event(self, received: float) -> None:
        """A connection event was heard: a count that came just before may be of another time."""
        self.settle(received)
        self._pending = None
        self._event_at = received

    def left(self, device: Device, since: float, received: float) -> None:
        """A `disconnected` was heard of a device whose session was known since then."""
        since = max(since, received - THEN_SECONDS[1] * self.scale)
        before = min((unnamed for counted, unnamed in self._figures if counted > since), default=None)
        self._left.pop(device.name, None)
        self._left[device.name] = received, before
        # Without a count nothing else forgets them.
        while received - next(iter(self._left.values()))[0] > THEN_SECONDS[1] * self.scale:
            del self._left[next(iter(self._left))]

    def count(self, connections: int, sessions: int, received: float) -> None:
        """A count arrived, while so many sessions were known."""
        self.settle(received)
        self.heard_at = received
        if received - self._event_at > QUIET_SECONDS * self.scale:
            self._pending = (received, connections - sessions)

    def settle(self, at: float) -> None:
        """Believe the last count, if no event has come for long enough since."""
        if self._pending is None or at - self._pending[0] <= QUIET_SECONDS * self.scale:
            return
        (counted, unnamed), self._pending = self._pending, None
        self._figures.append((counted, unnamed))
        while self._figures[0][0] < counted - KEPT_SECONDS * self.scale:
            self._figures.popleft()
        if unnamed >= BRIDGE:
            self.below_since = None
        elif self.below_since is None:
            self.below_since = counted
        soonest, latest = (seconds * self.scale for seconds in THEN_SECONDS)
        for name, (left_at, before) in list(self._left.items()):
            if counted - left_at > latest:
                del self._left[name]
            elif counted - left_at >= soonest and (device := self._devices.by_name.get(name)):
                # Fewer than the bridge's shows that sessions are known which are none.
                figures = (figure for figure in (unnamed, before, device.then) if figure is not None)
                device.then = max(BRIDGE, min(figures))
                self._devices.touch(device)

    def gap(self) -> None:
        """A probe was lost: a device may have come back unheard, so only what is counted from here on tells of now."""
        self._left.clear()
        self._figures.clear()
        self._pending = None

    def now(self, at: float) -> int | None:
        """How many unnamed connections there are now; None if no figure of the last hour tells."""
        recent = [unnamed for counted, unnamed in self._figures if counted >= at - NOW_SECONDS * self.scale]
        if recent:
            return max(recent)
        if self._figures and self._figures[-1][0] >= at - KEPT_SECONDS * self.scale:
            return self._figures[-1][1]
        return None

    def is_below(self, at: float) -> bool:
        """Whether the end of a session was lost, so that a session is known that is none."""
        return self.below_since is not None and at - self.below_since >= BELOW_SECONDS * self.scale
