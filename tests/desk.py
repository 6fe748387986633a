"""The real component between fake edges, in virtual time: it can be made to die at any point of its way."""

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

from client_device_pruner.cloud_worker import Batch, Batched, CallFailed, EntryError, Listed, ListPage, Ready, Reply
from client_device_pruner.component import Component, Connected, Edges, Item
from client_device_pruner.inbox import Inbox
from client_device_pruner.ipc import Configuration, Message
from client_device_pruner.roll_call import NoAnswer, RollCall, RollCaller

IN = "client-device-pruner/in/"
NODE = "emqx@127.0.0.1"
EVENTS = "client-device-pruner/events"
STEP_SECONDS = 60.0
"""How far apart the component's turns are; the census is published as often."""
PLAIN: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": "4m",
    "noticePeriod": "2m",
    "checkInterval": "3m",
    # Whom a death makes forget when they left, it takes to have left together: that is another story.
    "massLoss": {"window": "0.1s", "minDevices": 100},
    "limits": {"maxPerCycle": 100, "maxPercentPerDay": 100, "approvalPercent": 100},
    "reports": {"localTopic": EVENTS},
}
"""Fixed times are those of a site (maxQuiet of 3 minutes), all others short enough for a search."""


class Death(BaseException):
    """The process is gone: nothing in it catches this, and nothing that it does afterwards has any effect."""


@dataclass(slots=True)
class Fuse:
    """Counts the points at which a process can die, and lets it die at those chosen."""

    deadly: frozenset[int] = frozenset()
    passed: list[str] = field(default_factory=list)
    dead: bool = False

    def point(self, label: str) -> None:
        """Pass a point, or die there; the dead stay dead."""
        if self.dead:
            raise Death
        self.passed.append(label)
        if len(self.passed) in self.deadly:
            self.dead = True
            raise Death


class Clock:
    """Two clocks that stand still until they are told to go on."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        """See `model.Clock`."""
        return self.now

    def wall(self) -> float:
        """See `model.Clock`."""
        return 1_700_000_000.0 + self.now


@dataclass(slots=True)
class Carried:
    """A device that the cloud took off the list, when, and in which of the budget's windows."""

    name: str
    timestamp: float | None
    at: float
    window: int


class CloudModel:
    """The associations of one core device, and what became of each call.

    `bases` holds, for each of the budget's windows in which a batch came, how many devices were listed before.
    """

    def __init__(self) -> None:
        self.associations: dict[str, float | None] = {}
        self.carried: list[Carried] = []
        self.in_vain: list[str] = []
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.refusing: dict[str, str] = {}
        self.failing: list[tuple[str, str, bool]] = []
        self.bases: dict[int, int] = {}
        self._listed = 0
        self._stamp = 100.0

    def associate(self, *names: str, timestamps: bool = True) -> None:
        """Associate anew; those associated already stay as they are."""
        for name in names:
            self._stamp += 1.0
            self.associations.setdefault(name, self._stamp if timestamps else None)

    def fail(self, operation: str, kind: str, *, carried_out: bool = False, times: int = 1) -> None:
        """Let the next calls of an operation fail; carried out all the same, if so."""
        self.failing += [(operation, kind, carried_out)] * times

    def answer(self, request: ListPage | Batch, at: float, window: int) -> Reply:
        """Carry a request out, or not, and answer it."""
        operation = "list" if isinstance(request, ListPage) else request.operation
        names = () if isinstance(request, ListPage) else request.names
        self.calls.append((operation, names))
        failing = next((failure for failure in self.failing if failure[0] == operation), None)
        if failing:
            self.failing.remove(failing)
            if not failing[2]:
                return _failure(request, failing[1])
        if isinstance(request, ListPage):
            self._listed = len(self.associations)
            return Listed(request.request_id, tuple(sorted(self.associations.items())), None)
        self.bases.setdefault(window, self._listed)
        errors = tuple(EntryError(name, self.refusing[name], "no") for name in names if name in self.refusing)
        for name in names:
            if name in self.refusing:
                continue
            if operation == "associate":
                self.associate(name)
            elif name in self.associations:
                self.carried.append(Carried(name, self.associations.pop(name), at, window))
            else:
                self.in_vain.append(name)
        return _failure(request, failing[1]) if failing else Batched(request.request_id, errors)


def _failure(request: ListPage | Batch, kind: str) -> CallFailed:
    return CallFailed(request.request_id, kind, kind.title(), f"made to fail: {kind}")


class Site:
    """A core device in virtual time: broker, cloud, and one run of the component after another.

    Args:
        directory: for the state files; each run that died leaves its own copy, as a power cut does.
        fuse: where runs die.
        settings: on top of `PLAIN`.
    """

    def __init__(self, directory: Path, fuse: Fuse | None = None, **settings: Any) -> None:
        self.fuse = fuse or Fuse()
        self.settings = {**PLAIN, **settings}
        self.clock = Clock()
        self.cloud = CloudModel()
        self.connected: dict[str, int] = {}
        self.events: list[dict[str, Any]] = []
        self.deaths = 0
        self.jitter: Callable[[], float] = lambda: 0.5
        self.when_called: Callable[[str, tuple[str, ...]], None] = lambda _operation, _names: None
        self.component: Component | None = None
        self._directory = directory
        self._session = 0
        self._bury: list[sqlite3.Connection] = []
        self._work_dir = directory / "run-0"
        self._work_dir.mkdir()

    # The component's life

    def start(self) -> None:
        """Start a run if there is none, again if it dies while it starts; then all devices connect anew."""
        if self.component is not None:
            return
        while self.component is None:
            self.fuse.dead = False
            with _Mortal(self):
                edges = Edges(self._connect, self._worker, self._roll_caller)
                # Set only when its start is over: one that died there leaves nothing.
                component = Component(self._work_dir, "core-1", self.clock, edges, jitter=self.jitter)
                self.component = component
                self._connect(component.inbox)
                self._turn(component)
        for name in list(self.connected):
            self.connect(name)

    def stop(self) -> None:
        """End the run as SIGTERM does."""
        if self.component is not None:
            with _Mortal(self):
                self.component.close()
        self.component = None

    def die(self) -> None:
        """End the run as SIGKILL does: what was not committed is lost."""
        self.fuse.dead = True
        self.deaths += 1
        self.component = None
        fresh = self._directory / f"run-{self.deaths}"
        fresh.mkdir()
        for suffix in ("", "-wal", "-journal"):
            if (part := self._work_dir / f"pruner.db{suffix}").exists():
                shutil.copy(part, fresh / part.name)
        for connection in self._bury:
            sqlite3.Connection.close(connection)
        self._bury.clear()
        self._work_dir = fresh

    def connection(self, path: Any, **options: Any) -> sqlite3.Connection:
        """Open a database whose statements are points of the fuse."""
        connection = mortal_connection(path, self.fuse, **options)
        self._bury.append(connection)
        return connection

    # Time

    def run(self, seconds: float) -> None:
        """Let so much time pass; a run that dies is followed by the next."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += STEP_SECONDS
            self.step()

    def run_until(self, reached: Callable[[], object], seconds: float, what: str = "it did not come to that") -> None:
        """Let time pass until something is so."""
        until = self.clock.now + seconds
        self.start()
        while not reached():
            assert self.clock.now < until, f"{what} within {seconds} s: {self.events[-5:]}"
            self.clock.now += STEP_SECONDS
            self.step()

    def step(self) -> None:
        """Publish the census, and let the component take its turns until nothing is left to take."""
        self.start()
        self._to_component(f"$SYS/brokers/{NODE}/stats/live_connections/count", str(len(self.connected) + 1))
        with _Mortal(self):
            self._turn(self.component)

    def sleep(self, seconds: float) -> None:
        """Suspend the process: time passes, and it does nothing; afterwards all devices connect anew."""
        self.clock.now += seconds
        self.connect(*self.connected)

    def _turn(self, component: Component | None) -> None:
        for _turn in range(200):
            if component is None:
                return
            component.turn(0)
            if not component.inbox._items:
                return
        raise AssertionError("the component finds no rest")

    # The devices

    def connect(self, *names: str) -> None:
        """Connect devices, anew if they are connected."""
        for name in names:
            self._session += 1
            if name in self.connected:
                self._event("disconnected", name, self.connected[name])
            self.connected[name] = self._session
            self._event("connected", name, self._session)

    def disconnect(self, *names: str) -> None:
        """Disconnect devices."""
        for name in names:
            self._event("disconnected", name, self.connected.pop(name))

    def _event(self, kind: str, name: str, session: int) -> None:
        self._to_component(f"$SYS/brokers/{NODE}/clients/{name}/{kind}", json.dumps({"connected_at": session}))

    def _to_component(self, topic: str, payload: str) -> None:
        if self.component is not None:
            self.component.inbox.put(Message(IN + topic, payload.encode(), self.clock.now))

    # The edges

    def _connect(self, inbox: Inbox[Item]) -> None:
        inbox.put_always(Connected(_FakeIpc(self, inbox)))

    def _worker(self, deliver: Callable[[Reply], None]) -> _FakeWorker:
        return _FakeWorker(self, deliver)

    @staticmethod
    def _roll_caller(_deliver: Callable[[RollCall | NoAnswer], None]) -> RollCaller:
        return RollCaller(_deliver, lambda: 0.0)

    # What it came to

    def of_type(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """The data of the events of a type, over all runs."""
        wanted = f"community.greengrass.pruner.{kind}"
        return [e["data"] for e in self.events if e["type"] == wanted and (name is None or e.get("subject") == name)]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read from the state file, as of its last commit."""
        connection = _REAL_CONNECT(self._work_dir / "pruner.db", isolation_level=None)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def write(self, statement: str, *values: Any) -> None:
        """Write into the state file as the command line does."""
        connection = _REAL_CONNECT(self._work_dir / "pruner.db", isolation_level=None)
        try:
            connection.execute(statement, values)
        finally:
            connection.close()

    def request(self, kind: str, argument: Any) -> None:
        """Queue a request as the command line does."""
        self.write("INSERT INTO requests (kind, argument) VALUES (?, ?)", kind, json.dumps(argument))

    @property
    def window(self) -> int:
        """The budget's window now."""
        running = self.component.watch.running_seconds() if self.component else 0.0
        return int(running // 86_400)

    def guards(self) -> set[str]:
        """The guards that hold now, but for sources."""
        if self.component is None:
            return set()
        return {hold.guard for hold in self.component.watch.guards.in_force if not hold.guard.startswith("source:")}

    def check_audit(self) -> None:
        """Hold the journal against what the cloud carried out: one `done` row each, none open, none in vain."""
        carried = Counter((c.name, c.timestamp) for c in self.cloud.carried)
        rows = self.rows("SELECT name, associated_at, outcome FROM disassociations")
        done = Counter((name, timestamp) for name, timestamp, outcome in rows if outcome == "done")
        assert set(carried.values()) <= {1}, f"disassociated twice: {carried}"
        assert done == carried, f"the audit differs from what was carried out: {rows}"
        assert not [row for row in rows if row[2] == "open"]
        assert not self.cloud.in_vain, f"asked for again: {self.cloud.in_vain}"


_REAL_CONNECT = sqlite3.connect


class _Connection(sqlite3.Connection):
    """Every statement that writes, or begins or ends a write, is a point to die at."""

    fuse: Fuse

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        writes = not sql.startswith("SELECT")
        if writes or self.fuse.dead:
            self.fuse.point(sql)
        # A process dies here, not the medium: waiting for it would only take time.
        cursor = super().execute("PRAGMA synchronous = OFF" if "synchronous" in sql else sql, *arguments)
        if sql == "COMMIT":
            self.fuse.point("committed")
        return cursor

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> sqlite3.Cursor:  # type: ignore[override]
        self.fuse.point(sql)
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
        # A story that fails, or ends in the middle, leaves its site as it stands; another thread may collect it.
        with contextlib.suppress(sqlite3.ProgrammingError):
            super().close()


def mortal_connection(path: Path, fuse: Fuse, **options: Any) -> sqlite3.Connection:
    """Open a database whose statements are points of a fuse."""
    connection = _REAL_CONNECT(path, factory=_Connection, **options)
    connection.fuse = fuse
    return connection


class _Mortal:
    """Runs the component on mortal connections, and buries it when it dies."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __enter__(self) -> None:
        sqlite3.connect = self._site.connection  # type: ignore[assignment]

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> bool:
        sqlite3.connect = _REAL_CONNECT
        if kind is not Death:
            return False
        self._site.die()
        return True


class _FakeIpc:
    """Greengrass, with a subscription that brings back what is published to it."""

    def __init__(self, site: Site, inbox: Inbox[Item]) -> None:
        self._site = site
        self._inbox = inbox

    def subscribe(self, topic: str) -> None:
        """Everything is subscribed to."""

    def unsubscribe(self) -> None:
        """Nothing is."""

    def publish(self, topic: str, payload: bytes) -> None:
        """Keep events; bring back the rest."""
        if self._site.fuse.dead:
            return
        if topic == EVENTS:
            self._site.events.append(json.loads(payload))
        elif topic.startswith(IN):
            self._inbox.put(Message(topic, payload, self._site.clock.now))

    def publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        """Nobody listens there."""

    def read_configuration(self, component: str | None) -> None:
        """Answer with the site's settings, and a bridge without a name of its own."""
        value = self._site.settings if component is None else {}
        self._inbox.put_always(Configuration(component, value, ""))

    def follow_configuration(self, component: str | None) -> None:
        """Nothing changes."""

    def follow_deployments(self) -> None:
        """There are none."""

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is left open."""


class _FakeWorker:
    """The child process: a call is a point before it is carried out, after, and when its answer comes."""

    def __init__(self, site: Site, deliver: Callable[[Reply], None]) -> None:
        self._site = site
        self._deliver = deliver

    def start(self) -> None:
        """Be ready at once, unless the credentials fail."""
        self._site.fuse.point("child started")
        failing = next((f for f in self._site.cloud.failing if f[0] == "start"), None)
        if failing:
            self._site.cloud.failing.remove(failing)
            self._deliver(CallFailed(None, failing[1], failing[1], "made to fail"))
        else:
            self._deliver(Ready())

    def send(self, request: ListPage | Batch) -> None:
        """Carry the request out and deliver the answer."""
        fuse, site = self._site.fuse, self._site
        operation = "list" if isinstance(request, ListPage) else request.operation
        fuse.point(f"{operation} about to be sent")
        window = site.window
        site.when_called(operation, () if isinstance(request, ListPage) else request.names)
        reply = site.cloud.answer(request, site.clock.now, window)
        fuse.point(f"{operation} carried out")
        self._deliver(reply)
        fuse.point(f"{operation} answered")

    def kill(self) -> None:
        """It is gone."""

    def stop(self) -> None:
        """It is gone."""
