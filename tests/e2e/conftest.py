"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from e2e.trial import MakeTrial, Trial
from local_core.core import LocalCore
from local_core.devices import ClientDevices


@pytest.fixture
async def make_trial(tmp_path: Path) -> AsyncIterator[MakeTrial]:
    """Makes a local core with this environment's packages, not yet deployed to; takes it down in the end.

    Options are those of `LocalCore`. Counts come often; uptimes only where a test wants to see the broker restart,
    since one that a busy machine delays by a second looks like a restart under a trial's settings.
    """
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Trial:
            options = {"environment": Path(sys.prefix), "count_interval_seconds": 0.5, **options}
            core = await stack.enter_async_context(LocalCore(options.pop("root", tmp_path / "core"), **options))
            devices = await stack.enter_async_context(ClientDevices(lambda: core.broker.port))
            return Trial(core, devices)

        yield make


@pytest.fixture
async def trial(make_trial: MakeTrial) -> Trial:
    """A core with EMQX and the bridge, not yet deployed to."""
    return await make_trial()
