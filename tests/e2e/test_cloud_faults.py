"""Whatever the cloud does, over real HTTP: nothing false happens, it is said once, and made up for afterwards."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.trial import QUICK, REPOSITORY, MakeTrial, Trial, failing
from local_core.cloud import CREDENTIALS, DISASSOCIATE, LIST

pytestmark = [pytest.mark.e2e]

PORTAL = b"<html><body>Welcome to our Wi-Fi</body></html>"
Answer = tuple[dict[str, Any], str, str]
"""What the cloud answers, the code that is told, and a part of the remedy."""
NO_LIST: list[Answer] = [
    ({"status": 429, "error": "TooManyRequestsException"}, "TooManyRequestsException", "quota"),
    ({"status": 500, "error": "InternalServerException"}, "InternalServerException", "the next cycle tries"),
    ({"body": PORTAL}, "GarbageAnswer", "portal or proxy"),
    ({"status": 403, "error": "ExpiredTokenException"}, "ExpiredTokenException", "clock is right"),
]
NO_CREDENTIALS: list[Answer] = [
    ({"drop": True}, "CredentialRetrievalError", "aws.greengrass.TokenExchangeService runs")
]


async def lose_one(trial: Trial, **settings: Any) -> None:
    """Watch two devices, and lose the one called dead."""
    await trial.watch("alive", "dead", **QUICK, **settings)
    await trial.devices.drop("dead")


@pytest.mark.parametrize(
    ("operation", "answers"), [(LIST, NO_LIST), (CREDENTIALS, NO_CREDENTIALS)], ids=["no list", "no token exchange"]
)
async def test_while_no_list_can_be_had_nothing_goes(trial: Trial, operation: str, answers: list[Answer]) -> None:
    """Case 3 and 30: one event however often it repeats; `status` says what failed and what to do; then all goes on."""
    await lose_one(trial)
    lost_at = (await trial.status())["observedSeconds"]
    for fault, code, remedy in answers:
        with failing(trial, operation, **fault):
            failed = await trial.event("failed", code=code)
            assert remedy in failed["remedy"]
            told = await trial.status(failed_by(code))
            assert remedy in told["lastCycle"]["failed"]["remedy"]
            assert told["lastCycle"]["completeAt"]
            if code == answers[-1][1]:
                await trial.cycles(2)
                await trial.status(lambda status: status["observedSeconds"] > lost_at + 5.5, "it is gone by now")
    assert trial.associated == {"alive", "dead"}
    assert not trial.batches
    assert len(trial.of_type("failed")) == len(answers)
    await trial.event("disassociated", "dead")
    await trial.status(lambda status: status["lastCycle"]["failed"] is None and not status["guards"])


@pytest.mark.parametrize("carried_out", [True, False], ids=["carried out", "not carried out"])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"drop": True}, id="reset"),
        pytest.param({"hang": True}, id="time-out", marks=pytest.mark.long),  # 15 s, the child's own
    ],
)
async def test_a_lost_answer_is_settled_by_listing(trial: Trial, fault: dict[str, Any], carried_out: bool) -> None:
    """A batch whose outcome is not known is asked for again only if the list still has the device."""
    with failing(trial, DISASSOCIATE, times=1, carried_out=carried_out, **fault):
        await lose_one(trial)
        await trial.event("disassociated", "dead")
    await outcome(trial, carried_out=carried_out)
    assert len(trial.of_type("failed")) == 1


async def test_a_child_that_dies_in_the_middle_of_a_call(trial: Trial) -> None:
    """The child process is killed while the batch is under way; the component goes on and settles it."""
    with failing(trial, DISASSOCIATE, times=1, carried_out=True, hang=True):
        await lose_one(trial)
        await trial.until(lambda: trial.batches, "the batch is sent")
        (child,) = children(trial)
        os.kill(child, signal.SIGKILL)
        await trial.event("disassociated", "dead")
    await outcome(trial, carried_out=True)
    assert trial.core.component.starts == 1


async def outcome(trial: Trial, *, carried_out: bool) -> None:
    """The device went once, by one call or two, and that is said once."""
    assert trial.batches == [("dead",)] * (1 if carried_out else 2)
    assert trial.associated == {"alive"}
    assert len(trial.of_type("disassociated")) == 1
    code, history, _errors = await trial.pruner("history", "dead", "--json")
    assert [one["type"] for one in json.loads(history)] == ["marked", "disassociated"]
    assert code == 0


async def test_an_entry_that_is_refused_stays_and_the_others_go(trial: Trial) -> None:
    """A code that nobody knows is said once for its device; what the cloud says of others is not heeded."""
    await trial.watch("alive", "lamp-1", "lamp-2", **QUICK)
    codes = {"lamp-1": "AnUnheardOfException", "stranger": "AnotherOne"}
    with failing(trial, DISASSOCIATE, error_entries=codes):
        await trial.devices.drop("lamp-1", "lamp-2")
        failed = await trial.event("failed", "lamp-1")
        await trial.event("disassociated", "lamp-2")
        await trial.cycles(2)
        assert failed["code"] == "AnUnheardOfException"
        assert len(trial.of_type("failed")) == 1
        assert trial.associated == {"alive", "lamp-1"}
    await trial.event("disassociated", "lamp-1")


async def test_only_the_token_exchange_credentials_are_ever_used(make_trial: MakeTrial, tmp_path: Path) -> None:
    """Case 1: keys in the environment, files, a profile and a process offer others; without the exchange, no call."""
    home, ran = tmp_path / "home", tmp_path / "ran"
    keys = "aws_access_key_id = AKIAWRONG\naws_secret_access_key = wrong\n"
    profile = f"credential_process = touch {ran}\nregion = us-east-1\nendpoint_url = http://127.0.0.1:9\n"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws/credentials").write_text(f"[default]\n{keys}[other]\n{keys}", "utf-8")
    (home / ".aws/config").write_text(f"[default]\n{profile}[profile process]\n{profile}", "utf-8")
    recipe = yaml.safe_load((REPOSITORY / "recipe.yaml").read_text("utf-8"))
    recipe["Manifests"][0]["Lifecycle"]["run"]["Setenv"] = {
        "HOME": str(home), "AWS_PROFILE": "process", "AWS_CONFIG_FILE": str(home / ".aws/config"),
        "AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "wrong",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    trial = await make_trial(recipe=tmp_path / "recipe.yaml")

    with failing(trial, CREDENTIALS, status=404):
        await trial.deploy(listens=False, **QUICK)
        failed = await trial.event("failed")
        assert failed["code"] == "CredentialRetrievalError"
        await trial.until(lambda: len(trial.of_type("cycle")) >= 2, "it retries")
        assert not trial.calls(LIST)
    await trial.event("cycle", complete=True)  # the cloud takes only keys that the exchange gave
    assert not ran.exists()


def failed_by(code: str) -> Callable[[dict[str, Any]], bool]:
    """Whether the status names this code as what failed since the last complete cycle."""
    return lambda status: (status["lastCycle"]["failed"] or {}).get("code") == code


def children(trial: Trial) -> list[int]:
    """The processes that the component has started and that still run."""
    tasks = Path(f"/proc/{trial.core.component.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text("ascii").split()]
