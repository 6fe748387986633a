"""EMQX's HTTP API, as much of it as a roll call needs, with faults to order."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from local_core.port import hold_port

Connections = Callable[[], Mapping[str, int]]


@dataclass(slots=True)
class Faults:
    """What goes wrong; all of it can be changed while the server runs.

    Attributes:
        status: answer with this HTTP status instead of 200.
        body: answer with these bytes instead of the page.
        cut: send only half of the body that was announced, then close.
        delay_seconds: wait so long before each answer.
        has_next_for_ever: say of each page that there is another.
        before_page: called with the page's number before it is made, to change what is there between pages.
    """

    status: int = 200
    body: bytes | None = None
    cut: bool = False
    delay_seconds: float = 0.0
    has_next_for_ever: bool = False
    before_page: Callable[[int], None] | None = None


class EmqxApi:
    """An HTTP server on loopback that answers `GET /api/v5/clients` out of the broker's live connections.

    It serves from threads of its own, so that a slow answer holds up nobody else.

    Args:
        connections: tells client ids and their `connected_at` in milliseconds: `lambda: broker.connections`.
        key: the API key; made up when empty.
        secret: its secret; made up when empty.
        port: TCP port; 0 takes a free one.

    Attributes:
        faults: what goes wrong.
        requests: the path and query of each request so far.
    """

    def __init__(self, connections: Connections, *, key: str = "", secret: str = "", port: int = 0) -> None:
        self.key = key or secrets.token_hex(8)
        self.secret = secret or secrets.token_hex(16)
        self.port = port
        self.faults = Faults()
        self.requests: list[str] = []
        self._connections = connections
        self._closing = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The API's base, as `rollCall.url` takes it."""
        return f"http://127.0.0.1:{self.port}/api/v5"

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        self._closing.clear()
        self.port = hold_port(self, self.port)
        server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        server.daemon_threads = False  # so that closing the server waits for them
        self._thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="emqx-api")
        self._server = server
        self._thread.start()

    def stop(self) -> None:
        """Close, and wait until every answer has ended; delays end at once."""
        self._closing.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
        self._server = None

    def respond(self, target: str, authorization: str) -> tuple[int, bytes]:
        """Answer a request.

        Args:
            target: path and query.
            authorization: the header of that name, or empty.

        Returns:
            HTTP status and body.
        """
        self.requests.append(target)
        faults = self.faults
        self._closing.wait(faults.delay_seconds)
        url = urlsplit(target)
        if not self._may(authorization):
            return 401, _error("BAD_API_KEY_OR_SECRET", "Check api_key/api_secret")
        if url.path != "/api/v5/clients":
            return 404, _error("API_NOT_EXIST", "Request Path Not Found")
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            limit, page = int(query.get("limit", "100")), int(query.get("page", "1"))
        except ValueError:
            limit = page = 0
        if not 1 <= limit <= 10000 or page < 1:
            return 400, _error("BAD_REQUEST", "limit must be 1 to 10000, page at least 1")
        if faults.before_page is not None:
            faults.before_page(page)
        body = json.dumps(self._page(limit, page, query)).encode() if faults.body is None else faults.body
        return faults.status, body

    def _page(self, limit: int, page: int, query: Mapping[str, str]) -> dict[str, Any]:
        live = query.get("conn_state", "connected") == "connected"
        everybody = sorted(dict(self._connections()).items()) if live else []
        clients = [
            {
                "clientid": client_id,
                "connected": True,
                "connected_at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms / 1000))
                + f".{at_ms % 1000:03d}+00:00",
            }
            for client_id, at_ms in everybody[(page - 1) * limit : page * limit]
        ]
        more = len(everybody) > page * limit or self.faults.has_next_for_ever
        return {"data": clients, "meta": {"page": page, "limit": limit, "hasnext": more}}

    def _may(self, authorization: str) -> bool:
        expected = "Basic " + base64.b64encode(f"{self.key}:{self.secret}".encode()).decode()
        return secrets.compare_digest(authorization.encode(), expected.encode())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = api.respond(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if api.faults.cut else body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the standard library's
                del format, args

        return Handler


def _error(code: str, message: str) -> bytes:
    return json.dumps({"code": code, "message": message}).encode()
