"""The ways out of the simulated component's process: clocks, disk, Greengrass and the cloud."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from client_device_pruner import state_file
from client_device_pruner.cloud_worker import Batch, Batched, CallFailed, EntryError, Listed, ListPage, Ready, Reply
from client_device_pruner.inbox import Inbox
from client_device_pruner.ipc import Configuration

IN = "client-device-pruner/in/"
EVENTS = "client-device-pruner/events"
CANARY = "pruner-canary/telemetry"
EPOCH = 1.7e9
"""The true wall time, in epoch seconds, at which each simulation begins."""
PAGE = 100


class Death(BaseException):
    """The process is gone: nothing in it catches this, and nothing that it does afterwards has any effect."""


@dataclass(slots=True)
class Clock:
    """The core device's clocks: the monotonic one begins at each boot, the wall clock can be set."""

    now: float = 0.0
    booted: float = -1000.0
    wall_error: float = 0.0

    def monotonic(self) -> float:
        """See `model.Clock`."""
        return self.now - self.booted

    def wall(self) -> float:
        """See `model.Clock`."""
        return EPOCH + self.now + self.wall_error


@dataclass(slots=True)
class Fuse:
    """Lets the process die at one of the points that matter: around calls of the cloud and writes of the journal."""

    left: int = 0

    def point(self) -> None:
        """Pass a point, or die there."""
        if self.left:
            self.left -= 1
            if not self.left:
                raise Death


class _Medium(sqlite3.Connection):
    """It goes with its world, which nobody closes, and says nothing of that (Python 3.13 would)."""

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # where another thread collects it
            self.close()


class Disk:
    """The medium: what was committed outlives a process, and it can be full.

    Args:
        path: a file to keep it in, whose write-ahead log then only grows, to be measured; None: in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.full = False
        self.commits = 0
        self.real = sqlite3.connect(path or ":memory:", isolation_level=None, factory=_Medium)
        if path:
            self.real.execute("PRAGMA journal_mode = WAL").fetchone()
            self.real.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
            self.real.execute("PRAGMA synchronous = OFF")
        self.real.row_factory = sqlite3.Row
        state_file._migrate(self.real)  # noqa: SLF001 - the real schema, without a file

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read what is committed."""
        return [tuple(row) for row in self.real.execute(query)]


class Handle:
    """One run's connection to the disk, in the manner of `sqlite3.Connection`; without effect once the run is dead.

    Args:
        disk: what outlives the run.
        fuse: passed before and after each write that goes through to the medium.
        committed: called when the ledger was written.
    """

    def __init__(self, disk: Disk, fuse: Fuse, committed: Callable[[], None]) -> None:
        self._disk = disk
        self._fuse = fuse
        self._committed = committed
        self._of_ledger = False
        self._through = False
        self.dead = False

    @property
    def in_transaction(self) -> bool:
        """See `sqlite3.Connection`."""
        return self._disk.real.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """See `sqlite3.Connection`."""
        if sql.startswith("PRAGMA synchronous"):
            self._through = sql.endswith("FULL")
            sql = "PRAGMA synchronous = OFF"
        elif sql == "BEGIN IMMEDIATE":
            self._of_ledger = False
            self._check()
            if self._through:
                self._fuse.point()
        elif sql == "COMMIT":
            self._disk.commits += 1
            cursor = self._disk.real.execute(sql)
            if self._of_ledger:
                self._committed()
            if self._through:
                self._fuse.point()
            return cursor
        elif self.dead and sql != "ROLLBACK":
            raise Death
        return self._disk.real.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        """See `sqlite3.Connection`."""
        self._check()
        # Clocks are written with the signs of life up to them.
        self._of_ledger = self._of_ledger or "INTO sources" in sql
        return self._disk.real.executemany(sql, rows)

    def close(self) -> None:
        """Nothing is left open; what is on the disk stays."""

    def _check(self) -> None:
        if self.dead:
            raise Death
        if self._disk.full:
            raise sqlite3.OperationalError("database or disk is full")


class Host(Protocol):
    """What the edges need of the site around them."""

    @property
    def clock(self) -> Clock:
        """The core's clocks."""

    def carry(self, topic: str, payload: bytes) -> bool:
        """Take a message to the bridge; whether it came back."""

    def told_event(self, kind: str, name: str | None, data: dict[str, Any]) -> None:
        """The component published an event."""

    def asked_to_disassociate(self, names: tuple[str, ...]) -> None:
        """A batch arrived in the cloud."""

    def answered(self, operation: str) -> None:
        """The cloud answered a call."""

    def associated(self, name: str) -> None:
        """A new association was made."""

    def echoed(self) -> None:
        """The component's own message came back through its subscription."""

    def disassociated(self, name: str) -> None:
        """The cloud takes a device off the list."""


class Greengrass:
    """One connection to the nucleus (see `ipc.Ipc`)."""

    def __init__(self, host: Host, nucleus: Nucleus, inbox: Inbox[Any]) -> None:
        self._host = host
        self._nucleus = nucleus
        self._inbox = inbox
        self.open = True

    def subscribe(self, topic: str) -> None:
        """Subscribing anew brings a dead subscription back."""
        del topic
        if self.open:
            self._nucleus.deaf = False

    def unsubscribe(self) -> None:
        """All subscriptions end."""

    def publish(self, topic: str, payload: bytes) -> None:
        """Local pub/sub: events to whom it concerns, the rest comes back if the subscription lives."""
        if not self.open:
            return
        if topic == EVENTS:
            event = json.loads(payload)
            self._host.told_event(event["type"].rpartition(".")[2], event.get("subject"), event["data"])
        elif self._nucleus.deaf:
            return
        elif topic.startswith(IN):
            self._nucleus.deliver(self._inbox, topic, payload)
            self._host.echoed()
        elif self._host.carry(topic, payload):
            self._nucleus.deliver(self._inbox, f"{IN}clients/{topic}", payload)

    def publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        """Nobody listens there."""

    def read_configuration(self, component: str | None) -> None:
        """Answer with the site's settings, or its bridge's."""
        if self.open:
            value = self._nucleus.document if component is None else self._nucleus.bridge
            self._inbox.put_always(Configuration(component, value, ""))

    def follow_configuration(self, component: str | None) -> None:
        """The site says when something changed."""

    def follow_deployments(self) -> None:
        """They do not ask."""

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        """They do not ask."""

    def close(self) -> None:
        """Nothing is delivered any more."""
        self.open = False


@dataclass(slots=True)
class Nucleus:
    """What outlives a connection: the component's configuration, and whether the subscription is dead."""

    document: dict[str, Any]
    bridge: dict[str, Any]
    clock: Clock
    deaf: bool = False
    down: bool = False

    def deliver(self, inbox: Inbox[Any], topic: str, payload: bytes) -> None:
        """Put a message of the subscription into the inbox."""
        from client_device_pruner.ipc import Message

        inbox.put(Message(topic, payload, self.clock.monotonic()))


@dataclass(slots=True)
class Cloud:
    """The associations of the core device, and how the service answers for them."""

    host: Host
    associations: dict[str, float | None] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    failing: str = ""
    lists: bool = False
    lying: str = ""
    refuses: str = ""
    carried: list[tuple[str, float | None, float]] = field(default_factory=list)

    def answer(self, request: ListPage | Batch) -> Reply:
        """Carry a request out, or not, and answer it."""
        operation = "list" if isinstance(request, ListPage) else request.operation
        reply = self._answer(request, operation)
        self.host.answered(operation)
        return reply

    def _answer(self, request: ListPage | Batch, operation: str) -> Reply:
        self.calls[operation] += 1
        number = request.request_id
        if isinstance(request, ListPage):
            if self.failing and not self.lists:
                return CallFailed(number, self.failing, self.failing, "simulated")
            return self._page(request)
        if self.failing and self.failing != "lost":
            return CallFailed(number, self.failing, self.failing, "simulated")
        errors = []
        if operation == "disassociate":
            self.host.asked_to_disassociate(request.names)
        for name in request.names:
            if name == self.refuses:
                errors.append(EntryError(name, "Conflict", "simulated"))
            elif operation == "associate":
                self.associate(name)
            elif name in self.associations:
                self.host.disassociated(name)
                self.carried.append((name, self.associations.pop(name), self.host.clock.now))
        if self.failing:
            return CallFailed(number, "unreachable", "Lost", "simulated: the answer is lost, all was carried out")
        return Batched(number, tuple(errors))

    def associate(self, name: str) -> None:
        """Associate a device; one that is associated already stays as it is."""
        if name not in self.associations:
            self.associations[name] = EPOCH + self.host.clock.now
            self.host.associated(name)

    def _page(self, request: ListPage) -> Reply:
        names = sorted(self.associations)
        if self.lying == "empty":
            names = []
        elif self.lying == "half":
            names = names[: max(1, len(names) // 3)]
        start = int(request.next_token or 0)
        page = tuple((name, self.associations[name]) for name in names[start : start + PAGE])
        token = str(start + PAGE) if start + PAGE < len(names) else None
        if self.lying == "token":
            token = "0"  # noqa: S105 - a page's
        return Listed(request.request_id, page, token)


class Worker:
    """The child process: a call is a point to die at before it is carried out, after, and when its answer comes."""

    def __init__(self, cloud: Cloud, fuse: Fuse, deliver: Callable[[Reply], None]) -> None:
        self._cloud = cloud
        self._fuse = fuse
        self._deliver = deliver

    def start(self) -> None:
        """Be ready, unless credentials cannot be had."""
        failing = self._cloud.failing == "credentials"
        self._deliver(CallFailed(None, "credentials", "credentials", "simulated") if failing else Ready())

    def send(self, request: ListPage | Batch) -> None:
        """Carry the request out and deliver the answer."""
        self._fuse.point()
        reply = self._cloud.answer(request)
        self._fuse.point()
        self._deliver(reply)

    def kill(self) -> None:
        """It is gone."""

    def stop(self) -> None:
        """It is gone."""


def bridge_document(kind: str) -> dict[str, Any]:
    """What the bridge of a site of that kind is configured with (CONTRACT, the bridge's entries)."""
    client = "$SYS/brokers/+/clients/+/"
    topics = {"Connected": f"{client}connected", "Disconnected": f"{client}disconnected"}
    topics |= {"Count": "$SYS/brokers/+/stats/live_connections/count", "Uptime": "$SYS/brokers/+/uptime"}
    if kind == "messages":
        topics = {}
    if kind != "events":
        topics["Messages"] = "clients/+/telemetry"
    local = {"source": "LocalMqtt", "target": "Pubsub", "targetTopicPrefix": "client-device-pruner/in/"}
    mapping = {f"Pruner{key}": {"topic": topic, **local} for key, topic in topics.items()}
    if kind != "events":
        canary = {"topic": "pruner-canary/+", "source": "Pubsub", "target": "LocalMqtt"}
        mapping["PrunerCanary"] = {**canary, "targetTopicPrefix": "clients/"}
    return {"mqttTopicMapping": mapping}


@contextlib.contextmanager
def state_on(opened: Callable[[], Handle]) -> Iterator[None]:
    """Let the component find its state on a simulated disk."""
    real = state_file.open_state

    def open_state(_path: Path, *_about: Any) -> tuple[Handle, str]:
        return opened(), ""

    state_file.open_state = open_state  # type: ignore[assignment]
    try:
        yield
    finally:
        state_file.open_state = real
