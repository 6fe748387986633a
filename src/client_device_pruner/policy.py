"""The decisions: a pure function of settings, ledger, associations and source clocks (invariant I7)."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from typing import NamedTuple

from client_device_pruner.model import Device, Habit, Hold, Mark, Proof, State, Witness
from client_device_pruner.outages import NO_OUTAGES, Outages
from client_device_pruner.settings import Settings, format_duration

HABIT_MESSAGES = 5
"""How often a device must have been heard on a source before its silence there says anything (DESIGN, model 5)."""
HABIT_RAISE = 4
"""A habit raises the threshold to at most so many times the configured one (DESIGN, model 5)."""
DOUBT_RAISE = 4
"""While known sessions are in doubt, so many thresholds have to pass since: as much as a habit raises one at most."""
APPROVAL_MINIMUM = 3
"""So many due devices, and fewer, never wait for approval (CONTRACT, `limits.approvalPercent`)."""


class Condition(NamedTuple):
    """One condition of a proof, for people; the durations that its words hold places for are written when it is read.

    A cycle judges up to 100,000 devices, and nobody reads what is said of most of them.
    """

    words: str
    met: bool
    durations_seconds: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """The condition with its figures."""
        if not self.durations_seconds:
            return self.words
        return self.words.format(*(format_duration(round(seconds)) for seconds in self.durations_seconds))


class Testimony(NamedTuple):
    """What one witness says of one device.

    `applies` is what does not pass with time or a gap: the witness would have shown the device, and its absence has
    reached the threshold. `proves` asks more: that the witness vouches now, without a break where that matters.
    """

    witness: Witness
    absence_seconds: float
    threshold_seconds: float
    conditions: tuple[Condition, ...]
    applies: bool
    proves: bool


class Verdict(NamedTuple):
    """What is to be thought of one device now.

    Attributes:
        testimony: the proof, or for a marked device without one at present what it was marked for; else None.
        mark: the mark that it should carry; another than it carries is to be set or taken off.
        due_in_seconds: what is left of the notice on the proving source's clock, for marked devices.
        reason: why a mark is taken off, else "".
    """

    device: Device
    state: State
    testimony: Testimony | None = None
    mark: Mark | None = None
    due_in_seconds: float | None = None
    reason: str = ""

    @property
    def state_so_far(self) -> State:
        """The state as long as no cycle has set the mark: marking happens in cycles."""
        return self.state if self.mark is None or self.mark == self.device.mark else State.ABSENT


class Circumstances(NamedTuple):
    """What all devices are judged by at one moment.

    Attributes:
        present: the names with a known session, or named by the roll call that vouches.
        outages: who was lost together with others.
    """

    settings: Settings
    witnesses: Sequence[Witness]
    present: Container[str]
    cycle_id: str = ""
    outages: Outages = NO_OUTAGES


def testify(device: Device, witness: Witness, now: Circumstances) -> Testimony:
    """Hear one witness on one device."""
    settings = now.settings
    absence = absence_seconds(device, witness, now)
    threshold = settings.threshold_seconds(device.name)
    conditions: list[Condition] = []
    lasting = True
    if not device.seen:
        if witness.proof is not Proof.HABIT and settings.never_seen_seconds is not None:
            threshold = settings.never_seen_seconds
            conditions.append(Condition("no sign of life since it was associated: neverSeenThreshold applies", True))
        else:
            lasting = False
            conditions.append(Condition("no sign of life since it was associated", False))
    momentary = [Condition(f"source {witness.name} vouches now: {witness.reason}", witness.vouching)]
    if witness.proof is Proof.HABIT:
        threshold, known, unbroken = _habit(device, witness, threshold, absence)
        conditions += known
        momentary += unbroken
        lasting = lasting and all(condition.met for condition in known)
    elif device.habits:
        # Who visits now and then keeps that habit, though one visit may fall into a gap that no census and no roll
        # call shows.
        silences = [habit.longest_silence_seconds for habit in _kept(device, threshold)]
        threshold = max(threshold, _raised(max(silences, default=0.0), threshold))
    if witness.silenced:
        momentary.append(Condition(witness.silenced, False))
    if witness.doubted:
        watched, needed = witness.clock_seconds - witness.doubted_seconds, DOUBT_RAISE * threshold
        momentary.append(
            Condition(
                f"{witness.doubted}; watched for {format_duration(round(watched))} since,"
                f" {format_duration(round(needed))} needed otherwise",
                watched >= needed,
            )
        )
    long_enough = absence >= threshold
    conditions.append(Condition("absent {} of {}", long_enough, (absence, threshold)))
    applies = lasting and long_enough
    proves = applies and all(condition.met for condition in momentary)
    return Testimony(witness, absence, threshold, (*conditions, *momentary), applies, proves)


def _habit(
    device: Device, witness: Witness, threshold: float, absence: float
) -> tuple[float, list[Condition], list[Condition]]:
    habit = (device.habits or {}).get(witness.source_id)
    heard = habit.heard if habit else 0
    span = habit.last_seconds - habit.first_seconds if habit else 0.0
    silence = habit.longest_silence_seconds if habit else 0.0
    # Silent there as it may have been since, it lived when another source heard it last.
    outlived = device.marker(witness.source_id) - habit.last_seconds if habit else 0.0
    # The component's own vouchers come no faster than its cadence: a shorter silence cannot be told from it.
    limit = max(silence, 2 * witness.cadence_seconds)
    unbroken = min(absence, witness.clock_seconds - witness.unbroken_since(limit))
    known = [
        Condition(f"heard {heard} times there, at least {HABIT_MESSAGES} needed", heard >= HABIT_MESSAGES),
        Condition("heard over {}, a quarter of its threshold needed", span >= threshold / 4, (span,)),
    ]
    momentary = [
        Condition("unbroken watch of {} since, {} needed", unbroken >= 2 * limit, (unbroken, 2 * limit)),
    ]
    return max(threshold, _raised(max(silence, outlived), threshold)), known, momentary


def _kept(device: Device, threshold: float) -> Iterable[Habit]:
    """The device's habits that are worth the name."""
    return (
        habit
        for habit in (device.habits or {}).values()
        if habit.heard >= HABIT_MESSAGES and habit.last_seconds - habit.first_seconds >= threshold / 4
    )


def _raised(silence: float, threshold: float) -> float:
    """The threshold that a habit with such a longest silence asks for: twice that, within bounds."""
    return min(2 * silence, HABIT_RAISE * threshold)


def absence_seconds(device: Device, witness: Witness, now: Circumstances) -> float:
    """How long the device has been absent on that source's clock."""
    since = max(device.marker(witness.source_id), witness.floor_seconds)
    returned = now.outages.returns.get(device.name)
    if returned:
        since = max(since, returned.get(witness.source_id, 0.0))
    return max(0.0, witness.clock_seconds - since)


def assess(device: Device, now: Circumstances) -> Verdict:
    """Judge one device."""
    settings = now.settings
    name = device.name
    if settings.is_protected(name):
        return Verdict(device, State.PROTECTED, reason="it is protected")
    if name in now.present:
        return Verdict(device, State.PRESENT, reason="it is connected")
    threshold = settings.threshold_seconds(name)
    if not device.seen and settings.never_seen_seconds is not None:
        threshold = settings.never_seen_seconds
    testimonies = [
        testify(device, witness, now) for witness in now.witnesses if absence_seconds(device, witness, now) >= threshold
    ]
    proving = [testimony for testimony in testimonies if testimony.proves]
    mark = device.mark
    if proving:
        same = [t for t in proving if mark and t.witness.source_id == mark.source_id]
        proof = (same or proving)[0]
        if mark is None or not same:
            witness = proof.witness
            mark = Mark(witness.source_id, witness.proof, witness.clock_seconds, now.cycle_id)
        return _noticed(device, proof, mark, settings)
    if mark is not None:
        for testimony in testimonies:
            if testimony.applies and testimony.witness.source_id == mark.source_id:
                # The source does not vouch at present: the notice stands still.
                left = settings.notice_seconds - (testimony.witness.clock_seconds - mark.clock_seconds)
                return Verdict(device, State.MARKED, testimony, mark, max(0.0, left))
        return Verdict(device, State.ABSENT, reason="its absence no longer reaches its threshold")
    return Verdict(device, _unproven_state(device, now))


def _noticed(device: Device, proof: Testimony, mark: Mark, settings: Settings) -> Verdict:
    left = settings.notice_seconds - (proof.witness.clock_seconds - mark.clock_seconds)
    if left <= 0:
        return Verdict(device, State.DUE, proof, mark, 0.0)
    return Verdict(device, State.MARKED, proof, mark, left)


def _unproven_state(device: Device, now: Circumstances) -> State:
    state = State.UNKNOWN
    for witness in now.witnesses:
        if not witness.vouching:
            continue
        if witness.proof is not Proof.HABIT:
            state = State.ABSENT
        elif device.seen and absence_seconds(device, witness, now) <= witness.fresh_seconds:
            return State.PRESENT
        elif device.habits and witness.source_id in device.habits:
            state = State.ABSENT
    return state


class Budget(NamedTuple):
    """What the limits leave: the day's window began with `base` associated devices, and `used` are spent of it."""

    base: int
    used: int
    left_seconds: float


class Plan(NamedTuple):
    """What a cycle may do: the devices to disassociate, longest absent first, and what holds the others back."""

    take: tuple[Verdict, ...]
    holds: tuple[Hold, ...]
    waiting: frozenset[str] = frozenset()


def plan(
    due: Iterable[Verdict],
    *,
    associated: int,
    settings: Settings,
    budget: Budget,
    approved: Collection[str],
    plan_id: str,
    unexplained: Collection[tuple[str, int]] = (),
    standing: Sequence[Hold] = (),
) -> Plan:
    """Apply the guards to the due devices.

    Args:
        due: the verdicts of the due devices.
        settings: the limits.
        budget: what the day's window leaves.
        associated: how many devices are associated with the core.
        approved: keys (see `member`) of the devices and incarnations that an approval names.
        plan_id: the id of the plan that those who wait for approval are to get.
        unexplained: (name, source id) of devices in an outage from which none has come back.
        standing: guards that hold everything back, whatever is due.
    """
    ordered = sorted(due, key=_longest_first)
    holds = list(standing)
    waiting: set[str] = set()
    lost = [
        v
        for v in ordered
        if v.testimony
        and (v.device.name, v.testimony.witness.source_id) in unexplained
        and member(v.device) not in approved
    ]
    if lost:
        waiting.update(v.device.name for v in lost)
        holds.append(
            Hold(
                "outage",
                f"{len(lost)} due devices were lost together, and none of them has come back",
                f"find out whether they are gone; then approve with: pruner approve {plan_id}",
                plan_id,
            )
        )
    limit = associated * settings.limits.approval_percent / 100
    unapproved = [v for v in ordered if member(v.device) not in approved]
    if len(ordered) > APPROVAL_MINIMUM and len(ordered) > limit and unapproved:
        waiting.update(v.device.name for v in unapproved)
        holds.append(
            Hold(
                "approval",
                f"{len(ordered)} of {associated} associated devices are due, more than"
                f" limits.approvalPercent ({settings.limits.approval_percent:g} %) lets go unasked",
                f"look at them (pruner list --state due); then approve with: pruner approve {plan_id}",
                plan_id,
            )
        )
    free = [] if standing else [v for v in ordered if v.device.name not in waiting]
    take = free
    day = max(0, day_allowance(budget.base, settings) - budget.used)
    if len(take) > day:
        take = take[:day]
        holds.append(
            Hold(
                "maxPercentPerDay",
                f"{budget.used} of {day_allowance(budget.base, settings)} disassociations of these 24 h are used"
                f" ({settings.limits.max_percent_per_day:g} % of {budget.base} devices), {len(free)} are due",
                f"wait {format_duration(max(1, round(budget.left_seconds)))}, or raise limits.maxPercentPerDay",
            )
        )
    if len(take) > settings.limits.max_per_cycle:
        take = take[: settings.limits.max_per_cycle]
        holds.append(
            Hold(
                "maxPerCycle",
                f"{len(free)} devices are due, limits.maxPerCycle is {settings.limits.max_per_cycle}",
                "the next cycles take the others; or raise limits.maxPerCycle",
            )
        )
    return Plan(tuple(take), tuple(holds), frozenset(waiting))


def day_allowance(base: int, settings: Settings) -> int:
    """How many may go in 24 h of a core that had `base` associated devices: rounded up, at least one unless 0 %."""
    # In whole millionths of a percent: as floats 8.8 % of 375 would be a little more than 33, and allow 34.
    millionths = round(settings.limits.max_percent_per_day * 1_000_000)
    return max(1, -(-base * millionths // 100_000_000)) if settings.limits.max_percent_per_day else 0


def member(device: Device) -> str:
    """The key under which an approval names a device and its incarnation."""
    timestamp = device.associated_at
    return f"{device.name}@{'' if timestamp is None else repr(timestamp)}"


def new_plan_id(members: Iterable[str]) -> str:
    """A short id made of the members, so that the same plan gets the same id."""
    import hashlib

    return hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:10]


def _longest_first(verdict: Verdict) -> tuple[float, str]:
    testimony = verdict.testimony
    return (-testimony.absence_seconds if testimony else 0.0, verdict.device.name)
