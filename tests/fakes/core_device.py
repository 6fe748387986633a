"""A core device in virtual time: the real component between fake edges, which can die at any point of its way."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client_device_pruner.app import App, Connected, Edges, Item
from client_device_pruner.config import bridge
from client_device_pruner.config.settings import parse
from client_device_pruner.greengrass.ipc import Message, News
from client_device_pruner.greengrass.link import IN
from client_device_pruner.greengrass.queue import Queue
from client_device_pruner.presence.client_list import Answer
from client_device_pruner.pruning.cloud import Reply
from fakes.client_list import FakeClientLists
from fakes.clock import FakeClock
from fakes.cloud import FakeCloud, FakeCloudChild
from fakes.ipc import FakeIpc

NODE = "emqx@127.0.0.1"
BRIDGE = "mqtt-bridge-1"
COUNT_SECONDS = 60.0
"""How often the broker publishes its count of connections."""
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


class Death(BaseException):
    """The process is gone: nothing in it catches this, and nothing that it does afterwards has any effect."""


@dataclass(slots=True)
class Fuse:
    """Counts the points at which the process can die, and lets it die at those chosen.

    Attributes:
        deadly: the numbers of the points at which it dies, from 1.
        passed: what was done at each point so far.
        armed: whether points count now.
        dead: whether it has died.
        every_statement: whether each statement within a transaction is a point, too: what it wrote is lost in any case.
    """

    deadly: frozenset[int] = frozenset()
    every_statement: bool = False
    passed: list[str] = field(default_factory=list)
    armed: bool = True
    dead: bool = False

    def statement(self, sql: str) -> None:
        """Pass a statement that writes, but for the end of its transaction."""
        if self.every_statement or self.dead:
            self.point(sql)

    def point(self, label: str) -> None:
        """Pass a point, or die there; the dead stay dead."""
        if self.dead:
            raise Death
        if self.armed:
            self.passed.append(label)
            if len(self.passed) in self.deadly:
                self.dead = True
                raise Death


class CoreDevice:
    """Broker, bridge, cloud, and one run of the component after another.

    Args:
        directory: for the state files; each run that died leaves its own copy, as a power cut does.
        fuse: where runs die.
        events: whether the broker announces connections and counts them.
        settings: on top of `QUICK`.

    Attributes:
        connected: the devices that are connected, with the number of their session.
        announced: the data and subject of each event that the component published, over all runs.
        deaths: how often it died.
        jitter: gives numbers in [0, 1).
    """

    def __init__(self, directory: Path, fuse: Fuse | None = None, *, events: bool = True, **settings: Any) -> None:
        self.fuse = fuse or Fuse()
        self.settings: dict[str, Any] = {**QUICK, **settings}
        self.clock = FakeClock()
        self.cloud = FakeCloud(self.clock.monotonic)
        self.cloud.point = self.fuse.point
        self.lists = FakeClientLists(lambda _answer: None, self.clock.monotonic)
        self.connected: dict[str, int] = {}
        self.announced: list[dict[str, Any]] = []
        self.deaths = 0
        self.jitter: Callable[[], float] = lambda: 0.5
        self.app: App | None = None
        self.ipc: FakeIpc | None = None
        self._events = events
        self._directory = directory
        self._session = 0
        self._next_count = 0.0
        self._wake = 0.0
        self._arrived = 0
        self._connections: list[sqlite3.Connection] = []
        self._work_dir = directory / "run-0"
        self._work_dir.mkdir()

    # The component's life

    def start(self) -> None:
        """Start a run if there is none, again if it dies while it starts; then all devices connect anew."""
        if self.app is not None:
            return
        while self.app is None:
            self.fuse.dead = False
            with _Mortal(self):
                edges = Edges(self._connect, self._cloud_child, self._client_lists)
                app = App(self._work_dir, "core-1", self.clock, edges, jitter=self._random)
                # Set only when its start is over: one that died there leaves nothing.
                self.app = app
                self._connect(app.queue)
                self._turn()
        for name in list(self.connected):
            self.connect(name)

    def stop(self) -> None:
        """End the run as SIGTERM does."""
        if self.app is not None:
            with _Mortal(self):
                self.app.close()
        self.app = None

    def die(self) -> None:
        """End the run as SIGKILL does: what was not committed is lost."""
        self.fuse.dead = True
        self.deaths += 1
        self.app = self.ipc = None
        fresh = self._directory / f"run-{self.deaths}"
        fresh.mkdir()
        for suffix in ("", "-wal", "-journal"):
            if (part := self._work_dir / f"pruner.db{suffix}").exists():
                shutil.copy(part, fresh / part.name)
        for connection in self._connections:
            sqlite3.Connection.close(connection)
        self._connections.clear()
        self._work_dir = fresh

    # Time

    def run(self, seconds: float) -> None:
        """Let so much time pass; a run that dies is followed by the next."""
        until = self.clock.now + seconds
        self.start()
        while self.clock.now < until:
            self._step(until)

    def run_until(self, reached: Callable[[], object], seconds: float, what: str = "it did not come to that") -> None:
        """Let time pass until something is so."""
        until = self.clock.now + seconds
        self.start()
        while not reached():
            assert self.clock.now < until, f"{what} within {seconds} s: {self.announced[-5:]}"
            self._step(until)

    def sleep(self, seconds: float) -> None:
        """Suspend the process: time passes, and it does nothing."""
        self.clock.now += seconds

    def _step(self, until: float) -> None:
        self.start()
        self.clock.now = max(self.clock.now, min(until, self._wake, self._next_count))
        if self.clock.now >= self._next_count:
            self._next_count = self.clock.now + COUNT_SECONDS
            if self._events:
                self.hear(f"$SYS/brokers/{NODE}/stats/live_connections/count", str(len(self.connected) + 1))
        self.turn()

    def turn(self) -> None:
        """Let the component take what has arrived, while no time passes."""
        with _Mortal(self):
            self._turn()

    def _turn(self) -> None:
        """Let the component take turns until nothing arrives any more."""
        for _turn in range(1_000):
            if self.app is None:
                return
            before = self._seen()
            self._wake = self.app.turn()
            if self._seen() == before and self._wake > self.clock.now:
                return
        raise AssertionError("the component finds no rest")

    def _seen(self) -> tuple[int, ...]:
        return self._arrived, len(self.cloud.calls), self.cloud.starts, len(self.lists.accesses)

    # The devices

    def connect(self, *names: str) -> None:
        """Connect devices, anew if they are connected."""
        for name in names:
            self._session += 1
            if name in self.connected:
                self._event(name, "disconnected", connected_at=self.connected[name], reason="tcp_closed")
            self.connected[name] = self._session
            self.lists.connected.add(name)
            self._event(name, "connected", connected_at=self._session)

    def disconnect(self, *names: str) -> None:
        """Disconnect devices."""
        for name in names:
            self.lists.connected.discard(name)
            self._event(name, "disconnected", connected_at=self.connected.pop(name), reason="normal")

    def speak(self, *names: str) -> None:
        """Devices publish."""
        for name in names:
            self.hear(f"clients/{name}/telemetry", "21.5")

    def hear(self, topic: str, payload: str) -> None:
        """A message reaches the component through the bridge, if it runs."""
        if self.ipc is not None:
            self.ipc.message(IN + topic, payload)

    def _event(self, name: str, kind: str, **data: Any) -> None:
        if self._events:
            self.hear(f"$SYS/brokers/{NODE}/clients/{name}/{kind}", json.dumps({"clientid": name, **data}))

    # The edges

    def _connect(self, queue: Queue[Item]) -> None:
        def deliver(message: Message) -> None:
            self._arrived += 1
            queue.put(message, len(message.payload))

        def report(news: News) -> None:
            self._arrived += 1
            queue.put_always(news)

        if self.ipc is not None and not self.ipc.closed:
            return
        self.ipc = ipc = FakeIpc(self.clock, deliver, report)
        entries = bridge.required_entries(parse(self.settings))
        ipc.configurations = {None: self.settings, bridge.BRIDGE: {"mqttTopicMapping": entries}, bridge.EMQX: {}}
        ipc.published = _Published(self)
        queue.put_always(Connected(ipc))

    def _cloud_child(self, deliver: Callable[[Reply], None]) -> FakeCloudChild:
        return FakeCloudChild(self.cloud, deliver)

    def _random(self) -> float:
        return self.jitter()

    def _client_lists(self, deliver: Callable[[Answer], None]) -> FakeClientLists:
        before = self.lists
        self.lists = FakeClientLists(deliver, self.clock.monotonic)
        self.lists.connected = {BRIDGE, *before.connected}
        return self.lists

    # What it came to

    def of_type(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """The data of the events of a type, over all runs."""
        wanted = f"community.greengrass.pruner.{kind}"
        return [e["data"] for e in self.announced if e["type"] == wanted and name in (None, e.get("subject"))]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read from the state file, as of its last commit."""
        with contextlib.closing(_REAL_CONNECT(self._work_dir / "pruner.db", isolation_level=None)) as connection:
            return connection.execute(query).fetchall()

    def write(self, statement: str, *values: Any) -> None:
        """Write into the state file, as another process."""
        with contextlib.closing(_REAL_CONNECT(self._work_dir / "pruner.db", isolation_level=None)) as connection:
            connection.execute(statement, values)

    def request(self, kind: str, argument: Any) -> None:
        """Queue a request as the command line does."""
        self.write("INSERT INTO requests (kind, argument) VALUES (?, ?)", kind, json.dumps(argument))

    def status(self) -> dict[str, Any]:
        """The status as last written."""
        ((text,),) = self.rows("SELECT value FROM meta WHERE key = 'status'")
        status: dict[str, Any] = json.loads(text)
        return status

    def guards(self) -> set[str]:
        """The guards that hold, by the events."""
        holding: set[str] = set()
        for event in self.announced:
            kind = event["type"].rpartition(".")[2]
            if kind in ("held", "released"):
                (holding.add if kind == "held" else holding.discard)(event["data"]["guard"])
        return holding

    def check_audit(self) -> None:
        """Hold the journal against what the cloud carried out: one `done` row each, none open, none in vain."""
        carried = Counter((c.name, c.timestamp) for c in self.cloud.carried)
        rows = self.rows("SELECT name, association_timestamp, outcome FROM disassociations")
        done = Counter((name, timestamp) for name, timestamp, outcome in rows if outcome == "done")
        assert set(carried.values()) <= {1}, f"disassociated twice: {carried}"
        assert done == carried, f"the audit differs from what was carried out: {rows}"
        assert not [row for row in rows if row[2] == "open"]
        assert not self.cloud.in_vain, f"asked for again: {self.cloud.in_vain}"

    def connection(self, path: Any, **options: Any) -> sqlite3.Connection:
        """Open a database whose statements are points of the fuse."""
        connection = _REAL_CONNECT(path, factory=_Connection, **options)
        connection.fuse = self.fuse
        self._connections.append(connection)
        return connection


KnownDevices = Callable[..., CoreDevice]
"""Makes a core device on which the named client devices are associated and connected; settings by keyword."""


class _Published(list[tuple[str, bytes]]):
    """Takes what the component publishes: events of a run that has died come from nowhere."""

    def __init__(self, core_device: CoreDevice) -> None:
        self._core_device = core_device

    def append(self, message: tuple[str, bytes]) -> None:
        topic, payload = message
        if topic == "client-device-pruner/events" and not self._core_device.fuse.dead:
            self._core_device.announced.append(json.loads(payload))


class _Connection(sqlite3.Connection):
    """Each commit is a point to die at, before and after it; so is each statement that writes, if the fuse says so."""

    fuse: Fuse

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            self.fuse.point(sql)
        elif sql.startswith(_WRITES) or self.fuse.dead:
            self.fuse.statement(sql)
        # A process dies here, not the medium: waiting for it would only take time.
        cursor = super().execute("PRAGMA synchronous = OFF" if "synchronous" in sql else sql, *arguments)
        if sql == "COMMIT":
            self.fuse.point("committed")
        return cursor

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> sqlite3.Cursor:  # type: ignore[override]
        self.fuse.statement(sql)
        return super().executemany(sql, rows)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        self.fuse.point(sql)
        cursor = super().executescript(sql)
        self.fuse.point("committed")
        return cursor

    def close(self) -> None:
        if not self.fuse.dead:
            super().close()

    def __del__(self) -> None:
        # A story that fails, or ends in the middle, leaves its core device as it stands.
        with contextlib.suppress(sqlite3.ProgrammingError):
            super().close()


class _Mortal:
    """Runs the component on connections that may die, and buries it when it does."""

    def __init__(self, core_device: CoreDevice) -> None:
        self._core_device = core_device

    def __enter__(self) -> None:
        sqlite3.connect = self._core_device.connection  # type: ignore[assignment]

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> bool:
        sqlite3.connect = _REAL_CONNECT
        if kind is not Death:
            return False
        self._core_device.die()
        return True
