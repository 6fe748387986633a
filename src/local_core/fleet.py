"""A whole fleet against one account's quota, in virtual time: who calls when, and how long until all are served.

So many core devices get the component within a minute. Every call to the cloud takes a token from one bucket, the
account's, or is throttled. When each core calls next is the component's own decision (`pruning`); beside it stands
what it would be without jitter and back-off. Calls take no time; what else runs in the account is left out.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
from array import array
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from client_device_pruner.cloud import READ_ATTEMPTS
from client_device_pruner.cycle import BATCH
from client_device_pruner.pruning import BACK_OFF_SECONDS, first_delay_seconds, next_delay_seconds
from client_device_pruner.settings import parse

DEPLOYED_WITHIN_SECONDS = 60.0
MOMENT_SECONDS = (5.0, 65.0)
"""A check in the moment waits for the next census, which comes every minute."""
PARTS = 4
"""The table tells the busiest minute of so many parts of the day."""
_DEFAULTS = parse({})


@dataclass(frozen=True, slots=True)
class Pace:
    """When a core runs its cycles.

    Attributes:
        name: for the table.
        first_seconds: from a number in [0, 1) at random, the delay of the first cycle.
        next_seconds: from such a number and the failures in a row, the delay after a cycle.
    """

    name: str
    first_seconds: Callable[[float], float]
    next_seconds: Callable[[float, int], float]


def paces(back_off_seconds: tuple[float, float] = BACK_OFF_SECONDS) -> tuple[Pace, ...]:
    """What is compared: neither jitter nor back-off, then the component when it is new and when it only starts anew."""

    def first(listed: bool) -> Callable[[float], float]:
        return lambda jitter: first_delay_seconds(_DEFAULTS, jitter, listed=listed)

    def following(jitter: float, failures: int) -> float:
        return next_delay_seconds(_DEFAULTS, jitter, failures=failures, back_off_seconds=back_off_seconds)

    def fixed(_jitter: float, failures: int) -> float:
        return back_off_seconds[0] if failures else _DEFAULTS.check_interval_seconds

    return (
        Pace("all at once", lambda _jitter: 0.0, fixed),
        Pace("new", first(listed=False), following),
        Pace("upgraded", first(listed=True), following),
    )


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated.

    Attributes:
        cores: how many core devices.
        rate: calls a second that the account may make.
        burst: calls that it may make at once after a quiet time.
        devices: client devices of each core.
        due_share: the part of the cycles that have something to disassociate.
        seconds: how long it goes on.
        seed: of all that is at random.
    """

    cores: int
    rate: float = 10.0
    burst: float = 20.0
    devices: int = 100
    due_share: float = 0.02
    seconds: float = 86_400.0
    seed: int = 1

    @property
    def pages(self) -> int:
        """Calls that one listing takes."""
        return max(1, math.ceil(self.devices / BATCH))


class Account:
    """The account's bucket, and what was asked of it.

    Attributes:
        now: seconds since the deployment began.
        asked: calls in each second.
        throttled: calls that were refused.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.now = 0.0
        self.asked = array("L", bytes(array("L").itemsize * (int(fleet.seconds) + 1)))
        self.throttled = 0
        self._rate, self._burst = fleet.rate, fleet.burst
        self._tokens, self._filled = fleet.burst, 0.0

    def call(self) -> bool:
        """Take a token; False if there is none."""
        self.asked[int(self.now)] += 1
        self._tokens = min(self._burst, self._tokens + (self.now - self._filled) * self._rate)
        self._filled = self.now
        if self._tokens < 1.0:
            self.throttled += 1
            return False
        self._tokens -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class Figures:
    """What a day came to.

    Attributes:
        calls: all calls, those that were throttled too.
        throttled: the part of them that was.
        busiest_second: most calls in one second.
        busiest_minutes: calls a second in the busiest minute of each part of the time.
        listed_seconds: when each core that was served at all had its first whole list, in order.
    """

    calls: int
    throttled: float
    busiest_second: int
    busiest_minutes: tuple[float, ...]
    listed_seconds: Sequence[float]


Waits = Generator[float, None, bool]
"""Yields how many seconds to wait; returns whether it went well."""


def simulate(fleet: Fleet, pace: Pace) -> Figures:
    """Let the fleet run; the same arguments give the same figures."""
    chance = random.Random(fleet.seed).random  # noqa: S311 - nothing is secret here
    account = Account(fleet)
    listed = array("d")
    waiting: list[tuple[float, int, Generator[float, None, None]]] = []
    for number in range(fleet.cores):
        core = _core(fleet, pace, account, listed, chance)
        heapq.heappush(waiting, (next(core), number, core))
    while waiting[0][0] < fleet.seconds:
        account.now, number, core = waiting[0]
        heapq.heapreplace(waiting, (account.now + next(core), number, core))
    return _figures(account, listed)


def _core(
    fleet: Fleet, pace: Pace, account: Account, listed: array[float], chance: Callable[[], float]
) -> Generator[float, None, None]:
    """One core device, for ever."""
    yield DEPLOYED_WITHIN_SECONDS * chance() + pace.first_seconds(chance())
    failures, is_listed, is_due = 0, False, False
    while True:
        went_well = yield from _list(fleet, account, chance)
        if went_well and not is_listed:
            is_listed = True
            listed.append(account.now)
        if went_well:
            is_due = is_due or chance() < fleet.due_share
            if is_due:
                went_well = yield from _disassociate(fleet, account, chance)
                is_due = not went_well
        failures = 0 if went_well else failures + 1
        yield pace.next_seconds(chance(), failures)


def _list(fleet: Fleet, account: Account, chance: Callable[[], float]) -> Waits:
    for _page in range(fleet.pages):
        for attempt in range(READ_ATTEMPTS):
            if account.call():
                break
            if attempt == READ_ATTEMPTS - 1:
                return False
            # The SDK's standard retries after throttling: at random within 1 s, then within 2 s.
            yield chance() * 2.0**attempt
    return True


def _disassociate(fleet: Fleet, account: Account, chance: Callable[[], float]) -> Waits:
    least, most = MOMENT_SECONDS
    yield least + (most - least) * chance()
    if not account.call():
        return False
    return (yield from _list(fleet, account, chance))


def _figures(account: Account, listed: array[float]) -> Figures:
    calls = sum(account.asked)
    minutes = [sum(account.asked[at : at + 60]) / 60 for at in range(0, len(account.asked) - 1, 60)]
    part = -(-len(minutes) // PARTS)
    return Figures(
        calls=calls,
        throttled=account.throttled / calls,
        busiest_second=max(account.asked),
        busiest_minutes=tuple(max(minutes[at : at + part]) for at in range(0, len(minutes), part)),
        listed_seconds=listed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate a day, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m local_core.fleet", description=__doc__)
    parser.add_argument("--cores", type=int, nargs="+", default=[10_000, 100_000])
    usual = Fleet(cores=0)
    for name, what in (
        ("devices", "of each core"),
        ("rate", "calls that the account may make in a second"),
        ("burst", "calls that it may make at once"),
        ("due_share", "of the cycles that have something to disassociate"),
        ("seed", "of all that is at random"),
    ):
        value = getattr(usual, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=f"{what} (default: {value})")
    parser.add_argument("--back-off", type=float, nargs=2, default=BACK_OFF_SECONDS, help="seconds, first and longest")
    options = vars(parser.parse_args(arguments))
    cores, back_off = options.pop("cores"), tuple(options.pop("back_off"))
    title = "{devices} devices each; {rate:g} calls a second, {burst:g} at once".format_map(options)
    columns = ("cores", "", "calls", "throttled", "peak/s", "/s, busiest minute of 6 h", "half listed", "all listed")
    table = Table(*columns, title=title, box=SIMPLE)
    for number in cores:
        fleet = Fleet(number, **options)
        for pace in paces(back_off):
            table.add_row(*_row(fleet, pace, simulate(fleet, pace)))
    # Wide enough in a file, too.
    Console(width=116).print(table)
    return 0


def _row(fleet: Fleet, pace: Pace, figures: Figures) -> Sequence[str]:
    return (
        f"{fleet.cores:,}",
        pace.name,
        f"{figures.calls:,}",
        f"{figures.throttled:.0%}",
        f"{figures.busiest_second:,}",
        " ".join(f"{most:,.0f}" for most in figures.busiest_minutes),
        _minutes(fleet, figures, (fleet.cores + 1) // 2),
        _minutes(fleet, figures, fleet.cores),
    )


def _minutes(fleet: Fleet, figures: Figures, cores: int) -> str:
    """When so many cores were listed."""
    listed = figures.listed_seconds
    if len(listed) < cores:
        return f"never ({len(listed) / fleet.cores:.0%})"
    return f"{listed[cores - 1] / 60:,.0f} min"


if __name__ == "__main__":
    sys.exit(main())
