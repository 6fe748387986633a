"""Command line of the embedded local core."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from amqtt.errors import BrokerError

from local_core.control import ControlError, ControlServer, ask
from local_core.core import LocalCore


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0, or 1 if it failed."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "start":
            asyncio.run(_start(options))
        else:
            _ask(options)
    except KeyboardInterrupt:
        return 0
    except (BrokerError, ControlError, OSError, ValueError) as error:
        print(f"local_core: {error}", file=sys.stderr)  # noqa: T201 - a command line prints
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--root", type=Path, default=Path("local-core"), help="directory of the core")
        return added

    start = command("start", "Run a core device in the foreground, until Ctrl-C.")
    start.add_argument("--recipe", type=Path, help="recipe; the repository's by default")
    start.add_argument("--environment", type=Path, help="virtual environment to link instead of running install")
    start.add_argument("--thing-name", default="core-1", help="name of the core device")
    start.add_argument("--mqtt-port", type=int, default=0, help="port of the broker; 0: a free one")
    start.add_argument("--count-interval", type=float, default=60.0, help="seconds between the broker's counts")
    start.add_argument("--uptime-interval", type=float, default=30.0, help="seconds between its uptimes")
    start.add_argument("--no-presence", action="store_true", help="a broker without $SYS topics, as Moquette")
    start.add_argument("--lite", action="store_true", help="behave as Greengrass Lite")
    start.add_argument("--deploy", type=Path, metavar="FILE", help="JSON to deploy at once, see deploy")
    deploy = command("deploy", 'Deploy {"<component>": {"reset": [pointers], "merge": {…}}} from a JSON file.')
    deploy.add_argument("file", type=Path)
    for name in ("associate", "disassociate"):
        command(name, f"{name.capitalize()} client devices by thing name.").add_argument("names", nargs="+")
    command("list", "List the associated client devices, and whether they are connected.")
    for name in ("bridge", "broker"):
        command(name, f"Start or stop the {name}.").add_argument("action", choices=["start", "stop"])
    component = command("component", "Start, stop or kill the component.")
    component.add_argument("action", choices=["start", "stop", "kill"])
    command("status", "Show ports, paths and states.")
    events = command("events", "Print the component's events.")
    events.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    return parser


async def _start(options: argparse.Namespace) -> None:
    updates = json.loads(options.deploy.read_text("utf-8")) if options.deploy else None
    core = LocalCore(
        options.root,
        recipe=options.recipe,
        environment=options.environment,
        thing_name=options.thing_name,
        presence=not options.no_presence,
        count_interval_seconds=options.count_interval,
        uptime_interval_seconds=options.uptime_interval,
        mqtt_port=options.mqtt_port,
        lite=options.lite,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with core:
        control = ControlServer(core)
        await control.start()
        try:
            _greet(core, options.root)
            if updates is not None:
                await core.deploy(updates)
            await stopped.wait()
        finally:
            await control.stop()


def _greet(core: LocalCore, root: Path) -> None:
    source, python, quoted = Path(__file__).parents[1], sys.executable, shlex.quote(str(root))
    command = f"PYTHONPATH={source} {python} -m local_core {{}} --root {quoted}"
    lines = [
        f"Core device {core.thing_name} is up; Ctrl-C ends it.",
        f"  MQTT broker      127.0.0.1:{core.broker.port}  (attach your devices: client id = thing name)",
        f"  Cloud stand-in   {core.cloud.url}",
        f"  Work directory   {core.work_dir}",
        f"  Component log    {core.root / 'logs' / (core.recipe.name + '.log')}",
        "Next, in another terminal:",
        f"  {command.format('associate THING')}",
        f"  {command.format('deploy FILE.json')}  ({{}} installs and starts the component)",
        f"  {command.format('events --follow')}",
    ]
    print("\n".join(lines), flush=True)  # noqa: T201 - a command line prints


def _ask(options: argparse.Namespace) -> None:
    arguments: dict[str, Any] = {k: v for k, v in vars(options).items() if k in {"names", "action", "follow"} and v}
    if options.command == "deploy":
        arguments["updates"] = json.loads(options.file.read_text("utf-8"))
    for result in ask(options.root, options.command, **arguments):
        text = json.dumps(result, indent=None if options.command == "events" else 2)
        print(text, flush=True)  # noqa: T201 - a command line prints


if __name__ == "__main__":
    sys.exit(main())
