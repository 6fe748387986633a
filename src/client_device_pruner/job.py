"""Runs the steps of a cycle or a restore: each step to its end or its deadline, beside the watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from client_device_pruner.cloud_worker import (
    DEADLINE_SECONDS,
    Batch,
    CallFailed,
    Ready,
    Reply,
    Request,
)
from client_device_pruner.cycle import Check, Start, Step, Steps
from client_device_pruner.model import Hold


class Worker(Protocol):
    """The child process that calls the cloud, as `cloud_worker.CloudWorker`."""

    def start(self) -> None:
        """Begin; `Ready` or `CallFailed` will be delivered."""

    def send(self, request: Request) -> None:
        """Send a request; its reply will be delivered."""

    def kill(self) -> None:
        """End it at once."""

    def stop(self) -> None:
        """End it, and wait until it is gone."""


class MomentCheck(Protocol):
    """A check in the moment, under way."""

    def poll(self, at: float) -> tuple[bool, Hold | None]:
        """Whether it is over, and what held it up if anything did."""


class Job:
    """One run of steps with a child process of its own; owned by the one thread.

    Args:
        steps: the generator.
        worker: its child, not yet started.
        check: begins a check in the moment.
    """

    def __init__(self, steps: Steps, worker: Worker, check: Callable[[Check, float], MomentCheck]) -> None:
        self._steps = steps
        self._worker = worker
        self._check = check
        self._awaited: int | None = None
        self._deadline = 0.0
        self._moment: MomentCheck | None = None
        self._batch: Batch | None = None
        self.over = False

    @property
    def batch_in_flight(self) -> bool:
        """Whether a batch call is under way."""
        return self._batch is not None and not self.over

    def begin(self, at: float) -> None:
        """Start the child and take the first step."""
        self._advance(None, at)

    def reply(self, reply: Reply, at: float) -> None:
        """Take what the child answered; an answer to nothing that is awaited is dropped."""
        if self.over or self._moment is not None:
            # If the child ended while nothing was asked of it, the next request will say so.
            return
        if reply.request_id in (self._awaited, None):
            self._advance(reply, at)

    def tick(self, at: float) -> None:
        """Look whether a check is over, or a deadline past."""
        if self.over:
            return
        if self._moment is not None:
            over, hold = self._moment.poll(at)
            if over:
                self._moment = None
                self._advance(hold, at)
        elif at > self._deadline:
            self._worker.kill()
            self._advance(
                CallFailed(self._awaited, "unreachable", "Deadline", "no answer in time: the call was given up"),
                at,
            )

    def end(self) -> None:
        """End the child; what was begun stays journalled and is settled by the next cycle."""
        if not self.over:
            self.over = True
            self._steps.close()
        self._worker.stop()

    def _advance(self, answer: Reply | Hold | None, at: float) -> None:
        self._batch = None
        try:
            step: Step = self._steps.send(answer)
        except BaseException as end:
            self.over = True
            self._worker.stop()
            if isinstance(end, StopIteration):
                return
            raise
        if isinstance(step, Check):
            self._moment = self._check(step, at)
            return
        if isinstance(step, Start):
            self._awaited, self._deadline = None, at + DEADLINE_SECONDS[Ready]
            self._worker.start()
            return
        self._awaited, self._deadline = step.request_id, at + DEADLINE_SECONDS[type(step)]
        self._batch = step if isinstance(step, Batch) else None
        self._worker.send(step)
