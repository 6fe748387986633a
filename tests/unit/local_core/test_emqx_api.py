"""EMQX's HTTP API, asked over real sockets: what the component's own calls do not show."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import urllib3

from local_core.broker import Broker
from local_core.emqx_api import EmqxApi
from local_core.mqtt_client import MqttClient

WRONG_KEY = "BAD_API_KEY_OR_SECRET"
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


@pytest.fixture
async def site(broker: Broker) -> AsyncIterator[Site]:
    """Provide a running broker whose API is switched on."""
    site = Site(broker)
    await site.api.start(site.api.configuration(password="secret"))
    yield site
    await site.api.stop()


async def test_a_client_is_told_as_emqx_does(site: Site) -> None:
    """With times in RFC 3339, on pages of which those beyond the end are empty."""
    await MqttClient("tool/1").connect(site.broker.port)
    token = await site.token()
    status, answer = await site.ask(PAGE + "1", token)
    assert status == 200
    assert answer["meta"] == {"page": 1, "limit": 1000, "hasnext": False, "count": 1}
    (client,) = answer["data"]
    assert (client["clientid"], client["connected"]) == ("tool/1", True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", client["connected_at"])
    assert (await site.ask("clients/tool%2F1", token))[1] == client
    assert (await site.ask(PAGE + "2", token))[1]["data"] == []
    for nonsense in ("limit=0", "limit=x", "page=0", "limit=1001"):
        assert (await site.ask(f"clients?{nonsense}", token))[0] == 400


async def test_the_ways_in(site: Site) -> None:
    """A login's token, until it expires; or an API key by HTTP Basic, and no other (case 37)."""

    async def code(authorization: str) -> str:
        status, answer = await site.ask(PAGE + "1", authorization)
        return str(answer.get("code", status))

    site.api.token_seconds = 0
    assert await code(await site.token()) == "BAD_TOKEN"
    site.api.keys["key"] = "secret"
    for pair, expected in {"key:secret": "200", "key:wrong": WRONG_KEY, "pruner:secret": WRONG_KEY}.items():
        assert await code("Basic " + base64.b64encode(pair.encode()).decode()) == expected
    assert await code("") == WRONG_KEY


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
