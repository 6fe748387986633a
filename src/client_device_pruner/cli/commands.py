"""The command line on the core device: what people and scripts ask of the component, through its state file."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client_device_pruner import __version__
from client_device_pruner.cli import answers
from client_device_pruner.cli.answers import Answer, Failed
from client_device_pruner.cli.reading import StateUnreadable
from client_device_pruner.cli.render import Painter, say
from client_device_pruner.decisions.policy import State


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, what its help says, what carries it out, and its own arguments, as argparse has them."""

    name: str
    summary: str
    teaching: str
    run: Callable[[argparse.Namespace], Answer]
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` and `work_dir` are None where they are not given."""
    whole = argparse.ArgumentParser(
        prog="pruner",
        description="Disassociates client devices from this core device once they are gone.\n"
        "Without a command it runs the component, which Greengrass does; the commands ask it, or tell it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=__version__)
    _add_options(whole)
    choices = whole.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        one = choices.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=command.teaching,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        # Asked for only where it is needed: the current directory may be gone.
        options.work_dir = options.work_dir or Path.cwd()
        answer: Answer = options.run(options)
    except (Failed, StateUnreadable) as failure:
        say(str(failure), sys.stderr)
        return 1
    except FileNotFoundError:
        say("The current directory is gone: give --work-dir, with a path from the root.", sys.stderr)
        return 1
    try:
        if options.json:
            sys.stdout.write(json.dumps(answer.value, indent=2) + "\n")
        else:
            say(answer.text(Painter(sys.stdout)), sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        # Python's own flush at the end is to find nothing broken.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # the reader has all that it wanted
        say(f"The answer cannot be written: {error.strerror}.", sys.stderr)
        return 1
    return 0


_EXAMPLES = """\
examples:
  pruner status                    is all well, and if not, what is to be done
  pruner list --state marked       what goes next unless it is seen
  pruner explain press-7           why press-7 is, or is not, going to be disassociated
  pruner history                   what was done, and on what evidence
  pruner restore press-7           undo it
  pruner status --json             the same for machines; every command has it

exit status: 0 done, 1 it could not be done (a sentence on standard error says why), 2 wrong use.
Run it as root or as the component's user. All but restore and approve only read. Times are UTC."""
_STATUS = """\
Every silence is measured in observed time. It passes while the message that the component sends itself through the
broker comes back, and every input in use is alive. An input is in use once it has been heard.
"Removable" tells how many devices would be disassociated once they are gone, and what is missing for the others."""
_LIST = """\
columns:
  STATE      present    connected, as far as is known
             silent     seen before, and not connected
             neverSeen  not seen since it was associated
             marked     gone; its grace period runs
             due        gone, and its grace period is over: the next cycle disassociates it, unless a guard holds
             protected  protectedDevices names it: it is never disassociated
  LAST SEEN  by the wall clock of this core device
  SILENT     observed time since it was last known to be alive
  PATIENCE   how long it may be silent: its threshold, or twice its longest silence, if that is longer
  EVIDENCE   what shows, or would show, that it is gone: clientList, connectionCount or rhythm
  DUE        what is left of its grace period, in observed time"""
_HISTORY = """\
WHAT: marked, unmarked, intended (sent, the outcome is not known yet), disassociated (confirmed), failed, returned (seen
after that), restored (associated again)."""
_RESTORE = """\
The request is left in the state file; the component takes it up within 60 s. Its role needs
greengrass:BatchAssociateClientDeviceWithCoreDevice for it. A restored device counts as seen at that time."""
_APPROVE = """\
When so many devices are due together that a mistake or an outage is more likely than so many losses, they wait as
a plan. See with pruner status whether they are really gone, then approve it. The approval covers only the devices of
the plan, and spares those that have come back."""
_STATE = {"choices": [state.value for state in State], "help": "only the devices in this state"}
_THING = {"metavar": "THING", "help": "the thing name of a client device"}
_FILE = {"metavar": "FILE.html", "type": Path, "help": "the file to write; one that exists is replaced"}
_RESTORED = {
    "things": {"metavar": "THING", "nargs": "*", "help": "thing names of client devices"},
    "--cycle": {"metavar": "ID", "help": "all that this cycle disassociated"},
    "--all": {"action": "store_true", "help": "all that can be restored: of the last 90 days"},
}
_PLAN = {"metavar": "PLAN", "help": "the id of the plan, as pruner status shows it"}
COMMANDS = (
    Command("status", "what is observed, devices by state, what holds and what to do", _STATUS, answers.status),
    Command("list", "the client devices, with silence and evidence", _LIST, answers.list_devices, {"--state": _STATE}),
    Command("explain", "why a device is, or is not, going to be disassociated", "", answers.explain, {"thing": _THING}),
    Command("history", "what was done, and why", _HISTORY, answers.history, {"thing": {**_THING, "nargs": "?"}}),
    Command("report", "one page for a browser: timelines, and what was decided", "", answers.report, {"file": _FILE}),
    Command("restore", "associate again what was disassociated", _RESTORE, answers.restore, _RESTORED),
    Command("approve", "approve the plan that waits", _APPROVE, answers.approve, {"plan": _PLAN}),
)
"""All commands, in the order of `--help`; one more is one more entry."""
