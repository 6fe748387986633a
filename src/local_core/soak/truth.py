"""What is true of the devices, whatever the component believes, and what each disassociation is worth by it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

_REMEMBERED = 400
_SHOWN = 40


class Style(str, Enum):
    """How a device lives."""

    SILENT = "silent"
    TALKER = "talker"
    CALLER = "caller"
    FLAPPER = "flapper"
    TRAVELLER = "traveller"
    MORTAL = "mortal"


class Verdict(str, Enum):
    """What it was to disassociate a device."""

    GONE = "gone"
    FALSE = "false"
    AWAY = "away longer than its threshold"
    EARLY = "away for less than its threshold"
    MOMENT = "came back in the very moment"


@dataclass(slots=True)
class Life:
    """One device: connected since when, and until when last, in monotonic seconds; `died` once it never comes back."""

    style: Style
    born: float
    connected: float | None = None
    last: float | None = None
    died: float | None = None


@dataclass(slots=True)
class Truth:
    """Keeps the truth beside the component.

    Attributes:
        threshold_seconds: absence after which a device may go, on a clock that never goes faster than time.
        moment_seconds: who has been connected for no longer came while the check was under way.
        timeline: what happened lately, for people.
    """

    threshold_seconds: float
    moment_seconds: float
    lives: dict[str, Life] = field(default_factory=dict)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    timeline: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    began: float = 0.0

    def tell(self, at: float, text: str) -> None:
        """Keep something that happened."""
        self.timeline.append(f"{at - self.began:8.2f} s  {text}")

    def look(self, at: float, connections: Mapping[str, int]) -> None:
        """Take who is connected to the broker now."""
        for name, life in self.lives.items():
            if name in connections:
                if life.connected is None:
                    life.connected = at
                    self.tell(at, f"{name} is connected")
                life.last = at
            elif life.connected is not None:
                life.connected = None
                self.tell(at, f"{name} is not connected any more")

    def judge(self, name: str, at: float) -> Verdict:
        """Say what it is to disassociate that device now."""
        life = self.lives[name]
        if life.died is not None:
            return Verdict.GONE
        if life.connected is not None and at - life.connected < self.moment_seconds:
            return Verdict.MOMENT
        # Who calls regularly keeps its habit, and is to stay, though it is never connected for long.
        if life.connected is not None or life.style is Style.CALLER:
            return Verdict.FALSE
        since = life.born if life.last is None else life.last
        return Verdict.AWAY if at - since >= self.threshold_seconds else Verdict.EARLY

    def asked(self, name: str, at: float) -> Verdict:
        """The cloud is asked to disassociate a device: keep the verdict, with the timeline if it is false."""
        verdict = self.judge(name, at)
        self.verdicts[verdict] += 1
        self.tell(at, f"{name} is disassociated: {verdict.value}")
        if verdict is Verdict.FALSE:
            lately = "\n".join(list(self.timeline)[-_SHOWN:])
            self.findings.append(f"{name} ({self.lives[name].style.value}) lives and was disassociated:\n{lately}")
        return verdict
