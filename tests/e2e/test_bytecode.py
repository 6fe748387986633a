"""What `install` compiles is all that will run, where the recipe has it looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trial_site import REPOSITORY, MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def bytecode(*folders: Path) -> dict[Path, int]:
    """What is compiled below at the recipe's level, with inodes: Python replaces a file that it writes anew."""
    return {path: path.stat().st_ino for folder in folders for path in folder.rglob("*.opt-2.pyc")}


async def test_a_start_and_a_cycle_compile_nothing(make_site: MakeSite) -> None:
    """Component and child process find all of their modules, and write none there, in artifact or environment."""
    site = await make_site(bytecode=None)
    cache = site.core.work_dir / "bytecode"
    await site.core.fill_bytecode()
    elsewhere = [REPOSITORY / "src/client_device_pruner", Path(sys.prefix)]
    compiled, others = bytecode(cache), bytecode(*elsewhere)
    assert len(compiled) == sum(1 for _ in cache.rglob("*.pyc"))

    site.core.cloud.associate("dead", "alive")
    await site.deploy()
    await site.event("cycle")
    for name in ("dead", "alive"):
        await site.devices.connect(name, process=name)
    await site.event("released", guard="source:emqx")
    await site.devices.kill("dead")
    await site.event("disassociated", "dead")
    await site.core.stop_component()

    assert bytecode(cache) == compiled
    assert bytecode(*elsewhere) == others
