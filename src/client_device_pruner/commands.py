"""The command line on the core device: what people and scripts ask of the component, through its state file."""

from __future__ import annotations

import argparse
import io
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from client_device_pruner import __version__, snapshot, teaching
from client_device_pruner.explanation import PROOFS, Explanation, evidence, explain, nearest
from client_device_pruner.ledger import transaction
from client_device_pruner.model import State
from client_device_pruner.policy import Condition, Testimony, Verdict, assess
from client_device_pruner.reports import rfc3339
from client_device_pruner.snapshot import Snapshot, StateUnreadable
from client_device_pruner.tables import Painter, about, moment, plain, table

BUSY_SECONDS = 10.0
"""How long a request waits for its turn to write."""
_COLOURS = {
    State.PRESENT: "good",
    State.MARKED: "warning",
    State.DUE: "bad",
    State.PROTECTED: "faint",
    State.UNKNOWN: "faint",
}
_NONE = "No device is associated, or the first cycle has not listed them yet."
_SOME = 10  # names in one sentence


class Failed(Exception):
    """A command could not do what it was asked; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command answers: a value in JSON for machines, or a text for people, in their terminal's colours."""

    value: Any
    text: Callable[[Painter], str]


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `run` does it or raises `Failed`; `arguments` are its own, as argparse's `add_argument` has them."""

    name: str
    summary: str
    teaching: str
    run: Callable[[argparse.Namespace], Answer]
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; without a command, `command` is None."""
    whole = argparse.ArgumentParser(
        prog="pruner",
        description="Disassociates client devices from this core device once it is proven that they are gone.\n"
        "Without a command it runs the component, which Greengrass does; the commands ask it, or tell it.",
        epilog=teaching.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=__version__)
    _add_options(whole)
    whole.set_defaults(work_dir=Path.cwd())
    choices = whole.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        one = choices.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=command.teaching,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, more in command.arguments.items():
            one.add_argument(name, **more)
        # Left out here, they keep what was given before the command.
        _add_options(one, default=argparse.SUPPRESS)
        one.set_defaults(run=command.run, parser=one)
    return whole


def _add_options(one: argparse.ArgumentParser, **default: Any) -> None:
    one.add_argument("--work-dir", type=Path, metavar="DIR", help="the component's work directory", **default)
    one.add_argument("--json", action="store_true", help="answer in JSON, for machines", **default)


def carry_out(options: argparse.Namespace) -> int:
    """Carry out the command that was parsed, and say its answer; returns 0, or 1 if it failed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        answer: Answer = options.run(options)
    except (Failed, StateUnreadable) as failure:
        _say(str(failure), sys.stderr)
        return 1
    try:
        if options.json:
            sys.stdout.write(json.dumps(answer.value, indent=2) + "\n")
        else:
            _say(answer.text(Painter(sys.stdout)), sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        # Python's own flush at the end is to find nothing broken.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # whoever read has what he wanted
        _say(f"The answer cannot be written: {error.strerror}.", sys.stderr)
        return 1
    return 0


def _say(text: str, stream: TextIO) -> None:
    stream.write(plain(text, colours=Painter(stream).colours) + "\n")


# --- Reading ----------------------------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> Answer:
    found = snapshot.read(options.work_dir)
    value = {"running": found.running, "time": rfc3339(found.written), **found.status}
    return Answer(value, lambda paint: _status_text(found, paint))


def _status_text(found: Snapshot, paint: Painter) -> str:
    status, coverage = found.status, found.status["coverage"]
    age = f"as of {moment(found.written)}, {about(max(0.0, time.time() - found.written))} ago"
    running = paint("runs", "good") if found.running else paint("does not run", "bad")
    counts = ", ".join(f"{number} {state}" for state, number in status["counts"].items())
    left = status["nextCheckInSeconds"]
    # The doctor's findings, and what the sources wait for, have sections of their own.
    told = (*(finding["finding"] for finding in status["doctor"]), *(f"source {name} " for name in status["sources"]))
    devices = f"{coverage['associated']} associated: {counts}" if found.devices else _NONE
    summary = table(
        [
            ("Component", f"{running} on {found.core_device} ({age})"),
            ("Devices", devices),
            ("Coverage", f"{coverage['provable']} of {coverage['associated']} can be pruned once they are gone"),
            *(("", reason) for reason in coverage["reasons"] if not reason.startswith(told)),
            ("Next cycle", f"in {about(left)}" if left else "now" if left == 0 else "none is planned"),
        ]
    )
    rows = [
        (name, _yes_or_no(source["vouching"], paint), about(source["clockSeconds"]), source["reason"])
        for name, source in status["sources"].items()
    ]
    sources = table(rows, ("SOURCE", "VOUCHES", "CLOCK", "WHY"), "  ") if rows else "  none"
    guards = [(f"{paint(g['guard'], 'warning')}: {g['reason']}", g["remedy"]) for g in status["guards"]]
    sections = {"Sources": sources, "Guards in force": _remedies(guards)}
    if plan := status["plan"]:
        title = f"Plan that waits for approval: {plan['id']}"
        sections[title] = _remedies([(_devices(plan["devices"]), f"pruner approve {plan['id']}")], indent="  ")
    sections["The doctor found"] = _remedies((doc["finding"], doc["remedy"]) for doc in status["doctor"])
    return _sections(summary, sections, paint)


def _remedies(rows: Iterable[tuple[str, str]], indent: str = "    ") -> str:
    lines: list[str] = []
    for what, remedy in rows:
        lines += [f"  {what}", *(f"{indent}→ {line}" for line in remedy.splitlines())]
    return "\n".join(lines) or "  nothing"


def _list(options: argparse.Namespace) -> Answer:
    found = snapshot.read(options.work_dir)
    verdicts = [assess(device, found.now) for _name, device in sorted(found.devices.items())]
    if options.state:
        verdicts = [verdict for verdict in verdicts if verdict.state_so_far.value == options.state]
    if not found.running:
        _say(f"The component does not run: this is how things stood at {moment(found.written)}.", sys.stderr)
    shown = [(verdict, nearest(verdict, found.now)) for verdict in verdicts]
    never = found.now.settings.never_seen_seconds is None

    def text(paint: Painter) -> str:
        if shown:
            rows = [_row(verdict, testimony, paint, never=never) for verdict, testimony in shown]
            return table(rows, ("THING", "STATE", "ABSENT", "OF", "PROOF", "SOURCE", "DUE"))
        if options.state:
            return f"No device is {options.state}."
        return _NONE

    return Answer([_listed(verdict, testimony, never=never) for verdict, testimony in shown], text)


def _row(verdict: Verdict, shown: Testimony | None, paint: Painter, *, never: bool) -> tuple[str, ...]:
    state = paint(verdict.state_so_far.value, _COLOURS.get(verdict.state_so_far, ""))
    gone = verdict.state not in (State.PRESENT, State.PROTECTED)
    due = "-"
    if verdict.state_so_far is State.DUE:
        due = "next cycle"
    elif verdict.due_in_seconds is not None:
        still = verdict.testimony is not None and not verdict.testimony.proves
        due = f"in {about(verdict.due_in_seconds)}" + (", stands still" if still else "")
    return (
        verdict.device.name,
        state,
        about(shown.absence_seconds) if shown and gone else "-",
        "-" if shown is None else "never" if never and not verdict.device.seen else about(shown.threshold_seconds),
        verdict.testimony.witness.proof.value if verdict.testimony else "-",
        shown.witness.name if shown and gone else "-",
        due,
    )


def _listed(verdict: Verdict, shown: Testimony | None, *, never: bool) -> dict[str, Any]:
    gone = verdict.state is not State.PRESENT
    threshold = None if shown is None or (never and not verdict.device.seen) else round(shown.threshold_seconds, 3)
    return {
        "thingName": verdict.device.name,
        "state": verdict.state_so_far.value,
        "offlineSeconds": round(shown.absence_seconds if gone else 0.0, 3) if shown else None,
        "thresholdSeconds": threshold,
        "proof": verdict.testimony.witness.proof.value if verdict.testimony else None,
        "sourceName": shown.witness.name if shown else None,
        "dueInSeconds": None if verdict.due_in_seconds is None else round(verdict.due_in_seconds, 3),
    }


def _explain(options: argparse.Namespace) -> Answer:
    found = snapshot.read(options.work_dir)
    device = found.devices.get(options.thing)
    if device is None:
        return _explain_absentee(options, found)
    explanation = explain(device, found)
    return Answer(_explained(explanation), lambda paint: _explanation_text(explanation, paint))


def _explain_absentee(options: argparse.Namespace, found: Snapshot) -> Answer:
    """Say of a name that is not associated what became of it; fails if nothing is known of it."""
    name = options.thing
    restorable, _ever = snapshot.read_journal(options.work_dir)
    intent = next((intent for intent in restorable if intent.name == name), None)
    if intent is None:
        unknown = f"{name} is not associated with this core device.{_near(name, found.devices)}"
        raise Failed(unknown if found.devices else _NONE)
    conclusion = (
        f"It was disassociated at {moment(intent.intended_wall)} in cycle {intent.cycle_id};"
        f" pruner restore {name} associates it again."
    )
    value = {"thingName": name, "state": None, "disassociated": intent.evidence, "conclusion": conclusion}
    return Answer(value, lambda _paint: f"{name} is not associated with this core device. {conclusion}")


def _near(name: str, known: Iterable[str]) -> str:
    import difflib  # the component itself has no use for it

    folded: dict[str, list[str]] = {}
    for one in sorted(known):
        folded.setdefault(one.casefold(), []).append(one)
    close = difflib.get_close_matches(name.casefold(), folded, n=5)
    close += [one for one in folded if name.casefold() in one and one not in close]
    names = [one for key in close for one in folded[key]][:5]
    return f" Did you mean {' or '.join(names)}?" if names else " pruner list shows the devices that are associated."


def _explanation_text(explanation: Explanation, paint: Painter) -> str:
    verdict = explanation.verdict
    state = paint(verdict.state_so_far.value, _COLOURS.get(verdict.state_so_far, ""))
    sections = {"For every disassociation": _checks(explanation.general, paint)}
    for testimony in explanation.testimonies:
        witness = testimony.witness
        title = f"Source {witness.name}, by {PROOFS[witness.proof]} ({witness.proof.value})"
        sections[title] = _checks(testimony.conditions, paint)
    sections["Between the proof and the disassociation"] = _checks(explanation.last, paint)
    heading = f"{paint(verdict.device.name, 'title')}: {state}"
    return f"{_sections(heading, sections, paint)}\n\n{explanation.conclusion}"


def _checks(conditions: Iterable[Condition], paint: Painter) -> str:
    rows = [(_yes_or_no(c.met, paint), c.text) for c in conditions]
    return table(rows, indent="  ")


def _explained(explanation: Explanation) -> dict[str, Any]:
    def conditions(given: Iterable[Condition]) -> list[dict[str, Any]]:
        return [{"text": condition.text, "met": condition.met} for condition in given]

    verdict = explanation.verdict
    return {
        "thingName": verdict.device.name,
        "state": verdict.state_so_far.value,
        "associatedAt": rfc3339(verdict.device.associated_at) if verdict.device.associated_at else None,
        "seen": verdict.device.seen,
        "conditions": conditions(explanation.general),
        "sources": {
            testimony.witness.name: {
                "proof": testimony.witness.proof.value,
                "proves": testimony.proves,
                "offlineSeconds": round(testimony.absence_seconds, 3),
                "thresholdSeconds": round(testimony.threshold_seconds, 3),
                "conditions": conditions(testimony.conditions),
            }
            for testimony in explanation.testimonies
        },
        "finally": conditions(explanation.last),
        "dueInSeconds": None if verdict.due_in_seconds is None else round(verdict.due_in_seconds, 3),
        "conclusion": explanation.conclusion,
    }


def _history(options: argparse.Namespace) -> Answer:
    happenings = snapshot.read_history(options.work_dir, options.thing)
    if options.thing and not happenings:
        found = snapshot.read(options.work_dir)
        if options.thing not in found.devices:
            raise Failed(f"Nothing is known of {options.thing}.{_near(options.thing, found.devices)}")

    def text(paint: Painter) -> str:
        colours = {"marked": "warning", "disassociated": "bad", "intended": "bad", "failed": "bad", "restored": "good"}
        rows = []
        for happening in happenings:
            what = paint(happening.kind, colours.get(happening.kind, ""))
            told = "; ".join(" ".join(pair) for pair in evidence(happening))
            rows.append((moment(happening.wall), happening.name or "-", what, told))
        if not rows:
            return "Nothing has been marked, disassociated or restored yet."
        return table(rows, ("TIME", "THING", "WHAT", "EVIDENCE"))

    value = [{"time": rfc3339(h.wall), "type": h.kind, "thingName": h.name, "data": h.data} for h in happenings]
    return Answer(value, text)


def _report(options: argparse.Namespace) -> Answer:
    from client_device_pruner import report

    found = snapshot.read(options.work_dir)
    data = report.compose(found, snapshot.read_record(options.work_dir), snapshot.read_history(options.work_dir))
    page = report.render(data).encode()
    try:
        options.file.write_bytes(page)
    except OSError as error:
        raise Failed(f"{options.file} cannot be written ({error.strerror}): name a file that can.") from error
    path, number = options.file.absolute(), len(data["devices"])
    size = f"{number} devices, {len(page) / 1024:.0f} KiB"
    said = f"Wrote {path} ({size}): open it in any browser; it asks nothing of the network."
    return Answer({"file": str(path), "devices": number, "bytes": len(page)}, lambda _paint: said)


# --- Asking the component to act ----------------------------------------------------------------------------


def _restore(options: argparse.Namespace) -> Answer:
    ways = [bool(options.things), options.cycle is not None, options.all]
    if sum(ways) != 1:
        options.parser.error("name the things, or --cycle ID, or --all: one of the three")
    restorable, ever = snapshot.read_journal(options.work_dir)
    argument: dict[str, Any]
    if options.things:
        wanted = list(dict.fromkeys(options.things))
        argument = {"names": wanted}
        names = {intent.name for intent in restorable}
        problems = [
            f"{name} is restored already, or longer gone than 90 days."
            if name in ever
            else f"{name} was never disassociated by this component.{_near(name, names) if names else ''}"
            for name in wanted
            if name not in names
        ]
        if problems:
            raise Failed("\n".join([*problems, "Nothing was asked for."]))
    elif options.all:
        argument = {"all": True}
        wanted = [intent.name for intent in restorable]
        if not wanted:
            raise Failed("There is nothing to restore: no disassociation of the last 90 days still stands.")
    else:
        argument = {"cycle": options.cycle}
        wanted = [intent.name for intent in restorable if intent.cycle_id == options.cycle]
        if not wanted:
            raise Failed(
                f"Nothing that cycle {options.cycle} disassociated can be restored: pruner history shows the cycles."
            )
    running = _request(options.work_dir, "restore", argument)
    said = _queued(f"Asked to restore {_some(wanted)}", "within 60 s", running=running)
    return Answer({"queued": True, "names": wanted, "running": running}, lambda _paint: said)


def _approve(options: argparse.Namespace) -> Answer:
    found = snapshot.read(options.work_dir)
    members = found.plans.get(options.plan)
    if members is None:
        waiting = found.status["plan"]
        hint = f"the one that waits is {waiting['id']}" if waiting else "none waits"
        raise Failed(f"There is no plan {options.plan}: {hint}. Nothing was approved.")
    names = sorted({member.rpartition("@")[0] for member in members})
    queued, running = options.plan not in found.approved, found.running
    if queued:
        running = _request(options.work_dir, "approve", options.plan)
    done = f"Approved plan {options.plan}" if queued else f"Plan {options.plan} is approved already"
    said = _queued(f"{done} ({_devices(names)})", "the next cycle heeds it", running=running)
    return Answer({"queued": queued, "plan": options.plan, "names": names, "running": running}, lambda _paint: said)


def _request(work_dir: Path, kind: str, argument: Any) -> bool:
    """Queue a request in the state file; returns whether the component runs, to take it up.

    SQLite gives what root makes beside the file (`-wal`, `-shm`) to the owner of the file, so the component's user
    is not locked out.
    """
    path = work_dir / snapshot.STATE
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        ) as connection:
            row = (kind, json.dumps(argument))
            with transaction(connection, through=True) as write:
                waits = write.execute("SELECT 1 FROM requests WHERE kind = ? AND argument = ?", row).fetchone()
                if not waits:
                    write.execute("INSERT INTO requests (kind, argument) VALUES (?, ?)", row)
    except sqlite3.Error as error:
        raise Failed(f"{path} cannot be written ({error}): nothing was asked for.") from error
    return snapshot.is_running(work_dir)


# --- Words --------------------------------------------------------------------------------------------------


def _queued(done: str, when: str, *, running: bool) -> str:
    return f"{done}: {when}." if running else f"{done}. The component does not run: it will be done when it does."


def _devices(names: Sequence[str]) -> str:
    return f"{len(names)} devices: {_some(names)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SOME]) + (", …" if len(names) > _SOME else "")


def _yes_or_no(yes: bool, paint: Painter) -> str:
    return paint("yes", "good") if yes else paint("no", "warning")


def _sections(heading: str, sections: Mapping[str, str], paint: Painter) -> str:
    return "\n\n".join([heading, *(f"{paint(title, 'title')}\n{body}" for title, body in sections.items())])


# --- The commands -------------------------------------------------------------------------------------------


COMMANDS = (
    Command("status", "how the component is: sources, devices, guards, findings", teaching.STATUS, _status),
    Command(
        "list",
        "the client devices with state, absence and proof",
        teaching.LIST,
        _list,
        {"--state": {"choices": [state.value for state in State], "help": "only the devices in this state"}},
    ),
    Command(
        "explain",
        "why a device is, or is not, going to be disassociated",
        teaching.EXPLAIN,
        _explain,
        {"thing": {"metavar": "THING", "help": "the thing name of a client device"}},
    ),
    Command(
        "history",
        "what was marked, disassociated, restored, and on what evidence",
        teaching.HISTORY,
        _history,
        {"thing": {"metavar": "THING", "nargs": "?", "help": "only what concerns this client device"}},
    ),
    Command(
        "report",
        "one page for a browser: timelines of all devices, sources, guards and decisions",
        teaching.REPORT,
        _report,
        {"file": {"metavar": "FILE.html", "type": Path, "help": "the file to write; one that exists is replaced"}},
    ),
    Command(
        "restore",
        "associate again what was disassociated",
        teaching.RESTORE,
        _restore,
        {
            "things": {"metavar": "THING", "nargs": "*", "help": "thing names of client devices"},
            "--cycle": {"metavar": "ID", "help": "all that this cycle disassociated"},
            "--all": {"action": "store_true", "help": "all that can be restored: of the last 90 days"},
        },
    ),
    Command(
        "approve",
        "approve the plan that waits",
        teaching.APPROVE,
        _approve,
        {"plan": {"metavar": "PLAN", "help": "the id of the plan, as pruner status shows it"}},
    ),
)
"""All commands, in the order of `--help`; one more is one more entry."""
