"""Wherever the process dies, nothing is forgotten, done twice, or beyond the budget (I5, I6)."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_device_pruner.pruning import cycle
from fakes.core_device import CoreDevice, Fuse

GONE = tuple(f"gone-{number}" for number in range(4))
ALIVE = ("alive-1", "alive-2")
DAY_SECONDS = 86_400.0
Story = Callable[[Path, Fuse], CoreDevice]
Check = Callable[[CoreDevice], None]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches of two, so that a cycle has several; what is there already need not be collected at each death."""
    monkeypatch.setattr(cycle, "BATCH", 2)
    gc.freeze()
    yield
    gc.unfreeze()


def lose_devices(directory: Path, fuse: Fuse, **more: Any) -> CoreDevice:
    """Four of six devices go; a cycle may take three of them, a day three."""
    limits = {"maxPerCycle": 3, "maxPercentPerDay": 50, "approvalPercent": 100}
    core = CoreDevice(directory, fuse, limits=limits, **more)
    core.cloud.associate(*GONE, *ALIVE)
    core.start()
    core.connect(*GONE, *ALIVE)
    # What matters begins when they are about to be marked.
    fuse.armed = False
    core.run_until(lambda: core.of_type("cycle"), 3_600)
    for name in GONE:
        core.disconnect(name)
        core.run(30)
    core.run(1_000)
    fuse.armed = True
    return core


def until_all_are_gone(core: CoreDevice) -> CoreDevice:
    """Let days pass until all are gone and confirmed; the process sleeps through most of each."""

    def gone() -> bool:
        return not set(GONE) & core.cloud.associations.keys()

    for _day in range(5):
        core.run(3_600)
        if gone():
            break
        core.world.sleep(DAY_SECONDS)
    assert gone(), f"forgotten: {core.cloud.associations}, {core.guards()}"
    core.run(1_300)
    return core


def prune_with_lost_answers(directory: Path, fuse: Fuse) -> CoreDevice:
    """All four go, over two days and more: of the first batch the answer is lost, of the second the call."""
    core = lose_devices(directory, fuse)
    core.cloud.fail("disassociate", "unreachable", carried_out=True)
    core.cloud.fail("disassociate", "unreachable")
    return until_all_are_gone(core)


def all_gone_in_order(core: CoreDevice) -> None:
    """Those that are gone were disassociated, once, within the budget and with a whole audit; no other was."""
    core.check_audit()
    assert set(ALIVE) <= core.cloud.associations.keys()
    assert {carried.name for carried in core.cloud.carried} == set(GONE)
    within_budget(core, percent=50, per_cycle=3)


def within_budget(core: CoreDevice, *, percent: float, per_cycle: int) -> None:
    """Hold what was carried out against the limits: by window, of which none is shorter than a day, and by cycle."""
    day = f"CAST(intended_running_seconds / {DAY_SECONDS} AS INT)"
    windows = core.select(f"SELECT {day}, count(*) FROM disassociations WHERE outcome != 'refused' GROUP BY 1")  # noqa: S608
    most = math.ceil(6 * percent / 100)
    assert max((number for _day, number in windows), default=0) <= most, f"{windows}, {most} allowed"
    assert max((window for window, _number in windows), default=0) <= core.clock.now // DAY_SECONDS
    cycles = core.select("SELECT count(*) FROM disassociations GROUP BY cycle_id")
    assert max((number for (number,) in cycles), default=0) <= per_cycle, f"{cycles}, {per_cycle} allowed"


def return_in_flight(directory: Path, fuse: Fuse) -> CoreDevice:
    """A device connects while the call that disassociates it is under way, and stays."""
    core = lose_devices(directory, fuse)

    def connect_meanwhile(label: str) -> None:
        calls = core.cloud.calls
        if label == "disassociate carried out" and GONE[0] in calls[-1].names and GONE[0] not in core.connected:
            core.connect(GONE[0])
        fuse.point(label)

    core.cloud.point = connect_meanwhile
    # Where the first attempt died, it comes after the others, and the day's budget may be used up.
    core.run_until(lambda: GONE[0] in core.connected and GONE[0] in core.cloud.associations, 90_000, "it stayed away")
    core.run(1_300)
    return core


def taken_back(core: CoreDevice) -> None:
    """What was sighted in flight is associated, and the audit says how that came."""
    core.check_audit()
    assert {*ALIVE, GONE[0]} <= core.cloud.associations.keys()
    restored = core.select("SELECT name, restored_by FROM disassociations WHERE restored_by IS NOT NULL")
    # A death between the sighting and the note of it makes a return of it.
    assert restored in ([(GONE[0], "lastMoment")], [(GONE[0], "return")]), restored


def restore(directory: Path, fuse: Fuse) -> CoreDevice:
    """One device returns by itself and one is asked for, while the process may die."""
    fuse.armed = False
    core = lose_devices(directory, fuse)
    fuse.armed = False
    core.run_until(lambda: len(core.of_type("disassociated")) >= 3, 7_200)
    fuse.armed = True
    core.request("restore", GONE[1])
    core.connect(GONE[0])
    core.run_until(lambda: {GONE[0], GONE[1]} <= core.cloud.associations.keys(), 7_200, "not restored")
    core.run(300)
    return core


def both_restored(core: CoreDevice) -> None:
    """What is to be associated again is, once, and is noted."""
    core.check_audit()
    restored = dict(core.select("SELECT name, restored_by FROM disassociations WHERE restored_by IS NOT NULL"))
    assert restored == {GONE[0]: "return", GONE[1]: "command"}
    assert not core.select("SELECT * FROM requests")
    assert not core.select("SELECT * FROM disassociations WHERE restore_for IS NOT NULL AND restored_by IS NULL")


@pytest.mark.parametrize(
    ("story", "check"),
    [(prune_with_lost_answers, all_gone_in_order), (return_in_flight, taken_back), (restore, both_restored)],
)
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.timeout(1200)  # some twenty seconds on an idle machine
def test_wherever_it_dies_the_next_start_converges(tmp_path: Path, story: Story, check: Check, thorough: bool) -> None:
    """A death at each write, call and answer harms nothing; in the long search, at each statement within each write."""
    whole = told(tmp_path / "plain", story, Fuse(every_statement=thorough), check, "without a death")
    assert {"COMMIT", "committed", "child started", "answered"} <= set(whole.passed)
    for number, label in enumerate(whole.passed, 1):
        place, fuse = tmp_path / str(number), Fuse(frozenset({number}), thorough)
        told(place, story, fuse, check, f"died at point {number} of {len(whole.passed)}: {label!r}")
        shutil.rmtree(place)


def told(directory: Path, story: Story, fuse: Fuse, check: Check, when: str) -> Fuse:
    """Tell a story, check how it ended, and say where it went wrong."""
    directory.mkdir()
    try:
        core = story(directory, fuse)
        core.stop()
        check(core)
    except (AssertionError, KeyError) as error:
        raise AssertionError(f"{when}: {error!r}") from error
    assert core.deaths == len(fuse.deadly), when
    return fuse


@given(st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_budgets_hold_whatever_dies_fails_and_sleeps(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """I5, I6: with random limits, deaths, failures of the cloud, restarts and days, no budget is ever exceeded."""
    percent = data.draw(st.sampled_from([0, 1, 10, 34, 50, 100]), "percent a day")
    per_cycle = data.draw(st.integers(0, 4), "a cycle")
    limits = {"maxPerCycle": per_cycle, "maxPercentPerDay": percent, "approvalPercent": 100}
    fuse = Fuse(data.draw(st.frozensets(st.integers(10, 150), max_size=6), "deaths"))
    core = CoreDevice(tmp_path_factory.mktemp("core"), fuse, limits=limits)
    core.cloud.associate(*GONE, *ALIVE)
    core.start()
    core.connect(*GONE, *ALIVE)
    core.run(1_000)
    core.disconnect(*GONE)
    for _day in range(data.draw(st.integers(1, 4), "days")):
        for _event in range(data.draw(st.integers(0, 3), "events")):
            match data.draw(st.sampled_from(["lost", "dropped", "throttled", "refused", "restart", "run"])):
                case "restart":
                    core.stop()
                case "refused":
                    core.cloud.refusing = dict.fromkeys(data.draw(st.sets(st.sampled_from(GONE))), "No")
                case "throttled":
                    core.cloud.fail("disassociate", "throttled")
                case "lost" | "dropped" as how:
                    core.cloud.fail("disassociate", "unreachable", carried_out=how == "lost")
            core.run(data.draw(st.sampled_from([600, 1_800, 3_600])))
        core.world.sleep(DAY_SECONDS * data.draw(st.sampled_from([0.1, 1.0])))
    # Whatever is open is settled by the cycles that come, if only they live to do it.
    core.cloud.faults.clear()
    fuse.deadly = frozenset()
    core.run(1_800)
    core.stop()
    core.check_audit()
    assert set(ALIVE) <= core.cloud.associations.keys()
    within_budget(core, percent=percent, per_cycle=per_cycle)
