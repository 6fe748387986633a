"""The parent's side of the child process: against the real one and the local core's cloud, and against bad ones."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import client_device_pruner
from client_device_pruner.pruning.cloud import DEADLINE_SECONDS, Batch, CallFailed, CloudChild, ListPage, Ready, Reply
from fakes.cloud_child import CORE, Child, failed
from local_core.cloud import Call, Cloud

SRC = str(Path(client_device_pruner.__file__).parent.parent)
READY = "say('Ready')\n"


def is_gone() -> bool:
    """Whether the child has no thread any more: that ends once the process is gone and reaped."""
    return "cloud" not in {thread.name for thread in threading.enumerate()}


def hold(cloud: Cloud) -> asyncio.Event:
    """Leave calls without an answer from now on; the event tells that one has come."""
    held = asyncio.Event()

    async def wait(_: Call) -> None:
        held.set()
        await asyncio.Event().wait()

    cloud.before = wait
    return held


async def test_a_call_that_hangs_holds_nothing_up(cloud: Cloud) -> None:
    """After a deadline, or when the component ends, the child is ended; nothing is delivered for the call."""
    held = hold(cloud)
    with Child() as child:
        assert await child.next() == Ready()
        child.send(ListPage())
        await held.wait()
        child.stop()
        assert child.replies.empty()
        assert is_gone()


async def test_the_child_dies_with_its_parent(cloud: Cloud) -> None:
    """A parent that is killed in the middle of a call takes the child with it."""
    held = hold(cloud)
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(f"""
            import queue
            from client_device_pruner.pruning.cloud import CloudChild, ListPage
            replies = queue.SimpleQueue()
            child = CloudChild({CORE!r}, replies.put)
            child.start()
            print(type(replies.get()).__name__, flush=True)
            child.send(ListPage())
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
    # Both hold standard error open: it ends when both are gone; the call alone would go on for as long as it is held.
    assert await asyncio.wait_for(parent.stderr.read(), 60) == b""
    assert await parent.wait() == -signal.SIGKILL


def test_the_child_is_told_what_it_needs() -> None:
    """Whose list it works on, who its parent is, and where the package is (case 32)."""
    message = "' '.join([*sys.argv[1:], os.environ['PYTHONPATH'].split(os.pathsep)[0]])"
    with Child(f"say('CallFailed', kind='internal', code='', message={message})") as child:
        assert child.reply() == CallFailed("internal", "", f"{CORE} {os.getpid()} {SRC}")


@pytest.mark.parametrize(
    ("end", "told"), [("sys.exit(3)", "status 3"), ("os.kill(os.getpid(), 9)", "signal 9"), ("", "status 0")]
)
def test_an_unasked_end_is_a_crash(end: str, told: str) -> None:
    """However the child ends, if nobody asked for it, it has crashed; later requests have failed."""
    with Child(READY + end) as child:
        assert child.reply() == Ready()
        crash = failed(child.reply())
        assert crash.kind == "crashed"
        assert told in crash.message
        child.send(ListPage())
        assert failed(child.reply()).kind == "crashed"
    assert child.replies.empty()


@pytest.mark.parametrize("line", ["hello", "[]", "{}", '["Other", {}]', '["Listed", {"more": 1}]'])
def test_a_line_that_is_no_reply_is_a_failure(line: str) -> None:
    """What was asked has failed."""
    with Child(f"{READY}sys.stdin.readline()\nprint({line!r}, flush=True)\ntime.sleep(600)") as child:
        assert child.reply() == Ready()
        child.send(ListPage())
        assert failed(child.reply()).kind == "crashed"


def test_a_child_that_cannot_be_started() -> None:
    """A missing interpreter is a crash, and the child can be stopped all the same."""
    replies: list[Reply] = []
    child = CloudChild(CORE, replies.append, ("/nonexistent/python",))
    child.start()
    child.stop()
    assert [failed(reply).kind for reply in replies] == ["crashed"]


def test_stop_is_quiet_and_can_be_repeated() -> None:
    """Stopping delivers nothing, and does no harm before the start or twice."""
    child = Child(f"{READY}sys.stdin.read()")
    child.stop()
    with child:
        assert child.reply() == Ready()
        child.stop()
        assert is_gone()
    child.send(ListPage())
    assert failed(child.reply()).kind == "crashed"
    assert child.replies.empty()


def test_deadlines_exceed_what_the_time_outs_and_attempts_can_take() -> None:
    """A connection takes 5 s at the most, a wait for bytes 15 s, credentials 9 s, pauses between attempts 13 s."""
    assert DEADLINE_SECONDS[Batch] > 5 + 15 + 9
    assert DEADLINE_SECONDS[ListPage] > 3 * (5 + 15) + 13 + 9
    assert DEADLINE_SECONDS[Ready] > 9 + 20
