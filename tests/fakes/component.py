"""The whole component in virtual time, in one process: a real state file, and fakes at its public edges."""

from __future__ import annotations

import gc
import heapq
import json
import resource
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from client_device_pruner.app import BURST_SECONDS, App, Connected, Edges, Item
from client_device_pruner.config.bridge import BRIDGE, EMQX, required_entries
from client_device_pruner.config.schema import SettingsRefused
from client_device_pruner.config.settings import parse
from client_device_pruner.greengrass.ipc import Disconnected, Message
from client_device_pruner.greengrass.link import PROBE
from client_device_pruner.greengrass.queue import Queue
from client_device_pruner.presence.client_list import Answer
from client_device_pruner.reports.events import TYPE_PREFIX
from client_device_pruner.store.database import read_only
from fakes.client_list import FakeClientLists
from fakes.clock import FakeClock
from fakes.cloud import FakeCloud, FakeCloudChild
from fakes.ipc import FakeIpc

BOOT_SECONDS = 30.0
"""What the monotonic clock shows when the component can start after a boot."""
RESTART_SECONDS = 5.0
"""How soon the nucleus starts a process that ended by itself."""
BUSY_TURNS = 500
"""So many turns at one time are a loop that never waits."""
CLIENT_LIST_ON = {
    "emqxConfig": {
        "dashboard": {
            "listeners": {"http": {"bind": 18083}},
            "default_username": "pruner",
            "default_password": "a-secret",
        }
    },
    "dockerOptions": "-p 8883:8883 -p 127.0.0.1:18083:18083",
}
"""EMQX' configuration with its HTTP API on the loopback (CONTRACT)."""


class Killed(BaseException):
    """Raised at one of the cloud's points: the process died there."""


class World:
    """True time, and what is going to happen in it."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()  # what the component sees: `now` starts anew with each boot
        self.now = 0.0  # seconds since the world began
        self.component: Component | None = None  # woken when it wants to be
        self._booted = -self.clock.now
        self._boots = count(2)
        self._order = count()
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Let something happen then; what is overdue happens at once."""
        heapq.heappush(self._agenda, (when, next(self._order), action))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Let something happen so many seconds from now."""
        self.at(self.now + seconds, action)

    def run(self, seconds: float, reached: Callable[[], object] = lambda: False) -> bool:
        """Let time pass, and all happen in its order, the component's turns too; True if it is `reached`."""
        until, agenda, forever = self.now + seconds, self._agenda, float("inf")
        while not reached():
            when = agenda[0][0] if agenda else forever
            wake = self.component.wake_at if self.component else forever
            if when > until and wake > until:
                self._move(until)
                return False
            if when <= wake:
                self._move(when)
                heapq.heappop(agenda)[2]()
            elif self.component:
                self._move(wake)
                self.component.turn()
        return True

    def sleep(self, seconds: float) -> None:
        """Suspend the host: time passes, and nothing happens."""
        self._move(self.now + seconds)

    def reboot(self) -> None:
        """Boot the host: the monotonic clock starts anew, the wall clock goes on."""
        self.clock.wall_ahead += self.clock.now - BOOT_SECONDS
        self._booted = self.now - BOOT_SECONDS
        self.clock.boot = f"boot-{next(self._boots)}"
        self.clock.now = BOOT_SECONDS

    def true_time(self, monotonic: float) -> float:
        """When a reading of this boot's monotonic clock is, or will be; never too early by a rounding."""
        return monotonic + self._booted + 1e-6

    def _move(self, when: float) -> None:
        self.now = max(self.now, when)
        self.clock.now = self.now - self._booted


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent, when it was published in true time; `kind` is its type without the prefix."""

    at: float
    kind: str
    name: str | None
    data: dict[str, Any] = field(hash=False)


class BridgedIpc(FakeIpc):
    """A Greengrass whose probes go to `to_broker`, which may bring them back, later or never."""

    to_broker: Callable[[str, bytes], object] = staticmethod(lambda _topic, _payload: None)

    def publish(self, topic: str, payload: bytes) -> None:
        """See `Ipc`."""
        super().publish(topic, payload)
        if topic.startswith(PROBE) and not self.carries_probe:
            self.to_broker(topic, payload)


class Component:
    """The component on a core device; start it, and let `World.run` pass the time."""

    def __init__(
        self,
        world: World,
        work_dir: Path,
        configuration: dict[str, Any] | None = None,  # as a deployment has it
        *,
        client_list: bool = False,  # EMQX is deployed with its HTTP API on
        seed: int = 0,  # of the jitter of its cycles
        burst_seconds: float = BURST_SECONDS,  # messages gather for so long; all else is taken as the real loop does
    ) -> None:
        self.world = world
        self.work_dir = work_dir
        self.cloud = FakeCloud(world.clock.monotonic)  # the truth of its associations
        self.connected: set[str] = set()  # the names on the broker's client list; shared with who changes them
        self.ipc: BridgedIpc | None = None  # its connection to Greengrass, of this run
        self.lists: FakeClientLists | None = None  # the client list, of this run
        self.to_broker: Callable[[str, bytes], object] | None = None  # takes what it publishes for it: the probes
        self.refuse_connection = self.list_failure = ""  # why it cannot connect to Greengrass, or have the client list
        self.on_taken: Callable[[object], object] = lambda _item: None  # gets each message and list that reached it
        self.call_seconds = 0.0  # how long each answer of the cloud takes; 0: it comes within the call
        self.disk_full = False  # whether nothing can be written to the state file
        self.events: list[Event] = []  # all that it published
        self.exits: list[float] = []  # when it ended by itself, to be started anew
        self.wake_at = float("inf")  # when it wants to be woken, in true time
        self._app: App | None = None
        self._children: list[FakeCloudChild] = []
        self.jitter: Callable[[], float] = Random(seed).random  # spreads its cycles
        self._burst = burst_seconds
        self._busy = (world.now, 0)
        document = dict(configuration or {})
        self._configurations: dict[str | None, Any] = {
            None: document,
            BRIDGE: {"mqttTopicMapping": _mapping(document)},
            EMQX: CLIENT_LIST_ON if client_list else {"dockerOptions": "-p 8883:8883"},
        }
        world.component = self

    # Its life

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._app is not None

    def start(self) -> None:
        """Start the process; one that runs goes on."""
        if self._app is None:
            edges = Edges(self._connect, cloud=self._child, client_lists=self._client_lists)
            self._app = App(self.work_dir, "core-1", self.world.clock, edges, jitter=self.jitter)
            self._connect(self._app.queue)
            self.wake_at = self.world.now

    def stop(self) -> None:
        """End the process as SIGTERM does."""
        if self._app is not None:
            self._app.stop()
            self._app.close()
            self._collect_events()
            self.kill()

    def kill(self) -> None:
        """End the process as SIGKILL does: what it has not committed is lost."""
        self._app, self.ipc, self.lists, self.wake_at = None, None, None, float("inf")
        for child in self._children:
            child.stop()
        self._children.clear()
        self.cloud.release()
        with warnings.catch_warnings():
            # Its connection to the state file is dropped unclosed, as the kernel does it.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def turn(self) -> None:
        """Let it take what has arrived, and do what is due."""
        app = self._app
        if app is None:
            return
        called = len(self.cloud.calls) + self.cloud.starts
        self.wake_at, died, ended = float("inf"), False, False
        try:
            with self._disk():
                wake = app.turn()
                ended = app.ending
        except Killed:
            died = True
        del app
        if ended:
            self.exits.append(self.world.now)
            self.stop()
            self.world.after(RESTART_SECONDS, self.start)
        if died:
            self._collect_events()
            self.kill()
        if self._app is None:
            return
        self.wake_at = min(self.wake_at, self.world.true_time(wake))
        if self.cloud.held and len(self.cloud.calls) + self.cloud.starts != called:
            self.world.after(self.call_seconds, self._answer)
        self._collect_events()
        at, times = self._busy
        self._busy = (self.world.now, times + 1 if at == self.world.now else 0)
        assert times < BUSY_TURNS, f"it never waits: {BUSY_TURNS} turns at {self.world.now}"

    # What is deployed

    @property
    def configuration(self) -> dict[str, Any]:
        """Its own configuration as it is deployed now."""
        document: dict[str, Any] = self._configurations[None]
        return document

    def configure(self, changes: dict[str, Any]) -> None:
        """Deploy values of its own configuration; those that are not named stay."""
        self._configurations[None] = {**self._configurations[None], **changes}
        if self.ipc is not None:
            self.ipc.configure(None, self._configurations[None])

    def slow_cloud(self, seconds: float) -> None:
        """Let each answer of the cloud take so long."""
        self.cloud.held, self.call_seconds = True, seconds

    def fail_lists(self, failure: str) -> None:
        """Let the client list fail from now on; empty: let it answer again."""
        self.list_failure = failure
        if self.lists is not None:
            self.lists.failure = failure

    # What comes out

    def hear(self, topic: str, payload: bytes) -> bool:
        """Let the bridge publish a message on local pub/sub; False if it was not heard."""
        return self.ipc is not None and self.ipc.message(topic, payload)

    def happened(self, kind: str, name: str | None = None) -> list[Event]:
        """The events of a kind, or of a kind about one device."""
        return [event for event in self.events if event.kind == kind and name in (None, event.name)]

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What is committed."""
        with closing(read_only(self.work_dir / "pruner.db")) as connection:
            return connection.execute(query, values).fetchall()

    def kept(self, key: str) -> Any:
        """A committed single value: `status`, `presence`, `budget` …; None if there is none."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    def status(self) -> dict[str, Any]:
        """The committed status."""
        status: dict[str, Any] = self.kept("status")
        return status

    # Its edges

    def _connect(self, queue: Queue[Item]) -> None:
        if self.refuse_connection:
            queue.put_always(Disconnected(self.refuse_connection, refused=True))
            self._notice()
            return

        def deliver(message: Message) -> None:
            taken = queue.put(message, len(message.topic) + len(message.payload) + 200)
            self._notice(self._burst)
            if taken:
                self.on_taken(message)

        self.ipc = BridgedIpc(self.world.clock, deliver, self._noticed(queue.put_always))
        self.ipc.configurations = self._configurations
        self.ipc.carries_probe = self.to_broker is None
        self.ipc.to_broker = self.to_broker or self.ipc.to_broker
        self._noticed(queue.put_always)(Connected(self.ipc))

    def _child(self, deliver: Callable[[Any], None]) -> FakeCloudChild:
        self._children = [FakeCloudChild(self.cloud, self._noticed(deliver))]
        return self._children[0]

    def _answer(self) -> None:
        """The cloud's answers arrive; the process may die of one."""
        died = False
        try:
            self.cloud.release()
        except Killed:
            died = True
        if died:
            self.kill()

    def _client_lists(self, deliver: Callable[[Any], None]) -> FakeClientLists:
        notice = self._noticed(deliver)

        def answer(item: Answer) -> None:
            notice(item)
            self.on_taken(item)

        self.lists = FakeClientLists(answer, self.world.clock.monotonic)
        self.lists.connected, self.lists.failure = self.connected, self.list_failure
        return self.lists

    def _noticed(self, deliver: Callable[[Any], None]) -> Callable[[Any], None]:
        def deliver_and_wake(item: Any) -> None:
            deliver(item)
            self._notice()

        return deliver_and_wake

    def _notice(self, within: float = BURST_SECONDS) -> None:
        self.wake_at = min(self.wake_at, self.world.now + within)

    def _collect_events(self) -> None:
        if self.ipc is None or not self.ipc.published:
            return
        for _topic, payload in self.ipc.published:
            event = json.loads(payload)
            kind = event["type"].removeprefix(TYPE_PREFIX)
            self.events.append(Event(self.world.now, kind, event.get("subject"), event["data"]))
        self.ipc.published.clear()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        if not self.disk_full:
            yield
            return
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _mapping(document: dict[str, Any]) -> dict[str, Any]:
    """The bridge's entries that these settings need, or, where they are refused, those of the defaults."""
    try:
        return required_entries(parse(document))
    except SettingsRefused:
        return required_entries(parse({}))
