"""Measures the component on the local core, against a bare SDK subscriber in the same run, on the real wire.

Memory is PSS, CPU is user and system time, written bytes are what the process caused to be written. Figures depend on
the machine; ratios are what counts. It ends in a table: medians, and the range where there are several runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from local_core.bench.parts import PARTS, SHORT, Sizes
from local_core.bench.subjects import Kind

_ONCE = ("storm", "calls", "decision")
"""What a second run would only repeat."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m local_core.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="of each part; of some, one will do (default: 3)")
    parser.add_argument("--devices", type=int, nargs="+", help="for memory and calls (default: 10 1000 100000)")
    parser.add_argument("--short", action="store_true", help="see only that it runs: its figures say nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    sizes = SHORT if options.short else Sizes()
    if options.devices:
        sizes = replace(sizes, devices=tuple(options.devices))
    runs = asyncio.run(_measure(options.parts or list(PARTS), options.runs, sizes))
    print(table(runs))  # noqa: T201 - it is for people
    return 0


async def _measure(parts: Sequence[str], runs: int, sizes: Sizes) -> dict[str, dict[str, list[float]]]:
    """All figures: name to whose to the value of each run."""
    found: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        for run in range(1 if part in _ONCE else runs):
            print(f"{part}, run {run + 1} …", file=sys.stderr, flush=True)  # noqa: T201 - it takes minutes
            for (name, whose), value in (await PARTS[part](sizes)).items():
                found.setdefault(name, {}).setdefault(whose, []).append(value)
    return found


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The figures as a Markdown table, with the component's ratio to the bare subscriber in the same runs."""
    rows = [("", *(kind.value for kind in Kind), "ratio"), ("---",) * (len(Kind) + 2)]
    for name, by_whom in found.items():
        bare, ours = by_whom.get(Kind.BARE.value), by_whom.get(Kind.COMPONENT.value, ())
        ratios = [b / a for a, b in zip(bare, ours, strict=True) if a] if bare else []
        cells = [_figures(by_whom.get(kind.value, ())) for kind in Kind]
        rows.append((name, *cells, f"{_figures(ratios)} x" if ratios else ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _figures(values: Sequence[float]) -> str:
    """The median, and the range where there is one."""
    if not values:
        return ""
    low, middle, high = (
        f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" for value in (min(values), median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
