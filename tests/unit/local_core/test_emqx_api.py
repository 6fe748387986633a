"""EMQX's HTTP API, asked over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import urllib3

from fakes.waiting import until
from local_core.broker import Broker
from local_core.emqx_api import CLIENTS, EMPTY_PAGE, EmqxApi
from local_core.http_server import Fault
from local_core.mqtt_client import MqttClient

PAGE = "clients?conn_state=connected&limit=1000&page="


class Site:
    """A broker, its API, and a client of that."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.api = EmqxApi(broker)
        self.login = {"username": "pruner", "password": "secret"}
        self._pool = urllib3.PoolManager(retries=False)

    async def ask(self, path: str, authorization: str = "", body: Any = None) -> tuple[int, Any]:
        """Return status and parsed answer."""
        headers = {"Authorization": authorization} if authorization else {}
        method, url = "GET" if body is None else "POST", f"{self.api.url}/{path}"
        answer = await asyncio.to_thread(self._pool.request, method, url, json=body, headers=headers)
        return answer.status, answer.json()

    async def token(self) -> str:
        """Log in, and return what authorises."""
        return f"Bearer {(await self.ask('login', body=self.login))[1]['token']}"

    async def connect(self, *names: str, clean: bool = True) -> list[MqttClient]:
        """Connect clients to the broker."""
        clients = [MqttClient(name, clean=clean) for name in names]
        for client in clients:
            await client.connect(self.broker.port)
        return clients


@pytest.fixture
async def site(broker: Broker) -> AsyncIterator[Site]:
    """Provide a running broker whose API is switched on."""
    site = Site(broker)
    await site.api.start(site.api.configuration(password="secret"))
    yield site
    await site.api.stop()


async def test_it_lists_the_connected_clients(site: Site) -> None:
    """In pages, with times in RFC 3339; a page beyond the end is empty, and persistent sessions are left out."""
    await site.connect("a", "b", "c")
    (gone,) = await site.connect("gone", clean=False)
    gone.drop()
    token = await site.token()
    status, answer = await site.ask(PAGE + "1", token)
    assert status == 200
    assert answer["meta"] == {"page": 1, "limit": 1000, "hasnext": False, "count": 3}
    assert [client["clientid"] for client in answer["data"]] == ["a", "b", "c"]
    assert answer["data"][0]["connected"] is True
    assert answer["data"][0]["connected_at"].endswith("+00:00")
    assert answer["data"][0]["connected_at"][10] == "T"

    left = site.broker.connections
    pages = [(await site.ask(f"clients?limit=2&page={number}", token))[1] for number in (1, 2, 3)]
    assert [len(page["data"]) for page in pages] == [2, 1, 0]
    assert [page["meta"]["hasnext"] for page in pages] == [True, False, False]
    assert {page["meta"]["count"] for page in pages} == {len(left)}
    for nonsense in ("limit=0", "limit=x", "page=0", "limit=1001"):
        assert (await site.ask(f"clients?{nonsense}", token))[0] == 400


async def test_it_tells_of_one_client_by_name(site: Site) -> None:
    """Percent-encoded; a persistent session without a connection is not connected, and others are not found."""
    (gone,) = await site.connect("gone", clean=False)
    await site.connect("tool/1")
    gone.drop()
    token = await site.token()
    await until(lambda: "gone" not in site.broker.connections)
    assert (await site.ask("clients/tool%2F1", token))[1]["connected"] is True
    assert (await site.ask("clients/gone", token)) == (200, {"clientid": "gone", "connected": False})
    status, answer = await site.ask("clients/nobody", token)
    assert (status, answer["code"]) == (404, "CLIENTID_NOT_FOUND")


async def test_the_ways_in(site: Site) -> None:
    """A login's token, until it expires or is refused; or an API key by HTTP Basic, and no other (case 37)."""

    async def code(authorization: str) -> str:
        status, answer = await site.ask(PAGE + "1", authorization)
        assert (status == 401) is ("code" in answer)
        return str(answer.get("code", status))

    def basic(pair: str) -> str:
        return "Basic " + base64.b64encode(pair.encode()).decode()

    status, answer = await site.ask("login", body={**site.login, "password": "wrong"})
    assert (status, answer["code"]) == (401, "BAD_USERNAME_OR_PWD")
    token = await site.token()
    assert await code(token) == "200"
    site.api.refuse_tokens()
    assert await code(token) == "BAD_TOKEN"
    site.api.token_seconds = 0
    assert await code(await site.token()) == "BAD_TOKEN"
    site.api.keys["key"] = "secret"
    assert await code(basic("key:secret")) == "200"
    for wrong in ("key:wrong", "pruner:secret", ":", "\u00e4"):
        assert await code(basic(wrong)) == "BAD_API_KEY_OR_SECRET"
    assert await code("") == "BAD_API_KEY_OR_SECRET"


@pytest.mark.parametrize(
    ("bind", "options", "served"),
    [
        (18083, "-p 8883:8883 -p 127.0.0.1:{port}:18083", True),
        ("18083", "--publish {port}:18083/tcp -p 8883:8883", True),
        ("0.0.0.0:18083", "--publish={port}:18083", True),
        ("127.0.0.1:18083", "-p {port}:18083", False),
        (0, "-p {port}:18083", False),
        (18083, "-p 8883:8883", False),
        (18084, "-p {port}:18083", False),
    ],
)
async def test_it_serves_where_the_configuration_says_so(site: Site, bind: Any, options: str, served: bool) -> None:
    """And Docker publishes the port; the container's own loopback is reached by nobody."""
    dashboard = {"listeners": {"http": {"bind": bind}}}
    site.login = {"username": "admin", "password": "public"}
    port = site.api.port
    await site.api.start({"emqxConfig": {"dashboard": dashboard}, "dockerOptions": options.format(port=port)})
    if served:
        assert (await site.ask(PAGE + "1", await site.token()))[0] == 200
    else:
        with pytest.raises(urllib3.exceptions.NewConnectionError):
            await site.token()


async def test_it_fails_to_order(site: Site) -> None:
    """A status, an empty list with 200, and clients that come and go between the pages."""
    clients = await site.connect("a", "b", "c")
    token = await site.token()
    site.api.faults += [Fault(operation=CLIENTS, status=503), Fault(operation=CLIENTS, body=EMPTY_PAGE)]
    assert (await site.ask(PAGE + "1", token))[0] == 503
    assert (await site.ask(PAGE + "1", token)) == (200, json.loads(EMPTY_PAGE))

    asked: list[int] = []
    site.api.before_page = asked.append
    first = (await site.ask("clients?limit=1&page=1", token))[1]["data"]
    clients[0].drop()
    await until(lambda: "a" not in site.broker.connections)
    second = (await site.ask("clients?limit=1&page=2", token))[1]["data"]
    assert [client["clientid"] for client in first + second] == ["a", "c"], "b was on neither page"
    assert asked == [1, 2]
