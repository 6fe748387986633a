"""Bugs planted in the component, one at a time, and what notices each: the simulation, and the property histories.

The bugs and the histories that show them stand in `tests/test_mutations.py`; they need pytest's monkeypatch.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from local_core.simulation.devices import DAY
from local_core.simulation.world import Site, World

TESTS = Path(__file__).resolve().parents[3] / "tests"
SEEDS = 20
"""Sites that are searched at most for each bug."""


def searched(seed: int) -> Site:
    """A site of some months with faults and a short threshold, small enough to look at many."""
    kind = ("both", "events", "messages", "both")[seed % 4]
    return Site(seed, years=0.3, devices=16, kind=kind, offline_threshold="10d", lifetime_years=0.5)


def main() -> int:
    """Plant each bug, and print which test and which seed caught it; exit status 1 if one was caught by nothing."""
    names = [case.bug.__name__ for case in _tests().CASES]
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        rows = pool.imap(caught, ["", *names])
        escaped = 0
        for name, history, seen in rows:
            if not name:
                print(f"without a bug: {seen or 'the simulation finds nothing'}", flush=True)  # noqa: T201
                escaped += bool(seen)
                continue
            print(f"{name:28}  {history:40}  {seen or '-'}", flush=True)  # noqa: T201 - it is for people
            escaped += not (history or seen)
    return 1 if escaped else 0


def caught(name: str) -> tuple[str, str, str]:
    """What catches a bug: the history in `test_mutations`, and the first site of the simulation; "" if nothing."""
    import pytest

    logging.getLogger("client_device_pruner").disabled = True
    tests = _tests()
    case = next((case for case in tests.CASES if case.bug.__name__ == name), None)
    history = ""
    if case is not None:
        with pytest.MonkeyPatch.context() as patch:
            case.bug(patch)
            try:
                case.history(tests.Site(kind=case.kind, strict=True, sure=True))
            except AssertionError as violation:
                history = f"{case.history.__name__} ({str(violation).partition(':')[0]})"
    for seed in range(1, SEEDS + 1):
        with pytest.MonkeyPatch.context() as patch:
            if case is not None:
                case.bug(patch)
            try:
                findings = World(searched(seed)).run().figures.findings
            except IndexError:
                # It is planted into the clock of the small site, which is not this one's.
                return name, history, ""
            if findings:
                first = findings[0]
                return name, history, f"seed {seed}, day {first.at / DAY:.0f}: {first.kind} {first.text[:70]}"
    return name, history, ""


def _tests() -> Any:
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    return importlib.import_module("test_mutations")
