"""What simpler solutions would have done on the same site, with the same messages; each is judged by the same truth.

The last disconnect, in memory or persisted: whoever's last event is a disconnect older than the threshold by the wall
clock. The daily index: asks a fleet index once a day, to which a third of the devices are connected by themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from simulation.rates import THRESHOLD_DAYS

if TYPE_CHECKING:
    from simulation.devices import Device
    from simulation.site import Site

IN_MEMORY, PERSISTED, INDEX = (
    "last disconnect, in memory",
    "last disconnect, persisted",
    "daily poll of a connectivity index",
)


class Baselines:
    """None of them changes anything; whom one has taken off it spares for a threshold."""

    def __init__(self, site: Site) -> None:
        # Baseline → verdict of the truth → how many.
        self.tallies: dict[str, Counter[str]] = {name: Counter() for name in (IN_MEMORY, PERSISTED, INDEX)}
        self._site = site
        self._threshold = THRESHOLD_DAYS * site.pace.day
        self._left: dict[str, dict[str, float]] = {IN_MEMORY: {}, PERSISTED: {}}
        self._spared: dict[tuple[str, str], float] = {}

    def heard(self, name: str, kind: str) -> None:
        """A client event reached the core; takeovers are known, as the good ones of this kind know them."""
        if name in self._site.devices:
            for table in self._left.values():
                if kind == "connected" or name in self._site.broker.sessions:
                    table.pop(name, None)
                else:
                    table[name] = self._site.world.clock.wall()

    def restarted(self) -> None:
        """What is only in memory is lost with the process."""
        self._left[IN_MEMORY].clear()

    def daily(self) -> None:
        """Each looks once a day."""
        site = self._site
        wall = site.world.clock.wall()
        if site.component.running:
            for baseline, table in self._left.items():
                for name in [name for name, left in table.items() if wall - left >= self._threshold]:
                    del table[name]
                    self._prune(baseline, site.devices[name])
        for device in site.devices.values():
            there = device.last_contact if device.cloud_connected else None
            silent_since = device.associated_at if there is None else there
            if not (device.cloud_connected and device.connected) and site.world.now - silent_since >= self._threshold:
                self._prune(INDEX, device)

    def _prune(self, baseline: str, device: Device) -> None:
        now = self._site.world.now
        if self._spared.get((baseline, device.name), 0.0) <= now:
            verdict = self._site.judge.verdict(device)
            self._spared[baseline, device.name] = now + self._threshold if device.alive else float("inf")
            self.tallies[baseline][verdict] += 1
