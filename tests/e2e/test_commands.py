"""The commands on the local core: they tell what the running component knows, and it does what they ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_core.cloud import DISASSOCIATE
from trial_site import REPOSITORY, MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


NOBODY = 65534
ANOTHER = 65533


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, which those of tests are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="core-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def pruner(site: Site, *arguments: str, user: int | None = None) -> tuple[int, str, str]:
    """Run a command as its wrapper does; returns exit status, standard output and standard error."""
    command, *rest = arguments
    identity: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    process = await asyncio.create_subprocess_exec(
        site.core.work_dir / "venv/bin/python",
        "-m",
        "client_device_pruner",
        command,
        "--work-dir",
        str(site.core.work_dir),
        *rest,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY / "src"),
            "PYTHONOPTIMIZE": "2",
            "PYTHONPYCACHEPREFIX": str(site.core.work_dir / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        **identity,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def asked(site: Site, *arguments: str) -> Any:
    """Run a command for machines, which succeeds."""
    status, out, err = await pruner(site, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


async def until_status(site: Site, **counts: int) -> dict[str, Any]:
    """Ask for the status until it has these counts."""
    deadline = time.monotonic() + 60
    while True:
        status: dict[str, Any] = await asked(site, "status")
        if status["counts"].items() >= counts.items():
            return status
        assert time.monotonic() < deadline, status


async def test_status_list_and_explain_tell_what_the_component_knows(make_site: MakeSite) -> None:
    """While it runs: the contract's status, every device's state, and why each goes or stays."""
    site = await make_site()
    site.core.cloud.associate("press-1", "press-2", "keep-1", "quiet-1")
    await site.deploy(protectedClients=["keep-*"], noticePeriod="10m")
    await site.event("cycle")
    await site.devices.connect("press-1")
    await site.devices.connect("press-2", process="press-2")
    await site.event("released", guard="source:emqx")
    await site.devices.kill("press-2")
    await site.event("marked", "press-2")

    status = await until_status(site, present=1, marked=1, protected=1)
    listed = {device["thingName"]: device for device in await asked(site, "list")}
    explained = {name: await asked(site, "explain", name) for name in listed}
    unknown = await pruner(site, "explain", "press-22")
    people = await pruner(site, "status")

    assert set(status) == {
        "running", "time", "sources", "counts", "coverage", "guards", "plan", "nextCheckInSeconds", "doctor",
    }  # fmt: skip
    assert status["running"] is True
    assert set(status["sources"]) == {"emqx", "messages"}
    assert set(status["sources"]["emqx"]) == {"vouching", "clockSeconds", "reason"}
    assert status["sources"]["emqx"]["vouching"] is True
    assert status["coverage"]["associated"] == 4
    assert status["coverage"]["provable"] == 2
    assert status["plan"] is None
    assert status["doctor"] == []
    states = {"press-1": "present", "press-2": "marked", "keep-1": "protected", "quiet-1": "absent"}
    assert {name: device["state"] for name, device in listed.items()} == states
    assert listed["press-2"]["proof"] == "census"
    assert listed["press-2"]["offlineSeconds"] >= 3.0
    assert 0 < listed["press-2"]["dueInSeconds"] <= 600
    assert {name: explanation["state"] for name, explanation in explained.items()} == states
    assert "it is connected" in explained["press-1"]["conclusion"]
    assert "source emqx has vouched for another" in explained["press-2"]["conclusion"]
    assert "protectedClients has keep-*" in explained["keep-1"]["conclusion"]
    assert "neverSeenThreshold is empty" in explained["quiet-1"]["conclusion"]
    assert unknown[:2] == (1, "")
    assert "Did you mean press-2" in unknown[2]
    assert people[0] == 0
    assert "runs on core-1" in people[1]
    assert "\x1b" not in people[1]


async def test_an_approval_is_heeded_by_the_next_cycle(make_site: MakeSite) -> None:
    """A plan waits, is shown, and goes once it is approved; a wrong id approves nothing."""
    site = await make_site()
    lost = {f"press-{number}" for number in range(4)}
    site.core.cloud.associate("alive", *lost)
    # Lost together, so that none goes before the others are due.
    await site.deploy(limits={"approvalPercent": 50, "maxPercentPerDay": 100}, massLoss={"window": "10s"})
    await site.event("cycle")
    await site.devices.connect("alive")
    await site.devices.connect(*sorted(lost), process="line")
    await site.event("released", guard="source:emqx")
    await site.devices.kill("line")
    held = await site.event("held", guard="approval")
    status = await until_status(site, due=4)
    while status["plan"] is None:
        # The status is written within a second of the event.
        status = await until_status(site, due=4)

    wrong = await pruner(site, "approve", "0000000000")
    await site.cycles(2)
    nothing_yet = site.operations(DISASSOCIATE)
    explained = await asked(site, "explain", "press-0")
    answer = await asked(site, "approve", status["plan"]["id"])
    for name in sorted(lost):
        await site.event("disassociated", name)

    assert status["plan"]["id"] == held["plan"]
    assert set(status["plan"]["devices"]) == lost
    assert {"guard", "reason", "remedy"} == set(status["guards"][0])
    assert f"pruner approve {held['plan']}" in explained["conclusion"]
    assert wrong[0] == 1
    assert f"the one that waits is {held['plan']}" in wrong[2]
    assert nothing_yet == []
    assert answer == {"queued": True, "plan": held["plan"], "names": sorted(lost), "running": True}
    assert site.associated == {"alive"}


async def test_what_was_disassociated_is_restored_on_request(make_site: MakeSite) -> None:
    """By name from the running component; by cycle from one that is stopped, once it starts again."""
    site = await make_site()
    site.core.cloud.associate("press-1", "press-2")
    await site.deploy()
    await site.event("cycle")
    for name in ("press-1", "press-2"):
        await site.devices.connect(name, process=name)
    await site.event("released", guard="source:emqx")
    await site.devices.kill("press-1")
    await site.event("disassociated", "press-1")
    await site.devices.kill("press-2")
    gone = await site.event("disassociated", "press-2")

    never = await pruner(site, "restore", "press-3")
    answer = await asked(site, "restore", "press-1")
    restored = await site.event("restored", "press-1", seconds=60)
    await site.core.stop_component()
    status = await asked(site, "status")
    later = await pruner(site, "restore", "--cycle", gone["cycleId"])
    still_gone = "press-2" not in site.associated
    site.core.start_component()
    await site.event("restored", "press-2", seconds=60)
    await site.cycles(3)

    assert never[0] == 1
    assert "press-3 was never disassociated by this component" in never[2]
    assert answer == {"queued": True, "names": ["press-1"], "running": True}
    assert restored == {"requestedBy": "command"}
    assert status["running"] is False
    assert not any(source["vouching"] for source in status["sources"].values())
    assert later[0] == 0
    assert "The component does not run: it will be done when it does." in later[1]
    assert still_gone
    assert site.associated == {"press-1", "press-2"}
    happened = [happening["type"] for happening in await asked(site, "history", "press-2")]
    assert happened == ["marked", "disassociated", "restored"]
    assert (await pruner(site, "restore", "press-1"))[0] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")
async def test_root_and_the_components_user_ask_it_while_it_runs(open_folder: Path, make_site: MakeSite) -> None:
    """Both read, and both are heeded; another user gets a sentence; and none of them locks the component out."""
    environment = environment_for(NOBODY, open_folder)
    site = await make_site(root=open_folder / "core", user=NOBODY, environment=environment, bytecode=None)
    site.core.cloud.associate("press-1", "press-2", "alive")
    await site.deploy()
    await site.event("cycle")
    for name in ("press-1", "press-2", "alive"):
        await site.devices.connect(name, process=name)
    await site.event("released", guard="source:emqx")
    await site.devices.kill("press-1")
    await site.event("disassociated", "press-1")
    await site.devices.kill("press-2")
    await site.event("disassociated", "press-2")

    for user, name in ((0, "press-1"), (NOBODY, "press-2")):
        read = [
            await pruner(site, *arguments, user=user)
            for arguments in (["status"], ["list", "--state", "present"], ["explain", "alive"], ["history"])
        ]
        assert [(status, err) for status, _out, err in read] == [(0, "")] * 4
        assert "Component   runs on core-1" in read[0][1]
        assert (await pruner(site, "approve", "0000000000", user=user))[0] == 1
        assert (await pruner(site, "restore", user=user))[0] == 2
        assert (await pruner(site, "restore", name, user=user))[0] == 0
        await site.event("restored", name, requestedBy="command")
    for arguments in (["status"], ["restore", "--all"]):
        status, out, err = await pruner(site, *arguments, user=ANOTHER)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "Traceback" not in err

    await site.cycles(2)
    assert not [held for held in site.of_type("held") if held["guard"] == "database"]
    assert {(file.stat().st_uid, file.stat().st_mode & 0o777) for file in site.core.work_dir.glob("pruner.db*")} == {
        (NOBODY, 0o600)
    }
    # The component may write only there, and root's files it could not remove.
    compiled = list((site.core.work_dir / "bytecode").rglob("*"))
    assert {path.stat().st_uid for path in compiled} == {NOBODY}
    assert [path for path in compiled if path.match("client_device_pruner/component.*.opt-2.pyc")]
    assert site.core.component.starts == 1


def environment_for(user: int, folder: Path) -> Path:
    """An environment with this one's packages, on a Python that the user may run; skips the test if there is none."""
    minor = f"python3.{sys.version_info.minor}"
    (folder / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    imports = ["-c", "import client_device_pruner, awscrt.io, boto3"]
    for base in (sys._base_executable, f"/usr/bin/{minor}", f"/usr/local/bin/{minor}"):  # type: ignore[attr-defined]
        made = folder / "environment"
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([base, "-m", "venv", "--clear", "--without-pip", made], check=True, capture_output=True)
            shutil.copy(folder / "packages.pth", made / "lib" / minor / "site-packages")
            run: dict[str, Any] = {"user": user, "group": user, "env": {"PYTHONPATH": str(REPOSITORY / "src")}}
            subprocess.run([made / "bin/python", *imports], check=True, capture_output=True, **run)
            return made
    pytest.skip("there is no Python here that another user may run, with these packages and this checkout")
