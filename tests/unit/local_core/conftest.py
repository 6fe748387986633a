"""What several tests of the local core start from."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from local_core.broker import Broker


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    """Provide a running broker."""
    broker = Broker()
    await broker.start()
    yield broker
    await broker.stop()
