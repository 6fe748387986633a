"""What sites came to, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simulation.baselines import IN_MEMORY, INDEX, PERSISTED
from simulation.judge import AWAY, EARLY, FALSE, GONE, MUTE, NEVER, Cut, Figures


def at(share: float, values: Sequence[float]) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def as_json(figures: Figures) -> dict[str, Any]:
    """The figures of a run, for machines."""
    wrong = figures.false_connected
    return {
        "sites": figures.sites,
        "deviceYears": round(figures.device_years, 1),
        "eligible": figures.eligible,
        "removed": figures.removed,
        "removedPercent": round(100 * figures.removed / max(1, figures.eligible), 1),
        "falseConnected": len(wrong),
        "falseConnectedRestored": sum(cut.restored for cut in wrong if cut.sighted),
        "falseConnectedSightedSince": sum(cut.sighted for cut in wrong),
        "falseAway": figures.verdicts[EARLY],
        "muteConnected": figures.verdicts[MUTE],
        "awayLonger": figures.verdicts[AWAY],
        "problems": len(figures.problems),
        "daysMedian": round(at(0.5, figures.days), 1),
        "days90": round(at(0.9, figures.days), 1),
    }


def tables(kinds: Mapping[str, Figures]) -> str:
    """Everything that a run of many sites came to."""
    whole = Figures()
    for figures in kinds.values():
        whole.add(figures)
    lines = ["Dead removed, and connected devices cut off", ""]
    header = ["kind", "sites", "device-years", "dead", "removed", "", "days, median", "90 %", "cut off", "in 1,000"]
    lines += _columns([header, *(_row(name, figures) for name, figures in kinds.items())])
    lines += ["", "Taken off, by the truth", ""]
    verdicts = (GONE, NEVER, AWAY, MUTE, *FALSE)
    lines += _columns(
        [
            ("truth", *kinds),
            *((verdict, *(str(figures.verdicts[verdict]) for figures in kinds.values())) for verdict in verdicts),
            ("observed share of the time", *(_share(figures) for figures in kinds.values())),
        ]
    )
    lines += ["", "Connected devices cut off, each with its site", ""]
    lines += [_cut_line(cut) for cut in whole.cuts] or ["  none"]
    lines += ["", "What contradicts the settings or the journal", "", *(f"  {text}" for text in whole.problems[:20])]
    for name, figures in kinds.items():
        lines += ["", f"Dead that stayed on {name}, in the component's own words", ""]
        lines += [f"  {number:4} {why}" for why, number in figures.left.most_common(12)] or ["  none"]
    lines += ["", "What simpler rules would have done on the same sites: connected devices cut off in 1,000", ""]
    lines += _columns([("rule", *kinds, "dead removed"), *_baselines(kinds, whole)])
    return "\n".join(lines)


def _row(name: str, figures: Figures) -> tuple[str, ...]:
    wrong = len(figures.false_connected)
    return (
        name,
        str(figures.sites),
        f"{figures.device_years:,.0f}",
        str(figures.eligible),
        str(figures.removed),
        f"{100 * figures.removed / max(1, figures.eligible):.1f} %",
        f"{at(0.5, figures.days):.1f}",
        f"{at(0.9, figures.days):.1f}",
        str(wrong),
        f"{1000 * wrong / max(1.0, figures.device_years):.2f}",
    )


def _cut_line(cut: Cut) -> str:
    replay = f'make simulate ARGS="--kind {cut.kind} --seed {cut.seed}"'
    after = ("NOT RESTORED", "restored")[cut.restored] if cut.sighted else "not sighted since"
    return f"  {cut.kind} {cut.style} {cut.name}, day {cut.day:.1f}, {cut.verdict}, {after}: {replay}"


def _share(figures: Figures) -> str:
    return f"{100 * sum(figures.observed) / max(1, len(figures.observed)):.1f} %"


def _baselines(kinds: Mapping[str, Figures], whole: Figures) -> Iterable[tuple[str, ...]]:
    def in_thousand(number: int, figures: Figures) -> str:
        return f"{1000 * number / max(1.0, figures.device_years):.1f}"

    own = (in_thousand(len(figures.false_connected), figures) for figures in kinds.values())
    yield ("this component", *own, str(whole.verdicts[GONE]))
    for rule in (IN_MEMORY, PERSISTED, INDEX):
        false = (
            in_thousand(sum(figures.baselines[rule][verdict] for verdict in FALSE), figures)
            for figures in kinds.values()
        )
        yield (rule, *false, str(whole.baselines[rule][GONE]))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
