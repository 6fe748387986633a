"""Whatever the cloud does, over real HTTP: nothing false happens, it is said once, and made up for afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.trial import QUICK, Trial, failing
from local_core.cloud import CREDENTIALS, DISASSOCIATE, LIST

pytestmark = [pytest.mark.e2e]

PORTAL = b"<html><body>Welcome to our Wi-Fi</body></html>"
Answer = tuple[str, dict[str, Any], str, str]
"""The operation that fails and how, the code that is told, and a part of the remedy."""
NO_LIST: list[Answer] = [
    (LIST, {"status": 429, "error": "TooManyRequestsException"}, "TooManyRequestsException", "quota"),
    (LIST, {"status": 500, "error": "InternalServerException"}, "InternalServerException", "the next cycle tries"),
    (LIST, {"body": PORTAL}, "GarbageAnswer", "portal or proxy"),
    (CREDENTIALS, {"drop": True}, "CredentialRetrievalError", "aws.greengrass.TokenExchangeService runs"),
    (LIST, {"status": 403, "error": "ExpiredTokenException"}, "ExpiredTokenException", "clock is right"),
]


async def test_while_no_list_can_be_had_nothing_goes(trial: Trial) -> None:
    """Case 3 and 30: one event however often it repeats; `status` says what failed and what to do; then all goes on."""
    await trial.watch("alive", "dead", **QUICK)
    for operation, fault, code, remedy in NO_LIST:
        with failing(trial, operation, **fault):
            failed = await trial.event("failed", code=code)
            assert remedy in failed["remedy"]
            told = await trial.status(failed_by(code))
            assert remedy in told["lastCycle"]["failed"]["remedy"]
            assert told["lastCycle"]["completeAt"]
            if code == NO_LIST[-1][2]:
                await trial.devices.drop("dead")
                await trial.cycles(2)
                await trial.observes(5.5)
    assert trial.associated == {"alive", "dead"}
    assert not trial.batches
    assert len(trial.of_type("failed")) == len(NO_LIST)
    await trial.event("disassociated", "dead")
    await trial.status(lambda status: status["lastCycle"]["failed"] is None and not status["guards"])


@pytest.mark.parametrize("carried_out", [True, False], ids=["carried out", "not carried out"])
# A time-out takes 15 s, the child's own.
@pytest.mark.parametrize("lost", ["reset", "child killed", pytest.param("time-out", marks=pytest.mark.long)])
async def test_a_lost_answer_is_settled_by_listing(trial: Trial, lost: str, carried_out: bool) -> None:
    """A batch whose outcome is not known is asked for again only if the list still has the device; it is said once."""
    fault = {"drop": True} if lost == "reset" else {"hang": True}
    await trial.watch("alive", "dead", **QUICK)
    with failing(trial, DISASSOCIATE, times=1, carried_out=carried_out, **fault):
        await trial.devices.drop("dead")
        await trial.until(lambda: trial.batches, "the batch is sent")
        if lost == "child killed":
            (child,) = children(trial)
            os.kill(child, signal.SIGKILL)
        await trial.event("disassociated", "dead")
    assert trial.batches == [("dead",)] * (1 if carried_out else 2)
    assert trial.associated == {"alive"}
    assert len({failed["code"] for failed in trial.of_type("failed")}) == len(trial.of_type("disassociated")) == 1
    assert trial.core.component.starts == 1
    assert [one["type"] for one in await trial.value("history", "dead")] == ["marked", "disassociated"]


def failed_by(code: str) -> Callable[[dict[str, Any]], bool]:
    """Whether the status names this code as what failed since the last complete cycle."""
    return lambda status: (status["lastCycle"]["failed"] or {}).get("code") == code


def children(trial: Trial) -> list[int]:
    """The processes that the component has started and that still run."""
    tasks = Path(f"/proc/{trial.core.component.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text("ascii").split()]
