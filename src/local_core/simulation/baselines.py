"""What simpler solutions would have done on the same site, with the same messages."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from local_core.simulation.devices import DAY, Device

if TYPE_CHECKING:
    from local_core.simulation.world import World

THRESHOLD_SECONDS = 30 * DAY
LAST_DISCONNECT = "last disconnect, in memory"
PERSISTED = "last disconnect, persisted"
INDEX = "daily poll of a connectivity index"


class Baselines:
    """Three of them; none changes anything, each is judged by the truth, and spares whom it pruned for a while.

    (a) takes the events that the component receives, and prunes whose last one is a disconnect older than the
    threshold by the wall clock; (b) keeps its table across restarts; (c) asks an index of the devices' own
    connections to the cloud once a day, which a third of the devices have: whoever is not connected there, and has not
    been for the threshold (or never), is pruned.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.tallies: dict[str, Counter[str]] = {name: Counter() for name in (LAST_DISCONNECT, PERSISTED, INDEX)}
        self._left: dict[str, dict[str, float]] = {LAST_DISCONNECT: {}, PERSISTED: {}}
        self._spared: dict[tuple[str, str], float] = {}

    def heard(self, name: str, kind: str) -> None:
        """An event reached the core."""
        for table in self._left.values():
            if kind == "connected":
                table.pop(name, None)
            elif name not in self._world.sessions:
                # It knows takeovers, as the good ones of this kind do.
                table[name] = self._world.clock.wall()

    def restarted(self) -> None:
        """What is only in memory is lost with the process."""
        self._left[LAST_DISCONNECT].clear()

    def daily(self) -> None:
        """Each looks once a day."""
        world = self._world
        if world.component is not None:
            for baseline, table in self._left.items():
                wall = world.clock.wall()
                for name in [name for name, left in table.items() if wall - left >= THRESHOLD_SECONDS]:
                    del table[name]
                    self._prune(baseline, name)
        for device in list(world.devices.values()):
            if self._index_says_gone(device):
                self._prune(INDEX, device.name)

    def _index_says_gone(self, device: Device) -> bool:
        world = self._world
        if device.cloud_connected and device.name in world.sessions:
            return False
        last = device.last_there if device.cloud_connected and device.came else device.associated_at
        return world.now - last >= THRESHOLD_SECONDS

    def _prune(self, baseline: str, name: str) -> None:
        now = self._world.now
        if self._spared.get((baseline, name), 0.0) > now:
            return
        verdict = self._world.judge.truth(name, THRESHOLD_SECONDS)
        self._spared[baseline, name] = float("inf") if verdict == "gone" else now + THRESHOLD_SECONDS
        self.tallies[baseline][verdict] += 1
