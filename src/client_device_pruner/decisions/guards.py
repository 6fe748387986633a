"""The guards that hold pruning back, each a function of its own with its figure and its remedy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from client_device_pruner.config.schema import format_duration
from client_device_pruner.config.settings import MassLoss, Settings
from client_device_pruner.decisions.policy import LONGEST_TIMES, Verdict, judge
from client_device_pruner.presence.devices import Device
from client_device_pruner.presence.facts import Facts

APPROVAL_MINIMUM = 3  # so many due devices, and fewer, never wait for approval (CONTRACT, `limits.approvalPercent`)
LIST_BELIEVED_AFTER = 3  # an implausible list is believed once so many cycles in a row say the same
OF_A_PLAN = ("approval", "lostTogether", "maxPerCycle", "maxPercentPerDay")
"""Guards that each cycle's plan decides anew; all others stand until what they are about has changed."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A guard that holds pruning back."""

    guard: str  # its name in the contract
    reason: str  # what it holds for, with its figure
    remedy: str  # what to do about it
    plan: str = ""  # the id of the plan that waits for approval; empty if none does

    def data(self) -> dict[str, Any]:
        """The data of its event."""
        return {"guard": self.guard, "reason": self.reason, "remedy": self.remedy, "plan": self.plan or None}


class Guards:
    """Knows which guards hold; each change becomes one event."""

    def __init__(self, event: Callable[..., None]) -> None:
        self._event = event
        self._holds: dict[str, Hold] = {}

    def hold(self, hold: Hold) -> None:
        """Let a guard hold; said once, and again only if another plan waits."""
        before = self._holds.get(hold.guard)
        self._holds[hold.guard] = hold
        if before is None or before.plan != hold.plan:
            self._event("held", **hold.data())

    def release(self, guard: str) -> None:
        """Let a guard no longer hold."""
        hold = self._holds.pop(guard, None)
        if hold is not None:
            self._event("released", **{**hold.data(), "remedy": "nothing to do"})

    def planned(self, holds: Iterable[Hold]) -> None:
        """Take what a cycle's plan came to: guards of a plan that it does not name no longer hold."""
        holding = {hold.guard: hold for hold in holds}
        for guard in OF_A_PLAN:
            if guard in holding:
                self.hold(holding[guard])
            else:
                self.release(guard)

    @property
    def in_force(self) -> tuple[Hold, ...]:
        """All that hold now."""
        return tuple(self._holds.values())

    @property
    def standing(self) -> tuple[Hold, ...]:
        """Those that hold everything back, in every cycle."""
        return tuple(hold for hold in self._holds.values() if hold.guard not in OF_A_PLAN)


@dataclass(frozen=True, slots=True)
class Budget:
    """What 24 h of running time allow: they began with `base` associated devices, and `used` are spent."""

    base: int
    used: int
    left_seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cycle may do: the devices to disassociate, silent for longest first, and what holds the others back."""

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
    unsuccessful: Collection[str] = (),
    lost_together: Collection[str] = (),
    standing: Sequence[Hold] = (),
) -> Plan:
    """Apply the guards to the due devices; an approval names the `approved` ones.

    The `unsuccessful` ones, which the cloud did not take off before, come last. A plan that has to wait gets `plan_id`.
    `standing` guards hold everything back.
    """
    # One that the cloud does not take off must not use up what others need.
    ordered = sorted(due, key=lambda v: (v.name in unsuccessful, -v.silent_seconds, v.name))
    unapproved = [verdict for verdict in ordered if verdict.name not in approved]
    together = [verdict.name for verdict in unapproved if verdict.name in lost_together]
    # A few never wait.
    many = len(ordered) > max(APPROVAL_MINIMUM, associated * settings.limits.approval_percent / 100)
    asked = [verdict.name for verdict in unapproved] if many else []
    waiting = frozenset([*together, *asked])
    holds = list(standing)
    if together:
        holds.append(lost_together_hold(len(together), settings.mass_loss, plan_id))
    if asked:
        holds.append(approval_hold(len(ordered), associated, settings, plan_id))
    free = [] if standing else [verdict for verdict in ordered if verdict.name not in waiting]
    take = free
    left_today = max(0, day_allowance(budget.base, settings) - budget.used)
    if len(take) > left_today:
        take = take[:left_today]
        holds.append(per_day_hold(len(free), budget, settings))
    if len(take) > settings.limits.max_per_cycle:
        take = take[: settings.limits.max_per_cycle]
        holds.append(per_cycle_hold(len(free), settings))
    return Plan(tuple(take), tuple(holds), waiting)


def approval_hold(due: int, associated: int, settings: Settings, plan_id: str) -> Hold:
    """`approval`: more devices are due than may go without approval."""
    return Hold(
        "approval",
        f"{due} of {associated} associated devices are due, more than limits.approvalPercent"
        f" ({settings.limits.approval_percent:g} %) allows without approval",
        f"look at them (pruner list --state due); then approve with: pruner approve {plan_id}",
        plan_id,
    )


def lost_together_hold(lost: int, limits: MassLoss, plan_id: str) -> Hold:
    """`lostTogether`: devices were last seen at about the same time, so they may share a cause."""
    window = format_duration(limits.window_seconds)
    return Hold(
        "lostTogether",
        f"{lost} due devices belong to a group that was last seen within massLoss.window ({window})",
        f"check whether they are gone; then approve with: pruner approve {plan_id}",
        plan_id,
    )


def day_allowance(base: int, settings: Settings) -> int:
    """How many may go in 24 h of a core that had `base` associated devices: rounded up."""
    # In whole millionths of a percent: as floats 8.8 % of 375 would be a little more than 33, and allow 34.
    millionths = round(settings.limits.max_percent_per_day * 1_000_000)
    return -(-base * millionths // 100_000_000)


def per_day_hold(due: int, budget: Budget, settings: Settings) -> Hold:
    """`maxPercentPerDay`: the budget of these 24 h is used up."""
    wait = f"wait {format_duration(max(1, round(budget.left_seconds)))}, or "
    return Hold(
        "maxPercentPerDay",
        f"{budget.used} of {day_allowance(budget.base, settings)} disassociations of these 24 h are used"
        f" ({settings.limits.max_percent_per_day:g} % of {budget.base} devices), {due} are due",
        f"{wait if settings.limits.max_percent_per_day else ''}raise limits.maxPercentPerDay",
    )


def per_cycle_hold(due: int, settings: Settings) -> Hold:
    """`maxPerCycle`: more devices are due than one cycle takes."""
    limit = settings.limits.max_per_cycle
    remedy = "the next cycles take the others; or raise limits.maxPerCycle" if limit else "raise limits.maxPerCycle"
    return Hold("maxPerCycle", f"{due} devices are due, limits.maxPerCycle is {limit}", remedy)


def not_observing_hold(since: str, reason: str, remedy: str) -> Hold:
    """`notObserving`: no observed time passes; `since` when is a time (RFC 3339), the reason says what is missing."""
    return Hold("notObserving", f"no time has been observed since {since}: {reason}", remedy)


def preflight_hold(missed: str) -> Hold:
    """`notObserving`, of one cycle: what the check before a batch missed."""
    reason = f"the check before the batch failed: {missed}"
    return Hold("notObserving", reason, "nothing was disassociated; the next cycle tries again")


def list_hold(listed: int, expected: int) -> Hold:
    """`list`: the list of associations is so short that it may be wrong."""
    return Hold(
        "list",
        f"the cloud lists {listed} associated devices, but {expected} were expected",
        f"nothing to do if the list is right: it counts once {LIST_BELIEVED_AFTER} cycles in a row get the same one",
    )


def unreadable_list_hold(message: str, remedy: str) -> Hold:
    """`list`: what came in place of the list of associations is none."""
    return Hold("list", message, remedy)


def access_denied_hold(message: str, remedy: str) -> Hold:
    """`accessDenied`: the cloud denies a call; the remedy names the permission."""
    return Hold("accessDenied", message, remedy)


def core_not_found_hold(core_device: str, message: str, remedy: str) -> Hold:
    """`coreNotFound`: the cloud does not know the core device."""
    return Hold("coreNotFound", f"the cloud does not know core device {core_device}: {message}", remedy)


def configuration_hold(problems: Iterable[str]) -> Hold:
    """`configuration`: it was refused; the last good one is in force for watching."""
    return Hold(
        "configuration",
        f"the configuration was refused: {'; '.join(problems)}",
        'correct it with a deployment ("reset": ["/key"] removes an unknown key, a merge does not);'
        " until then the last good one is in force, and nothing is disassociated",
    )


def database_hold(reason: str, *, newer: bool) -> Hold:
    """`database`: the state file cannot be opened or written, or a `newer` version wrote it."""
    remedy = "deploy the newer version again" if newer else "free space on the file system, or make it writable"
    return Hold("database", reason, remedy)


def instance_hold() -> Hold:
    """`instance`: another process has the lock on the state."""
    reason = "another process of this component owns the state in this work directory"
    return Hold("instance", reason, "end the other process, or wait until it has ended")


def lost_together(devices: Iterable[Device], settings: Settings, facts: Facts) -> frozenset[str]:
    """The names of devices that were lost together (DESIGN, model 8).

    They are gone, or silent for longer than twice their longest silence, and were last seen within `massLoss.window`
    of the first of them; at least `minDevices`, and `minPercent` of the devices that were ever seen.
    """
    seen = [device for device in devices if device.seen_by]
    lost = sorted((device.silent_since, device.name) for device in seen if _is_lost(device, settings, facts))
    limits = settings.mass_loss
    fewest = max(limits.min_devices, len(seen) * limits.min_percent / 100)
    found: set[str] = set()
    start, taken = 0, 0
    for end, (last_seen, _name) in enumerate(lost):
        while last_seen - lost[start][0] > limits.window_seconds:
            start += 1
        if end + 1 - start >= fewest:
            found.update(name for _at, name in lost[max(start, taken) : end + 1])
            taken = end + 1
    return frozenset(found)


def _is_lost(device: Device, settings: Settings, facts: Facts) -> bool:
    if facts.is_present(device):
        return False
    unusual = facts.silent_seconds(device) > LONGEST_TIMES * device.longest(facts.observed_seconds)
    return unusual or judge(device, settings, facts).gone


def member(device: Device) -> str:
    """The key under which an approval names a device and its incarnation."""
    timestamp = device.association_timestamp
    return f"{device.name}@{'' if timestamp is None else repr(timestamp)}"


def new_plan_id(members: Iterable[str]) -> str:
    """A short id made of the members, so that the same plan gets the same id."""
    import hashlib  # rarely needed, and OpenSSL takes a megabyte

    return hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:10]
