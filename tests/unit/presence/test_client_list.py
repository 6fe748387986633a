"""The client list, asked for over HTTP from the local core's API of EMQX."""

from __future__ import annotations

import asyncio
import json
import queue
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.config.emqx import Access
from client_device_pruner.presence import client_list
from client_device_pruner.presence.client_list import Answer, Asked, ClientList, ClientListReader, ListFailed
from fakes.client_list import FakeClientLists
from local_core.emqx_api import CLIENT, CLIENTS, EMPTY_PAGE, EmqxApi
from local_core.http_server import Fault

SECRET = "s3cret:with-colon"
PATIENCE_SECONDS = 60.0
BRIDGE = "mqtt-bridge-1"
LOGIN = "POST /api/v5/login"
PAGE = "GET /api/v5/clients?conn_state=connected&limit=1000&page="


class Clients:
    """All that the API asks a broker for; an id that has a session and no connection is that of a persistent one."""

    def __init__(self) -> None:
        self.connections = {BRIDGE: 0}
        self.sessions: set[str] = set()


class Site:
    """An API that knows the login `pruner`, of a broker with the bridge alone, and a reader that has not called yet."""

    def __init__(self) -> None:
        self.clients = Clients()
        self.api = EmqxApi(self.clients)  # type: ignore[arg-type] # it asks no more of a broker
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.reader = ClientListReader(self.answers.put, lambda: 100.0)

    def connect(self, *names: str) -> None:
        """Connect clients."""
        self.clients.connections |= dict.fromkeys(names, 0)

    def login(self, password: str = SECRET) -> Access:
        """Access by the login of EMQX' configuration."""
        return Access(url=self.api.url, username="pruner", password=password, credentials_file="")

    def file(self, directory: Path, content: str | bytes, mode: int = 0o600) -> Access:
        """Access by a credentials file with this content."""
        file = directory / "credentials"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        file.chmod(mode)
        return Access(url=self.api.url, username="", password="", credentials_file=str(file))

    async def fetch(self, access: Access | None = None) -> Answer:
        """Fetch the list, by the login if nothing else is said."""
        self.reader.fetch(access or self.login())
        return await self.answer()

    async def ask(self, *names: str) -> Answer:
        """Ask for names."""
        self.reader.ask(self.login(), names, 7)
        return await self.answer()

    async def answer(self) -> Answer:
        """Wait for the next answer; before that the API, which runs in the same thread, answers nothing."""
        return await asyncio.to_thread(self.answers.get, timeout=PATIENCE_SECONDS)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A site whose API runs."""
    site = Site()
    await site.api.start(site.api.configuration(password=SECRET))
    yield site
    await site.api.stop()


def reason_of(answer: Answer) -> str:
    """Why a call failed; no password is in it."""
    assert isinstance(answer, ListFailed), answer
    assert SECRET not in repr(answer)
    return answer.reason


def page_of(data: Any, *, more: Any = False) -> Fault:
    """A page with these entries, in place of what is so."""
    document = {"data": data, "meta": {"page": 1, "limit": 1000, "hasnext": more}}
    return Fault(operation=CLIENTS, times=None, body=json.dumps(document).encode())


class TestFetch:
    """The whole list."""

    async def test_names_who_is_connected_on_all_pages(self, site: Site) -> None:
        """All pages make one answer; persistent sessions without a connection are left out."""
        site.connect(*(f"pump-{number}" for number in range(2_500)))
        site.clients.sessions.add("lamp")

        answer = await site.fetch()

        names = frozenset({BRIDGE, *(f"pump-{number}" for number in range(2_500))})
        assert answer == ClientList(names, 100.0, 100.0)
        assert site.api.calls == [LOGIN, *(f"{PAGE}{page}" for page in (1, 2, 3))]

    async def test_pages_that_shift(self, site: Site) -> None:
        """One that comes makes some client stand on two pages; one that goes, on none: it is asked for by name."""
        site.connect(*(f"pump-{number}" for number in range(1_500)))

        def come(page: int) -> None:
            if page == 2:
                site.clients.connections = {"new": 0, **site.clients.connections}

        def go(page: int) -> None:
            if page == 2:
                del site.clients.connections["new"]

        site.api.before_page = come
        answer = await site.fetch()
        assert isinstance(answer, ClientList)
        assert answer.names == site.clients.connections.keys() - {"new"}

        site.api.before_page = go
        answer = await site.fetch()
        assert isinstance(answer, ClientList)
        (missed,) = site.clients.connections.keys() - answer.names
        assert await site.ask(missed) == Asked(7, frozenset({missed}))

    async def test_asks_the_broker_and_no_proxy(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """The core's proxy knows nothing of its loopback."""
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")

        assert isinstance(await site.fetch(), ClientList)

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            (Fault(operation=CLIENTS, status=503), "answered 503"),
            (Fault(operation=CLIENTS, status=404, error="API_NOT_EXIST"), r"404 API_NOT_EXIST: .*end in /api/v5\?"),
            (Fault(operation=CLIENTS, drop=True), "did not answer"),
            (Fault(operation=CLIENTS, body=b"<html>"), "page 1 .* undocumented"),
            (Fault(operation=CLIENTS, body=b"[" * 100_000), "page 1 .* undocumented"),
            (Fault(operation=CLIENTS, body=b"{}"), "page 1 .* undocumented"),
            (Fault(operation=CLIENTS, body=b" " * (16 << 20) + b"  "), "more than 16 MiB"),
            (Fault(operation=CLIENTS, body=EMPTY_PAGE), "names no client on page 1"),
            (Fault(operation=CLIENTS, skip=1, body=EMPTY_PAGE), "names no client on page 2"),
            (page_of({}), "page 1 .* undocumented"),
            (page_of([{"clientid": "a", "connected": True}], more="false"), "page 1 .* undocumented"),
            (page_of(["a"]), "the client list failed: TypeError"),
            (page_of([{"clientid": "a"}]), "the client list failed: KeyError"),
            (page_of([{"clientid": "a", "connected": True}], more=True), "more than 100 pages"),
        ],
        ids=lambda value: value[:20] if isinstance(value, str) else "",
    )
    async def test_an_odd_answer_is_none(self, site: Site, fault: Fault, reason: str) -> None:
        """No client counts as not connected on the strength of a list that is not whole and as documented."""
        site.connect(*(f"pump-{number}" for number in range(1_500)))
        site.api.faults.append(fault)

        failed = await site.fetch()

        assert re.search(reason, reason_of(failed)), failed

    async def test_a_port_that_nobody_listens_on(self, site: Site) -> None:
        """The reason names the address."""
        await site.api.stop()

        assert f"127.0.0.1:{site.api.port}/api/v5 did not answer" in reason_of(await site.fetch())

    @pytest.mark.parametrize(
        "head",
        [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "],
        ids=["silent", "slow", "slow in its header"],
    )
    async def test_an_answer_takes_no_longer_than_the_deadline(
        self, site: Site, head: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither silence nor bytes that come one by one hold a call up."""
        assert client_list.DEADLINE_SECONDS == 10.0
        monkeypatch.setattr(client_list, "DEADLINE_SECONDS", 0.2)
        with trickling(head) as access:
            assert "did not answer" in reason_of(await site.fetch(access))

    async def test_a_redirect_is_not_followed(self, site: Site) -> None:
        """A login goes nowhere else."""
        head = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        with trickling(head) as access:
            assert reason_of(await site.fetch(access)).endswith(": 302")

    async def test_one_fetch_at_a_time(self, site: Site) -> None:
        """A second one meanwhile is none, its answer is the first one's; afterwards the next begins."""
        site.reader.fetch(site.login())

        assert isinstance(await site.fetch(), ClientList)
        assert isinstance(await site.fetch(), ClientList)
        assert site.answers.empty()

    async def test_after_it_is_closed_nothing_is_handed_in(self, site: Site) -> None:
        """An answer that comes too late disturbs nobody."""
        site.reader.fetch(site.login())
        site.reader.close()
        for thread in threading.enumerate():
            if thread.name == "client-list":
                await asyncio.to_thread(thread.join, PATIENCE_SECONDS)

        assert site.api.calls == [LOGIN, f"{PAGE}1"]
        assert site.answers.empty()


class TestLogin:
    """Logins, tokens and credentials files."""

    async def test_a_token_is_kept_and_renewed_once_when_it_is_refused(self, site: Site) -> None:
        """Case 37: after the broker restarted, even between two pages, one new login, then the call again."""
        site.connect(*(f"pump-{number}" for number in range(1_500)))
        await site.fetch()
        await site.fetch()
        assert site.api.calls.count(LOGIN) == 1
        site.api.calls.clear()
        site.api.before_page = lambda page: site.api.refuse_tokens() if page == 1 else None

        assert isinstance(await site.fetch(), ClientList)
        assert site.api.calls == [f"{PAGE}1", f"{PAGE}2", LOGIN, f"{PAGE}2"]

    async def test_a_refused_login_is_told_and_not_repeated_by_questions(self, site: Site) -> None:
        """It is told with its code, and tried again only with the next fetch."""
        await site.api.start(site.api.configuration(password="another"))
        told = reason_of(await site.fetch())
        assert "does not accept the login of 'pruner'" in told
        assert told.endswith("401 BAD_USERNAME_OR_PWD")

        assert reason_of(await site.ask("pump-1")) == told
        assert site.api.calls == [LOGIN]
        await site.api.start(site.api.configuration(password=SECRET))
        assert isinstance(await site.fetch(), ClientList)

    async def test_a_token_that_is_never_accepted(self, site: Site) -> None:
        """One new login a call, not more."""
        site.api.token_seconds = 0.0

        assert "401 BAD_TOKEN" in reason_of(await site.fetch())
        assert site.api.calls.count(LOGIN) == 1
        await site.fetch()
        assert site.api.calls.count(LOGIN) == 2

    async def test_another_login_is_used_at_once(self, site: Site) -> None:
        """A deployment that corrects the password needs no restart."""
        assert "does not accept" in reason_of(await site.fetch(site.login("wrong")))

        assert isinstance(await site.ask("pump-1"), Asked)

    async def test_a_file_with_an_api_key(self, site: Site, tmp_path: Path) -> None:
        """`key:secret` goes by HTTP Basic; the secret may hold a colon."""
        site.api.keys["4711"] = SECRET

        assert isinstance(await site.fetch(site.file(tmp_path, f"4711:{SECRET}\n")), ClientList)
        assert LOGIN not in site.api.calls

    async def test_a_file_with_a_login(self, site: Site, tmp_path: Path) -> None:
        """What is refused as a key logs in, once."""
        access = site.file(tmp_path, f"pruner:{SECRET}")

        assert isinstance(await site.fetch(access), ClientList)
        assert isinstance(await site.fetch(access), ClientList)
        assert site.api.calls == [f"{PAGE}1", LOGIN, f"{PAGE}1", f"{PAGE}1"]

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ((f"nobody:{SECRET}",), "does not accept the key or login in"),
            *(((f"pruner:{SECRET}", mode), "chmod 600") for mode in (0o640, 0o604, 0o620, 0o610, 0o644)),
            *(((content,), "must hold one line") for content in ("", "\n", "secret", "key:", ":secret")),
            ((b"\xff:\xff",), "cannot be read"),
        ],
    )
    async def test_a_file_that_will_not_do(self, site: Site, tmp_path: Path, given: tuple[Any, ...], told: str) -> None:
        """The reason names the file and what to do; what others can open, or holds no credentials, is not sent."""
        reason = reason_of(await site.fetch(site.file(tmp_path, *given)))

        assert told in reason
        assert f"presence.clientList.credentialsFile {tmp_path}/credentials" in reason
        assert bool(site.api.calls) is ("nobody" in str(given))

    async def test_what_is_no_file_is_refused(self, site: Site, tmp_path: Path) -> None:
        """Missing, or a directory."""
        for path in (tmp_path / "missing", tmp_path):
            access = Access(url=site.api.url, username="", password="", credentials_file=str(path))

            assert f"presence.clientList.credentialsFile {path} cannot be read" in reason_of(await site.fetch(access))


class TestAsk:
    """Names, one by one."""

    async def test_answers_who_of_them_is_connected(self, site: Site) -> None:
        """A session without a connection and an unknown name are not connected; names are escaped."""
        site.connect("pump:1/a b")
        site.clients.sessions.add("lamp")

        answer = await site.ask("pump:1/a b", "lamp", "nobody")

        assert answer == Asked(7, frozenset({"pump:1/a b"}))
        assert site.api.calls[1:] == [f"GET /api/v5/clients/{name}" for name in ("pump%3A1%2Fa%20b", "lamp", "nobody")]

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 500},
            {"status": 404, "error": "API_NOT_EXIST"},
            {"body": b'{"clientid": "lamp", "connected": true}'},
            {"body": b'{"clientid": "pump", "connected": null}'},
            {"body": b""},
        ],
    )
    async def test_anything_else_is_no_answer(self, site: Site, fault: dict[str, Any]) -> None:
        """One name without an answer leaves the whole question without."""
        site.connect("lamp")
        site.api.faults.append(Fault(operation=CLIENT, skip=1, **fault))

        failed = await site.ask("lamp", "pump")

        assert "asked for pump" in reason_of(failed)
        assert isinstance(failed, ListFailed)
        assert failed.request == 7


async def test_the_fake_answers_as_the_reader_does(site: Site) -> None:
    """What tests and the simulation build on says the same of the same broker."""
    answers: list[Answer] = []
    fake = FakeClientLists(answers.append, lambda: 100.0)
    site.connect("pump")
    fake.connected = set(site.clients.connections)
    access = site.login()

    fake.fetch(access)
    fake.held = True
    fake.ask(access, ["pump", "lamp"], 7)
    assert len(answers) == 1
    fake.release()

    assert answers == [await site.fetch(), await site.ask("pump", "lamp")]


@contextmanager
def trickling(head: bytes) -> Iterator[Access]:
    """Serve one connection: the head at once, then, if there was one, a space every 10 ms until it is closed."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _address = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(head)
                while not over.wait(0.01):
                    connection.sendall(b" " if head else b"")

        thread = threading.Thread(target=serve)
        thread.start()
        yield Access(f"http://127.0.0.1:{listener.getsockname()[1]}", "a", "b", "")
        over.set()
        thread.join()
