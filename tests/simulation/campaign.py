"""Many sites on all cores, and the story of one."""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence

from simulation.judge import Figures
from simulation.site import Site, size_of
from simulation.tables import as_json


def run_kinds(
    kinds: Sequence[str],
    first_seed: int,
    device_years: float,
    *,
    years: float,
    probe_minutes: int,
    jobs: int,
    told: bool,
) -> dict[str, Figures]:
    """The figures of so much of each kind of site."""
    began = time.monotonic()
    found = {kind: Figures() for kind in kinds}
    work = [
        (kind, seed, years, probe_minutes) for kind in kinds for seed in seeds(kind, first_seed, device_years / years)
    ]
    # The largest first, so that no core waits for the last one.
    work.sort(key=lambda site: -size_of(site[0], site[1]))
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for number, (kind, figures) in enumerate(pool.imap_unordered(run_site, work), 1):
            found[kind].add(figures)
            if told:
                sys.stderr.write(f"\r{number} of {len(work)} sites, {time.monotonic() - began:.0f} s ")
    if told:
        sys.stderr.write("\r")
    return found


def seeds(kind: str, first: int, devices: float) -> Iterator[int]:
    """As many sites as hold about so many devices: of those that a site begins with, a fifth is gone on average."""
    seed, found = first, 0.0
    while found < devices:
        yield seed
        found += 0.8 * size_of(kind, seed)
        seed += 1


def run_site(what: tuple[str, int, float, int]) -> tuple[str, Figures]:
    """Run one site to its end."""
    kind, seed, years, probe_minutes = what
    quiet()
    return kind, Site(kind, seed, years=years, probe_minutes=probe_minutes).run().figures


def tell(kind: str, seed: int, years: float, probe_minutes: int) -> None:
    """Tell one site's story."""

    def told(when: float, text: str) -> None:
        sys.stdout.write(f"{when / site.pace.day:9.3f}  {text}\n")

    quiet()
    site = Site(kind, seed, years=years, probe_minutes=probe_minutes, told=told)
    figures = site.run().figures
    sys.stdout.write(json.dumps(as_json(figures)) + "\n")


def quiet() -> None:
    """Keep the component's log to itself."""
    logger = logging.getLogger("client_device_pruner")
    logger.handlers[:] = [logging.NullHandler()]
    logger.propagate = False
