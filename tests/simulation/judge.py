"""The judge knows the truth: who was cut off while connected, and how many of the dead went, after how long."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from simulation.rates import MARGIN_DAYS, THRESHOLD_DAYS

if TYPE_CHECKING:
    from simulation.devices import Device
    from simulation.site import Site

GONE, NEVER, CONNECTED, EARLY, AWAY, MUTE = (
    "dead, moved or replaced",
    "never came",
    "connected (FALSE)",
    "alive, away for less than its threshold (FALSE)",
    "alive, away for longer than its threshold",
    "connected, but mute, where the broker says nothing (apart)",
)
FALSE = (CONNECTED, EARLY)


@dataclass(slots=True)
class Cut:
    """A device that was cut off though it is connected, or about to be."""

    kind: str
    seed: int
    name: str
    style: str
    day: float
    verdict: str
    restored: bool = False  # whether the component associated it again
    sighted: bool = False  # whether anything of it was heard since


@dataclass(slots=True)
class Figures:
    """What sites came to."""

    sites: int = 0
    device_years: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    cuts: list[Cut] = field(default_factory=list)
    eligible: int = 0
    removed: int = 0
    days: list[float] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    baselines: dict[str, Counter[str]] = field(default_factory=dict)
    observed: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Add those of another site."""
        for name in self.__slots__:
            mine, more = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict) and not isinstance(mine, Counter):
                for key, tally in more.items():
                    mine[key] = mine.get(key, Counter()) + tally
            else:
                setattr(self, name, mine + more)

    @property
    def false_connected(self) -> list[Cut]:
        """Those that were cut off while connected."""
        return [cut for cut in self.cuts if cut.verdict == CONNECTED]


class Judge:
    """Judges one site; what happens is reported to it as it happens."""

    def __init__(self, site: Site) -> None:
        self.figures = Figures(sites=1)
        self._site = site
        self._carried = 0
        self._removed: dict[str, float] = {}
        self._by_others: set[str] = set()
        self._cut: dict[str, Cut] = {}
        self._marked: dict[str, float] = {}
        self._restorable: dict[str, float] = {}
        self._shortest = THRESHOLD_DAYS * site.pace.day

    # The truth

    def lives(self, name: str) -> bool:
        """Whether a device that once came lives on this core."""
        device = self._site.devices[name]
        return device.alive and device.last_contact is not None

    def verdict(self, device: Device) -> str:
        """What the truth says of taking a device off now."""
        if not device.alive:
            return GONE
        if device.last_contact is None:
            return NEVER
        if device.connected or device.wants:
            return MUTE if device.silenced and self._site.kind == "messages" else CONNECTED
        return EARLY if self._site.world.now - device.last_contact < self._shortest else AWAY

    def threshold_changed(self, key: str, value: object) -> None:
        """Somebody deployed another threshold; a shorter one counts from now on."""
        if key == "offlineThreshold" and value == self._site.duration(20):
            self._shortest = 20 * self._site.pace.day

    # What happens

    def disassociated(self) -> None:
        """The cloud carried disassociations out that the component asked for."""
        site = self._site
        for carried in site.component.cloud.carried[self._carried :]:
            device = site.devices[carried.name]
            verdict = self.verdict(device)
            self.figures.verdicts[verdict] += 1
            self._removed.setdefault(device.name, site.world.now)
            site.say(f"{device.name} ({device.style}) is disassociated: {verdict}")
            self._check(device)
            if verdict in FALSE:
                cut = Cut(site.kind, site.seed, device.name, device.style, site.world.now / site.pace.day, verdict)
                self.figures.cuts.append(cut)
                self._cut[device.name] = cut
        self._carried = len(site.component.cloud.carried)

    def _check(self, device: Device) -> None:
        """Hold a disassociation against the settings in force, but those that were deployed in the last minutes."""
        site = self._site
        day = site.pace.day
        self.note_marks()
        problems, document = self.figures.problems, site.component.configuration
        if site.world.now - site.configured_at > 600.0:
            if document.get("dryRun"):
                problems.append(f"{device.name} was disassociated in a dry run")
            if any(fnmatchcase(device.name, glob) for glob in document.get("protectedDevices", [])):
                problems.append(f"{device.name} was disassociated though it is protected")
        if site.world.now - self._marked.get(device.name, 0.0) < 0.95 * day:
            problems.append(f"{device.name} was disassociated before its grace period was over")
        self._restorable[device.name] = site.world.now

    def note_marks(self) -> None:
        """Note when each device was marked last."""
        for event in self._site.component.happened("marked"):
            if event.name:
                self._marked[event.name] = event.at

    def heard(self, device: Device) -> None:
        """Something of a device reached the component."""
        if device.name in self._cut:
            self._cut[device.name].sighted = True
        since = self._restorable.pop(device.name, None)
        if since is not None:
            self._site.world.after(4 * self._site.pace.day, lambda: self._is_restored(device))

    def _is_restored(self, device: Device) -> None:
        """Who was sighted after it was disassociated is associated again some days later, unless it went again."""
        if device.name in self._site.component.cloud.refusing:
            self._site.world.after(4 * self._site.pace.day, lambda: self._is_restored(device))
            return
        gone_again = device.name in self._restorable or device.name in self._by_others
        if device.name not in self._site.component.cloud.associations and not gone_again:
            self.figures.problems.append(f"{device.name} was sighted again and is not restored")

    def taken_off(self, name: str) -> None:
        """Somebody else took an association off."""
        self._by_others.add(name)

    def finish(self) -> None:
        """Count up at the end."""
        site, figures = self._site, self.figures
        associated = site.component.cloud.associations
        for cut in self._cut.values():
            cut.restored = cut.name in associated
        verdicts = self._verdicts()
        for device in site.devices.values():
            gone_at = self._removed.get(device.name, site.end) if device.name not in associated else site.end
            figures.device_years += (gone_at - device.associated_at) / site.pace.year
            if device.died is None or not device.heard or device.name in self._by_others:
                continue
            if device.died > site.end - MARGIN_DAYS * site.pace.day:
                continue
            figures.eligible += 1
            if device.name not in associated:
                figures.removed += 1
                figures.days.append(max(0.0, self._removed[device.name] - device.died) / site.pace.day)
            else:
                why = verdicts.get(device.name, "it is not known")
                figures.left[why] += 1
                site.say(f"{device.name} ({device.style}, {device.fate}) is left: {why}")
        figures.baselines = site.baselines.tallies
        kept = 60 * site.pace.day
        rows = site.component.rows("SELECT name FROM disassociations WHERE outcome = 'done'")
        journalled = {row["name"] for row in rows}
        for name, removed_at in self._removed.items():
            if site.end - kept < removed_at < site.end - 3 * site.pace.day and name not in journalled:
                figures.problems.append(f"{name} was disassociated, and the journal does not say so")
        observed = site.component.kept("presence")["observedSeconds"]
        figures.observed.append(observed / site.end)

    def _verdicts(self) -> dict[str, str]:
        """Why each device is still there, in the component's own words, without figures."""
        component = self._site.component
        held = ", ".join(sorted(hold["guard"] for hold in component.kept("status")["guards"])) or "no guard"
        found = {}
        for row in component.rows("SELECT name, verdict FROM verdicts"):
            verdict = json.loads(row["verdict"])
            text = re.sub(r"\d+(\.\d+)?", "N", " ".join(verdict["sentences"]))
            missing = re.search(r"Nothing shows that it is gone: [^.]*", text)
            if missing:
                why = missing[0][:150]
            elif verdict["state"] in ("marked", "due"):
                why = f"{verdict['state']}, held by {held}"
            else:
                patient = verdict["patienceSeconds"] > self._shortest
                why = f"{verdict['state']}, {'was silent for long before' if patient else 'was seen not long ago'}"
            found[row["name"]] = why
        return found
