"""The child process, a real one, against the local core's cloud."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore import exceptions

import client_device_pruner
from client_device_pruner.cloud import describe
from local_core.cloud import ASSOCIATE, CREDENTIALS, DISASSOCIATE, LIST, Cloud, Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CORE = "core-1"
SRC = str(Path(client_device_pruner.__file__).parent.parent)


class Child:
    """The child process, its protocol in the open."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._next_id = 0

    async def send(self, line: bytes) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        await self.process.stdin.drain()

    async def read(self) -> Any:
        """Return its next line, decoded."""
        assert self.process.stdout is not None
        return json.loads(await self.process.stdout.readline())

    async def ask(self, op: str, **request: Any) -> Any:
        """Send a request and return `ok`, or `error`, of the answer."""
        self._next_id += 1
        await self.send(json.dumps({"id": self._next_id, "op": op} | request).encode() + b"\n")
        answer = await self.read()
        assert answer.pop("id") == self._next_id
        [result] = answer.values()
        return result

    def has_loaded(self, library: str) -> bool:
        """Whether a native library is mapped into its memory."""
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    async def list(self, token: str | None = None) -> Any:
        """Ask for a page."""
        return await self.ask("list", nextToken=token)

    async def batch(self, op: str, *names: str) -> Any:
        """Ask for a batch that is issued now."""
        return await self.ask(op, names=names, issued=time.monotonic())


def environment_of(cloud: Cloud) -> dict[str, str]:
    """Return what the nucleus sets, and what keeps the library off everything but the cloud."""
    return {
        "PYTHONPATH": SRC,
        "PATH": os.environ["PATH"],
        "AWS_REGION": cloud.region,
        "AWS_ENDPOINT_URL_GREENGRASSV2": cloud.url,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": cloud.credentials_url,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": cloud.credentials_token,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    """A cloud that serves an empty list."""
    cloud = Cloud(core_device=CORE)
    await cloud.start()
    yield cloud
    await cloud.stop()


@contextlib.asynccontextmanager
async def running(environment: dict[str, str], *options: str) -> AsyncIterator[Child]:
    """Run a child, whose standard input is closed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "client_device_pruner.cloud",
        "--core-device",
        CORE,
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield Child(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@pytest.fixture
async def child(cloud: Cloud) -> AsyncIterator[Child]:
    """A child that is ready."""
    async with running(environment_of(cloud), "--parent", str(os.getpid())) as child:
        assert await child.read() == {"ready": True}
        yield child


async def test_lists_in_pages_of_100(cloud: Cloud, child: Child) -> None:
    """Names and timestamps of all pages arrive, in one call a page, and a missing timestamp as null."""
    cloud.associations = {f"thing-{number:03}": 1_700_000_000.123 + number for number in range(150)}
    cloud.associations["thing-007"] = None

    first = await child.list()
    second = await child.list(first["nextToken"])

    assert dict(first["devices"] + second["devices"]) == cloud.associations
    assert [len(first["devices"]), len(second["devices"]), second["nextToken"]] == [100, 50, None]
    assert [call.operation for call in cloud.calls] == [CREDENTIALS, LIST, LIST]


async def test_an_empty_list_is_an_answer(child: Child) -> None:
    """A core device may have no client devices."""
    assert await child.list() == {"devices": [], "nextToken": None}


async def test_loads_no_library_that_no_call_needs(child: Child) -> None:
    """It starts for every cycle: what botocore would take along, because the component needs it, stays out."""
    assert not child.has_loaded("_awscrt")


async def test_batches_are_carried_out(cloud: Cloud, child: Child) -> None:
    """Both operations take effect, and entries that the service refuses come back with what it says."""
    cloud.associate("a", "b", "c")
    cloud.faults = [Fault(DISASSOCIATE, error_entries={"b": "InternalServerException"})]

    refused = await child.batch("disassociate", "a", "b")
    done = await child.batch("associate", "d")

    assert refused == {
        "errors": [
            {
                "thingName": "b",
                "code": "InternalServerException",
                "message": "b: InternalServerException",
            }
        ]
    }
    assert done == {"errors": []}
    assert sorted(cloud.associations) == ["b", "c", "d"]


async def test_refuses_an_old_batch(cloud: Cloud, child: Child) -> None:
    """Evidence older than 2 s, or from the future, makes no call."""
    for age_seconds in (2.5, 1e6, -60.0):
        error = await child.ask("disassociate", names=["a"], issued=time.monotonic() - age_seconds)
        assert error["kind"] == "tooOld"
    error = await child.ask("disassociate", names=["a"], issued=float("nan"))
    assert error["kind"] == "tooOld"
    assert [call.operation for call in cloud.calls] == [CREDENTIALS]


async def test_a_batch_that_waited_for_credentials_is_old(cloud: Cloud) -> None:
    """The age is judged once everything that can take time before the call is done."""
    cloud.credentials_seconds = 60.0  # so short that they are renewed before each call
    async with running(environment_of(cloud), "--batch-age", "0.2") as child:
        assert await child.read() == {"ready": True}
        cloud.faults = [Fault(CREDENTIALS, delay_seconds=0.5)]
        error = await child.batch("disassociate", "a")
    assert error["kind"] == "tooOld"
    assert {call.operation for call in cloud.calls} == {CREDENTIALS}


FAILURES = [
    (Fault(status=429, error="ThrottlingException"), "throttled", "ThrottlingException"),
    (Fault(status=400, error="Throttling"), "throttled", "Throttling"),
    (Fault(status=429), "throttled", "429"),
    (Fault(status=403, error="AccessDeniedException"), "accessDenied", "AccessDeniedException"),
    (Fault(status=403), "accessDenied", "403"),
    (Fault(status=403, body=b"<html>no</html>", content_type="text/html"), "accessDenied", "403"),
    (Fault(status=404, error="ResourceNotFoundException"), "coreNotFound", "ResourceNotFoundException"),
    (Fault(status=404), "refused", "404"),
    (Fault(status=400, error="ValidationException"), "refused", "ValidationException"),
    (Fault(status=403, error="ExpiredTokenException"), "credentials", "ExpiredTokenException"),
    (Fault(status=403, error="InvalidSignatureException"), "credentials", "InvalidSignatureException"),
    (Fault(status=500, error="InternalServerException"), "server", "InternalServerException"),
    (Fault(status=503, body=b"<html>sorry", content_type="text/html"), "server", "503"),
    (Fault(status=302, body=b"<html>log in", content_type="text/html"), "garbage", "302"),
    (Fault(drop=True), "unreachable", "ConnectionClosedError"),
]


async def test_every_failure_of_a_batch_has_its_kind(cloud: Cloud, child: Child) -> None:
    """A batch is attempted once, whatever becomes of it."""
    for fault, kind, code in FAILURES:
        cloud.calls.clear()
        cloud.faults = [fault]
        error = await child.batch("disassociate", "a")
        assert (error["kind"], error["code"]) == (kind, code)
        assert error["message"]
        assert [call.operation for call in cloud.calls] == [DISASSOCIATE]


async def test_garbage_is_no_answer(cloud: Cloud, child: Child) -> None:
    """A 200 that is not the service's is an error: the library would take most of these for an empty list."""
    of_any = (b"", b"<html>welcome", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000)
    of_list = (
        b"{}",
        b'{"associatedClientDevices": null}',
        b'{"associatedClientDevices": {}}',
        b'{"associatedClientDevices": "abc"}',
        b'{"associatedClientDevices": [1]}',
        b'{"associatedClientDevices": [null]}',
        b'{"associatedClientDevices": [{}]}',
        b'{"associatedClientDevices": [{"thingName": 5}]}',
        b'{"associatedClientDevices": [{"thingName": ""}]}',
        b'{"associatedClientDevices": [{"thingName": "a", "associationTimestamp": "soon"}]}',
        b'{"associatedClientDevices": [{"thingName": "a", "associationTimestamp": 1e400}]}',
        b'{"associatedClientDevices": [], "nextToken": 7}',
    )
    of_batch = (
        b'{"errorEntries": {}}',
        b'{"errorEntries": [null]}',
        b'{"errorEntries": [{"code": "x"}]}',
        b'{"errorEntries": ["x"]}',
    )
    for body in of_any + of_list:
        cloud.faults = [Fault(LIST, body=body)]
        assert (await child.list())["code"] == "GarbageAnswer", body
    for body in of_any + of_batch:
        cloud.faults = [Fault(ASSOCIATE, body=body)]
        assert (await child.batch("associate", "a"))["code"] == "GarbageAnswer", body


@pytest.mark.parametrize("status", [201, 202, 204])
async def test_garbage_with_any_success_is_no_answer(cloud: Cloud, child: Child, status: int) -> None:
    """A portal's 202 is no more the service's than its 200: a restore would be taken for done (found by fuzzing)."""
    cloud.faults = [Fault(ASSOCIATE, status=status, body=b"" if status == 204 else b"<html>welcome")]

    assert (await child.batch("associate", "a"))["code"] == "GarbageAnswer"


async def test_a_page_that_names_itself_is_garbage(cloud: Cloud, child: Child) -> None:
    """A listing cannot go on for ever."""
    cloud.associate(*(f"thing-{number}" for number in range(101)))
    token = (await child.list())["nextToken"]
    cloud.faults = [Fault(LIST, repeat_token=True)]
    assert (await child.list(token))["code"] == "GarbageAnswer"


async def test_reads_are_tried_three_times(cloud: Cloud, child: Child) -> None:
    """Two failures of a listing are got over, three are not."""
    cloud.faults = [Fault(LIST, times=2, status=500)]
    assert "devices" in await child.list()
    cloud.faults = [Fault(LIST, times=3, status=503)]
    assert (await child.list())["kind"] == "server"
    assert [call.operation for call in cloud.calls] == [CREDENTIALS] + 6 * [LIST]


async def test_an_unreachable_service(cloud: Cloud) -> None:
    """A refused connection, and an endpoint that does not speak TLS, are no service's error."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    environment = environment_of(cloud) | {"AWS_ENDPOINT_URL_GREENGRASSV2": f"https://{address}"}
    async with running(environment) as child:
        assert await child.read() == {"ready": True}
        assert (await child.batch("disassociate", "a"))["kind"] == "unreachable"
        server.close()
        await server.wait_closed()
        assert (await child.batch("disassociate", "a"))["kind"] == "unreachable"


async def test_what_it_cannot_read_is_answered(cloud: Cloud, child: Child) -> None:
    """A request that is none gets an error, and the next one its answer."""
    for line in (b"hello", b"\xff", b"", b"[]", b"{}", b'{"op": "list"}', b"x" * 3_000_000, b"[" * 100_000):
        await child.send(line + b"\n")
        answer = await child.read()
        assert (answer["id"], answer["error"]["code"]) == (None, "BadRequest")
    bad: tuple[dict[str, Any], ...] = (
        {"op": "delete"},
        {"op": "list"},
        {"op": "list", "nextToken": 5},
        {"op": "disassociate", "names": ["a"]},
        {"op": "disassociate", "names": "a", "issued": 1},
        {"op": "disassociate", "names": [], "issued": 1},
        {"op": "disassociate", "names": [1], "issued": 1},
        {"op": "disassociate", "names": ["a"] * 101, "issued": 1},
    )
    for request in bad:
        assert (await child.ask(**request))["code"] == "BadRequest"
    assert "devices" in await child.list()
    assert [call.operation for call in cloud.calls] == [CREDENTIALS, LIST]


async def test_ends_with_its_input(child: Child) -> None:
    """The end of standard input is the end of the child."""
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert await child.process.wait() == 0


async def test_ends_when_nobody_reads(child: Child) -> None:
    """A closed standard output ends the child quietly."""
    transport = child.process._transport  # type: ignore[attr-defined]
    transport.get_pipe_transport(1).close()
    # The loop closes it in its next turn: before that the child could still answer, and would wait for more.
    await asyncio.sleep(0)
    await child.send(b"hello\n")
    assert await child.process.wait() == 0


async def test_ends_when_its_parent_has_gone(cloud: Cloud) -> None:
    """A child whose parent died while it started makes no call."""
    async with running(environment_of(cloud), "--parent", "1") as child:
        assert await child.process.wait() == 1
    assert cloud.calls == []


async def test_without_credentials_it_is_not_ready(cloud: Cloud) -> None:
    """Credentials that are not there, refused or expired are found out before anything is marked as tried."""
    refused = environment_of(cloud) | {"AWS_CONTAINER_AUTHORIZATION_TOKEN": "wrong"}
    none = {name: value for name, value in environment_of(cloud).items() if "CONTAINER" not in name}
    cloud.faults = [Fault(CREDENTIALS, times=None, expired=True)]
    for environment in (none | {"HOME": "/nonexistent"}, refused, environment_of(cloud)):
        async with running(environment) as child:
            answer = await child.read()
            assert (answer["ready"], answer["error"]["kind"]) == (False, "credentials")
            assert "token exchange service" in answer["error"]["message"]
            assert await child.process.wait() == 1


async def test_without_a_region_it_is_not_ready(cloud: Cloud) -> None:
    """The message names the variable that is missing."""
    environment = environment_of(cloud)
    del environment["AWS_REGION"]
    async with running(environment) as child:
        answer = await child.read()
    assert answer["ready"] is False
    assert "AWS_REGION" in answer["error"]["message"]


async def test_the_other_variable_names_a_region_too(cloud: Cloud) -> None:
    """AWS_DEFAULT_REGION is enough."""
    environment = environment_of(cloud)
    environment["AWS_DEFAULT_REGION"] = environment.pop("AWS_REGION")
    async with running(environment) as child:
        assert await child.read() == {"ready": True}
        assert "devices" in await child.list()


async def test_stray_output_stays_out_of_the_protocol(cloud: Cloud, tmp_path: Path) -> None:
    """What a library prints goes to standard error."""
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, os\n"
        "imported = builtins.__import__\n"
        "def loudly(name, *rest, **named):\n"
        "    if name == 'boto3':\n"
        "        print('stray'); os.write(1, b'stray')\n"
        "    return imported(name, *rest, **named)\n"
        "builtins.__import__ = loudly\n"
    )
    environment = environment_of(cloud)
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    async with running(environment) as child:
        assert await child.read() == {"ready": True}
        assert "devices" in await child.list()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.ConnectTimeoutError(endpoint_url="http://x"), "unreachable"),
        (exceptions.ReadTimeoutError(endpoint_url="http://x"), "unreachable"),
        (exceptions.EndpointConnectionError(endpoint_url="http://x"), "unreachable"),
        (exceptions.ProxyConnectionError(proxy_url="http://x"), "unreachable"),
        (exceptions.SSLError(endpoint_url="http://x", error="x"), "unreachable"),
        (exceptions.ParamValidationError(report="x"), "internal"),
        (ZeroDivisionError("x"), "internal"),
    ],
)
def test_describes_what_the_library_raises(error: Exception, kind: str) -> None:
    """What takes long or another network to provoke has its kind as well."""
    assert describe(error).kind == kind


def test_a_long_message_is_cut() -> None:
    """A page of HTML does not fill the log."""
    answer = {"Error": {"Code": "503", "Message": "<p>\n" * 1_000}}
    assert len(describe(exceptions.ClientError(answer, "List")).message) == 500
