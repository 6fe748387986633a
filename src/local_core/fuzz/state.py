"""The state file: whatever its tables hold, and the commands that are queued in it."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from client_device_pruner import snapshot, state_file
from client_device_pruner.cloud_worker import Batch, Batched, Listed, ListPage, Ready, Reply
from client_device_pruner.ledger import Ledger, transaction
from client_device_pruner.model import Association
from client_device_pruner.policy import assess
from client_device_pruner.pruning import Pruning
from client_device_pruner.reports import rfc3339
from client_device_pruner.settings import DEFAULTS, parse
from client_device_pruner.sources import Sources
from client_device_pruner.watch import Watch
from local_core.fuzz.target import Target, document, folder, payload_of, require, seeds, text_of

_CORE = "core-1"
_DEVICES = (("a", 1.0), ("b", 2.0))
_DEVICE_COLUMNS = ("markers", "habits", "mark")


class _Clock:
    """Goes on by a second whenever it is looked at, so that cycles come round."""

    def __init__(self) -> None:
        self.at = 1e6

    def monotonic(self) -> float:
        self.at += 1.0
        return self.at

    def wall(self) -> float:
        return 1.7e9


class _Cloud:
    """A child process whose cloud answers at once, with the same two devices."""

    def __init__(self, deliver: Callable[[Reply], None]) -> None:
        self._deliver = deliver
        self.batches: list[Batch] = []

    def start(self) -> None:
        self._deliver(Ready())

    def send(self, request: ListPage | Batch) -> None:
        if isinstance(request, ListPage):
            self._deliver(Listed(request.request_id, _DEVICES, None))
        else:
            self.batches.append(request)
            self._deliver(Batched(request.request_id, ()))

    def kill(self) -> None:
        pass

    def stop(self) -> None:
        pass


class _Passed:
    """A check in the moment that nothing speaks against."""

    def poll(self, _at: float) -> tuple[bool, None]:
        return True, None


class _Site:
    """What the component does with a state file, without its edges."""

    def __init__(self, path: Path) -> None:
        logging.getLogger("client_device_pruner").disabled = True
        self.clock = _Clock()
        self.watch = Watch(
            path,
            _CORE,
            self.clock,
            publish=lambda _topic, _payload: None,
            publish_to_iot_core=lambda _topic, _payload: True,
        )
        self.pruning = Pruning(self.watch, self._worker, lambda _check, _at: _Passed(), lambda: 0.0)

    def _worker(self, number: int) -> _Cloud:
        return _Cloud(lambda reply: self.pruning.reply(number, reply, self.clock.monotonic()))

    def turn(self) -> None:
        """Do what is due, as the component's loop does."""
        at = self.clock.monotonic()
        try:
            self.watch.tick(at)
            self.pruning.heed_returned()
            self.pruning.tick(at)
            if self.watch.commit_due(at):
                self.watch.describe(at, findings=(), plan=self.pruning.waiting_plan(), next_check_seconds=1.0)
                self.watch.commit(at)
        except sqlite3.Error as error:
            self.watch.failed(error)

    def run(self, turns: int) -> None:
        """Start, and let so many turns pass, the first of which begins a cycle."""
        if not self.watch.configured:
            self.watch.adopt(self.watch.settings)  # the last run's: so it opens the file
        self.pruning.schedule(self.clock.monotonic())
        for _turn in range(turns):
            self.turn()

    def close(self) -> None:
        """Leave the file as the last commit has it."""
        self.pruning.end()
        if self.watch.ledger.connection is not None:
            self.watch.ledger.connection.close()


# --- What is in it -----------------------------------------------------------------------------------------------


class _File:
    """One state file for all inputs, filled anew by each; a connection to it stays open, which spares half the time."""

    def __init__(self) -> None:
        self.path = folder("state") / "pruner.db"
        connection, _aside = state_file.open_state(self.path, _CORE)
        connection.close()
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        self.connection.text_factory = bytes
        self._emqx = Sources(parse(DEFAULTS), Ledger(None, 0.0), 0.0).identities["emqx"]
        tables = [
            name.decode() for (name,) in self.connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        self._columns = {
            name: [row[1].decode() for row in self.connection.execute(f"PRAGMA table_info({name})")] for name in tables
        }

    def fill(self, given: dict[str, Any]) -> None:
        """Write the given documents and cells, and usual ones for the rest."""
        self._take_back()
        with transaction(self.connection) as write:
            for table in self._columns:
                write.execute(f"DELETE FROM {table}")  # noqa: S608 - a table of the schema
            write.execute("INSERT INTO sources VALUES (0, 'emqx', ?, 4e6, 0.0, 1)", (self._emqx,))
            write.execute("INSERT INTO strangers VALUES ('s')")
            write.execute("INSERT INTO requests VALUES (1, 'restore', '{\"names\": [\"x\"]}')")
            write.execute("INSERT INTO transitions VALUES (1, 1.0, 'arrived', 'a', 0, 0.0)")
            write.execute("INSERT INTO history VALUES (2, 1.0, 'marked', 'a', '{}')")
            write.execute(
                "INSERT INTO disassociations VALUES (NULL, 'x', 1.0, 'c', 'done', '{}', 1.0, 0.0, 2.0, NULL, NULL)"
            )
            self._fill_documents(write, given)
            cells = given.get("cells")
            for cell in cells[:_MOST_CELLS] if isinstance(cells, list) else ():
                match cell:
                    case [str(table), str(column), value] if column in self._columns.get(table, ()):
                        text, stored = _cell(value)
                        change = f"UPDATE OR IGNORE {table} SET {column} = {text}"  # noqa: S608 - of the schema
                        with suppress(sqlite3.IntegrityError):  # a text for a row's number
                            write.execute(change, (stored,))

    @staticmethod
    def _fill_documents(write: sqlite3.Connection, given: dict[str, Any]) -> None:
        meta, devices, absences = (_members(given, key) for key in ("meta", "devices", "absences"))
        write.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(k, text_of(v)) for k, v in meta])
        for name, value in devices:
            usual: dict[str, Any] = {"markers": [0.0], "habits": {}, "mark": None}
            columns = usual | (value if isinstance(value, dict) else {})
            texts = [None if columns[key] is None else text_of(columns[key]) for key in _DEVICE_COLUMNS]
            markers, habits, mark = texts
            write.execute(
                "INSERT OR REPLACE INTO devices VALUES (?, 1.0, 1, 1, 0, ?, ?, ?)",
                (name, markers or "[]", habits or "{}", mark),
            )
        for name, value in absences:
            began = text_of(value)
            write.execute("INSERT INTO absences VALUES (?, ?, ?)", (name, began, began))
        for number, (name, value) in enumerate(_members(given, "evidence"), 10):
            write.execute(
                "INSERT INTO disassociations VALUES (NULL, ?, 1.0, 'c', ?, ?, 1.0, 0.0, 2.0, NULL, NULL)",
                (name, "open" if len(name) % 2 else "done", text_of(value)),
            )
            write.execute("INSERT INTO history VALUES (?, 1.0, 'marked', ?, ?)", (number, name, text_of(value)))

    def names(self) -> set[bytes]:
        """The devices in it, be it in its place or set aside."""
        return {row[0] for row in self.connection.execute("SELECT CAST(name AS BLOB) FROM devices")}

    def set_aside(self) -> bool:
        """Whether it was set aside."""
        return self._aside.exists()

    @property
    def _aside(self) -> Path:
        return self.path.with_name(f"{self.path.name}.aside-1")

    def _take_back(self) -> None:
        if self.set_aside():
            for suffix in ("", "-wal", "-shm"):
                part = self.path.with_name(self._aside.name + suffix)
                part.replace(f"{self.path}{suffix}")


def _members(given: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    found = given.get(key)
    if isinstance(found, dict):
        for name, value in found.items():
            yield text_of(name), value


def _cell(value: Any) -> tuple[str, Any]:
    """What a cell holds after bits flipped: a text of any bytes, a blob, or any number."""
    if isinstance(value, (int, float)):
        return "?", float(value) if -1e300 < value < 1e300 else math.inf
    if isinstance(value, list):
        return "?", payload_of(value[0] if value else "")
    return "CAST(? AS TEXT)", payload_of(value)


@cache
def _file() -> _File:
    return _File()


def check_state(data: bytes) -> None:
    """Whatever is in the tables of the file: the component starts, sets aside what it cannot read, and runs cycles.

    The file that is set aside is kept; who is in the new one is listed anew, and nobody goes out of what could not
    be read. What only reads, before or after, gives the state or says what is wrong with it.
    """
    given = document(data)
    if not isinstance(given, dict):
        return
    file = _file()
    file.fill(given)
    # One reader an input, the same each time: all of them would take longer than all else.
    number = crc32(data)
    reader, before = _READERS[number % len(_READERS)], number & len(_READERS)
    with suppress(snapshot.StateUnreadable):
        if before:
            reader(file.path.parent)
    kept = file.names()
    site = _Site(file.path)
    try:
        site.run(_TURNS)
        _check_site(site, file, kept)
    finally:
        site.close()
    with suppress(snapshot.StateUnreadable):
        if not before:
            reader(file.path.parent)


def _check_site(site: _Site, file: _File, kept: set[bytes]) -> None:
    ledger = site.watch.ledger
    require(ledger.connection is not None, f"no state file is open: {ledger.fault}")
    require(not ledger.fault, f"the file is at fault after all: {ledger.fault}")
    known = {b"a", b"b"}
    if file.set_aside():
        require(file.names() == kept, "what was set aside is no longer what it was")
        gone = site.watch.journal.restorable(0.0)
        require(not gone, f"disassociated out of what could not be read: {gone}")
    else:
        known |= kept
    found = {name.encode() for name in ledger.devices}
    require(found <= known, f"devices out of nowhere: {found - known}")
    for device in ledger.devices.values():
        assess(device, site.watch.circumstances())


def _judged(found: snapshot.Snapshot) -> None:
    for device in found.devices.values():
        assess(device, found.now)


def _dated(happenings: Sequence[snapshot.Happening]) -> None:
    for happening in happenings:
        rfc3339(happening.wall)


_READERS: Sequence[Callable[[Path], object]] = (
    lambda work_dir: _judged(snapshot.read(work_dir)),
    lambda work_dir: _dated(snapshot.read_history(work_dir)),
    lambda work_dir: _dated(snapshot.read_record(work_dir)),
    lambda work_dir: [rfc3339(intent.intended_wall) for intent in snapshot.read_journal(work_dir)[0]],
)
"""What the commands read, and do with it first."""
_MOST_CELLS = 4
_TURNS = 2
_STATUS: dict[str, Any] = {
    "time": 1.7e9,
    "sources": {"emqx": {"vouching": True, "clockSeconds": 4e6, "reason": "they match"}},
    "counts": {"present": 1},
    "coverage": {"associated": 2, "provable": 2, "reasons": []},
    "guards": [{"guard": "list", "reason": "x", "remedy": "y"}],
    "plan": None,
    "nextCheckInSeconds": 5.0,
    "doctor": [],
    "witnesses": [
        {
            "name": "emqx",
            "source_id": 0,
            "proof": "census",
            "clock_seconds": 4e6,
            "floor_seconds": 0.0,
            "vouching": True,
            "reason": "they match",
            "stretch_seconds": 0.0,
            "pauses": [[60.0, 3e6]],
            "cadence_seconds": 0.0,
            "fresh_seconds": 0.0,
            "silenced": "",
            "doubted": "who is known need not be there",
            "doubted_seconds": 90.0,
        }
    ],
}
_META = {
    "status": _STATUS,
    "configuration": dict(DEFAULTS),
    "budget": {"number": 0, "base": 2, "used": 1},
    "plans": [["0123456789", ["a@1.0"]]],
    "approved": ["0123456789"],
    "implausible": [["a"], 1, "cycle"],
    "running_seconds": 4000.0,
    "gave_up_running_seconds": 10.0,
    "core": json.dumps(_CORE),
}
_MARKED = {"markers": [5.0], "habits": {"0": [6, 0.0, 5.0, 50.0, 10.0]}, "mark": [0, "census", 50.0, "cycle"]}
_FILE = {
    "meta": _META,
    "devices": {"a": _MARKED, "b": {}},
    "absences": {"b": [3.0]},
    "evidence": {"gone": {"offlineSeconds": 1.0, "proof": "census"}, "a": {}},
}
_CELLS = [
    *(["strangers", "name", "\xff"], ["sources", "credit_seconds", 1e400], ["disassociations", "intended_wall", 1e12]),
    *(
        ["devices", "markers", ["[0.0]"]],
        ["history", "wall", "x"],
        ["sources", "id", 7],
        ["requests", "argument", "\xff"],
        *(["devices", "name", ["x"]], ["strangers", "name", ["x"]], ["sources", "floor_seconds", "x"]),
    ),
]
_STATE_WORDS = (
    *("meta", "devices", "absences", "evidence", *_META, *_META.values(), *_DEVICE_COLUMNS, *_MARKED.values()),
    *(
        "a",
        "b",
        "gone",
        "cells",
        "census",
        "habit",
        0,
        -1,
        1e400,
        float("nan"),
        "[",
        "NaN",
        "[NaN]",
        "[1e400]",
        "null",
        "0",
    ),
    *(*_CELLS, *("meta", "sources", "devices", "disassociations", "history", "requests", "transitions", "strangers")),
    *(
        "id",
        "name",
        "identity",
        "credit_seconds",
        "active",
        "associated_at",
        "held",
        "wall",
        "settled_wall",
        "kind",
        "cycleId",
        "self",
    ),
    *("\xff", ["x"], 1e12, "outcome", "restore_for", "turns", "ago_seconds", "type", "core", "seen"),
    *(*_STATUS, *_STATUS["witnesses"][0], _MARKED, [], {}, [None], [[1.0]], {"0": [1]}, {"x": []}, "\x00", 10**30),
)


# --- Its queue of commands ---------------------------------------------------------------------------------------


@cache
def _queue() -> _Site:
    """A running component that has disassociated three devices in two cycles."""
    site = _Site(folder("requests") / "pruner.db")
    site.run(0)
    journal = site.watch.journal
    journal.budget(10, 0.0)
    for name, cycle_id in (("x", "one"), ("y", "one"), ("z", "two")):
        intents = journal.intend(cycle_id, [(Association(name, 1.0), {})], wall=1.0, running_seconds=0.0)
        journal.settle(intents, "done", 2.0)
    return site


def check_requests(data: bytes) -> None:
    """Of commands `[[kind, argument], …]` those that make sense are carried out, and all leave the queue."""
    given = document(data)
    if not isinstance(given, list):
        return
    site = _queue()
    connection = site.watch.ledger.connection
    assert connection is not None  # noqa: S101 - nothing closes it; for mypy
    rows = [(text_of(row[0]), text_of(row[1])) for row in given[:10] if isinstance(row, list) and len(row) > 1]
    with transaction(connection) as write:
        write.execute("UPDATE disassociations SET restored_by = NULL, restore_for = NULL")
        write.execute("DELETE FROM meta WHERE key = 'approved'")
        write.executemany("INSERT INTO requests (kind, argument) VALUES (?, ?)", rows)
    site.pruning._heed_requests()  # noqa: SLF001 - the way that commands take
    require(site.watch.ledger.connection is connection and not site.watch.ledger.fault, "a command broke the file")
    left = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
    require(left == 0, f"{left} commands stay in the queue for ever")
    restored = {
        row["name"] for row in connection.execute("SELECT name FROM disassociations WHERE restored_by IS NOT NULL")
    }
    wanted = {name for kind, argument in rows if kind == "restore" for name in _meant(document(argument.encode()))}
    require(restored == wanted, f"restored {restored} instead of {wanted}")


def _meant(argument: Any) -> set[str]:
    """Whom a request to restore means, by its three forms."""
    match argument:
        case {"all": True}:
            return {"x", "y", "z"}
        case {"names": list(names)}:
            return {name for name in ("x", "y", "z") if name in names}
        case {"cycle": str(cycle)}:
            return {"one": {"x", "y"}, "two": {"z"}}.get(cycle, set())
    return set()


_REQUESTS = [
    ["restore", {"names": ["x", "q"]}],
    ["restore", {"cycle": "one"}],
    ["approve", '"0123456789"'],
]
_REQUEST_WORDS = (
    *("restore", "approve", "names", "cycle", "all", "x", "y", "z", "one", "two", {"all": True}, {"names": ["z"]}),
    *(*_REQUESTS, "[", "5", "null", '"x"', {"names": "xyz"}, {"names": None}, {"cycle": None}, {"all": 1}, "forget"),
)

TARGETS = (
    Target(
        "state",
        check_state,
        seeds(
            *({"meta": {key: value}} for key, value in _META.items()),
            *({key: value} for key, value in _FILE.items() if key != "meta"),
            *({"devices": {"a": _MARKED}, "meta": {"status": _STATUS}, "cells": [cell]} for cell in _CELLS),
            {"evidence": {"a": {"name": "x", "kind": 1, "cycleId": None}}},
            {"devices": {"a": {"mark": "[0"}}, "meta": {"configuration": "{"}},
            _FILE,
        ),
        _STATE_WORDS,
    ),
    Target("requests", check_requests, seeds(_REQUESTS, [["restore", {"all": True}]], []), _REQUEST_WORDS),
)
