"""Verdicts for a reader without knowledge of the design: each in sentences, and all of them in figures.

Sentences may hold `{silent}`, `{lastSeen}`, `{left}` and `{due}`: these go on changing, so the reader's command fills
them in with the current figures.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from client_device_pruner.config.schema import format_duration
from client_device_pruner.config.settings import Settings
from client_device_pruner.decisions.policy import (
    BRIEF_MESSAGES,
    LONGEST_TIMES,
    PATIENCE_CAP,
    RHYTHM_MESSAGES,
    RHYTHM_SHARE,
    UNNAMED,
    Evidence,
    State,
    Verdict,
    unnamed_then,
)
from client_device_pruner.presence.devices import Device, Told
from client_device_pruner.presence.facts import Facts

_SEEN_BY = {
    "connected": "the broker announced that it connected",
    "disconnected": "the broker announced that it disconnected",
    "message": "it published a message",
    "clientList": "it was on the broker's client list",
    "restore": "it was associated again, which counts as seen",
}


def summary(verdict: Verdict, device: Device, facts: Facts, *more: object) -> Told:
    """The state, and a number that changes when the sentences do; another one in each run.

    `more` is what else the sentences depend on.
    """
    said = (verdict.state, verdict.reason, verdict.evidence, verdict.patience_seconds)
    if facts.is_present(device):
        seen: object = (device.session, device.keepalive, device.ended_id is None)
    else:
        counted = verdict.missing == UNNAMED or verdict.evidence is Evidence.CONNECTION_COUNT
        figures = (facts.unnamed, unnamed_then(device)) if counted else None
        few = device.messages < RHYTHM_MESSAGES
        seen = (device.seen_by, few, verdict.missing, figures)
    longest = device.longest(facts.observed_seconds)
    # Unless the patience is limited, it tells that.
    limited = verdict.patience_seconds is not None and verdict.patience_seconds < LONGEST_TIMES * longest
    return _shared(verdict.state.value, said, seen, longest if limited else None, device.marked_at, *more)


@lru_cache(maxsize=16)
def _shared(state: str, *read: object) -> Told:
    return Told(state, hash(read))


def document(verdict: Verdict, device: Device, settings: Settings, facts: Facts, hint: str = "") -> dict[str, Any]:
    """The verdict as it is stored; `hint` is a sentence more, about what its sightings are made of."""
    due_at = None if device.marked_at is None else device.marked_at + settings.grace_period_seconds
    sentences = (_whereabouts(device, facts), hint, *_rule(verdict, device, settings, facts))
    return {
        "state": verdict.state.value,
        "evidence": verdict.evidence.value if verdict.evidence else None,
        "patienceSeconds": verdict.patience_seconds,
        "dueAt": due_at,
        "sentences": [sentence for sentence in sentences if sentence],
    }


def _whereabouts(device: Device, facts: Facts) -> str:
    if facts.is_present(device):
        if facts.list_in_use:
            left = facts.events_in_use and not device.session and device.ended_id is not None
            more = " The broker announced that it disconnected, but lists it: the list counts." if left else ""
            return f"It is connected: the broker's client list names it.{more}"
        if not device.keepalive:
            return (
                "It is connected, as far as the broker knows. It connected without keepalive, so the broker cannot"
                " notice if it fails; set a keepalive on the device."
            )
        return "It is connected: the broker announced that it connected, and not that it disconnected."
    if not device.seen_by:
        return "It has never been seen since it was associated, for {silent} of observed time."
    return f"It was last seen {{lastSeen}} ago, when {_SEEN_BY.get(device.seen_by, 'it gave a sign of life')}."


def _rule(verdict: Verdict, device: Device, settings: Settings, facts: Facts) -> tuple[str, ...]:
    if verdict.state is State.PROTECTED:
        return ("protectedDevices names it, so it is never disassociated.",)
    if verdict.patience_seconds is None:
        return ("neverSeenThreshold is empty, so a device that was never seen is never disassociated.",)
    patience = _patience(verdict.patience_seconds, device, settings, facts)
    if verdict.state is State.PRESENT:
        earliest = _text(verdict.patience_seconds + settings.grace_period_seconds)
        return (patience, f"If it left now and stayed silent, it would be disassociated in {earliest} at the earliest.")
    return (patience, _evidence(verdict, device, settings, facts), _next(verdict, settings))


def _patience(seconds: float, device: Device, settings: Settings, facts: Facts) -> str:
    if not device.seen_by:
        return f"A device that was never seen is gone after {_text(seconds)} (neverSeenThreshold)."
    threshold = settings.threshold_seconds(device.name)
    longest = device.longest(facts.observed_seconds)
    name = settings.threshold_name(device.name)
    said = f"It is gone once it has been silent for {_text(seconds)}"
    if not facts.tells_connections and device.messages < RHYTHM_MESSAGES:
        why = f"the broker announces no connections, and fewer than {RHYTHM_MESSAGES} of its messages were counted"
        return f"{said}, {PATIENCE_CAP} times {name}: {why}."
    if seconds == threshold:
        return f"{said} ({name})."
    why = f"twice that is more than {name}"
    if seconds > LONGEST_TIMES * longest:
        why = "since then the core device started, or nothing was observed for over an hour: it may not have been heard"
    limit = f"; {PATIENCE_CAP} times {name} is the limit" if seconds == PATIENCE_CAP * threshold else ""
    return f"{said}: it has been silent for {_text(longest)} before, and {why}{limit}."


def _evidence(verdict: Verdict, device: Device, settings: Settings, facts: Facts) -> str:
    then = unnamed_then(device)
    match verdict.evidence:
        case Evidence.CLIENT_LIST:
            return "The broker's client list does not name it."
        case Evidence.CONNECTION_COUNT:
            return (
                f"The broker has {_connections(facts.unnamed)} that cannot be named, not more than the {then} when it"
                " left: none of them can be this device."
            )
        case Evidence.RHYTHM:
            span = _text(RHYTHM_SHARE * settings.threshold_seconds(device.name))
            return f"It published over {span} or more, so the component would hear it: its silence is evidence."
    why = verdict.missing
    if why == UNNAMED:
        why = (
            f"the broker has {_connections(facts.unnamed)} that cannot be named, where it had {then} when the device"
            " left. One of them may be this device. The broker's client list would show it: see presence.clientList.url"
        )
    elif why == BRIEF_MESSAGES:
        span = _text(RHYTHM_SHARE * settings.threshold_seconds(device.name))
        why += f" (from its first message to its last it has to be {span} at least)"
    return f"Nothing shows that it is gone: {why}."


def _next(verdict: Verdict, settings: Settings) -> str:
    grace = f"a grace period of {_text(settings.grace_period_seconds)}"
    dry_run = " A dry run only reports this." if settings.dry_run else ""
    if verdict.state is State.DUE:
        return f"Its grace period is over: the next cycle checks it once more, and disassociates it.{dry_run}"
    if verdict.state is State.MARKED:
        if verdict.gone:
            return f"It is marked, and will be disassociated in {{due}} at the earliest, unless it is seen.{dry_run}"
        return f"It is marked, but not gone any more ({verdict.reason}): the next cycle removes the mark."
    if verdict.gone:
        return f"It is gone: the next cycle marks it; after {grace} it is disassociated.{dry_run}"
    if verdict.evidence is None:
        return ""
    return f"It is gone in {{left}}, unless it is seen; then it is marked, and after {grace} disassociated."


def _connections(number: int | None) -> str:
    return "1 connection" if number == 1 else f"{number} connections"


def _text(seconds: float) -> str:
    return format_duration(round(seconds, 1))


def obstacle(verdict: Verdict) -> str:
    """Why a device would not be removed once it is gone; empty if it would."""
    if verdict.state is State.PROTECTED:
        return "protectedDevices names them"
    if verdict.patience_seconds is None:
        return "they were never seen, and neverSeenThreshold is empty"
    if verdict.missing == UNNAMED and verdict.state is State.PRESENT:
        return ""  # it will have its own figure when it leaves
    return verdict.missing
