"""The child process that calls the cloud, a real one, whose replies are waited for."""

from __future__ import annotations

import asyncio
import queue
import sys
import textwrap
import time
from typing import Literal, final

from client_device_pruner.pruning.cloud import Batch, CallFailed, CloudChild, Reply, Request

CORE = "core-1"
PREAMBLE = """
import json, os, sys, time
def say(name, /, **message):
    print(json.dumps([name, message]), flush=True)
"""


@final
class Child(CloudChild):
    """A child, or a script in its place; it stops at the end of its `with` block."""

    def __init__(self, script: str | None = None) -> None:
        self.replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        if script is None:
            super().__init__(CORE, self.replies.put)
        else:
            super().__init__(CORE, self.replies.put, (sys.executable, "-c", PREAMBLE + textwrap.dedent(script)))

    def __enter__(self) -> Child:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reply(self) -> Reply:
        """Wait for the next reply."""
        return self.replies.get(timeout=60)

    async def next(self) -> Reply:
        """Wait for the next reply while the cloud runs."""
        return await asyncio.to_thread(self.reply)

    async def ask(self, request: Request) -> Reply:
        """Send a request and wait for its reply."""
        self.send(request)
        return await self.next()

    async def batch(self, operation: Literal["associate", "disassociate"], *names: str, age: float = 0.0) -> Reply:
        """Ask for a batch that was issued so many seconds ago."""
        return await self.ask(Batch(operation, names, time.monotonic() - age))


def failed(reply: Reply) -> CallFailed:
    """The failure that a reply is."""
    assert isinstance(reply, CallFailed), reply
    return reply
