"""The cloud answers real boto3 as the services do: what the child process's own tests do not show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest

from local_core.cloud import Cloud, Shadows
from local_core.http_server import Fault
from local_core.pubsub import Message

CORE = "core-1"
NAMES = [f"thing-{number:03}" for number in range(250)]
Ask = Callable[..., Awaitable[Any]]


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    """A cloud that serves an empty list."""
    cloud = Cloud(core_device=CORE)
    await cloud.start()
    yield cloud
    await cloud.stop()


@pytest.fixture
async def ask(cloud: Cloud) -> AsyncIterator[Ask]:
    """Calls an operation with the credentials that the cloud hands out, from a thread, since the cloud runs here."""

    def connect() -> Any:
        headers = {"Authorization": cloud.credentials_token}
        with urlopen(Request(cloud.credentials_url, headers=headers)) as answer:  # noqa: S310 - http on loopback
            keys = json.load(answer)
        session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["Token"], cloud.region)
        return session.client("greengrassv2", endpoint_url=cloud.url)

    client = await asyncio.to_thread(connect)

    async def ask(operation: str, **parameters: Any) -> Any:
        return await asyncio.to_thread(getattr(client, operation), coreDeviceThingName=CORE, **parameters)

    yield ask
    client.close()


async def page(ask: Ask, **parameters: Any) -> tuple[list[str], str | None]:
    """Return the names on one page of the list, and the token for the next."""
    answer = await ask("list_client_devices_associated_with_core_device", **parameters)
    return [entry["thingName"] for entry in answer["associatedClientDevices"]], answer.get("nextToken")


async def test_the_list_comes_in_pages(cloud: Cloud, ask: Ask) -> None:
    """One that is asked for after a disassociation neither skips nor repeats; a list can be short (case 2)."""
    cloud.associate(*NAMES)
    first, token = await page(ask)
    cloud.disassociate(*NAMES[:100])
    second, token = await page(ask, nextToken=token)
    third, end = await page(ask, nextToken=token)
    assert first + second + third == NAMES
    assert end is None
    assert len((await page(ask, maxResults=7))[0]) == 7
    cloud.faults.append(Fault(hidden=tuple(NAMES[1:200])))
    assert await page(ask) == (NAMES[200:], None)


async def test_batches_associate_and_disassociate(cloud: Cloud, ask: Ask) -> None:
    """What is not there is an error entry; associated again, a thing has a later timestamp."""
    cloud.associate("a", "b")
    before = dict(cloud.associations)
    gone = [{"thingName": "a"}, {"thingName": "gone"}]
    answer = await ask("batch_disassociate_client_device_from_core_device", entries=gone)
    assert [(e["thingName"], e["code"]) for e in answer["errorEntries"]] == [("gone", "ResourceNotFoundException")]
    assert list(cloud.associations) == ["b"]
    both = [{"thingName": "a"}, {"thingName": "b"}]
    assert (await ask("batch_associate_client_device_with_core_device", entries=both))["errorEntries"] == []
    assert cloud.associations["b"] == before["b"]
    assert (cloud.associations["a"] or 0) > (before["b"] or 0)


def test_shadows_merge_what_is_reported() -> None:
    """By key and level; null removes a key, a list is replaced whole; what AWS IoT rejects changes nothing."""
    shadows = Shadows()

    def publish(reported: Any, topic: str = "$aws/things/core-1/shadow/name/status/update") -> None:
        shadows.take(Message(topic, json.dumps({"state": {"reported": reported}}).encode()))

    publish({"a": {"b": 1, "c": 2}, "list": [1, 2], "gone": 1})
    publish({"a": {"b": 3}, "list": [4], "gone": None})
    publish({"other": 1}, "$aws/things/core-1/shadow/update")
    assert not shadows.rejected
    publish([1])
    publish({"x": "y" * 8_192})
    assert shadows.reported == {("core-1", "status"): {"a": {"b": 3, "c": 2}, "list": [4]}}
    assert len(shadows.rejected) == 2
