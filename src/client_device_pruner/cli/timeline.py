"""`pruner report FILE.html`: one page with the timeline of every device, when we observed, and what was decided.

The page carries its data as JSON and draws it in the reader's browser, so it needs no library and no network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from client_device_pruner.cli.reading import Snapshot, Thing
from client_device_pruner.cli.render import about, evidence_of, until_due, utc
from client_device_pruner.decisions.policy import State
from client_device_pruner.store.history import CHANGE, Happening

LONGEST_SECONDS = 400 * 86_400.0
"""What is older is not drawn: a wall clock that was once years off is not to stretch the page."""
_TEMPLATE = Path(__file__).with_name("report.html")
_DECISIONS = ("marked", "unmarked", "disassociated", "failed", "returned", "restored")
_STATES = frozenset(state.value for state in State)
_OWN = "the component"


def page(data: Mapping[str, Any]) -> str:
    """The page with this data (see `compose`) in it.

    Its content security policy allows the page's own style and script, by their hashes, and nothing else.
    """
    template = _TEMPLATE.read_text("utf-8")
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"
    for kind, text in re.findall(r"<(style|script)>(.*?)</\1>", template, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy += f"; {kind}-src 'sha256-{digest}'"
    # Nothing in a string of JSON can end its element, or begin a comment.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
    filled = {"policy": html.escape(policy), "core": html.escape(data["core"]), "data": embedded}
    return re.sub(r"\{\{(policy|core|data)\}\}", lambda slot: filled[slot[1]], template)


def compose(found: Snapshot, events: Sequence[Happening], changes: Sequence[Happening]) -> dict[str, Any]:
    """What the page shows, ready for JSON; times are seconds since `start`, which is in epoch seconds.

    Events and changes of state come in the order in which they were.
    """
    happenings = _in_order(found.written, events) + _in_order(found.written, changes)
    happenings.sort(key=lambda happening: happening.wall)
    start = min([found.written - 1.0, *(h.wall for h in happenings if h.wall >= found.written - LONGEST_SECONDS)])
    end = found.written - start
    lanes, associated = _Lanes(), {thing.name for thing in found.associated}
    for happening in happenings:
        lanes.take(replace(happening, wall=round(max(0.0, happening.wall - start), 2)))
    devices = [
        lanes.of("device", thing.name).row(end, **_told(thing, found.status["guards"])) for thing in found.associated
    ]
    devices += [
        lane.row(end, state="disassociated", figure="", silent=0, says=f"pruner restore {name} associates it again.")
        for (kind, name), lane in sorted(lanes.items())
        if kind == "device" and lane.state == "disassociated" and name not in associated
    ]
    guards = [lane for (kind, _name), lane in sorted(lanes.items()) if kind == "guard"]
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
        "lanes": [lane.row(end) for lane in (lanes.of("", _OWN), *guards)],
        "devices": devices,
    }


def _in_order(written: float, record: Sequence[Happening]) -> list[Happening]:
    """Set walls right: what came earlier cannot have happened later, though the clock may have been set since."""
    ordered, at = [], written
    for happening in reversed(record):
        at = min(at, happening.wall)
        ordered.append(replace(happening, wall=at))
    return ordered[::-1]


@dataclass(slots=True)
class _Lane:
    """One row of the page: its state now, since when and why, earlier states as spans, and what was decided."""

    name: str
    state: str = ""
    since: float = 0.0
    why: list[tuple[str, str]] = field(default_factory=list)
    spans: list[tuple[float, float, str, list[tuple[str, str]]]] = field(default_factory=list)
    decisions: list[tuple[float, str, list[tuple[str, str]]]] = field(default_factory=list)

    def become(self, at: float, state: str, why: Sequence[tuple[str, str]] = ()) -> None:
        if (state, list(why)) == (self.state, self.why):
            return
        if self.state and at > self.since:
            self.spans.append((self.since, at, self.state, self.why))
        self.state, self.since, self.why = state, at, list(why)

    def row(self, end: float, **more: Any) -> dict[str, Any]:
        """The row, ready for JSON; its last state lasts until the end."""
        last = [(self.since, round(end, 2), self.state, self.why)] if self.state else []
        return {"name": self.name, "spans": self.spans + last, "decisions": self.decisions, **more}


class _Lanes(dict[tuple[str, str], _Lane]):
    """Takes what happened, in order, and keeps it as lanes, by their kind and name."""

    latest = 0.0

    def of(self, kind: str, name: str) -> _Lane:
        return self.setdefault((kind, name), _Lane(name))

    def take(self, happening: Happening) -> None:
        kind, at, name, data = happening.kind, happening.wall, happening.name, happening.data
        own = self.of("", _OWN)
        if kind in {"started", "stopped"}:
            if kind == "started":
                # Without a word of its end, it is known to have run until it last wrote.
                own.become(max(own.since, self.latest), "stopped")
            own.become(at, "notObserving" if kind == "started" else kind)
            for guard in [lane for (of, _name), lane in self.items() if of == "guard"]:
                guard.become(at, "")
        elif kind in {"observing", "notObserving"}:
            own.become(at, kind)
        elif kind in {"held", "released"}:
            why = [("why", str(data["reason"])), ("what to do", str(data["remedy"]))]
            self.of("guard", data["guard"]).become(at, "held" if kind == "held" else "", why)
        elif kind in {"cycle", "configuration"}:
            lines = [(key, ", ".join(value) if isinstance(value, list) else str(value)) for key, value in data.items()]
            own.decisions.append((at, kind, lines))
        elif name is not None and data == CHANGE and kind in _STATES:
            self.of("device", name).become(at, kind)
        elif name is not None and kind in _DECISIONS:
            self.of("device", name).decisions.append((at, kind, evidence_of(kind, data)))
            if kind in {"disassociated", "restored"}:
                self.of("device", name).become(at, "disassociated" if kind == "disassociated" else "silent")
        self.latest = at


def _told(thing: Thing, guards: Sequence[Any]) -> dict[str, Any]:
    silent, patience, due = thing.silent_seconds, thing.patience_seconds, thing.due_in_seconds
    figure = ""
    if due is not None:
        figure = f"due in {about(due)}" if due else until_due(due, guards)
    elif silent is not None and thing.state != "present":
        figure = f"{about(silent)} of {'unlimited' if patience is None else about(patience)}"
    return {"state": thing.state, "figure": figure, "silent": silent or 0.0, "says": " ".join(thing.sentences)}
