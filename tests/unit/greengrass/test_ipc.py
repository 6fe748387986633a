"""The edge to Greengrass turns what the local core's IPC service answers, refuses and ends into news."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.greengrass.ipc import (
    Configuration,
    Disconnected,
    GreengrassIpc,
    Message,
    News,
    Refused,
    StreamClosed,
    Subscribed,
)
from fakes.waiting import until
from local_core.ipc import IpcServer
from local_core.pubsub import JsonMessage, PubSub

NAME = "com.example.Test"
ACCESS = {"aws.greengrass.ipc.pubsub": {"test:1": {"operations": ["*"], "resources": ["in/*"]}}}


class Site:
    """A component's connection to a nucleus; `news` is what was delivered and reported."""

    def __init__(self) -> None:
        self.pubsub = PubSub()
        configuration: dict[str, Any] = {NAME: {"accessControl": ACCESS, "dryRun": True}}
        self.server = IpcServer(self.pubsub, configuration=configuration, iot_core=print, lite=False)
        self.news: list[News] = []

    async def comes(self, news: News) -> None:
        """Wait for one piece of news, and forget it."""
        await until(lambda: self.news)
        assert self.news == [news]
        self.news.clear()


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A nucleus that serves one component."""
    site = Site()
    with tempfile.TemporaryDirectory(prefix="ipc-") as directory:
        await site.server.start(Path(directory) / "s")
        monkeypatch.setenv("AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT", f"{directory}/s")
        monkeypatch.setenv("SVCUID", site.server.issue_token(NAME))
        yield site
        await site.server.stop()


@pytest.fixture
async def edge(site: Site) -> AsyncIterator[GreengrassIpc]:
    """The component's edge, subscribed."""
    edge = await asyncio.to_thread(GreengrassIpc, site.news.append, site.news.append)
    edge.subscribe("in/#")
    await site.comes(Subscribed())
    yield edge
    await asyncio.to_thread(edge.close)


async def test_messages_arrive_as_bytes(site: Site, edge: GreengrassIpc) -> None:
    """A binary message as it is, one of JSON as its text, and all in order."""
    edge.publish("in/a", b"\x00")
    await until(lambda: site.news)
    site.pubsub.publish(JsonMessage("in/b", b'{"a": [1]}'))
    for number in range(1_000):
        site.pubsub.publish(JsonMessage("in/c", b"%d" % number))
    await until(lambda: len(site.news) == 1_002)
    messages = [(one.topic, one.payload) for one in site.news if isinstance(one, Message)]
    assert messages[:2] == [("in/a", b"\x00"), ("in/b", b'{"a": [1]}')]
    assert messages[2:] == [("in/c", b"%d" % number) for number in range(1_000)]


async def test_only_an_end_that_is_not_ours_is_news(site: Site, edge: GreengrassIpc) -> None:
    """A new subscription of ours takes the old one's place; Greengrass closes the connection, or we do."""
    edge.subscribe("in/#")
    await site.comes(Subscribed())
    other = await asyncio.to_thread(GreengrassIpc, site.news.append, site.news.append)
    other.subscribe("in/#")
    await site.comes(Subscribed())
    await asyncio.to_thread(other.close)
    assert site.news == []
    site.server.drop_connections()
    await until(lambda: len(site.news) == 2)
    assert {type(one) for one in site.news} == {StreamClosed, Disconnected}


async def test_what_fails_is_news(site: Site, edge: GreengrassIpc) -> None:
    """A refusal tells whether a permission is missing; a configuration that cannot be read tells why."""
    edge.read_configuration(None)
    await site.comes(Configuration(None, {"accessControl": ACCESS, "dryRun": True}, ""))
    edge.read_configuration("other")
    edge.publish("out", b"x")
    await until(lambda: len(site.news) == 2)
    (read,) = (one for one in site.news if isinstance(one, Configuration))
    assert read.error.startswith("ResourceNotFoundError")
    (refused,) = (one for one in site.news if isinstance(one, Refused))
    assert (refused.operation, refused.resource, refused.unauthorized) == ("PublishToTopic", "out", True)
    assert refused.error.startswith("UnauthorizedError")
    site.server.drop_connections()
    await until(lambda: len(site.news) == 4)
    edge.publish("in/a", b"x")
    await until(lambda: len(site.news) == 5)
    assert isinstance(last := site.news[-1], Refused)
    assert not last.unauthorized
