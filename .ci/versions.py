"""Runs the unit tests and one end-to-end test on the oldest and the newest Python of this machine.

Usage: versions.py FOLDER, with the Python that runs the whole suite: what that covers is not run again. Each Python
gets an environment of its own in the folder. A machine without another Python has nothing to run, which is no failure.
"""

# ruff: noqa: INP001, T201 - a script for people, and part of no package

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MINORS = range(10, 15)
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
LONG = ("crash", "deploy", "environment", "install", "invariants", "mutations", "packaging")
"""Tests of scripts and searches, which take longest and depend least on the Python."""
END_TO_END = "tests/e2e/test_main_job.py::test_a_killed_device_is_disassociated_and_nobody_else"
_PROBE = "import sys, venv, ensurepip, sqlite3, ssl; print(sys.executable, *sys.version_info[:2])"


def candidates(minor: int) -> Iterator[str]:
    """Yield where a Python 3 may be: on the PATH, and with pyenv, whose shims run only the versions in force."""
    if found := shutil.which(f"python3.{minor}"):
        yield found
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
        yield from map(str, sorted(Path(root).glob(f"versions/3.{minor}.*/bin/python3.{minor}"), reverse=True))


def find() -> dict[int, str]:
    """Return the Pythons that really run and have what an environment needs, oldest first."""
    found = {}
    for minor in MINORS:
        for python in candidates(minor):
            answer = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=False)
            executable, _, version = answer.stdout.strip().partition(" ")
            if answer.returncode == 0 and version == f"3 {minor}":
                found[minor] = executable
                break
    return found


def begin(python: str, folder: Path) -> subprocess.Popen[str]:
    """Begin to set an environment up and run the tests in it."""
    set_up = [python, ".ci/environment.py", str(folder), *REQUIREMENTS]
    tests = [f"--ignore=tests/test_{name}.py" for name in LONG]
    pytest = [str(folder / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    script = 'n=$1; shift; begin=; while [ "$n" -gt 0 ]; do n=$((n - 1)); done; exec "$@"'
    del script
    runs = [set_up, [*pytest, "-m", "not e2e", *tests], [*pytest, f"{END_TO_END}[emqx]"]]
    code = "import subprocess, sys\nfor run in eval(sys.argv[1]): subprocess.run(run, check=True)"
    return subprocess.Popen(
        [sys.executable, "-c", code, repr(runs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
