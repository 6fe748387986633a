"""The status: one document in the store that the command line renders, and what of it goes to the named shadow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from client_device_pruner import __version__
from client_device_pruner.config.bridge import Finding
from client_device_pruner.decisions.coverage import Coverage
from client_device_pruner.decisions.guards import Hold
from client_device_pruner.decisions.policy import State
from client_device_pruner.presence.clock import DAY_SECONDS, MONTH_SECONDS, Shares
from client_device_pruner.presence.facts import Input
from client_device_pruner.reports.events import rfc3339

SHADOW_SECONDS = 60.0  # the named shadow is updated at most so often (CONTRACT, `reports.shadowName`)


def status_document(
    *,
    wall: float,
    observed_seconds: float,
    observing_since: float | None,
    shares: Shares,
    inputs: Mapping[str, Input],
    counts: Mapping[str, int],
    coverage: Coverage,
    holds: Iterable[Hold],
    findings: Iterable[Finding],
    plan: tuple[str, Iterable[str]] | None,
    next_check_seconds: float | None,
    last_complete_wall: float | None,
    failed: Mapping[str, Any] | None,
    dry_run: bool,
) -> dict[str, Any]:
    """The status of the contract, all but `running`; times named `wall` or `since` are epoch seconds.

    `failed` is what has failed since the last complete cycle: `code`, `message`, `remedy`, `at`.
    """
    return {
        "version": __version__,
        "time": wall,
        "observedSeconds": observed_seconds,
        "observing": {
            "since": None if observing_since is None else rfc3339(observing_since),
            "seconds": round(observed_seconds, 3),
            "shareOfDay": round(shares.share(DAY_SECONDS, wall, observed_seconds), 3),
            "shareOfMonth": round(shares.share(MONTH_SECONDS, wall, observed_seconds), 3),
            "inputs": {
                name: {"inUse": one.in_use, "alive": one.alive, "reason": one.reason, "remedy": one.remedy}
                for name, one in inputs.items()
            },
        },
        "counts": {state.value: counts.get(state.value, 0) for state in State},
        "coverage": {**asdict(coverage), "reasons": list(coverage.reasons)},
        "guards": [{"guard": hold.guard, "reason": hold.reason, "remedy": hold.remedy} for hold in holds],
        "plan": None if plan is None else {"id": plan[0], "devices": sorted(plan[1])},
        "nextCheckInSeconds": None if next_check_seconds is None else round(next_check_seconds, 3),
        "lastCycle": {
            "completeAt": None if last_complete_wall is None else rfc3339(last_complete_wall),
            "failed": failed,
        },
        "dryRun": dry_run,
        "doctor": [asdict(finding) for finding in findings],
    }


class Shadow:
    """Decides when the named shadow is updated: when something changed that a person would act on."""

    def __init__(self) -> None:
        self._sent = ""
        self._next = float("-inf")

    def update(self, status: Mapping[str, Any], at: float) -> bytes | None:
        """The update to publish now, at monotonic seconds `at`; None if there is nothing to say, or it is too soon."""
        reported = {
            "version": status["version"],
            "dryRun": status["dryRun"],
            "observing": status["observing"]["since"] is not None,
            "associated": status["coverage"]["associated"],
            "removable": status["coverage"]["removable"],
            "guards": sorted(hold["guard"] for hold in status["guards"]),
            "plan": status["plan"]["id"] if status["plan"] else "",
            "doctor": len(status["doctor"]),
            "cyclesFail": status["lastCycle"]["failed"] is not None,
        }
        text = json.dumps({"state": {"reported": reported}}, separators=(",", ":"))
        if text == self._sent or at < self._next:
            return None
        self._sent, self._next = text, at + SHADOW_SECONDS
        return text.encode()

    def forget(self) -> None:
        """What was sent last did not arrive: it is sent again."""
        self._sent = ""

    def deployed(self) -> None:
        """Something was deployed: if what was sent last was refused, it is sent again at once."""
        if not self._sent:
            self._next = float("-inf")
