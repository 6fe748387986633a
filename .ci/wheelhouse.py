"""Fills a folder with the wheels of requirements.txt for every device that Greengrass runs on with glibc.

Usage: wheelhouse.py REQUIREMENTS FOLDER
"""

# ruff: noqa: INP001, T201 - a script for people, and part of no package

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

MACHINES = ("x86_64", "aarch64")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("manylinux2014", "manylinux_2_28")


def download(requirements: Path, folder: Path, machine: str, python: str) -> bool:
    """Download the wheels for one machine and Python, pinned hashes and all; whether pip could."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--no-deps", "--require-hashes", "--requirement", str(requirements)]
    command += ["--dest", str(folder), "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={platform}_{machine}" for platform in PLATFORMS]
    return subprocess.run(command, check=False).returncode == 0


def main(requirements: str, target: str) -> int:
    """Fill the folder anew, and say what it holds; return the exit status."""
    folder = Path(target)
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for machine in MACHINES:
        for python in PYTHONS:
            if not download(Path(requirements), new, machine, python):
                print(f"No wheelhouse: wheels for Python {python} on {machine} could not be had.", file=sys.stderr)
                return 1
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for name, size in sizes.items():
        print(f"{size / 1e6:7.2f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:7.2f} MB  for Python {PYTHONS[0]} to {PYTHONS[-1]} on {' and '.join(MACHINES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
