"""The site that endures: a local core, and devices that live as devices do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from local_core.cloud import DISASSOCIATE, Call
from local_core.component import State
from local_core.core import BRIDGE, LocalCore
from local_core.demo_story import MAPPING
from local_core.devices import ClientDevices, DeviceError
from local_core.emqx_api import EmqxApi
from local_core.soak.gauges import Sample, sample
from local_core.soak.shifted_clock import ShiftedClock
from local_core.soak.truth import Life, Style, Truth

SPARE = "spare"
"""Protected devices that never come: they make the list longer than a page, and the day's budget large enough."""
_LOOK_SECONDS = 0.05
_RECONNECT_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast everything goes, in seconds; a real site's threshold is 30 days and its `maxQuiet` 3 minutes.

    Attributes:
        max_quiet: of the `emqx` source; faults last a part or a few of it.
        threshold: absence after which a device is stale.
        notice: between marking and disassociating.
        check: between two cycles.
        birth: between two devices that are to die.
        sample: between two looks at the process.
        silent: how many devices are connected without a word.
        talkers: how many talk all the time.
        others: how many of each other kind.
        spare: how many protected ones that never come.
    """

    max_quiet: float = 2.0
    threshold: float = 12.0
    notice: float = 2.0
    check: float = 4.0
    birth: float = 10.0
    sample: float = 5.0
    silent: int = 6
    talkers: int = 6
    others: int = 3
    spare: int = 300

    @property
    def settings(self) -> dict[str, Any]:
        """The component's configuration."""
        return {
            "allowShortDurations": True,
            "offlineThreshold": f"{self.threshold:g}s",
            "neverSeenThreshold": f"{self.threshold:g}s",
            "noticePeriod": f"{self.notice:g}s",
            "checkInterval": f"{self.check:g}s",
            "sources": {"emqx": {"maxQuiet": f"{self.max_quiet:g}s"}, "messages": {"maxQuiet": f"{self.max_quiet:g}s"}},
            "protectedClients": [f"{SPARE}-*"],
            "limits": {"approvalPercent": 100, "maxPercentPerDay": 100},
            # Several that die within seconds are no outage here.
            "massLoss": {"window": "0.1s", "minPercent": 100},
            "restoreOnReturn": True,
        }


@dataclass(slots=True)
class Site:
    """What runs, and what is counted."""

    pace: Pace
    seed: int
    core: LocalCore
    devices: ClientDevices
    api: EmqxApi
    clock: ShiftedClock
    truth: Truth
    key_file: Path
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    kills: int = 0
    # On at first, so that what it loads, once, is loaded before a process is warm.
    calls_roll: bool = True
    _run: tuple[int, float] = (0, 0.0)

    def random(self, name: str) -> Random:
        """Draws of its own for each loop, so that one does not disturb another."""
        return Random(f"{self.seed} {name}")  # noqa: S311 - lives are no secrets

    # Devices

    def born(self, name: str, style: Style) -> Life:
        """Associate a device that is going to live."""
        life = self.truth.lives[name] = Life(style, time.monotonic())
        self.core.cloud.associate(name)
        return life

    async def connect(self, *names: str, **options: Any) -> None:
        """Connect, however long it takes until the broker accepts all of them."""
        while True:
            try:
                return await self.devices.connect(*names, **options)
            except DeviceError:  # noqa: PERF203 - it waits on purpose
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def settle_in(self) -> None:
        """Connect those that stay: the silent and the talkers."""
        pace = self.pace
        for style, number in ((Style.SILENT, pace.silent), (Style.TALKER, pace.talkers)):
            names = [f"{style.value}-{n}" for n in range(number)]
            for name in names:
                self.born(name, style)
            telemetry = pace.max_quiet / 2 if style is Style.TALKER else None
            await self.connect(
                *names, process=style.value, telemetry_seconds=telemetry, reconnect_seconds=_RECONNECT_SECONDS
            )

    async def renew(self, style: Style) -> None:
        """Have all of a kind connect anew, as after a power cut in their part of the site."""
        names = [name for name, life in self.truth.lives.items() if life.style is style]
        with contextlib.suppress(DeviceError):
            await self.devices.thaw(style.value)
            await self.devices.kill(style.value)
        telemetry = self.pace.max_quiet / 2 if style is Style.TALKER else None
        await self.connect(
            *names, process=style.value, telemetry_seconds=telemetry, reconnect_seconds=_RECONNECT_SECONDS
        )

    async def silent_ones_move_now_and_then(self) -> None:
        """A silent device that came unheard is known again only when it connects anew, which they do now and then."""
        random = self.random("silent")
        while True:
            await asyncio.sleep(random.uniform(0.5, 2.0) * self.pace.threshold)
            await self.renew(Style.SILENT)

    async def visit(self, name: str, stay: tuple[float, float], away: tuple[float, float], *, speaks: bool) -> None:
        """Come and go for ever; both last from the one to the other figure, in seconds."""
        random = self.random(name)
        while True:
            try:
                await self.devices.connect(name, process="visitors")
                if speaks:
                    await self.devices.publish(name, "here")
                await asyncio.sleep(random.uniform(*stay))
                await self.devices.disconnect(name)
            except DeviceError:  # noqa: PERF203 - it waits on purpose
                # The broker is down, or cut it off.
                await asyncio.sleep(_RECONNECT_SECONDS)
            else:
                await asyncio.sleep(random.uniform(*away))

    def visitors(self) -> list[Coroutine[Any, Any, None]]:
        """Those that come and go: often and with a word, now and then, and after long journeys."""
        unit, threshold = self.pace.max_quiet, self.pace.threshold
        loops = []
        for n in range(self.pace.others):
            for style, stay, away in (
                (Style.CALLER, (0.05, 0.3), (0.3 * unit, unit)),
                (Style.FLAPPER, (0.5, 2 * unit), (0.5, 0.6 * threshold)),
                (Style.TRAVELLER, (unit, 4 * unit), (2 * threshold, 5 * threshold)),
            ):
                name = f"{style.value}-{n}"
                self.born(name, style)
                loops.append(self.visit(name, stay, away, speaks=style is Style.CALLER))
        return loops

    async def mortals(self) -> None:
        """Again and again a new device that lives for a while, and dies in one of several ways."""
        random = self.random("mortal")
        number = 0
        while True:
            number += 1
            name = f"{Style.MORTAL.value}-{number}"
            life = self.born(name, Style.MORTAL)
            talks, frozen = random.random() < 0.5, random.random() < 0.3
            await self.connect(
                name, process=name, telemetry_seconds=self.pace.max_quiet / 3 if talks else None, keepalive=2
            )
            await asyncio.sleep(random.uniform(0.2, 0.8) * self.pace.birth)
            if frozen:
                # The power goes: the broker hears nothing more, and finds out by the keep-alive.
                await self.devices.freeze(name)
            else:
                await self.devices.kill(name)
            life.died = time.monotonic()
            self.truth.tell(life.died, f"{name} dies{', without a word' if frozen else ''}")
            await asyncio.sleep(random.uniform(0.2, 0.8) * self.pace.birth)
            if frozen:
                await self.devices.kill(name)

    async def end_mortals(self) -> None:
        """Let the last one die as well: unheard and silent, it would keep the census still for ever, and rightly so."""
        for name, life in self.truth.lives.items():
            if life.style is Style.MORTAL:
                with contextlib.suppress(DeviceError):
                    await self.devices.kill(name)
                life.died = life.died or time.monotonic()

    # What is looked at

    async def look(self) -> None:
        """Keep the truth up to date."""
        while True:
            self.truth.look(time.monotonic(), self.core.broker.connections)
            await asyncio.sleep(_LOOK_SECONDS)

    async def measure(self) -> None:
        """Sample the component's process."""
        while True:
            await asyncio.sleep(self.pace.sample)
            starts, now = self.core.component.starts, time.monotonic()
            if self._run[0] != starts:
                self._run = (starts, now)
            pid = self.core.component.pid
            if pid is not None and (one := sample(pid, starts, now - self._run[1])) is not None:
                self.samples.append(one)

    async def keep_running(self) -> None:
        """Three errors within an hour make a component BROKEN: whoever looks after the site deploys again."""
        while True:
            await self.core.component.wait_for_state(State.BROKEN, timeout_seconds=1e9)
            self.core.start_component()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def judge(self, call: Call) -> None:
        """The cloud is about to carry a call out."""
        if call.operation == DISASSOCIATE:
            now = time.monotonic()
            self.truth.look(now, self.core.broker.connections)
            for name in call.entries:
                self.truth.asked(name, now)

    # Configuration

    async def deploy(self, **changes: Any) -> None:
        """Deploy the pace's configuration, with changes, and the bridge's mapping."""
        interval = f"{self.pace.max_quiet:g}s"
        roll_call = {
            "url": self.api.url if self.calls_roll else "",
            "keyFile": str(self.key_file),
            "interval": interval,
        }
        merge = {**self.pace.settings, "rollCall": roll_call, **changes}
        await self.core.deploy(
            {self.core.recipe.name: {"merge": merge}, BRIDGE: {"merge": {"mqttTopicMapping": MAPPING}}}
        )

    # The end

    def cycles(self) -> int:
        """How many cycles have ended."""
        return sum(event["type"].endswith(".cycle") for event in self.core.events)

    def left(self) -> list[str]:
        """Those that died and are still associated."""
        associated = self.core.cloud.associations
        return [name for name, life in self.truth.lives.items() if life.died is not None and name in associated]

    async def come_to_rest(self) -> None:
        """Let nothing go wrong any more, and wait until the dead have gone, for as long as that may take."""
        self.core.cloud.faults.clear()
        await self.core.bridge.start()
        await self.core.broker.start()
        pace = self.pace
        patience = 3 * (pace.threshold + pace.notice) + 8 * pace.check + 20.0
        # Who connects anew before the component listens, would be unheard again.
        ended = self.cycles()
        await self.until(lambda: self.core.bridge.connected and self.cycles() > ended, patience)
        await self.renew(Style.SILENT)
        await self.renew(Style.TALKER)
        await self.end_mortals()
        await self.until(lambda: not self.left(), patience)
        # Whoever is off the list is told of in the same cycle, or in the next one.
        at_rest = self.cycles()
        await self.until(lambda: self.cycles() > at_rest + 1, patience)

    async def until(self, reached: Callable[[], bool], seconds: float) -> None:
        """Wait until it is so, at most so long."""
        deadline = time.monotonic() + seconds
        while not reached() and time.monotonic() < deadline:  # noqa: ASYNC110 - the cloud tells nobody
            await asyncio.sleep(_RECONNECT_SECONDS)


@asynccontextmanager
async def make_site(root: Path, seed: int, pace: Pace) -> AsyncIterator[Site]:
    """Set a site up, whose component runs and whose first devices are connected; leaving it ends all of it."""
    clock = ShiftedClock(root / "environment")
    interval = pace.max_quiet / 4
    core = LocalCore(
        root / "core",
        environment=clock.environment,
        count_interval_seconds=interval,
        uptime_interval_seconds=interval,
    )
    # As a bridge's back-off of a second is to a site's gaps, in the pace of this one.
    core.bridge.first_backoff_seconds = interval
    api = EmqxApi(lambda: core.broker.connections)
    api.start()
    key_file = root / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(f"{api.key}:{api.secret}")
    try:
        async with core, ClientDevices(lambda: core.broker.port) as devices:
            truth = Truth(pace.threshold, moment_seconds=pace.max_quiet, began=time.monotonic())
            site = Site(pace, seed, core, devices, api, clock, truth, key_file)
            core.cloud.associate(*(f"{SPARE}-{n}" for n in range(pace.spare)))
            core.cloud.before = site.judge
            await core.fill_bytecode()
            await site.deploy()
            await core.wait_for_event(lambda event: event["type"].endswith(".cycle"), timeout_seconds=90.0)
            await site.settle_in()
            yield site
    finally:
        api.stop()
