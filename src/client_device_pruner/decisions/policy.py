"""The rule: whether a device is gone, and on what evidence (DESIGN, model 3, 5 and 7; invariant I7)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from client_device_pruner.config.settings import Settings
from client_device_pruner.presence.counts import BRIDGE
from client_device_pruner.presence.devices import Device
from client_device_pruner.presence.facts import Facts

LONGEST_TIMES = 2  # a device is not gone before it has been silent for so many times its longest silence
HIDDEN_TIMES = 4  # so many, where what it published in a hole may not have been heard: three words in a row
PATIENCE_CAP = 4  # patience is at most so many thresholds
RHYTHM_SHARE = 0.25
"""Messages over this share of its threshold show that we would hear it, where the broker tells of no connections.

These are two at least; with the default threshold, the days in which a device is set up are too short.
"""
RHYTHM_MESSAGES = 5  # there, with fewer messages the longest silence says little: patience is the longest there is


class State(str, Enum):
    """The state of one device."""

    PRESENT = "present"
    SILENT = "silent"
    MARKED = "marked"
    DUE = "due"
    PROTECTED = "protected"
    NEVER_SEEN = "neverSeen"


class Evidence(str, Enum):
    """On what a device is taken to be gone."""

    CLIENT_LIST = "clientList"
    CONNECTION_COUNT = "connectionCount"
    RHYTHM = "rhythm"


# Why there is no evidence; the count has reasons of its own.
NO_LIST = "no client list has come from the broker yet"
UNNAMED = "the broker has more connections that cannot be named than when the device left"
BRIEF_MESSAGES = "the broker announces no connections, and the device was heard for too short a time"
NEVER_HEARD = "the broker announces no connections, and the device was never heard"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rule says of one device."""

    name: str
    state: State  # its state now
    gone: bool  # whether it is gone; a device that is gone is marked in the next cycle, one that is not loses its mark
    silent_seconds: float  # its silence, in observed seconds
    patience_seconds: float | None  # how long it has to be silent to be gone; None if it never is
    evidence: Evidence | None = None  # what shows that it is gone, or would; None if there is none
    missing: str = ""  # why there is no evidence, in words; empty if there is
    reason: str = ""  # why it is not gone, in a few words: for a mark that is taken off

    def figures(self) -> dict[str, float | str | None]:
        """Silence, patience and evidence, flat: for events and the journal."""
        return {
            "silentSeconds": round(self.silent_seconds, 3),
            "patienceSeconds": None if self.patience_seconds is None else round(self.patience_seconds, 3),
            "evidence": self.evidence.value if self.evidence else None,
        }


def patience_seconds(device: Device, settings: Settings, facts: Facts) -> float | None:
    """How long it has to be silent to be gone, in observed seconds; None: it never is (DESIGN, model 3)."""
    if not device.seen_by:
        return settings.never_seen_threshold_seconds
    threshold = settings.threshold_seconds(device.name)
    longest = device.longest(facts.observed_seconds)
    wanted = LONGEST_TIMES * longest
    if not facts.tells_connections:
        if device.messages < RHYTHM_MESSAGES:
            return PATIENCE_CAP * threshold
        # What it said in a hole was not heard: only from then on it is late.
        wanted = max(wanted, min(facts.hole_at - device.silent_since + longest, HIDDEN_TIMES * longest))
    return max(threshold, min(wanted, PATIENCE_CAP * threshold))


def find_evidence(device: Device, settings: Settings, facts: Facts) -> tuple[Evidence | None, str]:
    """What shows that a device which is not present is gone, or why nothing does: the first that applies."""
    if facts.list_in_use:
        return (None, NO_LIST) if facts.listed is None else (Evidence.CLIENT_LIST, "")
    if facts.tells_connections:
        if facts.count_problem or facts.unnamed is None:
            return None, facts.count_problem
        return (None, UNNAMED) if facts.unnamed > unnamed_then(device) else (Evidence.CONNECTION_COUNT, "")
    if not device.seen_by:
        return None, NEVER_HEARD
    span = device.last_message - device.first_message if device.messages else 0.0
    long_enough = span >= RHYTHM_SHARE * settings.threshold_seconds(device.name)
    return (Evidence.RHYTHM, "") if long_enough else (None, BRIEF_MESSAGES)


def unnamed_then(device: Device) -> int:
    """How many unnamed connections there were when it left: the bridge's, where nothing was counted."""
    return BRIDGE if device.then is None else device.then


def judge(device: Device, settings: Settings, facts: Facts) -> Verdict:
    """Apply the rule to one device."""
    silent = facts.silent_seconds(device)
    patience = patience_seconds(device, settings, facts)
    evidence, missing = find_evidence(device, settings, facts)
    gone, reason = False, ""
    state = State.SILENT if device.seen_by else State.NEVER_SEEN
    if device.marked_at is not None:
        state = State.MARKED
    if settings.is_protected(device.name):
        state, reason = State.PROTECTED, "it is protected"
    elif facts.is_present(device):
        state, reason = State.PRESENT, "it is connected"
    elif patience is None:
        reason = "neverSeenThreshold is empty"
    elif silent < patience:
        reason = "its silence is now shorter than its patience"
    elif evidence is None:
        reason = "there is no evidence any more that it is gone"
    else:
        gone = True
        if device.marked_at is not None and facts.observed_seconds >= device.marked_at + settings.grace_period_seconds:
            state = State.DUE
    return Verdict(device.name, state, gone, silent, patience, evidence, missing, reason)
