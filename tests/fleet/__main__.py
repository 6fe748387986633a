"""`make fleet ARGS=…`: how soon all core devices of an account are served, and what is throttled, in Markdown."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from typing import Any

from fleet.cores import DAY, HOUR, Fleet

RATES = (30, 10)
"""AWS IoT Greengrass' quota, and that of some Regions."""
STARTS: dict[str, dict[str, Any]] = {
    "first installation, all in one minute": {"listed": False},
    "first installation, 50 cores a minute": {"listed": False, "cores_a_minute": 50},
    "upgrade, all in one minute": {},
    "cloud back after an hour": {"outage_seconds": HOUR},
    "cloud back after a day": {"outage_seconds": DAY},
}
WAITED_HOURS = (1, 6, 12, 24)
HEAD = """\
quota | start | served in 1 h | 6 h | 12 h | 24 h | the last | calls throttled in the first hour | on the first day \
| on the second | cycles that fail on the second"""


def row(cores: int, devices: int, removing: float, scenario: tuple[int, str]) -> str:
    """One start under one quota."""
    rate, start = scenario
    fleet = Fleet(cores, devices, rate, removing=removing, **STARTS[start])
    fleet.run(2 * DAY)
    waited = sorted(fleet.waited.values())
    served = [sum(seconds <= hours * HOUR for seconds in waited) / cores for hours in WAITED_HOURS]
    last = f"{waited[-1] / HOUR:.1f} h" if len(waited) == cores else "over 2 days"
    throttled = [fleet.share("throttled", "calls", hours) for hours in (range(1), range(24), range(24, 48))]
    shares = [f"{share:.1%}" for share in (*served, *throttled, fleet.share("failed", "cycles", range(24, 48)))]
    return f"| {' | '.join((f'{rate}/s', start, *shares[:4], last, *shares[4:]))} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of one fleet."""
    parser = argparse.ArgumentParser(prog="make fleet", description=__doc__)
    parser.add_argument("--cores", type=int, default=10_000, help="core devices in the account (default: 10000)")
    parser.add_argument("--devices", type=int, default=500, help="client devices of each (default: 500)")
    parser.add_argument("--removing", type=float, default=1.0, help="share of cycles that remove devices (default: 1)")
    options = parser.parse_args(arguments)
    print(f"| {HEAD} |\n{re.sub('[^|]+', ' --- ', f'|{HEAD}|')}")  # noqa: T201 - what it is for
    with ProcessPoolExecutor() as processes:
        made = partial(row, options.cores, options.devices, options.removing)
        for line in processes.map(made, product(RATES, STARTS)):
            print(line, flush=True)  # noqa: T201 - as above
    return 0


if __name__ == "__main__":
    sys.exit(main())
