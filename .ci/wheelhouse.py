"""Fills a folder with the wheels of requirements.txt for every device that Greengrass runs on with glibc.

Usage: wheelhouse.py REQUIREMENTS FOLDER
"""

# ruff: noqa: INP001, T201 - a script for people, and part of no package

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from install_wheels import Target, Unfit, choose, read_requirements

MACHINES = ("x86_64", "aarch64")
MINORS = range(10, 15)
GLIBC = (2, 28)
PLATFORMS = ("manylinux2014", "manylinux_2_28")


def serves(requirements: Path, folder: Path, machine: str, minor: int) -> bool:
    """Whether a folder has all wheels for one machine and Python already: some are for newer Pythons, too."""
    try:
        for requirement in read_requirements(requirements.read_text("utf-8")):
            choose(requirement, folder, Target(minor, machine, GLIBC))
    except Unfit:
        return False
    return True


def download(requirements: Path, folder: Path, machine: str, minor: int) -> bool:
    """Download the wheels for one machine and Python, pinned hashes and all; whether pip could."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--no-deps", "--require-hashes", "--requirement", str(requirements)]
    command += ["--dest", str(folder), "--implementation=cp", f"--python-version=3.{minor}"]
    command += [f"--platform={platform}_{machine}" for platform in PLATFORMS]
    return subprocess.run(command, check=False).returncode == 0


def main(requirements: str, target: str) -> int:
    """Fill the folder anew, and say what it holds; return the exit status."""
    folder = Path(target)
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for machine in MACHINES:
        for minor in MINORS:
            pinned = Path(requirements)
            if not serves(pinned, new, machine, minor) and not download(pinned, new, machine, minor):
                print(f"No wheelhouse: wheels for Python 3.{minor} on {machine} could not be had.", file=sys.stderr)
                return 1
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for name, size in sizes.items():
        print(f"{size / 1e6:7.2f} MB  {name}")
    print(
        f"{sum(sizes.values()) / 1e6:7.2f} MB  for Python 3.{MINORS[0]} to 3.{MINORS[-1]} on {' and '.join(MACHINES)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
