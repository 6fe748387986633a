"""What goes wrong on a site, when, and for how long: drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from client_device_pruner.greengrass.link import IN
from simulation.devices import dice
from simulation.rates import DAY, DIES_WITH_POWER, HOUR, YEAR

if TYPE_CHECKING:
    from simulation.site import Site


def plan(site: Site) -> None:
    """Let every kind of fault happen at random times."""
    for happen, per_year, _why in FAULTS:
        _next(site, happen, per_year * site.stress, dice(site.kind, site.seed, _name(happen)))


def _name(happen: Callable[[Site, Random], None]) -> str:
    return happen.__name__.replace("_", " ")


def _next(site: Site, fault: Callable[[Site, Random], None], per_year: float, rng: Random) -> None:
    def happen() -> None:
        site.judge.figures.faults[_name(fault)] += 1
        site.say(f"fault: {_name(fault)}")
        fault(site, rng)
        _next(site, fault, per_year, rng)

    site.world.after(rng.expovariate(per_year / site.pace.year), happen)


def bridge_restarts(site: Site, rng: Random) -> None:
    """The bridge is away for seconds or minutes; what cut it off may make some devices reconnect meanwhile."""
    _lose_bridge(site, rng, rng.choice((rng.uniform(0, 30), rng.uniform(0, 30), rng.uniform(30, 600))))


def bridge_broken(site: Site, rng: Random) -> None:
    """The bridge is away for hours or days."""
    _lose_bridge(site, rng, rng.uniform(1 / 24, 4) * site.pace.day)


def _lose_bridge(site: Site, rng: Random, seconds: float) -> None:
    if not site.broker.bridge_up:
        return
    site.broker.lose_bridge(seconds)
    for device in [device for device in site.devices.values() if device.connected and rng.random() < 0.05]:
        site.world.after(rng.uniform(0, min(seconds, 60.0)), device.blip)


def broker_restarts(site: Site, rng: Random) -> None:
    """The broker restarts; devices and bridge come back each in its own time."""
    if site.broker.up:
        site.broker.restart(rng.uniform(0.5, 40))


def listener_restarts(site: Site, _rng: Random) -> None:
    """All connections die, and the uptime goes on."""
    if site.broker.up:
        site.broker.restart_listener()


def storm(site: Site, rng: Random) -> None:
    """All devices reconnect within a second, and the broker throws the bridge out."""
    if not site.broker.up:
        return
    for device in [device for device in site.devices.values() if device.connected]:
        site.world.after(rng.uniform(0, 1), device.blip)
    site.world.after(rng.uniform(0, 0.5), lambda: site.broker.lose_bridge(-0.7))


def power_cut(site: Site, rng: Random) -> None:
    """The whole site is without power for a while."""
    _power_cut(site, rng, rng.uniform(0.01, 12) * site.pace.hour)


def off_for_weeks(site: Site, rng: Random) -> None:
    """The core is off for weeks; its devices live on."""
    _power_cut(site, rng, rng.uniform(10, 70) * site.pace.day)


def _power_cut(site: Site, rng: Random, seconds: float) -> None:
    if not site.powered or not site.broker.up:
        return
    site.powered = False
    site.kill_component(None)
    for device in list(site.devices.values()):
        if rng.random() < DIES_WITH_POWER:
            site.world.after(rng.uniform(0, seconds), lambda device=device: device.die("power"))  # type: ignore[misc]
    site.broker.go_down()

    def boots() -> None:
        site.powered = True
        site.world.reboot()
        if rng.random() < 0.4:
            # No battery behind the clock: it is wrong until somebody tells the time.
            site.set_clock_error(rng.choice((-3 * YEAR, -YEAR, -40 * DAY)))
            site.world.after(rng.uniform(60, DAY), lambda: site.set_clock_error(0.0))
        site.world.after(rng.uniform(1, 60), site.broker.come_up)
        site.world.after(rng.uniform(1, 90), site.start_component)

    site.world.after(seconds, boots)


def clock_jumps(site: Site, rng: Random) -> None:
    """The wall clock is set wrong, and right again later."""
    site.set_clock_error(rng.choice((-20 * YEAR, -YEAR, -HOUR, HOUR, 45 * DAY, YEAR, 10 * YEAR)))
    site.world.after(rng.uniform(0.001, 3) * site.pace.day, lambda: site.set_clock_error(0.0))


def killed(site: Site, rng: Random) -> None:
    """The component is killed, and started again."""
    if site.component.running:
        site.kill_component(rng.choice((rng.uniform(2, 60), rng.uniform(60, HOUR))))


def dies_at_a_call(site: Site, rng: Random) -> None:
    """The component will die at one of the next points of its calls to the cloud."""
    site.fuse = rng.randint(1, 12)


def upgraded(site: Site, rng: Random) -> None:
    """The component is ended properly, and its new version started."""
    site.component.stop()
    site.world.after(rng.uniform(10, 300), site.start_component)


def subscription_dies(site: Site, _rng: Random) -> None:
    """Local pub/sub stops to deliver, without a word."""
    if site.component.ipc:
        site.component.ipc.drop()


def nucleus_restarts(site: Site, rng: Random) -> None:
    """The connection to the nucleus breaks; for a while there is none."""
    if site.component.ipc:
        site.component.refuse_connection = "the nucleus restarts"
        site.component.ipc.disconnect()
        site.world.after(rng.uniform(5, 200), lambda: setattr(site.component, "refuse_connection", ""))


def overflow(site: Site, rng: Random) -> None:
    """A flood fills the queue, and what devices do meanwhile is dropped."""
    if site.broker.up and site.broker.bridge_up and site.component.running:
        for _message in range(20_001):
            site.component.hear(f"{IN}flood", b"")
        for device in [device for device in site.devices.values() if device.connected and rng.random() < 0.1]:
            device.blip()


def cloud_fails(site: Site, rng: Random) -> None:
    """The cloud throttles, fails, or its answers are lost; sometimes it lists all the same."""
    kind = rng.choice(("throttled", "server", "lost", "unreachable", "credentials", "accessDenied"))
    operations = ("disassociate", "associate") + (("list",) if rng.random() < 0.6 else ())
    lost = kind == "lost"
    for operation in operations:
        site.component.cloud.fail(operation, "server" if lost else kind, carried_out=lost, times=10_000)
    site.world.after(rng.uniform(0.001, 2) * site.pace.day, site.component.cloud.faults.clear)


def cloud_lies(site: Site, rng: Random) -> None:
    """The list of associations is short for some hours."""
    cloud, share = site.component.cloud, rng.choice((0.0, 0.5, 0.9))
    cloud.hidden.update(name for name in site.devices if rng.random() >= share)
    site.world.after(rng.uniform(1, 13) * site.pace.hour, cloud.hidden.clear)


def cloud_refuses(site: Site, rng: Random) -> None:
    """The cloud refuses one device, for some days."""
    name, refusing = rng.choice(sorted(site.devices)), site.component.cloud.refusing
    refusing[name] = "InternalError"
    site.world.after(rng.uniform(1, 20) * site.pace.day, lambda: refusing.pop(name, None))


def list_fails(site: Site, rng: Random) -> None:
    """EMQX' HTTP API does not answer."""
    site.component.fail_lists("503")
    site.world.after(rng.uniform(1 / 24, 3) * site.pace.day, lambda: site.component.fail_lists(""))


def disk_full(site: Site, rng: Random) -> None:
    """Nothing can be written."""
    site.component.disk_full = True
    site.world.after(rng.uniform(0.02, 12) * site.pace.hour, lambda: setattr(site.component, "disk_full", False))


def many_leave(site: Site, rng: Random) -> None:
    """A hall is closed: a third of the devices go within two days."""
    for name in rng.sample(sorted(site.devices), len(site.devices) // 3):
        if site.devices[name].style != "never":
            site.world.after(rng.uniform(0, 2) * site.pace.day, site.devices[name].die)


def associated_anew(site: Site, rng: Random) -> None:
    """Somebody takes devices off the list, and puts them back."""
    for name in rng.sample(sorted(site.devices), 2):
        if site.devices[name].alive and site.take_off(name):
            late = rng.uniform(0.001, 2) * site.pace.day
            site.world.after(late, lambda name=name: site.component.cloud.associate(name))  # type: ignore[misc]


def configured(site: Site, rng: Random) -> None:
    """Somebody deploys other settings, and takes them back later."""
    key, value = rng.choice(
        (
            ("offlineThreshold", site.duration(45)),
            ("offlineThreshold", site.duration(20)),
            ("protectedDevices", ["d1*"]),
            ("dryRun", True),
            ("gracePeriod", site.duration(3)),
            ("checkInterval", site.duration(1 / 8)),
            ("checkInterval", "often"),
        )
    )
    usual = {"protectedDevices": [], "dryRun": False, **site.usual}
    site.judge.threshold_changed(key, value)
    site.configure(**{key: value})
    site.world.after(rng.uniform(1, 40) * site.pace.day, lambda: site.configure(**{key: usual[key]}))


FAULTS: tuple[tuple[Callable[[Site, Random], None], float, str], ...] = (
    # what, how often in a year, why that often
    (bridge_restarts, 18, "its certificate rotates each week, networks and deployments do the rest"),
    (bridge_broken, 1.5, "hours to days: a deployment with a mistake"),
    (broker_restarts, 6, "updates and crashes; down for up to 40 s, the bridge comes when its back-off lets it"),
    (listener_restarts, 3, "each change of EMQX' configuration"),
    (storm, 1, "all devices reconnect within a second, and EMQX throws the bridge out (case 35)"),
    (power_cut, 4, "up to half a day"),
    (off_for_weeks, 0.5, "plants close"),
    (clock_jumps, 3, "no battery, wrong time servers, people"),
    (killed, 4, "out of memory, upgrades of the nucleus"),
    (dies_at_a_call, 4, "the same at the worst time: around its calls to the cloud"),
    (upgraded, 3, "new versions"),
    (subscription_dies, 2, "silently, as on Greengrass Lite"),
    (nucleus_restarts, 3, "its own upgrades"),
    (overflow, 2, "a storm of messages fills the queue"),
    (cloud_fails, 8, "throttling, outages, credentials"),
    (cloud_lies, 2, "a list that is short for some hours (case 2)"),
    (cloud_refuses, 1, "one entry, for days"),
    (list_fails, 2, "the HTTP API is away for hours or days"),
    (disk_full, 2, "logs"),
    (many_leave, 0.5, "a hall is closed: a third go within two days"),
    (associated_anew, 3, "somebody takes associations off and puts them back"),
    (configured, 2, "other settings for some days or weeks"),
)
