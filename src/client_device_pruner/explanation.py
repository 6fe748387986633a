"""Why a device is, or is not, going to be disassociated: each condition with its figure, and what follows."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from client_device_pruner.coverage import lacks
from client_device_pruner.model import Device, Proof, State
from client_device_pruner.policy import Circumstances, Condition, Testimony, Verdict, assess, member, testify
from client_device_pruner.settings import format_duration
from client_device_pruner.snapshot import Happening, Snapshot
from client_device_pruner.tables import about

PROOFS = {
    Proof.CENSUS: "the broker's own count of connections",
    Proof.ROLL_CALL: "the broker's own list of connections",
    Proof.HABIT: "the device's habit to speak",
}
"""What each proof rests on, for people."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is to be said of one device.

    Attributes:
        general: the conditions that every disassociation has.
        testimonies: what each source says; one that `proves` is enough.
        last: the conditions between the proof and the disassociation.
        conclusion: one or two sentences: what would have to happen, or why never.
    """

    verdict: Verdict
    general: tuple[Condition, ...]
    testimonies: tuple[Testimony, ...]
    last: tuple[Condition, ...]
    conclusion: str


def explain(device: Device, found: Snapshot) -> Explanation:
    """Explain what is to be thought of a device, by the same judgement as the component's."""
    now = found.now
    verdict = assess(device, now)
    testimonies = tuple(testify(device, witness, now) for witness in now.witnesses)
    conclusion = _conclude(verdict, testimonies, found)
    if not found.running:
        conclusion = f"Nothing happens while the component does not run. At its end: {conclusion}"
    return Explanation(verdict, _general(device, now), testimonies, _last(verdict, testimonies, found), conclusion)


def nearest(verdict: Verdict, now: Circumstances) -> Testimony | None:
    """The testimony to show for a device: its proof, or else the one that comes nearest to one."""
    if verdict.testimony:
        return verdict.testimony
    testimonies = [testify(verdict.device, witness, now) for witness in now.witnesses]
    return max(testimonies, key=_nearness, default=None)


def _nearness(testimony: Testimony) -> tuple[float, float]:
    unmet = sum(not condition.met for condition in testimony.conditions)
    return (-unmet, testimony.absence_seconds / max(testimony.threshold_seconds, 1e-9))


def _general(device: Device, now: Circumstances) -> tuple[Condition, ...]:
    glob = _protecting(device.name, now)
    protected = f"protected: protectedClients has {glob}" if glob else "not protected by protectedClients"
    present = device.name in now.present
    connected = "connected now, so far as the broker has shown" if present else "not known to be connected now"
    return (Condition(protected, not glob), Condition(connected, not present))


def _protecting(name: str, now: Circumstances) -> str:
    return next((glob for glob in now.settings.protected_clients if fnmatch.fnmatchcase(name, glob)), "")


def _last(verdict: Verdict, testimonies: Sequence[Testimony], found: Snapshot) -> tuple[Condition, ...]:
    settings = found.now.settings
    notice = format_duration(settings.notice_seconds)
    conditions = []
    if verdict.device.mark is None or verdict.due_in_seconds is None:
        conditions.append(Condition(f"marked, and the notice of {notice} has run out: it is not marked", False))
    else:
        passed = _figure(settings.notice_seconds - verdict.due_in_seconds)
        conditions.append(Condition(f"notice: {passed} of {notice} have passed", verdict.due_in_seconds <= 0))
    outages = [
        t.witness.name
        for t in testimonies
        if (verdict.device.name, t.witness.source_id) in found.now.outages.unexplained
    ]
    if outages:
        approved = member(verdict.device) in found.approved_members
        text = f"lost together with others, none of whom has come back ({', '.join(outages)}): needs approval"
        conditions.append(Condition(f"{text}, and has it" if approved else text, approved))
    conditions += [Condition(f"{guard['guard']} holds: {guard['reason']}", False) for guard in _holding(verdict, found)]
    if settings.dry_run:
        conditions.append(Condition("dryRun is on: nothing is ever disassociated", False))
    if not found.running:
        conditions.append(Condition("the component does not run", False))
    return tuple(conditions)


def _holding(verdict: Verdict, found: Snapshot) -> list[Mapping[str, str]]:
    """The guards that concern the device: those of a plan only its members, those of a source none by itself."""
    plan = found.status["plan"]
    planned = plan is not None and verdict.device.name in plan["devices"]
    return [
        guard
        for guard in found.status["guards"]
        if not guard["guard"].startswith("source:") and (planned or guard["guard"] not in ("approval", "outage"))
    ]


def _conclude(verdict: Verdict, testimonies: Sequence[Testimony], found: Snapshot) -> str:
    now = found.now
    settings = now.settings
    if verdict.state is State.PROTECTED:
        return f"It is never disassociated, because protectedClients has {_protecting(verdict.device.name, now)}."
    if verdict.state is State.DUE:
        return _conclude_due(verdict, found)
    if verdict.state is State.MARKED and verdict.testimony:
        return _conclude_marked(verdict, verdict.testimony, now)
    never = lacks(verdict.device, now)
    notice = format_duration(settings.notice_seconds)
    if verdict.state is State.PRESENT:
        why = "it is connected" if verdict.device.name in now.present else "it was heard of late"
        if never:
            return f"It stays, because {why}; and as things are, it could not be disassociated if it went: {never}."
        threshold = min(t.threshold_seconds for t in testimonies)
        return (
            f"It stays, because {why}. Once gone, it would be marked after {_figure(threshold)} of proven absence,"
            f" and disassociated after another {notice}."
        )
    if never:
        return f"As things are, it cannot be disassociated: {never}."
    testimony = nearest(verdict, now)
    if testimony is None:
        return "As things are, it cannot be disassociated: no source is enabled."
    missing = "; ".join(condition.text for condition in testimony.conditions if not condition.met)
    left = testimony.threshold_seconds - testimony.absence_seconds
    until = (
        f"once source {testimony.witness.name} has vouched for another {_figure(left)} without it"
        if left > 0
        else (f"once source {testimony.witness.name} proves its absence")
    )
    return (
        f"It is not disassociated yet ({missing}): it is marked {until}, and disassociated {notice} later,"
        " unless it shows life."
    )


def _conclude_marked(verdict: Verdict, proof: Testimony, now: Circumstances) -> str:
    source = f"source {proof.witness.name}"
    left = _figure(verdict.due_in_seconds or 0.0)
    if verdict.device.mark is None:
        notice = format_duration(now.settings.notice_seconds)
        return (
            f"Its absence is proven by {source}: the next cycle marks it, and it is disassociated once its notice"
            f" of {notice} has run out, unless it shows life."
        )
    if not proof.proves:
        missing = "; ".join(condition.text for condition in proof.conditions if not condition.met)
        return f"Its notice stands still with {left} left, until {source} proves its absence again ({missing})."
    return f"It is disassociated once {source} has vouched for another {left} without it, unless it shows life."


def _conclude_due(verdict: Verdict, found: Snapshot) -> str:
    settings = found.now.settings
    seconds = found.status["nextCheckInSeconds"]
    when = "in the next cycle" + (f", in {_figure(seconds)}" if seconds else "")
    if settings.dry_run:
        return f"It would be disassociated {when}, but dryRun is on."
    holding = _holding(verdict, found)
    if holding:
        guard = holding[0]
        return f"It is due, but {guard['guard']} holds it back: {guard['reason']}. What to do: {guard['remedy']}."
    return f"It is disassociated {when}, unless it shows life."


def _figure(seconds: float) -> str:
    """A duration to the second, or to a tenth where seconds matter."""
    return format_duration(round(seconds) if seconds >= 60 else round(seconds, 1))


def evidence(happening: Happening) -> list[tuple[str, str]]:
    """What is known of an event, for people: labels, and what there is to say under each."""
    data, lines = happening.data, []
    if "offlineSeconds" in data:
        threshold = f" of {about(data['thresholdSeconds'])}" if "thresholdSeconds" in data else ""
        lines.append(("absent", f"{about(data['offlineSeconds'])}{threshold}"))
    if "proof" in data:
        source = f", source {data['sourceName']}" if "sourceName" in data else ""
        lines.append(("proof", f"{data['proof']}{source}"))
    if "dueInSeconds" in data:
        lines.append(("notice", about(data["dueInSeconds"])))
    if happening.kind == "intended":
        lines.append(("outcome", "not known yet"))
    labels = {
        "reason": "because",
        "code": "code",
        "message": "message",
        "requestedBy": "requested by",
        "disassociatedAt": "disassociated",
        "restoredBy": "restored by",
        "cycleId": "cycle",
    }
    return lines + [(label, str(data[key])) for key, label in labels.items() if data.get(key)]
