"""What answers the component: EMQX' HTTP API on a real socket, and the child process that calls the cloud."""

from __future__ import annotations

import json
import queue
import socketserver
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.config.bridge import EMQX
from client_device_pruner.config.emqx import Access
from client_device_pruner.presence.client_list import Answer, Asked, ClientList, ClientListReader
from client_device_pruner.pruning.cloud import Batched, CloudChild, Listed, Ready, Reply, Request, encode
from fakes.cloud import FakeCloud
from fakes.component import CLIENT_LIST_ON
from fakes.core_device import CoreDevice
from fuzz.anything import ALIVE, DEAD, a_core, as_json, damaged, lives_on, nearly, search

WAIT_SECONDS = 20.0
CLIENT = {"clientid": ALIVE[0], "connected": True}
PAGE = {"data": [{"clientid": "mqtt-bridge-1", "connected": True}, CLIENT], "meta": {"hasnext": False, "count": 2}}
STATUS = ("200 OK", "200 OK", "204 No Content", "301 Moved", "401 Unauthorized", "404 Not Found", "500 Failed")
HEADERS = ("X: y", "X: y", "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Content-Length: 9")
LISTED = encode(Listed({name: 1_700_000_001.0 + number for number, name in enumerate((*ALIVE, *DEAD))}, None))
REPLIES = (encode(Ready()), LISTED, encode(Batched({DEAD[0]: ("Code", "message")})), LISTED)


def http(document: Any) -> st.SearchStrategy[bytes]:
    """Answers of HTTP, with nearly this document."""
    head = st.builds("HTTP/1.1 {}\r\n{}\r\n\r\n".format, st.sampled_from(STATUS), st.sampled_from(HEADERS))
    whole = st.builds(lambda head, body: head.encode() + body, head, as_json(document))
    return st.one_of(whole, whole, whole.flatmap(damaged))


@pytest.fixture(scope="module")
def server() -> Iterator[socketserver.TCPServer]:
    """Sends what its attribute `answer` holds to each connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            login = b"POST" in self.request.recv(1 << 16)
            self.request.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"token": "a"}' if login else self.server.answer)  # type: ignore[attr-defined]

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@search(60)
@given(page=http(PAGE), client=http(CLIENT))
def test_client_lists_of_any_kind(server: Any, page: bytes, client: bytes) -> None:
    """Each call ends with an answer that does no harm; only what the API says in as many words is not connected."""
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    reader = ClientListReader(answers.put, lambda: 0.0)
    access = Access(f"http://127.0.0.1:{server.server_address[1]}/api/v5", "pruner", "secret", "")
    server.answer = page
    reader.fetch(access)
    listed = answers.get(timeout=WAIT_SECONDS)
    server.answer = client
    reader.ask(access, ALIVE[:1], 1)
    asked = answers.get(timeout=WAIT_SECONDS)
    if isinstance(asked, Asked) and not asked.connected:
        assert b'"connected": false' in client
    if isinstance(listed, ClientList):
        with a_core(b"") as core:
            core.connected.update(listed.names)
            core.start()
            assert core.ipc is not None
            core.ipc.configure(EMQX, CLIENT_LIST_ON)
            core.run(60)
            lives_on(core)


class Talking(FakeCloud):
    """The cloud of a core in whose place a real child answers: the lines, one after the other."""

    def __init__(self, core: CoreDevice, directory: Path, lines: Sequence[bytes]) -> None:
        super().__init__(core.clock.monotonic)
        self.associations = core.cloud.associations
        for number, line in enumerate(lines):
            (directory / str(number)).write_bytes(line.rstrip(b"\n") + b"\n")
        self.told: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        says = 'cd "$0" && cat 0 && for each in [1-9]; do read -r _ && cat $each; done'
        self.child = CloudChild("core-1", self.told.put, ("sh", "-c", says, str(directory)))

    def start(self) -> Reply:
        """See `FakeCloud`."""
        self.child.start()
        return self.told.get(timeout=WAIT_SECONDS)

    def answer(self, request: Request) -> Reply | None:
        """See `FakeCloud`."""
        self.child.send(request)
        return self.told.get(timeout=WAIT_SECONDS)


def said(line: bytes) -> st.SearchStrategy[bytes]:
    """What a child may say in place of a line."""
    changed = nearly(json.loads(line)).map(lambda message: json.dumps(message).encode() + b"\n")
    return st.one_of(st.just(line), changed, damaged(line), st.just(b"a warning\n" + line))


@search(80)
@given(lines=st.tuples(*map(said, REPLIES)))
def test_a_child_that_says_anything(lines: tuple[bytes, ...]) -> None:
    """Whatever it says in a cycle in which devices are to go, that cycle ends, and others follow."""
    with a_core() as core, tempfile.TemporaryDirectory() as directory:
        core.run_until(lambda: core.of_type("marked"), 3_000)
        cycles = len(core.of_type("cycle"))
        cloud, core.cloud = core.cloud, (talking := Talking(core, Path(directory), lines))
        core.run_until(lambda: len(core.of_type("cycle")) > cycles, 1_000)
        talking.child.stop()
        core.cloud = cloud
        lives_on(core, 3_000)
