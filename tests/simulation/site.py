"""One site: the component in virtual time, its broker, devices and strangers, what goes wrong, and the judge."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client_device_pruner.greengrass.ipc import Message
from client_device_pruner.greengrass.link import IN
from fakes.broker import FakeBroker, Faults
from fakes.component import Component, Killed, World
from simulation import faults, rates
from simulation.baselines import Baselines
from simulation.devices import Client, Device, Stranger, dice
from simulation.judge import Judge
from simulation.rates import Pace

BURST_PROBES = 0.9
"""Messages gather for so many probe intervals before the component takes them, with the time at which each arrived:
that costs a fraction of the turns. All else it takes as the real loop does."""


def size_of(kind: str, seed: int) -> int:
    """How many devices a site begins with."""
    fewest, most = rates.DEVICES
    return round(float(fewest * (most / fewest) ** dice(kind, seed, "size").random()))


class Site:
    """A site of a kind, made and driven by its seed."""

    def __init__(
        self,
        kind: str,
        seed: int,
        *,
        years: float = 1.0,
        probe_minutes: int = 10,  # `presence.probeInterval`; the broker counts as often
        pace: Pace | None = None,
        told: Callable[[float, str], None] | None = None,  # gets (true time, what happened), for a story
    ) -> None:
        self.kind, self.seed, self.pace = kind, seed, pace or Pace()
        self.end = years * self.pace.year
        self.rng = dice(kind, seed, "site")
        self.told = told
        self.stress = self.rng.choice(rates.STRESS)
        self.retains = self.rng.random() < rates.RETAINS
        self.world = World()
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a directory is made in it
        self._directory = Path(tempfile.mkdtemp(prefix="site-", dir=memory))
        self.component = Component(
            self.world,
            self._directory,
            self._configuration(probe_minutes),
            client_list=kind == "clientList",
            seed=seed,
            burst_seconds=BURST_PROBES * probe_minutes * rates.MINUTE,
        )
        self.broker = FakeBroker(
            self.component,
            emqx=kind != "messages",
            seed=seed,
            count_seconds=probe_minutes * rates.MINUTE,
            uptime_seconds=probe_minutes * rates.MINUTE,
        )
        self.broker.faults = Faults(self.rng.choice(rates.LOSSES), rates.DOUBLED, rates.LATE, rates.LATE_SECONDS)
        self.broker.on_lost = lambda name: self.clients[name].lost() if name in self.clients else None
        self.broker.on_bridge = self._replay
        self.broker.on_up = self._broker_is_up
        self.component.on_taken = self._heard
        self.component.slow_cloud(1.0)
        self.component.cloud.point = self._cloud_called
        self.clients: dict[str, Client] = {}
        self.devices: dict[str, Device] = {}
        self.waiting: dict[Client, None] = {}  # for the broker to come up
        self.judge = Judge(self)
        self.baselines = Baselines(self)
        self.clock_error = self.configured_at = 0.0
        self.powered = True
        self.fuse: int | None = None

    def run(self) -> Judge:
        """Let its time pass; returns the judge."""
        try:
            for _device in range(size_of(self.kind, self.seed)):
                self.add_device(self.rng.uniform(60, self.pace.day))
            for style, chance, _why in rates.STRANGERS:
                for number in range(sum(self.rng.random() < chance for _ in range(2))):
                    stranger = Stranger(self, f"{style}{number}", style)
                    self.clients[stranger.name] = stranger
                    stranger.begin()
            faults.plan(self)
            self.world.after(self.pace.day, self._daily)
            self.world.after(rates.OPERATOR_DAYS * self.pace.day, self._look)
            self.component.start()
            self.world.run(self.end - self.world.now)
            self.judge.finish()
        finally:
            self.component.stop()
            shutil.rmtree(self._directory)
        return self.judge

    def say(self, text: str) -> None:
        """Tell the story."""
        if self.told:
            self.told(self.world.now, text)

    # What devices cause

    def add_device(self, late_seconds: float) -> Device:
        """Associate a new device, which comes after so long."""
        device = Device(self, f"d{len(self.devices) + 1}")
        self.devices[device.name] = self.clients[device.name] = device
        self.component.cloud.associate(device.name)
        device.begin(late_seconds)
        return device

    def spoke(self, name: str) -> None:
        """A device publishes; on some sites nobody maps that."""
        if self.kind != "events":
            self.broker.publish(f"clients/{name}/telemetry")

    def _replay(self) -> None:
        for name in list(self.devices)[: rates.REPLAYED] if self.retains else ():
            if self.devices[name].last_contact is not None:
                self.spoke(name)

    def _broker_is_up(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for client in waiting:
            client.try_again()

    def died(self, device: Device) -> None:
        """A device is gone: some are replaced, and some associations somebody else takes off."""
        if device.fate == "replaced":
            late = device.rng.uniform(60, self.pace.day)
            self.world.after(device.rng.uniform(0, 10) * self.pace.day, lambda: self.add_device(late))
        if device.fate == "moved" and device.rng.random() < 1 / 3:
            self.world.after(device.rng.uniform(0, 60) * self.pace.day, lambda: self.take_off(device.name))

    def take_off(self, name: str) -> bool:
        """Somebody takes an association off."""
        was = name in self.component.cloud.associations
        self.component.cloud.disassociate(name)
        if was:
            self.judge.taken_off(name)
        return was

    # The core

    def configure(self, **changes: object) -> None:
        """Somebody deploys settings."""
        self.configured_at = self.world.now
        self.component.configure(changes)

    def set_clock_error(self, seconds: float) -> None:
        """The wall clock is wrong by so much from now on."""
        self.world.clock.wall_ahead += seconds - self.clock_error
        self.clock_error = seconds

    def start_component(self) -> None:
        """Start a run, if there is power."""
        if self.powered:
            self.baselines.restarted()
            self.component.start()

    def kill_component(self, back_seconds: float | None) -> None:
        """End the run as SIGKILL does; the nucleus starts the next one."""
        self.component.kill()
        if back_seconds is not None:
            self.world.after(back_seconds, self.start_component)

    # Edges

    def duration(self, days: float) -> str:
        """So many of its days, for the configuration."""
        return f"{round(days * self.pace.day)}s"

    @property
    def usual(self) -> dict[str, str]:
        """The defaults, in its days."""
        days = {
            "offlineThreshold": rates.THRESHOLD_DAYS,
            "gracePeriod": 1,
            "checkInterval": 0.25,
            "neverSeenThreshold": 90,
        }
        return {key: self.duration(number) for key, number in days.items()}

    def _configuration(self, probe_minutes: int) -> dict[str, Any]:
        document: dict[str, Any] = {
            **self.usual,
            "presence": {"probeInterval": f"{probe_minutes}m", "clientList": {"interval": "30m"}},
            "reports": {"shadowName": ""},
            "logLevel": "ERROR",
        }
        if self.kind == "events":
            document["presence"]["messageTopics"] = []
        free = self.rng.random() < 0.3
        percent_a_day = 100 if free else min(100, round(10 * self.pace.times))
        document["limits"] = {"maxPercentPerDay": percent_a_day, **({"approvalPercent": 100} if free else {})}
        return document

    def _heard(self, item: object) -> None:
        if not isinstance(item, Message):
            return
        levels = item.topic[len(IN) :].split("/")
        if levels[0] == "clients":
            name, kind = levels[1], "message"
        elif len(levels) == 6:
            name, kind = levels[4], levels[5]
            self.baselines.heard(name, kind)
        else:
            return
        device = self.devices.get(name)
        if device is not None:
            device.heard = True
            self.judge.heard(device)

    def _cloud_called(self, label: str) -> None:
        if label == "disassociate carried out":
            self.judge.disassociated()
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse = None
                self.say("the component dies at this call")
                self.world.after(20.0, self.start_component)
                raise Killed

    def _daily(self) -> None:
        self.world.after(self.pace.day, self._daily)
        self.baselines.daily()
        self._tell_events()
        # What nobody reads any more.
        del self.component.cloud.calls[:], self.component.cloud.in_vain[:]

    def _tell_events(self) -> None:
        events = self.component.events
        self.judge.note_marks()
        if self.told:
            for event in events:
                if event.kind != "cycle":
                    self.told(event.at, f"component: {event.kind} {event.name or ''} {event.data}")
        events.clear()

    def _look(self) -> None:
        """A person looks at the plan that waits."""
        self.world.after(rates.OPERATOR_DAYS * self.pace.day, self._look)
        status = self.component.kept("status") if self.component.running else None
        plan = status and status["plan"]
        if plan and not any(self.judge.lives(name) for name in plan["devices"]):
            self.say(f"a person approves {plan['id']}")
            self.component.configure({"approvedPlan": plan["id"]})
