"""The text forms of answers: aligned tables, remedies, short durations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

from client_device_pruner.config.schema import format_duration


def table(rows: Iterable[Sequence[str]], indent: str = "") -> str:
    """Lay rows out in columns as wide as their widest cell, each row on one line."""
    lines = [[" ".join(cell.split("\n")) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(map(str.ljust, line, widths)) for line in lines)
    return "\n".join((indent + line).rstrip() for line in padded)


def sections(heading: str, parts: Mapping[str, str]) -> str:
    """A heading, and titled parts with a blank line before each; parts without text are left out."""
    return "\n\n".join([heading, *(f"{title}\n{body}" for title, body in parts.items() if body)])


def remedies(rows: Iterable[tuple[str, str]], elsewhere: Iterable[str] = ()) -> str:
    """What is wrong, each with what to do about it below it; a remedy that stands `elsewhere` is not said again."""
    lines: list[str] = []
    said = set(elsewhere)
    for what, remedy in rows:
        lines += [f"  {what}", *(f"    → {line}" for line in remedy.splitlines() if remedy not in said)]
        said.add(remedy)
    return "\n".join(lines)


def say(text: str, stream: TextIO) -> None:
    """Write a text and the end of its line, without what would steer a terminal."""
    stream.write("".join(c if c.isprintable() or c == "\n" else "?" for c in text) + "\n")


def about(seconds: float) -> str:
    """A duration as a person says it: to the hour from a day on, to the minute from an hour on, to the second."""
    step = 3600 if seconds >= 86_400 else 60 if seconds >= 3600 else 1 if seconds >= 10 else 0.1
    return format_duration(round(seconds / step) * step)


def until_due(seconds: float, guards: Sequence[Any]) -> str:
    """When a device goes whose grace period ends in so long, while these guards are in force."""
    return f"in {about(seconds)}" if seconds else "held by a guard" if guards else "next cycle"


def utc(wall: float) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(wall, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def evidence_of(kind: str, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of an event, for people: labels, and what there is to say under each."""
    lines = []
    if data.get("silentSeconds") is not None:
        patience = data.get("patienceSeconds")
        of_patience = "" if patience is None else f" of {about(patience)}"
        lines.append(("silent", about(data["silentSeconds"]) + of_patience))
    if data.get("dueInSeconds") is not None:
        lines.append(("grace period", about(data["dueInSeconds"])))
    if kind == "intended":
        lines.append(("outcome", "not known yet"))
    labels = {
        "evidence": "evidence", "reason": "because", "code": "code", "message": "message", "remedy": "what to do",
        "requestedBy": "requested by", "disassociatedAt": "disassociated", "restoredBy": "restored by",
        "cycleId": "cycle",
    }  # fmt: skip
    return lines + [(label, str(data[key])) for key, label in labels.items() if data.get(key)]
