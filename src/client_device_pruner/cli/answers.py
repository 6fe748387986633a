"""What each command answers: for people as a text, for machines as a value."""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_device_pruner.cli import reading, timeline
from client_device_pruner.cli.reading import Failed, Snapshot, Thing
from client_device_pruner.cli.render import about, evidence_of, remedies, say, sections, table, until_due, utc
from client_device_pruner.reports.events import rfc3339
from client_device_pruner.store.database import transaction

BUSY_SECONDS = 10.0  # how long a request waits for its turn to write
_NONE = "No device is associated, or the first cycle has not listed them yet."
_SOME = 10  # names in one sentence


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command answers: a value in JSON for machines, or a text for people."""

    value: Any
    text: str


def status(options: argparse.Namespace) -> Answer:
    """What is observed, devices by state, guards in force, what failed, and what the doctor found."""
    found = reading.read(options.work_dir)
    status, observing, coverage = found.status, found.status["observing"], found.status["coverage"]
    left, last = status["nextCheckInSeconds"], status["lastCycle"]
    runs = "runs" if found.running else "does not run"
    age = f"as of {utc(found.written)}, {about(max(0.0, time.time() - found.written))} ago"
    since = f"since {_when(observing['since'])}" if observing["since"] else "nothing is observed now"
    counts = ", ".join(f"{number} {state}" for state, number in status["counts"].items() if number)
    rows = [
        ("Component", f"{runs} on {found.core_device}, version {status['version']} ({age})"),
        ("Observing", f"{since}; {_shares(observing, found.written)}"),
        ("Devices", f"{coverage['associated']} associated: {counts}" if coverage["associated"] else _NONE),
        ("Removable", f"{coverage['removable']} of {coverage['associated']} would be removed once gone"),
        *(("", reason) for reason in coverage["reasons"]),
        ("Last cycle", f"complete at {_when(last['completeAt'])}" if last["completeAt"] else "none is complete yet"),
        ("Next cycle", f"in {about(left)}" if left else "now" if left == 0 else "none is planned"),
    ]
    if status["dryRun"]:
        rows.append(("Dry run", "dryRun is on: nothing is disassociated"))
    parts = {
        "Inputs": remedies(
            ((_input(name, one), one["remedy"]) for name, one in observing["inputs"].items()),
            elsewhere=[doc["remedy"] for doc in status["doctor"]],
        ),
        "Guards in force": _guards(found) or "  none",
    }
    if failed := last["failed"]:
        what = f"{_when(failed['at'])}: {failed['code']}: {failed['message']}"
        parts["Failed since the last complete cycle"] = remedies([(what, failed["remedy"])])
    if plan := status["plan"]:
        way = f"pruner approve {plan['id']}"
        parts[f"Plan that waits for approval: {plan['id']}"] = remedies([(_devices(plan["devices"]), way)])
    parts["The doctor found"] = remedies((doc["finding"], doc["remedy"]) for doc in status["doctor"]) or "  nothing"
    value = {**status, "running": found.running, "time": rfc3339(found.written)}
    return Answer(value, sections(table(rows), parts))


def _when(time_of_machines: str) -> str:
    """A time of the status document as the other commands show it: in UTC, to the second."""
    return f"{time_of_machines[:10]} {time_of_machines[11:19]}Z"


def _shares(observing: Mapping[str, Any], written: float) -> str:
    """Which shares of the last day and month were observed; of a shorter time, if no more is known."""
    known = observing["knownSince"] or rfc3339(written)
    periods = ((86_400.0, "shareOfDay", "of the last day"), (30 * 86_400.0, "shareOfMonth", "of the last month"))
    shares = [
        f"{observing[key]:.0%} {period if known <= rfc3339(written - seconds) else f'since {_when(known)}'}"
        for seconds, key, period in periods
    ]
    return ", ".join(dict.fromkeys(shares))


def _input(name: str, one: Mapping[str, Any]) -> str:
    state = "not in use" if not one["inUse"] else "alive" if one["alive"] else "not alive"
    return f"{name}: {state}" + (f" ({one['reason']})" if one["reason"] else "")


def _guards(found: Snapshot) -> str:
    return remedies((f"{guard['guard']}: {guard['reason']}", guard["remedy"]) for guard in found.status["guards"])


def list_devices(options: argparse.Namespace) -> Answer:
    """The associated devices."""
    found = reading.read(options.work_dir)
    things = [thing for thing in found.associated if options.state in {None, thing.state}]
    if not found.running:
        say(f"The component does not run: this was the state at {utc(found.written)}.", sys.stderr)
    head = ("THING", "STATE", "LAST SEEN", "SILENT", "PATIENCE", "EVIDENCE", "DUE")
    text = f"No device is {options.state}." if found.associated else _NONE
    if things:
        text = table([head, *(_row(thing, found) for thing in things)])
    return Answer([_figures(thing) for thing in things], text)


def _row(thing: Thing, found: Snapshot) -> tuple[str, ...]:
    due = thing.due_in_seconds
    return (
        thing.name,
        thing.state,
        "never" if thing.seen_wall is None else utc(thing.seen_wall),
        "-" if thing.silent_seconds is None else about(thing.silent_seconds),
        "unlimited" if thing.patience_seconds is None else about(thing.patience_seconds),
        thing.evidence or "-",
        "-" if due is None else until_due(due, found.status["guards"]),
    )


def _figures(thing: Thing) -> dict[str, Any]:
    return {
        "thingName": thing.name,
        "state": thing.state,
        "lastSeenAt": None if thing.seen_wall is None else rfc3339(thing.seen_wall),
        "lastSeenBy": thing.seen_by or None,
        "silentSeconds": thing.silent_seconds,
        "patienceSeconds": thing.patience_seconds,
        "evidence": thing.evidence,
        "dueInSeconds": thing.due_in_seconds,
    }


def explain(options: argparse.Namespace) -> Answer:
    """One device in sentences and figures."""
    found = reading.read(options.work_dir)
    thing = found.things.get(options.thing)
    if thing is None or not thing.state:
        return _explain_unassociated(options, found)
    lines = [f"{thing.name}: {thing.state}", *thing.sentences]
    if not found.running:
        lines.append(f"This was the state at {utc(found.written)}. The component does not run, so nothing changes.")
    names = ("Last seen", "Silent", "Patience", "Evidence", "Due")
    parts = {"In figures": table(zip(names, _row(thing, found)[2:], strict=True), indent="  ")}
    if thing.state in {"marked", "due"}:
        parts["Guards that hold disassociations back"] = _guards(found)
    value = {**_figures(thing), "sentences": thing.sentences, "running": found.running}
    return Answer(value, sections("\n".join(lines), parts))


def _explain_unassociated(options: argparse.Namespace, found: Snapshot) -> Answer:
    """Say of a name that is not associated what became of it; fails if nothing is known of it."""
    name: str = options.thing
    thing, intent = found.things.get(name), reading.read_restorable(options.work_dir).get(name)
    value: dict[str, Any] = {"thingName": name, "state": None}
    sentences = [f"{name} is not associated with this core device."]
    if intent:
        facts = {**intent.evidence, "cycleId": intent.cycle_id}
        told = "; ".join(map(" ".join, evidence_of("disassociated", facts)))
        value |= {"state": "disassociated", "disassociatedAt": rfc3339(intent.intended_wall), **facts}
        sentences += [
            f"This component disassociated it at {utc(intent.intended_wall)}: {told}.",
            f"pruner restore {name} associates it again.",
        ]
    elif thing is not None and thing.seen_wall is not None:
        sentences.append(f"It was last seen at {utc(thing.seen_wall)}. The component does not act on such devices.")
    else:
        known = [one.name for one in found.associated]
        raise Failed(sentences[0] + _near(name, known) if known else _NONE)
    return Answer({**value, "sentences": sentences, "running": found.running}, "\n".join(sentences))


def _near(name: str, known: Iterable[str]) -> str:
    import difflib

    close = sorted(difflib.get_close_matches(name, known, n=5))
    return f" Did you mean {' or '.join(close)}?" if close else " pruner list shows the devices that are associated."


def history(options: argparse.Namespace) -> Answer:
    """What was marked, disassociated and restored."""
    found = reading.read_happenings(options.work_dir, options.thing)
    value = [{"time": rfc3339(h.wall), "type": h.kind, "thingName": h.name, "data": h.data} for h in found]
    rows = [(utc(h.wall), h.name or "-", h.kind, "; ".join(map(" ".join, evidence_of(h.kind, h.data)))) for h in found]
    text = table([("TIME", "THING", "WHAT", "EVIDENCE"), *rows])
    subject = f"{options.thing} has not" if options.thing else "No device has"
    return Answer(value, text if rows else f"{subject} been marked, disassociated or restored yet.")


def report(options: argparse.Namespace) -> Answer:
    """Write the report page."""
    found, (events, changes) = reading.read(options.work_dir), reading.read_record(options.work_dir)
    data = timeline.compose(found, events, changes)
    page = timeline.page(data).encode()
    try:
        options.file.write_bytes(page)
        path = options.file.absolute()
    except OSError as error:
        raise Failed(f"{options.file} cannot be written ({error.strerror}): give another file.") from error
    number = len(data["devices"])
    said = f"Wrote {path} ({number} devices, {len(page) / 1024:.0f} KiB): open it in any browser; it needs no network."
    return Answer({"file": str(path), "devices": number, "bytes": len(page)}, said)


def restore(options: argparse.Namespace) -> Answer:
    """Ask the component to associate again what it disassociated."""
    if sum([bool(options.things), options.cycle is not None, options.all]) != 1:
        options.parser.error("give thing names, or --cycle ID, or --all: one of the three")
    restorable = reading.read_restorable(options.work_dir)
    wanted = list(dict.fromkeys(options.things)) or [
        name for name, intent in restorable.items() if options.all or intent.cycle_id == options.cycle
    ]
    if missing := [name for name in wanted if name not in restorable]:
        why = "cannot be restored: not disassociated by this component, restored already, or gone for over 90 days"
        lines = [f"{name} {why}.{_near(name, restorable)}" for name in missing]
        raise Failed("\n".join([*lines, "Nothing was requested."]))
    if not wanted:
        raise Failed("There is nothing to restore: pruner history shows what was disassociated, and in which cycle.")
    running = _request(options.work_dir, "restore", wanted)
    said = _requested(
        f"Asked to restore {_some(wanted)}",
        "the component does it within 60 s; pruner history shows it",
        running=running,
    )
    return Answer({"queued": True, "names": wanted, "running": running}, said)


def approve(options: argparse.Namespace) -> Answer:
    """Approve a plan."""
    found = reading.read(options.work_dir)
    names = found.plans.get(options.plan)
    if names is None:
        waiting = found.status["plan"]
        hint = f"plan {waiting['id']} waits" if waiting else "no plan waits"
        raise Failed(f"There is no plan {options.plan}: {hint}. Nothing was approved.")
    running = _request(options.work_dir, "approve", [options.plan])
    said = _requested(
        f"Approved plan {options.plan} ({_devices(names)})", "the next cycle takes it into account", running=running
    )
    return Answer({"queued": True, "plan": options.plan, "names": names, "running": running}, said)


def _request(work_dir: Path, kind: str, subjects: Sequence[str]) -> bool:
    """Leave a request for each subject in the state file; returns whether the component runs, to take it up.

    SQLite gives what root makes beside the file (`-wal`, `-shm`) to the owner of the file, so the component's user
    is not locked out.
    """
    path = work_dir / reading.DATABASE
    address = f"{path.absolute().as_uri()}?mode=rw"
    try:
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        with closing(connection), transaction(connection, through=True) as write:
            rows = [(kind, subject) for subject in subjects]
            write.executemany("INSERT INTO requests (kind, subject) VALUES (?, ?)", rows)
    except sqlite3.Error as error:
        raise Failed(
            f"{path} cannot be written ({error}): nothing was requested; run this as root or as the component's user."
        ) from error
    return reading.is_running(work_dir)


def _requested(done: str, when: str, *, running: bool) -> str:
    return f"{done}: {when}." if running else f"{done}. The component does not run: it does this after its next start."


def _devices(names: Sequence[str]) -> str:
    return f"{len(names)} {'device' if len(names) == 1 else 'devices'}: {_some(names)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:_SOME]) + (", …" if len(names) > _SOME else "")
