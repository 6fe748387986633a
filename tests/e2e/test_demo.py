"""The demo, as `make demo` runs it, with this environment's packages in place of an installation."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e]

SOURCE = Path(__file__).parents[2] / "src"
TOLD = (
    "unmarked: sensor",
    "held: notObserving",
    "observed time: [0-9.]+ s, stands still",
    "released: notObserving",
    "observed time: [0-9.]+ s, passes",
    "disassociated: camera, silent for [0-9.]+ s, evidence connectionCount",
    "disassociated: door, silent for [0-9.]+ s, evidence clientList",
    "sudo /greengrass/v2/work/community.greengrass.ClientDevicePruner/pruner status",
)


async def test_the_demo_tells_its_story(tmp_path: Path) -> None:
    """One comes back in time, none goes while a connection is unnamed, one goes by the count and one by the list."""
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local_core.demo", "--environment", sys.prefix),
        cwd=tmp_path,
        env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    said = " ".join((await demo.communicate())[0].decode().split())
    assert demo.returncode == 0, said
    assert re.search(".*".join(TOLD), said), said
    assert "stands still" not in said[said.index("released: notObserving") : said.index("5. No device")], said
    assert (tmp_path / "build/demo-report.html").stat().st_size > 10_000
