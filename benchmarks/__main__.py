"""Measures what the component takes, on the local core, against a bare SDK subscriber in the same run.

Processor time is user and system time, so other work on the machine hardly counts. Figures depend on the machine;
ratios are what matters. It ends in a table: the median, and the lowest and highest where there are several runs.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import os
import platform
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median

from benchmarks import inside, wire
from benchmarks.subjects import REPOSITORY

PARTS: Mapping[str, tuple[int, Callable[[], Awaitable[wire.Figures]]]] = {
    "memory": (3, wire.memory),
    "memory-100000": (1, wire.memory_of_100_000),
    "events": (3, wire.events),
    "disassociated": (3, wire.disassociated),
    "idle": (2, wire.idle),
    "decision": (3, inside.decision),
    "quiet-day": (1, inside.quiet_day),
}
"""How often each is measured, and how."""
GOALS = {
    "memory idle (RSS), times the bare subscriber's": 1.25,
    "memory of each further device of 1,000, bytes": 600.0,
    "memory of each further device of 100,000, bytes": 600.0,
    "CPU of a client event, times the bare subscriber's": 1.0,
    "CPU of a client message, times the bare subscriber's": 1.0,
    "CPU of a message of a disassociated device, times another's": 1.05,  # no more; 5 % is noise
    "CPU idle, the component, % of a core": 0.1,
    "a cycle's decision over 100,000 devices, all connected, CPU s": 1.0,
    "a cycle's decision over 100,000 devices, all marked, CPU s": 1.0,
    "written on a quiet day, 10 devices that speak hourly, MB": 10.0,
}
"""What each figure is to be at most."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table; the exit status does not depend on the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    chosen = parser.parse_args(arguments).parts or list(PARTS)
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    compileall.compile_dir(REPOSITORY / "src", quiet=1)
    found: dict[str, list[float]] = {}
    for part in chosen:
        times, measure = PARTS[part]
        for run in range(times):
            print(f"{part}, run {run + 1} of {times} …", file=sys.stderr, flush=True)  # noqa: T201 - for people
            for name, value in asyncio.run(_figures(measure)).items():
                found.setdefault(name, []).append(value)
    print(f"{_commit()}; {_machine()}\n\n{table(found)}")  # noqa: T201 - what it is for
    return 0


async def _figures(measure: Callable[[], Awaitable[wire.Figures]]) -> wire.Figures:
    return await measure()


def table(found: Mapping[str, Sequence[float]]) -> str:
    """Figure, goal and what was measured, in Markdown; a goal that is missed is marked."""
    rows = [("figure", "goal", "measured", ""), ("---",) * 4]
    for name, values in found.items():
        goal = GOALS.get(name)
        missed = goal is not None and median(values) > goal
        measured = _text(median(values))
        if len({_text(value) for value in values}) > 1:
            measured += f" ({_text(min(values))} to {_text(max(values))})"
        rows.append((name, "" if goal is None else f"at most {_text(goal)}", measured, "**missed**" if missed else ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _commit() -> str:
    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)  # noqa: S607
        return asked.stdout.strip()

    changed = " and changes" if git("status", "--porcelain", "src", "benchmarks") else ""
    return f"commit {git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"


def _machine() -> str:
    return f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
