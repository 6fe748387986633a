"""Endurance: the component on the local core for minutes on end, with real devices, random faults and kills.

Nothing that lives and is connected, or keeps calling, may be disassociated; whatever died has to go; and the process
must not need more and more. `make soak` runs it for 20 minutes; the seed that it prints repeats its plan of faults.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom
from typing import Any

from local_core.component import State
from local_core.soak.faults import follow
from local_core.soak.gauges import Trend, trend
from local_core.soak.plan import make_plan
from local_core.soak.site import Pace, Site, make_site
from local_core.soak.truth import Verdict

_MINUTE = 60.0
_LAST_LINES = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; exit status 1 if something false happened, the dead stayed, or descriptors or threads grew."""
    parser = argparse.ArgumentParser(prog="python -m local_core.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long things go wrong (default: 20)")
    parser.add_argument("--seed", type=int, help="repeat the plan of a run that printed it")
    parser.add_argument("--plan", action="store_true", help="print the plan, and do nothing")
    parser.add_argument("--log", type=Path, help="write what happened, and the component's log, into this folder")
    options = parser.parse_args(arguments)
    seed = SystemRandom().randrange(1, 2**31) if options.seed is None else options.seed
    pace = Pace()
    if options.plan:
        for step in make_plan(seed, options.minutes * _MINUTE, pace.max_quiet):
            _say(str(step))
        return 0
    _say(f"seed {seed}, {options.minutes:g} minutes")
    return asyncio.run(soak(seed, options.minutes * _MINUTE, pace, options.log))


async def soak(seed: int, seconds: float, pace: Pace, log: Path | None = None) -> int:
    """Let a site endure for so many seconds and come to rest, print the table, and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="client-device-pruner-soak-") as root:
        async with make_site(Path(root), seed, pace) as site:
            site.truth.began = time.monotonic()
            with _going(site.look(), site.measure(), site.keep_running(), *site.visitors()):
                with _going(site.mortals(), site.silent_ones_move_now_and_then(), _tell_minutes(site)):
                    plan = asyncio.create_task(follow(site, make_plan(seed, seconds, pace.max_quiet)))
                    await asyncio.sleep(seconds)
                    await plan
                await site.come_to_rest()
            if log:
                _keep(site, log)
            return report(site, seed, seconds)


class _going(contextlib.AbstractContextManager[None]):  # noqa: N801 - used like a function
    """Runs loops beside what is in the block; whatever one of them raises is raised at its end."""

    def __init__(self, *loops: Any) -> None:
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    def __exit__(self, *_exception: object) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
            task.cancel()


async def _tell_minutes(site: Site) -> None:
    minute = 0
    while True:
        await asyncio.sleep(_MINUTE)
        minute += 1
        last = site.samples[-1] if site.samples else None
        process = (
            f"{last.pss_kib / 1024:.1f} MiB PSS, {last.rss_kib / 1024:.1f} MiB RSS, {last.descriptors} descriptors,"
            f" {last.threads} threads, {last.age_seconds:.0f} s old"
            if last
            else "no process"
        )
        gone, false = site.truth.verdicts[Verdict.GONE], site.truth.verdicts[Verdict.FALSE]
        _say(f"minute {minute:2}: {process}; {site.faults.total()} faults; {gone} gone, {false} false")


def report(site: Site, seed: int, seconds: float) -> int:
    """Print the table; return the exit status."""
    truth, left, process = site.truth, site.left(), trend(site.samples)
    types = Counter(event["type"].rpartition(".")[2] for event in site.core.events)
    died = sum(life.died is not None for life in truth.lives.values())
    exits = site.core.component.starts - 1 - site.kills
    rows = [
        ("seed, minutes", f"{seed}, {seconds / _MINUTE:g}"),
        ("faults", f"{site.faults.total()}: {', '.join(f'{n} {kind}' for kind, n in sorted(site.faults.items()))}"),
        ("component", f"{site.core.component.starts} starts: {site.kills} killed, {exits} ended by itself"),
        *_process_rows(process),
        ("devices that died", f"{died}: {died - len(left)} gone, {len(left)} left {', '.join(left)}".rstrip()),
        *((f"disassociated, {verdict.value}", str(truth.verdicts[verdict])) for verdict in Verdict),
        ("restored", str(types["restored"])),
        ("events", ", ".join(f"{n} {kind}" for kind, n in sorted(types.items()))),
    ]
    width = max(len(name) for name, _ in rows)
    _say("\n" + "\n".join(f"{name:{width}}  {figure}" for name, figure in rows))
    for finding in truth.findings:
        _say(f"\nFALSE: {finding}")
    if site.core.component.state is State.BROKEN or left:
        _say("\nThe last that the component wrote:\n" + "\n".join(list(site.core.component.output)[-_LAST_LINES:]))
    grew = process is not None and process.grew
    return int(bool(truth.findings or left or grew))


def _process_rows(process: Trend | None) -> list[tuple[str, str]]:
    if process is None:
        return [("process", "no life was long enough to be measured")]
    pss, rss = (" to ".join(f"{kib / 1024:.1f}" for kib in kibs) for kibs in (process.pss_kib, process.rss_kib))
    return [
        ("longest life", f"{process.seconds / _MINUTE:.1f} min after its first minute"),
        ("memory", f"PSS {pss} MiB, RSS {rss} MiB ({process.kib_a_minute:+.0f} KiB a minute)"),
        ("file descriptors", f"{process.descriptors[0]} to {process.descriptors[1]}"),
        ("threads", f"{process.threads[0]} to {process.threads[1]}{', GREW' if process.grew else ''}"),
    ]


def _keep(site: Site, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "timeline").write_text("\n".join(site.truth.timeline))
    (folder / "component").write_text("\n".join(site.core.component.output))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - it is for people


if __name__ == "__main__":
    sys.exit(main())
