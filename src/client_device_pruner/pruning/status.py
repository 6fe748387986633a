"""The status of the contract, all but `running`: the command line renders it, and the named shadow tells of it."""

from __future__ import annotations

from typing import Any

from client_device_pruner import __version__
from client_device_pruner.config.finding import Finding
from client_device_pruner.decisions.policy import State
from client_device_pruner.greengrass.link import Link
from client_device_pruner.presence.clock import DAY_SECONDS, MONTH_SECONDS
from client_device_pruner.presence.facts import Input
from client_device_pruner.pruning.core import Core
from client_device_pruner.pruning.deployed import Deployed
from client_device_pruner.pruning.plans import waiting_plan
from client_device_pruner.pruning.scheduler import Scheduler
from client_device_pruner.reports.events import rfc3339


def status_document(core: Core, link: Link, deployed: Deployed, scheduler: Scheduler, at: float) -> dict[str, Any]:
    """The status at monotonic seconds `at`; raises `sqlite3.Error` where the state file cannot be read."""
    wall, observed, trouble = core.clock.wall(), core.presence.observed, link.trouble
    inputs = {"probe": Input(in_use=True, alive=not trouble, reason=trouble), **core.presence.inputs(at)}
    plan, next_check = waiting_plan(core), scheduler.next_check_seconds(at)
    # On Greengrass Lite the doctor only knows what should echo the probe: no trouble, no finding.
    found = () if deployed.lite and not trouble else deployed.findings
    return {
        "version": __version__,
        "time": wall,
        "observedSeconds": observed.seconds,
        "observing": {
            "since": _time(observed.since_wall),
            "seconds": round(observed.seconds, 3),
            "shareOfDay": round(core.shares.share(DAY_SECONDS, wall, observed.seconds), 3),
            "shareOfMonth": round(core.shares.share(MONTH_SECONDS, wall, observed.seconds), 3),
            "knownSince": _time(core.shares.since),
            "inputs": {
                name: {"inUse": one.in_use, "alive": one.alive, "reason": one.reason, "remedy": one.remedy}
                for name, one in inputs.items()
            },
        },
        "counts": {state.value: core.counts[state.value] for state in State},
        "coverage": core.coverage,
        "guards": [
            {"guard": hold.guard, "reason": hold.reason, "remedy": hold.remedy} for hold in core.guards.in_force
        ],
        "plan": None if plan is None else {"id": plan[0], "devices": sorted(plan[1])},
        "nextCheckInSeconds": None if next_check is None else round(next_check, 3),
        "lastCycle": {"completeAt": _time(core.store.kept("lastComplete")), "failed": scheduler.failures.latest},
        "dryRun": core.settings.dry_run,
        "doctor": [
            {"finding": one.finding, "remedy": one.remedy} for one in (*link.findings, *found, *_foreign_ids(core))
        ],
    }


def _time(wall: float | None) -> str | None:
    return None if wall is None else rfc3339(wall)


def _foreign_ids(core: Core) -> tuple[Finding, ...]:
    """Client ids that are not thing names: associated devices are never seen while others are."""
    names = core.presence.unknown_ids
    if not names or not core.devices.associated_count:
        return ()
    text = f"None of the associated devices was ever seen, but others were: {', '.join(names)}"
    remedy = "The MQTT client id of a client device has to be its thing name: see docs/deploy.md"
    return (Finding(text, remedy),)
