"""DESIGN's invariants hold over histories at random, driven through the component's public edges.

I5 and I6 do so in pruning/test_crash.py, wherever the process dies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_device_pruner.config.settings import parse
from client_device_pruner.decisions.guards import Budget, lost_together, plan
from client_device_pruner.decisions.policy import judge
from client_device_pruner.presence.devices import Device
from client_device_pruner.presence.facts import Facts
from fakes.plant import CHECK, DAY, FAULTS, GRACE, HOUR, KINDS, LIFE, NAMES, ON_DEVICES, SPEAKS, THRESHOLD, Step, plant


def histories(*, most: int) -> st.SearchStrategy[list[Step]]:
    """Steps, each with the minutes that pass before it and a number that says which device or how much."""
    operation = st.one_of(st.sampled_from(ON_DEVICES), st.sampled_from(FAULTS), st.sampled_from(LIFE))
    minutes = st.sampled_from([0.2, 1.0, 4.0, 15.0, 40.0, 90.0, 200.0])
    return st.lists(st.tuples(minutes, operation, st.integers(0, 9)), min_size=3, max_size=most)


def explore(strategy: st.SearchStrategy[Any], examples: int, check: Callable[[Any], None]) -> None:
    """Hold a check against so many examples, the same ones each time."""

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def checked(example: Any) -> None:
        check(example)

    checked()


def long(*arguments: object) -> Any:
    """Arguments of a search that takes minutes."""
    return pytest.param(*arguments, marks=pytest.mark.long)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("examples", "most"), [(6, 30), long(80, 60)])
def test_nobody_goes_that_is_there_or_was_just_heard(kind: str, examples: int, most: int) -> None:
    """I1, I2, I4: whatever is lost, doubled, late or restarted, no device goes that lives; no silence is made up."""

    def hold(history: list[Step]) -> None:
        with plant(kind) as site:
            # In the end a device that says nothing comes back unheard, and nobody else does.
            site.play([*history, (100.0, "settle", 0), (15.0, "unheard", 3)])
            site.run(4 * THRESHOLD + GRACE + 3 * CHECK)
            site.component.stop()
            site.compare_rows()
            assert not site.problems, site.problems

    explore(histories(most=most), examples, hold)


# --- I3: the wall clock decides nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("examples", "most"), [(3, 30), long(20, 60)])
def test_the_wall_clock_decides_nothing(kind: str, examples: int, most: int) -> None:
    """I3: the same history with other wall clocks gives the same decisions at the same times."""

    def hold(history: list[Step]) -> None:
        decisions = []
        for follows in (True, False):
            with plant(kind, wall_follows=follows) as site:
                site.play([*history, (30.0, "wall", 9), (10.0, "die", 1), (30.0, "wall", 0)])
                site.run(THRESHOLD + GRACE + 3 * CHECK)
                decisions.append(site.decisions())
        assert decisions[0] == decisions[1]

    explore(histories(most=most), examples, hold)


# --- I7: pure decisions -------------------------------------------------------------------------------------------

seconds = st.one_of(st.none(), st.floats(0, 400 * DAY))
devices = st.builds(
    Device,
    name=st.text("abc", min_size=1, max_size=3),
    seen_by=st.sampled_from(["", "message"]),
    silent_since=st.floats(0, 400 * DAY),
    unlisted_at=seconds,
    marked_at=seconds,
    longest_silence=st.floats(0, 100 * DAY),
    longest_before=st.floats(0, 100 * DAY),
    silence_window=st.integers(0, 3),
    messages=st.integers(0, 9),
    last_message=st.floats(0, 400 * DAY),
    session_since=seconds,
    then=st.one_of(st.none(), st.integers(-1, 5)),
)
facts = st.builds(
    Facts,
    observed_seconds=st.floats(0, 400 * DAY),
    sighted=st.frozensets(st.text("abc", min_size=1, max_size=3)),
    events_in_use=st.booleans(),
    count_in_use=st.booleans(),
    unnamed=st.one_of(st.none(), st.integers(-2, 6)),
    count_problem=st.sampled_from(["", "no count"]),
    list_in_use=st.booleans(),
    listed=st.one_of(st.none(), st.frozensets(st.text("abc", min_size=1, max_size=3))),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(devices, max_size=12, unique_by=lambda device: device.name), facts, st.randoms(use_true_random=False))
def test_decisions_are_pure(found: list[Device], known: Facts, random: Random) -> None:
    """I7: judged twice, in whatever order, all gets the same verdict, and nothing is changed by it."""
    configuration = parse({"massLoss": {"minDevices": 2, "minPercent": 1}})
    before = [replace(device) for device in found]

    def decisions(among: list[Device]) -> tuple[object, object, object]:
        verdicts = {device.name: judge(device, configuration, known) for device in among}
        together = lost_together(among, configuration, known)
        due = [verdict for verdict in verdicts.values() if verdict.gone]
        planned = plan(
            due,
            associated=len(among),
            settings=configuration,
            budget=Budget(len(among), 0, DAY),
            approved=(),
            plan_id="",
            lost_together=together,
        )
        return verdicts, together, planned

    first = decisions(found)
    shuffled = random.sample(found, len(found))
    assert decisions(shuffled) == first
    assert found == before
    for device in found:
        verdict = judge(device, configuration, known)
        assert not verdict.gone or (verdict.evidence and not known.is_present(device))


# --- I8: the dead go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("examples", "most"), [(3, 20), long(35, 40)])
def test_the_dead_go(kind: str, examples: int, most: int) -> None:
    """I8: whatever happened before, once all is well what is gone is disassociated in time."""

    def hold(history: list[Step]) -> None:
        with plant(kind) as site:
            # All were heard often enough before, so that there is evidence wherever there can be.
            site.run(8 * SPEAKS)
            site.play([(1.0, "die", 2), *history])
            site.settle()
            # Tools do no harm where they are named, or were there when a device left, or where nobody counts them.
            site.play([(20.0, "stranger", 0), (1.0, "stranger", 1), (15.0, "die", 1)])
            if kind == "events":
                site.play([(60.0, "leave", 1), (1.0, "stranger", 0)])
            site.run(6 * HOUR)
            component = site.component
            before = component.kept("presence")["observedSeconds"]
            patience = 4 * THRESHOLD
            site.run(patience + GRACE + 2.2 * CHECK + 4 * HOUR)
            assert component.kept("presence")["observedSeconds"] - before > patience + GRACE + 2.2 * CHECK
            left = {name for name in NAMES if name in component.cloud.associations} - site.alive
            verdicts = {row["name"]: row["verdict"] for row in component.rows("SELECT name, verdict FROM verdicts")}
            assert not left, [(name, verdicts.get(name)) for name in left]
            for event in component.happened("disassociated"):
                within = event.data["patienceSeconds"] + 3 * CHECK + 4 * HOUR
                assert event.data["silentSeconds"] <= within or event.at < site.world.now - patience, event

    explore(histories(most=most), examples, hold)
