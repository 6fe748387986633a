"""A core device for stories of pruning: the component beside a broker, told in a few words; it can die anywhere."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes.broker import FakeBroker
from fakes.component import Component, Killed, World

QUICK: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": "20m",
    "gracePeriod": "5m",
    "checkInterval": "10m",
    "massLoss": {"window": "0.1s", "minDevices": 100},
    "limits": {"maxPerCycle": 100, "maxPercentPerDay": 100, "approvalPercent": 100},
}
"""Short enough for a test; the probe's interval, and with it all fixed times, stay as they are."""
_WRITES = ("INSERT", "UPDATE", "DELETE")
_REAL_CONNECT = sqlite3.connect


@dataclass(slots=True)
class Fuse:
    """Counts the points at which the process can die, and lets it die at those chosen."""

    deadly: frozenset[int] = frozenset()  # the numbers of the points, from 1
    every_statement: bool = False  # each statement that writes is a point, too: what it wrote is lost in any case
    passed: list[str] = field(default_factory=list)  # what was done at each point so far
    armed: bool = True  # whether points count now

    def point(self, label: str) -> None:
        """Pass a point, or die there."""
        if self.armed:
            self.passed.append(label)
            if len(self.passed) in self.deadly:
                raise Killed


class CoreDevice(Component):
    """The component, `QUICK` but for its settings, and its broker, whose devices connect anew at each start."""

    def __init__(self, directory: Path, fuse: Fuse | None = None, **settings: Any) -> None:
        super().__init__(World(), directory, {**QUICK, **settings})
        self.clock = self.world.clock
        self.jitter = lambda: 0.5
        self.broker = FakeBroker(self, uptime_seconds=60)
        self.fuse = fuse or Fuse()
        self.cloud.point = self.fuse.point
        self.call_seconds = float("inf")  # answers that are held are released by the test
        self.deaths = 0
        self._connections: list[_Connection] = []

    # Its life

    def start(self) -> None:
        """Start a run if there is none, again if it dies while it starts; then all devices connect anew."""
        if self.running:
            return
        try:
            with self._mortal():
                super().start()
        except Killed:
            self.die()
            self.start()
        else:
            self.world.after(1.0, self._connect_anew)

    def stop(self) -> None:
        """End the run as SIGTERM does."""
        try:
            with self._mortal():
                super().stop()
        except Killed:
            self.die()

    def die(self) -> None:
        """End the run as SIGKILL does: what was not committed is lost."""
        self.deaths += 1
        self.kill()

    def kill(self) -> None:
        """See `Component`."""
        super().kill()
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def turn(self) -> None:
        """See `Component`."""
        with self._mortal():
            ran = self.running
            super().turn()
        if ran and not self.running:
            self.deaths += 1
            self.world.after(0.0, self.start)

    # Time

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        self.start()
        self.world.run(seconds)

    def run_until(self, reached: Callable[[], object], seconds: float, what: str = "it did not come to that") -> None:
        """Let time pass until something is so."""
        self.start()
        assert self.world.run(seconds, reached), f"{what} within {seconds} s: {self.events[-5:]}"

    def run_to_batch(self) -> None:
        """Let time pass until a batch call is under way, whose answer waits to be released."""
        self.cloud.held = True

        def called() -> bool:
            if not self.cloud.batches():
                self.cloud.release()
            return bool(self.cloud.batches())

        self.run_until(called, 90_000)

    # The devices

    def connect(self, *names: str) -> None:
        """Connect devices."""
        for name in names:
            self.broker.connect(name)

    def disconnect(self, *names: str) -> None:
        """Disconnect devices."""
        for name in names:
            self.broker.disconnect(name)

    def speak(self, *names: str) -> None:
        """Devices publish."""
        for name in names:
            self.broker.publish(f"clients/{name}/telemetry")

    def _connect_anew(self) -> None:
        for name in list(self.broker.sessions):
            self.broker.disconnect(name, "tcp_closed")
            self.broker.connect(name)

    # What it came to

    def of_type(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """The data of the events of a type, over all runs."""
        return [event.data for event in self.happened(kind, name)]

    def select(self, query: str) -> list[tuple[Any, ...]]:
        """Read from the state file, as of its last commit."""
        return [tuple(row) for row in self.rows(query)]

    def write(self, statement: str, *values: Any) -> None:
        """Write into the state file, as another process."""
        with contextlib.closing(_REAL_CONNECT(self.work_dir / "pruner.db", isolation_level=None)) as connection:
            connection.execute(statement, values)

    def request(self, kind: str, *subjects: str) -> None:
        """Queue requests as the command line does; they are looked for every other second."""
        for subject in subjects:
            self.write("INSERT INTO requests (kind, subject) VALUES (?, ?)", kind, subject)
        self.wake_at = min(self.wake_at, self.world.now + 2.0)

    def guards(self) -> set[str]:
        """The guards that hold, by the events."""
        holding: set[str] = set()
        for event in self.events:
            if event.kind in ("held", "released"):
                (holding.add if event.kind == "held" else holding.discard)(event.data["guard"])
        return holding

    def check_audit(self) -> None:
        """Hold the journal against what the cloud carried out: one `done` row each, none open, none in vain."""
        carried = Counter((c.name, c.timestamp) for c in self.cloud.carried)
        rows = self.select("SELECT name, association_timestamp, outcome FROM disassociations")
        done = Counter((name, timestamp) for name, timestamp, outcome in rows if outcome == "done")
        assert set(carried.values()) <= {1}, f"disassociated twice: {carried}"
        assert done == carried, f"the audit differs from what was carried out: {rows}"
        assert not [row for row in rows if row[2] == "open"]
        assert not self.cloud.in_vain, f"asked for again: {self.cloud.in_vain}"

    @contextlib.contextmanager
    def _mortal(self) -> Iterator[None]:
        """Let it open database connections at whose statements it can die."""

        def connect(path: Any, **options: Any) -> sqlite3.Connection:
            connection = _REAL_CONNECT(path, factory=_Connection, **options)
            connection.fuse = self.fuse
            self._connections.append(connection)
            return connection

        sqlite3.connect = connect  # type: ignore[assignment]
        try:
            yield
        finally:
            sqlite3.connect = _REAL_CONNECT


KnownDevices = Callable[..., CoreDevice]
"""Makes a core device on which the named client devices are associated and connected; settings by keyword."""


class _Connection(sqlite3.Connection):
    """Each commit is a point to die at, before and after it; so is each statement that writes, if the fuse says so."""

    fuse: Fuse

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" or (self.fuse.every_statement and sql.startswith(_WRITES)):
            self.fuse.point(sql)
        # A process dies here, not the medium: waiting for it would only take time.
        cursor = super().execute("PRAGMA synchronous = OFF" if "synchronous" in sql else sql, *arguments)
        if sql == "COMMIT":
            self.fuse.point("committed")
        return cursor

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> sqlite3.Cursor:  # type: ignore[override]
        if self.fuse.every_statement:
            self.fuse.point(sql)
        return super().executemany(sql, rows)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        self.fuse.point(sql)
        cursor = super().executescript(sql)
        self.fuse.point("committed")
        return cursor
