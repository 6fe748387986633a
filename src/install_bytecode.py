"""Has Python compile what the component and its child process import, to where the recipe's `run` has them look for it.

Usage: python -m install_bytecode, with the `Setenv` of `run`, which tells where bytecode goes and at which level.
Without it the first start compiles: that takes processor time, and memory that Python keeps.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys

import client_device_pruner

_KEYS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
"""With keys at hand, and no request to read, the child process builds its clients, asks nobody, and ends."""


def main() -> int:
    """Import every module, and have the child process get ready; return the exit status."""
    for module in pkgutil.iter_modules(client_device_pruner.__path__):
        importlib.import_module(f"{client_device_pruner.__name__}.{module.name}")
    "host".encode("idna")  # loads what the first connection does
    child = subprocess.run(
        [sys.executable, "-m", f"{client_device_pruner.__name__}.cloud", "--core-device", "none"],
        env={**os.environ, **_KEYS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if child.returncode:
        sys.stderr.write(child.stdout)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
