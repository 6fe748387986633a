"""What the tests of pruning share: a core device whose devices are known, without a log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.cloud_child import CORE
from fakes.core_device import CoreDevice, KnownDevices
from local_core.cloud import Cloud


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No log: a virtual day has a long one."""
    monkeypatch.setattr(logging.getLogger("client_device_pruner"), "disabled", True)


@pytest.fixture
def known(tmp_path: Path) -> Iterator[KnownDevices]:
    """Makes a core device on which the named client devices are associated and connected."""
    made: list[CoreDevice] = []

    def make(*names: str, **settings: Any) -> CoreDevice:
        core = CoreDevice(tmp_path, **settings)
        made.append(core)
        core.cloud.associate(*names)
        core.start()
        core.connect(*names)
        core.run_until(lambda: core.of_type("cycle"), 3_600)
        return core

    yield make
    for core in made:
        core.stop()


@pytest.fixture
def marked(known: KnownDevices) -> KnownDevices:
    """Makes such a core device, of whose client devices the first one has left and has just been marked."""

    def make(gone: str, *others: str, **settings: Any) -> CoreDevice:
        core = known(gone, *others, **settings)
        core.disconnect(gone)
        core.run_until(lambda: core.of_type("marked"), 90_000)
        return core

    return make


@pytest.fixture
async def cloud(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """A cloud that serves an empty list, to which the environment leads."""
    cloud = Cloud(core_device=CORE)
    await cloud.start()
    for name, value in {
        "AWS_REGION": cloud.region,
        "AWS_ENDPOINT_URL_GREENGRASSV2": cloud.url,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": cloud.credentials_url,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": cloud.credentials_token,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    # Case 32: the child does not rely on it.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    yield cloud
    await cloud.stop()
