"""What the component's process needs: memory, file descriptors and threads, and whether that grows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

WARM_SECONDS = 60.0
"""A process is measured from this age on: until then it loads what it needs."""
_LEAST_SAMPLES = 12
_PART = 4  # the first and the last quarter of a life are compared


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process: which run of the component, its age in seconds, memory in KiB, descriptors, threads."""

    run: int
    age_seconds: float
    pss_kib: int
    rss_kib: int
    descriptors: int
    threads: int


def sample(pid: int, run: int, age_seconds: float) -> Sample | None:
    """Look at a process; None if it has just ended."""
    process = Path(f"/proc/{pid}")
    try:
        memory = _figures(process / "smaps_rollup")
        status = _figures(process / "status")
        descriptors = len(os.listdir(process / "fd"))  # noqa: PTH208 - only their number matters
    except (OSError, ValueError):
        return None
    return Sample(run, age_seconds, memory["Pss"], memory["Rss"], descriptors, status["Threads"])


def _figures(file: Path) -> dict[str, int]:
    pairs = (line.split()[:2] for line in file.read_text().splitlines())
    return {pair[0].rstrip(":"): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


@dataclass(frozen=True, slots=True)
class Trend:
    """How the longest life of a process went: its seconds, and all figures in its first and its last quarter."""

    seconds: float
    pss_kib: tuple[float, float]
    rss_kib: tuple[float, float]
    kib_a_minute: float
    """The slope of the resident memory: what is shared moves with the processes beside it."""
    descriptors: tuple[int, int]
    threads: tuple[int, int]

    @property
    def grew(self) -> bool:
        """Whether descriptors or threads grew."""
        return self.descriptors[1] > self.descriptors[0] or self.threads[1] > self.threads[0]


def trend(samples: Sequence[Sample]) -> Trend | None:
    """Follow the longest life, from when it was warm; None if no life was long enough.

    Descriptors and threads are compared by the tenth part from below of the first and of the last quarter: a call to
    the cloud that is under way has some of its own, and a connection that is made anew has none for a moment.
    """
    warm = [one for one in samples if one.age_seconds >= WARM_SECONDS]
    lives = [list(group) for _, group in groupby(warm, key=lambda one: one.run)]
    longest = max(lives, key=len, default=[])
    if len(longest) < _LEAST_SAMPLES:
        return None
    part = len(longest) // _PART
    first, last = longest[:part], longest[-part:]
    return Trend(
        longest[-1].age_seconds - longest[0].age_seconds,
        (fmean(one.pss_kib for one in first), fmean(one.pss_kib for one in last)),
        (fmean(one.rss_kib for one in first), fmean(one.rss_kib for one in last)),
        60.0 * slope([one.age_seconds for one in longest], [float(one.rss_kib) for one in longest]),
        (_at_rest(one.descriptors for one in first), _at_rest(one.descriptors for one in last)),
        (_at_rest(one.threads for one in first), _at_rest(one.threads for one in last)),
    )


def _at_rest(figures: Iterable[int]) -> int:
    ordered = sorted(figures)
    return ordered[len(ordered) // 10]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Fit a line by least squares, and return how steep it is."""
    middle, mean = fmean(times), fmean(values)
    spread = sum((time - middle) ** 2 for time in times)
    return sum((time - middle) * (value - mean) for time, value in zip(times, values, strict=True)) / spread
