"""The cloud answers real boto3 clients as the services do, and fails as it is told to."""

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.credentials import ContainerProvider, CredentialResolver
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    CredentialRetrievalError,
    ReadTimeoutError,
)
from botocore.utils import ContainerMetadataFetcher

from local_core.cloud import ASSOCIATE, CREDENTIALS, DISASSOCIATE, LIST, Call, Cloud, Fault

CORE = "core-1"
NAMES = [f"thing-{number:03}" for number in range(250)]


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    """A cloud that serves an empty list."""
    cloud = Cloud(core_device=CORE)
    await cloud.start()
    yield cloud
    await cloud.stop()


def client_of(cloud: Cloud, *, region: str = "eu-west-1", **settings: Any) -> Any:
    """Return a client that gets its credentials as a component does, without touching the environment."""
    environment = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": cloud.credentials_url,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": cloud.credentials_token,
    }
    session = botocore.session.Session()
    provider = ContainerProvider(environment, ContainerMetadataFetcher(sleep=lambda _: None))
    session.register_component("credential_provider", CredentialResolver([provider]))
    config = Config(retries={"mode": "standard", "total_max_attempts": 1}, connect_timeout=5, **settings)
    return boto3.Session(botocore_session=session).client(
        "greengrassv2", region_name=region, endpoint_url=cloud.url, config=config
    )


class Client:
    """A client whose calls run in a thread, since the cloud runs in this one."""

    def __init__(self, cloud: Cloud, **settings: Any) -> None:
        self._cloud = cloud
        self._settings = settings
        self._client: Any = None

    async def call(self, operation: str, core: str = CORE, **parameters: Any) -> Any:
        """Call an operation by botocore's name."""

        def run() -> Any:
            if self._client is None:
                self._client = client_of(self._cloud, **self._settings)
            return getattr(self._client, operation)(coreDeviceThingName=core, **parameters)

        return await asyncio.to_thread(run)

    async def list_page(self, **parameters: Any) -> Any:
        """Return one page."""
        return await self.call("list_client_devices_associated_with_core_device", **parameters)

    async def associate(self, *names: str) -> Any:
        """Make one batch call."""
        entries = [{"thingName": name} for name in names]
        return await self.call("batch_associate_client_device_with_core_device", entries=entries)

    async def disassociate(self, *names: str) -> Any:
        """Make one batch call."""
        entries = [{"thingName": name} for name in names]
        return await self.call("batch_disassociate_client_device_from_core_device", entries=entries)

    def close(self) -> None:
        """Give back the connections."""
        if self._client is not None:
            self._client.close()


async def refused(call: Awaitable[Any]) -> tuple[int, str]:
    """Await a call that must be refused; return status and error type."""
    with pytest.raises(ClientError) as caught:
        await call
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


@pytest.fixture
async def client(cloud: Cloud) -> AsyncIterator[Client]:
    """A client with the credentials that the cloud hands out."""
    client = Client(cloud)
    yield client
    client.close()


class TestList:
    """Listing the associations."""

    async def test_comes_in_pages_of_a_hundred(self, cloud: Cloud, client: Client) -> None:
        """250 associations are three pages, each name once, with the timestamps of the table."""
        cloud.associate(*NAMES)
        found: dict[str, float] = {}
        token: dict[str, str] = {}
        for expected in (100, 100, 50):
            page = await client.list_page(**token)
            assert len(page["associatedClientDevices"]) == expected
            found |= {
                entry["thingName"]: entry["associationTimestamp"].timestamp()
                for entry in page["associatedClientDevices"]
            }
            token = {"nextToken": page.get("nextToken", "")}
        assert token == {"nextToken": ""}
        assert found == pytest.approx(cloud.associations, abs=0.0005)

    async def test_of_nothing_has_its_key(self, client: Client) -> None:
        """An empty list is an answer, not the lack of one."""
        assert (await client.list_page())["associatedClientDevices"] == []

    async def test_page_size_is_the_clients_up_to_a_hundred(self, cloud: Cloud, client: Client) -> None:
        """A page size is honoured, and refused beyond what the service allows."""
        cloud.associate(*NAMES)
        assert len((await client.list_page(maxResults=7))["associatedClientDevices"]) == 7
        answer = await refused(client.list_page(maxResults=101))
        assert answer == (400, "ValidationException")

    async def test_goes_on_where_it_ended_after_a_disassociation(self, cloud: Cloud, client: Client) -> None:
        """A page asked for after entries of the last one went neither skips nor repeats."""
        cloud.associate(*NAMES)
        first = await client.list_page()
        cloud.disassociate(*NAMES[:100])
        second = await client.list_page(nextToken=first["nextToken"])
        assert [entry["thingName"] for entry in second["associatedClientDevices"]] == NAMES[100:200]

    @pytest.mark.parametrize("token", ["", "made-up", "YWJj", "\u00fc"])
    async def test_token_must_be_one_handed_out(self, client: Client, token: str) -> None:
        """A token of somebody's own making is refused."""
        answer = await refused(client.list_page(nextToken=token))
        assert answer == (400, "ValidationException")

    async def test_timestamp_may_be_missing(self, cloud: Cloud, client: Client) -> None:
        """None in the table leaves the key out of the answer."""
        cloud.associations["thing"] = None
        assert (await client.list_page())["associatedClientDevices"] == [{"thingName": "thing"}]

    async def test_unknown_core_device(self, client: Client) -> None:
        """The list of another core device does not exist."""
        with pytest.raises(ClientError) as caught:
            await client.call("list_client_devices_associated_with_core_device", core="other:core")
        assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
        assert caught.value.response["resourceId"] == "other:core"


class TestBatch:
    """Associating and disassociating."""

    async def test_disassociates(self, cloud: Cloud, client: Client) -> None:
        """What is named goes, what is not stays, and what was not there is an error entry."""
        cloud.associate("a", "b")
        answer = await client.disassociate("a", "gone")
        assert [(e["thingName"], e["code"]) for e in answer["errorEntries"]] == [("gone", "ResourceNotFoundException")]
        assert answer["errorEntries"][0]["message"]
        assert list(cloud.associations) == ["b"]

    async def test_associates_with_a_later_timestamp(self, cloud: Cloud, client: Client) -> None:
        """A thing associated again is a new association; one that is associated keeps its own."""
        cloud.associate("a", "b")
        before = dict(cloud.associations)
        await client.disassociate("a")
        assert (await client.associate("a", "b"))["errorEntries"] == []
        after = cloud.associations
        assert after["b"] == before["b"]
        assert (after["a"] or 0) > (before["b"] or 0)

    @pytest.mark.parametrize(
        "names",
        [NAMES[:101], [], ["n" * 129], ["a b"], ["ok", "b\u00fc"]],
        ids=["101", "0", "long", "space", "letter"],
    )
    async def test_limits_of_the_service(self, cloud: Cloud, names: list[str]) -> None:
        """A batch outside the service's limits is refused whole."""
        cloud.associate("ok")
        client = Client(cloud, parameter_validation=False)
        for call in (client.associate, client.disassociate):
            assert await refused(call(*names)) == (400, "ValidationException")
        client.close()
        assert list(cloud.associations) == ["ok"]

    async def test_a_hundred_and_every_legal_letter(self, cloud: Cloud, client: Client) -> None:
        """A full batch of names of the longest kind passes."""
        names = [f"aZ09:_-{number}".ljust(128, "x") for number in range(100)]
        cloud.associate(*names)
        assert (await client.disassociate(*names))["errorEntries"] == []
        assert cloud.associations == {}

    async def test_before_runs_ahead_of_the_effect(self, cloud: Cloud, client: Client) -> None:
        """The hook sees the call and the list as it is before the call."""
        cloud.associate("a")
        seen: list[tuple[str, tuple[str, ...], list[str]]] = []

        async def look(call: Call) -> None:
            seen.append((call.operation, call.entries, list(cloud.associations)))

        cloud.before = look
        await client.disassociate("a")
        assert seen == [(DISASSOCIATE, ("a",), ["a"])]

    def test_timestamps_increase(self) -> None:
        """Each association is told from every other, however fast they come."""
        cloud = Cloud(core_device=CORE)
        cloud.associations["future"] = time.time() + 100
        cloud.associate(*NAMES)
        stamps = [stamp or 0 for stamp in cloud.associations.values()]
        assert stamps == sorted(set(stamps))


class TestCalls:
    """What is remembered of requests."""

    async def test_are_recorded(self, cloud: Cloud, client: Client) -> None:
        """Credentials, lists and batches stand in the order of their arrival."""
        before = time.monotonic()
        await client.list_page(maxResults=5)
        await client.associate("a", "b")
        assert [call.operation for call in cloud.calls] == [CREDENTIALS, LIST, ASSOCIATE]
        assert cloud.calls[1].parameters == {"coreDeviceThingName": CORE, "maxResults": "5"}
        assert cloud.calls[2].entries == ("a", "b")
        times = [call.when for call in cloud.calls]
        assert before <= times[0] <= times[1] <= times[2] <= time.monotonic()


class TestCredentials:
    """The token exchange service, and what the API does without its credentials."""

    async def test_need_the_token(self, cloud: Cloud) -> None:
        """Without the container's token there are none."""
        request = urllib.request.Request(cloud.credentials_url, headers={"Authorization": "wrong"})  # noqa: S310 - our own

        def fetch() -> None:
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=5)  # noqa: S310 - our own
            assert caught.value.code == 403
            caught.value.close()

        await asyncio.to_thread(fetch)

    async def test_unsigned_is_refused(self, cloud: Cloud) -> None:
        """A request without a signature gets a 403 with an error type."""

        def fetch() -> None:
            path = f"{cloud.url}/greengrass/v2/coreDevices/{CORE}/associatedClientDevices"
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(path, timeout=5)  # noqa: S310 - our own
            assert caught.value.code == 403
            assert caught.value.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
            caught.value.close()

        await asyncio.to_thread(fetch)

    @pytest.mark.parametrize(
        ("part", "code"),
        [
            ("access_key", "UnrecognizedClientException"),
            ("token", "UnrecognizedClientException"),
            ("secret_key", "InvalidSignatureException"),
        ],
    )
    async def test_must_be_the_issued_ones(self, cloud: Cloud, part: str, code: str) -> None:
        """A key, secret or session token that was not issued is refused."""

        def call() -> None:
            parts = {"access_key": "AKIA", "secret_key": "secret", "token": "token"}
            issued = client_of(cloud)._get_credentials().get_frozen_credentials()
            parts = {name: value if name == part else getattr(issued, name) for name, value in parts.items()}
            client = boto3.client(
                "greengrassv2",
                region_name="eu-west-1",
                endpoint_url=cloud.url,
                aws_access_key_id=parts["access_key"],
                aws_secret_access_key=parts["secret_key"],
                aws_session_token=parts["token"],
            )
            try:
                client.list_client_devices_associated_with_core_device(coreDeviceThingName=CORE)
            finally:
                client.close()

        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(call)
        assert caught.value.response["Error"]["Code"] == code

    async def test_of_another_region(self, cloud: Cloud) -> None:
        """A signature for another region is refused."""
        client = Client(cloud, region="us-east-1")
        assert await refused(client.list_page()) == (403, "InvalidSignatureException")
        client.close()

    async def test_expire(self, cloud: Cloud, client: Client) -> None:
        """Credentials are refused after their time."""
        await client.list_page()
        cloud._issued = {
            key: type(issued)(issued.access_key, issued.secret_key, issued.token, time.time() - 1)
            for key, issued in cloud._issued.items()
        }
        assert await refused(client.list_page()) == (403, "ExpiredTokenException")

    async def test_down(self, cloud: Cloud, client: Client) -> None:
        """A token exchange service that drops every connection leaves a client without credentials."""
        cloud.faults.append(Fault(operation=CREDENTIALS, times=None, drop=True))
        with pytest.raises(CredentialRetrievalError):
            await client.list_page()
        cloud.faults.clear()
        await client.list_page()

    async def test_error_and_slow(self, cloud: Cloud, client: Client) -> None:
        """An error, then an answer after botocore's two seconds, are both retried by it."""
        cloud.faults += [
            Fault(operation=CREDENTIALS, status=500),
            Fault(operation=CREDENTIALS, delay_seconds=2.2),
        ]
        await client.list_page()
        assert [call.operation for call in cloud.calls] == [CREDENTIALS] * 3 + [LIST]

    async def test_handed_out_expired(self, cloud: Cloud, client: Client) -> None:
        """Credentials that have expired when they arrive cannot be used."""
        cloud.faults.append(Fault(operation=CREDENTIALS, times=None, expired=True))
        with pytest.raises(RuntimeError, match="expired"):
            await client.list_page()


class TestFaults:
    """Each fault does what it says, and no more."""

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (429, "ThrottlingException"),
            (500, "InternalServerException"),
            (503, "ServiceUnavailableException"),
            (403, "AccessDeniedException"),
            (403, "ExpiredTokenException"),
        ],
    )
    async def test_error(self, cloud: Cloud, client: Client, status: int, error: str) -> None:
        """The client sees status and type, once, and nothing was done."""
        cloud.associate("a")
        cloud.faults.append(Fault(status=status, error=error))
        assert await refused(client.disassociate("a")) == (status, error)
        assert "a" in cloud.associations
        await client.disassociate("a")
        assert "a" not in cloud.associations

    async def test_error_without_type(self, cloud: Cloud, client: Client) -> None:
        """The status stands in for the type."""
        cloud.faults.append(Fault(status=403))
        assert await refused(client.list_page()) == (403, "403")

    async def test_befalls_its_operation_its_number_of_times(self, cloud: Cloud, client: Client) -> None:
        """Others pass; skipped ones pass; then it strikes, as often as it is told to."""
        cloud.associate("a")
        cloud.faults.append(Fault(operation=LIST, skip=1, times=2, status=500, error="InternalServerException"))
        await client.list_page()
        await client.associate("b")
        for _ in range(2):
            assert (await refused(client.list_page()))[0] == 500
        await client.list_page()
        assert cloud.faults == []

    async def test_slow(self, cloud: Cloud, client: Client) -> None:
        """The answer comes late, and is right."""
        cloud.faults.append(Fault(delay_seconds=0.3))
        begin = time.monotonic()
        assert (await client.list_page())["associatedClientDevices"] == []
        assert time.monotonic() - begin >= 0.3

    async def test_hang(self, cloud: Cloud) -> None:
        """The client gives up; with `carried_out` the request has its effect all the same."""
        client = Client(cloud, read_timeout=0.5)
        cloud.associate("a")
        cloud.faults += [Fault(operation=DISASSOCIATE, hang=True)]
        with pytest.raises(ReadTimeoutError):
            await client.disassociate("a")
        assert "a" in cloud.associations
        cloud.faults += [Fault(operation=DISASSOCIATE, hang=True, carried_out=True)]
        with pytest.raises(ReadTimeoutError):
            await client.disassociate("a")
        assert cloud.associations == {}
        client.close()

    @pytest.mark.parametrize("carried_out", [False, True])
    async def test_dropped_connection(self, cloud: Cloud, client: Client, carried_out: bool) -> None:
        """The client knows as little after a request that was lost as after an answer that was."""
        cloud.associate("a")
        cloud.faults.append(Fault(drop=True, carried_out=carried_out))
        with pytest.raises(ConnectionClosedError):
            await client.disassociate("a")
        assert ("a" in cloud.associations) is not carried_out

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [(b"{}", "application/json"), (b"<html>Sign in</html>", "text/html"), (b"\xff\xfe", "text/plain")],
    )
    async def test_garbage(self, cloud: Cloud, client: Client, body: bytes, content_type: str) -> None:
        """What is answered is what was given: botocore finds no list in it, and may find no JSON."""
        cloud.associate("a")
        cloud.faults.append(Fault(body=body, content_type=content_type))
        try:
            answer = await client.list_page()
        except Exception as error:  # noqa: BLE001 - how botocore fails here is its own affair
            assert "ClientError" not in repr(error)  # noqa: PT017 - either way is right
        else:
            assert "associatedClientDevices" not in answer

    async def test_error_entries(self, cloud: Cloud, client: Client) -> None:
        """Named things are refused with their code, also ones nobody asked for; the others go."""
        cloud.associate("a", "b")
        cloud.faults.append(Fault(error_entries={"a": "AccessDenied", "stranger": "Odd"}))
        answer = await client.disassociate("a", "b")
        assert {e["thingName"]: e["code"] for e in answer["errorEntries"]} == {
            "a": "AccessDenied",
            "stranger": "Odd",
        }
        assert list(cloud.associations) == ["a"]

    async def test_incomplete_paging(self, cloud: Cloud, client: Client) -> None:
        """A page that should not be the last says that it is."""
        cloud.associate(*NAMES)
        cloud.faults.append(Fault(without=("nextToken",)))
        page = await client.list_page()
        assert len(page["associatedClientDevices"]) == 100
        assert "nextToken" not in page

    async def test_missing_key(self, cloud: Cloud, client: Client) -> None:
        """The list is missing, the token is not."""
        cloud.associate(*NAMES)
        cloud.faults.append(Fault(without=("associatedClientDevices",)))
        page = await client.list_page()
        assert "associatedClientDevices" not in page
        assert page["nextToken"]

    async def test_repeated_token(self, cloud: Cloud, client: Client) -> None:
        """A client that follows the tokens goes round in circles."""
        cloud.associate("a", "b")
        cloud.faults.append(Fault(repeat_token=True, times=None))
        token = (await client.list_page())["nextToken"]
        assert (await client.list_page(nextToken=token))["nextToken"] == token


class TestServer:
    """Starting, stopping, and clients that misbehave."""

    async def test_comes_back_where_it_was(self, cloud: Cloud, client: Client) -> None:
        """After a stop nobody answers; after a start the same addresses do, and the list is the same."""
        cloud.associate("a")
        await client.list_page()
        address = cloud.url
        await cloud.stop()
        with pytest.raises(Exception, match=r"Could not connect|Connection"):
            await client.list_page()
        await cloud.start()
        assert cloud.url == address
        assert len((await client.list_page())["associatedClientDevices"]) == 1

    async def test_stops_while_requests_hang(self, cloud: Cloud, client: Client) -> None:
        """A stop cuts off what is in progress."""
        arrived = asyncio.Event()

        async def arrive(_: Call) -> None:
            arrived.set()

        cloud.before = arrive
        cloud.faults.append(Fault(operation=LIST, hang=True, carried_out=True))
        pending = asyncio.ensure_future(client.list_page())
        await arrived.wait()
        await asyncio.wait_for(cloud.stop(), 5)
        with pytest.raises(ConnectionClosedError):
            await pending

    async def test_nonsense_ends_the_connection(self, cloud: Cloud) -> None:
        """What is not HTTP is answered by hanging up."""
        port = int(cloud.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()
