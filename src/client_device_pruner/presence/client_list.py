"""EMQX's HTTP API: which clients are connected to the broker, all of them or asked for by name.

A client that a list does not name counts as not connected, so an answer that is not exactly as documented is none.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from client_device_pruner.config.emqx import Access


DEADLINE_SECONDS = 10.0
"""For one HTTP request, from the connection to the last byte; a single wait in it lasts at most half as long."""
PAGE_CLIENTS = 1_000
"""Clients on a page: the most that EMQX 5.1 takes."""
MOST_PAGES = 100
MOST_BYTES = 16 << 20
"""Of one answer; EMQX describes a client in about 1 kB."""
_LONGEST_CREDENTIALS = 4_096


@dataclass(frozen=True, slots=True)
class ClientList:
    """All pages of one call.

    Attributes:
        names: the client ids that are connected, those of no client device included. One that comes or goes
            between two pages may be missing.
        began: when the first page was asked for, in monotonic seconds.
        ended: when the last page had come, in monotonic seconds.
    """

    names: frozenset[str]
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class ClientListFailed:
    """A call without an answer: what happened, to what, and what to do; `began` as in `ClientList`."""

    reason: str
    began: float


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer to `ask`: which of the names that it was asked for are connected, begun at `began` (monotonic)."""

    request: int
    connected: frozenset[str]
    began: float


@dataclass(frozen=True, slots=True)
class AskFailed:
    """No answer to `ask`, not even for some of the names: why."""

    request: int
    reason: str


Answer = ClientList | ClientListFailed | Asked | AskFailed


class ClientLists(Protocol):
    """The seam: asks the broker, and hands in each answer later."""

    def fetch(self, access: Access) -> None:
        """Ask for the whole list, unless that is being done: a `ClientList` or `ClientListFailed` follows."""

    def ask(self, access: Access, names: Sequence[str], request: int) -> None:
        """Ask for these names, one by one: an `Asked` or `AskFailed` with this request's number follows."""

    def close(self) -> None:
        """Hand in nothing from now on."""


class ClientListReader:
    """`ClientLists` over HTTP: each call in a daemon thread of its own, one after the other.

    Args:
        deliver: gets each answer, in that thread; it must not block.
        monotonic: seconds.
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
        if not self._fetching:
            self._fetching = True
            self._start(self._fetch, access)

    def ask(self, access: Access, names: Sequence[str], request: int) -> None:
        """See `ClientLists`; after a refused login it fails at once, until a `fetch` has tried again."""
        self._start(self._ask, access, tuple(names), request)

    def close(self) -> None:
        """See `ClientLists`."""
        self._closed = True

    def _start(self, work: Callable[..., Answer], *arguments: Any) -> None:
        def run() -> None:
            with self._turn:
                answer = work(*arguments)
            if not self._closed:
                self._deliver(answer)

        threading.Thread(target=run, name="client-list", daemon=True).start()

    def _fetch(self, access: Access) -> Answer:
        began = self._monotonic()
        try:
            session = self._session_with(access)
            session.refusal = ""
            return ClientList(_all_pages(session), began, self._monotonic())
        except Exception as error:  # noqa: BLE001 - the caller waits for an answer
            return ClientListFailed(_reason(error), began)
        finally:
            self._fetching = False

    def _ask(self, access: Access, names: Sequence[str], request: int) -> Answer:
        began = self._monotonic()
        try:
            session = self._session_with(access)
            connected = frozenset(name for name in names if _is_connected(session, name))
            return Asked(request, connected, began)
        except Exception as error:  # noqa: BLE001 - as above
            return AskFailed(request, _reason(error))

    def _session_with(self, access: Access) -> _Session:
        if self._session is None or self._session.access != access:
            self._session = _Session(access)
        return self._session


class _Failed(Exception):
    """The text says what happened, to what, and what to do, and tells no password."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _Failed) else f"the client list failed: {type(error).__name__}: {error}"


def _all_pages(session: _Session) -> frozenset[str]:
    names: set[str] = set()
    for page in range(1, MOST_PAGES + 1):
        target = f"/clients?conn_state=connected&limit={PAGE_CLIENTS}&page={page}"
        status, answer = session.get(target)
        if status != 200:
            raise _Failed(f"{session.url} answered {_told(status, answer)}{_remedy(status)}")
        match answer:
            case {"data": [_, *_] as entries, "meta": {"hasnext": bool(more)}}:
                names.update(name for name, connected in map(_client, entries) if connected)
            case {"data": [], "meta": _}:
                # The bridge at least is connected, and a page that was announced names a client.
                raise _Failed(f"{session.url} names no client on page {page}, as EMQX does when it fails inside")
            case _:
                raise _Failed(f"{session.url}: page {page} is no list of clients")
        if not more:
            return frozenset(names)
    raise _Failed(f"{session.url} goes on for more than {MOST_PAGES} pages")


def _client(entry: Any) -> tuple[str, bool]:
    match entry:
        case {"clientid": str(name), "connected": bool(connected)}:
            return name, connected
    raise _Failed(f"the client list holds something without clientid and connected: {str(entry)[:60]}")


def _is_connected(session: _Session, name: str) -> bool:
    match session.get(f"/clients/{quote(name, safe='')}"):
        case (200, {"clientid": str(answered), "connected": bool(connected)}) if answered == name:
            return connected
        case (404, {"code": "CLIENTID_NOT_FOUND"}):
            return False
        case (status, answer):
            told = _told(status, answer)
    raise _Failed(f"{session.url} answered {told} when it was asked for {name}")


class _Session:
    """What one way of access needs between calls: the authorization that was last accepted.

    Attributes:
        url: the API's base, without a slash at its end.
        refusal: why the last login was refused; while it is set, no call is made.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self.url = access.url.rstrip("/")
        self.refusal = ""
        self._authorization = ""

    def get(self, target: str) -> tuple[int, Any]:
        """GET below the base; logs in where needed. Returns status and document."""
        if self.refusal:
            raise _Failed(self.refusal)
        if not self._authorization:
            self._authorization = self._basic() if self.access.credentials_file else self._login()
        status, answer = self._request("GET", target, {"Authorization": self._authorization})
        if status == 401:
            # The token has ended, with its time or with the broker; or the file holds no key but a login.
            self._authorization = self._login()
            status, answer = self._request("GET", target, {"Authorization": self._authorization})
        return status, answer

    def _basic(self) -> str:
        import base64

        return "Basic " + base64.b64encode(":".join(self._credentials()).encode()).decode()

    def _login(self) -> str:
        self._authorization = ""
        username, password = self._credentials()
        body = json.dumps({"username": username, "password": password})
        match self._request("POST", "/login", {"Content-Type": "application/json"}, body):
            case (200, {"token": str(token)}) if token.isascii() and token.isprintable():
                return f"Bearer {token}"
            case (status, answer):
                told = _told(status, answer)
        where = (
            f"the key or login in presence.clientList.credentialsFile {self.access.credentials_file}"
            if self.access.credentials_file
            else f"the login of {username!r} in EMQX's configuration (dashboard.default_username)"
        )
        self.refusal = f"{self.url} does not accept {where}: {told}"
        raise _Failed(self.refusal)

    def _credentials(self) -> tuple[str, str]:
        if self.access.credentials_file:
            return _read_credentials(self.access.credentials_file)
        return self.access.username, self.access.password

    def _request(self, method: str, target: str, headers: dict[str, str], body: str | None = None) -> tuple[int, Any]:
        # Imported with the first call: it costs 5 MiB, and few sites use the list.
        import urllib3

        deadline = time.monotonic() + DEADLINE_SECONDS
        path = urlsplit(self.url).path + target
        try:
            # A pool knows of no proxies; one for each request leaves no connection open until the next.
            with urllib3.connection_from_url(self.url, timeout=DEADLINE_SECONDS / 2, retries=False) as pool:
                response = pool.urlopen(method, path, body, headers, redirect=False, preload_content=False)
                content = bytearray()
                while chunk := response.read1(1 << 16):
                    content += chunk
                    if len(content) > MOST_BYTES:
                        raise _Failed(f"{self.url} answered with more than {MOST_BYTES >> 20} MiB")
                    if time.monotonic() > deadline:
                        raise _Failed(f"{self.url} did not answer in full within {DEADLINE_SECONDS:g} s")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Failed(f"{self.url} did not answer: {error}") from error
        try:
            return response.status, json.loads(content)
        except (ValueError, RecursionError):
            return response.status, None


def _told(status: int, answer: Any) -> str:
    match answer:
        case {"code": str(code)}:
            return f"{status} {code[:60]}"
    return f"{status} with something that is not documented" if status == 200 else str(status)


def _remedy(status: int) -> str:
    if status == 404:
        return ": does presence.clientList.url end in /api/v5?"
    return ": it redirects, which is not followed" if 300 <= status < 400 else ""


def _read_credentials(path: str) -> tuple[str, str]:
    """Read `key:secret` or `user:password` from a file that only its owner can open."""
    told = f"presence.clientList.credentialsFile {path}"
    try:
        with open(path, "rb", opener=_open_unblocked) as file:
            status = os.fstat(file.fileno())
            regular = stat.S_ISREG(status.st_mode)
            line = file.read(_LONGEST_CREDENTIALS + 1).decode().strip() if regular else ""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise _Failed(f"{told} cannot be read: {reason}") from None
    if not regular:
        raise _Failed(f"{told} is no regular file")
    if status.st_mode & 0o077:
        raise _Failed(
            f"{told} is open to others than its owner (mode {status.st_mode & 0o777:03o}):"
            " chmod 600 it, and replace what it holds if others have read it"
        )
    first, _colon, second = line.partition(":")
    if not first or not second or len(line) > _LONGEST_CREDENTIALS or len(line.splitlines()) != 1:
        raise _Failed(f"{told} has to hold one line, key:secret or user:password")
    return first, second


def _open_unblocked(path: str, flags: int) -> int:
    # A named pipe would hold the thread up until something writes to it.
    return os.open(path, flags | os.O_NONBLOCK)
