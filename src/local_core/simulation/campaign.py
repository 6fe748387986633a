"""Many sites, on all cores, and the tables of what they came to."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from local_core.simulation.devices import DAY
from local_core.simulation.edges import Disk
from local_core.simulation.judge import EXCEPTION, FALSE, UNHEARD, Dead, Figures, Finding
from local_core.simulation.world import Site, World

OURS = "this component"
MOST_SITES = 10_000
"""A pool takes from an endless iterator without end."""


@dataclass(slots=True)
class Sum:
    """What many sites came to; `kinds` holds the same by kind of site."""

    sites: int = 0
    device_years: float = 0.0
    pruned: Counter[str] = field(default_factory=Counter)
    dead: list[Dead] = field(default_factory=list)
    unproven: Counter[str] = field(default_factory=Counter)
    census: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    baselines: dict[str, Counter[str]] = field(default_factory=dict)
    runs: int = 0
    site_years: float = 0.0
    findings: list[tuple[int, Finding]] = field(default_factory=list)
    deceived: list[tuple[int, Finding]] = field(default_factory=list)
    kinds: dict[str, Sum] = field(default_factory=dict)

    def add(self, site: Site, kind: str, figures: Figures) -> None:
        """Add a site, to the whole and to its kind."""
        self._add(site, figures)
        self.kinds.setdefault(kind, Sum())._add(site, figures)  # noqa: SLF001 - it is one of us

    def _add(self, site: Site, figures: Figures) -> None:
        self.sites += 1
        self.site_years += site.years
        self.device_years += figures.device_years
        self.pruned += figures.pruned
        self.dead += figures.dead
        self.unproven += figures.unproven
        self.census += figures.census
        self.calls += figures.calls
        self.faults += figures.faults
        self.runs += figures.runs
        for name, tally in figures.baselines.items():
            self.baselines[name] = self.baselines.get(name, Counter()) + tally
        self.deceived += [(site.seed, deceived) for deceived in figures.deceived]
        self.findings += [(site.seed, finding) for finding in figures.findings]

    def tables(self) -> str:
        """What to print."""
        provable = [dead for dead in self.dead if dead.provable is not None and dead.end != "removed by another"]
        gone = [dead for dead in provable if dead.pruned is not None]
        delays = sorted((dead.pruned - dead.provable) / DAY for dead in gone if dead.pruned and dead.provable)
        rows = [
            ("sites, of site-years", f"{self.sites}, {self.site_years:,.0f}"),
            ("device-years", f"{self.device_years:,.0f}"),
            ("runs of the component", f"{self.runs:,}"),
            ("faults", f"{sum(self.faults.values()):,}"),
            ("findings (below)", f"{len(self.findings)}"),
            ("disassociated: gone", f"{self.pruned['gone']:,}"),
            ("disassociated: lives and keeps to its ways (FALSE)", f"{self.pruned['false']}"),
            ("  known exception of the census: lost and gained in one gap", f"{self.pruned[EXCEPTION]}"),
            ("disassociated: away for longer than its threshold", f"{self.pruned['honest']}"),
            ("  back since, on a site without events, and silent", f"{self.pruned[UNHEARD]}"),
            ("disassociated: never came (neverSeenThreshold)", f"{self.pruned['neverCame']}"),
            ("devices that died, moved or were replaced", f"{len(self.dead):,}"),
            ("  of these with a proof, not taken off by others", f"{len(provable):,}"),
            ("  of these disassociated", f"{len(gone):,} ({_percent(len(gone), len(provable))})"),
            ("days from provable to gone: median, 95 %", f"{_at(delays, 0.5):.2f}, {_at(delays, 0.95):.2f}"),
            ("calls of the cloud in a site-year", _calls(self)),
        ]
        lines = _columns([("what", "figure"), *rows])
        lines += ["", "Dead devices without a proof at the end, and why"]
        lines += _columns([("devices", "why"), *((str(n), why) for why, n in self.unproven.most_common())])
        with_census = [(name, part) for name, part in sorted(self.kinds.items()) if part.census]
        lines += ["", "By kind of site"]
        lines += _columns([_KIND_HEADER, *(_kind_row(name, part) for name, part in sorted(self.kinds.items()))])
        lines += [
            "",
            "What the census says, of all cycles on sites with events, and what it waits for where it proves nothing",
        ]
        states = [says for says, _n in self.census.most_common()]
        lines += _columns([("kind", *states), *(_census_row(name, part, states) for name, part in with_census)])
        lines += [
            "",
            "False disassociations in 1,000 device-years (of sites with events, where a solution needs them)",
        ]
        with_events = [part for name, part in self.kinds.items() if name != "messages"]
        event_years = sum(part.device_years for part in with_events)
        excused = self.pruned[EXCEPTION]
        ours = self.pruned[FALSE] + excused
        table = [("solution", "false", "dead disassociated"), (OURS, _rate(ours, self.device_years), str(len(gone)))]
        deceived = sum(part.pruned[verdict] for part in with_events for verdict in (FALSE, EXCEPTION))
        table.append((f"{OURS}, of sites with events", _rate(deceived, event_years), ""))
        for name, tally in self.baselines.items():
            years = event_years if "disconnect" in name else self.device_years
            table.append((name, _rate(tally["false"], years), str(tally["gone"])))
        lines += _columns(table)
        if excused:
            lines += ["", f"Of ours, {excused} by a census that was deceived (see judge.py)"]
            lines += [f"  seed {seed}: {deceived}" for seed, deceived in self.deceived[:20]]
        lines += ["", "Faults: " + ", ".join(f"{name} {number:,}" for name, number in self.faults.most_common())]
        if self.findings:
            lines += ["", "Findings"]
            lines += [f"  seed {seed}: {finding}" for seed, finding in self.findings[:20]]
            lines.append("replay one with: PYTHONPATH=src python -m local_core.simulation --seed SEED")
        return "\n".join(lines)


_KIND_HEADER = ("kind", "device-years", "dead", "with a proof", "gone", "false", "exception", "median days")


def _kind_row(name: str, part: Sum) -> tuple[str, ...]:
    provable = [dead for dead in part.dead if dead.provable is not None]
    gone = [dead for dead in provable if dead.pruned is not None]
    days = [(dead.pruned - dead.provable) / DAY for dead in gone if dead.pruned and dead.provable]
    return (
        name,
        f"{part.device_years:,.0f}",
        str(len(part.dead)),
        str(len(provable)),
        str(len(gone)),
        str(part.pruned["false"]),
        str(part.pruned[EXCEPTION]),
        f"{median(days):.2f}" if days else "-",
    )


def _census_row(name: str, part: Sum, states: Sequence[str]) -> tuple[str, ...]:
    return (name, *(_percent(part.census[says], sum(part.census.values())) for says in states))


def _calls(total: Sum) -> str:
    return ", ".join(f"{name} {number / total.site_years:,.0f}" for name, number in total.calls.most_common())


def _rate(number: int, years: float) -> str:
    return f"{1000 * number / years:.2f}" if years else "-"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _at(values: Sequence[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def simulate(site: Site) -> tuple[Site, str, Figures]:
    """Let the time of one site pass, silently; for a process of a pool."""
    logging.getLogger("client_device_pruner").disabled = True
    world = World(site)
    judge = world.run()
    return site, world.kind, judge.figures


def bytes_a_day(devices: int = 50) -> int:
    """What a day of a quiet site writes into the state file's write-ahead log, in bytes; nothing is folded."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pruner.db"
        sizes = []
        for days in (1, 2):
            path.unlink(missing_ok=True)
            site = Site(1, years=days / 365.25, devices=devices, kind="both", fold=False, faults=False, described=True)
            disk = Disk(path)
            World(site, disk=disk).run()
            sizes.append(path.with_name("pruner.db-wal").stat().st_size)
            disk.real.close()
    return sizes[1] - sizes[0]


def sites(first_seed: int, years: float) -> Iterator[Site]:
    """Sites without end, a seed each."""
    seed = first_seed
    while True:
        yield Site(seed, years=years)
        seed += 1


def run(wanted: Iterable[Site], device_years: float, processes: int | None = None) -> Iterator[Sum]:
    """Simulate sites until there are enough device-years; gives the sum after each."""
    total = Sum()
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        for site in wanted:
            total.add(*simulate(site))
            yield total
            if total.device_years >= device_years:
                return
        return
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=50) as pool:
        results = pool.imap(simulate, itertools.islice(wanted, MOST_SITES))
        for site, kind, figures in results:
            total.add(site, kind, figures)
            yield total
            if total.device_years >= device_years:
                pool.terminate()
                return
