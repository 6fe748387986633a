"""`make demo`: the component's main job as a story to follow in the terminal, on an embedded local core."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from amqtt.errors import BrokerError
from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from local_core.component import State
from local_core.core import BRIDGE, LocalCore
from local_core.demo_story import DEVICES, MAPPING, NOTICE_SECONDS, SETTINGS, THRESHOLD_SECONDS, Stage, StoryError, tell
from local_core.devices import ClientDevices, DeviceError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STORY_SECONDS = 60.0
"""The story ends after so long, whatever happens (issue: the two commands)."""
_INSTALL_SECONDS = 120.0
_REFRESH_SECONDS = 0.25
_INTERRUPTED = 130


class Screen:
    """Tells the story on a terminal with a live table below it; elsewhere line by line, with a table a chapter.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage: Stage | None = None

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._console.print()
        self._console.print(Rule(title, align="left"))

    def say(self, text: str) -> None:
        """Say what happens, or what was seen."""
        self._console.print(Text(text))

    def show(self) -> None:
        """Print the table where it is not in sight all the time."""
        if not self._console.is_interactive and self._stage is not None:
            self._console.print(self._table(self._stage))

    @contextlib.asynccontextmanager
    async def watching(self, stage: Stage) -> AsyncIterator[None]:
        """Keep the table in sight and up to date, where that can be."""
        self._stage = stage
        if not self._console.is_interactive:
            yield
            return
        with Live(self._table(stage), console=self._console, auto_refresh=False) as live:
            refreshing = asyncio.create_task(self._refresh(live, stage))
            try:
                yield
            finally:
                refreshing.cancel()
                live.update(self._table(stage), refresh=True)

    @contextlib.contextmanager
    def working(self, text: str) -> contextlib.AbstractContextManager[None]:  # type: ignore[misc]
        """Say that something takes its time, with a spinner where there can be one."""
        if self._console.is_interactive:
            with self._console.status(text):
                yield
        else:
            self.say(text)
            yield

    async def _refresh(self, live: Live, stage: Stage) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            live.update(self._table(stage), refresh=True)

    @staticmethod
    def _table(stage: Stage) -> Group:
        table = Table("device", "broker's truth", "the component thinks", "association")
        for look in stage.looks():
            table.add_row(
                look.name,
                Text("connected", "green") if look.connected else Text("not connected", "red"),
                look.thought,
                "yes" if look.associated else Text("none", "bold"),
            )
        clock = stage.clock()
        if clock is None:
            return Group(table)
        state = "goes" if clock.vouching else "stands still"
        line = Text(f"clock of the emqx source: {clock.seconds:.1f} s, {state}", "green" if clock.vouching else "yellow")
        return Group(table, line)
