"""Roll calls of a real HTTP server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from client_device_pruner.roll_call import NoAnswer, RollCall, RollCaller, fetch
from local_core.emqx_api import EmqxApi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Site:
    """EMQX's API, its live connections, and the file with its key."""

    def __init__(self, directory: Path) -> None:
        self.connections: dict[str, int] = {}
        self.api = EmqxApi(lambda: self.connections)
        self.key_file = directory / "key"

    def connect(self, *names: str) -> None:
        """Have devices connect."""
        self.connections |= dict.fromkeys(names, 1_700_000_000_000)

    def write_key(self, key: str, mode: int = 0o600) -> None:
        """Write the key file."""
        self.key_file.write_text(key)
        self.key_file.chmod(mode)

    def fetch(self, **settings: Any) -> RollCall:
        """Make a roll call."""
        return fetch(self.api.url, str(self.key_file), **settings)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site whose API runs, with the right key in the file."""
    site = Site(tmp_path)
    site.write_key(f"{site.api.key}:{site.api.secret}\n")
    site.api.start()
    yield site
    site.api.stop()


class Clock:
    """A clock that goes on by the same step each time it is read."""

    def __init__(self, step_seconds: float = 0.0) -> None:
        self.now = 1_000.0
        self.step_seconds = step_seconds

    def __call__(self) -> float:
        """Go on, and return the time."""
        self.now += self.step_seconds
        return self.now


def test_names_everybody_who_is_connected(site: Site) -> None:
    """All pages make one answer, with the time it took."""
    site.connect(*(f"thing-{number}" for number in range(25)), "mqtt-bridge-x")
    answer = site.fetch(page_limit=10, clock=Clock(step_seconds=0.5))
    assert answer.names == frozenset(site.connections)
    assert len(site.api.requests) == 3
    assert answer.began_seconds == 1_000.5
    assert answer.ended_seconds > answer.began_seconds


def test_nobody_is_an_answer(site: Site) -> None:
    """A broker without connections says so, and asks for what is documented."""
    assert site.fetch(clock=Clock()) == RollCall(frozenset(), 1_000.0, 1_000.0)
    assert site.api.requests == ["/api/v5/clients?conn_state=connected&limit=1000&page=1"]


def test_goes_through_no_proxy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core's proxy knows nothing of its loopback."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert site.fetch().names == frozenset()


def test_a_slash_at_the_end_of_the_url_does_no_harm(site: Site) -> None:
    """A base with a slash is the same base."""
    fetch(site.api.url + "/", str(site.key_file))
    assert site.api.requests[0].startswith("/api/v5/clients?")


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"status": 500}, "500"),
        ({"status": 302}, "redirect"),
        ({"status": 204}, "204"),
        ({"cut": True}, "broke off"),
        ({"body": b""}, "not JSON"),
        ({"body": b"<html>"}, "not JSON"),
        ({"body": b"\xff\xfe\xff"}, "not JSON"),
        ({"body": b"[" * 100_000}, "not JSON"),
        ({"body": b" " * (8 << 20) + b" "}, "8 MiB"),
        ({"body": b"[]"}, "no list of clients"),
        ({"body": b"{}"}, "no list of clients"),
        ({"body": b'{"data": []}'}, "no list of clients"),
        ({"body": b'{"data": {}, "meta": {"page": 1, "hasnext": false}}'}, "no list of clients"),
        ({"body": b'{"data": [], "meta": {"page": 1}}'}, "no list of clients"),
        ({"body": b'{"data": [], "meta": {"page": 1, "hasnext": 0}}'}, "no list of clients"),
        ({"body": b'{"data": [], "meta": {"page": "1", "hasnext": false}}'}, "no list of clients"),
        ({"body": b'{"data": [], "meta": {"page": 2, "hasnext": false}}'}, "page 2 came"),
        ({"body": b'{"data": [], "meta": {"page": 1, "hasnext": true}}'}, "empty"),
        ({"body": b'{"meta": {"page": 1, "hasnext": false}, "data": ["a"]}'}, "without a clientid"),
        ({"body": b'{"meta": {"page": 1, "hasnext": false}, "data": [{"clientid": "a"}]}'}, "without a"),
        (
            {"body": b'{"meta": {"page": 1, "hasnext": false}, "data": [{"clientid": 1, "connected": 1}]}'},
            "without a clientid",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_anything_odd_is_no_answer(site: Site, faults: dict[str, Any], reason: str) -> None:
    """Nobody is called absent on the word of an answer that is not exactly as documented."""
    site.connect("a", "b")
    site.api.faults = dataclasses.replace(site.api.faults, **faults)
    with pytest.raises(NoAnswer, match=reason) as caught:
        site.fetch()
    assert caught.value.reason == str(caught.value)
    assert len(site.api.requests) == 1


def test_a_client_that_is_not_connected_is_dropped(site: Site) -> None:
    """EMQX keeps sessions of clients that have gone; of two sessions of one client, one is enough."""
    clients = [("gone", False), ("here", True), ("both", False), ("both", True), ("both", False)]
    site.api.faults.body = page_of(1, False, *clients)
    assert site.fetch().names == {"here", "both"}


def test_more_clients_than_asked_for_are_no_answer(site: Site) -> None:
    """A server that does not keep to the limit does not page as we do."""
    site.api.faults.body = page_of(1, False, ("a", True), ("b", True))
    with pytest.raises(NoAnswer, match="more than the 1"):
        site.fetch(page_limit=1)


def test_fails_half_way(site: Site) -> None:
    """All pages or none."""
    site.connect("a", "b", "c")

    def fail(page: int) -> None:
        site.api.faults.status = 503 if page == 2 else 200

    site.api.faults.before_page = fail
    with pytest.raises(NoAnswer, match="503"):
        site.fetch(page_limit=1)


def test_changes_between_pages(site: Site) -> None:
    """A client that moved from one page to the next shows that others may have moved past us."""
    site.connect("b", "c", "d")
    site.api.faults.before_page = lambda page: site.connect("a") if page == 2 else None
    with pytest.raises(NoAnswer, match="'c' on page 2"):
        site.fetch(page_limit=2)


def test_the_same_page_again_is_no_answer(site: Site) -> None:
    """A server that ignores the page number is not followed."""
    answers = iter((page_of(1, True, ("a", True)), page_of(2, True, ("a", True))))

    def repeat(_: int) -> None:
        site.api.faults.body = next(answers)

    site.api.faults.before_page = repeat
    with pytest.raises(NoAnswer, match="before it"):
        site.fetch()


def test_does_not_go_on_for_ever(site: Site) -> None:
    """After 1,000 pages it gives up."""

    def another(page: int) -> None:
        site.api.faults.body = page_of(page, True, (f"thing-{page}", True))

    site.api.faults.before_page = another
    with pytest.raises(NoAnswer, match="1000 pages"):
        site.fetch(clock=Clock())
    assert len(site.api.requests) == 1_000


def test_the_time_is_for_all_pages(site: Site) -> None:
    """Pages that each come in time do not add up to more than the time-out."""
    site.connect(*(f"thing-{number}" for number in range(25)))
    with pytest.raises(NoAnswer, match="within 10 s"):
        site.fetch(page_limit=1, clock=Clock(step_seconds=1.0))
    assert len(site.api.requests) < 25


def test_a_server_that_does_not_answer(site: Site) -> None:
    """Silence ends with the time-out."""
    site.api.faults.delay_seconds = 30
    with pytest.raises(NoAnswer, match="did not answer"):
        site.fetch(timeout_seconds=0.2)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"], ids=["header", "body"])
def test_an_answer_that_trickles_in(site: Site, head: bytes) -> None:
    """Each byte in time does not make an answer in time."""
    with trickling(head) as port, pytest.raises(NoAnswer, match="did not answer"):
        fetch(f"http://127.0.0.1:{port}", str(site.key_file), timeout_seconds=0.3)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_is_no_http_server(site: Site, scheme: str) -> None:
    """Neither nonsense, nor plain text instead of TLS, nor a closed port is an answer."""
    with trickling(b"nonsense\r\n\r\n") as port, pytest.raises(NoAnswer, match="did not answer"):
        fetch(f"{scheme}://127.0.0.1:{port}", str(site.key_file), timeout_seconds=2)
    with pytest.raises(NoAnswer, match="did not answer"):
        fetch(f"{scheme}://127.0.0.1:{port}", str(site.key_file))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "127.0.0.1"])
def test_all_of_loopback_is_allowed(site: Site, host: str) -> None:
    """A connection is tried; where nobody listens, that is told."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(NoAnswer, match="did not answer"):
        fetch(f"http://{host}:{port}", str(site.key_file))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644])
def test_refuses_a_key_file_that_others_can_open(site: Site, mode: int) -> None:
    """The message says what to do, and the key is not sent."""
    site.key_file.chmod(mode)
    with pytest.raises(NoAnswer, match="chmod 600"):
        site.fetch()
    assert site.api.requests == []


@pytest.mark.parametrize("key", ["", "\n", "keysecret", "key:secret\nother:secret", "key: secret", "k:" + "s" * 5_000])
def test_refuses_a_key_file_that_holds_no_key(site: Site, key: str) -> None:
    """One line, key:secret."""
    site.write_key(key)
    with pytest.raises(NoAnswer, match="key:secret"):
        site.fetch()


def test_refuses_a_key_file_that_is_none(site: Site, tmp_path: Path) -> None:
    """Missing, a directory, a pipe that nobody writes to: none of them holds anything up."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe", "null\0byte"):
        with pytest.raises(NoAnswer, match=r"rollCall\.keyFile"):
            fetch(site.api.url, str(path))


def test_a_key_that_is_not_valid(site: Site) -> None:
    """The message points at the key, and does not tell it."""
    site.write_key("key:guessed")
    with pytest.raises(NoAnswer, match=r"401.*rollCall\.keyFile") as caught:
        site.fetch()
    assert "guessed" not in caught.value.reason


def test_another_path(site: Site) -> None:
    """The message points at the path."""
    with pytest.raises(NoAnswer, match="/api/v5"):
        fetch(site.api.url.removesuffix("/api/v5"), str(site.key_file))


def test_calls_from_a_thread_one_at_a_time(site: Site) -> None:
    """A second call while the first is in progress is none; whoever gets the outcome can call again."""
    site.connect("a")
    may_answer = threading.Event()
    site.api.faults.before_page = lambda _: assert_true(may_answer.wait(10))
    outcomes: queue.SimpleQueue[tuple[RollCall | NoAnswer, bool]] = queue.SimpleQueue()
    caller = RollCaller(lambda outcome: outcomes.put((outcome, caller.busy)), Clock())

    caller.call(site.api.url, str(site.key_file))
    assert caller.busy
    caller.call(site.api.url, str(site.key_file))
    may_answer.set()

    assert outcomes.get(timeout=10) == (RollCall(frozenset({"a"}), 1_000.0, 1_000.0), False)
    caller.call(site.api.url, "missing")
    outcome, _ = outcomes.get(timeout=10)
    assert isinstance(outcome, NoAnswer)
    assert "missing" in outcome.reason
    assert outcomes.empty()
    assert len(site.api.requests) == 1


def test_delivers_what_nobody_expected(site: Site) -> None:
    """Even our own mistake ends in an outcome, and the next call is possible."""
    outcomes: queue.SimpleQueue[RollCall | NoAnswer] = queue.SimpleQueue()

    def broken() -> float:
        raise ZeroDivisionError("broken clock")

    caller = RollCaller(outcomes.put, broken)
    caller.call(site.api.url, str(site.key_file))
    outcome = outcomes.get(timeout=10)
    assert isinstance(outcome, NoAnswer)
    assert "broken clock" in outcome.reason
    assert not caller.busy


def page_of(page: int, more: bool, *clients: tuple[str, bool]) -> bytes:
    """Return the body of a page."""
    data = [{"clientid": name, "connected": is_connected} for name, is_connected in clients]
    return json.dumps({"data": data, "meta": {"page": page, "limit": 1000, "hasnext": more}}).encode()


def assert_true(condition: bool) -> None:
    """Assert, in an expression."""
    assert condition


@contextlib.contextmanager
def trickling(head: bytes) -> Iterator[int]:
    """Serve one connection: the head at once, then spaces, one every 20 ms, until it is closed."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(head or b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not over.wait(0.02):
                    connection.sendall(b" ")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()
