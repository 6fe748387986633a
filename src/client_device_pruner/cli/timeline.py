"""`pruner report FILE.html`: one page with the timeline of every device, when we observed, and what was decided.

The page carries its data as JSON and draws it in the reader's browser, so it needs no library and no network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from client_device_pruner.cli.reading import Happening, Snapshot, Thing
from client_device_pruner.cli.render import about, evidence_of, utc
from client_device_pruner.decisions.policy import State
from client_device_pruner.store.history import TimelineRow

LONGEST_SECONDS = 400 * 86_400.0
"""What is older is not drawn: a wall clock that was once years off is not to stretch the page."""
_TEMPLATE = Path(__file__).with_name("report.html")
_DECISIONS = ("marked", "unmarked", "intended", "disassociated", "failed", "returned", "restored")
_STATES = frozenset(state.value for state in State)


def page(data: Mapping[str, Any]) -> str:
    """The page with this data (see `compose`) in it.

    Its content security policy allows the page's own style and script, by their hashes, and nothing else.
    """
    template = _TEMPLATE.read_text("utf-8")
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"
    for kind in ("style", "script"):
        found = re.search(f"<{kind}>(.*?)</{kind}>", template, re.DOTALL)
        digest = hashlib.sha256((found[1] if found else "").encode()).digest()
        policy += f"; {kind}-src 'sha256-{base64.b64encode(digest).decode()}'"
    # Nothing in a string of JSON can end its element, or begin a comment.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
    filled = {"policy": html.escape(policy), "core": html.escape(data["core"]), "data": embedded}
    return re.sub(r"\{\{(policy|core|data)\}\}", lambda slot: filled[slot[1]], template)


def compose(
    found: Snapshot, events: Sequence[Happening], changes: Sequence[TimelineRow], journal: Iterable[Happening]
) -> dict[str, Any]:
    """What the page shows, ready for JSON; times are seconds since `start`, which is in epoch seconds.

    Args:
        found: how things stand.
        events: all events, in the order in which they were.
        changes: all changes of state, in the order in which they were.
        journal: the history of the devices, for disassociations whose event was lost in a crash.
    """
    start, happenings = _on_one_time(found.written, events, changes, journal)
    end = found.written - start
    chart = _Chart()
    for happening in happenings:
        chart.take(happening)
    own, associated = chart.lane("", "the component"), {thing.name for thing in found.associated}
    guards = [lane for (kind, _name), lane in sorted(chart.lanes.items()) if kind == "guard"]
    devices = [chart.lane("device", thing.name).row(end, **_told(thing)) for thing in found.associated]
    devices += [
        lane.row(end, state="disassociated", figure="", silent=0, says=f"pruner restore {name} associates it again.")
        for (kind, name), lane in sorted(chart.lanes.items())
        if kind == "device" and lane.state == "disassociated" and name not in associated
    ]
    return {
        "core": found.core_device,
        "start": round(start, 3),
        "end": round(end, 3),
        "asOf": utc(found.written),
        "running": found.running,
        "dryRun": found.status["dryRun"],
        "coverage": found.status["coverage"],
        "held": found.status["guards"],
        "doctor": found.status["doctor"],
        "lanes": [own.row(end), *(lane.row(end) for lane in guards)],
        "devices": devices,
    }


def _on_one_time(
    written: float, events: Sequence[Happening], changes: Sequence[TimelineRow], journal: Iterable[Happening]
) -> tuple[float, list[Happening]]:
    """All that happened, in order, and when the page begins (epoch seconds); walls become seconds since then.

    The wall clock may have been set in between. The order in which things happened is known, and the latest wall is
    taken to be right: nothing can have happened later than what came after it.
    """
    happenings = []
    for record in (events, [Happening(wall, state, name, {"change": True}) for wall, name, state in changes]):
        at = written
        for happening in reversed(record):
            at = min(at, happening.wall)
            happenings.append(replace(happening, wall=at))
    happenings.reverse()
    known = {(h.name, h.data.get("cycleId")) for h in happenings if h.kind == "disassociated"}
    happenings += [
        replace(h, wall=min(h.wall, written))
        for h in journal
        if h.kind in {"intended", "disassociated"} and (h.name, h.data.get("cycleId")) not in known
    ]
    start = min((h.wall for h in happenings if h.wall >= written - LONGEST_SECONDS), default=written)
    start = min(start, written - 1.0)
    ordered = sorted(happenings, key=lambda happening: happening.wall)
    return start, [replace(h, wall=max(0.0, h.wall - start)) for h in ordered]


@dataclass(slots=True)
class _Lane:
    """One row of the page: what its state was, and what was decided.

    Attributes:
        name: what it is called.
        state: its state now; "" if there is none.
        since: when that state began.
        why: what is to be said of that state: labels and texts.
        spans: earlier states: from, to, state, and what is to be said.
        decisions: when, what, and on what evidence.
    """

    name: str
    state: str = ""
    since: float = 0.0
    why: list[tuple[str, str]] = field(default_factory=list)
    spans: list[tuple[float, float, str, list[tuple[str, str]]]] = field(default_factory=list)
    decisions: list[tuple[float, str, list[tuple[str, str]]]] = field(default_factory=list)

    def become(self, at: float, state: str, why: list[tuple[str, str]] | None = None) -> None:
        if (state, why or []) == (self.state, self.why):
            return
        if self.state and at > self.since:
            self.spans.append((round(self.since, 2), round(at, 2), self.state, self.why))
        self.state, self.since, self.why = state, at, why or []

    def row(self, end: float, **more: Any) -> dict[str, Any]:
        """The row, ready for JSON; its last state lasts until the end."""
        last = [(round(self.since, 2), round(end, 2), self.state, self.why)] if self.state else []
        return {"name": self.name, "spans": self.spans + last, "decisions": self.decisions, **more}


class _Chart:
    """Takes what happened, in order, and keeps it as lanes, by their kind and name."""

    def __init__(self) -> None:
        self.lanes: dict[tuple[str, str], _Lane] = {}
        self._latest = 0.0

    def lane(self, kind: str, name: str) -> _Lane:
        return self.lanes.setdefault((kind, name), _Lane(name))

    def take(self, happening: Happening) -> None:
        kind, at, name, data = happening.kind, happening.wall, happening.name, happening.data
        if kind in {"started", "stopped", "observing", "notObserving"}:
            self._take_own(kind, at)
        elif kind in {"held", "released"}:
            why = [("why", str(data["reason"])), ("what to do", str(data["remedy"]))]
            self.lane("guard", data["guard"]).become(at, "held" if kind == "held" else "", why)
        elif kind in {"cycle", "configuration"}:
            lines = [(key, ", ".join(value) if isinstance(value, list) else str(value)) for key, value in data.items()]
            self.lane("", "the component").decisions.append((round(at, 2), kind, lines))
        elif name is not None:
            lane = self.lane("device", name)
            if "change" in data and kind in _STATES:
                lane.become(at, kind)
            elif kind in _DECISIONS:
                lane.decisions.append((round(at, 2), kind, evidence_of(kind, data)))
                if kind in {"disassociated", "restored"}:
                    lane.become(at, "disassociated" if kind == "disassociated" else "silent")
        self._latest = at

    def _take_own(self, kind: str, at: float) -> None:
        own = self.lane("", "the component")
        if kind == "started":
            # Without a word of its end, it is known to have run until it last wrote.
            own.become(max(own.since, self._latest), "stopped")
        own.become(at, "notObserving" if kind == "started" else kind)
        if kind in {"started", "stopped"}:
            for lane in [lane for (of, _name), lane in self.lanes.items() if of == "guard"]:
                lane.become(at, "")


def _told(thing: Thing) -> dict[str, Any]:
    silent, patience, due = thing.silent_seconds, thing.patience_seconds, thing.due_in_seconds
    figure = ""
    if due is not None:
        figure = f"due in {about(due)}" if due else "next cycle"
    elif silent is not None and thing.state != "present":
        figure = f"{about(silent)} of {'for ever' if patience is None else about(patience)}"
    return {"state": thing.state, "figure": figure, "silent": silent or 0.0, "says": " ".join(thing.sentences)}
