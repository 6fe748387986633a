"""EMQX's HTTP API, as much of it as a client list needs, under EMQX's own configuration and with faults to order."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

from local_core.broker import Broker
from local_core.http_server import Fault, HttpServer, Request, Response, as_json, meet_fault
from local_core.port import hold_port

LOGIN, CLIENTS, CLIENT = "login", "clients", "client"
"""The operations, for faults: log in, list a page, ask for one client by name."""
EMPTY_PAGE = json.dumps({"data": [], "meta": {"page": 1, "limit": 1000, "hasnext": False, "count": 0}}).encode()
"""What an internal failure answers, with 200: `Fault(operation=CLIENTS, body=EMPTY_PAGE)`."""

_API = "/api/v5/"
_PUBLISHED = re.compile(r"(?:-p|--publish)[ =]*(?:[0-9.]+:)?(?P<host>\d+):(?P<container>\d+)(?:/tcp)?(?=\s|$)")


class EmqxApi:
    """An HTTP server on loopback that answers out of the broker's live connections.

    It serves while EMQX's configuration switches it on and Docker publishes its port; the host's port counts.

    Args:
        broker: The broker that it tells of.

    Attributes:
        port: A free port that it holds: what a test publishes instead of 18083, so that others do not collide.
        faults: What goes wrong next.
        before_page: Called with the page's number before it is made, to have clients come and go between pages.
        keys: API keys and their secrets, as from a bootstrap file.
        token_seconds: How long a token lasts that is handed out from now on.
        calls: Method and target of each request so far.
    """

    def __init__(self, broker: Broker) -> None:
        self.port = hold_port(self, 0)
        self.faults: list[Fault] = []
        self.before_page: Callable[[int], None] | None = None
        self.keys: dict[str, str] = {}
        self.token_seconds = 3600.0
        self.calls: list[str] = []
        self._broker = broker
        self._users: dict[str, str] = {}
        self._tokens: dict[str, float] = {}
        self._server: HttpServer | None = None

    @property
    def url(self) -> str:
        """The API's base where its own port is published, as `presence.clientList.url` takes it."""
        return f"http://127.0.0.1:{self.port}/api/v5"

    def configuration(self, *, username: str = "pruner", password: str = "CHANGE-ME") -> dict[str, Any]:  # noqa: S107
        """Return the EMQX component's configuration that switches the API on, on this core's own port."""
        listener = {"http": {"bind": 18083}}
        dashboard = {"listeners": listener, "default_username": username, "default_password": password}
        options = f"-p 8883:8883 -p 127.0.0.1:{self.port}:18083"
        return {"emqxConfig": {"dashboard": dashboard}, "dockerOptions": options}

    async def start(self, configuration: Mapping[str, Any]) -> None:
        """Make the users anew from EMQX's configuration, and serve if it says so."""
        dashboard = (configuration.get("emqxConfig") or {}).get("dashboard") or {}
        port = _published_port(dashboard, str(configuration.get("dockerOptions", "")))
        self._users = {dashboard.get("default_username", "admin"): dashboard.get("default_password", "public")}
        await self.stop()
        if port is not None:
            self._server = HttpServer(self._answer, port=port)
            await self._server.start()

    async def stop(self) -> None:
        """Close, and cut off every request in progress."""
        if self._server is not None:
            await self._server.stop()
            self._server = None

    def refuse_tokens(self) -> None:
        """Refuse every token handed out so far (401 `BAD_TOKEN`), as a broker that was started anew."""
        self._tokens.clear()

    async def _answer(self, request: Request) -> Response:
        self.calls.append(f"{request.method} {request.path}" + (f"?{request.query}" if request.query else ""))
        path = request.path.removeprefix(_API)
        operation = path if path in {LOGIN, CLIENTS} else CLIENT if path.startswith("clients/") else ""
        await (await meet_fault(self.faults, operation)).strike(_error)
        if operation == LOGIN:
            return self._log_in(request)
        if refusal := self._refusal(request.headers.get("authorization", "")):
            return refusal
        if operation == CLIENTS:
            return self._page({name: value[-1] for name, value in parse_qs(request.query).items()})
        if operation == CLIENT:
            return self._client(unquote(path.removeprefix("clients/")))
        return _error(404, "API_NOT_EXIST", "Request Path Not Found")

    def _log_in(self, request: Request) -> Response:
        try:
            given = json.loads(request.body)
            right = self._users.get(given["username"]) == given["password"]
        except (ValueError, KeyError, TypeError):
            return _error(400, "BAD_REQUEST", "username and password are required")
        if request.method != "POST" or not right:
            return _error(401, "BAD_USERNAME_OR_PWD", "Auth failed")
        token = secrets.token_urlsafe(32)
        self._tokens[token] = time.monotonic() + self.token_seconds
        return as_json({"token": token, "version": "5.1.1"})

    def _refusal(self, authorization: str) -> Response | None:
        """Return what refuses a request, by bearer token or by API key; None lets it pass."""
        kind, _, given = authorization.partition(" ")
        if kind.lower() == "bearer":
            good = self._tokens.get(given, 0.0) > time.monotonic()
            return None if good else _error(401, "BAD_TOKEN", "Get token from POST /login")
        try:
            key, _, secret = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            key = secret = ""
        if kind.lower() == "basic" and key and self.keys.get(key) == secret:
            return None
        return _error(401, "BAD_API_KEY_OR_SECRET", "Check api_key/api_secret")

    def _page(self, query: Mapping[str, str]) -> Response:
        try:
            limit, page = int(query.get("limit", "100")), int(query.get("page", "1"))
        except ValueError:
            limit = page = 0
        if not 1 <= limit <= 1000 or page < 1:
            return _error(400, "BAD_REQUEST", "limit must be 1 to 1000, page at least 1")
        if self.before_page is not None:
            self.before_page(page)
        everybody = list(self._broker.connections.items())
        clients = [_described(*client) for client in everybody[(page - 1) * limit : page * limit]]
        meta = {"page": page, "limit": limit, "hasnext": len(everybody) > page * limit, "count": len(everybody)}
        return as_json({"data": clients, "meta": meta})

    def _client(self, client_id: str) -> Response:
        connected_at = self._broker.connections.get(client_id)
        if connected_at is None and client_id not in self._broker.sessions:
            return _error(404, "CLIENTID_NOT_FOUND", "Client ID not found")
        return as_json(_described(client_id, connected_at))


def _published_port(dashboard: Mapping[str, Any], docker_options: str) -> int | None:
    """Return the host's port that leads to the API, or None where it is off or cannot be reached.

    `127.0.0.1` in `bind` is the container's own loopback: what Docker publishes does not lead there.
    """
    bind = str(((dashboard.get("listeners") or {}).get("http") or {}).get("bind", 0))
    address, _, port = bind.rpartition(":")
    if address in {"127.0.0.1", "localhost"}:
        return None
    published = {found["container"]: int(found["host"]) for found in _PUBLISHED.finditer(docker_options)}
    return published.get(port)


def _described(client_id: str, connected_at_ms: int | None) -> dict[str, Any]:
    described: dict[str, Any] = {"clientid": client_id, "connected": connected_at_ms is not None}
    if connected_at_ms is not None:
        whole, part = divmod(connected_at_ms, 1000)
        described["connected_at"] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{part:03d}+00:00"
    return described


def _error(status: int, code: str, message: str) -> Response:
    return as_json({"code": code, "message": message}, status)
