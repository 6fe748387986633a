"""The worker against the real child and the local core's cloud, and against children that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, final

import pytest

import client_device_pruner
from client_device_pruner.cloud_worker import (
    DEADLINE_SECONDS,
    Batch,
    Batched,
    CallFailed,
    CloudWorker,
    EntryError,
    Listed,
    ListPage,
    Ready,
    Reply,
)
from local_core.cloud import DISASSOCIATE, LIST, Call, Cloud, Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CORE = "core-1"
SRC = str(Path(client_device_pruner.__file__).parent.parent)


@pytest.fixture
async def cloud(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """A cloud that the environment leads to."""
    cloud = Cloud(core_device=CORE)
    await cloud.start()
    for name, value in {
        "AWS_REGION": cloud.region,
        "AWS_ENDPOINT_URL_GREENGRASSV2": cloud.url,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": cloud.credentials_url,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": cloud.credentials_token,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    yield cloud
    await cloud.stop()


@final
class Worker(CloudWorker):
    """A worker whose replies are waited for; it stops at the end of its `with` block."""

    def __init__(self, script: str | None = None) -> None:
        self.replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        command = script and (sys.executable, "-c", PREAMBLE + textwrap.dedent(script))
        super().__init__(command or None, core_device=CORE, deliver=self.replies.put)

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reply(self) -> Reply:
        """Wait for the next reply."""
        return self.replies.get(timeout=30)

    async def next(self) -> Reply:
        """Wait for the next reply while the cloud runs."""
        return await asyncio.to_thread(self.reply)

    @property
    def process_id(self) -> int:
        """The child's."""
        assert self._child is not None
        return self._child.pid


PREAMBLE = """
import json, os, sys, time
def say(**message):
    print(json.dumps(message), flush=True)
"""
READY = "say(ready=True)\n"


def disassociate(request_id: int, *names: str, issued_seconds: float | None = None) -> Batch:
    """Return a batch that is issued now."""
    return Batch(request_id, "disassociate", names, issued_seconds or time.monotonic())


async def test_a_cycle(cloud: Cloud) -> None:
    """Listing, batch and listing again go through one child, replies in order."""
    cloud.associate("a", "b", "c")
    stamps = dict(cloud.associations)
    cloud.faults = [Fault(DISASSOCIATE, error_entries={"b": "Busy"})]
    with Worker() as worker:
        assert await worker.next() == Ready()
        worker.send(ListPage(1))
        assert await worker.next() == Listed(1, tuple(stamps.items()), None)
        worker.send(disassociate(2, "a", "b"))
        worker.send(Batch(3, "associate", ("d",), time.monotonic()))
        assert await worker.next() == Batched(2, (EntryError("b", "Busy", "b: Busy"),))
        assert await worker.next() == Batched(3, ())
    assert sorted(cloud.associations) == ["b", "c", "d"]
    assert worker.replies.empty()


async def test_failures_arrive_as_such(cloud: Cloud) -> None:
    """A request that fails leaves the child fit for the next."""
    cloud.faults = [Fault(LIST, status=403, error="AccessDeniedException")]
    with Worker() as worker:
        assert await worker.next() == Ready()
        worker.send(ListPage(1))
        worker.send(disassociate(2, "a", issued_seconds=time.monotonic() - 3))
        worker.send(ListPage(3))
        denied, old, listed = [await worker.next() for _ in range(3)]
    assert isinstance(denied, CallFailed)
    assert (denied.request_id, denied.kind, denied.code) == (1, "accessDenied", "AccessDeniedException")
    assert isinstance(old, CallFailed)
    assert (old.request_id, old.kind) == (2, "tooOld")
    assert listed == Listed(3, (), None)
    assert DISASSOCIATE not in {call.operation for call in cloud.calls}


async def test_not_ready_is_one_failure(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    """A child without credentials says so, and its end says nothing more."""
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong")
    with Worker() as worker:
        failed = await worker.next()
    assert isinstance(failed, CallFailed)
    assert (failed.request_id, failed.kind) == (None, "credentials")
    assert worker.replies.empty()
    assert LIST not in {call.operation for call in cloud.calls}


async def test_a_call_that_hangs_ends_with_kill(cloud: Cloud) -> None:
    """After a deadline the caller ends the child; nothing is delivered for it."""
    held = hold(cloud)
    with Worker() as worker:
        assert await worker.next() == Ready()
        worker.send(ListPage(1))
        await held.wait()
        worker.kill()
        worker.stop()
        assert worker.replies.empty()
        assert gone(worker.process_id)


async def test_stop_does_not_wait_for_a_call(cloud: Cloud) -> None:
    """The component ends in time even while a call hangs."""
    held = hold(cloud)
    with Worker() as worker:
        assert await worker.next() == Ready()
        worker.send(ListPage(1))
        await held.wait()
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < 5
        assert gone(worker.process_id)


async def test_the_child_dies_with_its_parent(cloud: Cloud) -> None:
    """A parent that is killed in the middle of a call takes the child with it."""
    held = hold(cloud)
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(f"""
            import queue
            from client_device_pruner.cloud_worker import CloudWorker, ListPage
            replies = queue.SimpleQueue()
            worker = CloudWorker(core_device={CORE!r}, deliver=replies.put)
            worker.start()
            print(type(replies.get()).__name__, flush=True)
            worker.send(ListPage(1))
            replies.get()
        """),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": SRC},
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    assert await parent.stdout.readline() == b"Ready\n"
    await held.wait()
    parent.kill()
    # Both hold standard error open: it ends when both are gone, and the call alone would take 15 s.
    assert await asyncio.wait_for(parent.stderr.read(), 10) == b""
    assert await parent.wait() == -signal.SIGKILL


def hold(cloud: Cloud) -> asyncio.Event:
    """Leave calls without an answer from now on; the event tells that one has come."""
    held = asyncio.Event()

    async def wait(_: Call) -> None:
        held.set()
        await asyncio.Event().wait()

    cloud.before = wait
    return held


def gone(process_id: int) -> bool:
    """Tell whether a child of ours is gone and reaped."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, 0)
        return False
    return True


def test_hears_the_core_device_and_the_parent() -> None:
    """The child is told whose list it works on, and who its parent is."""
    with Worker("say(id=None, error={'kind': 'internal', 'code': '', 'message': ' '.join(sys.argv[1:])})") as w:
        assert w.reply() == CallFailed(None, "internal", "", f"--core-device {CORE} --parent {os.getpid()}")


def test_the_child_finds_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's own package comes first, what the recipe put on the path after it."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    path = "os.environ['PYTHONPATH']"
    with Worker(f"say(id=None, error={{'kind': 'internal', 'code': '', 'message': {path}}})") as worker:
        assert worker.reply() == CallFailed(None, "internal", "", f"{SRC}{os.pathsep}/elsewhere")


@pytest.mark.parametrize(
    ("end", "told"), [("sys.exit(3)", "status 3"), ("os.kill(os.getpid(), 9)", "signal 9"), ("", "status 0")]
)
def test_an_unasked_end_is_a_crash(end: str, told: str) -> None:
    """However the child ends, if nobody asked for it, it has crashed; later requests have failed."""
    with Worker(READY + end) as worker:
        assert worker.reply() == Ready()
        failed = worker.reply()
        assert isinstance(failed, CallFailed)
        assert (failed.request_id, failed.kind) == (None, "crashed")
        assert told in failed.message
        worker.send(ListPage(7))
        failed = worker.reply()
        assert isinstance(failed, CallFailed)
        assert (failed.request_id, failed.kind) == (7, "crashed")
    assert worker.replies.empty()


def test_a_child_that_no_longer_listens() -> None:
    """A broken pipe is a crash."""
    with Worker("os.close(0)\n" + READY + "time.sleep(60)") as worker:
        assert worker.reply() == Ready()
        worker.send(ListPage(1))
        failed = worker.reply()
    assert isinstance(failed, CallFailed)
    assert (failed.request_id, failed.kind) == (1, "crashed")


def test_a_child_that_takes_nothing_does_not_block() -> None:
    """A full pipe ends the child instead of holding up the component."""
    with Worker(READY + "time.sleep(60)") as worker:
        assert worker.reply() == Ready()
        for request_id in range(9):
            worker.send(disassociate(request_id, *(f"{number:0128}" for number in range(100))))
        failed = worker.reply()
        assert isinstance(failed, CallFailed)
        assert failed.kind == "crashed"


def test_a_child_that_hangs_after_closing_its_output() -> None:
    """Without an output the child is of no use: it is ended."""
    with Worker(READY + "os.close(1); time.sleep(60)") as worker:
        assert worker.reply() == Ready()
        failed = worker.reply()
        assert isinstance(failed, CallFailed)
        assert (failed.request_id, failed.kind) == (None, "crashed")


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[]",
        "{}",
        '{"ready": 1}',
        '{"ready": false}',
        '{"ready": false, "error": {"kind": "internal"}}',
        '{"id": 1}',
        '{"id": "1", "ok": {"devices": [], "nextToken": null}}',
        '{"id": 2, "ok": {"devices": [], "nextToken": null}}',
        '{"id": 1, "ok": {"errors": []}}',
        '{"id": 1, "ok": {"devices": []}}',
        '{"id": 1, "ok": {"devices": [["a"]], "nextToken": null}}',
        '{"id": 1, "ok": {"devices": [[1, 1]], "nextToken": null}}',
        '{"id": 1, "ok": {"devices": [["a", "1"]], "nextToken": null}}',
        '{"id": 1, "ok": {"devices": [["a", NaN]], "nextToken": null}}',
        '{"id": 1, "error": "no"}',
        "[" * 100_000,
        "x" * 2_000_000,
    ],
    ids=lambda line: line[:60],
)
def test_a_line_that_breaks_the_protocol_ends_the_child(line: str) -> None:
    """Nothing that the child says afterwards would be believed."""
    after = '{"id": 1, "ok": {"devices": [], "nextToken": null}}'
    script = f"{READY}sys.stdin.readline()\nline = {line[:2_000]!r}\n"
    script += f"print((line * 1000)[:{len(line)}])\nprint({after!r}, flush=True)\ntime.sleep(60)"
    with Worker(script) as worker:
        assert worker.reply() == Ready()
        worker.send(ListPage(1))
        failed = worker.reply()
    assert isinstance(failed, CallFailed)
    assert (failed.request_id, failed.kind) == (None, "garbage")
    assert worker.replies.empty()


def test_an_answer_to_a_batch_is_checked_too() -> None:
    """An error without its thing is no answer."""
    entry = "{'code': 'x', 'message': 'y'}"
    with Worker(f"{READY}sys.stdin.readline()\nsay(id=1, ok={{'errors': [{entry}]}})\ntime.sleep(60)") as worker:
        assert worker.reply() == Ready()
        worker.send(disassociate(1, "a"))
        failed = worker.reply()
    assert isinstance(failed, CallFailed)
    assert failed.kind == "garbage"


def test_a_child_that_cannot_be_started() -> None:
    """A missing interpreter is a crash, and the worker can be stopped all the same."""
    replies: list[Reply] = []
    worker = CloudWorker(("/nonexistent/python",), core_device=CORE, deliver=replies.append)
    worker.start()
    worker.stop()
    [failed] = replies
    assert isinstance(failed, CallFailed)
    assert (failed.request_id, failed.kind) == (None, "crashed")


def test_stop_is_quiet_and_can_be_repeated() -> None:
    """Stopping delivers nothing, reaps, ends the thread, and does no harm before the start or twice."""
    worker = Worker(f"{READY}sys.stdin.read()")
    worker.stop()
    with worker:
        assert worker.reply() == Ready()
        worker.stop()
        assert gone(worker.process_id)
        assert "cloud" not in {thread.name for thread in threading.enumerate()}
    worker.send(ListPage(1))
    failed = worker.reply()
    assert isinstance(failed, CallFailed)
    assert (failed.request_id, failed.kind) == (1, "crashed")
    assert worker.replies.empty()


@pytest.mark.parametrize("reply", [Ready(), Listed(0, (), None), Batched(0, ()), CallFailed(None, "", "", "")])
def test_no_reply_is_taken_for_none(reply: Reply) -> None:
    """Each is true, and tells the request that it answers, if there is one."""
    assert reply
    assert reply.request_id in (0, None)


def test_every_request_has_a_deadline() -> None:
    """Deadlines exceed what the time-outs and attempts can take."""
    assert DEADLINE_SECONDS[Batch] > 5 + 15 + 9
    assert DEADLINE_SECONDS[ListPage] > 3 * (5 + 15) + 13 + 9
    assert DEADLINE_SECONDS[Ready] > 9 + 20
