"""The state file: the JSON documents in it, and the commands that are queued in it."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

from client_device_pruner import snapshot, state_file
from client_device_pruner.cloud_worker import Batch, Batched, Listed, ListPage, Ready, Reply
from client_device_pruner.journal import Journal
from client_device_pruner.ledger import transaction
from client_device_pruner.model import Association
from client_device_pruner.policy import assess
from client_device_pruner.pruning import Pruning
from client_device_pruner.settings import DEFAULTS
from client_device_pruner.watch import Watch
from local_core.fuzz.target import Target, document, folder, require, seeds

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
            self.watch.adopt(self.watch.last_settings())
        self.pruning.schedule(self.clock.monotonic())
        for _turn in range(turns):
            self.turn()

    def close(self) -> None:
        """Leave the file as the last commit has it."""
        self.pruning.end()
        if self.watch.ledger.connection is not None:
            self.watch.ledger.connection.close()


# --- Its documents -----------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """The text of a column: an input's text as it is, all else as JSON."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else json.dumps(value)


@cache
def _empty() -> bytes:
    """A state file without a row."""
    path = folder("state") / "empty.db"
    connection, _aside = state_file.open_state(path, _CORE)
    connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    connection.close()
    return path.read_bytes()


def _filled(given: dict[str, Any]) -> Path:
    """Make a state file that holds the given documents, and usual ones for the rest."""
    path = folder("state") / "pruner.db"
    for left in folder("state").iterdir():
        left.unlink()
    path.write_bytes(_empty())
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, transaction(connection) as write:
        write.execute("INSERT INTO sources VALUES (0, 'emqx', '[]', 100.0, 0.0, 1)")
        meta, devices, absences = (_members(given, key) for key in ("meta", "devices", "absences"))
        write.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(k, _text(v)) for k, v in meta])
        for name, value in devices:
            usual: dict[str, Any] = {"markers": [0.0], "habits": {}, "mark": None}
            columns = usual | (value if isinstance(value, dict) else {})
            texts = [None if columns[key] is None else _text(columns[key]) for key in _DEVICE_COLUMNS]
            markers, habits, mark = texts
            write.execute(
                "INSERT OR REPLACE INTO devices VALUES (?, 1.0, 1, 1, 0, ?, ?, ?)",
                (name, markers or "[]", habits or "{}", mark),
            )
        for name, value in absences:
            began = _text(value)
            write.execute("INSERT INTO absences VALUES (?, ?, ?)", (name, began, began))
        for name, value in _members(given, "evidence"):
            write.execute(
                "INSERT INTO disassociations VALUES (NULL, ?, 1.0, 'c', ?, ?, 1.0, 0.0, 2.0, NULL, NULL)",
                (name, "open" if len(name) % 2 else "done", _text(value)),
            )
            write.execute("INSERT INTO history VALUES (NULL, 1.0, 'marked', ?, ?)", (name, _text(value)))
    return path


def _members(given: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    found = given.get(key)
    if isinstance(found, dict):
        for name, value in found.items():
            yield name.encode(errors="replace").decode(), value


def check_state(data: bytes) -> None:
    """Whatever the documents in the file are: the component starts, sets aside what it cannot read, and runs cycles.

    The file that is set aside is kept; who is in the new one is listed anew, and nobody goes out of what could not
    be read. The commands show the state or say what is wrong with it.
    """
    given = document(data)
    if not isinstance(given, dict):
        return
    path = _filled(given)
    site = _Site(path)
    try:
        site.run(3)
        aside = list(path.parent.glob("*.aside-*"))
        ledger = site.watch.ledger
        require(ledger.connection is not None, f"no state file is open: {ledger.fault}")
        known = {"a", "b"} | {name for name, _columns in _members(given, "devices")}
        require(ledger.devices.keys() <= known, f"devices out of nowhere: {ledger.devices.keys() - known}")
        require(not ledger.fault, f"the file is at fault after all: {ledger.fault}")
        if aside:
            _check_begun_anew(ledger.connection)
        for device in ledger.devices.values():
            assess(device, site.watch.circumstances())
    finally:
        site.close()
    _check_commands(path.parent)


def _check_begun_anew(connection: sqlite3.Connection | None) -> None:
    assert connection is not None  # noqa: S101 - it was just looked at; for mypy
    gone = Journal(connection).restorable(0.0)
    require(not gone, f"disassociated out of what could not be read: {gone}")


def _check_commands(work_dir: Path) -> None:
    """What only reads shows something, or says why it cannot."""
    for read in (snapshot.read, snapshot.read_history, snapshot.read_record, snapshot.read_journal):
        with suppress(snapshot.StateUnreadable):
            found = read(work_dir)
            if isinstance(found, snapshot.Snapshot):
                for device in found.devices.values():
                    assess(device, found.now)


_STATUS: dict[str, Any] = {
    "running": True,
    "time": 1.7e9,
    "sources": {"emqx": {"vouching": True, "clockSeconds": 100.0, "reason": "they match"}},
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
            "clock_seconds": 100.0,
            "floor_seconds": 0.0,
            "vouching": True,
            "reason": "they match",
            "stretch_seconds": 0.0,
            "pauses": [[60.0, 100.0]],
            "cadence_seconds": 0.0,
            "fresh_seconds": 0.0,
            "silenced": "",
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
_STATE_WORDS = (
    *("meta", "devices", "absences", "evidence", *_META, *_META.values(), *_DEVICE_COLUMNS, *_MARKED.values()),
    *("a", "b", "gone", "census", "habit", 0, -1, 1e400, float("nan"), "[", "NaN", "[NaN]", "[1e400]", "null", "0"),
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
    rows = [(_text(row[0]), _text(row[1])) for row in given[:10] if isinstance(row, list) and len(row) > 1]
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
        seeds(_FILE, {"meta": _META}, {"devices": {"a": {"mark": "[0"}}}, {"meta": {"configuration": "{"}}),
        _STATE_WORDS,
        largest_bytes=8192,
    ),
    Target("requests", check_requests, seeds(_REQUESTS, [["restore", {"all": True}]], []), _REQUEST_WORDS),
)
