"""Runs the unit tests on the oldest and the newest Python of this machine, side by side.

Usage: versions.py FOLDER, with the Python that runs the whole suite: that one is not run again. Each other Python gets
an environment of its own in the folder. A machine without another Python has nothing to run, which is no failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MINORS = range(10, 15)
_TESTS = ("-m", "not e2e and not long", "--ignore=tests/unit/packaging")
"""Packaging looks for a Python by itself: it shows nothing about the one that runs the tests."""
_PROBE = "import sys, venv, ensurepip, sqlite3, ssl; print(sys.executable, sys.version_info[1], sep='\\n')"


def candidates(minor: int) -> Iterator[str]:
    """Yield where a Python 3 may be: on the PATH, and with pyenv, whose shims run only the versions in force."""
    yield f"python3.{minor}"
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False).stdout.strip()
        yield from map(str, sorted(Path(root).glob(f"versions/3.{minor}.*/bin/python3.{minor}")))


def run_of(python: str, minor: int) -> str:
    """Return the path of a Python that really runs and has what an environment needs; else nothing."""
    try:
        answer = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    executable, _, version = answer.stdout.strip().partition("\n")
    return executable if answer.returncode == 0 and version == str(minor) else ""


def find() -> dict[int, str]:
    """Return the Pythons of this machine by the minor of their version, oldest first."""
    found = {minor: next(filter(None, (run_of(name, minor) for name in candidates(minor))), "") for minor in MINORS}
    return {minor: python for minor, python in found.items() if python}


def test(python: str, folder: Path) -> tuple[bool, str]:
    """Set an environment up and run the tests in it; return whether they passed, and what was printed."""
    commands = (
        [python, ".ci/environment.py", str(folder), "requirements.txt", "requirements-dev.txt"],
        [str(folder / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *_TESTS],
    )
    # Most of what pip installs here is never imported: it need not be compiled.
    environment = {**os.environ, "PIP_COMPILE": "0"}
    printed = ""
    for command in commands:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        printed += done.stdout
        if done.returncode:
            return False, printed
    return True, printed


def main(folder: str) -> int:
    """Find the Pythons and run the tests on them; return the exit status."""
    found = find()
    own = sys.version_info.minor
    print(f"Pythons here: {', '.join(f'3.{minor}' for minor in found) or 'none'}; 3.{own} runs the whole suite.")
    others = {minor: found[minor] for minor in sorted({min(found, default=own), max(found, default=own)} - {own})}
    begin = time.monotonic()
    with ThreadPoolExecutor() as pool:
        runs = {minor: pool.submit(test, python, Path(folder) / f"3.{minor}") for minor, python in others.items()}
    outcomes = {minor: run.result() for minor, run in runs.items()}
    for minor, (_, printed) in outcomes.items():
        print(f"--- Python 3.{minor} ---\n{printed.rstrip()}")
    print(f"Tested on {', '.join(f'3.{minor}' for minor in others) or 'no other'} in {time.monotonic() - begin:.0f} s.")
    return int(not all(passed for passed, _ in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
