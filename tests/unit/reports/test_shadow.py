"""The named shadow is updated when there is something to say, and no more than once a minute."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from client_device_pruner.reports.shadow import Shadow
from fakes.state import a_status


def reported(update: bytes | None) -> dict[str, Any]:
    """What an update reports."""
    assert update is not None
    document: dict[str, Any] = json.loads(update)["state"]["reported"]
    return document


def test_at_most_once_a_minute() -> None:
    """However often a guard comes and goes; the last word is said in the end (case 19)."""
    shadow = Shadow()
    status = a_status()
    told: list[int] = []
    for second in range(600):
        status["guards"] = [{"guard": "notObserving", "reason": "", "remedy": ""}] if second % 3 else []
        if shadow.update(status, float(second)):
            told.append(second)
    assert len(told) == 10
    assert min(after - before for before, after in pairwise(told)) >= 60
    status["guards"] = []
    assert reported(shadow.update(status, 660.0))["guards"] == []
    assert shadow.update(status, 7_200.0) is None


def test_what_did_not_arrive_is_sent_again() -> None:
    """After a minute, or at once when a deployment may have granted it."""
    shadow = Shadow()
    first = shadow.update(a_status(), 0.0)
    shadow.forget()
    assert shadow.update(a_status(), 30.0) is None
    assert shadow.update(a_status(), 60.0) == first
    shadow.deployed()
    assert shadow.update(a_status(), 61.0) is None
    shadow.forget()
    shadow.deployed()
    assert shadow.update(a_status(), 61.0) == first
