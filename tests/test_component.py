"""The component between fake edges and under a fake clock: what it does when, and what it leaves undone."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner import component as module
from client_device_pruner import state_file, watch
from client_device_pruner.cloud_worker import Batch, Batched, CallFailed, Listed, ListPage, Ready, Reply, Request
from client_device_pruner.component import Component, Connected, Edges, Item, NotConnected
from client_device_pruner.doctor import BRIDGE
from client_device_pruner.inbox import Inbox
from client_device_pruner.ipc import (
    Configuration,
    ConfigurationChanged,
    Disconnected,
    Message,
    PreUpdate,
    Refused,
    StreamClosed,
    Subscribed,
)
from client_device_pruner.ledger import get_meta
from client_device_pruner.model import Habit
from client_device_pruner.reports import LOGGER
from client_device_pruner.roll_call import NoAnswer, RollCall, RollCaller
from desk import Clock

IN = "client-device-pruner/in/"
EVENTS = "client-device-pruner/events"
SELF_TEST = f"{IN}pruner-self-test"
DAY, HOUR, MINUTE = 86_400.0, 3_600.0, 60.0
PLAIN: dict[str, Any] = {
    "offlineThreshold": "1d",
    "noticePeriod": "0s",
    "checkInterval": "1h",
    "limits": {"maxPercentPerDay": 100, "approvalPercent": 100},
    "massLoss": {"window": "10s", "minDevices": 100},
}
"""The fixed times are those of a site; the others are the shortest that are allowed there."""


class FakeIpc:
    """One connection: it notes what is asked of it, and brings back what is published to the subscription."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.asked: list[tuple[Any, ...]] = []
        self.subscribed: list[str] = []

    def subscribe(self, topic: str) -> None:
        """See `ipc.Ipc`."""
        self.asked.append(("subscribe", topic))
        self.subscribed.append(topic)

    def unsubscribe(self) -> None:
        """See `ipc.Ipc`."""
        self.asked.append(("unsubscribe",))
        self.subscribed.clear()

    def publish(self, topic: str, payload: bytes) -> None:
        """See `ipc.Ipc`."""
        machine = self._machine
        machine.published.append((machine.clock.now, topic, payload))
        if topic == EVENTS:
            machine.events.append(json.loads(payload))
        elif topic.startswith(IN) and self.subscribed and machine.echoes:
            machine.component.inbox.put(Message(topic, payload, machine.clock.now))

    def publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        """See `ipc.Ipc`."""

    def read_configuration(self, component: str | None) -> None:
        """See `ipc.Ipc`."""
        self.asked.append(("read", component))
        own = (self._machine.document, self._machine.read_error)
        value, error = own if component is None else (self._machine.bridge, "")
        self._machine.component.inbox.put_always(Configuration(component, value, error))

    def follow_configuration(self, component: str | None) -> None:
        """See `ipc.Ipc`."""
        self.asked.append(("follow", component))

    def follow_deployments(self) -> None:
        """See `ipc.Ipc`."""

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        """See `ipc.Ipc`."""
        self.asked.append(("defer", deployment_id, milliseconds))

    def close(self) -> None:
        """See `ipc.Ipc`."""
        self.asked.append(("close",))


class FakeWorker:
    """The child process, whose calls the machine's cloud answers at once, or keeps to itself if it hangs."""

    def __init__(self, machine: Machine, deliver: Callable[[Reply], None]) -> None:
        self._machine = machine
        self._deliver = deliver

    def start(self) -> None:
        """See `job.Worker`."""
        self._machine.children += 1
        self._deliver(self._machine.failure or Ready())

    def send(self, request: Request) -> None:
        """See `job.Worker`."""
        self._machine.calls.append(request)
        if isinstance(request, Batch) and self._machine.hanging:
            return
        self._deliver(self._answer(request))

    def _answer(self, request: Request) -> Reply:
        machine = self._machine
        if isinstance(request, ListPage):
            return Listed(request.request_id, tuple(machine.associations.items()), None)
        for name in request.names:
            if request.operation == "associate":
                machine.associate(name)
            else:
                del machine.associations[name]
        return Batched(request.request_id, ())

    def kill(self) -> None:
        """See `job.Worker`."""

    def stop(self) -> None:
        """See `job.Worker`."""


class FakeRollCaller(RollCaller):
    """Makes no calls: it notes when one was asked for, and is busy until an answer is delivered."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(lambda _outcome: None, machine.clock.monotonic)
        self._machine = machine

    def call(self, url: str, key_file: str) -> None:
        """Note the call."""
        self._machine.roll_calls.append((url, key_file))


@dataclass
class Machine:
    """A core device around the component: what it is told, and what it was heard to say.

    Attributes:
        connects: what the next attempts to connect come to: True, or why not; True when exhausted.
        echoes: whether the subscription lives.
        hanging: whether batch calls get no answer.
        failure: what becomes of a child that is started, instead of its being ready.
    """

    work_dir: Path
    document: Any = field(default_factory=lambda: dict(PLAIN))
    bridge: dict[str, Any] = field(default_factory=dict)
    read_error: str = ""
    connects: list[bool | str] = field(default_factory=list)
    echoes: bool = True
    hanging: bool = False
    failure: CallFailed | None = None
    clock: Clock = field(default_factory=Clock)
    associations: dict[str, float | None] = field(default_factory=dict)
    online: dict[str, int] = field(default_factory=dict)
    attempts: list[float] = field(default_factory=list)
    ipcs: list[FakeIpc] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    published: list[tuple[float, str, bytes]] = field(default_factory=list)
    calls: list[Request] = field(default_factory=list)
    roll_calls: list[tuple[str, str]] = field(default_factory=list)
    started: list[Component] = field(default_factory=list)
    children: int = 0
    counting: bool = True
    _numbers: int = 0

    def start(self) -> None:
        """Start the component; one that runs is left as SIGKILL leaves it."""
        edges = Edges(self._connect, lambda deliver: FakeWorker(self, deliver), lambda _deliver: FakeRollCaller(self))
        self.component = Component(self.work_dir, "core-1", self.clock, edges, jitter=lambda: 0.5)
        self.started.append(self.component)
        self._connect(self.component.inbox)
        self.turn()

    def restart(self) -> None:
        """End the component as SIGTERM does, and start it again."""
        self.component.close()
        self.start()
        self.connect(*self.online)

    def _connect(self, inbox: Inbox[Item]) -> None:
        self.attempts.append(self.clock.now)
        outcome = self.connects.pop(0) if self.connects else True
        if outcome is True:
            self.ipcs.append(FakeIpc(self))
            inbox.put_always(Connected(self.ipcs[-1]))
        else:
            inbox.put_always(NotConnected(str(outcome)))

    def turn(self) -> None:
        """Let the component take its turns until nothing is left to take."""
        self.component.turn(0.0)
        while self.component.inbox._items and not self.component._stopping:
            self.component.turn(0.0)

    def run(self, seconds: float, *, step: float = MINUTE) -> None:
        """Let so much time pass, the broker counting at each step."""
        until = self.clock.now + seconds
        while self.clock.now < until and not self.component._stopping:
            self.clock.now = min(self.clock.now + step, until)
            if self.counting:
                self.tell("$SYS/brokers/n/stats/live_connections/count", str(len(self.online) + 1))
            self.turn()

    def run_until(self, reached: Callable[[], object], seconds: float = 3 * DAY) -> None:
        """Let time pass until something is so."""
        until = self.clock.now + seconds
        while not reached():
            assert self.clock.now < until, self.events[-5:]
            self.run(MINUTE)

    def tell(self, topic: str, payload: str) -> None:
        """Put a message into the subscription."""
        self.component.inbox.put(Message(IN + topic, payload.encode(), self.clock.now))

    def take(self, item: Any) -> None:
        """Put any other news into the inbox, and let it be taken."""
        self.component.inbox.put_always(item)
        self.turn()

    def associate(self, *names: str) -> None:
        """Associate devices, each with a timestamp of its own."""
        for name in names:
            self._numbers += 1
            self.associations[name] = float(self._numbers)

    def connect(self, *names: str) -> None:
        """Have devices connect."""
        for name in names:
            self._numbers += 1
            self.online[name] = self._numbers
            self.tell(f"$SYS/brokers/n/clients/{name}/connected", json.dumps({"connected_at": self._numbers}))

    def lose(self, *names: str) -> None:
        """Have devices disconnect."""
        for name in names:
            number = self.online.pop(name)
            self.tell(f"$SYS/brokers/n/clients/{name}/disconnected", json.dumps({"connected_at": number}))

    def of_type(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """The data of the events of a type so far."""
        wanted = f"community.greengrass.pruner.{kind}"
        return [e["data"] for e in self.events if e["type"] == wanted and name in (None, e.get("subject"))]

    def batches(self, operation: str = "disassociate") -> list[tuple[str, ...]]:
        """The names of each batch call so far."""
        return [call.names for call in self.calls if isinstance(call, Batch) and call.operation == operation]

    def request(self, kind: str, argument: Any) -> None:
        """Leave a request in the state file, as the command line does."""
        connection = self.component.watch.ledger.connection
        assert connection is not None
        row = (kind, json.dumps(argument))
        connection.execute("INSERT INTO requests (kind, argument) VALUES (?, ?)", row)

    @property
    def ipc(self) -> FakeIpc:
        """The connection of the moment."""
        return self.ipcs[-1]

    @property
    def status(self) -> dict[str, Any]:
        """The status that was last described."""
        status = self.component.watch.ledger.status
        assert status is not None
        return status


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose component is not started yet."""
    machine = Machine(tmp_path)
    yield machine
    for component in machine.started:  # the system closes the files of a process that was killed, too
        if component.watch.ledger.connection is not None:
            component.watch.ledger.connection.close()


def with_a_gone_device(machine: Machine, *names: str, **settings: Any) -> None:
    """Start, with these devices associated and gone, and one that is connected all the while."""
    machine.document = {**PLAIN, **settings}
    machine.associate("alive", *names)
    machine.start()
    machine.connect("alive", *names)
    machine.run_until(lambda: machine.of_type("cycle"))
    machine.run(5 * MINUTE)
    machine.lose(*names)


# What it holds in memory ----------------------------------------------------------------------------------------


def test_what_few_sites_need_stays_out_of_memory(tmp_path: Path) -> None:
    """As the recipe runs it, and after a child, it holds no module of size before there is a use for it."""
    script = f"""
        import sys
        before = set(sys.modules)
        import runpy
        sys.argv[1:] = ["--work-dir", {str(tmp_path)!r}]
        try:
            runpy.run_module("client_device_pruner", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert end.code == 2, end
        from client_device_pruner import ipc
        from client_device_pruner.cloud_worker import CloudWorker, ListPage
        replies = []
        worker = CloudWorker((sys.executable, "-c", "print(input())"), core_device="core-1", deliver=replies.append)
        worker.start()
        worker.send(ListPage(1))
        worker._reader.join()
        worker.stop()
        assert [reply.kind for reply in replies] == ["garbage"], replies
        print(*set(sys.modules) - before)
    """
    # Without a core device's name it ends where the component would begin: all that it needs is loaded by then.
    environment = {name: value for name, value in os.environ.items() if name != "AWS_IOT_THING_NAME"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**environment, "PYTHONPATH": str(Path(module.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert {"client_device_pruner.component", "client_device_pruner.child", "awsiot.greengrasscoreipc"} <= loaded
    large = {"argparse", "asyncio", "awscrt.mqtt5", "boto3", "dataclasses", "decimal", "difflib", "http.client"}
    large |= {"inspect", "locale", "pathlib", "select", "selectors", "socket", "ssl", "subprocess", "urllib.parse"}
    if sys.version_info < (3, 11):
        # There platform imports it, for uuid, which the SDK imports.
        large -= {"select", "selectors", "subprocess"}
    assert not loaded & large


# When the state is written ---------------------------------------------------------------------------------------


def _written(machine: Machine) -> dict[str, Any]:
    """The status as another process finds it in the state file."""
    with closing(state_file.read_only(machine.work_dir / "pruner.db")) as connection:
        status: dict[str, Any] = get_meta(connection, "status")
        return status


def test_while_only_clocks_advance_the_state_is_written_every_five_minutes(machine: Machine) -> None:
    """Flash is spared; what is written is of one moment, credit and status."""
    machine.document = {**PLAIN, "checkInterval": "7d"}
    machine.associate("a", "b")
    machine.start()
    machine.connect("a", "b")
    machine.run(20 * MINUTE)

    times, clocks = set(), set()
    for _ in range(60):
        machine.run(MINUTE)
        times.add(_written(machine)["time"])
        clocks.add(_written(machine)["sources"]["emqx"]["clockSeconds"])

    assert len(times) == len(clocks)
    assert 11 <= len(times) <= 14


def test_a_sign_of_life_is_written_within_a_minute(machine: Machine) -> None:
    """And so is whatever changes what the status says."""
    machine.associate("a", "b")
    machine.start()
    machine.connect("a", "b")
    machine.run(HOUR)
    machine.lose("a")
    machine.run(MINUTE + 1)
    assert _written(machine)["counts"]["present"] == 1

    machine.counting = False
    machine.run(5 * MINUTE)
    assert not _written(machine)["sources"]["emqx"]["vouching"]


def test_a_storm_does_not_fill_the_memory_with_what_is_to_be_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many devices show life at once, only so many rows wait for the next commit."""
    monkeypatch.setattr(watch, "MAX_PENDING_ROWS", 50)
    names = [f"d{number}" for number in range(200)]
    machine.associate(*names)
    machine.start()
    machine.run(HOUR)
    for start in range(0, 200, 20):
        machine.connect(*names[start : start + 20])
        machine.turn()
        assert machine.component.watch.ledger.pending_rows <= 90


# Which filters of the bridge feed a source ----------------------------------------------------------------------


def _fed_by(*topics: str) -> dict[str, Any]:
    path = {"source": "LocalMqtt", "target": "Pubsub", "targetTopicPrefix": IN}
    return {"mqttTopicMapping": {f"Mine{number}": {"topic": topic, **path} for number, topic in enumerate(topics)}}


def _habits_of(machine: Machine, name: str) -> dict[int, Habit]:
    return machine.component.watch.ledger.devices[name].habits or {}


@pytest.fixture
def talker(machine: Machine) -> Machine:
    """The device talks has a habit, through one of two entries of the bridge that feed the source."""
    machine.bridge = _fed_by("clients/+/telemetry", "clients/+/status")
    machine.associate("talks")
    machine.start()
    machine.run_until(lambda: machine.of_type("cycle"))
    machine.tell("clients/talks/status", "{}")
    machine.run(2 * MINUTE)
    assert _habits_of(machine, "talks")
    return machine


def test_an_entry_taken_away_takes_the_habits_of_its_source_along(talker: Machine) -> None:
    """Whoever spoke through it cannot be heard any more, while others still are."""
    talker.take(Configuration(BRIDGE, _fed_by("clients/+/telemetry"), ""))
    assert not _habits_of(talker, "talks")


def test_an_entry_taken_away_while_the_component_was_off_does_so_too(talker: Machine) -> None:
    """What fed the source outlives the run."""
    talker.bridge = _fed_by("clients/+/telemetry")
    talker.restart()
    assert not _habits_of(talker, "talks")


@pytest.mark.parametrize(
    "bridge", [_fed_by("clients/+/#"), _fed_by("clients/+/status", "clients/+/telemetry", "clients/+/log"), {}, None]
)
def test_habits_stay_where_nothing_is_lost(talker: Machine, bridge: Any) -> None:
    """A wider filter, one more, or none at all (then nothing vouches), or a configuration that cannot be read."""
    talker.take(Configuration(BRIDGE, bridge, "" if bridge is not None else "it cannot be read"))
    assert _habits_of(talker, "talks")


def test_all_entries_taken_away_and_one_given_back_is_noticed(talker: Machine) -> None:
    """What feeds the source is compared with what fed it last."""
    talker.take(Configuration(BRIDGE, {}, ""))
    talker.take(Configuration(BRIDGE, _fed_by("clients/+/telemetry"), ""))
    assert not _habits_of(talker, "talks")


# The subscription, the connection, and the end ------------------------------------------------------------------


def test_the_self_test_is_sent_every_minute(machine: Machine) -> None:
    """Through the subscription that the sources share; while it comes back, nothing is renewed."""
    machine.start()
    machine.run(HOUR)

    sent = [at for at, topic, _payload in machine.published if topic == SELF_TEST]
    assert 59 <= len(sent) <= 61
    assert len(machine.ipcs) == 1
    assert [asked for asked in machine.ipc.asked if asked[0] == "subscribe"] == [("subscribe", f"{IN}#")]


def test_a_dead_subscription_is_renewed_then_the_connection_then_the_process(machine: Machine) -> None:
    """When the echo stays away: subscribe anew, connect anew, end with status 1, in this order."""
    machine.start()
    machine.echoes = False

    machine.run_until(lambda: ("unsubscribe",) in machine.ipc.asked, 5 * MINUTE)
    assert machine.ipc.asked[-2:] == [("unsubscribe",), ("subscribe", f"{IN}#")]
    assert len(machine.ipcs) == 1

    machine.run_until(lambda: len(machine.ipcs) == 2, 5 * MINUTE)
    assert machine.ipcs[0].asked[-1] == ("close",)
    assert ("subscribe", f"{IN}#") in machine.ipc.asked
    assert not machine.component._stopping

    machine.run_until(lambda: machine.component._stopping, 5 * MINUTE)
    assert machine.component.run() == 1


def test_a_subscription_that_comes_back_to_life_ends_the_remedies(machine: Machine) -> None:
    """After an echo the next silence begins with the first remedy again."""
    machine.start()
    for _time in range(3):
        before = len(machine.ipc.asked)
        machine.ipc.subscribed.clear()  # dead without a word; a new one lives
        machine.run(2 * MINUTE, step=1.0)
        assert machine.ipc.asked[before:] == [("unsubscribe",), ("subscribe", f"{IN}#")]

    assert len(machine.ipcs) == 1
    assert not machine.component._stopping


def test_it_ends_itself_at_most_once_an_hour_over_restarts(machine: Machine) -> None:
    """Three errors would make it BROKEN: a restart forgets nothing, and only running time counts."""
    machine.echoes = False
    machine.start()
    machine.run_until(lambda: machine.component._stopping, HOUR)
    machine.component.close()
    machine.clock.now += 30 * DAY  # off for long: no running time

    machine.start()
    again = machine.clock.now
    machine.run(0.9 * HOUR)
    assert not machine.component._stopping
    assert len(machine.ipcs) > 10, "it goes on connecting anew"
    machine.run_until(lambda: machine.component._stopping, HOUR)

    assert machine.clock.now - again >= 0.9 * HOUR
    assert machine.component.run() == 1


def test_a_void_token_ends_the_process_once_an_hour(machine: Machine) -> None:
    """A connection that is refused ends the process; after that it keeps trying, every 30 s."""
    machine.start()
    machine.connects = ["ACCESS_DENIED"] * 1000
    machine.take(Disconnected("gone"))
    machine.run(6.0, step=1.0)
    assert machine.component._stopping
    machine.component.close()

    machine.start()
    assert not machine.component._stopping
    tried = len(machine.attempts)
    machine.run(10 * MINUTE, step=1.0)
    assert not machine.component._stopping
    assert len(machine.attempts) - tried == pytest.approx(20, abs=1)
    machine.run(HOUR)
    assert machine.component._stopping


def test_a_lost_connection_is_tried_again_after_five_seconds(machine: Machine) -> None:
    """Once, and with everything asked for anew."""
    machine.start()
    lost = machine.clock.now
    machine.take(Disconnected("the nucleus restarted"))
    machine.run(MINUTE, step=1.0)

    assert machine.attempts[1:] == [lost + 5.0]
    for asked in (("read", None), ("read", BRIDGE), ("follow", None), ("follow", BRIDGE), ("subscribe", f"{IN}#")):
        assert asked in machine.ipc.asked
    assert not machine.component._stopping


def test_who_came_as_another_left_while_there_was_no_connection_stays(machine: Machine) -> None:
    """The count agrees by accident, and the connection that was lost shows it: who is known is in doubt."""
    with_a_gone_device(machine, "returns")
    machine.run(0.5 * DAY)
    machine.take(Disconnected("gone"))
    machine.online["returns"] = machine.online.pop("alive")
    machine.run(MINUTE, step=1.0)
    machine.take(Subscribed(f"{IN}#"))
    machine.run(2 * DAY)

    assert not machine.batches()
    assert "in doubt" in machine.status["sources"]["emqx"]["reason"]


def test_a_stream_that_closes_is_found_by_the_self_test(machine: Machine) -> None:
    """A closed stream alone ends nothing: the next self-test that stays away renews it."""
    machine.start()
    machine.echoes = False
    machine.take(StreamClosed(f"{IN}#"))
    machine.run_until(lambda: ("unsubscribe",) in machine.ipc.asked, 5 * MINUTE)

    assert len(machine.ipcs) == 1


def test_the_canary_is_sent_every_minute(machine: Machine) -> None:
    """On local pub/sub, for the bridge to carry to the broker and back."""
    machine.start()
    machine.run(HOUR)

    sent = [at for at, topic, _payload in machine.published if topic == "pruner-canary/telemetry"]
    assert 59 <= len(sent) <= 61


def test_it_ends_at_once_when_told_to(machine: Machine) -> None:
    """SIGTERM: status 0, and the state saved, with the status of that moment."""
    machine.associate("a")
    machine.start()
    machine.connect("a")
    machine.run(2 * HOUR)
    machine.component.stop()

    assert machine.component.run() == 0

    assert machine.ipcs[0].asked[-1] == ("close",)
    assert machine.status["time"] == machine.clock.wall()
    machine.start()
    assert "a" in machine.component.watch.ledger.devices
    assert machine.component.watch.ledger.sources["emqx"].clock.credit_seconds > HOUR


# The configuration ----------------------------------------------------------------------------------------------


def test_a_refused_configuration_holds_pruning_and_goes_on_watching(machine: Machine) -> None:
    """At the first start the defaults are in force for watching; all problems are told; nothing is pruned."""
    machine.document = {**PLAIN, "offlineThreshold": "1x", "noSuchKey": 1}
    machine.associate("gone", "alive")
    machine.start()
    machine.connect("gone", "alive")
    machine.run(HOUR)
    machine.lose("gone")
    machine.run(35 * DAY, step=3 * MINUTE)

    (refused,) = machine.of_type("configuration")
    assert not refused["accepted"]
    assert [problem.split(":")[0] for problem in refused["problems"]] == ["noSuchKey", "offlineThreshold"]
    (held,) = [data for data in machine.of_type("held") if data["guard"] == "configuration"]
    assert "offlineThreshold" in held["reason"]
    assert machine.of_type("marked", "gone"), "it is watched all the same"
    assert not machine.batches()
    assert "configuration" in machine.of_type("cycle")[-1]["held"]

    machine.document = {"noticePeriod": "0s"}
    machine.take(ConfigurationChanged(None))
    machine.run_until(machine.batches)

    assert [data["guard"] for data in machine.of_type("released")].count("configuration") == 1
    assert machine.batches() == [("gone",)]


def test_a_refused_change_leaves_the_old_one_in_force(machine: Machine) -> None:
    """While running: the last good one stays, what it protects included."""
    with_a_gone_device(machine, "gone", protectedClients=["gone"])
    machine.document = {**PLAIN, "protectedClients": 7}
    machine.take(ConfigurationChanged(None))
    machine.run(2 * DAY)

    assert machine.of_type("cycle")[-1]["protected"] == 1
    assert [data["accepted"] for data in machine.of_type("configuration")] == [True, False]
    machine.document = {**PLAIN, "protectedClients": ["gone"]}
    machine.take(ConfigurationChanged(None))
    assert [data["accepted"] for data in machine.of_type("configuration")] == [True, False, True], "as it was before"


@pytest.mark.parametrize(("document", "error"), [({"limits": []}, ""), (None, "time-out")])
def test_the_last_good_configuration_outlives_a_restart(machine: Machine, document: Any, error: str) -> None:
    """Refused, or not to be read, at the next start: what was accepted before is in force, and pruning holds."""
    with_a_gone_device(machine, "gone", protectedClients=["alive"])
    machine.document, machine.read_error = document, error
    machine.restart()

    assert machine.component.watch.settings.is_protected("alive")
    assert machine.component.watch.settings.offline_threshold_seconds == DAY
    machine.run(3 * DAY)
    assert not machine.batches()
    machine.document, machine.read_error = dict(PLAIN), ""
    machine.take(ConfigurationChanged(None))
    machine.run_until(machine.batches)


def test_one_change_of_a_deployment_is_read_once(machine: Machine) -> None:
    """It comes as one event for each value that changed."""
    machine.start()
    before = len(machine.ipc.asked)
    for _value in range(20):
        machine.component.inbox.put_always(ConfigurationChanged(None))
    machine.turn()

    assert machine.ipc.asked[before:] == [("read", None)]
    assert len(machine.of_type("configuration")) == 1, "nothing has changed"


def test_what_is_refused_is_among_the_findings_until_it_is_granted(machine: Machine) -> None:
    """A missing permission is told with the JSON that grants it, in status, for as long as it is missing."""
    machine.start()
    machine.take(Refused("PublishToTopic", "pruner-canary/telemetry", "no", unauthorized=True))
    machine.run(5 * MINUTE)
    (finding,) = [f for f in machine.status["doctor"] if "permission" in f["finding"]]
    grant = json.loads(finding["remedy"])["accessControl"]["aws.greengrass.ipc.pubsub"]
    (policy,) = grant.values()
    assert policy == {"operations": ["aws.greengrass#PublishToTopic"], "resources": ["pruner-canary/telemetry"]}

    machine.take(ConfigurationChanged(None))
    machine.run(5 * MINUTE)
    assert not [f for f in machine.status["doctor"] if "permission" in f["finding"]]


# Sources, coverage, and the state file --------------------------------------------------------------------------


def test_a_refused_subscription_is_asked_for_again(machine: Machine) -> None:
    """Beside others that stand, too: after a deployment, which may have granted it, and with each self-test."""
    counts = "$SYS/brokers/+/stats/live_connections/count"
    machine.document = {**PLAIN, "inboundPrefix": "", "sources": {"messages": {"canaryTopic": ""}}}
    machine.start()
    refused = Refused("SubscribeToTopic", counts, "UnauthorizedError: no", unauthorized=True)

    def asked() -> int:
        return machine.ipc.asked.count(("subscribe", counts))

    machine.take(refused)
    before = asked()
    machine.take(ConfigurationChanged(None))
    assert asked() == before + 1
    machine.take(refused)
    machine.run(3 * MINUTE)
    assert before + 3 <= asked() <= before + 5
    assert any(counts in found["finding"] for found in machine.status["doctor"])
    machine.take(Subscribed(counts))
    before = asked()
    machine.run(5 * MINUTE)
    assert asked() == before
    assert machine.ipc.asked.count(("unsubscribe",)) == 1, "with the first configuration"
    assert not any(counts in found["finding"] for found in machine.status["doctor"])


def test_what_greengrass_lite_lacks_is_said_once(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """Not again when it connects anew or is configured anew; it is no error, and nothing for the doctor."""
    machine.start()
    caplog.set_level("INFO", "client_device_pruner")
    for _time in range(3):
        machine.take(Refused("SubscribeToComponentUpdates", "", "ServiceError", unauthorized=False))
        machine.take(Refused("SubscribeToConfigurationUpdate", BRIDGE, "ServiceError", unauthorized=False))
        machine.take(Disconnected("gone"))
        machine.run(6.0, step=1.0)
        machine.take(ConfigurationChanged(None))
    machine.take(Refused("SubscribeToConfigurationUpdate", "", "ServiceError", unauthorized=False))

    refusals = [record for record in caplog.records if record.message == "Greengrass refused a call"]
    said = [(record.levelname, vars(record)["fields"]["operation"]) for record in refusals]
    assert said == [
        ("INFO", "SubscribeToComponentUpdates"),
        ("INFO", "SubscribeToConfigurationUpdate"),
        ("ERROR", "SubscribeToConfigurationUpdate"),
    ]
    machine.run(2 * MINUTE)
    assert not any("refuses" in found["finding"] for found in machine.status["doctor"])


def test_short_durations_are_warned_about_at_every_start(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """They are for trials: who left them in a deployment finds that in each log."""
    machine.document = {**PLAIN, "allowShortDurations": True}
    caplog.set_level("INFO", "client_device_pruner")
    machine.start()
    machine.restart()
    machine.document = dict(PLAIN)
    machine.restart()

    warned = [r.levelname for r in caplog.records if "allowShortDurations is on" in r.message]
    assert warned == ["WARNING", "WARNING"]


def test_the_log_has_the_level_that_is_configured(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """From the start, and as soon as it changes."""
    caplog.set_level("INFO", "client_device_pruner")  # and back, after the test
    machine.document = {**PLAIN, "logLevel": "ERROR"}
    machine.start()
    assert LOGGER.level == logging.ERROR
    machine.document = dict(PLAIN)
    machine.take(ConfigurationChanged(None))
    assert LOGGER.level == logging.INFO


def test_a_changed_prefix_moves_the_subscription(machine: Machine) -> None:
    """Without a restart: the old subscription is closed, the new one stands, and the watch goes on there."""
    machine.start()
    before = len(machine.ipc.asked)
    machine.document = {**PLAIN, "inboundPrefix": "client-device-pruner/here/"}
    machine.take(ConfigurationChanged(None))

    moved = [asked for asked in machine.ipc.asked[before:] if asked[0] != "read"]
    assert moved == [("unsubscribe",), ("subscribe", "client-device-pruner/here/#")]
    assert "client-device-pruner/here/pruner-self-test" in {topic for _at, topic, _payload in machine.published}


def test_a_source_that_stops_to_vouch_is_said_once_and_once_when_it_goes_on(machine: Machine) -> None:
    """Silent for longer than its maxQuiet, twice over: held; the next pair of vouchers: released."""
    machine.start()
    machine.run(10 * MINUTE)
    machine.events.clear()
    machine.counting = False
    machine.run(HOUR)
    machine.counting = True
    machine.run(10 * MINUTE)

    of_emqx = [e for e in machine.events if e["data"].get("guard") == "source:emqx"]
    said = [(e["type"].rpartition(".")[2], e["data"]) for e in of_emqx]
    assert [kind for kind, _data in said] == ["held", "released"]
    assert "not heard" in said[0][1]["reason"] or "nothing heard" in said[0][1]["reason"]
    assert "match" in said[1][1]["reason"]


def test_a_short_silence_is_not_worth_a_word(machine: Machine) -> None:
    """A mismatch of a minute, as after each connect, is told in the status and in no event."""
    machine.start()
    machine.run(10 * MINUTE)
    machine.events.clear()
    machine.online["unannounced"] = 0
    machine.run(2 * MINUTE)
    assert not machine.status["sources"]["emqx"]["vouching"]
    assert "source:emqx" in [guard["guard"] for guard in machine.status["guards"]]
    del machine.online["unannounced"]
    machine.run(5 * MINUTE)

    assert not [e for e in machine.events if e["type"].endswith(".held")]


def test_an_overflow_of_the_queue_is_a_gap(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that were dropped could have been anything: all sources begin anew, and nobody is known."""
    monkeypatch.setattr(module, "INBOX_LIMIT", 50)
    machine.associate("a")
    machine.start()
    machine.connect("a")
    machine.run(2 * HOUR)
    assert machine.status["counts"]["present"] == 1
    before = machine.status["sources"]["emqx"]["clockSeconds"]
    for number in range(100):
        machine.tell("clients/stranger/telemetry", str(number))
    machine.run(10 * MINUTE)

    assert machine.status["counts"]["present"] == 0
    assert not machine.status["sources"]["emqx"]["vouching"]
    assert machine.status["sources"]["emqx"]["clockSeconds"] <= before + MINUTE


def test_coverage_is_said_ten_minutes_after_a_start_and_when_it_changes(machine: Machine) -> None:
    """Not sooner, not again while nothing changes, and then at most every ten minutes."""
    machine.associate("a", "b")
    machine.start()
    machine.run(9 * MINUTE)
    assert not machine.of_type("coverage")

    machine.run(3 * MINUTE)
    (coverage,) = machine.of_type("coverage")
    assert (coverage["associated"], coverage["provable"]) == (2, 0)
    assert any("no sign of life" in reason for reason in coverage["reasons"])
    machine.run(DAY)
    assert len(machine.of_type("coverage")) == 1

    machine.connect("a")
    machine.run(30 * MINUTE)
    assert [data["provable"] for data in machine.of_type("coverage")] == [0, 1]
    machine.connect("b")
    machine.run(2 * MINUTE)
    assert [data["provable"] for data in machine.of_type("coverage")] == [0, 1, 2]


def test_a_storm_of_events_is_written_in_groups(machine: Machine) -> None:
    """Thousands of messages an hour are some sixty transactions: flash wears out."""
    names = [f"d{number}" for number in range(50)]
    machine.document = {**PLAIN, "checkInterval": "7d"}
    machine.associate(*names)
    machine.start()
    machine.run(20 * MINUTE)
    statements: list[str] = []
    connection = machine.component.watch.ledger.connection
    assert connection is not None
    connection.set_trace_callback(statements.append)
    for _minute in range(60):
        for name in names:
            machine.tell(f"clients/{name}/telemetry", "1")
        machine.run(MINUTE)

    assert statements.count("COMMIT") <= 65


def test_a_start_begins_where_the_last_run_ended(machine: Machine) -> None:
    """Clocks go on, a gap adds nothing, and absences go on with the clock."""
    with_a_gone_device(machine, "gone")
    machine.run(0.6 * DAY)
    assert not machine.batches()
    before = machine.component.watch.sources.witnesses(machine.clock.now)[0].clock_seconds
    machine.component.close()
    machine.clock.now += 100 * DAY
    machine.start()
    machine.connect(*machine.online)
    assert machine.component.watch.sources.witnesses(machine.clock.now)[0].clock_seconds == before
    started = machine.clock.now
    machine.run_until(machine.batches)

    assert 0.3 * DAY <= machine.clock.now - started <= 0.5 * DAY


# Cycles, calls, returns and requests ----------------------------------------------------------------------------


def test_a_cycle_with_nothing_to_do_makes_one_call(machine: Machine) -> None:
    """A day of six-hourly cycles in which nobody is due: a child and one list call each, and no other call."""
    machine.document = {**PLAIN, "checkInterval": "6h"}
    machine.associate("a")
    machine.start()
    machine.connect("a")
    machine.run(DAY)

    cycles = len(machine.of_type("cycle"))
    assert 3 <= cycles <= 5
    assert [type(call) for call in machine.calls] == [ListPage] * cycles
    assert machine.children == cycles


def test_a_due_device_takes_two_lists_and_one_batch(machine: Machine) -> None:
    """List, disassociate, list again to confirm; after that a list a cycle."""
    with_a_gone_device(machine, "gone")
    machine.run_until(lambda: machine.of_type("disassociated", "gone"))

    batch = next(index for index, call in enumerate(machine.calls) if isinstance(call, Batch))
    assert [type(call) for call in machine.calls[batch - 2 :]] == [ListPage, ListPage, Batch, ListPage]
    assert machine.batches() == [("gone",)]
    (gone,) = machine.of_type("disassociated", "gone")
    assert gone["proof"] == "census"
    assert gone["offlineSeconds"] >= DAY
    assert machine.of_type("cycle")[-1]["disassociated"] == 1
    machine.run(DAY)
    assert machine.batches() == [("gone",)]


def test_failures_are_said_once_and_tried_again_ever_more_rarely(machine: Machine) -> None:
    """No credentials for an hour: one event, and a delay that doubles from one minute to ten."""
    machine.associate("a")
    machine.failure = CallFailed(None, "credentials", "CredentialRetrievalError", "no token exchange service")
    machine.start()
    machine.run(2 * HOUR, step=10.0)

    assert len(machine.of_type("failed")) == 1
    assert 12 <= machine.children <= 17
    assert not machine.calls
    machine.failure = None
    machine.run(11 * MINUTE)
    assert machine.of_type("cycle")[-1]["unknown"] + machine.of_type("cycle")[-1]["absent"] == 1


@pytest.mark.parametrize("restoring", [False, True])
def test_a_device_that_returns_is_said_and_restored_if_so_configured(machine: Machine, restoring: bool) -> None:
    """It was disassociated and shows life: one event; associated again only with `restoreOnReturn`."""
    with_a_gone_device(machine, "gone", restoreOnReturn=restoring)
    machine.run_until(lambda: machine.of_type("disassociated", "gone"))
    machine.connect("gone")
    machine.run(5 * MINUTE)
    machine.lose("gone")
    machine.connect("gone")
    machine.run(5 * MINUTE)

    (returned,) = machine.of_type("returned", "gone")
    assert returned["willRestore"] is restoring
    assert machine.batches("associate") == ([("gone",)] if restoring else [])
    assert [data["requestedBy"] for data in machine.of_type("restored", "gone")] == ["return"] * restoring
    assert ("gone" in machine.associations) is restoring


@pytest.mark.parametrize(
    ("argument", "restored"),
    [({"names": ["b"]}, {"b"}), ({"all": True}, {"a", "b"}), ({"names": ["nobody"]}, set())],
)
def test_a_request_to_restore_is_carried_out_within_a_minute(
    machine: Machine, argument: dict[str, Any], restored: set[str]
) -> None:
    """Left in the state file by the command line; the request is gone once it is carried out."""
    with_a_gone_device(machine, "a", "b")
    machine.run_until(lambda: len(machine.of_type("disassociated")) == 2)
    machine.request("restore", argument)
    machine.run(MINUTE)

    assert {name for names in machine.batches("associate") for name in names} == restored
    assert {e["subject"] for e in machine.events if e["type"].endswith(".restored")} == restored
    assert {data["requestedBy"] for data in machine.of_type("restored")} <= {"command"}
    connection = machine.component.watch.ledger.connection
    assert connection is not None
    assert connection.execute("SELECT count(*) FROM requests").fetchone()[0] == 0


@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        ("restore", "["),
        ("restore", "5"),
        ("restore", '"b"'),
        ("restore", '{"names": "ab"}'),
        ("restore", '{"names": null}'),
        ("restore", '{"cycle": null}'),
        ("restore", "[" * 100_000),
        ("approve", "}"),
        ("approve", "[1]"),
        ("forget", "{}"),
    ],
    ids=lambda text: text[:20],
)
def test_a_request_that_makes_no_sense_is_dropped(machine: Machine, kind: str, argument: str) -> None:
    """It would end the process at every start otherwise; what is asked for beside it is done (found by fuzzing)."""
    with_a_gone_device(machine, "a", "b")
    machine.run_until(lambda: len(machine.of_type("disassociated")) == 2)
    connection = machine.component.watch.ledger.connection
    assert connection is not None
    connection.execute("INSERT INTO requests (kind, argument) VALUES (?, ?)", (kind, argument))
    machine.request("restore", {"names": ["b"]})
    machine.run(MINUTE)

    assert machine.batches("associate") == [("b",)]
    assert connection.execute("SELECT count(*) FROM requests").fetchone()[0] == 0


def test_a_restored_device_is_safe_for_its_whole_threshold(machine: Machine) -> None:
    """Its association is a new one: nothing that was held against the old one counts."""
    with_a_gone_device(machine, "gone", neverSeenThreshold="1d")
    machine.run_until(lambda: machine.of_type("disassociated", "gone"))
    machine.request("restore", {"names": ["gone"]})
    machine.run_until(lambda: machine.of_type("restored", "gone"))
    restored = machine.clock.now
    machine.run_until(lambda: len(machine.of_type("disassociated", "gone")) == 2)

    assert machine.clock.now - restored >= DAY


def test_a_plan_waits_for_its_approval(machine: Machine) -> None:
    """Lost together and none of them back: held with a plan, which the command line approves."""
    names = ("a", "b", "c")
    with_a_gone_device(machine, *names, massLoss={"window": "10m", "minDevices": 3, "minPercent": 30})
    machine.run_until(lambda: [data for data in machine.of_type("held") if data["guard"] == "outage"])
    (held,) = [data for data in machine.of_type("held") if data["guard"] == "outage"]
    machine.run(2 * DAY)
    assert not machine.batches()
    assert machine.status["plan"] == {"id": held["plan"], "devices": list(names)}

    machine.request("approve", held["plan"])
    machine.run_until(machine.batches)

    assert sorted(machine.batches()[0]) == list(names)
    machine.run(2 * HOUR)
    assert [data["guard"] for data in machine.of_type("released")].count("outage") == 1


def test_a_line_that_is_lost_soon_after_it_was_listed_is_an_outage(machine: Machine) -> None:
    """Who was present when it was associated has not returned by being there: nothing explains its loss."""
    names = ("a", "b", "c")
    machine.document = {**PLAIN, "massLoss": {"window": "7d", "minDevices": 3, "minPercent": 30}}
    machine.start()
    machine.connect(*names)
    machine.run(HOUR)
    machine.associate(*names)
    machine.run_until(lambda: machine.of_type("cycle")[-1]["present"] == 3)
    machine.lose(*names)
    machine.run(2 * DAY)

    assert not machine.batches()
    assert "outage" in machine.of_type("cycle")[-1]["held"]


def test_a_deployment_waits_for_a_batch_in_flight_and_no_longer_than_30_s(machine: Machine) -> None:
    """Otherwise it is answered at once."""
    machine.start()
    machine.take(PreUpdate("quiet"))
    assert machine.ipc.asked[-1] == ("defer", "quiet", 0)
    with_a_gone_device(machine, "gone")
    machine.hanging = True
    machine.run_until(machine.batches)
    machine.take(PreUpdate("busy"))
    assert machine.ipc.asked[-1] == ("defer", "busy", 1000)
    machine.run(31.0, step=1.0)
    machine.take(PreUpdate("busy"))

    assert machine.ipc.asked[-1] == ("defer", "busy", 0)


def test_roll_calls_are_made_at_their_interval(machine: Machine, tmp_path: Path) -> None:
    """Once right after the configuration, then at the interval; an answer without the bridge is not believed."""
    key_file = str(tmp_path / "key")
    api = "http://127.0.0.1:18083/api/v5"
    machine.document = {**PLAIN, "rollCall": {"url": api, "keyFile": key_file, "interval": "10m"}}
    machine.start()
    assert machine.roll_calls == [(api, key_file)]
    machine.run(HOUR + MINUTE)
    assert len(machine.roll_calls) == 7

    now = machine.clock.now
    machine.take(RollCall(frozenset({"a"}), now, now))
    machine.run(2 * MINUTE)
    assert "neither the bridge" in machine.status["sources"]["rollCall"]["reason"]
    machine.take(NoAnswer("the key is wrong"))
    machine.run(2 * MINUTE)
    assert "the key is wrong" in machine.status["sources"]["rollCall"]["reason"]


def test_a_line_that_is_lost_right_after_a_restart_is_an_outage(machine: Machine) -> None:
    """A disconnect event is a sign of life, and no return: those lost first are not explained by those lost next."""
    machine.document = {**PLAIN, "massLoss": {"window": "10m", "minDevices": 3, "minPercent": 30}}
    names = ("a", "b", "c", "d")
    machine.associate(*names)
    machine.start()
    machine.connect(*names)
    machine.run(2 * HOUR)
    machine.restart()
    machine.run(5 * MINUTE)
    for name in names:
        machine.lose(name)
        machine.run(2.0, step=1.0)

    machine.run_until(lambda: [data for data in machine.of_type("held") if data["guard"] == "outage"])

    assert not machine.batches()


def test_a_state_file_that_breaks_while_it_runs_is_set_aside(machine: Machine, tmp_path: Path) -> None:
    """The watch goes on with an empty one; the broken one is kept, and pruning held meanwhile."""
    machine.associate("a")
    machine.start()
    machine.connect("a")
    machine.run(2 * HOUR)
    state = next(tmp_path.rglob("pruner.db"))
    connection = machine.component.watch.ledger.connection
    assert connection is not None
    # Closed first: what is still in the WAL would mend the file.
    connection.close()
    state.write_bytes(b"no database any more" * 1000)
    # SQLite notices when it reads a page that it does not keep in memory.
    machine.component.watch.failed(sqlite3.DatabaseError("database disk image is malformed"))

    machine.run(3 * HOUR)

    assert list(state.parent.glob("pruner.db.aside-*"))
    assert machine.status["coverage"]["associated"] == 1
    assert not [guard for guard in machine.status["guards"] if guard["guard"] == "database"]


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("meta", "SET value = '{' WHERE key = 'status'"),
        ("meta", "SET value = '[]' WHERE key = 'configuration'"),
        ("meta", "SET value = '{\"number\": null}' WHERE key = 'budget'"),
        ("meta", "SET value = 'NaN' WHERE key = 'running_seconds'"),
        ("meta", "SET value = 'core-1' WHERE key = 'core'"),
        ("devices", "SET markers = '{\"a\": 1}'"),
        ("devices", "SET habits = '[]'"),
        ("devices", "SET mark = '[null, \"census\", null, null]'"),
        ("devices", "SET name = CAST(X'ff' AS TEXT)"),
        ("devices", "SET name = X'61'"),
        ("sources", "SET identity = CAST(X'ff' AS TEXT) WHERE id = 0"),
        ("sources", "SET credit_seconds = 1e999"),
        ("sources", "SET floor_seconds = 'x'"),
        ("sources", "SET id = 7 WHERE id = 0"),
        ("meta", "SET value = CAST(X'22ff22' AS TEXT) WHERE key = 'core'"),
        ("meta", "SET key = CAST(X'ff' AS TEXT) WHERE key = 'status'"),
    ],
)
def test_a_document_in_the_state_file_that_nobody_wrote(machine: Machine, table: str, change: str) -> None:
    """Bits that flipped in an intact page: the file is set aside, and the component starts (found by fuzzing)."""
    machine.associate("a")
    machine.start()
    machine.connect("a")
    machine.run(2 * HOUR)
    machine.component.close()
    with closing(sqlite3.connect(machine.work_dir / "pruner.db")) as connection:
        changed = connection.execute(f"UPDATE {table} {change}").rowcount
        connection.commit()
    assert changed

    machine.start()
    machine.run(2 * HOUR)

    assert [path.name for path in machine.work_dir.glob("*.aside-?")] == ["pruner.db.aside-1"]
    assert machine.status["coverage"]["associated"] == 1


def test_evidence_with_keys_that_nobody_wrote_is_told_as_it_is(machine: Machine) -> None:
    """Whatever a key is called, it is data: one called `name` or `cycleId` ended the process (found by fuzzing)."""
    machine.associate("a")
    machine.start()
    machine.component.close()
    evidence = json.dumps({"name": "x", "kind": 1, "self": 2, "settings": 3, "cycleId": "y"})
    with closing(sqlite3.connect(machine.work_dir / "pruner.db")) as connection, connection:
        connection.execute(
            "INSERT INTO disassociations VALUES (NULL, 'gone', 1.0, 'c', 'open', ?, 1.0, 0.0, NULL, NULL, NULL)",
            (evidence,),
        )

    machine.start()
    machine.run(8 * HOUR)

    assert [(data["name"], data["cycleId"]) for data in machine.of_type("disassociated")] == [("x", "c")]
