"""The component starts as Greengrass starts it, in a world that may not be ready yet."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.trial import MAPPING, QUICK, REPOSITORY, MakeTrial, Trial, failing
from local_core.cloud import CREDENTIALS, LIST
from local_core.core import BRIDGE

pytestmark = [pytest.mark.e2e]

USER = pwd.getpwuid(os.getuid() or 65534)
"""Stands for `ggc_user`: only root can give the work directory to another one than itself."""


def may_sudo() -> bool:
    """Whether there is a sudo that asks for nothing."""
    return bool(shutil.which("sudo")) and subprocess.call(["sudo", "-n", "true"], stderr=subprocess.DEVNULL) == 0


async def test_it_starts_before_everything_else_and_ends_when_told(trial: Trial) -> None:
    """No token exchange, no broker, no bridge and no entries in it: each may come late, and nothing is restarted."""
    trial.core.cloud.associate("dead", "alive")
    await trial.core.bridge.stop()
    await trial.core.broker.stop()
    with failing(trial, CREDENTIALS, drop=True):
        await trial.deploy({}, listens=False, **QUICK)
        await trial.event("failed")
        held = await trial.event("held", guard="notObserving")
        assert "PrunerProbe" in str((await trial.status(lambda status: status["doctor"]))["doctor"])
        assert held["remedy"].startswith("see what the doctor found")
        assert not trial.calls(LIST)
    await trial.event("cycle", complete=True)
    await trial.core.broker.start()
    await trial.core.bridge.start()
    await trial.core.deploy({BRIDGE: {"merge": {"mqttTopicMapping": MAPPING}}})
    await trial.event("released", guard="notObserving")
    await trial.devices.connect("dead", "alive")
    await trial.known(2)
    await trial.devices.drop("dead")
    await trial.event("disassociated", "dead")
    await trial.status(lambda status: status["lastCycle"]["failed"] is None)
    reported = trial.core.shadows.reported["core-1", "client-device-pruner"]
    assert reported["version"] == "0.2.0"

    # The shell has replaced itself: SIGTERM reaches the component, which ends by itself.
    work_dir = str(trial.core.work_dir)
    command = [f"{work_dir}/venv/bin/python", "-m", "client_device_pruner", "--work-dir", work_dir]
    assert trial.process("cmdline") == command
    assert trial.core.component.starts == 1
    await trial.core.stop_component()
    assert trial.core.component.output[-1] == "run exited with 0"


@pytest.mark.skipif(not may_sudo(), reason="takes sudo without a password")
async def test_through_sudo_as_another_user(open_folder: Path, make_trial: MakeTrial) -> None:
    """Case 32: as `ggc_user`, through `sudo -n -E -H -u`; root and that user may use the command, nobody else."""
    user = f"{USER.pw_name}:{grp.getgrgid(USER.pw_gid).gr_name}"
    trial = await make_trial(root=open_folder / "core", user=user, environment=environment_for_user(open_folder))
    await trial.watch("alive", "dead", **QUICK)
    await trial.devices.drop("dead")
    await trial.event("disassociated", "dead")

    async def run_as(user: str, *arguments: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *("sudo", "-n", "-u", user, str(trial.core.work_dir / "pruner"), *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
        )
        output, errors = await process.communicate()
        return process.returncode, output.decode(), errors.decode()

    assert json.loads((await run_as(USER.pw_name, "status", "--json"))[1])["running"] is True
    assert (await run_as("root", "restore", "dead"))[0] == 0
    assert (await trial.event("restored", "dead"))["requestedBy"] == "command"
    code, output, errors = await run_as(pwd.getpwuid(1).pw_name, "status")
    assert (code, output) == (1, "")
    assert "run this as root or as the component's user" in errors

    files = list(trial.core.work_dir.glob("pruner.db*"))
    assert {(file.stat().st_uid, file.stat().st_mode & 0o777) for file in files} == {(USER.pw_uid, 0o600)}
    assert {held["guard"] for held in trial.of_type("held")} <= {"notObserving"}
    assert trial.core.component.starts == 1
    await trial.core.stop_component()
    assert trial.core.component.output[-1] == "run exited with 0"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, which those of tests are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="core-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def environment_for_user(folder: Path) -> Path:
    """An environment with this one's packages, on a Python that the user may run; skips the test if there is none."""
    minor = f"python3.{sys.version_info.minor}"
    (folder / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n", "utf-8")
    made = folder / "environment"
    imports = f"import sys; sys.path.append({str(REPOSITORY / 'src')!r}); import client_device_pruner, awscrt.io"
    for base in (f"{sys.base_prefix}/bin/{minor}", f"/usr/bin/{minor}", f"/usr/local/bin/{minor}"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([base, "-m", "venv", "--clear", "--without-pip", made], check=True, capture_output=True)
            shutil.copy(folder / "packages.pth", made / "lib" / minor / "site-packages")
            as_user = ["sudo", "-n", "-u", USER.pw_name, "--", str(made / "bin/python")]
            subprocess.run([*as_user, "-c", imports], check=True, capture_output=True)
            return made
    pytest.skip("there is no Python here that another user may run, with these packages and this checkout")
