"""The self-test: a message through the one subscription shows that it lives (DESIGN, model 11)."""

from __future__ import annotations

import os
from enum import Enum

INTERVAL_SECONDS = 60.0
"""How often the self-test is sent."""
PATIENCE_SECONDS = 15.0
"""How long its echo may take: it passes through one process of the same machine."""


class Remedy(Enum):
    """What to do when an echo stays away, in this order."""

    SUBSCRIBE = "subscribe"
    CONNECT = "connect"
    EXIT = "exit"


class SelfTest:
    """Sends, waits for the echo, and names the next remedy; all times are monotonic seconds.

    Args:
        scale: what the fixed times are multiplied by.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.alive = False
        self.echoed: str | None = None
        self._run = os.urandom(4).hex()
        self._number = 0
        self._awaited: str | None = None
        self._sent = float("-inf")
        self._remedies = 0

    def due(self, at: float) -> bool:
        """Whether it is time to send."""
        return self._awaited is None and at - self._sent >= INTERVAL_SECONDS * self.scale

    def next(self, at: float) -> str:
        """The text to send now."""
        self._number += 1
        self._awaited, self._sent = f"{self._run}-{self._number}", at
        return self._awaited

    def echo(self, payload: bytes) -> None:
        """Take what came back; another process's or an old one shows nothing."""
        text = payload.decode(errors="replace")
        if text == self._awaited:
            self._awaited, self.echoed, self.alive, self._remedies = None, text, True, 0

    def remedy(self, at: float) -> Remedy | None:
        """What to do now if the echo is overdue; each call takes the next remedy and sends anew."""
        if self._awaited is None or at - self._sent < max(1.0, PATIENCE_SECONDS * self.scale):
            return None
        self._remedies += 1
        # Once all has been tried, it is tried again no faster than the self-test comes round.
        self._sent = at if self._remedies > len(Remedy) else float("-inf")
        self._awaited, self.alive = None, False
        return (Remedy.SUBSCRIBE, Remedy.CONNECT, Remedy.EXIT)[min(self._remedies, 3) - 1]
