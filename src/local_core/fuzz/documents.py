"""The readers of the state file's documents, each by itself."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from client_device_pruner import state_documents, state_file
from client_device_pruner.ledger import Ledger, get_meta, transaction
from client_device_pruner.model import Device, Habit, Mark, Proof, pack
from client_device_pruner.settings import DEFAULTS
from client_device_pruner.state_documents import LAST_MOMENT, MOST
from local_core.fuzz.target import Target, document, folder, require, seeds, text_of

_MOST_SOURCES = 10**9


def check_documents(data: bytes) -> None:
    """Each reader gives what it promises, or raises `ValueError` and nothing else.

    All numbers in what it gives are finite and within their bounds, and it is the same when the ledger has written it
    and it is read again. What passes the check of the whole file is what its single values are read as.
    """
    given = document(data)
    if not isinstance(given, dict):
        return
    if (markers := _read(state_documents.markers, given.get("markers"))) is not None:
        _check_markers(markers)
    if (habits := _read(state_documents.habits, given.get("habits"))) is not None:
        _check_habits(habits)
    if (mark := _read(state_documents.mark, given.get("mark"))) is not None:
        _check_mark(mark)
    _check_again(Device("a", 1.0, markers=pack(markers or ()), habits=habits, mark=mark))
    if (mapping := _read(state_documents.mapping, given.get("mapping"))) is not None:
        require(type(mapping) is dict, f"it gives {mapping!r} for a map")
        _check_numbers(mapping)
        again = state_documents.mapping(json.dumps(mapping))
        require(again == mapping, f"the map {mapping} becomes {again}")
    _check_values(given.get("values"), given.get("disassociations"))


def _read(read: Callable[[str], Any], value: Any) -> Any:
    try:
        return read(text_of(value))
    except ValueError:
        return None


def _check_markers(markers: Any) -> None:
    require(type(markers) is tuple and all(type(m) is float for m in markers), f"it gives {markers!r} for markers")
    for reading in markers:
        _within(reading, MOST)


def _check_habits(habits: Any) -> None:
    require(habits and type(habits) is dict, f"it gives {habits!r} for habits")
    for source_id, habit in habits.items():
        require(type(habit) is Habit, f"it gives {habit!r} for a habit")
        _whole(source_id, _MOST_SOURCES)
        _whole(habit.heard, MOST)
        for seconds in (
            *(habit.first_seconds, habit.last_seconds, habit.last_running_seconds),
            habit.longest_silence_seconds,
        ):
            _within(seconds, MOST)


def _check_mark(mark: object) -> None:
    assert isinstance(mark, Mark)  # noqa: S101 - a property; the form that mypy knows
    require(type(mark.proof) is Proof and type(mark.cycle_id) is str, f"it gives {mark!r} for a mark")
    _whole(mark.source_id, MOST)
    _within(mark.clock_seconds, MOST)


def _check_again(device: Device) -> None:
    row = dict(zip(_COLUMNS, Ledger(None, 0.0)._row(device), strict=True))  # noqa: SLF001 - the way that rows are written
    again = Ledger._device(row)  # type: ignore[arg-type] # noqa: SLF001 - and read: by the columns' names
    require(again == device, f"{device} becomes {again}")


def _within(number: object, bound: float) -> None:
    require(type(number) in (int, float) and 0 <= number < bound, f"{number!r} is not from 0 to {bound}")  # type: ignore[operator]


def _whole(number: object, bound: float) -> None:
    require(type(number) is int, f"{number!r} is no whole number")
    _within(number, bound)


def _check_numbers(value: Any) -> None:
    """No number anywhere in a document is beyond the bound, not finite or not even a number."""
    pending = [value]
    for one in pending:
        if isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, list):
            pending += one
        elif isinstance(one, (int, float)):
            require(abs(one) < MOST, f"{one!r} is beyond the bound")


# --- The check of the whole file -----------------------------------------------------------------------------------


@cache
def _file() -> sqlite3.Connection:
    """A state file in memory."""
    made, _aside = state_file.open_state(folder("documents") / "pruner.db", "core-1")
    connection = sqlite3.connect(":memory:", isolation_level=None)
    made.backup(connection)
    made.close()
    return connection


def _check_values(values: Any, disassociations: Any) -> None:
    if not isinstance(values, dict):
        return
    connection = _file()
    with transaction(connection) as write:
        write.execute("DELETE FROM meta")
        write.execute("DELETE FROM disassociations")
        write.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(text_of(k), text_of(v)) for k, v in values.items()]
        )
        write.executemany(
            "INSERT INTO disassociations VALUES (NULL, 'a', 1.0, 'c', 'done', ?, ?, 0.0, ?, NULL, NULL)",
            _rows(disassociations),
        )
    try:
        state_documents.check(connection)
    except ValueError:
        return
    for key, holds in _PROMISES.items():
        value = get_meta(connection, key, _NOTHING)
        _check_numbers(value)
        require(value is _NOTHING or holds(value), f"{key} passes as {value!r}")
    for evidence, intended, settled in connection.execute(
        "SELECT evidence, intended_wall, settled_wall FROM disassociations"
    ):
        require(type(json.loads(evidence)) is dict, f"{evidence} passes as evidence")
        _within(intended, LAST_MOMENT)
        _within(settled or 0.0, LAST_MOMENT)


def _rows(disassociations: Any) -> Iterator[tuple[str, float | str, float | str | None]]:
    for row in disassociations if isinstance(disassociations, list) else ():
        match row:
            case [evidence, (int() | float() | str()) as intended, (int() | float() | str() | None) as settled]:
                yield text_of(evidence), _cell(intended), settled and _cell(settled)


def _cell(value: float | str) -> float | str:
    """What SQLite takes: it knows no NaN, and whole numbers of 64 bits."""
    if isinstance(value, str):
        return text_of(value)
    return float(value) if value == value and abs(value) < 1e300 else 1e300  # noqa: PLR0124 - NaN alone is not itself


_NOTHING = object()


def _texts(value: Any) -> bool:
    return type(value) is list and all(type(one) is str for one in value)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < MOST


_PROMISES: dict[str, Callable[[Any], bool]] = {
    "approved": _texts,
    "budget": lambda value: all(_count(value[key]) for key in ("number", "base", "used")),
    "configuration": lambda value: type(value) is dict,
    "feeds": lambda value: all(map(_texts, value.values())),
    "gave_up_running_seconds": _seconds,
    "implausible": lambda value: len(value) == 3 and _texts(value[0]) and _count(value[1]) and type(value[2]) is str,
    "plans": lambda value: all(len(plan) == 2 and type(plan[0]) is str and _texts(plan[1]) for plan in value),
    "running_seconds": _seconds,
    "status": lambda value: value is None or 0 <= value.get("time", 0.0) < LAST_MOMENT,
}
"""What those rely on who read a single value."""

_COLUMNS = ("name", "associated_at", "seen", "announced", "held", "markers", "habits", "mark")
_VALUES: dict[str, Any] = {
    "approved": ["0123456789"],
    "budget": {"number": 0, "base": 2, "used": 1},
    "configuration": dict(DEFAULTS),
    "feeds": {'["activity", "clients/+/#"]': ["clients/+/telemetry"]},
    "gave_up_running_seconds": 10.0,
    "implausible": [["a"], 1, "cycle"],
    "plans": [["0123456789", ["a@1.0"]]],
    "running_seconds": 4000.5,
    "status": {"running": True, "time": 1.7e9, "nextCheckInSeconds": 5.0},
    "of a newer version": [None],
}
_HABITS = {"0": [6, 0.0, 5.0, 50.0, 10.0], "1": [1, 0, 1, 2, 3]}
_DOCUMENTS: dict[str, Any] = {
    "markers": [0.0, 5, 1e9],
    "habits": _HABITS,
    "mark": [0, "census", 50.0, "cycle"],
    "mapping": {"offlineSeconds": 5.5, "proof": "habit", "reasons": ["x"]},
    "values": _VALUES,
    "disassociations": [[{"proof": "census"}, 1.7e9, None], ["{}", 1.7e9, 1.7e9]],
}
_WORDS = (
    *(*_DOCUMENTS, *_DOCUMENTS.values(), *_VALUES, *_VALUES.values(), "census", "rollCall", "habit", "hearsay"),
    *(0, -1, -0.0, 1e14, 1e15, 10**15, 10**30, 1e400, 253402300800, float("nan"), True, "0", "01", "-1", "٣", "1_0"),
    *("NaN", "[NaN]", "[1e400]", "[-1e400]", "1e400", "[true]", "[-1]", '{"1": [1, 2, 3, 4, 5], "1": []}', '{"0": {}}'),
    *("[" * 2000, '{"a":' * 500, "9" * 5000, "null", "{}", "[]", '"\\ud800"', "\ufeff[]", "[1.0, 2]", '{"a": 1e15}'),
)

TARGETS = (
    Target(
        "documents",
        check_documents,
        seeds(
            {key: value for key, value in _DOCUMENTS.items() if key != "values"},
            {"values": {key: value for key, value in _VALUES.items() if key != "configuration"}},
            {"markers": [], "habits": {}, "mark": None, "mapping": {}},
            {"markers": "[1e400]", "habits": '{"01": [1, 2, 3, 4, 5]}', "mark": [True, "habit", 0, ""]},
            {"mapping": {"offlineSeconds": 1e15}, "values": {"budget": {"number": 0, "base": 2, "used": -1}}},
            {"values": {"configuration": dict(DEFAULTS)}, "disassociations": [["{}", 1e12, 0.0]]},
        ),
        _WORDS,
    ),
)
