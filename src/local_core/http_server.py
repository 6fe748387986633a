"""A small HTTP/1.1 server for the local core's endpoints, which also misbehaves to order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from local_core.port import hold_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_log = logging.getLogger(__name__)
_LONGEST_BODY_BYTES = 1_000_000


class ConnectionDroppedError(Exception):
    """Raised by a handler: the connection is reset instead of answered."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are lower-case, path and query as they came over the wire.

    Attributes:
        host: The one that a proxy is to ask; empty in a request that is for this server itself.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    host: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; type and length are added when it is sent."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the answer as it goes over the wire."""
        reasons = {status.value: status.phrase for status in HTTPStatus}
        headers = {"Content-Type": "application/json", "Content-Length": str(len(self.body)), **self.headers}
        head = [f"HTTP/1.1 {self.status} {reasons.get(self.status, 'Unknown')}"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFault:
    """What goes wrong with a request: the first fault on a server's list that fits is used, and used up.

    The parts combine: a delay comes first; `status`, `body`, `drop` and `hang` replace the answer, and then the
    request has no effect unless `carried_out` says so (an answer that is lost).

    Attributes:
        operation: The operation that it befalls, as the server names them; empty: any, as the server has it.
        times: How many requests it befalls; None: all, until it is taken off the list.
        skip: How many requests that fit pass unharmed before it begins.
        delay_seconds: How long the answer waits.
        status: HTTP status of the answer, with `error` as its code (empty: none) and `message`.
        error: See `status`.
        message: See `status`.
        body: Answered as it is, with `status` (200 if that is not set).
        drop: The connection is reset.
        hang: No answer comes until either side gives up.
        carried_out: The request has its effect, whatever the answer.
    """

    operation: str = ""
    times: int | None = 1
    skip: int = 0
    delay_seconds: float = 0.0
    status: int = 0
    error: str = ""
    message: str = "made to fail"
    body: bytes | None = None
    drop: bool = False
    hang: bool = False
    carried_out: bool = False

    @property
    def replaces_answer(self) -> bool:
        """Whether the proper answer is withheld."""
        return bool(self.status or self.body is not None or self.drop or self.hang)

    async def answer(self, error: Callable[[int, str, str], Response]) -> Response:
        """Return the answer that replaces the proper one; `error` makes one of status, code and message."""
        if self.hang:
            await asyncio.Event().wait()
        if self.drop:
            raise ConnectionDroppedError
        if self.body is not None:
            return Response(self.status or 200, self.body)
        return error(self.status, self.error, self.message)


_Fault = TypeVar("_Fault", bound=HttpFault)


def take_fault(faults: list[_Fault], operation: str, *, among: frozenset[str], none: _Fault) -> _Fault:
    """Return the first fault that fits an operation, one use of it less on the list; else `none`.

    Args:
        faults: The server's list.
        operation: The one that was asked for.
        among: The operations that a fault without one befalls.
        none: A fault that does nothing.
    """
    for place, fault in enumerate(faults):
        if fault.operation != operation and (fault.operation or operation not in among):
            continue
        if fault.skip:
            faults[place] = replace(fault, skip=fault.skip - 1)
            continue
        if fault.times is not None:
            faults[place : place + 1] = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
        return fault
    return none


class HttpServer:
    """Serves one handler on a port of 127.0.0.1, which it keeps over a stop and a new start."""

    def __init__(self, handler: Callable[[Request], Awaitable[Response]], *, port: int = 0) -> None:
        self.port = port
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; from then on `port` is the one in use.

        Raises:
            OSError: The port is taken.
        """
        self.port = hold_port(self, self.port)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Stop listening and cut off every connection, requests in progress included."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read(reader)) is not None:
                writer.write((await self._answer(request)).encode())
                await writer.drain()
                if request.headers.get("connection", "").lower() == "close":
                    break
        except (ConnectionDroppedError, asyncio.CancelledError):
            writer.transport.abort()  # a close would wait for a client that does not read
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as problem:
            _log.debug("a client's connection ended: %r", problem)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except ConnectionDroppedError:
            raise
        except Exception:  # noqa: BLE001 - a mistake in a handler answers as a server's does, and is seen in the log
            _log.exception("%s %s could not be answered", request.method, request.path)
            return Response(500, b"{}")


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    start, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _version = start.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= _LONGEST_BODY_BYTES:
        raise ValueError(f"a body of {length} bytes is not accepted")
    url = urlsplit(target)
    return Request(method, url.path, url.query, headers, await reader.readexactly(length), url.netloc)
