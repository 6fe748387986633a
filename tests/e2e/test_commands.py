"""The commands beside a running component: they tell what it knows, whatever state it or their surroundings are in."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from e2e.trial import COMPONENT, QUICK, Trial
from local_core.component import State

pytestmark = [pytest.mark.e2e]


async def test_they_tell_what_the_component_knows(trial: Trial, tmp_path: Path) -> None:
    """Status, list, explain, history and report: the contract's documents for machines, sentences for people."""
    trial.core.cloud.associate("quiet-1")
    await trial.watch("press-1", "press-2", "keep-1", protectedDevices=["keep-*"], **QUICK, dryRun=True)
    await trial.devices.drop("press-2")

    status = await trial.status(lambda status: status["counts"]["due"])
    assert status.keys() >= {"running", "observing", "counts", "coverage", "guards", "plan", "doctor", "lastCycle"}
    assert status["running"] is True
    assert status["observing"]["inputs"].keys() == {"probe", "connectionEvents", "clientList"}
    assert all(one.keys() >= {"inUse", "alive", "reason"} for one in status["observing"]["inputs"].values())
    reasons = ["1 cannot be removed: protectedDevices names them"]
    assert status["coverage"] == {"associated": 4, "removable": 3, "reasons": reasons}
    assert status["nextCheckInSeconds"] >= 0
    listed = {one["thingName"]: one for one in await trial.value("list")}
    states = {"press-1": "present", "press-2": "due", "keep-1": "protected", "quiet-1": "neverSeen"}
    assert {name: one["state"] for name, one in listed.items()} == states
    gone = listed["press-2"]
    assert gone.items() >= {"lastSeenBy": "disconnected", "evidence": "connectionCount", "dueInSeconds": 0.0}.items()
    assert gone["silentSeconds"] >= gone["patienceSeconds"] == 5.0
    happened = await trial.value("history", "press-2")
    assert [(one["type"], one["thingName"]) for one in happened] == [("marked", "press-2")]

    explained = {name: await trial.explain(name) for name in states}
    assert "It is connected: the broker announced that it connected" in explained["press-1"]
    assert "when the broker announced that it disconnected" in explained["press-2"]
    assert "Its grace period is over" in explained["press-2"]
    assert "protectedDevices names it" in explained["keep-1"]
    assert "neverSeenThreshold" in explained["quiet-1"]
    for arguments, part in {("status",): "runs on core-1", ("list",): "LAST SEEN", ("--help",): "examples:"}.items():
        code, output, errors = await trial.pruner(*arguments)
        assert (code, errors) == (0, "")
        assert part in output
    page = tmp_path / "report.html"
    assert (await trial.value("report", str(page)))["devices"] == 4
    assert "press-2" in page.read_text("utf-8")
    assert (await trial.pruner("restore"))[0] == 2

    # Case 22: in a directory that is gone (a shell may complain).
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"', tmp_path / "gone"),
        *(trial.core.work_dir / "pruner", "status", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert json.loads(out)["running"] is True
    assert b"Traceback" not in err

    await trial.core.stop_component()
    assert (await trial.value("status"))["running"] is False


async def test_the_ipc_daemon_dies_again_and_again(trial: Trial) -> None:
    """Case 24: cut off it connects anew; without its token it ends itself twice, then says since when it has none."""

    def is_back(starts: int) -> bool:
        return trial.core.component.starts == starts and COMPONENT in trial.core.ipc.connected

    await trial.watch("alive", **QUICK)
    trial.core.ipc.drop_connections()
    await trial.until(lambda: any("no connection to Greengrass" in str(line) for line in trial.log()), "the cut")
    await trial.until(partial(is_back, 1), "it connects")
    await trial.observes(1.0)
    for starts in (2, 3):
        trial.core.ipc.drop_connections(forget_tokens=True)
        await trial.until(partial(is_back, starts), "it ends, is started anew, and connects")
        await trial.event("cycle", since=len(trial.core.events), complete=True)
    trial.core.ipc.drop_connections(forget_tokens=True)

    status = await trial.status(lambda status: [one for one in status["guards"] if "every 30 s" in one["reason"]])
    (guard,) = status["guards"]
    assert guard["guard"] == "notObserving"
    assert "no connection to Greengrass" in guard["reason"]
    assert "the process ends and Greengrass restarts it, at most twice an hour (for " in guard["reason"]
    assert status["observing"]["since"] is None
    assert not status["observing"]["inputs"]["probe"]["alive"]
    await trial.status(lambda later: later["time"] > status["time"], "it goes on")
    assert trial.core.component.state is State.RUNNING
    assert trial.core.component.starts == 3
