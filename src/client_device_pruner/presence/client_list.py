"""EMQX's HTTP API: which clients are connected to the broker, all of them or asked for by name.

A client that a list does not name counts as not connected, so an answer that is not exactly as documented is none.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from client_device_pruner.config.emqx import Access

DEADLINE_SECONDS = 10.0
"""For one HTTP request, from the connection to the last byte; a single wait in it lasts at most half as long."""
PAGE_CLIENTS = 1_000  # clients on a page: the most that EMQX 5.1 takes
MOST_PAGES = 100
MOST_BYTES = 16 << 20  # of one answer; EMQX describes a client in about 1 kB


@dataclass(frozen=True, slots=True)
class ClientList:
    """All pages of one call, from `began` to `ended` (monotonic seconds): the client ids that are connected.

    Those of no client device are among them. One that comes or goes between two pages may be missing.
    """

    names: frozenset[str]
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer to the `ask` of that number: which of the names that it was asked for are connected."""

    request: int
    connected: frozenset[str]


@dataclass(frozen=True, slots=True)
class ListFailed:
    """No answer, not even in part: what happened, to what, and what to do; `request` is None for a `fetch`."""

    request: int | None
    reason: str


Answer = ClientList | Asked | ListFailed


class ClientLists(Protocol):
    """The seam: asks the broker, and hands in each answer later."""

    def fetch(self, access: Access) -> None:
        """Ask for the whole list, unless that is being done: a `ClientList` or `ListFailed` follows."""

    def ask(self, access: Access, names: Sequence[str], request: int) -> None:
        """Ask for these names, one by one: an `Asked` or `ListFailed` with this number follows."""

    def close(self) -> None:
        """Hand in nothing from now on."""


class ClientListReader:
    """`ClientLists` over HTTP: each call in a daemon thread of its own, one after the other.

    `deliver` gets each answer, in that thread; it must not block.
    """

    def __init__(self, deliver: Callable[[Answer], None], monotonic: Callable[[], float]) -> None:
        self._deliver = deliver
        self._monotonic = monotonic
        self._turn = threading.Lock()
        self._session: _Session | None = None
        self._fetching = False
        self._closed = False

    def fetch(self, access: Access) -> None:
        """See `ClientLists`."""
        if self._fetching:
            return
        self._fetching, began = True, self._monotonic()

        def call(session: _Session) -> Answer:
            session.refusal = ""
            try:
                return ClientList(_all_pages(session), began, self._monotonic())
            finally:
                self._fetching = False

        self._start(access, None, call)

    def ask(self, access: Access, names: Sequence[str], request: int) -> None:
        """See `ClientLists`; after a refused login it fails at once, until a `fetch` has tried again."""

        def call(session: _Session) -> Answer:
            return Asked(request, frozenset(name for name in names if _is_connected(session, name)))

        self._start(access, request, call)

    def close(self) -> None:
        """See `ClientLists`."""
        self._closed = True

    def _start(self, access: Access, request: int | None, call: Callable[[_Session], Answer]) -> None:
        def run() -> None:
            with self._turn:
                if self._session is None or self._session.access != access:
                    self._session = _Session(access)
                try:
                    answer = call(self._session)
                except _Failed as error:
                    answer = ListFailed(request, str(error))
                except Exception as error:  # noqa: BLE001 - the caller waits for an answer
                    answer = ListFailed(request, f"the client list failed: {type(error).__name__}: {error}")
            if not self._closed:
                self._deliver(answer)

        threading.Thread(target=run, name="client-list", daemon=True).start()


class _Failed(Exception):
    """The text says what happened, to what, and what to do, and tells no password."""


def _all_pages(session: _Session) -> frozenset[str]:
    names: set[str] = set()
    for page in range(1, MOST_PAGES + 1):
        status, answer = session.get(f"/clients?conn_state=connected&limit={PAGE_CLIENTS}&page={page}")
        match status, answer:
            case 200, {"data": [_, *_] as entries, "meta": {"hasnext": bool(more)}}:
                names.update(str(entry["clientid"]) for entry in entries if entry["connected"])
            case 200, {"data": [], "meta": _}:
                # The bridge at least is connected, and a page that was announced names a client.
                raise _Failed(f"{session.url} names no client on page {page}, as EMQX does when it fails inside")
            case _:
                raise _Failed(f"asked for page {page} of its clients, {session.url} answered {_told(status, answer)}")
        if not more:
            return frozenset(names)
    raise _Failed(f"{session.url} goes on for more than {MOST_PAGES} pages")


def _is_connected(session: _Session, name: str) -> bool:
    status, answer = session.get(f"/clients/{quote(name, safe='')}")
    match status, answer:
        case 200, {"clientid": str(answered), "connected": bool(connected)} if answered == name:
            return connected
        case 404, {"code": "CLIENTID_NOT_FOUND"}:
            return False
    raise _Failed(f"asked for {name}, {session.url} answered {_told(status, answer)}")


class _Session:
    """What one way of access needs between calls: the authorization that was last accepted, and the last refusal."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.url = access.url.rstrip("/")
        self.refusal = ""
        """Why the last login was refused; while it is set, no call is made."""
        self._authorization = ""

    def get(self, target: str) -> tuple[int, Any]:
        """GET below the base, with a login where needed; gives status and document."""
        if self.refusal:
            raise _Failed(self.refusal)
        if self.access.credentials_file and not self._authorization:
            self._authorization = "Basic " + base64.b64encode(":".join(_credentials(self.access)).encode()).decode()
        if self._authorization:
            status, answer = self._request("GET", target, {"Authorization": self._authorization})
            if status != 401:
                return status, answer
        # The token has ended, with its time or with the broker; or the file holds no key but a login.
        self._authorization = ""
        self._authorization = self._login()
        return self._request("GET", target, {"Authorization": self._authorization})

    def _login(self) -> str:
        username, password = _credentials(self.access)
        body = json.dumps({"username": username, "password": password})
        status, answer = self._request("POST", "/login", {"Content-Type": "application/json"}, body)
        match status, answer:
            case 200, {"token": str(token)}:
                return f"Bearer {token}"
        where = f"the login of {username!r} in EMQX's configuration (dashboard.default_username)"
        if self.access.credentials_file:
            where = f"the key or login in presence.clientList.credentialsFile {self.access.credentials_file}"
        self.refusal = f"{self.url} does not accept {where}: {_told(status, answer)}"
        raise _Failed(self.refusal)

    def _request(self, method: str, target: str, headers: dict[str, str], body: str | None = None) -> tuple[int, Any]:
        # Imported with the first call: they cost 8 MiB, and not every site uses the list.
        from http.client import HTTPException

        import urllib3

        pool = urllib3.connection_from_url(self.url)  # knows of no proxies, retries and redirects here
        connection: Any = pool.ConnectionCls(pool.host, pool.port, timeout=DEADLINE_SECONDS / 2)
        content = bytearray()
        try:
            connection.connect()
            with _deadline(connection.sock):
                connection.request(method, urlsplit(self.url).path + target, body, headers, preload_content=False)
                response = connection.getresponse()
                while chunk := response.read1(1 << 16):
                    content += chunk
                    if len(content) > MOST_BYTES:
                        raise _Failed(f"{self.url} answered with more than {MOST_BYTES >> 20} MiB")
        except (urllib3.exceptions.HTTPError, HTTPException, OSError) as error:
            raise _Failed(f"{self.url} did not answer: {error}") from error
        finally:
            connection.close()
        try:
            return response.status, json.loads(content)
        except (ValueError, RecursionError):
            return response.status, None


@contextmanager
def _deadline(sock: socket.socket) -> Iterator[None]:
    """End a connection that takes too long, also one whose bytes trickle in; raises `TimeoutError` then."""
    over = threading.Event()

    def end() -> None:
        over.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(DEADLINE_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if over.is_set():
            raise TimeoutError(f"not in full within {DEADLINE_SECONDS:g} s")


def _told(status: int, answer: Any) -> str:
    match answer:
        case {"code": str(code)}:
            told = f"{status} {code[:60]}"
        case _:
            told = f"{status} with an undocumented answer" if status == 200 else str(status)
    return f"{told}: does presence.clientList.url end in /api/v5?" if status == 404 else told


def _credentials(access: Access) -> tuple[str, str]:
    """The login, or `key:secret` or `user:password` from a file that only its owner can open."""
    if not access.credentials_file:
        return access.username, access.password
    path, told = Path(access.credentials_file), f"presence.clientList.credentialsFile {access.credentials_file}"
    try:
        mode, text = path.stat().st_mode, path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise _Failed(f"{told} cannot be read: {error}") from None
    if mode & 0o077:
        raise _Failed(f"{told} can be opened by others than its owner (mode {mode & 0o777:03o}): run chmod 600 on it")
    first, _colon, second = text.strip().partition(":")
    if not first or not second:
        raise _Failed(f"{told} must hold one line, key:secret or user:password")
    return first, second
