"""The invariants of DESIGN, checked at each decision, by what reached the component and what it asked for."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING

from client_device_pruner import policy
from client_device_pruner.emqx import UNHEARD
from client_device_pruner.journal import WINDOW_SECONDS
from client_device_pruner.ledger import get_meta
from client_device_pruner.policy import Circumstances
from local_core.simulation.received import SAMPLING_SECONDS, Received

if TYPE_CHECKING:
    from client_device_pruner.component import Component
    from local_core.simulation.world import World

SLACK_SECONDS = 1e-3
"""Sums of floats."""
HABIT_MESSAGES = 5
NOT_COUNTED = frozenset({"throttled", "accessDenied", "credentials"})
"""After these the cloud certainly did nothing, and the budget is given back."""


class Invariants:
    """Keeps what reached the component beside it, and holds each of its decisions against that."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.received = Received()
        self.differing = 0
        self.echoes = 0
        self._answered_at = float("-inf")
        self._answered_echoes = 0
        self._window = 0
        self._used: Counter[int] = Counter()
        self._listed = 0
        self._asked: dict[str, int] = {}
        self._turn = itertools.count()

    # What happens

    def counted(self, count: int) -> None:
        """The component is about to take a count."""
        world = self._world
        if world.component is None:
            return
        known = sum(len(emqx.sessions()) for emqx in world.component.watch.sources.emqx.values())
        surplus = count - known - 1
        self.differing += surplus != 0
        self.received.counted(surplus, world.now)

    def committed(self) -> None:
        """The ledger was written."""
        self._note_present()
        self.received.committed()

    def answered(self, operation: str) -> None:
        """The cloud answered."""
        self._answered_at, self._answered_echoes = self._world.now, self.echoes
        self._listed += operation == "list"

    def _note_present(self) -> None:
        """Whom a census that matches holds present lives, as far as anybody can know."""
        component = self._world.component
        for emqx in component.watch.sources.emqx.values() if component else ():
            if emqx.matching:
                self.received.present(emqx.sessions(), self._world.now)

    # I2 and the known sessions

    def check(self) -> None:
        """At the start of a run and at the end of each cycle: what does the component believe?"""
        component = self._world.component
        if component is not None:
            self._note_present()
            self._check_clocks(component)
            if self._world.kind != "messages":
                self._check_sessions(component)

    def _check_clocks(self, component: Component) -> None:
        world, received = self._world, self.received
        sources = component.watch.sources
        witnesses = sources.witnesses(world.clock.monotonic())
        now = received.reading(world.now)
        plain = Circumstances(component.watch.settings, witnesses, ())
        for witness in witnesses:
            if witness.clock_seconds > now.vouched[witness.name] + SLACK_SECONDS:
                more = witness.clock_seconds - now.vouched[witness.name]
                world.judge.find("clock", witness.name, f"it shows {more:.3f} s more than was vouched for")
        for device in component.watch.ledger.devices.values():
            name = device.name
            if world.cloud.associations.get(name) != device.associated_at or sources.present(name):
                continue
            since = world.now - received.last_sign(name).now
            for witness in witnesses:
                most = min(received.absence(name, witness.name, now), since)
                absence = policy.absence_seconds(device, witness, plain)
                if absence > most + SLACK_SECONDS:
                    text = f"absent for {absence:.1f} s on {witness.name}, and for {most:.1f} s at most"
                    world.judge.find("absence", name, text)

    def _check_sessions(self, component: Component) -> None:
        received = self.received
        received.quiet(self._world.now)
        known: dict[str, set[object]] = {}
        for emqx in component.watch.sources.emqx.values():
            for node in emqx._nodes.values():  # noqa: SLF001 - what it believes is nobody else's business
                for name in node.sessions:
                    known.setdefault(name, set()).update(node.held(name))
        for name, believed in known.items():
            told: set[object] = {number or UNHEARD for number in received.told.get(name, {})}
            if not believed <= told:
                self._world.judge.find("session", name, "believed open, and nobody told of it")
        for name in received.must.keys() - known.keys():
            self._world.judge.find("session", name, "told to be open, and not known")

    # I1, I5 and I6

    def marked(self, name: str) -> None:
        """A notice begins."""
        self._check_proof(name, 0.0)

    def batch(self, names: tuple[str, ...]) -> None:
        """The component asks for devices to be disassociated."""
        world = self._world
        component = world.component
        if component is None:
            return
        self._check_budget(component, names)
        sources = component.watch.sources
        open_now = sources.present_names().union(
            *(node.sessions for emqx in sources.emqx.values() for node in emqx._nodes.values())  # noqa: SLF001 - as above
        )
        evidence = {
            name: json.loads(text)
            for name, text in world.disk.rows("SELECT name, evidence FROM disassociations WHERE outcome = 'open'")
        }
        for name in names:
            if name in open_now:
                world.judge.find("present", name, "asked to be disassociated while a source has it present")
            self._check_proof(name, component.watch.settings.notice_seconds)
            self._check_moment(name, evidence.get(name))
            self._asked[name] = self._listed

    def _check_proof(self, name: str, notice_seconds: float) -> None:
        """Was any source heard for so long without a sign of the device?"""
        world = self._world
        component = world.component
        assert component is not None  # noqa: S101 - it has just spoken
        settings = component.watch.settings
        threshold = settings.threshold_seconds(name)
        device = component.watch.ledger.devices[name]
        if not device.seen and settings.never_seen_seconds is not None:
            threshold = settings.never_seen_seconds
        now = self.received.reading(world.now)
        longest = max(self.received.absence(name, source, now) for source in now.vouched)
        if longest < threshold + notice_seconds - SLACK_SECONDS:
            text = f"absent for {longest:.0f} s at most, {threshold:.0f} s and a notice of {notice_seconds:.0f} s asked"
            world.judge.find("proof", name, text)

    def _check_moment(self, name: str, evidence: dict[str, object] | None) -> None:
        if evidence is None:
            self._world.judge.find("journal", name, "sent without an open intent")
            return
        source = {"census": "emqx", "rollCall": "rollCall", "habit": "messages"}[str(evidence["proof"])]
        asked_after = self._answered_at + (SAMPLING_SECONDS if source == "emqx" else 0.0)
        if self.received.last_voucher.get(source, float("-inf")) < asked_after:
            self._world.judge.find("moment", name, f"sent without a fresh voucher of {source}")
        if self.echoes == self._answered_echoes:
            self._world.judge.find("moment", name, "sent without an echo of the self-test")
        words = self.received.words.get(name)
        if source == "messages" and (words is None or words.heard < HABIT_MESSAGES):
            self._world.judge.find("habit", name, f"heard {words.heard if words else 0} times only")

    def _check_budget(self, component: Component, names: tuple[str, ...]) -> None:
        """Count ourselves; a crash can take running time back, and a window never comes twice."""
        world = self._world
        settings = component.watch.settings
        if len(names) > settings.limits.max_per_cycle:
            world.judge.find("budget", "", f"{len(names)} in one batch")
        running = component.watch.ledger.running_seconds(world.clock.monotonic())
        self._window = max(self._window, int(running // WINDOW_SECONDS))
        if world.cloud.failing in NOT_COUNTED:
            return
        self._used[self._window] += sum(name != world.cloud.refuses for name in names)
        base = get_meta(world.disk.real, "budget", {"base": 0})["base"]
        allowed = policy.day_allowance(base, settings)
        if self._used[self._window] > allowed:
            world.judge.find("budget", "", f"{self._used[self._window]} in one window, {allowed} allowed")

    def said_done(self, name: str) -> None:
        """The component says that a device is disassociated: was the list read again since, and is it true?"""
        world = self._world
        if self._asked.pop(name, -1) >= self._listed:
            world.judge.find("confirmed", name, "said to be gone without listing again")
        rows = world.disk.rows("SELECT name, associated_at FROM disassociations ORDER BY id")
        meant = {row[0]: row[1] for row in rows}
        if not world.cloud.lying and world.cloud.associations.get(name, "") == meant[name]:
            world.judge.find("confirmed", name, "said to be gone, and it is still listed")

    # I7

    def check_pure(self) -> None:
        """A verdict, taken twice, is the same and changes nothing; one device each time."""
        component = self._world.component
        if component is None or not component.watch.ledger.devices:
            return
        devices = component.watch.ledger.devices
        name = list(devices)[next(self._turn) % len(devices)]
        sources = component.watch.sources
        witnesses = sources.witnesses(self._world.clock.monotonic())
        now = Circumstances(component.watch.settings, witnesses, sources.present_names())
        device, twin = devices[name], copy.deepcopy(devices[name])
        verdict, again = policy.assess(device, now), policy.assess(twin, now)
        if device != twin or (verdict.state, verdict.mark) != (again.state, again.mark):
            self._world.judge.find("impure", name, "a verdict changed the device, or differs from the one before")
        if policy.assess(device, now) != verdict:
            self._world.judge.find("impure", name, "judged twice, differently")
