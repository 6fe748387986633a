"""Planted bugs: each is put into the component, and hurried sites and histories at random have to catch it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from client_device_pruner.config.settings import Settings
from client_device_pruner.decisions import policy
from client_device_pruner.decisions.policy import Evidence
from client_device_pruner.presence import counts, sessions
from client_device_pruner.presence.clock import ObservedClock
from client_device_pruner.presence.devices import Device, Devices
from client_device_pruner.presence.facts import Facts
from client_device_pruner.presence.listing import Listing
from client_device_pruner.presence.messages import Messages
from client_device_pruner.presence.presence import Presence
from client_device_pruner.presence.sessions import Sessions
from client_device_pruner.pruning.core import Core
from client_device_pruner.pruning.deployed import Deployed
from client_device_pruner.pruning.restores import Restores
from client_device_pruner.store.journal import Journal
from fakes.broker import Faults
from fakes.plant import FAULTS, HOUR, LIFE, MINUTE, NAMES, ON_DEVICES, Plant, plant
from simulation.campaign import quiet
from simulation.devices import dice
from simulation.judge import FALSE, Figures
from simulation.rates import KINDS, Pace
from simulation.site import Site

HURRY = Pace(15.0)
SITES, HISTORIES = 6, 25
"""So many of each are tried; a bug that none of them catches is missed."""
REMOVED = 0.6
"""With all bugs out, more of the dead go."""


def _put(owner: Any, name: str, value: object) -> None:
    setattr(owner, name, value)


def _wrap(owner: Any, name: str, made: Callable[..., Any]) -> None:
    """Replace a method by one that gets the old one first."""
    old = getattr(owner, name)
    setattr(owner, name, lambda *given, **named: made(old, *given, **named))


def _wall_clock() -> None:
    def returned(self: ObservedClock, _sent: float, received: float, *, wall: float, **_named: Any) -> None:
        # As if silences were measured by the wall clock.
        self.seconds = max(self.seconds, wall - 1_799_990_000.0)
        self.advanced_at = received

    _put(ObservedClock, "returned", returned)


def _every_second_probe() -> None:
    def returned(old: Any, *given: Any, interval_seconds: float, **named: Any) -> None:
        old(*given, interval_seconds=1.1 * interval_seconds, **named)

    _put(ObservedClock, "gap", lambda _self: False)
    _wrap(ObservedClock, "returned", returned)


def _more_then(device: Device) -> int:
    return 2 + (counts.BRIDGE if device.then is None else device.then)


def _end_nothing(_self: Sessions, _device: Device, *_given: Any) -> bool:
    return False


def _forget(old: Any, self: Devices, listed: Any, observed_seconds: float) -> Any:
    for name in self.by_name.keys() - listed.keys():
        self._unlisted += self.by_name[name].associated
        self.by_name[name] = Device(name)
    return old(self, listed, observed_seconds)


def _never_dry(old: Any, self: Deployed, read: Any, at: float) -> None:
    value = {**read.value, "dryRun": False} if read.component is None else read.value
    old(self, dataclasses.replace(read, value=value), at)


def _unread_sightings(old: Any, self: Presence, devices: Devices, *given: Any) -> None:
    old(self, devices, *given)
    for device in devices.by_name.values():
        if device.associated:
            device.silent_since = 0.0


def _mark_as_due(old: Any, self: Core, device: Device, verdict: Any) -> None:
    old(self, device, verdict)
    device.marked_at = -1e9


def _begin_anew(old: Any, self: Presence, *given: Any) -> None:
    old(self, *given)
    self.observed = ObservedClock()


def _quarter(device: Device, settings: Settings, _facts: Facts) -> float:
    return settings.threshold_seconds(device.name) / 4


def _believe_all(old: Any, self: Listing, answer: Any, _known: Any) -> Any:
    return old(self, answer, lambda _name: True)


def _end_the_new_one() -> None:
    # Each of the two rules holds what the other would let through.
    _put(sessions, "_TAKEN_OVER", frozenset())
    _put(sessions, "LATE_END_SECONDS", 0.0)


def _one_message() -> None:
    _put(policy, "RHYTHM_MESSAGES", 1)
    _put(policy, "RHYTHM_SHARE", 0.0)


def _with(**fixed: Any) -> Callable[..., Any]:
    return lambda old, *given, **named: old(*given, **{**named, **fixed})


def _unused(old: Any, *given: Any) -> Any:
    return dataclasses.replace(old(*given), used=0)


def _half(old: Any, *given: Any) -> float:
    return float(old(*given)) / 2


EVENTS = ("events", "events+messages")
BUGS: dict[str, tuple[Sequence[str], Callable[[], None]]] = {
    # what is wrong: on which kinds of sites that may show, and how it is put in
    "silences are measured by the wall clock": (KINDS, _wall_clock),
    "every second probe is enough": (("messages",), _every_second_probe),
    "the time between probes that are far apart counts": (
        KINDS,
        lambda: _wrap(ObservedClock, "returned", _with(interval_seconds=1e12)),
    ),
    "inputs that are dead do not stop the clock": (KINDS, lambda: _wrap(ObservedClock, "returned", _with(alive=True))),
    "sightings are not read back at a start": (KINDS[1:], lambda: _wrap(Presence, "__init__", _unread_sightings)),
    "observed time begins at zero with each start": (KINDS, lambda: _wrap(Presence, "__init__", _begin_anew)),
    "the end of an old session ends the new one": (EVENTS, _end_the_new_one),
    "a disconnect ends no session": (EVENTS, lambda: _put(Sessions, "disconnected", _end_nothing)),
    "a session makes no device present": (EVENTS, lambda: _put(Facts, "is_present", lambda _self, _device: False)),
    "no evidence is needed": (
        KINDS[1:],
        lambda: _put(policy, "find_evidence", lambda *_a: (Evidence.CONNECTION_COUNT, "")),
    ),
    "two unnamed connections more than then are fine": (EVENTS, lambda: _put(policy, "unnamed_then", _more_then)),
    "messages are no sightings": (
        ("events+messages", "messages"),
        lambda: _put(Messages, "thing_name", lambda *_a: None),
    ),
    "an unbelievable client list is believed": (KINDS[:1], lambda: _wrap(Listing, "take", _believe_all)),
    "thresholds are halved": (KINDS, lambda: _wrap(Settings, "threshold_seconds", _half)),
    "patience is a quarter of the threshold": (KINDS, lambda: _put(policy, "patience_seconds", _quarter)),
    "a list that is short once forgets what is not on it": (KINDS, lambda: _wrap(Devices, "reconcile", _forget)),
    "protected devices are not": (KINDS, lambda: _put(Settings, "is_protected", lambda _self, _name: False)),
    "a dry run is none": (KINDS, lambda: _wrap(Deployed, "take", _never_dry)),
    "what returns is not restored": (KINDS, lambda: _put(Restores, "take_sighted", lambda _self, _cycle: None)),
    "the grace period is not waited for": (KINDS, lambda: _wrap(Core, "mark", _mark_as_due)),
    "the budget of a day is never used up": ((), lambda: _wrap(Journal, "budget", _unused)),
    "an intent is not settled": (KINDS, lambda: _put(Journal, "settle", lambda *_a: None)),
    "a device that publishes twice has no session": (EVENTS, lambda: _put(Sessions, "message", lambda *_a: False)),
    "one message is a rhythm": (("messages",), _one_message),
}


def hunt(jobs: int | None) -> int:
    """Plant one bug after the other, and print what caught it; the number of those that nothing caught."""
    missed = 0
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        for name, caught in pool.imap_unordered(_try, [None, *BUGS]):
            sys.stdout.write(f"{name}: {caught or 'MISSED'}\n")
            sys.stdout.flush()
            missed += not caught
    return missed


def _try(name: str | None) -> tuple[str, str]:
    """What catches a bug, or, without one, that nothing is caught."""
    quiet()
    if name is None:
        return "(no bug)", next(_caught(KINDS, 2), "") or "nothing, as it should be"
    kinds, put_in = BUGS[name]
    put_in()
    return name, next(_caught(kinds, SITES), "")


def _caught(kinds: Sequence[str], seeds: int) -> Iterator[str]:
    """All that is wrong, one after the other: in sites, in histories at random, in single properties."""
    yield from _in_sites(kinds, seeds)
    for seed in range(HISTORIES):
        for kind in ("clientList", "events", "messages"):
            if wrong := _attempt(_in_history, kind, seed):
                yield f"history at random, {kind}, seed {seed}: {wrong}"
    for what, holds in PROPERTIES.items():
        if wrong := _attempt(holds):
            yield f"property of the {what}: {wrong}"


def _attempt(search: Callable[..., str], *given: Any) -> str:
    try:
        return search(*given)
    except Exception as error:  # noqa: BLE001 - whatever it raises, the bug is caught
        return type(error).__name__


def _in_sites(kinds: Sequence[str], seeds: int) -> Iterator[str]:
    """What is wrong in a site, and where in all sites of a kind too few of the dead go."""
    whole = {kind: Figures() for kind in kinds}
    for seed in range(1, seeds + 1):
        for kind in kinds:
            if wrong := _attempt(_in_site, kind, seed, whole[kind]):
                yield f"simulation, {kind}, seed {seed}: {wrong}"
    for kind, figures in whole.items():
        if figures.removed < REMOVED * figures.eligible:
            yield f"simulation, {kind}: {figures.removed} of {figures.eligible} dead removed"


def _in_site(kind: str, seed: int, whole: Figures) -> str:
    figures = Site(kind, seed, pace=HURRY).run().figures
    whole.add(figures)
    for verdict in FALSE:
        if figures.verdicts[verdict]:
            return f"{figures.verdicts[verdict]} {verdict}"
    return figures.problems[0] if figures.problems else ""


def _in_history(kind: str, seed: int) -> str:
    rng = dice("history", seed)
    minutes, steps = (0.2, 1.0, 4.0, 15.0, 40.0, 90.0, 200.0), 3 * ON_DEVICES + FAULTS + LIFE
    history = [(rng.choice(minutes), rng.choice(steps), rng.randrange(10)) for _ in range(rng.randint(10, 50))]
    with plant(kind) as site:
        site.play(history)
        return site.problems[0] if site.problems else ""


def _budgets() -> str:
    """Ten devices that were dead before may go by two a day."""
    limits = {"maxPercentPerDay": 20, "approvalPercent": 100}
    with plant("clientList") as site:
        site.component.configure({"neverSeenThreshold": "1h", "gracePeriod": "0s", "limits": limits})
        site.component.cloud.disassociate(*NAMES)
        site.component.cloud.associate(*(f"dead-{number}" for number in range(10)))
        site.world.run(20 * HOUR)
        carried = len(site.component.cloud.carried)
        return f"{carried} of 10 went in a day that allows 2" if carried > 2 else ""


def _lists() -> str:
    """A list of associations that was short once forgets no sighting; one of unknown clients shows nothing."""
    with plant("clientList") as site:
        site.die()
        site.run(1.5 * HOUR)
        site.component.cloud.hidden.add(NAMES[0])
        site.run(20 * MINUTE)
        site.component.cloud.hidden.clear()
        site.run(2 * HOUR)
        if not site.component.cloud.carried:
            return "a dead device stayed, since a list was short once"
    with plant("clientList") as site:
        site.run(HOUR)
        if site.component.lists:
            site.component.lists.connected = {"unheard-of"}
        site.run(20 * HOUR)
        return site.problems[0] if site.problems else ""


def _sessions() -> str:
    """A device that came back unheard is named by what it publishes, so that a dead one can go."""
    with plant("events") as site:
        site.play([(1, "die", 1), (30, "unheard", 0), (300, "die", 1)])
        return "" if site.component.cloud.carried else "a dead device stayed, since another one was not named"


def _gaps() -> str:
    """No time is observed without the list that is in use, on a suspended host, or with every second probe."""
    with plant("clientList") as site:
        site.world.run(3 * HOUR)
        site.component.fail_lists("401 BAD_TOKEN")
        site.world.run(3 * HOUR)
        if (observed := _observed(site)) > 3.5 * HOUR:
            return f"{observed:.0f} s were observed in 3 h with a client list"
    with plant("messages") as site:
        site.world.run(5 * HOUR)
        site.world.sleep(6 * HOUR)
        site.world.run(HOUR)
        if (observed := _observed(site)) > 6 * HOUR:
            return f"{observed:.0f} s were observed in 6 h that the host was not suspended"
        broker, carry, numbers = site.broker, site.component.to_broker, count()

        def to_broker(topic: str, payload: bytes) -> None:
            broker.faults = Faults(lose=next(numbers) % 2)
            if carry:
                carry(topic, payload)
            broker.faults = Faults(lose=1)

        site.component.stop()
        site.component.to_broker = to_broker
        site.component.start()
        site.world.run(12 * HOUR)
        marked = len(site.component.happened("marked"))
        return f"{marked} living devices were marked while they could not be heard" if marked else ""


def _observed(site: Plant) -> float:
    seconds: float = site.component.kept("presence")["observedSeconds"]
    return seconds


PROPERTIES: dict[str, Callable[[], str]] = {
    "budgets": _budgets,
    "lists": _lists,
    "sessions": _sessions,
    "gaps": _gaps,
}
"""What sites and histories show too seldom, each as one short story."""
