"""Client devices that really live: they connect, speak, die, move, are replaced, or stay away for a while."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

DAY = 86_400.0

STYLES: tuple[tuple[str, int], ...] = (
    ("everySecond", 12),
    ("hourly", 22),
    ("sixHourly", 12),
    ("silent", 12),
    ("flapping", 6),
    ("daily", 18),
    ("weekly", 10),
    ("seasonal", 8),
)
"""How devices live, and how many of a hundred live so (a mixture made up to hold every kind, not a census of sites)."""

PERIODS = {"hourly": 3600.0, "sixHourly": 21_600.0, "flapping": 14_400.0, "seasonal": 7200.0}
"""How often those speak that are not simulated by the minute, in seconds."""
VISITS = {"daily": DAY, "weekly": 7 * DAY}


def dice(seed: object, what: str) -> Random:
    """A stream of chances of its own, the same each time."""
    return Random(f"{seed}/{what}")  # noqa: S311 - to be repeated is its purpose


@dataclass(slots=True)
class Device:
    """The truth about one device.

    `wants` says whether it means to be connected now (and is, if it can); `last_there` when it last was.
    `away_since` is when it went of its own will, for longer than it usually does, until it is connected again (a core
    without power it finds as nobody does); where nothing but its words can tell that it is back, until it speaks.
    """

    name: str
    style: str
    rng: Random
    alive: bool = True
    came: bool = False
    wants: bool = False
    last_there: float = 0.0
    died: float | None = None
    away_since: float | None = None
    cloud_connected: bool = False
    last_number: int = 0
    number: int = 0
    associated_at: float = 0.0
    talk: int = 0
    dead_clocks: dict[str, float] = field(default_factory=dict)

    @property
    def visits(self) -> bool:
        """Whether it comes, says a word and goes."""
        return self.style in VISITS

    @property
    def keeps_coming(self) -> bool:
        """Whether it lives on this core and keeps to its ways."""
        return self.alive and self.came and self.away_since is None


def make(name: str, rng: Random) -> Device:
    """A device of some style; a third has a connection of its own to the cloud as well."""
    styles, weights = zip(*STYLES, strict=True)
    style = rng.choices(styles, weights)[0]
    return Device(name, style, rng, cloud_connected=rng.random() < 1 / 3)
