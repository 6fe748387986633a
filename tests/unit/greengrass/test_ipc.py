"""The edge to Greengrass turns answers, refusals and ends into news; the SDK's client is played by a fake one."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest
from awsiot.greengrasscoreipc import model

from client_device_pruner.greengrass import ipc
from client_device_pruner.greengrass.ipc import (
    Configuration,
    GreengrassIpc,
    Message,
    News,
    Refused,
    StreamClosed,
    Subscribed,
)


def answered(result: Any) -> Future[Any]:
    """A call that is over: with an answer, or with an error."""
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


class Stream:
    """A subscription of the SDK, which tells its handler when it is closed, by either side."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self.handlers = handlers

    def close(self) -> None:
        """Close it."""
        self.handlers["on_stream_closed"]()


class Client:
    """The SDK's client; `error` is what calls end in."""

    def __init__(self, **_: Any) -> None:
        self.error: Exception | None = None
        self.streams: list[Stream] = []
        self.published: list[tuple[str, bytes]] = []

    def subscribe_to_topic_async(self, **call: Any) -> tuple[Future[Any], Stream]:
        """Subscribe."""
        self.streams.append(Stream(call))
        return answered(self.error), self.streams[-1]

    def publish_to_topic_async(self, *, topic: str, publish_message: Any) -> Future[Any]:
        """Publish."""
        self.published.append((topic, publish_message.binary_message.message))
        return answered(self.error)

    def get_configuration_async(self, **_: Any) -> Future[Any]:
        """Read."""
        return answered(self.error or model.GetConfigurationResponse(value={"dryRun": True}))

    def close(self) -> Future[Any]:
        """Close."""
        return answered(None)


@pytest.fixture
def news() -> list[News]:
    """What was delivered and reported."""
    return []


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """The SDK, replaced."""
    client = Client()
    monkeypatch.setattr(ipc, "connect", lambda **_: None)
    monkeypatch.setattr(ipc, "GreengrassCoreIPCClientV2", lambda **_: client)
    return client


@pytest.fixture
def edge(client: Client, news: list[News]) -> GreengrassIpc:
    """The edge, subscribed."""
    edge = GreengrassIpc(news.append, news.append)
    edge.subscribe("in/#")
    assert client.streams
    assert news == [Subscribed()]
    news.clear()
    return edge


@pytest.mark.usefixtures("edge")
def test_messages_arrive_as_bytes(client: Client, news: list[News]) -> None:
    """A binary message as it is, one of JSON as its text."""
    on_event = client.streams[0].handlers["on_stream_event"]
    context = model.MessageContext(topic="in/a")
    on_event(model.SubscriptionResponseMessage(binary_message=model.BinaryMessage(message=b"\x00", context=context)))
    on_event(model.SubscriptionResponseMessage(json_message=model.JsonMessage(message={"a": [1]}, context=context)))
    first, second = news
    assert isinstance(first, Message)
    assert isinstance(second, Message)
    assert (first.topic, first.payload, json.loads(second.payload)) == ("in/a", b"\x00", {"a": [1]})


def test_only_an_end_that_is_not_ours_is_news(edge: GreengrassIpc, client: Client, news: list[News]) -> None:
    """Greengrass closed the subscription, or a new one of ours took its place."""
    edge.subscribe("in/#")
    assert news == [Subscribed()]
    client.streams[1].close()
    assert news[1:] == [StreamClosed()]


@pytest.mark.parametrize(
    ("error", "unauthorized"), [(model.UnauthorizedError(message="no"), True), (RuntimeError("no"), False)]
)
def test_what_fails_is_news(
    edge: GreengrassIpc, client: Client, news: list[News], error: Exception, unauthorized: bool
) -> None:
    """A refusal tells whether a permission is missing; a configuration that cannot be read tells why."""
    client.error = error
    edge.publish("out", b"x")
    edge.read_configuration("other")
    text = f"{type(error).__name__}: no"
    assert news == [Refused("PublishToTopic", "out", text, unauthorized), Configuration("other", None, text)]


def test_a_configuration_is_read(edge: GreengrassIpc, client: Client, news: list[News]) -> None:
    """JSON goes out as a binary message; after the end of our own there is no more news."""
    edge.read_configuration(None)
    edge.publish("out", b"{}")
    assert (news, client.published) == ([Configuration(None, {"dryRun": True}, "")], [("out", b"{}")])
    edge.close()
    client.streams[0].close()
    assert len(news) == 1
