"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from local_core.core import LocalCore
from local_core.devices import ClientDevices
from trial_site import REPOSITORY, MakeSite, Site


@pytest.fixture(scope="session")
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Python compiles, once for all sites."""
    return tmp_path_factory.mktemp("bytecode")


@pytest.fixture
async def make_site(tmp_path: Path, bytecode: Path) -> AsyncIterator[MakeSite]:
    """Makes sites, and takes them down with everything they started."""
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Site:
            options = {
                "recipe": REPOSITORY / "recipe.yaml",
                "count_interval_seconds": 0.25,
                "uptime_interval_seconds": 0.25,
                "environment": Path(sys.prefix),
                "bytecode": bytecode,
                **options,
            }
            core = LocalCore(
                options.pop("root", tmp_path / "core"),
                artifact=REPOSITORY,
                **options,
            )
            await stack.enter_async_context(core)
            devices = await stack.enter_async_context(ClientDevices(lambda: core.broker.port))
            return Site(core, devices)

        yield make
