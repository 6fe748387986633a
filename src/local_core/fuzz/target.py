"""What is fuzzed: a property of a decoder that must hold whatever comes in, and inputs to begin with."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


class Finding(Exception):
    """A property does not hold; the message says which."""


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder under test.

    Attributes:
        name: for the command line and the table.
        check: takes an input; raises `Finding`, or whatever the decoder lets through, if the property does not hold.
        seeds: the corpus to begin with: inputs that are accepted, and some that nearly are.
        words: keys and values that the input's JSON is mutated with; empty if the input is no JSON.
        largest_bytes: no input is longer.
    """

    name: str
    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[Any] = ()
    largest_bytes: int = 4096


def require(condition: object, what: str) -> None:
    """Raise a `Finding` unless the condition holds."""
    if not condition:
        raise Finding(what)


def document(data: bytes) -> Any:
    """Read an input as JSON; None where it is none (null included, which no target has a use for)."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


@cache
def folder(name: str) -> Path:
    """Return a folder for what a target keeps, in memory where that can be; it goes with the process."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of one's own in it
    path = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def payload_of(value: Any) -> bytes:
    """Make the payload that a JSON input stands for: each character of a text is a byte, all else its JSON."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else json.dumps(value).encode()


def text_of(value: Any) -> str:
    """Make the text of a column that a JSON input stands for: a text as it is, all else as its JSON."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else json.dumps(value)


def seeds(*documents: Any) -> tuple[bytes, ...]:
    """Write documents as inputs."""
    return tuple(json.dumps(one).encode() for one in documents)
