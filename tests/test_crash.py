"""The process may die at any instruction, and nothing is forgotten, done twice, or done beyond the budget (I5, I6)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner import cycle
from desk import STEP_SECONDS, Fuse, Site

GONE = tuple(f"gone-{number}" for number in range(4))
ALIVE = ("alive-1", "alive-2")
DAY_SECONDS = 86_400.0
Story = Callable[[Path, Fuse], Site]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two, so that a cycle has several; no log, which would be long."""
    monkeypatch.setattr(cycle, "BATCH", 2)
    monkeypatch.setattr(logging.getLogger("client_device_pruner"), "disabled", True)


def lose_devices(directory: Path, fuse: Fuse, **more: Any) -> Site:
    """Four of six devices go; a cycle may take three of them, a day three."""
    limits = {"maxPerCycle": 3, "maxPercentPerDay": 50, "approvalPercent": 100}
    site = Site(directory, fuse, limits=limits, **more)
    site.cloud.associate(*GONE, *ALIVE)
    site.connected = dict.fromkeys((*GONE, *ALIVE), 0)
    # What was never seen since it was associated is not missed: all have to be known before they go.
    site.run_until(lambda: site.rows("SELECT count(*) FROM devices WHERE seen") == [(6,)], 900)
    for name in GONE:
        site.disconnect(name)
        site.run(STEP_SECONDS)
    return site


def prune(directory: Path, fuse: Fuse) -> Site:
    """All four go, over two days and more: what a death leaves open uses budget all the same."""
    return until_all_are_gone(lose_devices(directory, fuse))


def until_all_are_gone(site: Site) -> Site:
    """Let days pass until all are gone and confirmed; the process sleeps through most of each."""

    def gone() -> bool:
        return not set(GONE) & site.cloud.associations.keys()

    for _day in range(5):
        site.run(480)
        if gone():
            break
        site.run(480)
        site.sleep(DAY_SECONDS)
    assert gone(), f"forgotten: {site.cloud.associations}, {site.guards()}"
    site.run(360)
    return site


def prune_with_lost_answers(directory: Path, fuse: Fuse) -> Site:
    """As above; the first batch's answer is lost after it was carried out, the second batch before."""
    site = lose_devices(directory, fuse)
    site.cloud.fail("disassociate", "unreachable", carried_out=True)
    site.cloud.fail("disassociate", "unreachable")
    return until_all_are_gone(site)


@pytest.mark.parametrize("story", [prune, prune_with_lost_answers])
def test_wherever_it_dies_the_next_start_converges(tmp_path: Path, story: Story) -> None:
    """A death at each write, each call and each answer, one after another, harms nothing."""

    def check(site: Site) -> None:
        site.check_audit()
        assert set(ALIVE) <= site.cloud.associations.keys()
        assert {c.name for c in site.cloud.carried} == set(GONE)
        within_budget(site, base=len(GONE) + len(ALIVE), percent=50, per_cycle=3)

    search(tmp_path, story, check)


def return_in_the_last_moment(directory: Path, fuse: Fuse) -> Site:
    """A device connects while the call that disassociates it is under way, and stays."""
    site = lose_devices(directory, fuse)

    def connect_meanwhile(operation: str, names: tuple[str, ...]) -> None:
        if operation == "disassociate" and GONE[0] in names and GONE[0] not in site.connected:
            site.connect(GONE[0])

    site.when_called = connect_meanwhile
    site.run(720)
    site.run_until(lambda: GONE[0] in site.cloud.associations, 1_200, "it was not associated again")
    site.run(300)
    return site


def test_a_sign_of_life_in_the_last_moment_outlives_a_death(tmp_path: Path) -> None:
    """A device that came back between check and confirmation is associated again, wherever the process dies."""

    def check(site: Site) -> None:
        site.check_audit()
        assert {*ALIVE, GONE[0]} <= site.cloud.associations.keys()
        restored = site.rows("SELECT name, restored_by FROM disassociations WHERE restored_by IS NOT NULL")
        assert restored in ([(GONE[0], "lastMoment")], []), restored
        assert len(restored) == sum(c.name == GONE[0] for c in site.cloud.carried)

    search(tmp_path, return_in_the_last_moment, check)


def restore(directory: Path, fuse: Fuse) -> Site:
    """One device returns by itself and one is asked for, while the process may die."""
    site = lose_devices(directory, fuse, restoreOnReturn=True)
    for _day in range(5):
        site.run(720)
        if len(site.cloud.carried) >= 3:
            break
        site.sleep(DAY_SECONDS)
    site.run(300)
    site.request("restore", {"names": [GONE[1]]})
    site.connect(GONE[0])
    site.run_until(lambda: {GONE[0], GONE[1]} <= site.cloud.associations.keys(), 6_000, "not restored")
    site.run(300)
    return site


def test_a_restore_outlives_a_death(tmp_path: Path) -> None:
    """What is to be associated again is, once, and is noted, wherever the process dies."""

    def check(site: Site) -> None:
        site.check_audit()
        restored = dict(site.rows("SELECT name, restored_by FROM disassociations WHERE restored_by IS NOT NULL"))
        # A sign of life that reached a process that died before it was settled restores as well.
        assert restored[GONE[0]] in {"return", "lastMoment"}
        assert restored[GONE[1]] == "command"
        assert not site.rows("SELECT * FROM requests")
        assert not site.rows("SELECT * FROM disassociations WHERE restore_for IS NOT NULL AND restored_by IS NULL")

    search(tmp_path, restore, check)


def search(directory: Path, story: Story, check: Callable[[Site], None]) -> None:
    """Tell the story once to count the points, and then once for each, dying there."""
    plain = directory / "plain"
    plain.mkdir()
    whole = Fuse()
    check_well(ended(story(plain, whole)), check, "without a death")
    assert len(whole.passed) > 100
    assert {"committed", "child started", "list answered", "disassociate carried out"} <= set(whole.passed)
    for number in range(1, len(whole.passed) + 1):
        place = directory / str(number)
        place.mkdir()
        fuse = Fuse(frozenset({number}))
        site = ended(story(place, fuse))
        assert site.deaths == 1, f"it did not die at point {number}"
        check_well(site, check, f"died at point {number}: {whole.passed[number - 1]!r}")


def ended(site: Site) -> Site:
    """The site after the component was told to end, which it may die of as well."""
    site.stop()
    return site


def check_well(site: Site, check: Callable[[Site], None], when: str) -> None:
    """Check how a story ended, and say where it went wrong."""
    try:
        check(site)
    except (AssertionError, KeyError) as error:
        raise AssertionError(f"{when}: {error!r}") from error


def within_budget(site: Site, *, base: int, percent: float, per_cycle: int) -> None:
    """Hold what was carried out against the limits, by window and by cycle."""
    used = Counter(carried.window for carried in site.cloud.carried)
    most = math.ceil(base * percent / 100)
    assert all(number <= most for number in used.values()), f"{used}, {most} a day allowed"
    per_id = Counter(row[0] for row in site.rows("SELECT cycle_id FROM disassociations"))
    assert all(number <= per_cycle for number in per_id.values()), f"{per_id}, {per_cycle} a cycle allowed"
