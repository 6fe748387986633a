"""Core devices that call the cloud by the component's own rules, and the quota that they share."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Generator

from botocore.retries.standard import ExponentialBackoff, RetryContext, RetryEventAdapter, ThrottlingErrorDetector

from client_device_pruner.config.settings import Settings
from client_device_pruner.pruning.cloud_child import READ_ATTEMPTS
from client_device_pruner.pruning.scheduler import first_delay_seconds, next_delay_seconds
from fakes.cloud import PAGE_SIZE

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
CHILD_SECONDS = 3.0  # until the child process has imported boto3 and has credentials
ATTEMPT_SECONDS = 0.1  # there and back
_SETTINGS = Settings()
_THROTTLED = {"Error": {"Code": "ThrottlingException"}}

Steps = Generator[float, None, bool]
"""Gives the seconds until it goes on; returns whether it went well."""


class Quota:
    """A bucket of `rate` control-plane operations that fills up in a second, for the whole account."""

    def __init__(self, rate: float) -> None:
        self._rate = self._left = rate
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether a call is let through."""
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        taken = self._left >= 1.0
        self._left -= taken
        return taken


class Fleet:
    """All of an account's core devices; whatever is measured begins with their start, or with the end of an outage.

    Args:
        cores: how many core devices.
        devices: how many client devices are associated with each.
        rate: the quota, in calls a second.
        cores_a_minute: how many of them start in a minute; None: all.
        listed: whether they know their associations from an earlier run.
        outage_seconds: for so long the cloud answers nobody, after a quarter of a day in which it did.
        removing: the share of the cycles, but for the first of new cores, that disassociate devices and list again.

    Attributes:
        waited: how long each core waited for its first complete cycle, in seconds; cores that still wait are left out.
        counts: by hour (0 is the first), how many `calls`, `throttled` ones, `cycles` and `failed` ones.
    """

    def __init__(
        self,
        cores: int,
        devices: int,
        rate: float,
        *,
        cores_a_minute: int | None = None,
        listed: bool = True,
        outage_seconds: float = 0.0,
        removing: float = 1.0,
    ) -> None:
        self.waited: dict[int, float] = {}
        self.counts: Counter[tuple[int, str]] = Counter()
        self._pages = -(-devices // PAGE_SIZE)
        self._quota = Quota(rate)
        self._listed = listed
        self._outage = 6 * HOUR * (outage_seconds > 0)
        self._began = self._outage + outage_seconds
        self._removing = removing
        self._random = random.Random(1)
        self._pause = ExponentialBackoff(
            random=self._random.random, throttling_detector=ThrottlingErrorDetector(RetryEventAdapter())
        )
        self._now = 0.0
        starting = MINUTE * cores / (cores_a_minute or cores)
        self._starts = sorted(self._random.uniform(0.0, starting) for _core in range(cores))

    def share(self, what: str, of: str, hours: range) -> float:
        """What share `what` has of the `of` in these hours."""
        return sum(self.counts[hour, what] for hour in hours) / max(1, sum(self.counts[hour, of] for hour in hours))

    def run(self, seconds: float) -> None:
        """Let so much time pass after what is measured begins."""
        lives = [self._live(core, at) for core, at in enumerate(self._starts)]
        due = [(at, core) for core, at in enumerate(self._starts)]  # a heap, since it is sorted
        while due[0][0] < self._began + seconds:
            self._now, core = due[0]
            heapq.heapreplace(due, (self._now + next(lives[core]), core))

    def _live(self, core: int, start: float) -> Generator[float, None, None]:
        removing, failures = self._removing * self._listed, 0
        yield first_delay_seconds(_SETTINGS, self._random.random(), listed=self._listed)
        while True:
            complete = yield from self._cycle(removes=self._random.random() < removing)
            self._count("cycles")
            if complete:
                failures, removing = 0, self._removing
                if self._now >= self._began:
                    self.waited.setdefault(core, self._now - max(start, self._began))
            else:
                failures += 1
                self._count("failed")
            yield next_delay_seconds(_SETTINGS, self._random.random(), failures=failures)

    def _cycle(self, *, removes: bool) -> Steps:
        yield CHILD_SECONDS
        if not (yield from self._list()):
            return False
        return not removes or ((yield from self._call(1)) and (yield from self._list()))

    def _list(self) -> Steps:
        for _page in range(self._pages):
            if not (yield from self._call(READ_ATTEMPTS)):
                return False
        return True

    def _call(self, attempts: int) -> Steps:
        for attempt in range(1, attempts + 1):
            yield ATTEMPT_SECONDS
            self._count("calls")
            if not self._outage <= self._now < self._began:
                if self._quota.take(self._now):
                    return True
                self._count("throttled")
            if attempt < attempts:
                yield self._pause.delay_amount(RetryContext(attempt, parsed_response=_THROTTLED))
        return False

    def _count(self, what: str) -> None:
        self.counts[int((self._now - self._began) // HOUR), what] += 1
