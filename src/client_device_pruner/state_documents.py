"""The JSON documents in the state file, and the numbers beside them, read strictly.

SQLite's pages carry no checksum: where bits of a flash flip, a page can stay intact with a text that nobody wrote.
Such a text must neither end the process nor become evidence, so every reader raises `ValueError`, and nothing else.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from client_device_pruner.model import Habit, Mark, Proof
from client_device_pruner.source_clock import SourceClock

MOST = 1e15
"""No number in the file reaches it: epoch milliseconds are a thousandth of it."""
LAST_MOMENT = 253_402_300_800.0
"""In epoch seconds: with the year 10000 end the moments that can be written as a date."""


def decode(text: str) -> Any:
    """Read a document.

    Raises:
        ValueError: it is not JSON, or a number in it is beyond all that are written.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("a document that is nested too deeply") from None
    except TypeError:
        raise ValueError("a document that is no text") from None


def markers(text: str) -> tuple[float, ...]:
    """Read the readings of all sources' clocks, by source id.

    Raises:
        ValueError: they are none.
    """
    document = decode(text)
    if isinstance(document, list) and all(map(is_number, document)):
        return tuple(map(float, document))
    raise ValueError(f"no readings of clocks: {text[:60]}")


def habits(text: str) -> dict[int, Habit] | None:
    """Read a device's habits, by source id; None if it has none.

    Raises:
        ValueError: they are none.
    """
    document = decode(text)
    if (
        isinstance(document, dict)
        and all(map(_SOURCE_ID.fullmatch, document))
        and all(map(_is_habit, document.values()))
    ):
        return {int(key): Habit(*values) for key, values in document.items()} or None
    raise ValueError(f"no habits: {text[:60]}")


def mark(text: str | None) -> Mark | None:
    """Read a device's mark; None if it carries none.

    Raises:
        ValueError: it is none.
    """
    if text is None:
        return None
    match decode(text):
        case [source_id, proof, clock_seconds, str(cycle_id)] if _is_count(source_id) and is_number(clock_seconds):
            return Mark(source_id, Proof(proof), clock_seconds, cycle_id)
    raise ValueError(f"no mark: {text[:60]}")


def name(value: str) -> str:
    """Read a name.

    Raises:
        ValueError: it is no text.
    """
    if isinstance(value, str):
        return value
    raise ValueError(f"no name: {value!r}")


def clock(credit_seconds: float, floor_seconds: float) -> SourceClock:
    """Read the clock of a source.

    Raises:
        ValueError: its readings are none.
    """
    if is_number(credit_seconds) and is_number(floor_seconds):
        return SourceClock(0.0, credit_seconds, floor_seconds)
    raise ValueError(f"no clock: {credit_seconds}, {floor_seconds}")


def moment(wall: float) -> float:
    """Read a moment, in epoch seconds.

    Raises:
        ValueError: no date can be written for it.
    """
    if _is_moment(wall):
        return wall
    raise ValueError(f"no moment: {wall!r}")


def mapping(text: str) -> dict[str, Any]:
    """Read the evidence of a disassociation, or the data of an event.

    Raises:
        ValueError: it is none.
    """
    document = decode(text)
    if isinstance(document, dict):
        return document
    raise ValueError(f"no map: {text[:60]}")


def check(connection: sqlite3.Connection) -> None:
    """Look at all but the sources, devices and absences, which are checked as they are read.

    Raises:
        ValueError: one of them is not what any version writes under its name.
    """
    for key, text in connection.execute("SELECT key, value FROM meta"):
        document = decode(text)
        if key in _SHAPES and not _SHAPES[key](document):
            raise ValueError(f"{key} is not what it has to be: {text[:60]}")
    for text, intended, settled, *texts in connection.execute(
        "SELECT evidence, intended_wall, coalesce(settled_wall, 0), name, cycle_id, outcome,"
        " coalesce(restored_by, ''), coalesce(restore_for, '') FROM disassociations"
    ):
        mapping(text)
        moment(intended)
        moment(settled)
        if not _are_texts(texts):
            raise ValueError(f"no disassociation: {texts}")
    for row in connection.execute("SELECT kind, argument FROM requests"):
        if not _are_texts([*row]):
            raise ValueError(f"no request: {(*row,)}")


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that can be reckoned with: no clock, length or count is below zero."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MOST


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _number(text: str, kind: Callable[[str], float]) -> float:
    value = kind(text)
    if abs(value) < MOST:
        return value
    raise ValueError(f"a number that nobody wrote: {text[:60]}")


_DECODER = json.JSONDecoder(
    parse_float=lambda text: _number(text, float),
    parse_int=lambda text: _number(text, int),
    parse_constant=_refuse_constant,
)
_SOURCE_ID = re.compile("0|[1-9][0-9]{0,8}")


def _is_habit(values: object) -> bool:
    return isinstance(values, list) and len(values) == 5 and all(map(is_number, values)) and _is_count(values[0])


def _is_count(value: object) -> bool:
    return is_number(value) and isinstance(value, int)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_moment(value: object) -> bool:
    return is_number(value) and value < LAST_MOMENT


def _is_status(document: Any) -> bool:
    return document is None or (isinstance(document, dict) and _is_moment(document.get("time", 0.0)))


def _is_budget(document: Any) -> bool:
    return isinstance(document, dict) and all(_is_count(document.get(key)) for key in ("number", "base", "used"))


def _are_plans(document: Any) -> bool:
    return isinstance(document, list) and all(
        isinstance(plan, list) and len(plan) == 2 and isinstance(plan[0], str) and _are_texts(plan[1])
        for plan in document
    )


def _is_implausible_list(document: Any) -> bool:
    match document:
        case [list(names), times, str()]:
            return _are_texts(names) and _is_count(times)
    return False


def _are_feeds(document: Any) -> bool:
    return isinstance(document, dict) and all(map(_are_texts, document.values()))


_SHAPES: Mapping[str, Callable[[Any], bool]] = {
    "approved": _are_texts,
    "budget": _is_budget,
    "configuration": lambda document: isinstance(document, dict),
    "feeds": _are_feeds,
    "gave_up_running_seconds": is_number,
    "implausible": _is_implausible_list,
    "plans": _are_plans,
    "running_seconds": is_number,
    "status": _is_status,
}
