"""A work directory as the component leaves it, for what reads it, and the command line beside it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.cli.commands import carry_out, parser
from client_device_pruner.presence.devices import Device
from client_device_pruner.store.database import open_database, set_meta, transaction
from client_device_pruner.store.devices import save_devices, save_verdicts
from client_device_pruner.store.history import Happening, add_history, add_timeline
from client_device_pruner.store.journal import Journal

DAY = 86_400.0
OBSERVED = 100 * DAY
"""The observed clock when the status was written."""
WALL = 1_800_000_000.0
"""The wall clock at that time: 2027-01-15 08:00:00Z."""
EVIDENCE = {"silentSeconds": 31 * DAY, "patienceSeconds": 30 * DAY, "evidence": "connectionCount"}


def a_status() -> dict[str, Any]:
    """A status document where all is well."""
    alive = {"inUse": True, "alive": True, "reason": "", "remedy": ""}
    unused = {"inUse": False, "alive": False, "reason": "EMQX' HTTP API is off", "remedy": ""}
    return {
        "version": "0.2.0",
        "time": WALL,
        "observedSeconds": OBSERVED,
        "observing": {
            "since": "2027-01-14T08:00:00.000Z",
            "seconds": OBSERVED,
            "shareOfDay": 0.98,
            "shareOfMonth": 0.75,
            "knownSince": "2026-01-15T08:00:00.000Z",
            "inputs": {"probe": alive, "connectionEvents": alive, "clientList": unused},
        },
        "counts": {"present": 1, "silent": 1, "marked": 1, "due": 0, "protected": 0, "neverSeen": 1},
        "coverage": {"associated": 4, "removable": 3, "reasons": ["1 cannot be removed: it was never seen"]},
        "guards": [],
        "plan": None,
        "nextCheckInSeconds": 7_200.0,
        "lastCycle": {"completeAt": "2027-01-15T06:00:00.000Z", "failed": None},
        "dryRun": False,
        "doctor": [],
    }


class WrittenState:
    """What the component wrote; a test changes it, and calls `write`."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir  # holds the state file
        self.devices: dict[str, Device] = {}  # their rows
        self.verdicts: dict[str, dict[str, Any]] = {}  # their verdict documents
        self.since: dict[str, float | None] = {}  # the observed seconds at which a silence began; None: present
        self.status = a_status()
        self.meta: dict[str, Any] = {"running": OBSERVED}  # further single values

    def add(
        self,
        name: str,
        state: str,
        silent_seconds: float | None = None,
        *,
        seen: bool = True,
        evidence: str | None = None,
        patience_seconds: float | None = 30 * DAY,
        due_in_seconds: float | None = None,
        sentences: tuple[str, ...] = (),
    ) -> None:
        """Add an associated device that has been silent for so long; None: it is present."""
        seen_at = OBSERVED - (silent_seconds or 0.0)
        device = Device(name, unlisted_at=None, silent_since=seen_at)
        if seen:
            device.seen_by, device.seen_wall = "message", WALL - (silent_seconds or 0.0)
        self.devices[name] = device
        self.since[name] = None if silent_seconds is None else seen_at
        self.verdicts[name] = {
            "state": state,
            "evidence": evidence,
            "patienceSeconds": patience_seconds,
            "dueAt": None if due_in_seconds is None else OBSERVED + due_in_seconds,
            "sentences": list(sentences),
        }

    def write(self) -> None:
        """Write all of it."""
        verdicts = {name: json.dumps(verdict) for name, verdict in self.verdicts.items()}
        with closing(self.connect()) as connection, transaction(connection) as write:
            save_devices(write, self.devices.values(), (), lambda device: self.since.get(device.name))
            save_verdicts(write, verdicts.items())
            set_meta(write, status=self.status, **self.meta)

    def connect(self) -> sqlite3.Connection:
        """The component's own connection."""
        self.work_dir.mkdir(exist_ok=True)
        return open_database(self.work_dir / "pruner.db", "core-1")[0]

    def happened(self, wall: float, kind: str, name: str | None = None, **data: Any) -> None:
        """Keep an event."""
        with closing(self.connect()) as connection, transaction(connection) as write:
            add_history(write, [Happening(wall, kind, name, data)])

    def changed(self, *rows: tuple[float, str | None, str]) -> None:
        """Keep changes of state: when, of which device (None: the component), and what it became."""
        with closing(self.connect()) as connection, transaction(connection) as write:
            add_timeline(write, rows)

    def disassociate(self, cycle_id: str, *names: str, outcome: str = "done") -> None:
        """Journal disassociations; `open` leaves them without an outcome."""
        with closing(self.connect()) as connection:
            journal = Journal(connection)
            journal.budget(10, OBSERVED)
            devices = [(name, None, EVIDENCE) for name in names]
            intents = journal.intend(cycle_id, devices, wall=WALL - 3_600, running_seconds=OBSERVED)
            if outcome != "open":
                journal.settle(intents, outcome, WALL - 3_599)

    def requests(self) -> list[tuple[str, str]]:
        """What was asked of the component."""
        with closing(self.connect()) as connection:
            rows = connection.execute("SELECT kind, subject FROM requests ORDER BY id").fetchall()
        return [(row["kind"], row["subject"]) for row in rows]


class Pruner:
    """The command line of that core device; `state` is what the component wrote."""

    def __init__(self, state: WrittenState, capture: pytest.CaptureFixture[str]) -> None:
        self.state = state
        self._capture = capture

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; returns exit status, standard output and standard error."""
        status = carry_out(parser().parse_args([*arguments, "--work-dir", str(self.state.work_dir)]))
        out, err = self._capture.readouterr()
        return status, out, err

    def text(self, *arguments: str) -> str:
        """Run a command, which succeeds; returns what it says."""
        status, out, err = self.run(*arguments)
        assert (status, err) == (0, "")
        return out

    def value(self, *arguments: str) -> Any:
        """Run a command for machines, which succeeds; returns its value."""
        return json.loads(self.text(*arguments, "--json"))

    def failure(self, *arguments: str) -> str:
        """Run a command, which fails; returns why."""
        status, out, err = self.run(*arguments)
        assert (status, out) == (1, "")
        return err
