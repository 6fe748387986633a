"""Guards: what holds is said once when it begins, and once when it ends."""

from __future__ import annotations

from typing import Any

import pytest

from client_device_pruner.guards import Guards
from client_device_pruner.model import Hold

DENIED = Hold("accessDenied", "the cloud refused", "grant it")
APPROVAL = Hold("approval", "4 of 5 are due", "approve", "p1")


class Said(list[tuple[str, dict[str, Any]]]):
    """The events so far."""

    def __call__(self, kind: str, **data: Any) -> None:
        """Keep an event."""
        self.append((kind, data))

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Which event about which guard."""
        return [(kind, data["guard"]) for kind, data in self]


@pytest.fixture
def said() -> Said:
    """The events."""
    return Said()


@pytest.fixture
def guards(said: Said) -> Guards:
    """Guards that do not hold yet."""
    return Guards(said)


def test_a_guard_is_said_once(guards: Guards, said: Said) -> None:
    """The same guard again, with another figure, is not said again, but its figure is kept."""
    guards.hold(DENIED)
    guards.hold(Hold("accessDenied", "refused twice", "grant it"))
    assert said == [("held", {"guard": "accessDenied", "reason": "the cloud refused", "remedy": "grant it"})]
    assert guards.in_force[0].reason == "refused twice"
    assert guards.holds("accessDenied")


def test_its_end_is_said_with_the_reason(guards: Guards, said: Said) -> None:
    """Why it no longer holds, or why it did."""
    guards.hold(DENIED)
    guards.release("accessDenied", "the call succeeded")
    guards.hold(DENIED)
    guards.release("accessDenied")
    assert [data["reason"] for kind, data in said if kind == "released"] == ["the call succeeded", "the cloud refused"]
    assert not guards.holds("accessDenied")


def test_the_end_of_what_does_not_hold_is_not_said(guards: Guards, said: Said) -> None:
    """There is nothing to tell."""
    guards.release("list")
    assert said == []


def test_another_plan_is_said_again(guards: Guards, said: Said) -> None:
    """A plan that grew has a new id, which people need to approve it."""
    guards.hold(APPROVAL)
    guards.hold(APPROVAL)
    guards.hold(Hold("approval", "5 of 5 are due", "approve", "p2"))
    assert [data["plan"] for _, data in said] == ["p1", "p2"]


def test_an_expected_guard_holds_without_a_word(guards: Guards, said: Said) -> None:
    """It is said when it is said to hold, and its end is told in any case."""
    guards.expect(DENIED)
    assert guards.holds("accessDenied")
    assert said == []
    guards.hold(DENIED)
    guards.hold(DENIED)
    guards.release("accessDenied")
    assert said.kinds == [("held", "accessDenied"), ("released", "accessDenied")]
    guards.expect(DENIED)
    guards.release("accessDenied")
    assert said.kinds[2:] == [("released", "accessDenied")]


def test_expecting_what_was_said_does_not_say_it_again(guards: Guards, said: Said) -> None:
    """A guard that holds and is said stays so."""
    guards.hold(DENIED)
    guards.expect(DENIED)
    guards.hold(DENIED)
    assert said.kinds == [("held", "accessDenied")]


def test_a_plan_ends_the_guards_it_does_not_name(guards: Guards, said: Said) -> None:
    """Guards of a plan are decided anew in each cycle; the others stand until what they are about has changed."""
    guards.hold(DENIED)
    guards.planned([APPROVAL, Hold("maxPerCycle", "many", "wait")])
    guards.planned([Hold("maxPerCycle", "many", "wait")])
    assert said.kinds == [
        ("held", "accessDenied"),
        ("held", "approval"),
        ("held", "maxPerCycle"),
        ("released", "approval"),
    ]
    assert {held.guard for held in guards.in_force} == {"accessDenied", "maxPerCycle"}


def test_sources_and_plans_do_not_hold_everything(guards: Guards) -> None:
    """Only the others stand in the way of whatever is due."""
    for guard in ("approval", "outage", "maxPerCycle", "maxPercentPerDay", "source:emqx"):
        guards.hold(Hold(guard, "why", "what"))
    assert not guards.standing
    for guard in ("list", "configuration", "accessDenied", "coreNotFound", "database", "instance"):
        guards.hold(Hold(guard, "why", "what"))
    assert [standing.guard for standing in guards.standing] == [
        "list",
        "configuration",
        "accessDenied",
        "coreNotFound",
        "database",
        "instance",
    ]


def test_what_held_the_last_moment_up_is_seen_until_a_cycle_gets_by(guards: Guards, said: Said) -> None:
    """Its source may vouch again by then: that is another matter, and ends nothing."""
    obstacle = Hold("source:emqx", "the self-test did not come back in the last moment", "the next cycle tries again")
    guards.planned([obstacle])
    guards.release("source:emqx")
    guards.planned([obstacle])
    assert list(guards.in_force) == [obstacle]
    assert not guards.standing
    assert said.kinds == [("held", "source:emqx")]
    guards.planned([])
    assert not guards.in_force
    assert said.kinds == [("held", "source:emqx"), ("released", "source:emqx")]
