"""Runs the simulation: `python -m local_core.simulation`, or with `--seed N` one site with its timeline."""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
from collections.abc import Sequence

from local_core.simulation import campaign
from local_core.simulation.devices import DAY
from local_core.simulation.world import Site, World


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, and print the tables; exit status 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m local_core.simulation", description=__doc__)
    parser.add_argument("--device-years", type=float, default=10_000, help="how much to simulate (default: 10,000)")
    parser.add_argument("--years", type=float, default=1.0, help="years of each site (default: 1)")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=None, help="default: one for each core")
    parser.add_argument("--seed", type=int, help="replay this one with its timeline")
    parser.add_argument("--no-fold", action="store_true", help="with --seed: fold nothing")
    parser.add_argument("--mutations", action="store_true", help="plant bugs, and print what catches each")
    options = parser.parse_args(arguments)
    logging.getLogger("client_device_pruner").disabled = True
    if options.mutations:
        from local_core.simulation import mutations

        return mutations.main()
    if options.seed is not None:
        return replay(Site(options.seed, years=options.years, fold=not options.no_fold))
    began = time.monotonic()
    total = campaign.Sum()
    said = 0.0
    for total in campaign.run(
        campaign.sites(options.first_seed, options.years), options.device_years, options.processes
    ):
        if total.device_years - said >= 500:
            said = total.device_years
            text = f"{said:,.0f} device-years, {time.monotonic() - began:.0f} s, {len(total.findings)} findings"
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - it is for people
    print(total.tables())  # noqa: T201 - as above
    written = campaign.bytes_a_day()
    print(f"\nA quiet day with 50 devices writes {written:,} bytes into the state file's log (not folded).")  # noqa: T201
    spent = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"\n{time.monotonic() - began:.0f} s, of which all cores computed {spent:.0f} s")  # noqa: T201 - as above
    return 1 if total.findings else 0


def replay(site: Site) -> int:
    """Tell the story of one site."""

    def tell(at: float, text: str) -> None:
        day, rest = divmod(at, DAY)
        clock = time.strftime("%H:%M:%S", time.gmtime(rest))
        print(f"day {day:3.0f} {clock}  {text}")  # noqa: T201 - it is for people

    world = World(site, told=tell)
    figures = world.run().figures
    print(f"\nseed {site.seed}: {world.kind}, {world.size} devices; disassociated: {dict(figures.pruned)}")  # noqa: T201
    for finding in figures.findings:
        print(f"FINDING {finding}")  # noqa: T201 - as above
    return 1 if figures.findings else 0


if __name__ == "__main__":
    sys.exit(main())
