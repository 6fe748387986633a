"""What is read from the state file after the start has to be sound at the start, when a broken file is set aside."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

LARGEST_SECONDS = 1e11  # of any clock that is ours

# A type stands for all that is of it, 0.0 for seconds, a list of one for a list of such, a tuple of one for it or null.
_META: dict[str, Any] = {
    "running": 0.0,
    "lastComplete": 0.0,
    "presence": {
        "observedSeconds": 0.0,
        "advancedAt": (0.0,),
        "holeAt": 0.0,
        "messageFilters": ([str],),
        "broker": ({"node": str, "seconds": float, "heard_at": 0.0},),
        "belowSince": (0.0,),
    },
    "budget": {"number": int, "base": int, "used": int},
    "plans": [[str, [str]]],
    "approved": [str],
    "implausible": [str, int],
    "exits": [0.0],
}
_DISASSOCIATION: dict[str, Any] = {
    "name": str,
    "association_timestamp": (float,),
    "cycle_id": str,
    "evidence": {"silentSeconds": 0.0, "patienceSeconds": 0.0, "evidence": str},
    "intended_wall": 0.0,
    "intended_running_seconds": 0.0,
    "restore_for": (str,),
}


def check_shapes(connection: sqlite3.Connection) -> None:
    """Raise an error if a single value, or a row of the journal, holds what was never written."""
    for row in connection.execute("SELECT key, value FROM meta"):
        if row["key"] in _META:
            _check(json.loads(row["value"]), _META[row["key"]], row["key"])
    for row in connection.execute("SELECT * FROM disassociations"):
        _check({**dict(row), "evidence": json.loads(row["evidence"])}, _DISASSOCIATION, "disassociations")


def _check(value: Any, shape: Any, where: str) -> None:
    sound = isinstance(value, type(shape))
    match shape:
        case tuple():
            sound = True
            if value is not None:
                _check(value, shape[0], where)
        case dict() if sound:
            for key, one in shape.items():
                _check(value[key], one, f"{where}.{key}")
        case [one] if sound:
            for each in value:
                _check(each, one, where)
        case list() if sound:
            for each, one in zip(value, shape, strict=True):
                _check(each, one, where)
        case float():
            sound = isinstance(value, int | float) and 0 <= value <= LARGEST_SECONDS
        case type():
            sound = isinstance(value, shape)
    if not sound:
        raise ValueError(f"{where} holds {value!r:.60}")
