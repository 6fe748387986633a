"""The check before a batch: the broker is asked by name, then a probe goes its way and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from client_device_pruner.config.emqx import Access
from client_device_pruner.decisions.guards import Hold
from client_device_pruner.greengrass.link import Probe
from client_device_pruner.presence.client_list import Answer, Asked, ClientList, ListFailed
from client_device_pruner.pruning.core import Core
from client_device_pruner.pruning.preflight import ASK_SECONDS, PreflightCheck
from fakes.client_list import FakeClientLists
from fakes.clock import FakeClock

ACCESS = Access("http://127.0.0.1:18083/api/v5", "pruner", "secret", "")


class Trial:
    """A check between a fake broker and a probe that comes back when it is told to."""

    def __init__(self, directory: Path, *, listed: bool = False) -> None:
        self.clock = FakeClock()
        self.core = Core(directory, "core-1", self.clock, publish=lambda *_: True, publish_to_iot_core=lambda *_: True)
        self.lists = FakeClientLists(self._answer, self.clock.monotonic)
        self.access: Access | None = ACCESS
        self.sent: list[Probe] = []
        self.check = PreflightCheck(self.core, cast("Any", self), self.lists, lambda: self.access)
        if listed:
            self.core.presence.use_list(ACCESS)
            self.core.presence.take_list(ClientList(frozenset({"mqtt-bridge-1"}), 1.0, 2.0))

    def _answer(self, answer: Answer) -> None:
        assert isinstance(answer, Asked | ListFailed)
        self.check.answered(answer, self.clock.now)

    def send_extra(self, at: float) -> Probe:
        """See `Link`."""
        self.sent.append(Probe("extra", at, returned=False))
        return self.sent[-1]

    def begin(self, *names: str) -> None:
        """Begin a check."""
        self.check.begin(names, self.clock.now)

    def poll(self) -> tuple[bool, Hold | None]:
        """Look whether it is over."""
        return self.check.poll(self.clock.now)


def test_it_is_over_when_its_own_probe_has_come_back(tmp_path: Path) -> None:
    """Not before; and each check sends another one."""
    trial = Trial(tmp_path)
    for _time in range(2):
        trial.begin("pump-7")
        assert trial.poll() == (False, None)
        trial.sent[-1].returned = True
        assert trial.poll() == (True, None)
    assert len(trial.sent) == 2
    assert not trial.lists.asked


@pytest.mark.parametrize("listed", [False, True])
def test_what_does_not_come_in_time_holds(tmp_path: Path, listed: bool) -> None:
    """The probe within one interval, in which two heartbeats would come; the broker's answer within two minutes."""
    trial = Trial(tmp_path, listed=listed)
    trial.lists.held = True
    trial.begin("pump-7")
    trial.clock.advance((ASK_SECONDS if listed else 60.0) - 1.0)
    assert trial.poll() == (False, None)
    assert trial.check.deadline == trial.clock.now + 1.0

    trial.clock.advance(1.0)
    over, hold = trial.poll()

    assert over
    assert hold is not None
    assert hold.guard == "notObserving"


def test_with_the_list_in_use_the_broker_is_asked_first(tmp_path: Path) -> None:
    """Who it names counts as sighted; the probe follows the answer, so that what was heard meanwhile counts."""
    trial = Trial(tmp_path, listed=True)
    trial.lists.held = True
    trial.lists.connected = {"pump-7"}
    trial.core.presence.watched.update({"pump-7", "pump-8"})
    trial.begin("pump-7", "pump-8")
    assert trial.lists.asked == [("pump-7", "pump-8")]
    assert not trial.sent

    trial.lists.release()
    trial.sent[-1].returned = True

    assert trial.poll() == (True, None)
    assert trial.core.presence.sighted_watched == ["pump-7"]


def test_a_broker_that_does_not_say_holds(tmp_path: Path) -> None:
    """Its failure is the reason; without access, that is."""
    trial = Trial(tmp_path, listed=True)
    trial.lists.failure = "it answered 500"
    trial.begin("pump-7")
    over, hold = trial.poll()
    assert over
    assert hold is not None
    assert "it answered 500" in hold.reason

    trial.access = None
    trial.begin("pump-7")
    assert trial.poll()[1] is not None
    assert not trial.sent


def test_an_answer_to_an_earlier_check_is_dropped(tmp_path: Path) -> None:
    """It says nothing of the devices of this one."""
    trial = Trial(tmp_path, listed=True)
    trial.lists.held = True
    trial.begin("pump-7")
    trial.begin("pump-8")
    trial.check.answered(ListFailed(1, "late"), trial.clock.now)
    assert trial.poll() == (False, None)

    trial.lists.release()
    trial.sent[-1].returned = True
    assert trial.poll() == (True, None)
