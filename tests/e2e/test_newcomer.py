"""What a reader of the documentation pastes and runs: a device of one's own, and a publisher on Greengrass Lite."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.trial import QUICK, REPOSITORY, WAIT_SECONDS, MakeTrial

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]  # a core device is installed in it

PUBLISHER = "com.example.PresencePublisher"
HEARD_DEVICES = """
import time

def heard_devices():
    while True:
        yield "pump-7"
        time.sleep(0.2)

"""


def commands(root: Path) -> list[str]:
    """Give the page's commands, with this environment, a free port, and a directory that goes."""
    page = (REPOSITORY / "docs/develop.md").read_text("utf-8").partition("## How do I attach a device of my own?")[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [
        command.replace(".venv/bin/python", sys.executable)
        .replace("-m local_core", f"-m local_core --root {root}")
        .replace("--environment .venv", f"--environment {sys.prefix}")
        .replace("local-core/", f"{root}/")
        .replace("1883", port)
        for command in found
    ]


@contextmanager
def started(command: str) -> Iterator[subprocess.Popen[str]]:
    """Let a command run while the block does."""
    shell = ["sh", "-c", f"exec env {command}"]
    with subprocess.Popen(shell, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()  # as Ctrl-C, which is ignored where a shell runs the tests in the background


def said(command: str, wanted: str) -> str:
    """Run a command until it says what is wanted; returns all that it says then."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        done = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if wanted in done.stdout:
            return done.stdout
        assert time.monotonic() < deadline, f"{wanted!r} is not said: {done.stdout}{done.stderr}"
        time.sleep(0.5)


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    """A core device, a deployment, a real MQTT client: the component says that it is present, later silent."""
    start, deploy, device, explain = commands(tmp_path / "core")
    with started(start) as core:
        assert core.stdout
        assert "is up" in core.stdout.readline()
        said(deploy, '"my-device": false')
        said(explain, "my-device: neverSeen")
        with started(device):
            present = said(explain, "my-device: present")
        assert "It is connected: the broker announced that it connected, and not that it disconnected." in present
        said(explain, "my-device: silent")


async def test_a_publisher_on_greengrass_lite(make_trial: MakeTrial) -> None:
    """The page's publisher, with the page's permissions, brings the probe back and tells of a device."""
    page = (REPOSITORY / "docs/greengrass-lite.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (permissions,) = re.findall(r"^```json\n(\{\"accessControl.*?)^```$", page, re.MULTILINE | re.DOTALL)
    trial = await make_trial(lite=True)
    core = trial.core
    core.cloud.associate("pump-7")
    core.ipc.set_configuration(PUBLISHER, json.loads(permissions))
    environment = {
        **os.environ,
        "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": str(core.socket_path),
        "SVCUID": core.ipc.issue_token(PUBLISHER),
    }
    publisher = await asyncio.create_subprocess_exec(sys.executable, "-c", HEARD_DEVICES + code, env=environment)
    try:
        await trial.deploy(**QUICK)
        status = await trial.status(lambda status: status["coverage"]["removable"] == 1, "a rhythm")
    finally:
        publisher.kill()
        await publisher.wait()
    assert status["observing"]["inputs"]["probe"]["alive"]
    assert "when it published a message" in await trial.explain("pump-7")
