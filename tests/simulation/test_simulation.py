"""The simulation itself: it runs, repeats itself, and its judge sees what it should."""

from __future__ import annotations

import pytest

from simulation.judge import FALSE, Figures
from simulation.rates import KINDS, Pace
from simulation.site import Site, size_of
from simulation.tables import as_json, tables

HURRY = Pace(15.0)


def run(kind: str, seed: int, years: float) -> Figures:
    """The figures of one hurried site."""
    return Site(kind, seed, years=years, pace=HURRY).run().figures


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_of_each_kind(kind: str) -> None:
    """In a fifth of a year nobody is cut off, and nothing contradicts the settings or the journal."""
    figures = run(kind, 5, 0.2)
    assert not figures.problems
    assert not any(figures.verdicts[verdict] for verdict in FALSE)
    assert figures.device_years > 1
    assert as_json(figures)["falseConnected"] == 0
    assert kind in tables({kind: figures})


def test_a_seed_repeats_itself() -> None:
    """The same seed gives the same figures."""
    assert run("events+messages", 1, 0.15) == run("events+messages", 1, 0.15)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_hurried_sites(kind: str) -> None:
    """In five site-years of each kind nobody is cut off, and most of the dead go."""
    whole = Figures()
    for seed in range(1, 6):
        whole.add(run(kind, seed, 1.0))
    assert not whole.problems
    assert not any(whole.verdicts[verdict] for verdict in FALSE), whole.cuts
    assert whole.removed > 0.6 * whole.eligible


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_probe_each_minute(kind: str) -> None:
    """With a probe and a count each minute two site-years come to what they come to with one in ten, but for chance."""
    rare, often = Figures(), Figures()
    for seed in sorted(range(1, 50), key=lambda seed: size_of(kind, seed))[:2]:
        rare.add(Site(kind, seed).run().figures)
        often.add(Site(kind, seed, probe_minutes=1).run().figures)
    assert not any(figures.verdicts[verdict] for figures in (rare, often) for verdict in FALSE)
    assert rare.eligible >= 5
    assert abs(rare.removed - often.removed) <= 2 * max(1, rare.eligible - rare.removed) ** 0.5
    assert sum(often.observed) == pytest.approx(sum(rare.observed), abs=0.05)
