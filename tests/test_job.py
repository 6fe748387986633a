"""A job takes its steps one after another, each to its end or its deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from client_device_pruner.cloud_worker import (
    DEADLINE_SECONDS,
    Batch,
    Batched,
    CallFailed,
    Listed,
    ListPage,
    Ready,
    Request,
)
from client_device_pruner.cycle import Check, Start, Step, Steps
from client_device_pruner.job import Job
from client_device_pruner.model import Hold

LIST = ListPage(1)
BATCH = Batch(2, "disassociate", ("a",), 0.0)


class Worker:
    """A child that keeps what is asked of it."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def start(self) -> None:
        """See `job.Worker`."""
        self.did.append("start")

    def send(self, request: Request) -> None:
        """See `job.Worker`."""
        self.did.append(request)

    def kill(self) -> None:
        """See `job.Worker`."""
        self.did.append("kill")

    def stop(self) -> None:
        """See `job.Worker`."""
        self.did.append("stop")


class Moment:
    """A check in the moment that ends when it is told to."""

    def __init__(self) -> None:
        self.outcome: tuple[bool, Hold | None] = (False, None)

    def poll(self, _at: float) -> tuple[bool, Hold | None]:
        """See `job.MomentCheck`."""
        return self.outcome


class Trial:
    """A job of given steps; `answers` is what they were sent."""

    def __init__(self, *steps: Step) -> None:
        self.answers: list[Any] = []
        self.worker = Worker()
        self.moment = Moment()
        self.closed = False
        self.job = Job(self._steps(steps), self.worker, lambda _check, _at: self.moment)

    def _steps(self, steps: tuple[Step, ...]) -> Steps:
        try:
            for step in steps:
                self.answers.append((yield step))
        finally:
            self.closed = True


def test_steps_follow_one_another() -> None:
    """Each answer leads to the next step; after the last the child is stopped."""
    trial = Trial(Start(), LIST, BATCH)
    answers = (Ready(), Listed(1, (), None), Batched(2, ()))
    trial.job.begin(0.0)
    for answer in answers:
        assert not trial.job.over
        trial.job.reply(answer, 1.0)

    assert trial.worker.did == ["start", LIST, BATCH, "stop"]
    assert trial.answers == list(answers)
    assert trial.job.over


@pytest.mark.parametrize(("step", "kind"), [(Start(), Ready), (LIST, ListPage), (BATCH, Batch)])
def test_past_its_deadline_a_child_is_killed(step: Step, kind: type[Any]) -> None:
    """The step is answered by a failure after which the call may have been carried out."""
    trial = Trial(step)
    trial.job.begin(10.0)
    trial.job.tick(10.0 + DEADLINE_SECONDS[kind])
    assert not trial.job.over

    trial.job.tick(10.1 + DEADLINE_SECONDS[kind])

    (answer,) = trial.answers
    assert isinstance(answer, CallFailed)
    assert answer.kind == "unreachable"
    assert trial.worker.did[-2:] == ["kill", "stop"]


def test_an_answer_to_nothing_is_dropped() -> None:
    """A late or repeated answer does not answer the next request."""
    trial = Trial(LIST, BATCH)
    trial.job.begin(0.0)
    trial.job.reply(Listed(1, (), None), 1.0)
    trial.job.reply(Listed(1, (), None), 1.0)

    assert len(trial.answers) == 1
    assert trial.job.batch_in_flight


def test_a_child_that_ends_answers_whatever_was_asked() -> None:
    """A failure without a request's id is one of the request at hand."""
    trial = Trial(LIST)
    trial.job.begin(0.0)
    gone = CallFailed(None, "crashed", "1", "gone")
    trial.job.reply(gone, 1.0)

    assert trial.answers == [gone]


@pytest.mark.parametrize("hold", [None, Hold("source:emqx", "no voucher", "wait")])
def test_a_check_is_polled_until_it_is_over(hold: Hold | None) -> None:
    """What the child says meanwhile changes nothing; the outcome answers the step."""
    trial = Trial(Check(frozenset({1})), BATCH)
    trial.job.begin(0.0)
    trial.job.tick(1_000.0)
    trial.job.reply(CallFailed(None, "crashed", "1", "gone"), 1_000.0)
    assert trial.answers == []

    trial.moment.outcome = (True, hold)
    trial.job.tick(1_001.0)

    assert trial.answers == [hold]
    assert trial.job.batch_in_flight


def test_an_end_closes_the_steps_and_stops_the_child() -> None:
    """Nothing happens afterwards."""
    trial = Trial(LIST)
    trial.job.begin(0.0)
    trial.job.end()
    trial.job.reply(Listed(1, (), None), 1.0)
    trial.job.tick(1e9)

    assert trial.closed
    assert trial.answers == []
    assert trial.worker.did == [LIST, "stop"]


def test_a_step_that_raises_ends_the_job() -> None:
    """The child does not outlive it."""

    def steps() -> Steps:
        yield LIST
        raise ValueError("no")

    worker = Worker()
    moment: Callable[..., Moment] = lambda *_: Moment()  # noqa: E731 - a fake in one line
    job = Job(steps(), worker, moment)
    job.begin(0.0)
    with pytest.raises(ValueError, match="no"):
        job.reply(Listed(1, (), None), 1.0)

    assert job.over
    assert worker.did == [LIST, "stop"]
