"""The command line on the core device: what people and scripts ask of the component, through its state file."""

from __future__ import annotations

import argparse
import io
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from client_device_pruner import __version__, snapshot, teaching
from client_device_pruner.explanation import PROOFS, Explanation, explain, nearest
from client_device_pruner.ledger import transaction
from client_device_pruner.model import State
from client_device_pruner.policy import Condition, Testimony, Verdict, assess
from client_device_pruner.reports import rfc3339
from client_device_pruner.snapshot import Happening, Snapshot, StateUnreadable
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
_LATER = "The component does not run: it will be done when it does."


class Failed(Exception):
    """A command could not do what it was asked; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `arguments` adds its own arguments to a parser, `run` does it (exit status 0) or raises `Failed`."""

    name: str
    summary: str
    teaching: str
    run: Callable[[argparse.Namespace], None]
    arguments: Callable[[argparse.ArgumentParser], object] = lambda _parser: None


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
    whole.add_argument(
        "--work-dir", type=Path, default=Path.cwd(), metavar="DIR", help="the component's work directory"
    )
    whole.add_argument("--json", action="store_true", help="answer in JSON, for machines")
    choices = whole.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        one = choices.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=command.teaching,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(one)
        # Left out here, they keep what was given before the command.
        one.add_argument(
            "--work-dir", type=Path, default=argparse.SUPPRESS, metavar="DIR", help="the component's work directory"
        )
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="answer in JSON, for machines")
        one.set_defaults(run=command.run, parser=one)
    return whole


def carry_out(options: argparse.Namespace) -> int:
    """Carry out the command that was parsed; returns 0, or 1 if it failed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        options.run(options)
        sys.stdout.flush()
    except (Failed, StateUnreadable) as failure:
        _say(str(failure), sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read has what he wanted; Python's own flush at the end is to find nothing broken.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# --- Reading ----------------------------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> None:
    found = snapshot.read(options.work_dir)
    if options.json:
        _print_json({"running": found.running, "time": rfc3339(found.written), **found.status})
        return
    paint = Painter(sys.stdout)
    status, coverage = found.status, found.status["coverage"]
    age = f"as of {moment(found.written)}, {about(max(0.0, time.time() - found.written))} ago"
    running = paint("runs", "good") if found.running else paint("does not run", "bad")
    counts = ", ".join(f"{number} {state}" for state, number in status["counts"].items())
    left = status["nextCheckInSeconds"]
    next_cycle = f"in {about(left)}" if left else "now" if left == 0 else "none is planned"
    _print(
        table(
            [
                ("Component", f"{running} on {found.core_device} ({age})"),
                ("Devices", f"{coverage['associated']} associated: {counts}"),
                ("Coverage", f"{coverage['provable']} of {coverage['associated']} can be pruned once they are gone"),
                *(("", reason) for reason in coverage["reasons"]),
                ("Next cycle", next_cycle),
            ]
        )
    )
    rows = [
        (
            name,
            paint("yes", "good") if source["vouching"] else paint("no", "warning"),
            about(source["clockSeconds"]),
            source["reason"],
        )
        for name, source in status["sources"].items()
    ]
    _print_section(paint, "Sources", table(rows, ("SOURCE", "VOUCHES", "CLOCK", "WHY"), "  ") if rows else "  none")
    guards = [(guard["guard"], guard["reason"], guard["remedy"]) for guard in status["guards"]]
    _print_section(paint, "Guards in force", _remedies(guards, paint))
    if status["plan"]:
        names = status["plan"]["devices"]
        _print_section(
            paint,
            f"Plan that waits for approval: {status['plan']['id']}",
            f"  {len(names)} devices: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}\n"
            f"  → pruner approve {status['plan']['id']}",
        )
    findings = [("", finding["finding"], finding["remedy"]) for finding in status["doctor"]]
    _print_section(paint, "The doctor found", _remedies(findings, paint))


def _remedies(rows: Iterable[tuple[str, str, str]], paint: Painter) -> str:
    lines = []
    for name, reason, remedy in rows:
        label = f"{paint(name, 'warning')}: " if name else ""
        lines += [f"  {label}{reason}", *(f"    → {line}" for line in remedy.splitlines())]
    return "\n".join(lines) or "  nothing"


def _list(options: argparse.Namespace) -> None:
    found = snapshot.read(options.work_dir)
    verdicts = [assess(device, found.now) for _name, device in sorted(found.devices.items())]
    if options.state:
        verdicts = [verdict for verdict in verdicts if verdict.state_so_far.value == options.state]
    _warn_if_ended(found)
    if options.json:
        _print_json([_listed(verdict, nearest(verdict, found.now)) for verdict in verdicts])
        return
    paint = Painter(sys.stdout)
    rows = [_row(verdict, nearest(verdict, found.now), paint) for verdict in verdicts]
    if rows:
        _print(table(rows, ("THING", "STATE", "ABSENT", "OF", "PROOF", "SOURCE", "DUE")))
    elif options.state:
        _print(f"No device is {options.state}.")
    else:
        _print("No device is associated, or the first cycle has not listed them yet (pruner status).")


def _row(verdict: Verdict, shown: Testimony | None, paint: Painter) -> tuple[str, ...]:
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
        about(shown.threshold_seconds) if shown else "-",
        verdict.testimony.witness.proof.value if verdict.testimony else "-",
        shown.witness.name if shown and gone else "-",
        due,
    )


def _listed(verdict: Verdict, shown: Testimony | None) -> dict[str, Any]:
    gone = verdict.state is not State.PRESENT
    return {
        "thingName": verdict.device.name,
        "state": verdict.state_so_far.value,
        "offlineSeconds": round(shown.absence_seconds if gone else 0.0, 3) if shown else None,
        "thresholdSeconds": round(shown.threshold_seconds, 3) if shown else None,
        "proof": verdict.testimony.witness.proof.value if verdict.testimony else None,
        "sourceName": shown.witness.name if shown else None,
        "dueInSeconds": None if verdict.due_in_seconds is None else round(verdict.due_in_seconds, 3),
    }


def _explain(options: argparse.Namespace) -> None:
    found = snapshot.read(options.work_dir)
    name = options.thing
    device = found.devices.get(name)
    if device is None:
        _explain_absentee(options, found)
        return
    explanation = explain(device, found)
    if options.json:
        _print_json(_explained(explanation))
        return
    _print_explanation(explanation, Painter(sys.stdout))


def _explain_absentee(options: argparse.Namespace, found: Snapshot) -> None:
    """Say of a name that is not associated what became of it; fails if nothing is known of it."""
    name = options.thing
    restorable, _ever = snapshot.read_journal(options.work_dir)
    intent = next((intent for intent in restorable if intent.name == name), None)
    if intent is None:
        raise Failed(f"{name} is not associated with this core device.{_near(name, found.devices)}")
    conclusion = (
        f"It was disassociated at {moment(intent.intended_wall)} in cycle {intent.cycle_id};"
        f" pruner restore {name} associates it again."
    )
    if options.json:
        _print_json({"thingName": name, "state": None, "disassociated": intent.evidence, "conclusion": conclusion})
    else:
        _print(f"{name} is not associated with this core device. {conclusion}")


def _near(name: str, known: Iterable[str]) -> str:
    import difflib  # the component itself has no use for it

    folded: dict[str, list[str]] = {}
    for one in sorted(known):
        folded.setdefault(one.casefold(), []).append(one)
    close = difflib.get_close_matches(name.casefold(), folded, n=5)
    close += [one for one in folded if name.casefold() in one and one not in close]
    names = [one for key in close for one in folded[key]][:5]
    return f" Did you mean {' or '.join(names)}?" if names else " pruner list shows those that are."


def _print_explanation(explanation: Explanation, paint: Painter) -> None:
    verdict = explanation.verdict
    state = paint(verdict.state_so_far.value, _COLOURS.get(verdict.state_so_far, ""))
    _print(f"{paint(verdict.device.name, 'title')}: {state}")
    _print_section(paint, "For every disassociation", _checks(explanation.general, paint))
    for testimony in explanation.testimonies:
        witness = testimony.witness
        title = f"Source {witness.name}, by {PROOFS[witness.proof]} ({witness.proof.value})"
        _print_section(paint, title, _checks(testimony.conditions, paint))
    _print_section(paint, "Between the proof and the disassociation", _checks(explanation.last, paint))
    _print(f"\n{explanation.conclusion}")


def _checks(conditions: Iterable[Condition], paint: Painter) -> str:
    rows = [(paint("yes", "good") if c.met else paint("no", "warning"), c.text) for c in conditions]
    return table(rows, indent="  ")


def _explained(explanation: Explanation) -> dict[str, Any]:
    def conditions(given: Iterable[Condition]) -> list[dict[str, Any]]:
        return [{"text": condition.text, "met": condition.met} for condition in given]

    verdict = explanation.verdict
    association = verdict.device.association
    return {
        "thingName": verdict.device.name,
        "state": verdict.state_so_far.value,
        "associatedAt": rfc3339(association.timestamp) if association and association.timestamp else None,
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


def _history(options: argparse.Namespace) -> None:
    happenings = snapshot.read_history(options.work_dir, options.thing)
    if options.thing and not happenings:
        found = snapshot.read(options.work_dir)
        if options.thing not in found.devices:
            raise Failed(f"Nothing is known of {options.thing}.{_near(options.thing, found.devices)}")
    if options.json:
        _print_json(
            [{"time": rfc3339(h.wall), "type": h.kind, "thingName": h.name, "data": h.data} for h in happenings]
        )
        return
    if not happenings:
        _print("Nothing has been marked, disassociated or restored yet.")
        return
    paint = Painter(sys.stdout)
    colours = {"marked": "warning", "disassociated": "bad", "intended": "bad", "failed": "bad", "restored": "good"}
    rows = [(moment(h.wall), h.name or "-", paint(h.kind, colours.get(h.kind, "")), _evidence(h)) for h in happenings]
    _print(table(rows, ("TIME", "THING", "WHAT", "EVIDENCE")))


def _report(options: argparse.Namespace) -> None:
    from client_device_pruner import report

    found = snapshot.read(options.work_dir)
    data = report.compose(found, snapshot.read_record(options.work_dir), snapshot.read_history(options.work_dir))
    page = report.render(data).encode()
    try:
        options.file.write_bytes(page)
    except OSError as error:
        raise Failed(f"{options.file} cannot be written ({error.strerror}): name a file that can.") from error
    if options.json:
        _print_json({"file": str(options.file.absolute()), "devices": len(data["devices"]), "bytes": len(page)})
        return
    size = f"{len(data['devices'])} devices, {len(page) / 1024:.0f} KiB"
    _print(f"Wrote {options.file.absolute()} ({size}): open it in any browser; it asks nothing of the network.")


def _evidence(happening: Happening) -> str:
    """The data of an event, as a sentence would have it."""
    data = dict(happening.data)
    parts = []
    if "offlineSeconds" in data:
        threshold = f" of {about(data['thresholdSeconds'])}" if "thresholdSeconds" in data else ""
        parts.append(f"absent {about(data['offlineSeconds'])}{threshold}")
    if "proof" in data:
        parts.append(f"by {data['proof']}" + (f" of {data['sourceName']}" if "sourceName" in data else ""))
    if "dueInSeconds" in data:
        parts.append(f"notice {about(data['dueInSeconds'])}")
    parts += [str(data[key]) for key in ("code", "message", "reason") if data.get(key)]
    if happening.kind == "intended":
        parts.append("its outcome is not known yet")
    if "requestedBy" in data:
        parts.append(f"requested by {data['requestedBy']}")
    if "disassociatedAt" in data:
        parts.append(f"disassociated {data['disassociatedAt']}")
    if "restoredBy" in data:
        parts.append("restored since")
    if data.get("cycleId"):
        parts.append(f"cycle {data['cycleId']}")
    return ", ".join(parts)


# --- Asking the component to act ----------------------------------------------------------------------------


def _restore(options: argparse.Namespace) -> None:
    ways = [bool(options.things), options.cycle is not None, options.all]
    if sum(ways) != 1:
        options.parser.error("name the things, or --cycle ID, or --all: one of the three")
    restorable, ever = snapshot.read_journal(options.work_dir)
    argument: dict[str, Any]
    if options.things:
        argument = {"names": list(dict.fromkeys(options.things))}
        names = {intent.name for intent in restorable}
        problems = [
            f"{name} is restored already, or longer gone than 90 days."
            if name in ever
            else f"{name} was never disassociated by this component.{_near(name, names) if names else ''}"
            for name in argument["names"]
            if name not in names
        ]
        if problems:
            raise Failed("\n".join([*problems, "Nothing was asked for."]))
        wanted = argument["names"]
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
    done = f"Asked to restore {', '.join(wanted[:10])}{', …' if len(wanted) > 10 else ''}"
    _answer(options, {"queued": True, "names": wanted, "running": running}, f"{done}: within 60 s.", done)


def _approve(options: argparse.Namespace) -> None:
    found = snapshot.read(options.work_dir)
    members = found.plans.get(options.plan)
    if members is None:
        waiting = found.status["plan"]
        hint = f"the one that waits is {waiting['id']}" if waiting else "none waits"
        raise Failed(f"There is no plan {options.plan}: {hint}. Nothing was approved.")
    names = sorted({member.rpartition("@")[0] for member in members})
    devices = f"{len(names)} devices: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
    if options.plan in found.approved:
        answer = {"queued": False, "plan": options.plan, "names": names, "running": found.running}
        text = f"Plan {options.plan} is approved already ({devices})."
        _answer(options, answer, text, text)
        return
    running = _request(options.work_dir, "approve", options.plan)
    done = f"Approved plan {options.plan} ({devices})"
    answer = {"queued": True, "plan": options.plan, "names": names, "running": running}
    _answer(options, answer, f"{done}: the next cycle heeds it.", done)


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


# --- Saying it ----------------------------------------------------------------------------------------------


def _answer(options: argparse.Namespace, answer: dict[str, Any], text: str, later: str) -> None:
    if options.json:
        _print_json(answer)
    else:
        _print(text if answer["running"] else f"{later.removesuffix('.')}. {_LATER}")


def _warn_if_ended(found: Snapshot) -> None:
    if not found.running:
        _say(f"The component does not run: this is how things stood at {moment(found.written)}.", sys.stderr)


def _print_section(paint: Painter, title: str, body: str) -> None:
    _print(f"\n{paint(title, 'title')}\n{body}")


def _print(text: str) -> None:
    _say(text, sys.stdout)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _say(text: str, stream: TextIO) -> None:
    stream.write(plain(text, colours=Painter(stream).colours) + "\n")


# --- The commands -------------------------------------------------------------------------------------------


def _list_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("--state", choices=[state.value for state in State], help="only the devices in this state")


def _explain_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("thing", metavar="THING", help="the thing name of a client device")


def _history_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("thing", metavar="THING", nargs="?", help="only what concerns this client device")


def _report_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("file", metavar="FILE.html", type=Path, help="the file to write; one that exists is replaced")


def _restore_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("things", metavar="THING", nargs="*", help="thing names of client devices")
    one.add_argument("--cycle", metavar="ID", help="all that this cycle disassociated")
    one.add_argument("--all", action="store_true", help="all that can be restored: of the last 90 days")


def _approve_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("plan", metavar="PLAN", help="the id of the plan, as pruner status shows it")


COMMANDS = (
    Command("status", "how the component is: sources, devices, guards, findings", teaching.STATUS, _status),
    Command("list", "the client devices with state, absence and proof", teaching.LIST, _list, _list_arguments),
    Command("explain", "why a device is, or is not, going to go", teaching.EXPLAIN, _explain, _explain_arguments),
    Command(
        "history",
        "what was marked, disassociated, restored, and on what evidence",
        teaching.HISTORY,
        _history,
        _history_arguments,
    ),
    Command(
        "report",
        "one page for a browser: timelines of all devices, sources, guards and decisions",
        teaching.REPORT,
        _report,
        _report_arguments,
    ),
    Command("restore", "associate again what was disassociated", teaching.RESTORE, _restore, _restore_arguments),
    Command("approve", "approve the plan that waits", teaching.APPROVE, _approve, _approve_arguments),
)
"""All commands, in the order of `--help`; one more is one more entry."""
