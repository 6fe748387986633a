"""The child process, a real one, against the local core's cloud."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from botocore import exceptions

import client_device_pruner
from client_device_pruner.pruning.cloud import Batched, Listed, ListPage, Ready
from client_device_pruner.pruning.cloud_child import describe
from fakes.cloud_child import CORE, Child, failed
from local_core.cloud import ASSOCIATE, CREDENTIALS, DISASSOCIATE, LIST, Cloud
from local_core.http_server import Fault


@pytest.fixture
async def child(cloud: Cloud) -> AsyncIterator[Child]:
    """A child that is ready."""
    with Child() as child:
        assert await child.next() == Ready()
        assert [call.operation for call in cloud.calls] == [CREDENTIALS]
        yield child


async def test_it_lists_in_pages_of_100(cloud: Cloud, child: Child) -> None:
    """One call a page, a missing timestamp as null; after a disassociation it goes on where it was (case 2)."""
    cloud.associations = {f"thing-{number:03}": 1_700_000_000.123 + number for number in range(150)}
    cloud.associations["thing-007"] = None
    associations = cloud.associations.copy()

    first = await child.ask(ListPage())
    assert isinstance(first, Listed)
    cloud.disassociate("thing-001")
    second = await child.ask(ListPage(first.next_token))

    assert isinstance(second, Listed)
    assert {**first.devices, **second.devices} == associations
    assert [len(first.devices), len(second.devices), second.next_token] == [100, 50, None]
    assert [call.operation for call in cloud.calls] == [CREDENTIALS, LIST, LIST]


async def test_batches_are_carried_out(cloud: Cloud, child: Child) -> None:
    """Both operations take effect, and entries that the service refuses come back with what it says."""
    cloud.associate("a", "b", "c")
    cloud.faults = [Fault(operation=DISASSOCIATE, error_entries={"b": "InternalServerException"})]

    refused = await child.batch("disassociate", "a", "b", "gone")
    done = await child.batch("associate", "d")

    codes = {"b": "InternalServerException", "gone": "ResourceNotFoundException"}
    assert refused == Batched({name: [code, f"{name}: {code}"] for name, code in codes.items()})
    assert done == Batched({})
    assert sorted(cloud.associations) == ["b", "c", "d"]


async def test_an_old_batch_is_refused(cloud: Cloud, child: Child) -> None:
    """Evidence older than 2 s, or from the future, makes no call."""
    for age_seconds in (2.5, 1e6, -60.0):
        assert failed(await child.batch("disassociate", "a", age=age_seconds)).kind == "tooOld"
    assert [call.operation for call in cloud.calls] == [CREDENTIALS]


async def test_a_batch_that_waited_for_credentials_is_old(cloud: Cloud) -> None:
    """The age is judged once everything that can take time before the call is done."""
    cloud.credentials_seconds = 60.0  # so short that they are renewed before each call
    with Child() as child:
        assert await child.next() == Ready()
        cloud.faults = [Fault(operation=CREDENTIALS, delay_seconds=0.5)]
        assert failed(await child.batch("disassociate", "a", age=1.8)).kind == "tooOld"
    assert {call.operation for call in cloud.calls} == {CREDENTIALS}


FAILURES = [
    (Fault(status=429, error="ThrottlingException"), "throttled", "ThrottlingException"),
    (Fault(status=400, error="Throttling"), "throttled", "Throttling"),
    (Fault(status=429), "throttled", "429"),
    (Fault(status=403, error="AccessDeniedException"), "accessDenied", "AccessDeniedException"),
    (Fault(status=403), "accessDenied", "403"),
    (Fault(status=404, error="ResourceNotFoundException"), "coreNotFound", "ResourceNotFoundException"),
    (Fault(status=404), "refused", "404"),
    (Fault(status=400, error="ValidationException"), "refused", "ValidationException"),
    (Fault(status=403, error="ExpiredTokenException"), "credentials", "ExpiredTokenException"),
    (Fault(status=403, error="InvalidSignatureException"), "credentials", "InvalidSignatureException"),
    (Fault(status=403, error="RequestTimeTooSkewed"), "credentials", "RequestTimeTooSkewed"),
    (Fault(status=500, error="InternalServerException"), "server", "InternalServerException"),
    (Fault(status=503, body=b"<html>sorry"), "server", "503"),
    (Fault(status=302, body=b"<html>log in"), "garbage", "302"),
    (Fault(drop=True), "unreachable", "ConnectionClosedError"),
]


async def test_every_failure_of_a_batch_has_its_kind(cloud: Cloud, child: Child) -> None:
    """A batch is attempted once, whatever becomes of it."""
    for fault, kind, code in FAILURES:
        cloud.calls.clear()
        cloud.faults = [fault]
        error = failed(await child.batch("disassociate", "a"))
        assert (error.kind, error.code) == (kind, code)
        assert error.message
        assert [call.operation for call in cloud.calls] == [DISASSOCIATE]


async def test_garbage_is_no_answer(cloud: Cloud, child: Child) -> None:
    """A success that is not the service's is an error: the library would take most of these for an empty list."""
    of_any = (b"", b"<html>welcome", b"null", b"[]")
    of_list = (b"{}", b'{"associatedClientDevices": null}', b'{"associatedClientDevices": [{}]}', b'{"associatedCli')
    for body in of_any + of_list:
        cloud.faults = [Fault(operation=LIST, body=body)]
        assert failed(await child.ask(ListPage())).code == "GarbageAnswer", body
    for body in (*of_any, b'{"errorEntries": [{"code": "x"}]}'):
        cloud.faults = [Fault(operation=ASSOCIATE, body=body)]
        assert failed(await child.batch("associate", "a")).code == "GarbageAnswer", body
    cloud.faults = [Fault(operation=ASSOCIATE, status=202, body=b"<html>welcome")]
    assert failed(await child.batch("associate", "a")).code == "GarbageAnswer"


async def test_reads_are_tried_three_times(cloud: Cloud, child: Child) -> None:
    """Two failures of a listing are got over, three are not."""
    cloud.faults = [Fault(operation=LIST, times=2, status=500)]
    assert isinstance(await child.ask(ListPage()), Listed)
    cloud.faults = [Fault(operation=LIST, times=3, status=503)]
    assert failed(await child.ask(ListPage())).kind == "server"
    assert [call.operation for call in cloud.calls] == [CREDENTIALS] + 6 * [LIST]


async def test_it_ends_with_its_input_and_its_parent(cloud: Cloud) -> None:
    """Quietly in the first case; without a call where its parent has gone before it began."""
    src = str(Path(client_device_pruner.__file__).parent.parent)
    for parent, status, calls in ((1, 1, 0), (os.getpid(), 0, 1)):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "client_device_pruner.pruning.cloud_child", CORE, str(parent)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": src},
        )
        assert await process.wait() == status
        assert len(cloud.calls) == calls


@pytest.mark.parametrize("trouble", ["none", "refused", "expired"])
async def test_without_credentials_it_is_not_ready(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Credentials that are not there, refused or expired are found out before anything is asked."""
    if trouble == "none":
        monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    elif trouble == "refused":
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong")
    else:
        cloud.credentials_seconds = -60.0
    with Child() as child:
        failure = failed(await child.next())
    assert failure.kind == "credentials"
    assert "token exchange service" in failure.message


@pytest.mark.parametrize(("healthy", "profile"), [(True, "other"), (True, "nowhere"), (False, "other")])
async def test_no_other_source_of_credentials_is_ever_used(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, healthy: bool, profile: str
) -> None:
    """Case 1: neither keys in the environment, profiles, files nor a process; the token exchange service or none."""
    (tmp_path / ".aws").mkdir()
    keys = "aws_access_key_id = AKIAFOREIGN\naws_secret_access_key = foreign\n"
    (tmp_path / ".aws" / "credentials").write_text(f"[default]\n{keys}[other]\n{keys}")
    config = tmp_path / "config"
    program = f"[default]\ncredential_process = touch {tmp_path}/ran\n"
    config.write_text(f"{program}endpoint_url = http://127.0.0.1:9\n[profile other]\n{keys}")
    for name, value in {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "AKIAFOREIGN",
        "AWS_SECRET_ACCESS_KEY": "foreign",
        "AWS_PROFILE": profile,
        "AWS_CONFIG_FILE": str(config),
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/foreign",
    }.items():
        monkeypatch.setenv(name, value)
    if not healthy:
        cloud.faults = [Fault(operation=CREDENTIALS, times=None, status=500)]
    with Child() as child:
        answer = await child.next()
        if healthy:
            assert answer == Ready()
            assert await child.ask(ListPage()) == Listed({}, None)
        else:
            assert failed(answer).kind == "credentials"
    assert not (tmp_path / "ran").exists()


async def test_it_needs_a_region(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either variable is enough; without both, the message names them."""
    monkeypatch.delenv("AWS_REGION")
    with Child() as child:
        assert "AWS_REGION" in failed(await child.next()).message
    monkeypatch.setenv("AWS_DEFAULT_REGION", cloud.region)
    with Child() as child:
        assert await child.next() == Ready()


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
def test_what_the_library_raises_has_its_kind(error: Exception, kind: str) -> None:
    """What takes long or another network to provoke, too."""
    assert describe(error).kind == kind


def test_a_long_message_is_cut() -> None:
    """A page of HTML does not fill the log."""
    answer = {"Error": {"Code": "503", "Message": "<p>\n" * 1_000}}
    assert len(describe(exceptions.ClientError(answer, "List")).message) == 500
