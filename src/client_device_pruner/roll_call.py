"""Asking EMQX's HTTP API who is connected: the whole answer, or none.

An answer is evidence that whoever it does not name is absent, so anything odd about it makes it no answer. What a
call needs is imported with the first one: it costs 5 MiB, and few sites make roll calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable, Iterator
    from urllib.parse import SplitResult

_MOST_PAGES = 1_000
_MOST_BYTES = 8 << 20  # of one page; EMQX describes a client in 1 to 2 kB
_LONGEST_KEY = 4_096


class RollCall(NamedTuple):
    """A complete answer.

    Attributes:
        names: The client ids of all that are connected, those of no client device included.
        began_seconds: When it was asked for, on the clock that was given.
        ended_seconds: When the last page had come: who connected or left in between may be missing.
    """

    names: frozenset[str]
    began_seconds: float
    ended_seconds: float


class NoAnswer(Exception):
    """There is no answer; it says nothing about anybody.

    Attributes:
        reason: What happened, to what, and what to do; for people.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def fetch(
    url: str,
    key_file: str,
    *,
    timeout_seconds: float = 10.0,
    page_limit: int = 1_000,
    clock: Callable[[], float] = time.monotonic,
) -> RollCall:
    """Ask for all pages; blocks for as long as it takes, at most the time-out.

    Args:
        url: The API's base, `http://127.0.0.1:18083/api/v5` for instance, as the settings accept it: on loopback, or
            with https. It is asked directly, whatever proxies the environment names, and not followed elsewhere.
        key_file: Path of a file that holds `key:secret` and that only its owner can read.
        timeout_seconds: For the whole answer.
        page_limit: Clients a page; EMQX takes up to 10,000.
        clock: Monotonic seconds.

    Raises:
        NoAnswer: anything was not as it has to be.
    """
    from urllib.parse import urlencode, urlsplit

    began = clock()
    base = urlsplit(url)
    headers = {"Authorization": _authorization(key_file), "Accept": "application/json", "Connection": "close"}
    seen: set[str] = set()
    connected: set[str] = set()
    for page in range(1, _MOST_PAGES + 1):
        query = urlencode({"conn_state": "connected", "limit": page_limit, "page": page})
        target = f"{base.path.rstrip('/')}/clients?{query}"
        remaining = timeout_seconds - (clock() - began)
        if remaining <= 0:
            raise NoAnswer(f"{url} did not list all clients within {timeout_seconds:g} s")
        body = _get(base, target, headers, remaining)
        clients, more = _page(body, page, page_limit)
        if repeated := seen.intersection(clients):
            raise NoAnswer(
                f"{url} named {min(repeated)!r} on page {page} and before it: clients came or went meanwhile"
            )
        seen.update(clients)
        connected.update(name for name, is_connected in clients.items() if is_connected)
        if not more:
            return RollCall(frozenset(connected), began, clock())
    raise NoAnswer(f"{url} goes on for more than {_MOST_PAGES} pages")


class RollCaller:
    """Makes roll calls in a daemon thread, one at a time.

    Args:
        deliver: Called in that thread with what came of each call; it must not block.
        clock: Monotonic seconds.

    Attributes:
        busy: Whether a call is in progress.
    """

    def __init__(self, deliver: Callable[[RollCall | NoAnswer], None], clock: Callable[[], float]) -> None:
        self.busy = False
        self._deliver = deliver
        self._clock = clock

    def call(self, url: str, key_file: str) -> None:
        """Begin a call (see `fetch`), unless one is in progress: its outcome will be delivered."""
        if not self.busy:
            self.busy = True
            threading.Thread(target=self._run, args=(url, key_file), name="roll-call", daemon=True).start()

    def _run(self, url: str, key_file: str) -> None:
        outcome: RollCall | NoAnswer
        try:
            outcome = fetch(url, key_file, clock=self._clock)
        except NoAnswer as no_answer:
            outcome = no_answer
        except Exception as error:  # noqa: BLE001 - whoever waits for the outcome must get one
            outcome = NoAnswer(f"the roll call of {url} failed: {error!r}")
        # Before the delivery, so that whoever gets the outcome can call again.
        self.busy = False
        self._deliver(outcome)


def _authorization(key_file: str) -> str:
    import base64

    try:
        with open(key_file, "rb", opener=_open_unblocked) as file:
            status = os.fstat(file.fileno())
            key = file.read(_LONGEST_KEY + 1).strip() if stat.S_ISREG(status.st_mode) else b""
    except (OSError, ValueError) as error:
        raise NoAnswer(f"rollCall.keyFile cannot be read: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise NoAnswer(f"rollCall.keyFile {key_file} is no regular file")
    if status.st_mode & 0o077:
        raise NoAnswer(
            f"rollCall.keyFile {key_file} is open to others than its owner "
            f"(mode {status.st_mode & 0o777:03o}): chmod 600 it, and make a new key if others have read it"
        )
    if len(key) > _LONGEST_KEY or b":" not in key or len(key.split()) != 1:
        raise NoAnswer(f"rollCall.keyFile {key_file} has to hold one line, key:secret")
    return "Basic " + base64.b64encode(key).decode()


def _open_unblocked(path: str, flags: int) -> int:
    # A named pipe would hold us up until somebody writes to it.
    return os.open(path, flags | os.O_NONBLOCK)


def _get(base: SplitResult, target: str, headers: dict[str, str], timeout_seconds: float) -> bytes:
    import http.client

    address = f"{base.scheme}://{base.netloc}"
    try:
        connection = _connection(base, timeout_seconds)
        with contextlib.closing(connection), _cut_after(connection, timeout_seconds):
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                body = response.read(_MOST_BYTES + 1)
                complete = not response.length
    except (OSError, http.client.HTTPException, ValueError, ImportError) as error:
        raise NoAnswer(f"{address} did not answer: {error or type(error).__name__}") from error
    if response.status != 200:
        raise NoAnswer(f"{address} answered {response.status} {response.reason}{_remedy(response.status)}")
    if len(body) > _MOST_BYTES:
        raise NoAnswer(f"{address} answered with a page of more than {_MOST_BYTES >> 20} MiB")
    if not complete:
        raise NoAnswer(f"{address} broke off within a page")
    return body


def _remedy(status: int) -> str:
    if status in {401, 403}:
        return ": is the key in rollCall.keyFile still valid?"
    if status == 404:
        return ": does rollCall.url end in /api/v5?"
    return ": it redirects, which is not followed" if 300 <= status < 400 else ""


def _connection(base: SplitResult, timeout_seconds: float) -> http.client.HTTPConnection:
    """Connect; `http.client` knows of no proxies."""
    import http.client

    host = base.hostname or ""
    if base.scheme == "https":
        # Imported here because some images split it off.
        import ssl

        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, base.port, timeout=timeout_seconds, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, base.port, timeout=timeout_seconds)
    connection.connect()
    return connection


@contextlib.contextmanager
def _cut_after(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """End the connection's traffic after some time: its own time-out begins anew with every byte."""
    import socket

    connected = connection.sock
    was_cut = threading.Event()

    def cut() -> None:
        was_cut.set()
        with contextlib.suppress(OSError):
            # The plain socket's: TLS has one of its own, which the reading thread would stumble over.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if was_cut.is_set():
            raise TimeoutError(f"no complete page within {seconds:.1f} s")


def _page(body: bytes, page: int, limit: int) -> tuple[dict[str, bool], bool]:
    """Return the clients of a page, each with whether it is connected, and whether more pages follow."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise NoAnswer(f"page {page} is not JSON: {body[:60]!r}") from None
    match answer:
        case {"data": list(entries), "meta": {"page": int(number), "hasnext": bool(more)}}:
            pass
        case _:
            raise NoAnswer(f"page {page} is no list of clients: {body[:60]!r}")
    if number != page:
        raise NoAnswer(f"page {number} came when page {page} was asked for")
    if len(entries) > limit:
        raise NoAnswer(f"page {page} holds {len(entries)} clients, more than the {limit} asked for")
    if more and not entries:
        raise NoAnswer(f"page {page} is empty, but says that there are more")
    clients: dict[str, bool] = {}
    for entry in entries:
        name, is_connected = _client(entry, page)
        clients[name] = is_connected or clients.get(name, False)
    return clients, more


def _client(entry: Any, page: int) -> tuple[str, bool]:
    match entry:
        case {"clientid": str(name), "connected": bool(is_connected)}:
            return name, is_connected
    raise NoAnswer(f"page {page} lists something without a clientid and connected: {str(entry)[:60]}")
