"""What goes wrong on a site, when, and for how long: drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from client_device_pruner.ipc import Disconnected, Message
from local_core.simulation.devices import DAY, dice
from local_core.simulation.edges import IN

if TYPE_CHECKING:
    from local_core.simulation.world import World

HOUR = 3600.0
YEAR = 365.25 * DAY


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault, how often it comes in a year, and how it is made to happen."""

    name: str
    per_year: float
    happen: Callable[[World, Random], None]


def plan(world: World) -> None:
    """Let every kind of fault happen at random times."""
    for fault in FAULTS:
        if fault.happen is dies_at_a_point and not world.site.deaths_at_points:
            continue
        rng = dice(world.site.seed, fault.name)
        _next(world, fault, rng)


def _next(world: World, fault: Fault, rng: Random) -> None:
    def happen() -> None:
        world.judge.figures.faults[fault.name] += 1
        world.say(f"fault: {fault.name}")
        fault.happen(world, rng)
        _next(world, fault, rng)

    at = rng.expovariate(fault.per_year * world.stress / YEAR)
    # What was committed last shall not depend on what was folded.
    world.after(at - 1200.0, lambda: world.disturb(1300.0))
    world.after(at, happen)


def bridge_restarts(world: World, rng: Random) -> None:
    """The bridge is away for seconds or minutes."""
    _bridge_down(world, rng, rng.choice((rng.uniform(1, 30), rng.uniform(1, 30), rng.uniform(30, 600))))


def bridge_broken(world: World, rng: Random) -> None:
    """The bridge is away for hours or days."""
    _bridge_down(world, rng, rng.uniform(HOUR, 4 * DAY))


def _bridge_down(world: World, rng: Random, seconds: float) -> None:
    if not world.bridge_up:
        return
    world.gap += 1
    world.bridge_up = False
    world.disturb()
    _moves(world, rng, seconds)

    def back() -> None:
        world.bridge_up = True
        world.disturb()
        world.say("the bridge is back")
        _retained(world, rng)

    world.after(seconds, back)


def _moves(world: World, rng: Random, seconds: float) -> None:
    """A gap seldom comes alone: what cut the bridge off may make devices reconnect, or restart, within it."""
    names = [name for name in world.sessions if rng.random() < 0.05]
    for name in names:
        device = world.devices[name]
        leaves = rng.uniform(0, min(seconds, 60.0))
        world.after(leaves, lambda device=device: world.disconnect(device))  # type: ignore[misc]
        back = leaves + rng.uniform(0.5, 200.0)
        world.after(back, lambda device=device: world.reconnects(device))  # type: ignore[misc]


def _retained(world: World, rng: Random) -> None:
    """Who subscribes anew gets what brokers kept, of the dead as well."""
    if world.retains:
        for name in rng.sample(sorted(world.devices), min(3, len(world.devices))):
            world.judge.figures.faults["message retained"] += 1
            world.judge.resent(name)
            world.retell(name)


def broker_restarts(world: World, rng: Random) -> None:
    """The broker restarts, the bridge comes back when it finds it again."""
    if not world.broker_up:
        return
    world.broker_down()
    down, bridge = rng.uniform(0.5, 40), rng.uniform(1, 30)
    was_up, world.bridge_up = world.bridge_up, False

    def bridge_back() -> None:
        world.bridge_up = True
        world.disturb()
        _retained(world, rng)

    world.after(down, world.broker_starts)
    if was_up:
        world.after(down + bridge, bridge_back)


def power_cut(world: World, rng: Random) -> None:
    """The whole site is without power for minutes or hours."""
    _power_cut(world, rng, rng.uniform(20, 12 * HOUR))


def off_for_weeks(world: World, rng: Random) -> None:
    """The core is off for weeks; devices live on, some move away."""
    _power_cut(world, rng, rng.uniform(10, 70) * DAY)


def _power_cut(world: World, rng: Random, seconds: float) -> None:
    if not world.broker_up:
        return
    world.broker_down()
    world.bury()
    world.powered = False
    was_up, world.bridge_up = world.bridge_up, False

    def boots() -> None:
        world.powered = True
        world.clock.booted = world.now - 5.0
        if rng.random() < 0.4:
            # No battery behind the clock: it is wrong until somebody tells the time.
            world.clock.wall_error = rng.choice((-3 * YEAR, -YEAR, -40 * DAY))
            world.broker_wall_error = world.clock.wall_error
            world.after(rng.uniform(60, DAY), lambda: _set_clocks(world, 0.0))
        world.broker_starts()
        if was_up:
            world.after(rng.uniform(1, 60), lambda: setattr(world, "bridge_up", True))
        world.after(rng.uniform(1, 90), world.start_component)

    world.after(seconds, boots)


def _set_clocks(world: World, error: float) -> None:
    world.clock.wall_error = world.broker_wall_error = error


def clock_jumps(world: World, rng: Random) -> None:
    """The wall clocks are set wrong, and right again later."""
    error = rng.choice((-20 * YEAR, -YEAR, -HOUR, HOUR, 45 * DAY, YEAR, 10 * YEAR))
    _set_clocks(world, error)
    world.after(rng.uniform(60, 3 * DAY), lambda: _set_clocks(world, 0.0))


def killed(world: World, rng: Random) -> None:
    """The component is killed, and started again by the nucleus."""
    if world.component is not None:
        world.bury(rng.choice((rng.uniform(2, 60), rng.uniform(60, 3600))))


def dies_at_a_point(world: World, rng: Random) -> None:
    """The component will die around one of its next calls or writes of the journal."""
    world.fuse.left = rng.randint(1, 12)


def upgraded(world: World, rng: Random) -> None:
    """The component is stopped properly, and its new version started."""
    world.stop_component()
    world.after(rng.uniform(10, 300), world.start_component)


def subscription_dies(world: World, _rng: Random) -> None:
    """Local pub/sub stops to deliver, without a word."""
    world.gap += 1
    world.disturb()
    world.nucleus.deaf = True


def nucleus_restarts(world: World, rng: Random) -> None:
    """The connection to the nucleus breaks; for a while there is none."""
    if world.component is None:
        return
    world.gap += 1
    world.disturb()
    world.nucleus.down = world.nucleus.deaf = True
    world.component.inbox.put_always(Disconnected("simulated"))
    world.turn()
    world.after(rng.uniform(5, 200), lambda: setattr(world.nucleus, "down", False))


def overflow(world: World, rng: Random) -> None:
    """A storm fills the queue: some messages are dropped."""
    component = world.component
    if component is None or not world.heard:
        return
    world.gap += 1
    world.judge.shown()
    world.disturb()
    inbox = component.inbox
    world.dropping = True
    limit, inbox._limit = inbox._limit, 0  # noqa: SLF001 - as if it were full
    inbox.put(Message(f"{IN}storm", b"", world.clock.monotonic()))
    for name in [name for name in world.sessions if rng.random() < 0.1]:
        world.disconnect(world.devices[name])
        world.after(rng.uniform(0.5, 30), lambda device=world.devices[name]: world.reconnects(device))  # type: ignore[misc]
    inbox._limit = limit  # noqa: SLF001
    world.dropping = False
    world.received.overflowed()
    world.turn()


def cloud_fails(world: World, rng: Random) -> None:
    """The cloud throttles, fails, or its answers are lost; sometimes it lists all the same."""
    world.cloud.failing = rng.choice(("throttled", "server", "lost", "unreachable", "credentials", "accessDenied"))
    world.cloud.lists = rng.random() < 0.4
    world.after(rng.uniform(60, 2 * DAY), lambda: setattr(world.cloud, "failing", ""))


def cloud_lies(world: World, rng: Random) -> None:
    """The list of associations is not what it should be."""
    world.cloud.lying = rng.choice(("empty", "half", "token"))
    world.after(rng.uniform(HOUR, 13 * HOUR), lambda: setattr(world.cloud, "lying", ""))


def cloud_refuses(world: World, rng: Random) -> None:
    """The cloud refuses one device, for some days."""
    world.cloud.refuses = rng.choice(sorted(world.devices))
    world.after(rng.uniform(1, 20) * DAY, lambda: setattr(world.cloud, "refuses", ""))


def api_silent(world: World, rng: Random) -> None:
    """EMQX's API does not answer."""
    world.disturb()
    world.api_silent = True

    def answers() -> None:
        world.api_silent = False
        world.disturb()

    world.after(rng.uniform(HOUR, 3 * DAY), answers)


def disk_full(world: World, rng: Random) -> None:
    """Nothing can be written."""
    world.disk.full = True
    world.after(rng.uniform(60, 12 * HOUR), lambda: setattr(world.disk, "full", False))


def many_leave(world: World, rng: Random) -> None:
    """A hall is closed: a third of the devices are dead, moved or replaced within two days."""
    for name in rng.sample(sorted(world.devices), len(world.devices) // 3):
        world.after(rng.uniform(0, 2 * DAY), lambda device=world.devices[name]: world.dies(device))  # type: ignore[misc]


def associated_anew(world: World, rng: Random) -> None:
    """Somebody else takes devices off the list, and puts some of them back."""
    for name in rng.sample(sorted(world.devices), 2):
        device = world.devices[name]
        if device.alive and world.cloud.associations.pop(name, None) is not None:
            world.say(f"somebody takes {name} off the list, and puts it back later")
            world.after(rng.uniform(60, 2 * DAY), lambda device=device: world.owner_associates(device))  # type: ignore[misc]


def configured(world: World, rng: Random) -> None:
    """Somebody deploys other settings, and takes them back after some days."""
    changes = rng.choice(
        (
            {"offlineThreshold": "45d"},
            {"offlineThreshold": "20d"},
            {"protectedClients": ["d1*"]},
            {"dryRun": True},
            {"noticePeriod": "3d"},
            {"checkInterval": "3h"},
            {"checkInterval": "often"},
            {"sources": {"messages": {"enabled": False}}},
        )
    )
    before = {key: value for key, value in world.nucleus.document.items() if key in changes}
    if "sources" in changes and world.kind == "events":
        return
    world.configure(**changes)

    def taken_back() -> None:
        world.nucleus.document = {k: v for k, v in world.nucleus.document.items() if k not in changes}
        world.configure(**before)

    world.after(rng.uniform(1, 40) * DAY, taken_back)


def approves(world: World, _rng: Random) -> None:
    """A person looks at the status, and approves the plan that waits."""
    component = world.component
    if component is None or component.watch.ledger.connection is None or world.disk.full:
        return
    plan_id, _members = component.pruning.waiting_plan()
    if plan_id:
        world.disk.real.execute("INSERT INTO requests (kind, argument) VALUES ('approve', ?)", (f'"{plan_id}"',))
        world.disturb()


FAULTS = (
    Fault("bridge restarts", 18, bridge_restarts),
    Fault("bridge broken", 1.5, bridge_broken),
    Fault("broker restarts", 6, broker_restarts),
    Fault("power cut", 4, power_cut),
    Fault("core off for weeks", 0.5, off_for_weeks),
    Fault("clock jumps", 3, clock_jumps),
    Fault("killed", 4, killed),
    Fault("dies at a point", 4, dies_at_a_point),
    Fault("upgraded", 3, upgraded),
    Fault("subscription dies", 2, subscription_dies),
    Fault("nucleus restarts", 3, nucleus_restarts),
    Fault("overflow", 2, overflow),
    Fault("cloud fails", 8, cloud_fails),
    Fault("cloud lies", 2, cloud_lies),
    Fault("cloud refuses", 1, cloud_refuses),
    Fault("API silent", 2, api_silent),
    Fault("disk full", 2, disk_full),
    Fault("many leave", 0.5, many_leave),
    Fault("associated anew", 3, associated_anew),
    Fault("configured", 2, configured),
    Fault("approves", 12, approves),
)
