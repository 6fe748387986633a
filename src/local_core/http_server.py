"""A small HTTP/1.1 server for the local core's endpoints, which also misbehaves to order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from local_core.port import hold_port, stop_listening

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are lower-case, path and query as they came over the wire."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


def as_json(answer: object, status: int = 200, **headers: str) -> Response:
    """Return an answer in JSON."""
    return Response(status, json.dumps(answer).encode(), headers)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; type and length are added when it is sent."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the answer as it goes over the wire."""
        headers = {"Content-Type": "application/json", "Content-Length": str(len(self.body)), **self.headers}
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + self.body


class Answered(Exception):
    """Raised by a handler: this is the answer; None resets the connection."""

    def __init__(self, response: Response | None) -> None:
        super().__init__()
        self.response = response


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with a request: the first fault on a server's list that fits is used, and used up.

    The parts combine: a delay comes first; `status`, `body`, `drop` and `hang` replace the answer, and then the
    request has no effect unless `carried_out` says so (an answer that is lost).

    Attributes:
        operation: The operation that it befalls, as the server names them; empty: any, but to get credentials.
        times: How many requests it befalls; None: all, until it is taken off the list.
        skip: How many requests that fit pass unharmed before it begins.
        delay_seconds: How long the answer waits.
        status: HTTP status of the answer, with `error` as its code (empty: none) and `message`.
        body: Answered as it is, with `status` (200 if that is not set).
        drop: The connection is reset.
        hang: No answer comes until either side gives up.
        carried_out: The request has its effect, with any answer.
        error_entries: Thing name -> code: refused in a batch; names that were not asked for are answered as well.
        hidden: Names that a list leaves out, with 200.
        expired: The credentials handed out have expired a minute ago.
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
    error_entries: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    expired: bool = False

    async def strike(self, error: Callable[[int, str, str], Response]) -> None:
        """Raise what replaces the proper answer, if anything does; `error` makes one of status, code and message."""
        if self.hang:
            await asyncio.Event().wait()
        if self.drop:
            raise Answered(None)
        if self.body is not None:
            raise Answered(Response(self.status or 200, self.body))
        if self.status:
            raise Answered(error(self.status, self.error, self.message))


async def meet_fault(faults: list[Fault], operation: str, *, unnamed: bool = True) -> Fault:
    """Take the first fault that fits off a list, once, and return it after its delay; else one that does nothing.

    Args:
        faults: The server's list.
        operation: What was asked for.
        unnamed: Whether a fault without an operation befalls it.
    """
    for place, fault in enumerate(faults):
        if fault.operation != operation and (fault.operation or not unnamed):
            continue
        if fault.skip:
            faults[place] = replace(fault, skip=fault.skip - 1)
            continue
        if fault.times is not None:
            faults[place : place + 1] = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
        await asyncio.sleep(fault.delay_seconds)
        return fault
    return Fault()


class HttpServer:
    """Serves one handler on a port of 127.0.0.1, which it keeps over a stop and a new start."""

    def __init__(self, handler: Callable[[Request], Awaitable[Response]], *, port: int = 0) -> None:
        self.port = port
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen; from then on `port` is the one in use.

        Raises:
            OSError: The port is taken.
        """
        self.port = hold_port(self, self.port)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Stop listening and cut off every connection, requests in progress included."""
        if self._server is None:
            return
        await stop_listening(self._server)
        cut = list(self._connections)
        for connection in cut:
            connection.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in a task; for mypy
        self._connections.add(task)
        try:
            while (request := await _read(reader)) is not None:
                try:
                    response = await self._handler(request)
                except Answered as answered:
                    if answered.response is None:
                        writer.transport.abort()  # a close would wait for a client that does not read
                        break
                    response = answered.response
                except (ValueError, LookupError, TypeError, AttributeError):
                    _log.exception("%s %s could not be answered", request.method, request.path)
                    response = Response(500, b"{}")
                writer.write(response.encode())
                await writer.drain()
                if request.headers.get("connection", "").lower() == "close":
                    break
        except asyncio.CancelledError:
            writer.transport.abort()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as problem:
            _log.debug("a client's connection ended: %r", problem)
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


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
    url = urlsplit(target)
    return Request(method, url.path, url.query, headers, await reader.readexactly(length))
