"""The IPC service, spoken to by the unmodified AWS IoT Device SDK."""

import asyncio
import json
import tempfile
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from awsiot.eventstreamrpc import ConnectionClosedError, StreamClosedError
from awsiot.greengrasscoreipc import connect, model
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

from fakes.waiting import until
from local_core.ipc import IpcServer
from local_core.pubsub import JsonMessage, Message, PubSub

_NAME = "com.example.Test"
_ACCESS = {"aws.greengrass.ipc.pubsub": {"test:1": {"operations": ["*"], "resources": ["in/*"]}}}


class _Core:
    """A server with one component, which an SDK client stands for."""

    def __init__(self, *, lite: bool) -> None:
        self.pubsub = PubSub()
        self.configuration: dict[str, dict[str, Any]] = {_NAME: {"accessControl": _ACCESS, "limits": {"a": 1}}}
        self.server = IpcServer(self.pubsub, configuration=self.configuration, iot_core=print, lite=lite)
        self.client: Any = None

    async def connect(self, path: str) -> None:
        """Serve there, and connect."""
        await self.server.start(Path(path))
        token = self.server.issue_token(_NAME)
        raw = await asyncio.to_thread(connect, ipc_socket=path, authtoken=token, timeout=5.0)
        self.client = GreengrassCoreIPCClientV2(client=raw, executor=ThreadPoolExecutor(1))


class _Handler:
    """Keeps what a stream brings; its methods run on the SDK's threads."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.closed = threading.Event()
        self.operation: Any = None

    def topics(self) -> list[str]:
        return [(e.binary_message or e.json_message).context.topic for e in self.events]

    async def subscribe(self, client: Any, topic: str, mode: str | None = None) -> None:
        _, self.operation = await asyncio.to_thread(
            client.subscribe_to_topic,
            topic=topic,
            receive_mode=mode,
            on_stream_event=self.events.append,
            on_stream_closed=self.closed.set,
        )


async def _serving(*, lite: bool) -> AsyncIterator[_Core]:
    with tempfile.TemporaryDirectory(prefix="ipc-") as directory:
        core = _Core(lite=lite)
        await core.connect(f"{directory}/s")
        yield core
        await asyncio.to_thread(core.client.close)
        await core.server.stop()


@pytest.fixture
async def core() -> AsyncIterator[_Core]:
    """A classic nucleus' IPC."""
    async for served in _serving(lite=False):
        yield served


@pytest.fixture
async def lite() -> AsyncIterator[_Core]:
    """Greengrass Lite's."""
    async for served in _serving(lite=True):
        yield served


async def test_messages_arrive_as_they_were_published(core: _Core) -> None:
    """Binary stays binary, JSON stays JSON, each carries its topic, and all come in order until the stream closes."""
    handler = _Handler()
    await handler.subscribe(core.client, "in/#", model.ReceiveMode.RECEIVE_ALL_MESSAGES)
    core.pubsub.publish(Message("in/$SYS/x", b"\x00\xff", "bridge"))
    text = model.PublishMessage(json_message=model.JsonMessage(message={"a": [1]}))
    await asyncio.to_thread(core.client.publish_to_topic, topic="in/json", publish_message=text)
    for number in range(1000):
        core.pubsub.publish(Message("in/x", b"%d" % number, "bridge"))
    await until(lambda: len(handler.events) == 1002)
    assert handler.topics()[:2] == ["in/$SYS/x", "in/json"]
    assert handler.events[0].binary_message.message == b"\x00\xff"
    assert handler.events[1].json_message.message == {"a": [1]}
    assert [int(e.binary_message.message) for e in handler.events[2:]] == list(range(1000))
    handler.operation.close()
    await until(handler.closed.is_set)
    await until(lambda: not core.pubsub.filters)


async def test_configuration_is_read_by_key_path(core: _Core) -> None:
    """A leaf comes under its own name; another component's can be read; what is missing is an error."""
    core.configuration["other.Component"] = {"clientId": "bridge-1"}

    async def get(path: list[str] | None, component: str | None = None) -> Any:
        answer = await asyncio.to_thread(core.client.get_configuration, key_path=path, component_name=component)
        return answer.value

    assert await get(["limits"]) == {"a": 1}
    assert await get(["limits", "A"]) == {"A": 1}
    assert (await get(None))["limits"] == {"a": 1}
    assert await get(["clientId"], "other.Component") == {"clientId": "bridge-1"}
    for missing in (get(["missing"]), get(None, "no.such.Component")):
        with pytest.raises(model.ResourceNotFoundError):
            await missing


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("subscribe_to_component_updates", {"on_stream_event": print}),
        ("defer_component_update", {"deployment_id": "d"}),
        ("update_thing_shadow", {"thing_name": "core-1", "shadow_name": "s", "payload": b"{}"}),
    ],
)
async def test_lite_refuses_without_a_word(lite: _Core, operation: str, arguments: dict[str, Any]) -> None:
    """Deployments that ask and shadows are not there; its errors carry no text."""
    with pytest.raises(model.ServiceError) as refused:
        await asyncio.to_thread(getattr(lite.client, operation), **arguments)
    assert refused.value.message is None


@pytest.mark.parametrize(
    "killer",
    [Message("in/x", b"x" * 7_500), JsonMessage("in/x", json.dumps(dict.fromkeys(map(str, range(24)), 1)).encode())],
)
async def test_what_silences_a_subscription_on_lite(lite: _Core, killer: Message) -> None:
    """A message of 10,000 bytes in base64, and JSON with more than 23 members (case 27), without a word."""
    old, new = _Handler(), _Handler()
    await old.subscribe(lite.client, "in/#")
    lite.pubsub.publish(JsonMessage("in/23", json.dumps(dict.fromkeys(map(str, range(23)), 1)).encode()))
    lite.pubsub.publish(killer)
    await new.subscribe(lite.client, "in/#")
    lite.pubsub.publish(Message("in/late", b"1"))
    await until(lambda: new.events)
    assert (old.topics(), new.topics()) == (["in/23"], ["in/late"])
    assert not old.closed.is_set()


async def test_what_lite_refuses_for_its_length(lite: _Core) -> None:
    """A long configuration cannot be read; publishing a long message costs the connection."""
    lite.configuration[_NAME]["long"] = ["x" * 100] * 100
    with pytest.raises(model.ServiceError):
        await asyncio.to_thread(lite.client.get_configuration, key_path=["long"])
    long = model.PublishMessage(binary_message=model.BinaryMessage(message=b"x" * 7_500))
    with pytest.raises((StreamClosedError, ConnectionClosedError)):
        await asyncio.to_thread(lite.client.publish_to_topic, topic="in/a", publish_message=long)
    await until(lambda: not lite.server.connected)
