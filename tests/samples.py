"""The site that the documentation shows: 14 days of one core device in virtual time, and pictures of its report page.

`PYTHONPATH=src:tests .venv/bin/python -m samples` makes the pictures anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from unittest import mock

from client_device_pruner.cli.commands import carry_out, parser
from client_device_pruner.store.database import lock_instance
from e2e.browser import browse
from fakes.broker import FakeBroker
from fakes.clock import FakeClock
from fakes.component import Component, World

DAY = 86_400.0
DAYS = 14.0
END = 1_800_000_000.0
"""The wall clock at the end, in epoch seconds: 2027-01-15 08:00:00Z."""
_BOOTED = 1_000.0
_INTERVAL_SECONDS = 600.0  # of probe, list and counts: as true as the defaults, and ten times as fast
_LATER_SECONDS = 34.0  # after the component last wrote: when the commands run
_PICTURES = {"light": "report.png", "dark": "report-dark.png"}
_DOCS = Path(__file__).parents[1] / "docs"

STAYS = ("press-1", "press-2", "press-3", "press-4", "pump-1")
LEAVES = {"pump-7": 1.5, "pump-8": 1.0, "pump-9": 1.9, "press-6": 3.0, "gate-1": 7.0, "press-5": 11.0}
"""On which day each of these is lost."""
LOST_TOGETHER = ("pump-2", "pump-3", "pump-4", "pump-5", "pump-6")
"""A switch fails on the second day."""
RETURNS = {"pump-8": 13.3, "pump-9": 13.2}
"""On which day: one after it was disassociated, one within its grace period."""
NEVER_SEEN = "sensor-9"


class Site:
    """The core device of the samples, whose 14 days are over.

    Args:
        work_dir: for the state file; must exist.

    Attributes:
        component: the component, which runs.
    """

    def __init__(self, work_dir: Path) -> None:
        self._world = World(FakeClock(_BOOTED, wall_ahead=END - DAYS * DAY - _BOOTED))
        interval = f"{_INTERVAL_SECONDS / 60:g}m"
        presence = {"probeInterval": interval, "clientList": {"interval": interval}}
        self.component = Component(
            self._world,
            work_dir,
            {"offlineThreshold": "10d", "dryRun": True, "protectedDevices": ["gate-*"], "presence": presence},
            client_list=True,
            burst_seconds=0.9 * _INTERVAL_SECONDS,
        )
        self._broker = FakeBroker(self.component, count_seconds=_INTERVAL_SECONDS, uptime_seconds=_INTERVAL_SECONDS)
        self._play()

    def say(self, *arguments: str) -> str:
        """Run a command of the command line at the end; returns what it says, also where it fails."""
        said = io.StringIO()
        options = parser().parse_args([*arguments, "--work-dir", str(self.component.work_dir)])
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), self.running():
            carry_out(options)
        return said.getvalue()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let it be half a minute after the component last wrote, and let it be seen to run."""
        lock = lock_instance(self.component.work_dir)
        assert lock is not None
        try:
            written = self.component.kept("status")["time"]
            with mock.patch.object(time, "time", return_value=written + _LATER_SECONDS):
                yield
        finally:
            os.close(lock)

    def _play(self) -> None:
        world, broker, cloud = self._world, self._broker, self.component.cloud
        names = (*STAYS, *LEAVES, *LOST_TOGETHER)
        cloud.associate(*names, NEVER_SEEN)
        for number, name in enumerate(names):
            world.at(60.0 + number, partial(broker.connect, name))
        for name in STAYS:
            self._come_and_go(name)
        for name, day in LEAVES.items():
            world.at(day * DAY, partial(broker.disconnect, name, "keepalive_timeout"))
        for number, name in enumerate(LOST_TOGETHER):
            world.at(1.7 * DAY + number, partial(broker.disconnect, name, "keepalive_timeout"))
        for name, day in RETURNS.items():
            world.at(day * DAY, partial(broker.connect, name))
        world.at(3 * DAY, lambda: self.component.configure({"dryRun": False}))
        world.at(4 * DAY, lambda: broker.lose_bridge(float("inf")))
        world.at(4.5 * DAY, broker.lose_bridge)
        world.at(6 * DAY, lambda: cloud.fail("list", "throttled", code="ThrottlingException"))
        self.component.start()
        world.run(DAYS * DAY)

    def _come_and_go(self, name: str) -> None:
        dice, at = Random(name), 0.0
        while (at := at + dice.uniform(0.3, 2) * DAY) < (DAYS - 1) * DAY:
            self._world.at(at, partial(self._broker.disconnect, name))
            at += dice.uniform(0.1, 0.5) * DAY
            self._world.at(at, partial(self._broker.connect, name))


def main() -> None:
    """Make the pictures of the report page."""
    with tempfile.TemporaryDirectory() as directory:
        work_dir, file = Path(directory, "work"), Path(directory, "report.html")
        work_dir.mkdir()
        site = Site(work_dir)
        site.say("report", str(file))
        with browse(Path(directory, "profile")) as page:
            for scheme, name in _PICTURES.items():
                page.open(file.as_uri(), height=1000, scheme=scheme)
                page.point(
                    *page.run(
                        """(() => {
                          const rows = [...document.querySelectorAll(".row")];
                          const row = rows.find((one) => one.textContent.includes("pump-7"));
                          const box = row.querySelector("canvas").getBoundingClientRect();
                          const gone = data.devices.find((one) => one.name === "pump-7").decisions.at(-1);
                          return [box.left + placeOf(gone[0], box.width), box.top + box.height / 2];
                        })()"""
                    )
                )
                (_DOCS / name).write_bytes(b64decode(page.call("Page.captureScreenshot", format="png")["data"]))


if __name__ == "__main__":
    main()
