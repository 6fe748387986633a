"""The cloud answers real boto3 clients as the services do, and fails as it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.credentials import ContainerProvider, CredentialResolver
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from botocore.utils import ContainerMetadataFetcher

from local_core.cloud import ASSOCIATE, CREDENTIALS, DISASSOCIATE, LIST, Cloud, Shadows
from local_core.http_server import Fault
from local_core.pubsub import Message

CORE = "core-1"
NAMES = [f"thing-{number:03}" for number in range(250)]


class Client:
    """A client with the credentials of a component; it calls from a thread, since the cloud runs in this one."""

    def __init__(self, cloud: Cloud, **settings: Any) -> None:
        self._cloud = cloud
        self._settings = settings
        self._client: Any = None

    def _connect(self) -> Any:
        environment = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": self._cloud.credentials_url,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": self._cloud.credentials_token,
        }
        session = botocore.session.Session()
        provider = ContainerProvider(environment, ContainerMetadataFetcher(sleep=lambda _: None))
        session.register_component("credential_provider", CredentialResolver([provider]))
        once = {"mode": "standard", "total_max_attempts": 1}
        return boto3.Session(botocore_session=session).client(
            "greengrassv2",
            region_name=self._settings.pop("region", "eu-west-1"),
            endpoint_url=self._cloud.url,
            config=Config(retries=once, **self._settings),
        )

    async def _call(self, operation: str, core: str = CORE, **parameters: Any) -> Any:
        def run() -> Any:
            self._client = self._client or self._connect()
            return getattr(self._client, operation)(coreDeviceThingName=core, **parameters)

        return await asyncio.to_thread(run)

    async def page(self, **parameters: Any) -> Any:
        """Return one page of the list."""
        return await self._call("list_client_devices_associated_with_core_device", **parameters)

    async def associate(self, *names: str) -> Any:
        """Make one batch call."""
        entries = [{"thingName": name} for name in names]
        return await self._call("batch_associate_client_device_with_core_device", entries=entries)

    async def disassociate(self, *names: str) -> Any:
        """Make one batch call."""
        entries = [{"thingName": name} for name in names]
        return await self._call("batch_disassociate_client_device_from_core_device", entries=entries)

    def close(self) -> None:
        """Give back the connections."""
        if self._client is not None:
            self._client.close()


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    """A cloud that serves an empty list."""
    cloud = Cloud(core_device=CORE)
    await cloud.start()
    yield cloud
    await cloud.stop()


@pytest.fixture
async def client(cloud: Cloud) -> AsyncIterator[Client]:
    """A client with the credentials that the cloud hands out."""
    client = Client(cloud)
    yield client
    client.close()


async def refused(call: Awaitable[Any]) -> tuple[int, str]:
    """Await a call that must be refused; return status and error type."""
    with pytest.raises(ClientError) as caught:
        await call
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def names(page: Any) -> list[str]:
    """Return the names of a page."""
    return [entry["thingName"] for entry in page["associatedClientDevices"]]


async def test_the_list_comes_in_pages(cloud: Cloud, client: Client) -> None:
    """Of a hundred, or fewer where asked for; one after a disassociation neither skips nor repeats."""
    assert (await client.page())["associatedClientDevices"] == []
    cloud.associate(*NAMES)
    first = await client.page()
    cloud.disassociate(*NAMES[:100])
    second = await client.page(nextToken=first["nextToken"])
    third = await client.page(nextToken=second["nextToken"])
    assert names(first) + names(second) + names(third) == NAMES
    assert "nextToken" not in third
    stamps = [entry["associationTimestamp"].timestamp() for entry in third["associatedClientDevices"]]
    assert stamps == sorted(set(stamps))
    assert len(names(await client.page(maxResults=7))) == 7
    cloud.associations = {"thing": None}
    assert (await client.page())["associatedClientDevices"] == [{"thingName": "thing"}]


async def test_batches_associate_and_disassociate(cloud: Cloud, client: Client) -> None:
    """What is not there is an error entry; associated again, a thing has a later timestamp."""
    cloud.associate("a", "b")
    before = dict(cloud.associations)
    answer = await client.disassociate("a", "gone")
    assert [(e["thingName"], e["code"]) for e in answer["errorEntries"]] == [("gone", "ResourceNotFoundException")]
    assert list(cloud.associations) == ["b"]
    assert (await client.associate("a", "b"))["errorEntries"] == []
    assert cloud.associations["b"] == before["b"]
    assert (cloud.associations["a"] or 0) > (before["b"] or 0)
    assert [call.operation for call in cloud.calls] == [CREDENTIALS, DISASSOCIATE, ASSOCIATE]
    assert cloud.calls[1].entries == ("a", "gone")


async def test_a_fault_befalls_its_operation_its_number_of_times(cloud: Cloud, client: Client) -> None:
    """Others pass; skipped ones pass; then it strikes, as often as it is told to, and nothing is done."""
    cloud.associate("a")
    cloud.faults += [
        Fault(operation=LIST, skip=1, times=2, status=500, error="InternalServerException"),
        Fault(operation=DISASSOCIATE, status=403),
    ]
    await client.page()
    await client.associate("b")
    for _ in range(2):
        assert await refused(client.page()) == (500, "InternalServerException")
    await client.page()
    assert await refused(client.disassociate("a")) == (403, "403")
    assert "a" in cloud.associations
    assert cloud.faults == []


@pytest.mark.parametrize("carried_out", [False, True])
async def test_an_answer_that_does_not_come(cloud: Cloud, carried_out: bool) -> None:
    """The client knows as little after a request that was lost as after an answer that was."""
    client = Client(cloud, read_timeout=0.5)
    for fault, error in ((Fault(drop=True), ConnectionClosedError), (Fault(hang=True), ReadTimeoutError)):
        cloud.associate("a")
        cloud.faults.append(type(fault)(drop=fault.drop, hang=fault.hang, carried_out=carried_out))
        with pytest.raises(error):
            await client.disassociate("a")
        assert ("a" in cloud.associations) is not carried_out
    client.close()


async def test_answers_can_be_wrong(cloud: Cloud, client: Client) -> None:
    """Garbage with 200, error entries, and a list that is short (case 2)."""
    cloud.associate(*NAMES)
    cloud.faults.append(Fault(body=b"{}"))
    assert "associatedClientDevices" not in await client.page()
    cloud.faults.append(Fault(hidden=tuple(NAMES[1:200])))
    page = await client.page()
    assert names(page) == ["thing-000", *NAMES[200:]]
    assert "nextToken" not in page
    cloud.faults.append(Fault(error_entries={"thing-000": "AccessDenied", "other": "Odd"}))
    answer = await client.disassociate("thing-000", "thing-001")
    assert {e["thingName"]: e["code"] for e in answer["errorEntries"]} == {"thing-000": "AccessDenied", "other": "Odd"}
    assert {"thing-000", "thing-001"} & cloud.associations.keys() == {"thing-000"}


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
