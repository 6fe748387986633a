"""Client devices and strangers that really live: they connect, speak, die, move, are replaced, or stay away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING

from simulation.rates import BLIPS, FATES, KEEPALIVES, LIFETIME_YEARS, MINUTE, STYLES, TAKEOVERS, USUAL_BLIPS

if TYPE_CHECKING:
    from simulation.site import Site

Life = Iterator[float]
"""What somebody does; yields how long it waits until it goes on, in seconds."""


def dice(*what: object) -> Random:
    """A stream of chances of its own, the same each time."""
    return Random("/".join(map(str, what)))


def drawn(rng: Random, table: tuple[tuple[str, float, str], ...]) -> str:
    """One of a table, by its weights."""
    return rng.choices([row[0] for row in table], [row[1] for row in table])[0]


class Client:
    """Whatever connects to the broker."""

    def __init__(self, site: Site, name: str, style: str) -> None:
        self.site = site
        self.name = name
        self.style = style
        self.pace = site.pace
        self.rng = dice(site.seed, name)
        self.wants = False  # whether it means to be connected now
        self.linked = False  # whether it has a connection, as far as it knows; the broker may know better, or worse
        self.keepalive = 60
        self.announced = True
        self.last_contact: float | None = None  # true time when it was last connected, or published

    def live(self, life: Life) -> None:
        """Go on with a life, step by step."""

        def step() -> None:
            pause = next(life, None)
            if pause is not None:
                self.site.world.after(max(0.1, pause), step)

        step()

    def arrive(self) -> None:
        """Connect, as soon as the broker lets it."""
        self.wants = True
        self._try()

    def leave(self) -> None:
        """Disconnect in good order."""
        self._touch()
        self.wants = self.linked = False
        self.site.broker.disconnect(self.name, announced=self.announced)

    def lost(self) -> None:
        """The connection died under it: it comes back after some time of its own."""
        self._touch()
        self.linked = False
        if self.wants:
            self.site.world.after(self.rng.choice((self.rng.uniform(0.3, 10), self.rng.uniform(5, 200))), self._try)

    def blip(self) -> None:
        """The connection breaks, and it comes back, sometimes before the broker has noticed."""
        if self.connected and self.wants:
            if self.rng.random() < TAKEOVERS:
                self._try(anew=True)
            else:
                self.site.broker.disconnect(self.name, "tcp_closed", announced=self.announced)
                self.lost()

    @property
    def connected(self) -> bool:
        """Whether it is really connected."""
        return self.linked and self.name in self.site.broker.sessions

    def _try(self, *, anew: bool = False) -> None:
        if not self.wants or (self.connected and not anew):
            return
        if self.site.broker.connect(self.name, keepalive=self.keepalive, announced=self.announced):
            self.linked = True
            self._touch()
        else:
            self.site.waiting[self] = None

    def try_again(self) -> None:
        """The broker is up again: it does not know, and finds out within a minute."""
        self.site.world.after(self.rng.uniform(0, 60), self._try)

    def _touch(self) -> None:
        if self.linked:
            self.last_contact = self.site.world.now


class Device(Client):
    """A device that is associated with the core."""

    def __init__(self, site: Site, name: str) -> None:
        rng = dice(site.seed, name, "style")
        super().__init__(site, name, drawn(rng, STYLES))
        self.keepalive = rng.choices([row[0] for row in KEEPALIVES], [row[1] for row in KEEPALIVES])[0]
        self.alive = True
        self.fate = ""  # what became of it
        self.died: float | None = None  # and when
        self.heard = False  # whether anything of it ever reached the component
        self.silenced = False  # whether a mute one has lost its voice
        self.associated_at = site.world.now
        self.cloud_connected = rng.random() < 1 / 3

    def begin(self, late_seconds: float) -> None:
        """Begin to live after so long; some never come."""
        if self.style == "never":
            return
        world = self.site.world
        world.after(late_seconds, lambda: self.live(LIVES[self.style](self)))
        world.after(
            late_seconds + self.pace.hour + self.rng.expovariate(1 / (LIFETIME_YEARS * self.pace.year)), self.die
        )
        world.after(late_seconds, lambda: self.live(_blips(self)))

    def speak(self) -> None:
        """Publish, if it is connected."""
        if self.alive and self.connected:
            self._touch()
            self.site.spoke(self.name)

    def die(self, fate: str = "") -> None:
        """It is gone for good from this core."""
        if not self.alive:
            return
        self.fate = fate or drawn(self.rng, FATES)
        self._touch()
        self.alive = self.wants = self.linked = False
        self.died = self.site.world.now
        self.site.say(f"{self.name} ({self.style}) is gone: {self.fate}")
        if self.fate in ("closed", "moved"):
            self.site.broker.disconnect(self.name)
        else:
            self.site.broker.vanish(self.name, self.keepalive)
        self.site.died(self)

    def vanish(self, seconds: float) -> None:
        """It is out of reach, without a word, and comes back."""
        self._touch()
        self.wants = self.linked = False
        self.site.broker.vanish(self.name, self.keepalive)
        self.site.world.after(seconds, self.arrive)

    def arrive(self) -> None:
        """Connect, as soon as the broker lets it."""
        if self.alive:
            super().arrive()


def _speaks(every_hours: float) -> Callable[[Device], Life]:
    def life(device: Device) -> Life:
        device.arrive()
        while device.alive:
            # What comes more often than the probe is one sighting.
            yield max(10 * MINUTE, every_hours * device.pace.hour) * device.rng.uniform(0.9, 1.1)
            device.speak()

    return life


def _silent(device: Device) -> Life:
    device.arrive()
    while device.alive:
        yield device.rng.uniform(7, 28) * device.pace.day
        device.speak()


def _flapping(device: Device) -> Life:
    while device.alive:
        device.arrive()
        yield device.rng.uniform(1, 120)
        device.speak()
        yield device.rng.expovariate(1 / (4 * device.pace.hour))
        device.vanish(device.rng.expovariate(1 / device.pace.hour))
        yield device.rng.expovariate(1 / device.pace.hour)


def _visits(every_days: float, spread_days: float) -> Callable[[Device], Life]:
    def life(device: Device) -> Life:
        while device.alive:
            device.arrive()
            yield device.rng.uniform(1, 30)
            device.speak()
            stays = device.rng.uniform(5, 300)
            yield stays
            if device.alive:
                device.leave()
            yield (every_days + device.rng.uniform(-spread_days, spread_days)) * device.pace.day

    return life


def _seasonal(device: Device) -> Life:
    day = device.pace.day
    yield device.rng.uniform(0, 60) * day
    while device.alive:
        device.arrive()
        season = device.rng.uniform(60, 150) * day
        while season > 0 and device.alive:
            pause = max(10 * MINUTE, day / 12) * device.rng.uniform(0.9, 1.1)
            season -= pause
            yield pause
            device.speak()
        if device.alive:
            device.leave()
        yield device.rng.uniform(40, 100) * day


def _mute(device: Device) -> Life:
    speaks_for = device.rng.uniform(20, 150) * device.pace.day
    device.arrive()
    while device.alive and speaks_for > 0:
        pause = max(10 * MINUTE, device.pace.hour) * device.rng.uniform(0.9, 1.1)
        speaks_for -= pause
        yield pause
        device.speak()
    device.silenced = True


def _blips(client: Client) -> Life:
    per_year = BLIPS.get(client.style, USUAL_BLIPS)
    while per_year:
        yield client.rng.expovariate(per_year / client.pace.year)
        if isinstance(client, Device) and not client.alive:
            return
        client.blip()


LIVES: dict[str, Callable[[Device], Life]] = {
    "everySecond": _speaks(0),
    "hourly": _speaks(1),
    "sixHourly": _speaks(6),
    "silent": _silent,
    "flapping": _flapping,
    "daily": _visits(1, 1 / 12),
    "weekly": _visits(7, 0.5),
    "seasonal": _seasonal,
    "mute": _mute,
}


class Stranger(Client):
    """A client that is not associated: a dashboard, a tool, a component of the core."""

    def __init__(self, site: Site, name: str, style: str) -> None:
        super().__init__(site, name, style)
        self.announced = not style.startswith("hidden")
        self._starts = 0

    def begin(self) -> None:
        """Begin to live."""
        self.live(self._at_work() if self.style.lower().endswith("tool") else self._stays())

    def _stays(self) -> Life:
        self.live(_blips(self))
        while True:
            self.arrive()
            yield self.rng.expovariate(1 / (30 * self.pace.day))
            self.leave()
            yield self.rng.uniform(1, 300)

    def _at_work(self) -> Life:
        every = self.pace.day * (1 if self.style == "hiddenTool" else 2)
        first = self.name
        while True:
            yield self.rng.expovariate(1 / every)
            self._starts += 1
            self.name = f"{first}-{self._starts}"
            self.site.clients[self.name] = self
            self.arrive()
            yield self.rng.choice((self.rng.uniform(0, 1), self.rng.uniform(1, 9))) * self.pace.hour
            if self.rng.random() < 0.1:
                self.wants = self.linked = False
                self.site.broker.vanish(self.name)
                yield 2 * MINUTE
            else:
                self.leave()
            del self.site.clients[self.name]
