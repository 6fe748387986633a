"""`pruner report FILE.html`: one page that shows what became of every client device, when, and on what evidence.

The page carries its data as JSON and draws it in the reader's browser. A plotting or templating library could only
come to the device with its dependencies, larger than the component itself, or be fetched when the page is opened,
which a page for a closed site must not do; so this needs the standard library only, and no optional extra.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from client_device_pruner import __version__
from client_device_pruner.explanation import PROOFS, evidence, explain, nearest
from client_device_pruner.model import Device, Proof, State
from client_device_pruner.policy import HABIT_MESSAGES, assess
from client_device_pruner.reports import rfc3339
from client_device_pruner.snapshot import Happening, Snapshot
from client_device_pruner.tables import about

LONGEST_SECONDS = 400 * 86_400.0
"""What is older is not drawn: a wall clock that was once years off is not to stretch the page."""
_TEMPLATE = Path(__file__).with_name("report.html")
_DECISIONS = ("marked", "unmarked", "intended", "disassociated", "failed", "returned", "restored")

Span = tuple[float, float]
"""From and to, in seconds since the page's beginning."""
Lines = list[tuple[str, str]]
"""What is said of a moment: labels, and a text for each."""


def render(data: Mapping[str, Any]) -> str:
    """The page with this data (see `compose`) in it.

    Its content security policy allows the page's own style and script, by their hashes, and nothing else.
    """
    page = _TEMPLATE.read_text("utf-8")
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"
    for kind in ("style", "script"):
        found = re.search(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = hashlib.sha256((found[1] if found else "").encode()).digest()
        policy += f"; {kind}-src 'sha256-{base64.b64encode(digest).decode()}'"
    # Nothing in a string of JSON can end its element, or begin a comment.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
    filled = {"policy": html.escape(policy), "core": html.escape(data["core"]), "data": embedded}
    return re.sub(r"\{\{(policy|core|data)\}\}", lambda slot: filled[slot[1]], page)


def compose(found: Snapshot, record: Sequence[Happening], journal: Iterable[Happening]) -> dict[str, Any]:
    """What the page shows, ready for JSON; moments are seconds since `start`, which is in epoch seconds.

    Args:
        found: how things stand.
        record: all that happened, in order.
        journal: the history of the devices, for disassociations that the record lost in a crash.
    """
    start, happenings = _on_one_time(found, record, journal)
    end = found.written - start
    chart = _Chart(end)
    for happening in happenings:
        chart.take(happening)
    chart.close(found)
    backgrounds = _Backgrounds(chart)
    devices = [_device(device, found, chart, backgrounds) for _name, device in sorted(found.devices.items())]
    devices += [
        _disassociated(name, story, backgrounds)
        for name, story in sorted(chart.devices.items())
        if name not in found.devices and story.ended_by_us
    ]
    return {
        "core": found.core_device,
        "version": __version__,
        "start": round(start, 3),
        "end": round(end, 3),
        "asOf": rfc3339(found.written),
        "running": found.running,
        "dryRun": found.now.settings.dry_run,
        "coverage": found.status["coverage"],
        "held": [guard for guard in found.status["guards"] if not guard["guard"].startswith("source:")],
        "doctor": found.status["doctor"],
        "next": found.status["nextCheckInSeconds"],
        "runs": _rounded(chart.running.spans),
        "cycles": [[round(at, 2), lines] for at, lines in chart.cycles],
        "sources": [_source(name, found, chart) for name in {**found.status["sources"], **chart.vouching}],
        "guards": [
            {"name": name, "spans": [[*_pair(span), *texts] for span, texts in spans]}
            for name, spans in sorted(chart.guards.items())
        ],
        "backgrounds": [_rounded(spans) for spans in backgrounds.spans],
        "devices": devices,
    }


def _on_one_time(
    found: Snapshot, record: Sequence[Happening], journal: Iterable[Happening]
) -> tuple[float, list[Happening]]:
    """All that happened, in order, and when the page begins (epoch seconds); walls become seconds since then.

    The wall clock may have been set in between. The order in which things happened is known, and the latest wall is
    taken to be right: nothing can have happened later than what came after it.
    """
    at = found.written
    repaired: list[Happening] = []
    for happening in reversed(record):
        at = min(at, happening.wall)
        repaired.append(Happening(at, happening.kind, happening.name, happening.data))
    known = {(h.name, h.data.get("cycleId")) for h in repaired if h.kind == "disassociated"}
    repaired += [
        Happening(min(h.wall, found.written), h.kind, h.name, h.data)
        for h in journal
        if h.kind in ("intended", "disassociated") and (h.name, h.data.get("cycleId")) not in known
    ]
    oldest = found.written - LONGEST_SECONDS
    start = min((h.wall for h in repaired if h.wall >= oldest), default=found.written)
    start = min(start, found.written - 1.0)
    repaired.reverse()
    ordered = sorted(repaired, key=lambda happening: happening.wall)
    return start, [Happening(max(0.0, h.wall - start), h.kind, h.name, h.data) for h in ordered]


@dataclass(slots=True)
class _Lane:
    """What begins and ends."""

    spans: list[Span] = field(default_factory=list)
    since: float | None = None

    def open(self, at: float) -> None:
        if self.since is None:
            self.since = at

    def close(self, at: float) -> None:
        if self.since is not None:
            self.spans.append((self.since, max(self.since, at)))
            self.since = None


@dataclass(slots=True)
class _Story:
    """One device's lanes, and what was decided about it."""

    since: float
    present: _Lane = field(default_factory=_Lane)
    outage: _Lane = field(default_factory=_Lane)
    marked: _Lane = field(default_factory=_Lane)
    gone: _Lane = field(default_factory=_Lane)
    decisions: list[tuple[float, str, Lines]] = field(default_factory=list)
    left: float = 0.0
    proved_by: str = ""
    ended_by_us: bool = False

    def absent_since(self, at: float) -> None:
        self.present.close(at)
        self.left = max(self.left, at)

    def is_listed(self, at: float) -> None:
        self.gone.close(at)
        self.ended_by_us = False

    def is_unlisted(self, at: float) -> None:
        self.absent_since(at)
        self.outage.close(at)
        self.marked.close(at)


class _Chart:
    """Takes what happened, in order, and keeps it as spans."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.devices: dict[str, _Story] = {}
        self.running = _Lane()
        self.vouching: dict[str, _Lane] = {}
        self.source_events: dict[str, list[tuple[float, str, Lines]]] = {}
        self.guards: dict[str, list[tuple[Span, tuple[str, str]]]] = {}
        self.cycles: list[tuple[float, Lines]] = []
        self._holding: dict[str, tuple[float, tuple[str, str]]] = {}

    def take(self, happening: Happening) -> None:
        kind, name, at, data = happening.kind, happening.name, happening.wall, happening.data
        if kind == "stopped":
            self._stop(at)
            return
        self.running.open(at)
        if kind in ("held", "released"):
            self._guard(kind, at, data)
        elif kind in ("vouching", "silent"):
            lane = self.vouching.setdefault(name or "", _Lane())
            (lane.open if kind == "vouching" else lane.close)(at)
        elif kind in ("cycle", "configuration"):
            self.cycles.append((at, _cycle_lines(kind, data)))
        elif name is not None:
            self._take_of_device(happening, self.devices.setdefault(name, _Story(at)))

    def _take_of_device(self, happening: Happening, story: _Story) -> None:
        at, data = happening.wall, happening.data
        match happening.kind:
            case "arrived":
                story.is_listed(at)
                story.outage.close(at)
                story.present.open(at)
            case "left":
                story.absent_since(at - data["agoSeconds"])
            case "unlisted":
                story.is_unlisted(at)
            case "outage":
                # Nobody knows of the time in which the component did not run.
                story.outage.open(max(story.left, story.since, self.running.since or 0.0))
            case "outageEnded":
                story.outage.close(at)
            case "marked":
                story.is_listed(at)
                story.absent_since(at - data.get("offlineSeconds", 0.0))
                story.marked.open(at)
            case "unmarked":
                story.marked.close(at)
            case "disassociated":
                story.is_unlisted(at)
                story.gone.open(at)
                story.ended_by_us, story.proved_by = True, data.get("sourceName", "")
            case "restored":
                story.is_listed(at)
        if happening.kind in _DECISIONS:
            story.decisions.append((at, happening.kind, evidence(happening)))

    def _guard(self, kind: str, at: float, data: Mapping[str, Any]) -> None:
        guard, reason, remedy = data["guard"], data["reason"], data["remedy"]
        if guard.startswith("source:"):
            lines = [("why", reason), *([("what to do", remedy)] if kind == "held" else [])]
            self.source_events.setdefault(guard.removeprefix("source:"), []).append((at, kind, lines))
            return
        self._end_guard(guard, at)
        if kind == "held":
            self._holding[guard] = (at, (reason, remedy))

    def _end_guard(self, guard: str, at: float) -> None:
        if guard in self._holding:
            since, texts = self._holding.pop(guard)
            self.guards.setdefault(guard, []).append(((since, max(since, at)), texts))

    def _stop(self, at: float) -> None:
        """The component ended: nothing is known from here on."""
        self.running.close(at)
        for lane in self.vouching.values():
            lane.close(at)
        for guard in list(self._holding):
            self._end_guard(guard, at)
        for story in self.devices.values():
            if story.present.since is not None:
                story.absent_since(at)
            story.outage.close(at)

    def close(self, found: Snapshot) -> None:
        """End all that lasts; who was heard last some time ago was present until then."""
        for name, device in found.devices.items():
            story = self.devices.setdefault(name, _Story(0.0))
            if name not in found.now.present and device.habits and assess(device, found.now).state is not State.PRESENT:
                heard = max(habit.last_running_seconds for habit in device.habits.values())
                story.absent_since(max(0.0, self.end - (found.running_seconds - heard)))
        self._stop(self.end)
        for story in self.devices.values():
            story.marked.close(self.end)
            story.gone.close(self.end)


class _Backgrounds:
    """When anybody's absence would have shown, once for each set of sources that would have shown it."""

    def __init__(self, chart: _Chart) -> None:
        self.spans: list[list[Span]] = []
        self._chart = chart
        self._places: dict[frozenset[str], int] = {}

    def place(self, sources: Iterable[str]) -> int:
        """Where the spans for these sources stand."""
        key = frozenset(sources)
        if key not in self._places:
            self._places[key] = len(self.spans)
            lanes = (self._chart.vouching[name].spans for name in key if name in self._chart.vouching)
            self.spans.append(_union(chain.from_iterable(lanes)))
        return self._places[key]


def _union(spans: Iterable[Span]) -> list[Span]:
    united: list[Span] = []
    for since, until in sorted(spans):
        if united and since <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], until))
        else:
            united.append((since, until))
    return united


def _device(device: Device, found: Snapshot, chart: _Chart, backgrounds: _Backgrounds) -> dict[str, Any]:
    explanation = explain(device, found)
    verdict = explanation.verdict
    shown = nearest(verdict, found.now)
    state = verdict.state_so_far.value
    absent = verdict.state is not State.PRESENT and device.name not in found.now.present
    if state in ("absent", "unknown") and any(name == device.name for name, _source in found.now.outages.unexplained):
        state = "outage"
    story = chart.devices[device.name]
    sources = (
        witness.name
        for witness in found.now.witnesses
        if witness.proof is not Proof.HABIT or _has_habit(device, witness.source_id)
    )
    return {
        "name": device.name,
        "state": state,
        "says": explanation.conclusion,
        "absent": round(shown.absence_seconds, 1) if shown and absent else 0,
        "threshold": round(shown.threshold_seconds, 1) if shown else None,
        "due": None if verdict.due_in_seconds is None else round(verdict.due_in_seconds, 1),
        **_told(story, backgrounds.place(sources)),
    }


def _has_habit(device: Device, source_id: int) -> bool:
    habit = (device.habits or {}).get(source_id)
    return habit is not None and habit.heard >= HABIT_MESSAGES


def _disassociated(name: str, story: _Story, backgrounds: _Backgrounds) -> dict[str, Any]:
    return {
        "name": name,
        "state": "disassociated",
        "says": f"It was disassociated; pruner restore {name} associates it again.",
        "absent": 0,
        "threshold": None,
        "due": None,
        **_told(story, backgrounds.place([story.proved_by])),
    }


def _told(story: _Story, background: int) -> dict[str, Any]:
    return {
        "since": round(story.since, 2),
        "background": background,
        "present": _rounded(story.present.spans),
        "outage": _rounded(story.outage.spans),
        "marked": _rounded(story.marked.spans),
        "gone": _rounded(story.gone.spans),
        "decisions": [[round(at, 2), kind, lines] for at, kind, lines in story.decisions],
    }


def _source(name: str, found: Snapshot, chart: _Chart) -> dict[str, Any]:
    now = found.status["sources"].get(name, {"vouching": False, "reason": "it is no longer in force"})
    proof = next((w.proof for w in found.now.witnesses if w.name == name), None)
    return {
        "name": name,
        "vouching": now["vouching"],
        "reason": now["reason"],
        "proof": proof.value if proof else "",
        "rests": PROOFS[proof] if proof else "",
        "clock": about(now["clockSeconds"]) if "clockSeconds" in now else "",
        "spans": _rounded(chart.vouching[name].spans if name in chart.vouching else ()),
        "events": [[round(at, 2), kind, lines] for at, kind, lines in chart.source_events.get(name, ())],
    }


def _cycle_lines(kind: str, data: Mapping[str, Any]) -> Lines:
    if kind == "configuration":
        lines = [("configuration", "taken over" if data["accepted"] else "refused")]
        return lines + [("", problem) for problem in data["problems"]]
    states = ", ".join(f"{data[state.value]} {state.value}" for state in State if data.get(state.value))
    lines = [("cycle", str(data.get("cycleId", ""))), ("devices", states or "none")]
    lines.append(("disassociated", str(data.get("disassociated", 0))))
    if data.get("dryRun"):
        lines.append(("dry run", f"would disassociate {data.get('wouldDisassociate', 0)}"))
    if data.get("held"):
        lines.append(("held by", ", ".join(data["held"])))
    return lines


def _rounded(spans: Iterable[Span]) -> list[Sequence[float]]:
    return [_pair(span) for span in spans]


def _pair(span: Span) -> list[float]:
    return [round(span[0], 2), round(span[1], 2)]
