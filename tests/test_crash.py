"""The process may die at any instruction, and nothing is forgotten, done twice, or done beyond the budget (I5, I6)."""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_device_pruner import cycle
from desk import STEP_SECONDS, Fuse, Site

pytestmark = pytest.mark.timeout(600)  # some 500 deaths for each story

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


def some_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Limits from nothing to everything."""
    percents = st.sampled_from([0, 1, 10, 34, 50, 100])
    return {"maxPerCycle": draw(st.integers(0, 4)), "maxPercentPerDay": draw(percents), "approvalPercent": 100}


@given(st.data())
@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_budgets_hold_whatever_dies_fails_and_sleeps(data: st.DataObject) -> None:
    """I5, I6: with random limits, deaths, failures of the cloud, restarts and days, no budget is ever exceeded."""
    limits = data.draw(st.composite(some_settings)(), "limits")
    deadly = data.draw(st.frozensets(st.integers(50, 900), max_size=6), "deaths")
    with tempfile.TemporaryDirectory() as directory:
        fuse = Fuse(deadly)
        site = Site(Path(directory), fuse, limits=limits)
        site.cloud.associate(*GONE, *ALIVE)
        site.connected = dict.fromkeys((*GONE, *ALIVE), 0)
        site.run(400)
        for name in GONE:
            site.disconnect(name)
            site.run(STEP_SECONDS)
        for _day in range(data.draw(st.integers(1, 4), "days")):
            for _event in range(data.draw(st.integers(0, 3), "events")):
                step = data.draw(st.sampled_from(["lost", "dropped", "throttled", "refused", "restart", "run"]))
                if step == "restart":
                    site.stop()
                elif step == "refused":
                    site.cloud.refusing = dict.fromkeys(data.draw(st.sets(st.sampled_from(GONE))), "No")
                elif step != "run":
                    kind = "throttled" if step == "throttled" else "unreachable"
                    site.cloud.fail("disassociate", kind, carried_out=step == "lost")
                site.run(data.draw(st.sampled_from([180, 420, 900])))
            site.sleep(DAY_SECONDS * data.draw(st.sampled_from([0.1, 1.0])))
        # Whatever is open is settled by the cycles that come.
        site.cloud.failing.clear()
        site.run(1_200)
        site.stop()
        site.check_audit()
        assert set(ALIVE) <= site.cloud.associations.keys()
        percent, per_cycle = limits["maxPercentPerDay"], limits["maxPerCycle"]
        within_budget(site, base=len(GONE) + len(ALIVE), percent=percent, per_cycle=per_cycle)


@given(
    threshold=st.integers(3, 60),
    notice=st.integers(0, 30),
    interval=st.integers(5, 40),
    lost_at=st.integers(0, 90),
    shifts=st.lists(st.floats(0.0, 0.999), min_size=1, max_size=8),
)
@settings(max_examples=80, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_is_gone_goes_in_time(
    threshold: int, notice: int, interval: int, lost_at: int, shifts: list[float]
) -> None:
    """I8: within threshold, notice and 2.2 intervals of the source's clock, and the time of a cycle; not before."""
    minutes = {"offlineThreshold": f"{threshold}m", "noticePeriod": f"{notice}m", "checkInterval": f"{interval}m"}
    with tempfile.TemporaryDirectory() as directory:
        site = Site(Path(directory), None, **{**minutes, "noticePeriod": f"{notice}m" if notice else "0s"})
        chosen = itertools.cycle(shifts)
        site.jitter = lambda: next(chosen)
        site.cloud.associate("gone", "alive")
        site.connected = {"gone": 0, "alive": 0}
        site.run_until(lambda: site.of_type("cycle"), 4_000)
        site.connect("gone", "alive")
        site.run(120 + 60 * lost_at)
        site.disconnect("gone")
        site.step()

        def clock() -> float:
            assert site.component is not None
            return float(site.component.watch.ledger.sources["emqx"].clock.credit_seconds)

        lost = clock()
        site.run_until(lambda: site.cloud.carried, 60.0 * (threshold + notice + 3 * interval + 10))

        # The steps of the trial: a census a minute, and two that a check in the moment may wait for.
        cycle_seconds = 3 * STEP_SECONDS
        assert 60 * (threshold + notice) <= clock() - lost + STEP_SECONDS
        assert clock() - lost <= 60 * (threshold + notice + 2.2 * interval) + cycle_seconds
        site.stop()


def within_budget(site: Site, *, base: int, percent: float, per_cycle: int) -> None:
    """Hold what was carried out against the limits, by window and by cycle."""
    used = Counter(carried.window for carried in site.cloud.carried)
    most = math.ceil(base * percent / 100)
    assert all(number <= most for number in used.values()), f"{used}, {most} a day allowed"
    per_id = Counter(row[0] for row in site.rows("SELECT cycle_id FROM disassociations"))
    assert all(number <= per_cycle for number in per_id.values()), f"{per_id}, {per_cycle} a cycle allowed"
