"""The status: one document, kept in the state file, that the command line reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any

from client_device_pruner.coverage import Coverage
from client_device_pruner.doctor import Finding
from client_device_pruner.model import Device, Hold, Proof, State, Witness
from client_device_pruner.policy import Circumstances, assess
from client_device_pruner.state_documents import is_number


def describe(
    now: Circumstances,
    devices: Iterable[Device],
    *,
    coverage: Coverage,
    holds: Iterable[Hold],
    findings: Iterable[Finding],
    plan: tuple[str, Collection[str]],
    next_check_seconds: float,
    wall: float,
) -> dict[str, Any]:
    """The contract's status, and beside it (`witnesses`) what the sources said, to judge devices by later."""
    counts = Counter(assess(device, now).state_so_far.value for device in devices)
    held = list(holds)
    plan_id = next((hold.plan for hold in held if hold.plan), "")
    return {
        "time": wall,
        "sources": {
            witness.name: {
                "vouching": witness.vouching,
                "clockSeconds": round(witness.clock_seconds, 3),
                "reason": witness.reason,
            }
            for witness in now.witnesses
        },
        "counts": {state.value: counts[state.value] for state in State},
        "coverage": coverage._asdict(),
        "guards": [{"guard": hold.guard, "reason": hold.reason, "remedy": hold.remedy} for hold in held],
        "plan": {"id": plan_id, "devices": sorted({m.rpartition("@")[0] for m in plan[1]})} if plan_id else None,
        "nextCheckInSeconds": round(next_check_seconds, 3) if next_check_seconds != float("inf") else None,
        "doctor": [finding._asdict() for finding in findings],
        "witnesses": [witness._asdict() for witness in now.witnesses],
    }


def witnesses_of(status: dict[str, Any]) -> tuple[Witness, ...]:
    """What the sources said when the status was written.

    Raises:
        ValueError: what is written there are no witnesses. So do `TypeError` and `LookupError`.
    """
    return tuple(map(_witness, status.get("witnesses", [])))


def _witness(fields: dict[str, Any]) -> Witness:
    pauses = tuple((length, end) for length, end in fields["pauses"])
    witness = Witness(**{**fields, "proof": Proof(fields["proof"]), "pauses": pauses})
    numbers = (
        *(witness.source_id, witness.clock_seconds, witness.floor_seconds, witness.stretch_seconds),
        *(witness.cadence_seconds, witness.fresh_seconds, witness.doubted_seconds, *chain(*pauses)),
    )
    texts = (witness.name, witness.reason, witness.silenced, witness.doubted)
    if not all(map(is_number, numbers)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"no witness: {str(fields)[:60]}")
    return witness
