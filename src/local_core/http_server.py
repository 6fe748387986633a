"""A small HTTP/1.1 server for the local core's endpoints, which can also misbehave on request."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from local_core.port import hold_port

_LOG = logging.getLogger(__name__)
_LONGEST_BODY = 1_000_000


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
    """One answer; length and connection headers are added when it is sent."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the answer as it goes over the wire."""
        reasons = {status.value: status.phrase for status in HTTPStatus}
        headers = {"Content-Type": self.content_type, "Content-Length": str(len(self.body)), **self.headers}
        head = [f"HTTP/1.1 {self.status} {reasons.get(self.status, 'Unknown')}"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + self.body


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
            OSError: the port is taken.
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
            _LOG.debug("a client's connection ended: %r", problem)
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
            _LOG.exception("%s %s could not be answered", request.method, request.path)
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
    if not 0 <= length <= _LONGEST_BODY:
        raise ValueError(f"a body of {length} bytes is not accepted")
    url = urlsplit(target)
    return Request(method, url.path, url.query, headers, await reader.readexactly(length), url.netloc)
