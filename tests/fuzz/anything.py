"""Whatever may arrive: texts, JSON, and documents that are nearly right; and a core device that has to live with it."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fakes.core_device import CoreDevice

TIMES = int(os.environ.get("FUZZ", "1"))
"""`FUZZ=100` searches a hundred times as long, at random."""
ALIVE, DEAD = ("alive-1", "alive-2"), tuple(f"dead-{number}" for number in range(1, 6))
MOST_EVENT_BYTES = 7_000

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [*ALIVE, "", "+", "#", "\0", "\ud800", "\x1b[2J", "x" * 300, "1", "nan", "1e999", "30d", "0.1s", "true"]
    ),
)
numbers = st.one_of(
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from([2**31, 2**63, -(2**63), 10**18, 10**25, 10**400, 1e17, 1e300, 1.7e308]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
"""Anything that JSON can say, and more: lone surrogates, infinities and numbers that nothing can hold."""


def search(examples: int) -> Callable[[Any], Any]:
    """Search through so many examples, the same each time."""
    return settings(
        max_examples=examples * TIMES, derandomize=TIMES == 1, deadline=None, suppress_health_check=list(HealthCheck)
    )


@st.composite
def nearly(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """The document with up to so many of its parts replaced, taken away, or joined by others."""
    found: Any = copy.deepcopy(document)
    for path in draw(st.lists(st.sampled_from(list(_paths(document))), max_size=most)):
        parts: Any = found
        for key in path[:-1]:
            parts = parts[key] if _has(parts, key) else None
        if not path:
            found = draw(values)
        elif _has(parts, path[-1]):
            match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"])):
                case "replace":
                    parts[path[-1]] = draw(values)
                case "remove":
                    del parts[path[-1]]
                case "add" if isinstance(parts, dict):
                    parts[draw(texts)] = draw(values)
    return found


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """The bytes as they are, cut off, with others in their midst, or wholly others."""
    place = st.integers(0, len(good))
    return st.one_of(
        st.just(good),
        place.map(lambda end: good[:end]),
        st.tuples(place, st.binary(max_size=8)).map(lambda one: good[: one[0]] + one[1] + good[one[0] + len(one[1]) :]),
        st.binary(max_size=40),
    )


def as_json(document: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Documents as bytes."""
    return document.map(lambda value: json.dumps(value).encode()).flatmap(damaged)


def populate(core: CoreDevice) -> None:
    """Associate and connect devices, of which the living speak every five minutes."""
    core.cloud.associate(*ALIVE, *DEAD)
    core.connect(*ALIVE)

    def speak() -> None:
        core.speak(*ALIVE)
        core.world.after(300, speak)

    speak()


@contextmanager
def a_core() -> Iterator[CoreDevice]:
    """A core whose living devices speak every five minutes, and whose dead ones have just left."""
    with tempfile.TemporaryDirectory() as directory:
        core = CoreDevice(Path(directory))
        populate(core)
        core.connect(*DEAD)
        core.run(1_300)  # two cycles
        core.disconnect(*DEAD)
        try:
            yield core
        finally:
            core.stop()


def lives_on(core: CoreDevice, seconds: float = 1_300) -> None:
    """It goes on: its cycles end, its status is written, its events are not too long, and the living stay."""
    cycles, told = len(core.of_type("cycle")), core.status()["time"]
    core.run(seconds)
    assert len(core.of_type("cycle")) > cycles
    assert core.status()["time"] > told
    assert not {carried.name for carried in core.cloud.carried} & set(ALIVE)
    assert all(len(json.dumps(event.data)) <= MOST_EVENT_BYTES for event in core.events)


def _has(parts: Any, key: Any) -> bool:
    if isinstance(parts, list):
        return isinstance(key, int) and key < len(parts)
    return isinstance(parts, dict) and key in parts


def _paths(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield from _paths(document[key], (*path, key))
