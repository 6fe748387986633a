"""`make demo`: the component's main job as a story to follow in the terminal, on an embedded local core."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from local_core.component import State
from local_core.core import BRIDGE, LocalCore
from local_core.demo_story import DEVICES, GRACE_SECONDS, MAPPING, SETTINGS, THRESHOLD_SECONDS, Stage, StoryError, tell
from local_core.devices import ClientDevices, DeviceError

REPORT = Path("build/demo-report.html")
"""Where the report page of the run is kept, below the current directory."""
_INSTALL_SECONDS = 120.0
_REFRESH_SECONDS = 0.25
_REPORT_SECONDS = 30.0
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

    def paste(self, text: str) -> None:
        """Print text to be copied, unchanged."""
        self._console.print(Text(text), soft_wrap=True)

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
    def working(self, text: str) -> Iterator[None]:
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
        table = Table("device", "in the broker", "in the component", "association")
        for look in stage.looks():
            table.add_row(
                look.name,
                Text("connected", "green") if look.connected else Text("not connected", "red"),
                look.thought,
                "yes" if look.associated else Text("none", "bold"),
            )
        observed = stage.observed()
        if observed is None:
            return Group(table)
        passes = "passes" if observed.passes else "stands still"
        line = f"observed time: {observed.seconds:.1f} s, {passes}"
        return Group(table, Text(line, "green" if observed.passes else "yellow"))


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return 0, 1 if the story did not come out as told, or 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m local_core.demo", description=__doc__)
    parser.add_argument(
        "--environment", type=Path, help="virtual environment to link instead of running the recipe's install"
    )
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        asyncio.run(_run(options.environment, console))
    except (StoryError, DeviceError, OSError) as error:
        console.print(Text(f"\nThe demo failed: {error}", "bold red"))
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print("\nInterrupted: the demo ended all that it had started, and removed its directory.")
        return _INTERRUPTED
    return 0


async def _run(environment: Path | None, console: Console) -> None:
    loop, story = asyncio.get_running_loop(), asyncio.current_task()
    assert story is not None  # noqa: S101 - a coroutine runs in a task; for mypy

    def interrupt() -> None:
        # Once: tearing down is not to be interrupted itself.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: None)
        story.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    screen = Screen(console)
    _introduce(screen)
    with tempfile.TemporaryDirectory(prefix="client-device-pruner-demo-") as root:
        async with AsyncExitStack() as stack:
            stage = await _set_up(environment, Path(root), screen, stack)
            try:
                await _play(stage, screen)
            except StoryError:
                screen.say(
                    "\nThe last lines that the component wrote:\n" + "\n".join(stage.core.component.output[-10:])
                )
                raise
            await asyncio.to_thread(_keep_report, stage.core.work_dir, screen)
    _say_what_next(screen)


def _introduce(screen: Screen) -> None:
    screen.chapter("ClientDevicePruner: the main job, on an embedded local core")
    screen.say(
        "The component disassociates a client device that is gone, and never one that still works."
        " Here the component runs from its own recipe, with a broker that acts like EMQX, a bridge, and a"
        " stand-in for the cloud. Days are seconds here (allowShortDurations):"
        f" offlineThreshold is {THRESHOLD_SECONDS:g} s instead of 30 days,"
        f" gracePeriod {GRACE_SECONDS:g} s instead of 1 day, and a cycle runs every second instead of every 6 hours."
    )


async def _set_up(environment: Path | None, root: Path, screen: Screen, stack: AsyncExitStack) -> Stage:
    """Start a core that runs the component, and devices that can connect to it."""
    core = None
    if environment is None:
        with screen.working("Installing the component as its recipe says (with pip; this may take 20 s or more) ..."):
            core = await _installed(root / "installed", stack)
        if core is None:
            screen.say(
                "The installation failed (no package index?): the demo uses this environment's packages instead."
            )
    if core is None:
        core = await stack.enter_async_context(_core(root / "linked", environment or Path(sys.prefix)))
        await _deploy(core)
    return Stage(core, await stack.enter_async_context(ClientDevices(lambda: core.broker.port)))


async def _play(stage: Stage, screen: Screen) -> None:
    with screen.working("Waiting until the component observes ..."):
        await stage.until(
            "the component observes",
            lambda: stage.events("cycle") and stage.observes(),
        )
    async with screen.watching(stage):
        await tell(stage, screen)


async def _installed(root: Path, stack: AsyncExitStack) -> LocalCore | None:
    """Start a core that installs the component by its recipe; None if it cannot be installed here and now."""
    async with AsyncExitStack() as attempt:
        core = await attempt.enter_async_context(_core(root, None))
        await _deploy(core)
        with contextlib.suppress(TimeoutError):
            state = await core.component.wait_for_state(
                State.RUNNING, State.ERRORED, State.BROKEN, timeout_seconds=_INSTALL_SECONDS
            )
            if state is State.RUNNING:
                stack.push_async_exit(attempt.pop_all())
                return core
    return None


def _core(root: Path, environment: Path | None) -> LocalCore:
    # No uptimes: at this scale one that comes half a second late looks like a restart of the broker.
    core = LocalCore(root, environment=environment, count_interval_seconds=0.5, uptime_interval_seconds=3600.0)
    core.cloud.associate(*DEVICES)
    return core


async def _deploy(core: LocalCore) -> None:
    await core.deploy({core.recipe.name: {"merge": SETTINGS}, BRIDGE: {"merge": {"mqttTopicMapping": MAPPING}}})


def _keep_report(work_dir: Path, screen: Screen) -> None:
    """Write the report page of the run, by the component's own command, to where it outlives the core."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    command = [str(work_dir / "pruner"), "report", str(REPORT.absolute())]
    written = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_REPORT_SECONDS)
    screen.chapter("The run on one page")
    if written.returncode:
        raise StoryError(f"The report page could not be written: {written.stderr.strip()}")
    screen.say(
        "pruner report writes all of it as one page, with every device's timeline and the evidence of each decision:"
    )
    screen.paste(f"  {REPORT.absolute().as_uri()}")


def _say_what_next(screen: Screen) -> None:
    screen.chapter("Next: the same on a core device of yours")
    screen.paste(
        "1. Set bucket and region in gdk-config.json, then:\n"
        "     gdk component build && gdk component publish\n"
        "2. Allow the core devices to list their client devices: deploy the stack deploy/template.yaml.\n"
        "3. Fill in deploy/deployment-dry-run.json, and deploy it to a new group of one core device. A deployment\n"
        "   replaces the group's previous one: if the group has one, copy its components in first (docs/deploy.md).\n"
        "   The document has the component with dryRun, EMQX with its API, and the entries of this demo's bridge:"
    )
    entries = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in MAPPING.items())
    screen.paste(f'{{"mqttTopicMapping": {{\n{entries}}}}}')
    screen.paste(
        "4. Ask the core device:\n"
        "     sudo /greengrass/v2/work/community.greengrass.ClientDevicePruner/pruner status\n"
        "   It shows what the component hears, what is missing, and how many devices could be removed.\n"
        "5. Name the devices that must always stay in protectedDevices, then deploy the same\n"
        "   with deploy/deployment-live.json."
    )


if __name__ == "__main__":
    sys.exit(main())
