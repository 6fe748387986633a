"""The command line on the core device: what people and scripts ask of the component, through its state file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client_device_pruner import __version__
from client_device_pruner.cli import answers
from client_device_pruner.cli.answers import Answer
from client_device_pruner.cli.reading import NOT_UNDERSTOOD, Failed, unreadable
from client_device_pruner.cli.render import say
from client_device_pruner.decisions.policy import State

_EXAMPLES = """\
examples:
  pruner status                    is all well, and if not, what to do
  pruner list --state marked       which devices go next, unless they are seen
  pruner explain press-7           why press-7 is, or is not, going to be disassociated
  pruner history                   what was done, and on what evidence
  pruner restore press-7           associate it again
  pruner status --json             the same as JSON; every command takes --json

exit status: 0 success, 1 failure (standard error says why), 2 wrong use.
Run it as root or as the component's user. Only restore and approve change anything. Times are UTC."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, what its help says, what carries it out, and its own arguments, as argparse has them."""

    name: str
    summary: str
    run: Callable[[argparse.Namespace], Answer]
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_THING = {"metavar": "THING", "help": "the thing name of a client device"}
_STATE = {"choices": [state.value for state in State], "help": "only the devices in this state"}
_FILE = {"metavar": "FILE.html", "type": Path, "help": "the file to write; an existing one is replaced"}
_RESTORED = {
    "things": {"metavar": "THING", "nargs": "*", "help": "thing names of client devices"},
    "--cycle": {"metavar": "ID", "help": "all devices that this cycle disassociated"},
    "--all": {"action": "store_true", "help": "all devices that can be restored (last 90 days)"},
}
_PLAN = {"metavar": "PLAN", "help": "the id of the plan, as pruner status shows it"}
COMMANDS = (
    Command("status", "what is observed, devices by state, guards and remedies", answers.status),
    Command("list", "the client devices, with silence and evidence", answers.list_devices, {"--state": _STATE}),
    Command("explain", "why a device is, or is not, going to be disassociated", answers.explain, {"thing": _THING}),
    Command("history", "what was done, and why", answers.history, {"thing": {**_THING, "nargs": "?"}}),
    Command("report", "one page for a browser: timelines and decisions", answers.report, {"file": _FILE}),
    Command("restore", "associate disassociated devices again, within 60 s", answers.restore, _RESTORED),
    Command("approve", "approve the plan that waits, for the next cycle", answers.approve, {"plan": _PLAN}),
)
"""All commands, in the order of `--help`; one more is one more entry."""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; an absent `command` or `work_dir` is None."""
    whole = argparse.ArgumentParser(
        prog="pruner",
        description="Disassociates client devices from this core device once they are gone.\n"
        "Without a command it runs the component, as Greengrass does; a command shows its state or asks it to act.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=__version__)
    _add_options(whole)
    choices = whole.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        one = choices.add_parser(command.name, help=command.summary, description=command.summary)
        for name, more in command.arguments.items():
            one.add_argument(name, **more)
        # Left out here, they keep what was given before the command.
        _add_options(one, default=argparse.SUPPRESS)
        one.set_defaults(run=command.run, parser=one)
    return whole


def _add_options(one: argparse.ArgumentParser, **default: Any) -> None:
    one.add_argument("--work-dir", type=Path, metavar="DIR", help="the component's work directory", **default)
    one.add_argument("--json", action="store_true", help="answer in JSON, for machines", **default)


def carry_out(options: argparse.Namespace) -> int:
    """Carry out the command that was parsed, and say its answer; returns 0, or 1 if it failed."""
    try:
        # Asked for only where it is needed: the current directory may be gone.
        options.work_dir = options.work_dir or Path.cwd()
        answer: Answer = options.run(options)
        text = json.dumps(answer.value, indent=2) if options.json else answer.text
    except Failed as failure:
        say(str(failure), sys.stderr)
        return 1
    except FileNotFoundError:
        say("The current directory does not exist any more: give --work-dir as an absolute path.", sys.stderr)
        return 1
    except NOT_UNDERSTOOD as error:
        say(str(unreadable(options.work_dir, error)), sys.stderr)
        return 1
    try:
        say(text, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has all that it wanted; Python's own flush at the end is to find nothing broken.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
