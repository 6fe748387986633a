"""Which due devices may go: the guards of a plan, and the approvals of plans that had to wait.

All functions raise `sqlite3.Error` where the state file refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from client_device_pruner.decisions import guards
from client_device_pruner.decisions.guards import Plan, member, new_plan_id
from client_device_pruner.decisions.policy import State, Verdict
from client_device_pruner.pruning.core import Core

MAX_PLANS = 20  # plans remembered for late approvals


def make_plan(core: Core, due: Sequence[Verdict], *, trying: bool) -> Plan:
    """The due devices after all guards; one device at most that is `trying` whether access is still denied."""
    devices, store = core.devices, core.store
    keys = {verdict.name: member(devices.by_name[verdict.name]) for verdict in due}
    known: list[tuple[str, list[str]]] = store.kept("plans", [])
    approved = set(store.kept("approved", []))

    def made(plan_id: str) -> Plan:
        plan = guards.plan(
            due,
            associated=devices.associated_count,
            settings=core.settings,
            budget=core.journal.budget(devices.associated_count, core.running_seconds()),
            approved={name for name, key in keys.items() if key in approved},
            plan_id=plan_id,
            unsuccessful=core.journal.unsuccessful(),
            lost_together=guards.lost_together(devices.associated(), core.settings, core.facts()),
            standing=[hold for hold in core.guards.standing if not (trying and hold.guard == "accessDenied")],
        )
        return replace(plan, take=plan.take[:1]) if trying else plan

    # A plan that shrinks keeps its id, by which a person may be about to approve it.
    plan_id, members = known[-1] if known else ("", [])
    plan = made(plan_id)
    waiting = {keys[name] for name in plan.waiting}
    if waiting <= set(members):
        return plan
    # Never an id that was approved before: the same devices may wait again months later.
    plan_id = new_plan_id({*waiting, repr(core.running_seconds())})
    store.keep(plans=[*(one for one in known if one[0] != plan_id), (plan_id, sorted(waiting))][-MAX_PLANS:])
    return made(plan_id)


def approve(core: Core, plan_id: str) -> None:
    """Approve the devices of a plan that waits, or waited lately; it is then no plan any more."""
    plans = dict(core.store.kept("plans", []))
    if plan_id in plans:
        approved = [*core.store.kept("approved", []), *plans.pop(plan_id)]
        core.store.keep(plans=list(plans.items()), approved=approved)


def expire_approvals(core: Core, due: Sequence[Verdict]) -> None:
    """Let approvals, the configuration's among them, cover no more than what is still due."""
    approve(core, core.settings.approved_plan)
    approved: list[str] = core.store.kept("approved", [])
    still = {member(core.devices.by_name[verdict.name]) for verdict in due}
    left = [key for key in approved if key in still]
    if left != approved:
        core.store.keep(approved=left)


def waiting_plan(core: Core) -> tuple[str, list[str]] | None:
    """The id and the device names of the plan that waits for approval now; None if none does."""
    held = {hold.plan for hold in core.guards.in_force if hold.plan}
    if not held:
        return None
    due = {member(device): device.name for device in core.devices.associated() if device.told.state == State.DUE.value}
    known: list[tuple[str, list[str]]] = core.store.kept("plans", [])
    names = ((plan_id, [due[key] for key in keys if key in due]) for plan_id, keys in known if plan_id in held)
    return next(names, None)
