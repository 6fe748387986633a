"""Wherever the process dies, nothing is forgotten, done twice, or beyond the budget, and all in time (I5, I6, I8)."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_device_pruner import cycle, pruning
from client_device_pruner.journal import Intent, Journal
from client_device_pruner.ledger import Ledger, set_meta, transaction
from client_device_pruner.model import Association
from client_device_pruner.policy import Budget, Verdict
from client_device_pruner.pruning import Pruning
from client_device_pruner.state_file import open_state
from desk import STEP_SECONDS, Death, Fuse, Site, mortal_connection

pytestmark = pytest.mark.timeout(600)  # some 500 deaths for each story

GONE = tuple(f"gone-{number}" for number in range(4))
ALIVE = ("alive-1", "alive-2")
DAY_SECONDS = 86_400.0
Story = Callable[[Path, Fuse], Site]
Patch = pytest.MonkeyPatch


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


def all_gone_in_order(site: Site) -> None:
    """Those who are gone were disassociated, once, within the budget and with a whole audit; nobody else was."""
    site.check_audit()
    assert set(ALIVE) <= site.cloud.associations.keys()
    assert {c.name for c in site.cloud.carried} == set(GONE)
    within_budget(site, percent=50, per_cycle=3)


@pytest.mark.parametrize("story", [prune, prune_with_lost_answers])
def test_wherever_it_dies_the_next_start_converges(tmp_path: Path, story: Story) -> None:
    """A death at each write, each call and each answer, one after another, harms nothing."""
    search(tmp_path, story, all_gone_in_order)


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


def taken_back(site: Site) -> None:
    """Who showed life in the last moment is associated, and the audit says how that came."""
    site.check_audit()
    assert {*ALIVE, GONE[0]} <= site.cloud.associations.keys()
    restored = site.rows("SELECT name, restored_by FROM disassociations WHERE restored_by IS NOT NULL")
    assert restored in ([(GONE[0], "lastMoment")], []), restored
    assert len(restored) == sum(c.name == GONE[0] for c in site.cloud.carried)


def test_a_sign_of_life_in_the_last_moment_outlives_a_death(tmp_path: Path) -> None:
    """A device that came back between check and confirmation is associated again, wherever the process dies."""
    search(tmp_path, return_in_the_last_moment, taken_back)


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
        # Whatever is open is settled by the cycles that come, if only they live to do it.
        site.cloud.failing.clear()
        fuse.deadly = frozenset()
        site.run(1_200)
        site.stop()
        site.check_audit()
        assert set(ALIVE) <= site.cloud.associations.keys()
        within_budget(site, percent=limits["maxPercentPerDay"], per_cycle=limits["maxPerCycle"])


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
    gone_in_time(threshold, notice, interval, lost_at, shifts)


def gone_in_time(threshold: int, notice: int, interval: int, lost_at: int, shifts: list[float]) -> None:
    """Lose a device so many minutes after the first cycle, and hold its end against the source's clock."""
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


def within_budget(site: Site, *, percent: float, per_cycle: int) -> None:
    """Hold what was carried out against the limits, by window and by cycle; no window is shorter than a day."""
    used = Counter(carried.window for carried in site.cloud.carried)
    most = {window: math.ceil(site.cloud.bases[window] * percent / 100) for window in used}
    assert all(used[window] <= most[window] for window in used), f"{used}, {most} allowed"
    assert max(used, default=0) <= site.clock.now // DAY_SECONDS
    per_id = Counter(row[0] for row in site.rows("SELECT cycle_id FROM disassociations"))
    assert all(number <= per_cycle for number in per_id.values()), f"{per_id}, {per_cycle} a cycle allowed"


def test_a_death_within_a_commit_loses_all_of_it_or_nothing(tmp_path: Path) -> None:
    """I6: wherever a commit dies, the file holds the clocks' credit and the signs of life as before, or as after."""
    committed_whole(tmp_path)


def committed_whole(directory: Path) -> None:
    """Commit a ledger in which much has changed, dying at each statement; look at what the file holds then."""
    begun = directory / "begun.db"
    with closing(open_state(begun, "core-1")[0]) as connection:
        ledger = Ledger(connection, 0.0, lambda: 0.0)
        ledger.adopt([("emqx", "emqx a", 180.0)], 0.0)
        ledger.reconcile([Association(name, 1.0) for name in (*GONE, *ALIVE)], 0.0)
        ledger.sources["emqx"].clock.vouch(0.0)
        ledger.commit(0.0)

    def held_after(fuse: Fuse) -> list[str]:
        path = directory / f"{min(fuse.deadly, default=0)}.db"
        shutil.copy(begun, path)
        connection = mortal_connection(path, fuse, isolation_level=None)
        connection.row_factory = sqlite3.Row
        ledger = Ledger(connection, 0.0, lambda: 0.0)
        ledger.adopt([("emqx", "emqx a", 180.0)], 0.0)
        for at in (0.0, 60.0, 120.0, 180.0):
            ledger.sources["emqx"].clock.vouch(at)
        ledger.left(GONE[0], 150.0)
        ledger.alive(ALIVE[0], 170.0)
        ledger.announce("stranger")
        ledger.reconcile([Association(name, 1.0) for name in (*GONE[:-1], *ALIVE)], 180.0)
        with contextlib.suppress(Death):
            assert ledger.commit(180.0)
        sqlite3.Connection.close(connection)
        with closing(sqlite3.connect(path)) as plain:
            return list(plain.iterdump())

    whole = Fuse()
    after = held_after(whole)
    before = held_after(Fuse(frozenset({1})))
    assert before != after
    assert whole.passed[-1] == "committed"
    for number, label in enumerate(whole.passed, 1):
        held = held_after(Fuse(frozenset({number})))
        assert held == (after if number == len(whole.passed) else before), f"a part is kept, dying at {label!r}"


# Bugs planted one at a time: the component passes each of these trials, and with the bug fails it


def budget_is_not_persisted(patch: Patch) -> None:
    """A restart forgets what the day's budget has been used for."""
    real = Journal.budget
    known: list[sqlite3.Connection] = []

    def planted(self: Journal, associated: int, running_seconds: float) -> Budget:
        if self.connection not in known:
            known.append(self.connection)
            with transaction(self.connection) as write:
                set_meta(write, budget={"number": -1})
        return real(self, associated, running_seconds)

    patch.setattr(Journal, "budget", planted)


def open_intents_are_forgotten(patch: Patch) -> None:
    """A restart knows nothing of what was begun."""
    intend, real = Journal.intend, Journal.open_intents
    own: list[tuple[sqlite3.Connection, int]] = []

    def intended(self: Journal, *arguments: Any, **named: Any) -> tuple[Intent, ...]:
        intents = intend(self, *arguments, **named)
        own.extend((self.connection, intent.intent_id) for intent in intents)
        return intents

    patch.setattr(Journal, "intend", intended)
    patch.setattr(
        Journal, "open_intents", lambda self: tuple(i for i in real(self) if (self.connection, i.intent_id) in own)
    )


def confirmed_without_listing(patch: Patch) -> None:
    """What was asked for is taken for done, whether it is still listed or not."""
    patch.setattr(cycle, "_is_same", lambda _listed, _intended: False)


def last_moment_is_not_journalled(patch: Patch) -> None:
    """That a device in flight showed life is kept in memory only."""
    patch.setattr(Pruning, "_heed_begun", lambda _self, _name: True)


def credit_is_committed_first(patch: Patch) -> None:
    """The clocks' credit reaches the file before the signs of life."""
    real = Ledger.commit

    def planted(self: Ledger, at: float) -> bool:
        if self.connection is not None:
            with transaction(self.connection) as write:
                rows = [(r.clock.credit_seconds, r.source_id) for r in self.sources.values()]
                write.executemany("UPDATE sources SET credit_seconds = ? WHERE id = ?", rows)
        return real(self, at)

    patch.setattr(Ledger, "commit", planted)


def cycles_are_rare(patch: Patch) -> None:
    """The next cycle comes after three intervals."""
    patch.setattr(pruning, "next_delay_seconds", lambda now, *_jitter, **_named: 3.0 * now.check_interval_seconds)


def notice_begins_anew(patch: Patch) -> None:
    """Each cycle marks what is marked again."""
    real = cycle.Cycle._judge

    def planted(self: cycle.Cycle) -> list[Verdict]:
        for name in self.watch.ledger.devices:
            self.watch.ledger.set_mark(name, None)
        return real(self)

    patch.setattr(cycle.Cycle, "_judge", planted)


class At(Fuse):
    """Dies where a label passes for the first time."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label

    def point(self, label: str) -> None:
        """Pass, or die there."""
        if label == self._label and label not in self.passed:
            self.deadly = frozenset({len(self.passed) + 1})
        super().point(label)


Trial = Callable[[Path], None]


def dying_at(label: str, story: Story, check: Callable[[Site], None]) -> Trial:
    """A trial: tell a story in which the process dies at a label, and check how it ended."""
    return lambda directory: check(ended(story(directory, At(label))))


def in_time(_directory: Path) -> None:
    """A trial: a device goes a little before a cycle, and has to be gone in time."""
    gone_in_time(threshold=10, notice=8, interval=10, lost_at=9, shifts=[0.5])


PLANTED: tuple[tuple[Callable[[Patch], None], Trial], ...] = (
    (budget_is_not_persisted, dying_at("disassociate answered", prune, all_gone_in_order)),
    (open_intents_are_forgotten, dying_at("disassociate carried out", prune, all_gone_in_order)),
    (confirmed_without_listing, dying_at("disassociate about to be sent", prune, all_gone_in_order)),
    (last_moment_is_not_journalled, dying_at("disassociate answered", return_in_the_last_moment, taken_back)),
    (credit_is_committed_first, committed_whole),
    (cycles_are_rare, in_time),
    (notice_begins_anew, in_time),
)


@pytest.mark.parametrize(("bug", "trial"), PLANTED, ids=[bug.__name__ for bug, _trial in PLANTED])
def test_a_trial_catches_the_bug(
    bug: Callable[[Patch], None], trial: Trial, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The component passes the trial; with the bug planted it fails."""
    for name in ("without", "with"):
        (tmp_path / name).mkdir()
    trial(tmp_path / "without")
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        trial(tmp_path / "with")
