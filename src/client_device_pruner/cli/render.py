"""How a person reads it: aligned tables, short durations, and colours where a terminal shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

from client_device_pruner.config.settings import format_duration

EVIDENCE = {
    "clientList": "the broker's client list did not name it",
    "connectionCount": "the broker had no more connections that cannot be named than when it left",
    "rhythm": "it used to publish, and no longer did",
}
"""What each piece of evidence says, for people."""
COLOURS = {
    "present": "good", "marked": "warning", "due": "bad", "protected": "faint", "neverSeen": "faint",
    "disassociated": "bad", "intended": "bad", "failed": "bad", "restored": "good",
}  # fmt: skip
"""By a device's state, or by what happened."""
_CODES = {"good": "32", "warning": "33", "bad": "31", "title": "1", "faint": "2"}
_PAINT = re.compile("\x1b\\[[0-9]*m")


class Painter:
    """Colours texts for a stream, if it is a terminal that has colours and `NO_COLOR` is not set."""

    def __init__(self, stream: TextIO) -> None:
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colours = terminal and not os.environ.get("NO_COLOR")

    def __call__(self, text: str, colour: str) -> str:
        """Colour a text: `good`, `warning`, `bad`, `title` or `faint`; "" leaves it plain."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self.colours and colour else text

    def kind(self, text: str) -> str:
        """Colour a state, or what happened, as its kind is."""
        return self(text, COLOURS.get(text, ""))


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), indent: str = "") -> str:
    """Lay rows out in columns as wide as their widest cell, each row on one line."""
    lines = [[" ".join(cell.split("\n")) for cell in row] for row in ([head] if head else []) + list(rows)]
    widths = [max(_width(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join((indent + line).rstrip() for line in padded)


def sections(heading: str, parts: Mapping[str, str], paint: Painter) -> str:
    """A heading, and titled parts with a blank line before each; parts without text are left out."""
    return "\n\n".join([heading, *(f"{paint(title, 'title')}\n{body}" for title, body in parts.items() if body)])


def remedies(rows: Iterable[tuple[str, str]]) -> str:
    """What is wrong, each with what to do about it below it."""
    lines: list[str] = []
    for what, remedy in rows:
        lines += [f"  {what}", *(f"    → {line}" for line in remedy.splitlines())]
    return "\n".join(lines)


def plain(text: str, *, colours: bool = False) -> str:
    """A text without what would steer a terminal, but for colours where they are wanted."""
    texts, codes = (_PAINT.split(text), _PAINT.findall(text)) if colours else ([text], [])
    harmless = ["".join(c if c.isprintable() or c == "\n" else "?" for c in part) for part in texts]
    return "".join(part + code for part, code in zip(harmless, [*codes, ""], strict=True))


def say(text: str, stream: TextIO) -> None:
    """Write a text and the end of its line."""
    stream.write(plain(text, colours=Painter(stream).colours) + "\n")


def about(seconds: float) -> str:
    """A duration as a person says it: to the hour from a day on, to the minute from an hour on, to the second."""
    step = 3600 if seconds >= 86_400 else 60 if seconds >= 3600 else 1 if seconds >= 10 else 0.1
    return format_duration(round(seconds / step) * step)


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


def _width(cell: str) -> int:
    return len(_PAINT.sub("", cell))
