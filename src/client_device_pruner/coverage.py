"""Coverage: how many of the associated devices can ever be pruned, and what is missing for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from client_device_pruner.model import Device, Proof
from client_device_pruner.policy import Circumstances, testify


class Coverage(NamedTuple):
    """Of `associated` devices, `provable` could be pruned once they are gone; `reasons` are for the others."""

    associated: int
    provable: int
    reasons: tuple[str, ...]


def cover(devices: Iterable[Device], now: Circumstances, findings: Iterable[str] = ()) -> Coverage:
    """Judge every device as if it fell silent now.

    Args:
        devices: the associated devices.
        now: by what they are judged.
        findings: what the doctor found, for when nothing can be proven.
    """
    lacking = Counter(lacks(device, now) for device in devices)
    associated, provable = lacking.total(), lacking.pop("", 0)
    reasons = [f"{number} of {associated} devices: {reason}" for reason, number in lacking.most_common()]
    if provable < associated:
        reasons += [f"source {w.name} does not vouch: {w.reason}" for w in now.witnesses if not w.vouching]
        reasons += findings
    reasons += dict.fromkeys(witness.doubted for witness in now.witnesses if witness.doubted)
    if not now.witnesses:
        reasons.append("no source is enabled: nothing can ever be proven")
    return Coverage(associated, provable, tuple(reasons))


def lacks(device: Device, now: Circumstances) -> str:
    """Why the device could not be pruned if it fell silent; "" if it could."""
    if now.settings.is_protected(device.name):
        return "protected by protectedClients"
    silenced = [witness.silenced for witness in now.witnesses if witness.vouching]
    vouching = [witness for witness in now.witnesses if witness.vouching and not witness.silenced]
    if not vouching:
        return silenced[0] if silenced else "no source vouches at present"
    strong = any(witness.proof is not Proof.HABIT for witness in vouching)
    if not device.seen:
        if now.settings.never_seen_seconds is None:
            return "no sign of life since it was associated, and neverSeenThreshold is empty"
        return "" if strong else "no sign of life since it was associated: that takes a census or a roll call"
    if strong:
        return ""
    known = (all(c.met for c in testify(device, witness, now).conditions[:2]) for witness in vouching)
    return "" if any(known) else "not heard often and long enough to have a habit: a heartbeat, or more time"
