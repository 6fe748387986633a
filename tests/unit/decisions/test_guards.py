"""The guards."""

from __future__ import annotations

from typing import Any

from client_device_pruner.config.settings import parse
from client_device_pruner.decisions.guards import Budget, Guards, Hold, Plan, day_allowance, lost_together, plan
from client_device_pruner.decisions.policy import Evidence, State, Verdict
from fakes.site import Site


def _due(*names: str) -> list[Verdict]:
    return [Verdict(name, State.DUE, True, 100.0 - at, 50.0, Evidence.CLIENT_LIST) for at, name in enumerate(names)]


def _plan(due: list[Verdict], **more: Any) -> Plan:
    given: dict[str, Any] = {"associated": 100, "budget": Budget(100, 0, 3600.0), "approved": (), "plan_id": "p"}
    return plan(due, settings=parse({}), **given | more)


def test_what_the_cloud_did_not_take_off_comes_last() -> None:
    """A device that is refused again and again does not use up what the others need."""
    made = _plan(_due("refused", "dead"), budget=Budget(10, 0, 3600.0), unsuccessful={"refused"})
    assert [verdict.name for verdict in made.take] == ["dead"]


def test_the_day_allowance_is_rounded_up() -> None:
    """A small core is not frozen; and 8.8 % of 375 are exactly 33."""
    assert day_allowance(3, parse({})) == 1
    assert day_allowance(375, parse({"limits": {"maxPercentPerDay": 8.8}})) == 33


def test_more_than_the_approval_percent_wait() -> None:
    """More than 3 due devices, and more than that share of the associated ones."""
    assert len(_plan(_due("a", "b", "c"), associated=3).waiting) == 0
    made = _plan(_due("a", "b", "c", "d"), associated=7)
    assert made.take == ()
    assert made.waiting == {"a", "b", "c", "d"}
    assert made.holds[0].plan == "p"
    assert len(_plan(_due("a", "b", "c", "d"), associated=8).waiting) == 0


def test_a_guard_is_said_once_and_when_it_ends() -> None:
    """And again only if another plan waits."""
    said: list[tuple[str, str]] = []
    guards = Guards(lambda kind, **data: said.append((kind, data["guard"])))
    guards.hold(Hold("approval", "4 due", "approve", "p1"))
    guards.hold(Hold("approval", "5 due", "approve", "p1"))
    guards.hold(Hold("approval", "6 due", "approve", "p2"))
    guards.planned([])
    assert said == [("held", "approval"), ("held", "approval"), ("released", "approval")]
    assert guards.standing == ()


def _together(site: Site) -> frozenset[str]:
    devices = list(site.presence.devices.associated())
    return lost_together(devices, site.settings, site.facts)


def test_devices_that_fall_silent_at_once_are_lost_together() -> None:
    """At least minDevices and minPercent of the seen ones, last seen within the window; who returns leaves."""
    site = Site()
    names = [f"pump-{number}" for number in range(6)]
    site.associate(*names, "never-seen")
    for _hour in range(3):
        for name in names:
            site.message(name)
        site.minutes(60)
    assert _together(site) == frozenset()
    for name in names[3:]:
        site.message(name)
    site.minutes(60)
    for name in names[3:]:
        site.message(name)
    site.minutes(61)
    assert _together(site) == set(names[:3])
    site.message(names[0])
    assert _together(site) == frozenset()


def test_hourly_speakers_are_no_loss() -> None:
    """Twenty healthy devices that speak each hour are silent no longer than usual (case 16)."""
    site = Site()
    names = [f"pump-{number}" for number in range(20)]
    site.associate(*names)
    for hour in range(30):
        for name in names:
            site.message(name)
        for _part in range(6):
            site.minutes(10)
            if hour > 1:
                assert _together(site) == frozenset()


def test_a_window_slides() -> None:
    """Devices lost one after the other, farther apart than the window, are no group."""
    site = Site()
    names = [f"pump-{number}" for number in range(4)]
    site.associate(*names)
    for name in names:
        site.message(name)
        site.minutes(11)
    site.days(3)
    assert _together(site) == frozenset()
