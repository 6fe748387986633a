"""Command line of the embedded local core."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from local_core.control import ControlError, ask, serve
from local_core.core import LocalCore

_CALLS = """calls: status · cloud.associate THING… · cloud.disassociate THING… · deploy JSON · stop_component ·
start_component · component.kill · bridge.stop · bridge.start · broker.stop · broker.start · reboot …"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0, or 1 if it failed."""
    parser = argparse.ArgumentParser(prog="python -m local_core", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("local-core"), help="directory of the core")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="run a core device in the foreground, until Ctrl-C")
    start.add_argument("--recipe", type=Path, help="recipe; the repository's by default")
    start.add_argument("--environment", type=Path, help="virtual environment to use instead of creating one")
    start.add_argument("--mqtt-port", type=int, default=0, help="port of the broker; 0: a free one")
    start.add_argument("--moquette", dest="presence", action="store_false", help="a broker without $SYS topics")
    start.add_argument("--lite", action="store_true", help="behave as Greengrass Lite")
    call = commands.add_parser("call", help="call a method of the core, and show the core's status", epilog=_CALLS)
    call.add_argument("call", nargs="?", default="status")
    call.add_argument("arguments", nargs="*", type=_json_or_text)
    options = vars(parser.parse_args(arguments))
    command, root = options.pop("command"), options.pop("root")
    try:
        if command == "start":
            asyncio.run(_start(root, options))
        else:
            status = ask(root, options["call"], *options["arguments"])
            print(json.dumps(status, indent=2))  # noqa: T201 - a command line prints
    except (ControlError, OSError) as error:
        print(f"local_core: {error}", file=sys.stderr)  # noqa: T201 - a command line prints
        return 1
    return 0


def _json_or_text(argument: str) -> Any:
    return json.loads(argument) if argument.startswith("{") else argument


async def _start(root: Path, options: dict[str, Any]) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with LocalCore(root, **options) as core:
        control = await serve(core)
        command = f"PYTHONPATH={Path(__file__).parents[1]} {sys.executable} -m local_core --root {core.root}"
        greeting = f"""The core device {core.thing_name} is up; Ctrl-C ends it.
  MQTT broker      127.0.0.1:{core.broker.port}  (connect your devices: client id = thing name)
  Work directory   {core.work_dir}
Next, in another terminal:
  {command} call cloud.associate THING
  {command} call deploy '{{}}'    (installs and starts the component)
  tail -F {core.events_path}"""
        print(greeting, flush=True)  # noqa: T201 - a command line prints
        await stopped.wait()
        control.close()


if __name__ == "__main__":
    sys.exit(main())
