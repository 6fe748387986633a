"""Bugs planted in the component, one at a time, and what notices each: the simulation, and the property tests.

The bugs stand in `tests/test_mutations.py`, with the history that shows each, and in `tests/test_crash.py`, with the
death or the clock that does. They need pytest's monkeypatch, so they cannot be told apart from the tests.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_core.simulation.devices import DAY
from local_core.simulation.world import Site, World

TESTS = Path(__file__).resolve().parents[3] / "tests"
SEEDS = 24
"""Sites that are searched at most for each bug."""


def searched(seed: int) -> Site:
    """A site of some months with faults and a short threshold: one weekly visit may fall into a gap, not two."""
    kind = ("both", "events", "messages", "rollCall")[seed % 4]
    return Site(seed, years=0.35, devices=16, kind=kind, offline_threshold="16d", lifetime_years=0.4)


@dataclass(frozen=True, slots=True)
class Planted:
    """A bug, and the property test that was written for it; it raises AssertionError where it notices the bug."""

    name: str
    plant: Callable[[Any], None]
    test: str
    notice: Callable[[], None]


def bugs() -> dict[str, Planted]:
    """All of them, by name."""
    histories, crashes = _tests("test_mutations"), _tests("test_crash")
    found = [
        Planted(
            case.bug.__name__,
            case.bug,
            f"test_history_catches_the_bug[{case.bug.__name__}]",
            lambda case=case: case.history(histories.Site(kind=case.kind, strict=True, sure=True)),  # type: ignore[misc]
        )
        for case in histories.CASES
    ]
    found.append(
        Planted(
            "connected_at_is_compared",
            histories.connected_at_is_compared,
            "test_replay_catches_the_compared_time",
            histories.replay,
        )
    )
    found += [
        Planted(bug.__name__, bug, f"test_a_trial_catches_the_bug[{bug.__name__}]", lambda trial=trial: _tried(trial))  # type: ignore[misc]
        for bug, trial in crashes.PLANTED
    ]
    return {planted.name: planted for planted in found}


def main() -> int:
    """Plant each bug, and print which test and which seed caught it; exit status 1 if one was caught by nothing."""
    names = list(bugs())
    print(f"{'planted bug':28}  {'noticed by the property test':64}  and by the simulation")  # noqa: T201 - for people
    print(f"{'-' * 28}  {'-' * 64}  {'-' * 21}")  # noqa: T201 - as above
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        escaped, by_test, by_seed = 0, 0, 0
        for name, test, seen in pool.imap(caught, ["", *names]):
            if not name:
                print(f"{'(none)':28}  {'-':64}  {seen or '-'}", flush=True)  # noqa: T201 - as above
                escaped += bool(seen)
                continue
            print(f"{name:28}  {test or '-':64}  {seen or '-'}", flush=True)  # noqa: T201 - as above
            escaped += not (test or seen)
            by_test += bool(test)
            by_seed += bool(seen)
    print(f"{len(names)} bugs: the property tests notice {by_test}, the simulation {by_seed}; unnoticed: {escaped}")  # noqa: T201
    return 1 if escaped else 0


def caught(name: str) -> tuple[str, str, str]:
    """What catches a bug: its property test, and the first site of the simulation; "" if nothing."""
    import pytest

    logging.getLogger("client_device_pruner").disabled = True
    planted = bugs().get(name)
    test = ""
    if planted is not None:
        with pytest.MonkeyPatch.context() as patch:
            planted.plant(patch)
            try:
                planted.notice()
            except AssertionError:
                test = planted.test
    for seed in range(1, SEEDS + 1):
        with pytest.MonkeyPatch.context() as patch:
            if planted is not None:
                planted.plant(patch)
            findings = World(searched(seed)).run().figures.findings
            if findings:
                first = findings[0]
                return name, test, f"seed {seed}, day {first.at / DAY:.0f}: {first.kind}"
    return name, test, ""


def _tried(trial: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trial(Path(directory))


def _tests(module: str) -> Any:
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    return importlib.import_module(module)
