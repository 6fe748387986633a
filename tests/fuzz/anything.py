"""Whatever may arrive: texts, JSON, and documents that are nearly right; and a core device that has to live with it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fakes.core_device import CoreDevice

TIMES = int(os.environ.get("FUZZ", "1"))  # FUZZ=100 searches a hundred times as long, at random
ALIVE, DEAD = ("alive-1", "alive-2"), tuple(f"dead-{number}" for number in range(1, 6))
_GONE = object()

ODD_TEXTS = (*ALIVE, "", "+", "#", "\0", "\ud800", "\x1b[2J", "x" * 300, "nan", "1e999", "30d", "0.1s", "true")
ODD_NUMBERS = (2**31, 2**63, 10**18, 10**25, 10**400, 1e17, 1e300)
texts = st.one_of(st.text(max_size=8), st.sampled_from(ODD_TEXTS))
numbers = st.one_of(st.integers(-3, 3), st.floats(), st.sampled_from(ODD_NUMBERS))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


def search(examples: int) -> Callable[[Any], Any]:
    """Mark a test as a long search through so many examples, the same each time."""
    how: dict[str, Any] = {"derandomize": TIMES == 1, "deadline": None, "suppress_health_check": list(HealthCheck)}
    return lambda test: pytest.mark.long(settings(max_examples=examples * TIMES, **how)(test))


def nearly(document: Any) -> st.SearchStrategy[Any]:
    """The document, of which one part in twenty is another or gone, and to which something may be added."""
    return _part(document).map(lambda found: None if found is _GONE else found)


def _part(document: Any) -> st.SearchStrategy[Any]:
    same: st.SearchStrategy[Any] = st.just(document)
    if isinstance(document, dict):
        more = st.one_of(*[st.just({})] * 9, st.dictionaries(texts, values, max_size=1))
        parts = st.fixed_dictionaries({key: _part(part) for key, part in document.items()})
        same = st.builds(lambda found, more: {k: p for k, p in found.items() if p is not _GONE} | more, parts, more)
    elif isinstance(document, list):
        same = st.tuples(*map(_part, document)).map(lambda parts: [part for part in parts if part is not _GONE])
    return st.integers(0, 39).flatmap(lambda one: {0: values, 1: st.just(_GONE)}.get(one, same))


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """The bytes as they are, cut off, with others in their midst, or wholly others."""
    cut = st.integers(0, len(good)).map(lambda end: good[:end])
    filled = st.builds(lambda part, other: part + other + good[len(part) + len(other) :], cut, st.binary(max_size=8))
    return st.one_of(st.just(good), cut, filled, st.binary(max_size=40))


def as_json(document: Any) -> st.SearchStrategy[bytes]:
    """Nearly the document, as bytes that may be damaged."""
    return nearly(document).flatmap(lambda value: damaged(json.dumps(value).encode()))


@contextmanager
def a_core(state: bytes | None = None) -> Iterator[CoreDevice]:
    """A core whose living devices speak, and whose dead ones have just left; with a state it has not begun yet."""
    with tempfile.TemporaryDirectory() as directory:
        core = CoreDevice(Path(directory))
        core.cloud.associate(*ALIVE, *DEAD)
        core.connect(*ALIVE)

        def speak() -> None:
            core.speak(*ALIVE)
            core.world.after(300, speak)

        speak()
        if state:
            (core.work_dir / "pruner.db").write_bytes(state)
        if state is None:
            core.connect(*DEAD)
            core.run(1_300)  # two cycles
            core.disconnect(*DEAD)
        yield core
        core.stop()


def lives_on(core: CoreDevice, seconds: float = 1_300) -> None:
    """It goes on: its cycles end, its status is written, its events are not too long, and the living stay."""
    cycles, told = len(core.of_type("cycle")), core.status()["time"]
    core.run(seconds)
    assert len(core.of_type("cycle")) > cycles
    assert core.status()["time"] > told
    assert not {carried.name for carried in core.cloud.carried} & set(ALIVE)
    assert all(len(json.dumps(event.data)) <= 7_000 for event in core.events)
