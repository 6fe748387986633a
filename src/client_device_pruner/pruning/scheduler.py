"""When cycles and restores run, each to its end or a deadline, while the component goes on hearing messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from queue import SimpleQueue
from typing import Any

from client_device_pruner.config.settings import Settings
from client_device_pruner.decisions.policy import State
from client_device_pruner.greengrass.link import Probe
from client_device_pruner.presence.client_list import Asked, ListFailed
from client_device_pruner.pruning.cloud import DEADLINE_SECONDS, Batch, CallFailed, Cloud, Ready, Reply
from client_device_pruner.pruning.core import Core
from client_device_pruner.pruning.cycle import Ask, Cycle, SendProbe, Start, Steps
from client_device_pruner.pruning.failures import Failures
from client_device_pruner.pruning.restores import Restores

BACK_OFF_SECONDS = 60.0
"""The most that the first cycle after one that failed waits; doubles up to `checkInterval` (CONTRACT, cloud calls)."""
FIRST_LIST_SECONDS = 600.0
"""How soon the first cycle comes at the latest where no association is known: `coverage` is told after as long."""
ASK_SECONDS = 120.0  # how long the broker may take to answer for up to 100 names, one call each
UNSETTLED_SECONDS = 60.0  # the same, where a run ended between a batch call and its confirmation


class Scheduler:
    """Owned by the one thread; all times are monotonic seconds.

    `before_cycle` reads the configuration again: what it changes is taken into account up to the batch call, since the
    check before it takes a probe's way to the broker and back. `ask` asks the broker for names, and has the answer
    with that number handed to `answered`. `wake` is called, from any thread, when `tick` has something to do. `jitter`
    gives numbers in [0, 1).
    """

    def __init__(
        self,
        core: Core,
        cloud: Callable[[Callable[[Reply], None]], Cloud],
        *,
        ask: Callable[[Sequence[str], int], None],
        send_probe: Callable[[float], Probe],
        before_cycle: Callable[[], None],
        wake: Callable[[], None],
        jitter: Callable[[], float],
    ) -> None:
        self._core = core
        self._cloud = cloud
        self._ask = ask
        self._send_probe = send_probe
        self._before_cycle = before_cycle
        self._wake = wake
        self._jitter = jitter
        self.failures = Failures(core)
        self._restores = Restores(core, self.failures)
        self._job: _Job | None = None
        self._cycle: Cycle | None = None
        self._next_cycle = float("inf")
        self._failure_before: object = None
        self._next_restore = float("inf")  # when one that failed is tried again
        self._restores_failed = 0  # in a row

    def schedule(self, at: float) -> None:
        """Set the time of the next cycle: when the configuration was first read, or `checkInterval` changed."""
        core, jitter = self._core, self._jitter()
        delay = first_delay_seconds(core.settings, jitter, listed=core.devices.associated_count > 0)
        if core.store.connection is not None and core.journal.open_intents():
            delay = min(delay, jitter * UNSETTLED_SECONDS * core.settings.scale)
        self._next_cycle = at + delay

    def tick(self, at: float) -> float:
        """Do what is due; returns when to be called next at the latest, if nothing is heard before."""
        core = self._core
        self._restores.take_sighted(self._cycle)
        if core.store.connection is not None:
            core.attempt(self._restores.take_requests)
        while True:
            if self._job is not None:
                core.attempt(self._job.tick, at)
                if not self._job.over:
                    return self._job.deadline
                self._ended(at)
            elif core.store.connection is None:
                return float("inf")  # without a journal nothing may be done
            elif self._restores.due or at >= self._next_restore:
                self._next_restore = float("inf")
                self._job = self._run(self._restores.steps())
            elif at >= self._next_cycle:
                self._begin_cycle()
            elif self._restores.unsettled and self._next_cycle < float("inf"):
                # A device that speaks is not left out until `checkInterval` has passed.
                self._restores.unsettled = False
                self._next_cycle = min(self._next_cycle, at + UNSETTLED_SECONDS * core.settings.scale)
            else:
                return min(self._next_cycle, self._next_restore)

    def answered(self, answer: Asked | ListFailed) -> None:
        """Take what the broker answered; an answer to another question is dropped."""
        if self._job is not None and answer.request == self._job.request:
            self._job.asked = answer

    def close(self) -> None:
        """End what runs; what was begun stays journalled, and the next run settles it."""
        self._restores.take_sighted(self._cycle)
        if self._job is not None:
            self._job.close()
            self._job = self._cycle = None
        self._next_cycle = float("inf")

    @property
    def batch_in_flight(self) -> bool:
        """Whether a batch call is under way: a deployment waits for it."""
        return self._job is not None and isinstance(self._job.step, Batch)

    def next_check_seconds(self, at: float) -> float | None:
        """How long until the next cycle; 0 while one runs, None before one is planned."""
        if self._cycle is not None:
            return 0.0
        return None if self._next_cycle == float("inf") else max(0.0, self._next_cycle - at)

    def _begin_cycle(self) -> None:
        self._next_cycle = float("inf")
        self._failure_before = self.failures.latest
        self._before_cycle()
        self._cycle = Cycle(self._core, self.failures)
        self._job = self._run(self._cycle.steps())

    def _plan_restore(self, at: float) -> None:
        """Try a restore that failed again, after delays as those of cycles that fail."""
        self._restores_failed += 1
        self._next_restore = at + next_delay_seconds(
            self._core.settings, self._jitter(), failures=self._restores_failed
        )
        if not self._core.journal.wanted():
            self._restores_failed, self._next_restore = 0, float("inf")

    def _run(self, steps: Steps) -> _Job:
        return _Job(steps, self._cloud, self._ask, self._send_probe, self._wake)

    def _ended(self, at: float) -> None:
        job, cycle, core = self._job, self._cycle, self._core
        self._job = self._cycle = None
        if core.store.connection is not None:
            core.attempt(self._plan_restore, at)
        if cycle is None or job is None:
            return
        self._restores.unsettled = bool(cycle.sighted & cycle.in_flight.keys())
        self.failures.in_a_row += job.broken
        if cycle.complete:
            core.guards.planned(cycle.holds)
            core.attempt(lambda: core.store.keep(lastComplete=core.clock.wall()))
            if self.failures.latest is self._failure_before:
                self.failures.cycle_went_well()
        self._next_cycle = at + next_delay_seconds(core.settings, self._jitter(), failures=self.failures.in_a_row)
        more = {"wouldDisassociate": cycle.would_disassociate} if core.settings.dry_run else {}
        core.survey(now=True)
        core.event(
            "cycle",
            cycleId=cycle.cycle_id,
            complete=cycle.complete,
            disassociated=cycle.disassociated,
            held=sorted({hold.guard for hold in (*cycle.holds, *core.guards.standing)}),
            dryRun=core.settings.dry_run,
            nextCheckInSeconds=round(self._next_cycle - at, 3),
            **{state.value: core.counts[state.value] for state in State},
            **more,
        )


def first_delay_seconds(settings: Settings, jitter: float, *, listed: bool) -> float:
    """How long after a start the first cycle comes, with a jitter in [0, 1): within `checkInterval`.

    Sooner where no association is `listed` yet.
    """
    soon = settings.check_interval_seconds if listed else FIRST_LIST_SECONDS * settings.scale
    return jitter * min(soon, settings.check_interval_seconds)


def next_delay_seconds(settings: Settings, jitter: float, *, failures: int) -> float:
    """How long after a cycle the next one comes, with a jitter in [0, 1).

    After calls that failed since the last cycle that went well: a second at least, and with full jitter at most a
    minute, doubled with each, up to `checkInterval`.
    """
    if not failures:
        return settings.check_interval_seconds * (0.9 + 0.2 * jitter)
    # A power of the failures of a week would be beyond what a number can hold.
    back_off = BACK_OFF_SECONDS * settings.scale * 2.0 ** min(failures - 1, 30)
    return max(settings.scale, jitter * min(back_off, settings.check_interval_seconds))


_PENDING = object()
_REQUESTS = count(1)


class _Job:
    """One run of steps with a child process of its own."""

    def __init__(
        self,
        steps: Steps,
        cloud: Callable[[Callable[[Reply], None]], Cloud],
        ask: Callable[[Sequence[str], int], None],
        send_probe: Callable[[float], Probe],
        wake: Callable[[], None],
    ) -> None:
        self.over = self.broken = False  # ended, and by an error
        self.deadline = float("inf")  # when to look at it again at the latest
        self.request = 0  # the number of what the broker was asked last
        self.asked: Asked | ListFailed | None = None  # its answer
        self._steps = steps
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        self._cloud = cloud(self._deliver)
        self._ask = ask
        self._send_probe = send_probe
        self._wake = wake
        self._probe = Probe()
        self.step: object = None  # what is waited for

    def tick(self, at: float) -> None:
        """Take the answers that came, and look whether a deadline is past."""
        while not self.over and (answer := self._answer(at)) is not _PENDING:
            self._advance(answer, at)

    def close(self) -> None:
        """End the child; what was begun stays journalled."""
        self.over = True
        self._steps.close()
        self._cloud.stop()

    def _deliver(self, reply: Reply) -> None:
        self._replies.put(reply)
        self._wake()

    def _answer(self, at: float) -> Any:
        """The answer to the step, or that it did not come in time; `_PENDING` while it is waited for."""
        late = at >= self.deadline
        match self.step:
            case None:  # nothing is asked yet
                return None
            case SendProbe():
                return self._probe.returned if self._probe.returned or late else _PENDING
            case Ask() if late and self.asked is None:
                return ListFailed(self.request, "the client list did not answer in time")
            case Ask():
                return self.asked or _PENDING
        if not self._replies.empty():
            return self._replies.get()
        if not late:
            return _PENDING
        self._cloud.stop()
        self._replies = SimpleQueue()  # what came too late answers nothing
        return CallFailed("unreachable", "Deadline", "no answer in time: the call was cancelled")

    def _advance(self, answer: Any, at: float) -> None:
        try:
            self.step = step = self._steps.send(answer)
        except BaseException as end:
            self.broken = not isinstance(end, StopIteration)
            self.close()
            if self.broken:
                raise
            return
        match step:
            case Ask(names):
                self.request, self.asked, self.deadline = next(_REQUESTS), None, at + ASK_SECONDS
                self._ask(names, self.request)
            case SendProbe(within_seconds):
                self._probe, self.deadline = self._send_probe(at), at + within_seconds
            case Start():
                self.deadline = at + DEADLINE_SECONDS[Ready]
                self._cloud.start()
            case _:
                self.deadline = at + DEADLINE_SECONDS[type(step)]
                self._cloud.send(step)
