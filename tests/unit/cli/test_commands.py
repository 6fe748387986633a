"""The command line itself: options, exit status, and how answers are put out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from client_device_pruner import cli
from client_device_pruner.cli.commands import COMMANDS, carry_out, parser
from fakes.state import Pruner

SOURCES = Path(cli.__file__).parents[2]
PROGRAM = (
    "import sys; from client_device_pruner.cli.commands import carry_out, parser;"
    " sys.exit(carry_out(parser().parse_args(sys.argv[1:])))"
)


def run(*arguments: str, script: str = PROGRAM) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env={"PYTHONPATH": str(SOURCES)}, capture_output=True, check=False)


def test_options_stand_before_or_after_the_command(pruner: Pruner, capsys: pytest.CaptureFixture[str]) -> None:
    """`--work-dir` and `--json` mean the same in both places."""
    options = parser().parse_args(["--work-dir", str(pruner.state.work_dir), "--json", "list"])

    assert carry_out(options) == 0
    assert json.loads(capsys.readouterr().out) == pruner.value("list")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["list", "--state", "nonsense"], ["explain"], ["approve"], ["report"], ["restore"],
        ["restore", "a", "--all"], ["restore", "--all", "--cycle", "c1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_is_status_2(pruner: Pruner, arguments: list[str]) -> None:
    """What the command line does not know."""
    with pytest.raises(SystemExit) as ended:
        pruner.run(*arguments)
    assert ended.value.code == 2


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole one, and each one's own."""
    for arguments in ([], *([command.name] for command in COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([*arguments, "--help"])
        assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n    {command.name} " in said for command in COMMANDS)


def test_reading_changes_nothing(pruner: Pruner, tmp_path: Path) -> None:
    """Reading commands leave the state as it is, byte for byte."""
    pruner.state.disassociate("c1", "gone-1")
    path = pruner.state.work_dir / "pruner.db"
    before = path.read_bytes()

    for command in (["status"], ["list"], ["explain", "press-2"], ["history"], ["report", str(tmp_path / "r.html")]):
        pruner.text(*command)

    assert path.read_bytes() == before


def test_a_directory_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    """Case 22: where nothing says in which work directory to look."""
    gone = str(tmp_path / "gone")
    done = run("status", script=f"import os; os.mkdir({gone!r}); os.chdir({gone!r}); os.rmdir({gone!r}); {PROGRAM}")
    assert (done.returncode, done.stderr[:50]) == (1, b"The current directory does not exist any more: giv")


def test_a_reader_that_leaves_early_is_no_failure(pruner: Pruner) -> None:
    """`pruner list | head -1`: no traceback, status 0."""
    for number in range(3_000):
        pruner.state.add(f"thing-{number}", "silent", 1.0)
    pruner.state.write()
    command = [sys.executable, "-c", PROGRAM, "list", "--json", "--work-dir", str(pruner.state.work_dir)]
    environment = {"PYTHONPATH": str(SOURCES)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()

    assert (process.wait(), said) == (0, b"")


def test_commands_import_neither_the_sdk_nor_boto3(pruner: Pruner) -> None:
    """A command on a small device loads only the standard library and the package itself."""
    script = (
        f"{PROGRAM.partition('sys.exit')[0]} carry_out(parser().parse_args(sys.argv[1:]));"
        " sys.exit(any(name.split('.')[0] in ('awsiot', 'awscrt', 'boto3', 'urllib3') for name in sys.modules))"
    )

    assert run("status", "--work-dir", str(pruner.state.work_dir), script=script).returncode == 0
