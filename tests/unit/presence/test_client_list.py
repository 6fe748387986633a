"""The client list, asked for over a real HTTP connection."""

from __future__ import annotations

import base64
import json
import queue
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from client_device_pruner.config.emqx import Access
from client_device_pruner.presence import client_list
from client_device_pruner.presence.client_list import (
    Answer,
    Asked,
    ClientList,
    ClientListReader,
    ListFailed,
)
from fakes.client_list import FakeClientLists

SECRET = "s3cret:with-colon"
PATIENCE_SECONDS = 60.0


class Emqx:
    """EMQX' HTTP API as far as the client list needs it.

    Attributes:
        clients: client ids, each with whether it is connected.
        tokens: the bearer tokens that are accepted.
        login: the user name that may log in, with SECRET; None: nobody.
        key: the API key that is accepted, with SECRET; None: none is.
        page_size: clients on a page, whatever limit is asked for.
        requests: method and target of each request.
        answers: from a target's beginning to status, body and headers that it is answered with instead.
        before_page: called with a page's number before it is made.
    """

    def __init__(self) -> None:
        self.clients: dict[str, bool] = {"mqtt-bridge-1": True}
        self.tokens: set[str] = set()
        self.login: str | None = "pruner"
        self.key: str | None = None
        self.page_size = 1_000
        self.requests: list[str] = []
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.before_page: Any = lambda _page: None
        self.port = 0

    @property
    def url(self) -> str:
        """The API's base."""
        return f"http://127.0.0.1:{self.port}/api/v5"

    def answer(self, method: str, target: str, authorization: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Answer one request."""
        self.requests.append(f"{method} {target}")
        split = urlsplit(target)
        for beginning, fixed in self.answers.items():
            if target.startswith(f"/api/v5{beginning}"):
                return fixed
        if target == "/api/v5/login":
            return self._log_in(json.loads(body))
        if not self._accepts(authorization):
            return _document(401, {"code": "BAD_TOKEN" if authorization.startswith("Bearer") else "BAD_API_KEY"})
        if split.path == "/api/v5/clients":
            return self._page(parse_qs(split.query))
        name = unquote(split.path.removeprefix("/api/v5/clients/"))
        if name in self.clients:
            return _document(200, {"clientid": name, "connected": self.clients[name]})
        return _document(404, {"code": "CLIENTID_NOT_FOUND", "message": "Client ID not found"})

    def _log_in(self, given: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        if self.login is None or given != {"username": self.login, "password": SECRET}:
            return _document(401, {"code": "BAD_USERNAME_OR_PWD", "message": "Auth failed"})
        self.tokens.add(f"token-{len(self.requests)}")
        return _document(200, {"token": f"token-{len(self.requests)}", "version": "5.1.1"})

    def _accepts(self, authorization: str) -> bool:
        basic = "Basic " + base64.b64encode(f"{self.key}:{SECRET}".encode()).decode()
        return authorization.removeprefix("Bearer ") in self.tokens or authorization == basic

    def _page(self, query: dict[str, list[str]]) -> tuple[int, bytes, dict[str, str]]:
        page = int(query["page"][0])
        self.before_page(page)
        everybody = sorted(self.clients.items())
        shown = everybody[(page - 1) * self.page_size : page * self.page_size]
        data = [{"clientid": name, "connected": connected, "ip_address": "10.0.0.1"} for name, connected in shown]
        return page_of(data, more=len(everybody) > page * self.page_size)


def page_of(data: Any, *, more: Any) -> tuple[int, bytes, dict[str, str]]:
    """A page with these entries."""
    return _document(200, {"data": data, "meta": {"page": 1, "limit": 1000, "hasnext": more}})


def _document(status: int, document: Any) -> tuple[int, bytes, dict[str, str]]:
    return status, json.dumps(document).encode(), {}


@pytest.fixture
def emqx() -> Iterator[Emqx]:
    """An API that listens."""
    api = Emqx()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply("GET")

        def do_POST(self) -> None:
            self.reply("POST")

        def reply(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content, headers = api.answer(method, self.path, self.headers.get("Authorization", ""), body)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        api.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield api
        server.shutdown()
        thread.join()


class Caller:
    """A reader whose answers are waited for."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.now = 100.0
        self.reader = ClientListReader(self.answers.put, lambda: self.now)

    def fetch(self, access: Access) -> Answer:
        """Fetch the list."""
        self.reader.fetch(access)
        return self.answers.get(timeout=PATIENCE_SECONDS)

    def ask(self, access: Access, *names: str) -> Answer:
        """Ask for names."""
        self.reader.ask(access, names, 7)
        return self.answers.get(timeout=PATIENCE_SECONDS)


@pytest.fixture
def caller() -> Caller:
    """A reader that has not called yet."""
    return Caller()


def login_to(emqx: Emqx, password: str = SECRET) -> Access:
    """Access by the login of EMQX' configuration."""
    return Access(url=emqx.url, username="pruner", password=password, credentials_file="")


def file_for(emqx: Emqx, directory: Path, content: str, mode: int = 0o600) -> Access:
    """Access by a credentials file with this content."""
    file = directory / "credentials"
    file.write_text(content)
    file.chmod(mode)
    return Access(url=emqx.url, username="", password="", credentials_file=str(file))


def reason_of(answer: Answer) -> str:
    """Why a call failed; no password is in it."""
    assert isinstance(answer, ListFailed), answer
    assert SECRET not in repr(answer)
    return answer.reason


class TestFetch:
    """The whole list."""

    def test_names_who_is_connected_on_all_pages(self, emqx: Emqx, caller: Caller) -> None:
        """All pages make one answer; persistent sessions without a connection are left out."""
        emqx.clients |= {f"pump-{number}": True for number in range(5)} | {"lamp": False}
        emqx.page_size = 3

        answer = caller.fetch(login_to(emqx))

        names = frozenset({"mqtt-bridge-1", *(f"pump-{number}" for number in range(5))})
        assert answer == ClientList(names, 100.0, 100.0)
        assert emqx.requests == ["POST /api/v5/login"] + [
            f"GET /api/v5/clients?conn_state=connected&limit=1000&page={page}" for page in (1, 2, 3)
        ]

    def test_who_comes_and_goes_between_pages_does_no_harm(self, emqx: Emqx, caller: Caller) -> None:
        """Pages that shift name some client twice: the list is what all pages name."""
        emqx.clients |= {"pump-1": True, "pump-2": True}
        emqx.page_size = 2
        emqx.before_page = lambda page: emqx.clients.update({"a-new-one": True}) if page == 2 else None

        answer = caller.fetch(login_to(emqx))

        assert isinstance(answer, ClientList)
        assert answer.names == {"mqtt-bridge-1", "pump-1", "pump-2"}

    def test_asks_the_broker_and_no_proxy(self, emqx: Emqx, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        """The core's proxy knows nothing of its loopback."""
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")

        assert isinstance(caller.fetch(login_to(emqx)), ClientList)

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            ((500, b"", {}), "500"),
            ((302, b"", {"Location": "http://127.0.0.1:1/"}), "answered 302"),
            ((404, b'{"code": "API_NOT_EXIST"}', {}), r"404 API_NOT_EXIST: does .*url end in /api/v5\?"),
            ((200, b"<html>", {}), "page 1 .* not documented"),
            ((200, b"[" * 100_000, {}), "page 1 .* not documented"),
            ((200, b"{}", {}), "page 1 .* not documented"),
            ((200, b"1", {"Content-Length": "9"}), "did not answer"),
            ((200, b" " * (16 << 20) + b"  ", {}), "more than 16 MiB"),
            (page_of([], more=False), "names no client on page 1"),
            (page_of({}, more=False), "page 1 .* not documented"),
            (page_of([{"clientid": "a", "connected": True}], more="false"), "page 1 .* not documented"),
            (page_of(["a"], more=False), "the client list failed: TypeError"),
            (page_of([{"clientid": "a"}], more=False), "the client list failed: KeyError"),
            (page_of([{"clientid": "a", "connected": True}], more=True), "more than 100 pages"),
        ],
        ids=lambda value: value[:20] if isinstance(value, str) else "",
    )
    def test_an_odd_answer_is_none(
        self, emqx: Emqx, caller: Caller, answer: tuple[int, bytes, dict[str, str]], reason: str
    ) -> None:
        """No client counts as not connected on the strength of a list that is not as documented."""
        emqx.answers["/clients"] = answer

        failed = caller.fetch(login_to(emqx))

        assert re.search(reason, reason_of(failed)), failed

    def test_a_page_that_is_empty_though_it_was_announced(self, emqx: Emqx, caller: Caller) -> None:
        """EMQX answers 200 with empty data when it fails inside: all pages or none."""
        emqx.clients |= {"pump-1": True, "pump-2": True}
        emqx.page_size = 2
        emqx.before_page = lambda page: emqx.clients.clear() if page == 2 else None

        assert "names no client on page 2" in reason_of(caller.fetch(login_to(emqx)))

    def test_a_port_that_nobody_listens_on(self, caller: Caller) -> None:
        """The reason names the address."""
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        access = Access(url=f"http://127.0.0.1:{port}/api/v5", username="a", password="b", credentials_file="")

        assert f"127.0.0.1:{port}/api/v5 did not answer" in reason_of(caller.fetch(access))

    @pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"], ids=["silent", "slow"])
    def test_an_answer_takes_no_longer_than_the_deadline(
        self, caller: Caller, head: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither silence nor bytes that come one by one hold a call up."""
        monkeypatch.setattr(client_list, "DEADLINE_SECONDS", 0.2)
        with trickling(head) as port:
            access = Access(url=f"http://127.0.0.1:{port}", username="a", password="b", credentials_file="")

            assert "did not answer" in reason_of(caller.fetch(access))

    def test_one_fetch_at_a_time(self, emqx: Emqx, caller: Caller) -> None:
        """A second one meanwhile is none, its answer is the first one's; afterwards the next begins."""
        may_answer = threading.Event()
        emqx.before_page = lambda _page: may_answer.wait(PATIENCE_SECONDS)
        caller.reader.fetch(login_to(emqx))
        caller.reader.fetch(login_to(emqx))
        may_answer.set()

        assert isinstance(caller.answers.get(timeout=PATIENCE_SECONDS), ClientList)
        assert isinstance(caller.fetch(login_to(emqx)), ClientList)
        assert caller.answers.empty()

    def test_after_it_is_closed_nothing_is_handed_in(self, emqx: Emqx, caller: Caller) -> None:
        """An answer that comes too late disturbs nobody."""
        calling, may_answer = threading.Event(), threading.Event()

        def wait(_page: int) -> None:
            calling.set()
            may_answer.wait(PATIENCE_SECONDS)

        emqx.before_page = wait
        caller.reader.fetch(login_to(emqx))
        assert calling.wait(PATIENCE_SECONDS)
        caller.reader.close()
        may_answer.set()
        for thread in threading.enumerate():
            if thread.name == "client-list":
                thread.join(PATIENCE_SECONDS)

        assert caller.answers.empty()


class TestLogin:
    """Logins, tokens and credentials files."""

    def test_a_token_is_kept_and_renewed_once_when_it_is_refused(self, emqx: Emqx, caller: Caller) -> None:
        """Case 37: after the broker restarted, one new login, then the call again."""
        caller.fetch(login_to(emqx))
        caller.fetch(login_to(emqx))
        assert emqx.requests.count("POST /api/v5/login") == 1
        emqx.tokens.clear()

        assert isinstance(caller.fetch(login_to(emqx)), ClientList)
        assert [request.split("?")[0] for request in emqx.requests[3:]] == [
            "GET /api/v5/clients", "POST /api/v5/login", "GET /api/v5/clients",
        ]  # fmt: skip

    def test_a_refused_login_is_told_and_not_repeated_by_questions(self, emqx: Emqx, caller: Caller) -> None:
        """It is told with its code, and tried again only with the next fetch."""
        emqx.login = "somebody-else"
        told = reason_of(caller.fetch(login_to(emqx)))
        assert "does not accept the login of 'pruner'" in told
        assert told.endswith("401 BAD_USERNAME_OR_PWD")

        assert reason_of(caller.ask(login_to(emqx), "pump-1")) == told
        assert emqx.requests == ["POST /api/v5/login"]
        emqx.login = "pruner"
        assert isinstance(caller.fetch(login_to(emqx)), ClientList)

    def test_a_token_that_is_never_accepted(self, emqx: Emqx, caller: Caller) -> None:
        """One new login a call, not more."""
        emqx.answers["/clients"] = _document(401, {"code": "BAD_TOKEN"})

        assert "401 BAD_TOKEN" in reason_of(caller.fetch(login_to(emqx)))
        assert emqx.requests.count("POST /api/v5/login") == 1
        caller.fetch(login_to(emqx))
        assert emqx.requests.count("POST /api/v5/login") == 2

    def test_another_login_is_used_at_once(self, emqx: Emqx, caller: Caller) -> None:
        """A deployment that corrects the password needs no restart."""
        assert "does not accept" in reason_of(caller.fetch(login_to(emqx, password="wrong")))

        assert isinstance(caller.ask(login_to(emqx), "pump-1"), Asked)

    def test_a_file_with_an_api_key(self, emqx: Emqx, caller: Caller, tmp_path: Path) -> None:
        """`key:secret` goes by HTTP Basic; the secret may hold a colon."""
        emqx.key = "4711"

        assert isinstance(caller.fetch(file_for(emqx, tmp_path, f"4711:{SECRET}\n")), ClientList)
        assert "POST /api/v5/login" not in emqx.requests

    def test_a_file_with_a_login(self, emqx: Emqx, caller: Caller, tmp_path: Path) -> None:
        """What is refused as a key logs in, once."""
        access = file_for(emqx, tmp_path, f"pruner:{SECRET}")

        assert isinstance(caller.fetch(access), ClientList)
        assert isinstance(caller.fetch(access), ClientList)
        assert emqx.requests.count("POST /api/v5/login") == 1
        assert len(emqx.requests) == 4

    def test_a_file_with_neither(self, emqx: Emqx, caller: Caller, tmp_path: Path) -> None:
        """The reason points at the file."""
        failed = caller.fetch(file_for(emqx, tmp_path, f"nobody:{SECRET}"))

        assert "does not accept the key or login in presence.clientList.credentialsFile" in reason_of(failed)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644])
    def test_a_file_that_others_can_open_is_refused(
        self, emqx: Emqx, caller: Caller, tmp_path: Path, mode: int
    ) -> None:
        """The reason says what to do, and nothing is sent."""
        failed = caller.fetch(file_for(emqx, tmp_path, f"pruner:{SECRET}", mode))

        assert "chmod 600" in reason_of(failed)
        assert emqx.requests == []

    @pytest.mark.parametrize("content", ["", "\n", "secret", "key:", ":secret"])
    def test_a_file_that_holds_no_credentials_is_refused(
        self, emqx: Emqx, caller: Caller, tmp_path: Path, content: str
    ) -> None:
        """One line."""
        assert "has to hold one line" in reason_of(caller.fetch(file_for(emqx, tmp_path, content)))

    def test_what_is_no_file_is_refused(self, emqx: Emqx, caller: Caller, tmp_path: Path) -> None:
        """Missing, a directory, bytes that are no text."""
        (tmp_path / "bytes").write_bytes(b"\xff:\xff")
        for path in (tmp_path / "missing", tmp_path, tmp_path / "bytes"):
            access = Access(url=emqx.url, username="", password="", credentials_file=str(path))

            assert f"presence.clientList.credentialsFile {path}" in reason_of(caller.fetch(access))


class TestAsk:
    """Names, one by one."""

    def test_answers_who_of_them_is_connected(self, emqx: Emqx, caller: Caller) -> None:
        """A session without a connection and an unknown name are not connected; names are escaped."""
        emqx.clients |= {"pump:1/a b": True, "lamp": False}

        answer = caller.ask(login_to(emqx), "pump:1/a b", "lamp", "nobody")

        assert answer == Asked(7, frozenset({"pump:1/a b"}))
        assert "GET /api/v5/clients/pump%3A1%2Fa%20b" in emqx.requests

    @pytest.mark.parametrize(
        "answer",
        [
            (500, b"", {}),
            _document(404, {"code": "API_NOT_EXIST"}),
            _document(200, {"clientid": "lamp", "connected": True}),
            _document(200, {"clientid": "pump", "connected": None}),
            (200, b"", {}),
        ],
    )
    def test_anything_else_is_no_answer(
        self, emqx: Emqx, caller: Caller, answer: tuple[int, bytes, dict[str, str]]
    ) -> None:
        """One name without an answer leaves the whole question without."""
        emqx.clients["lamp"] = True
        emqx.answers["/clients/pump"] = answer

        failed = caller.ask(login_to(emqx), "lamp", "pump")

        assert isinstance(failed, ListFailed)
        assert failed.request == 7
        assert "asked for pump" in failed.reason


def test_the_fake_answers_as_the_reader_does(emqx: Emqx, caller: Caller) -> None:
    """What tests and the simulation build on says the same of the same broker."""
    answers: list[Answer] = []
    fake = FakeClientLists(answers.append, lambda: 100.0)
    emqx.clients["pump"] = True
    fake.connected = {name for name, connected in emqx.clients.items() if connected}
    access = login_to(emqx)

    fake.fetch(access)
    fake.held = True
    fake.ask(access, ["pump", "lamp"], 7)
    assert len(answers) == 1
    fake.release()

    assert answers == [caller.fetch(access), caller.ask(access, "pump", "lamp")]


@contextmanager
def trickling(head: bytes) -> Iterator[int]:
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
        yield listener.getsockname()[1]
        over.set()
        thread.join()
