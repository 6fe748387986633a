"""What EMQX's HTTP API answers: an answer says who is absent, so anything odd makes it none."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from client_device_pruner import roll_call
from client_device_pruner.roll_call import NoAnswer, RollCall
from client_device_pruner.settings import SettingsRefused, parse
from local_core.fuzz.target import Target, document, folder, payload_of, require, seeds

_URL = "http://127.0.0.1:18083/api/v5"
_LIMIT = 3  # clients a page, so that short inputs have several pages


@cache
def _key_file() -> str:
    path = folder("roll-call") / "key"
    path.touch(mode=0o600)
    path.write_text("key:secret")
    return str(path)


def _fetch() -> RollCall | None:
    try:
        return roll_call.fetch(_URL, _key_file(), page_limit=_LIMIT, clock=lambda: 0.0)
    except NoAnswer as no_answer:
        require(no_answer.reason, "no answer, and no reason")
        return None


def check_pages(data: bytes) -> None:
    """Of pages `[body, …]` either all that they name as connected is taken, to the last page, or nothing."""
    bodies = document(data)
    if not isinstance(bodies, list):
        return
    left = [payload_of(body) for body in bodies]
    asked = []

    def get(_base: object, target: str, _headers: object, _timeout_seconds: float) -> bytes:
        asked.append(target)
        if not left:
            raise NoAnswer("there is no such page")
        return left.pop(0)

    with patch.object(roll_call, "_get", get):
        answer = _fetch()
    if answer is None:
        return
    pages = [json.loads(payload_of(body)) for body in bodies[: len(asked)]]
    require([page["meta"]["page"] for page in pages] == list(range(1, len(pages) + 1)), "pages are missing")
    more = [page["meta"]["hasnext"] for page in pages]
    require(more == [True] * (len(pages) - 1) + [False], f"more pages: {more}")
    listed = [client for page in pages for client in page["data"]]
    connected = {client["clientid"] for client in listed if client["connected"] is True}
    require(answer.names == connected, f"{answer.names} instead of {connected}")


class _Socket:
    """A connection on which the whole answer has come."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def sendall(self, _data: bytes) -> None:
        pass

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._answer)

    def close(self) -> None:
        pass


@contextmanager
def _uncut(_connection: object, _seconds: float) -> Iterator[None]:
    # What would cut a slow answer off: a thread for each input, and here nothing is slow.
    yield


def check_http(data: bytes) -> None:
    """Raw HTTP answers, one a page (each after its length and a line feed), are taken whole or not at all."""
    answers = []
    rest = data
    while rest:
        length, _, rest = rest.partition(b"\n")
        size = int(length) if length.isdigit() and len(length) < 6 else len(rest)
        answers.append(rest[:size])
        rest = rest[size:]

    def connection(base: Any, timeout_seconds: float) -> Any:
        import http.client

        made = http.client.HTTPConnection(base.hostname, base.port, timeout=timeout_seconds)
        made.sock = _Socket(answers.pop(0) if answers else b"")
        return made

    with patch.object(roll_call, "_connection", connection), patch.object(roll_call, "_cut_after", _uncut):
        answer = _fetch()
    if answer is not None:
        text = data.decode("latin-1")
        require("hasnext" in text, "an answer out of nothing")
        require(len(answer.names) <= text.count("clientid"), f"more names than were sent: {answer.names}")


def check_url(data: bytes) -> None:
    """An address is refused with a reason, or leads to loopback or through TLS, without credentials."""
    url = data.decode("utf-8", "surrogateescape")
    try:
        accepted = parse({"rollCall": {"url": url, "keyFile": "/key"}}).roll_call
    except SettingsRefused as refused:
        require(refused.problems[0].startswith("rollCall.url: "), f"refused without a reason: {refused}")
        return
    if accepted is None:
        require(not url, "an address is taken for none")
        return
    parts = urlsplit(accepted.url)
    require(parts.username is None and parts.hostname, "credentials, or no host")
    require(parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")), "in clear")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = socket.getaddrinfo(host.partition("%")[0], None, flags=socket.AI_NUMERICHOST)[0][4][0]
    except OSError:
        return False
    return str(address).startswith("127.") or address == "::1" or str(address).startswith("::ffff:127.")


def _client(name: str, *, connected: bool = True) -> dict[str, Any]:
    return {"clientid": name, "connected": connected, "connected_at": "2026-01-01T00:00:00.000Z"}


def _page(number: int, *names: str, more: bool = False) -> dict[str, Any]:
    meta = {"page": number, "limit": _LIMIT, "count": 4, "hasnext": more}
    return {"data": [_client(name) for name in names], "meta": meta}


def _http(*pages: Any) -> bytes:
    whole = b""
    for page in pages:
        body = json.dumps(page).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            len(body),
            body,
        )
        whole += b"%d\n%b" % (len(answer), answer)
    return whole


_ONE = [_page(1, "a", "mqtt-bridge-x")]
_TWO = [_page(1, "a", "b", "c", more=True), _page(2, "d")]
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
_WORDS = (
    *("clientid", "connected", "data", "meta", "page", "hasnext", "a", "b", 1, 2, 3, "mqtt-bridge-x", _client("e")),
    *(_client("a", connected=False), _page(1, "a"), _page(2, "d"), "\xff", "{}", "connected_at", {"page": True}),
)

TARGETS = (
    Target("roll-call-pages", check_pages, seeds(_ONE, _TWO, [_page(1, "a", more=True)], [[]], ["x"]), _WORDS),
    Target(
        "roll-call-http",
        check_http,
        (_http(*_ONE), _http(*_TWO), _CHUNKED, b"HTTP/1.1 401 Unauthorized\r\n\r\n", b"HTTP/1.0 200\n\n{}"),
    ),
    Target(
        "roll-call-url",
        check_url,
        (_URL.encode(), b"https://emqx.local/api/v5", b"http://[::1]:18083/api/v5", b"http://u:p@127.0.0.1/"),
    ),
)
