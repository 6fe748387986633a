"""What of the status goes to the named shadow, and when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SHADOW_SECONDS = 60.0  # the named shadow is updated at most so often (CONTRACT, `reports.shadowName`)


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
