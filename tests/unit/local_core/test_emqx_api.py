"""Where EMQX's HTTP API is served; what it answers is shown by the component's own calls for the client list."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest
import urllib3

from local_core.broker import Broker
from local_core.emqx_api import EmqxApi


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
async def test_it_serves_where_the_configuration_says_so(broker: Broker, bind: Any, options: str, served: bool) -> None:
    """And Docker publishes the port, for EMQX's own login; the container's own loopback is reached by nobody."""
    api = EmqxApi(broker)
    dashboard = {"listeners": {"http": {"bind": bind}}}
    await api.start({"emqxConfig": {"dashboard": dashboard}, "dockerOptions": options.format(port=api.port)})
    login = {"username": "admin", "password": "public"}
    with nullcontext() if served else pytest.raises(urllib3.exceptions.NewConnectionError):
        answer = await asyncio.to_thread(urllib3.request, "POST", f"{api.url}/login", json=login, retries=False)
        assert answer.status == 200
    await api.stop()
