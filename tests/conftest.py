"""Fixtures of all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def audible_log() -> Iterator[None]:
    """Simulations and fuzzing silence the component's log in their process for good; the next test is to hear it."""
    logger = logging.getLogger("client_device_pruner")
    before = logger.disabled
    yield
    logger.disabled = before
