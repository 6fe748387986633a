"""What the tests of pruning share: a core device whose devices are known, without a log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.core_device import CoreDevice, KnownDevices


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
