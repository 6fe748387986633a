"""What goes wrong when: drawn from a seed, so that a plan can be replayed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

_PAUSE_SECONDS = (2.0, 10.0)  # from the end of one fault to the next
_KINDS: dict[str, tuple[int, float, float]] = {
    # how often among all, and how long it lasts at least and at most, in units of the source's maxQuiet
    "kill": (4, 0.0, 0.0),
    "suspend": (4, 0.1, 3.0),
    "ipc dropped": (3, 0.0, 0.0),
    "ipc muted": (2, 0.0, 0.0),
    "ipc frozen": (3, 0.2, 2.0),
    "bridge away": (10, 0.1, 3.0),
    "broker restarted": (6, 0.05, 1.0),
    "broker's clock jumps": (1, 0.0, 0.0),
    "wall clock jumps": (2, 0.0, 0.0),
    "disk full": (3, 0.5, 3.0),
    "cloud throttles": (2, 1.0, 3.0),
    "cloud fails": (2, 1.0, 3.0),
    "cloud hangs": (1, 1.0, 2.0),
    "cloud is slow": (2, 1.0, 2.0),
    "cloud answers garbage": (2, 1.0, 2.0),
    "cloud lists nobody": (1, 1.0, 2.0),
    "cloud's answer is lost": (3, 1.0, 3.0),
    "cloud refuses entries": (2, 1.0, 3.0),
    "no credentials": (1, 1.0, 2.0),
    "configuration refused": (2, 0.5, 2.0),
    "roll call on or off": (4, 0.0, 0.0),
    "devices frozen": (3, 0.2, 2.0),
}
KILLS = ("kill",)
"""What ends the process: not in the middle third, so that one process lives long enough to be measured."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault.

    Attributes:
        at_seconds: when, since the beginning.
        kind: what.
        seconds: how long it lasts.
        number: from which its details are drawn.
    """

    at_seconds: float
    kind: str
    seconds: float
    number: int

    def __str__(self) -> str:
        """For people."""
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at_seconds:7.1f} s  {self.kind}{lasting}"


def make_plan(seed: int, seconds: float, max_quiet_seconds: float) -> tuple[Step, ...]:
    """Draw a plan of so many seconds; the same seed gives the same."""
    random = Random(seed)  # noqa: S311 - a plan is no secret
    kinds, weights = list(_KINDS), [weight for weight, _, _ in _KINDS.values()]
    steps, at = [], 0.0
    while (at := at + random.uniform(*_PAUSE_SECONDS)) < seconds:
        kind = random.choices(kinds, weights)[0]
        _, least, most = _KINDS[kind]
        lasting = random.uniform(least, most) * max_quiet_seconds
        number = random.randrange(2**16)
        if kind in KILLS and seconds / 3 < at < seconds * 2 / 3:
            continue
        steps.append(Step(at, kind, lasting, number))
        at += lasting
    return tuple(steps)
