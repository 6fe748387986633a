"""Which due devices may go: the guards of a plan, and the approvals of those that wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from client_device_pruner.decisions import guards
from client_device_pruner.decisions.guards import Plan, member, new_plan_id

if TYPE_CHECKING:
    from client_device_pruner.decisions.policy import Verdict
    from client_device_pruner.pruning.core import Core
    from client_device_pruner.pruning.failures import Failures

MAX_PLANS = 20
"""Plans remembered for late approvals, and approvals."""


class Plans:
    """Makes plans, and remembers those that had to wait, so that an approval can name them.

    Args:
        core: what is known.
        failures: whether access is denied.
    """

    def __init__(self, core: Core, failures: Failures) -> None:
        self._core = core
        self._failures = failures

    def plan(self, due: Sequence[Verdict]) -> Plan:
        """The due devices after all guards; raises `sqlite3.Error` where the state file refuses."""
        core, devices = self._core, self._core.devices
        # A denied disassociation is found to be granted by asking again: one device may try.
        trying = self._failures.only_disassociation_denied
        keys = {verdict.name: member(devices.by_name[verdict.name]) for verdict in due}
        approved = self._approved()

        def made(plan_id: str) -> Plan:
            plan = guards.plan(
                due,
                associated=devices.associated_count,
                settings=core.settings,
                budget=core.journal.budget(devices.associated_count, core.running_seconds()),
                approved={name for name, key in keys.items() if key in approved},
                plan_id=plan_id,
                lost_together=core.lost_together(),
                standing=[hold for hold in core.guards.standing if not (trying and hold.guard == "accessDenied")],
            )
            return replace(plan, take=plan.take[:1]) if trying else plan

        plan_id, members = self._latest()
        plan = made(plan_id)
        waiting = {keys[name] for name in plan.waiting}
        if waiting <= set(members):
            return plan
        plan_id = new_plan_id(waiting)
        others = [known for known in self._known() if known[0] != plan_id]
        core.keep(plans=[*others, (plan_id, sorted(waiting))][-MAX_PLANS:])
        return made(plan_id)

    def approve(self, plan_ids: Sequence[str]) -> None:
        """Remember approvals; raises `sqlite3.Error` where the state file refuses."""
        self._core.keep(approved=[*self._core.kept("approved", []), *plan_ids][-MAX_PLANS:])

    def waiting(self) -> tuple[str, list[str]] | None:
        """The id and the device names of the plan that waits for approval now; None if none does."""
        held = {hold.plan for hold in self._core.guards.in_force if hold.plan}
        if not held:
            return None
        plan_id, members = self._latest()
        return (plan_id, [key.rpartition("@")[0] for key in members]) if plan_id in held else None

    def _known(self) -> list[tuple[str, list[str]]]:
        known: list[tuple[str, list[str]]] = self._core.kept("plans", [])
        return known

    def _latest(self) -> tuple[str, list[str]]:
        known = self._known()
        return known[-1] if known else ("", [])

    def _approved(self) -> set[str]:
        """The members of all plans that were approved, by the configuration or by command."""
        ids = {self._core.settings.approved_plan, *self._core.kept("approved", [])}
        return {key for plan_id, members in self._known() if plan_id in ids for key in members}
