"""The whole core device: what the end-to-end tests, which live on it, do not show."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local_core.__main__ import main
from local_core.control import serve
from local_core.core import EMQX, LocalCore
from local_core.devices import ClientDevices

NAME = "com.example.Test"
RECIPE = f"""
ComponentName: {NAME}
Manifests: [{{Platform: {{os: linux}}, Lifecycle: {{run: exit 0}}}}]
"""


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[LocalCore]:
    """A core, deep in the file system, not yet deployed to."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    async with LocalCore(tmp_path / ("deep" * 20) / ("deeper" * 10), recipe=tmp_path / "recipe.yaml") as started:
        yield started


async def test_emqx_takes_a_new_configuration_as_aws_component_does(core: LocalCore) -> None:
    """Docker options start the broker anew, anything else its listener; the API is there when both say so."""

    def reach(port: int) -> None:
        socket.create_connection(("127.0.0.1", port)).close()

    async with ClientDevices(lambda: core.broker.port) as devices:
        await devices.connect("robot-1", clean=False)
        await core.deploy({EMQX: {"merge": {"emqxConfig": {"sys_topics": {}}}}})
        assert (core.broker.connections, core.broker.sessions) == ({}, {"robot-1"})
        await core.deploy({EMQX: {"merge": core.emqx_api.configuration()}})
        assert core.broker.sessions == set()
    await asyncio.to_thread(reach, core.emqx_api.port)
    await core.deploy({EMQX: {"reset": [""]}})
    with pytest.raises(ConnectionRefusedError):
        reach(core.emqx_api.port)


async def test_a_call_from_elsewhere_that_fails_says_why(core: LocalCore, capsys: pytest.CaptureFixture[str]) -> None:
    """From another process: no such method, or no core; the documentation's own commands show what succeeds."""
    control = await serve(core)

    async def failure(*arguments: str) -> str:
        await asyncio.to_thread(main, ["--root", str(core.root), "call", *arguments])
        return capsys.readouterr().err

    assert "AttributeError" in await failure("bridge.fly")
    control.close()
    core.socket_path.with_name("control.sock").unlink(missing_ok=True)
    assert "no core runs" in await failure()
