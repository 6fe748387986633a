"""The status document: what the contract promises, and what devices can be judged by later."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client_device_pruner.coverage import Coverage
from client_device_pruner.doctor import Finding
from client_device_pruner.model import Device, Hold, Mark, Proof, Witness, pack
from client_device_pruner.policy import Circumstances
from client_device_pruner.settings import parse
from client_device_pruner.status import describe, witnesses_of

DAY = 86_400.0
CENSUS = Witness("emqx", 0, Proof.CENSUS, 100 * DAY + 0.12345, 1.0, True, "they match")
HABIT = Witness(
    "messages", 1, Proof.HABIT, 9.0, 0.0, False, "quiet", 2.0, ((3.0, 8.0), (1.0, 9.0)), 60.0, 3600.0, "no match"
)
HOLD = Hold("approval", "many are due", "approve", "p1")


def document(*holds: Hold, next_check_seconds: float = 60.12345) -> dict[str, Any]:
    """Describe a present device, a due one, and one that is protected; as the state file gives it back."""
    devices = [
        Device(name, seen=True, markers=pack([0.0, 0.0]), mark=Mark(0, Proof.CENSUS, 0.0, "c"))
        for name in ("here", "gone", "gate-1")
    ]
    status = describe(
        Circumstances(parse({"protectedClients": ["gate-*"]}), (CENSUS, HABIT), {"here"}),
        devices,
        coverage=Coverage(3, 2, ("1 of 3 devices: protected",)),
        holds=holds,
        findings=[Finding("blind", "paste")],
        plan=("p0", {"gone@7.0", "a@b@8.0"}),
        next_check_seconds=next_check_seconds,
        wall=5.0,
    )
    found: dict[str, object] = json.loads(json.dumps(status))
    return found


def test_it_says_what_the_contract_promises() -> None:
    """Every key of `status --json`, in JSON's types."""
    status = document(HOLD, Hold("list", "odd", "look"))
    assert status["sources"] == {
        "emqx": {"vouching": True, "clockSeconds": 8640000.123, "reason": "they match"},
        "messages": {"vouching": False, "clockSeconds": 9.0, "reason": "quiet"},
    }
    assert status["counts"] == {"present": 1, "absent": 0, "unknown": 0, "marked": 0, "due": 1, "protected": 1}
    assert status["coverage"] == {"associated": 3, "provable": 2, "reasons": ["1 of 3 devices: protected"]}
    assert status["guards"] == [
        {"guard": "approval", "reason": "many are due", "remedy": "approve"},
        {"guard": "list", "reason": "odd", "remedy": "look"},
    ]
    assert status["plan"] == {"id": "p1", "devices": ["a@b", "gone"]}
    assert status["nextCheckInSeconds"] == 60.123
    assert status["doctor"] == [{"finding": "blind", "remedy": "paste"}]


def test_what_is_not_there_is_null() -> None:
    """No plan waits, and no cycle is awaited."""
    status = document(next_check_seconds=float("inf"))
    assert (status["plan"], status["nextCheckInSeconds"], status["guards"]) == (None, None, [])


def test_the_witnesses_come_back_as_they_were() -> None:
    """A reader judges devices by exactly what the sources said."""
    assert witnesses_of(document()) == (CENSUS, HABIT)
    assert witnesses_of({}) == ()
    assert tuple(witnesses_of(document())[1]) == tuple(HABIT)


@pytest.mark.parametrize("name", [field for field in Witness._fields if field != "vouching"])
def test_a_witness_that_nobody_wrote_is_none(name: str) -> None:
    """No field with a value of another type is judged by: a list stands for all that a number or text is not."""
    changed = document()
    changed["witnesses"][0][name] = [[]]
    with pytest.raises((ValueError, TypeError)):
        witnesses_of(changed)
