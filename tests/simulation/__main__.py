"""`make simulate ARGS=…`: many sites on all cores, or the story of one; the last line of a run is JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from simulation.campaign import run_kinds, tell
from simulation.judge import Figures
from simulation.rates import KINDS
from simulation.tables import as_json, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, help="sites of this kind alone")
    parser.add_argument("--device-years", type=float, default=2_500.0, help="how much of each kind (default: 2500)")
    parser.add_argument("--first-seed", type=int, default=1, help="seed of each kind's first site (default: 1)")
    parser.add_argument("--seed", type=int, help="tell the story of this one site of --kind")
    parser.add_argument("--years", type=float, default=1.0, help="how long each site runs (default: 1)")
    parser.add_argument("--probe-minutes", type=int, default=10, help="presence.probeInterval (default: 10)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--json", action="store_true", help="no tables, only the line of JSON")
    parser.add_argument("--planted", action="store_true", help="plant bugs, one after the other, and see them caught")
    options = parser.parse_args(arguments)
    if options.planted:
        from planted.bugs import hunt

        return hunt(options.jobs)
    kinds = [options.kind] if options.kind else list(KINDS)
    if options.seed is not None:
        for kind in kinds:
            tell(kind, options.seed, options.years, options.probe_minutes)
        return 0
    began = time.monotonic()
    found = run_kinds(
        kinds,
        options.first_seed,
        options.device_years,
        years=options.years,
        probe_minutes=options.probe_minutes,
        jobs=options.jobs,
        told=not options.json,
    )
    whole = Figures()
    for figures in found.values():
        whole.add(figures)
    if not options.json:
        sys.stdout.write(f"{tables(found)}\n\n")
    line = as_json(whole) | {"seconds": round(time.monotonic() - began), "firstSeed": options.first_seed}
    if len(kinds) > 1:
        line["kinds"] = {kind: as_json(figures) for kind, figures in found.items()}
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
