"""A local core for each test, its component under the settings of a trial, and real client devices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from local_core.core import BRIDGE, LocalCore
from local_core.devices import ClientDevices
from local_core.pubsub import Message

COMPONENT = "community.greengrass.ClientDevicePruner"
INBOUND = "client-device-pruner/in/"
REPOSITORY = Path(__file__).resolve().parents[1]

MAPPING: dict[str, dict[str, str]] = {
    "PrunerConnected": {"topic": "$SYS/brokers/+/clients/+/connected", "source": "LocalMqtt"},
    "PrunerDisconnected": {"topic": "$SYS/brokers/+/clients/+/disconnected", "source": "LocalMqtt"},
    "PrunerCount": {"topic": "$SYS/brokers/+/stats/live_connections/count", "source": "LocalMqtt"},
    "PrunerUptime": {"topic": "$SYS/brokers/+/uptime", "source": "LocalMqtt"},
    "PrunerMessages": {"topic": "clients/+/telemetry", "source": "LocalMqtt"},
}
for _entry in MAPPING.values():
    _entry |= {"target": "Pubsub", "targetTopicPrefix": INBOUND}
MAPPING["PrunerCanary"] = {
    "topic": "pruner-canary/+",
    "source": "Pubsub",
    "target": "LocalMqtt",
    "targetTopicPrefix": "clients/",
}

EMQX_QUIET_SECONDS = 1.5
TRIAL: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": "3s",
    "noticePeriod": "1s",
    "checkInterval": "1s",
    "sources": {"emqx": {"maxQuiet": f"{EMQX_QUIET_SECONDS}s"}, "messages": {"maxQuiet": "2s"}},
    "limits": {"approvalPercent": 100, "maxPercentPerDay": 100},
    "massLoss": {"window": "0.1s"},
}

STAY_SECONDS = 9.0
"""Long enough for whoever is wrongly missed to go: twice the threshold and notice above, and a cycle."""
STAY_CYCLES = 6

TYPE_PREFIX = "community.greengrass.pruner."
EVENT_DATA: dict[str, set[str]] = {
    "marked": {"offlineSeconds", "thresholdSeconds", "proof", "dueInSeconds"},
    "unmarked": {"reason"},
    "disassociated": {"offlineSeconds", "proof", "cycleId"},
    "failed": {"code", "message", "cycleId"},
    "returned": {"disassociatedAt", "willRestore"},
    "restored": {"requestedBy"},
    "held": {"guard", "reason", "remedy"},
    "released": {"guard", "reason", "remedy"},
    "cycle": {"cycleId", "disassociated", "held", "dryRun", "nextCheckInSeconds"}
    | {"present", "absent", "unknown", "marked", "due", "protected"},
    "coverage": {"associated", "provable", "reasons"},
    "configuration": {"accepted", "problems"},
}
"""Each event's data, at least (the contract's table)."""
ABOUT_A_DEVICE = {"marked", "unmarked", "disassociated", "returned", "restored"}


def check_event(event: dict[str, Any]) -> None:
    """Hold an event against the contract: CloudEvents 1.0, its data flat and complete."""
    assert event["specversion"] == "1.0"
    assert event["id"]
    assert event["source"] == "/greengrass/core-1/client-device-pruner"
    assert event["datacontenttype"] == "application/json"
    assert event["time"].endswith("Z")
    assert datetime.fromisoformat(event["time"].replace("Z", "+00:00")).utcoffset() == timedelta(0)
    kind = event["type"].removeprefix(TYPE_PREFIX)
    assert event["type"] == TYPE_PREFIX + kind
    assert event["data"].keys() >= EVENT_DATA[kind], event
    assert ("subject" in event) == (kind in ABOUT_A_DEVICE) or kind == "failed", event
    for value in event["data"].values():
        scalars = value if isinstance(value, list) else [value]
        assert all(scalar is None or isinstance(scalar, str | int | float) for scalar in scalars), event
    if "proof" in event["data"]:
        assert event["data"]["proof"] in {"census", "rollCall", "habit"}


@dataclass(slots=True)
class Site:
    """A core with its client devices.

    Attributes:
        heard: when a message about each name last reached local pub/sub, in monotonic seconds.
    """

    core: LocalCore
    devices: ClientDevices
    heard: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Listen where the component does."""
        self.core.pubsub.subscribe(f"{INBOUND}#", self._hear)

    def _hear(self, message: Message) -> None:
        if about := re.search(r"clients/([^/]+)/", message.topic):
            self.heard[about[1]] = time.monotonic()

    def of_type(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """The data of the events of that type, about that device if one is named."""
        wanted = f"community.greengrass.pruner.{kind}"
        return [
            event["data"]
            for event in self.core.events
            if event["type"] == wanted and (name is None or event.get("subject") == name)
        ]

    async def event(self, kind: str, name: str | None = None, seconds: float = 90.0, **data: Any) -> dict[str, Any]:
        """Wait for an event, past or to come; returns its data."""
        wanted = f"community.greengrass.pruner.{kind}"

        def matches(event: dict[str, Any]) -> bool:
            return (
                event["type"] == wanted
                and (name is None or event.get("subject") == name)
                and all(event["data"].get(key) == value for key, value in data.items())
            )

        event = await self.core.wait_for_event(matches, timeout_seconds=seconds)
        found: dict[str, Any] = event["data"]
        return found

    async def cycles(self, number: int, seconds: float = 90.0) -> None:
        """Wait until so many more cycles have ended."""
        until = len(self.of_type("cycle")) + number
        await self.core.wait_for_event(lambda _event: len(self.of_type("cycle")) >= until, timeout_seconds=seconds)

    async def stay(self) -> None:
        """Let time pass in which whoever is wrongly missed would go: `STAY_SECONDS`, and at least `STAY_CYCLES`."""
        await asyncio.gather(asyncio.sleep(STAY_SECONDS), self.cycles(STAY_CYCLES))

    async def deploy(self, **settings: Any) -> None:
        """Deploy the trial's settings and the bridge's mapping, with changes."""
        await self.core.deploy(
            {COMPONENT: {"merge": {**TRIAL, **settings}}, BRIDGE: {"merge": {"mqttTopicMapping": MAPPING}}}
        )

    async def until(
        self, reached: Callable[[], Any], seconds: float = 90.0, what: str = "it did not come to that"
    ) -> Any:
        """Wait until what is asked again and again is true, and return it."""
        deadline = time.monotonic() + seconds
        while not (answer := reached()):
            assert time.monotonic() < deadline, f"{what} in {seconds:g} s; events: {self.core.events[-10:]}"
            await asyncio.sleep(0.02)
        return answer

    async def listened(self) -> None:
        """Wait until the component's subscription stands."""
        await self.until(lambda: self.core.ipc._streams("SubscribeToTopic"), what="it did not subscribe")

    def log(self) -> list[dict[str, Any]]:
        """What the component has logged, line by line; lines of others have only a `message`."""
        return [_fields(line) for line in list(self.core.component.output)]

    async def logged(self, message: str, seconds: float = 90.0, **fields: Any) -> dict[str, Any]:
        """Wait for a line of the log with that message and these fields; returns all its fields."""

        def found() -> dict[str, Any] | None:
            return next((f for f in self.log() if f.items() >= {"message": message, **fields}.items()), None)

        line: dict[str, Any] = await self.until(found, seconds, f"nothing like {message} {fields} was logged")
        return line

    def check_events(self) -> None:
        """Hold all events so far against the contract."""
        for event in self.core.events:
            check_event(event)
        assert len({event["id"] for event in self.core.events}) == len(self.core.events)

    def rows(self, query: str) -> list[sqlite3.Row]:
        """Read from the component's state file, as of its last commit."""
        path = self.core.work_dir / "pruner.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query).fetchall()

    def status(self) -> dict[str, Any]:
        """The status that the component last wrote."""
        (row,) = self.rows("SELECT value FROM meta WHERE key = 'status'")
        status: dict[str, Any] = json.loads(row["value"])
        return status

    def clock(self, source: str) -> float:
        """The clock of a source in seconds, as of the last commit."""
        (row,) = self.rows(f"SELECT credit_seconds FROM sources WHERE name = '{source}'")  # noqa: S608 - own text
        return float(row["credit_seconds"])

    def absences(self, source: str) -> dict[str, float]:
        """How long each associated device that is not connected has been absent on a source's clock."""
        (row,) = self.rows(f"SELECT id, credit_seconds FROM sources WHERE name = '{source}'")  # noqa: S608 - own text
        return {
            device["name"]: row["credit_seconds"] - json.loads(device["markers"])[row["id"]]
            for device in self.rows("SELECT name, markers FROM devices WHERE NOT held AND seen")
        }

    @property
    def associated(self) -> set[str]:
        """The names that are associated now."""
        return set(self.core.cloud.associations)

    def operations(self, name: str) -> list[Any]:
        """The calls of that operation so far."""
        return [call for call in self.core.cloud.calls if call.operation == name]


@contextlib.asynccontextmanager
async def publishing(site: Site, heard: set[str]) -> AsyncIterator[None]:
    """While the block runs, a component of the site publishes whom it hears, and that it is there itself."""

    async def publish() -> None:
        while True:
            for name in ("pruner-canary", *sorted(heard)):
                topic = f"{INBOUND}presence/{name}"
                site.core.pubsub.publish(Message(topic, b"online", "com.example.Presence"))
            await asyncio.sleep(0.2)

    async with _meanwhile(publish()):
        yield


@contextlib.asynccontextmanager
async def talking(site: Site, *names: str) -> AsyncIterator[None]:
    """While the block runs, these devices speak now and then, with time between for a session to be believed."""

    async def talk() -> None:
        while True:
            for name in names:
                await site.devices.publish(name, "here")
            await asyncio.sleep(0.5 * EMQX_QUIET_SECONDS)

    async with _meanwhile(talk()):
        yield


@contextlib.asynccontextmanager
async def _meanwhile(doing: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """While the block runs, do this, which must not fail."""
    task = asyncio.create_task(doing)
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    return fields if isinstance(fields, dict) else {"message": line}


MakeSite = Callable[..., Awaitable[Site]]
