"""Reads typed values out of a configuration document by the classes that they fill, and tells every problem."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SHORTEST_SECONDS = 0.1
"""The lower bound of durations where short ones are allowed."""
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_DURATION = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _UNITS))
_DURATION_FORM = 'whole numbers with the units d, h, m and s, largest first, such as "1d12h"'
_SHOWN_LENGTH = 60

Reader = Callable[[Any, bool], Any]
"""Reads a value; the flag tells whether short durations are allowed. A ValueError says what to write instead."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a document; absent and null mean the default, and a key without one (None) is required."""

    name: str
    default: Any
    read: Reader


@dataclass(frozen=True, slots=True)
class Section:
    """A key whose value is a map of the keys of a class."""

    name: str
    kind: type[Any]


@dataclass(frozen=True, slots=True)
class Named:
    """A key whose value is a map of names; the value of each fills an object of a class, which has a `name`."""

    name: str
    kind: type[Any]


Keys = Mapping[str, Key | Section | Named]
"""The keys of a document or of a section, by the fields that they fill."""


def setting(name: str, default: Any, read: Reader) -> Any:
    """Make a field that a key fills; `default` is what a document would have, None if the key is required."""
    value = dataclasses.MISSING if default is None else read(default, False)
    return field(default=value, metadata={"key": Key(name, default, read)})


def section(name: str, kind: type[Any]) -> Any:
    """Make a field that a map of keys fills."""
    return field(default=kind(), metadata={"key": Section(name, kind)})


def named(name: str, kind: type[Any]) -> Any:
    """Make a field that a map of names fills, with a tuple in the order of the names."""
    return field(default=(), metadata={"key": Named(name, kind)})


def keys_of(kind: type[Any]) -> Keys:
    """The keys that fill the fields of a class."""
    return {part.name: part.metadata["key"] for part in dataclasses.fields(kind) if "key" in part.metadata}


def defaults(kind: type[Any]) -> dict[str, Any]:
    """The document of the defaults."""
    document: dict[str, Any] = {}
    for key in keys_of(kind).values():
        if isinstance(key, Key):
            document[key.name] = key.default
        else:
            document[key.name] = defaults(key.kind) if isinstance(key, Section) else {}
    return document


def flatten(settings: Any, start: str = "") -> Iterator[tuple[str, Any]]:
    """Each key path of an object that was read, such as `limits.maxPerCycle`, with its value."""
    for name, key in keys_of(type(settings)).items():
        value, path = getattr(settings, name), start + key.name
        if isinstance(key, Section):
            yield from flatten(value, f"{path}.")
        elif isinstance(key, Named):
            for item in value:
                yield from flatten(item, f"{path}.{step(item.name)}.")
        else:
            yield path, value


# --- Values ---------------------------------------------------------------------------------------------------


def parse_duration(text: str, *, decimals: bool = False) -> float:
    """Read a duration such as `1d12h`, in seconds.

    Raises:
        ValueError: Not numbers with units, largest first; or decimals where they are not allowed.
    """
    found = _DURATION.fullmatch(text)
    if not text or not found or ("." in text and not decimals):
        raise ValueError(f"{shown(text)} is no duration; write {_DURATION_FORM}")
    numbers = (float(number or 0) for number in found.groups())
    return math.fsum(number * unit for number, unit in zip(numbers, _UNITS.values(), strict=True))


def format_duration(seconds: float) -> str:
    """Write a duration (to the millisecond) as it is configured: `1d12h`, `45s`, `0.5s`."""
    rest, text = round(abs(seconds) * 1000), "-" if seconds < 0 else ""
    for unit in "dhm":
        count, rest = divmod(rest, round(_UNITS[unit] * 1000))
        text += f"{count}{unit}" if count else ""
    return f"{text}{rest / 1000:g}s" if rest or text in {"", "-"} else text


def duration(least: float, most: float, *, or_never: bool = False) -> Reader:
    """Read a duration from `least` to `most` seconds, or an empty text for never (None)."""

    def read(value: Any, short: bool) -> float | None:
        if or_never and value == "":
            return None
        lower = min(least, SHORTEST_SECONDS) if short else least
        try:
            seconds = parse_duration(value if isinstance(value, str) else "", decimals=short)
        except ValueError:
            seconds = math.nan
        if lower <= seconds <= most:
            return seconds
        never = ', or "" for never' if or_never else ""
        raise ValueError(f"{format_duration(lower)} to {format_duration(most)}{never}: {_DURATION_FORM}")

    return read


def number(least: int, most: int, *, whole: bool = False) -> Reader:
    """Read a number from `least` to `most`; Greengrass Lite gives it as a text."""

    def read(value: Any, _: bool) -> float:
        is_text = isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", value)
        found = float(value) if is_text else value
        known = isinstance(found, (int, float)) and not isinstance(found, bool)
        if known and least <= found <= most and (not whole or found == int(found)):
            return int(found) if whole else float(found)
        raise ValueError(f"a {'whole ' if whole else ''}number from {least} to {most}")

    return read


def flag(value: Any, _: bool = False) -> bool:
    """Read true or false; Greengrass Lite gives it as a text."""
    found = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if isinstance(found, bool):
        return found
    raise ValueError("true or false")


def text(accepts: Callable[[str], object], write: str, *, or_empty: bool = False) -> Reader:
    """Read a text that `accepts` says yes to, or that is empty where that is allowed."""

    def read(value: Any, _: bool) -> str:
        if isinstance(value, str) and (accepts(value) if value else or_empty):
            return value
        raise ValueError(f'{write}, or ""' if or_empty else write)

    return read


def texts(accepts: Callable[[str], object], write: str) -> Reader:
    """Read a list of texts that `accepts` says yes to."""

    def read(value: Any, _: bool) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"a list, each entry {write}")  # noqa: TRY004 - a reader raises nothing else
        wrong = [shown(entry) for entry in value if not (isinstance(entry, str) and accepts(entry))]
        if wrong:
            raise ValueError(f"{write}, instead of {', '.join(wrong[:5])}")
        return tuple(value)

    return read


# --- A document -------------------------------------------------------------------------------------------------


class Reading:
    """One document being read: a value with a problem is read as None, and the problem is kept.

    Args:
        short: durations below their lower bounds, and with decimals, are accepted.

    Attributes:
        problems: all that were found, each `path: what is wrong; write what is right`.
    """

    def __init__(self, *, short: bool) -> None:
        self.short = short
        self.problems: list[str] = []

    def section(self, kind: type[Any], document: object, path: str = "") -> dict[str, Any]:
        """Read all keys of a section, by the fields that they fill."""
        keys, start = keys_of(kind), f"{path}." if path else ""
        if not isinstance(document, Mapping):
            self._problem(path, f"{shown(document)} will not do", "a map of keys and values")
            document = {}
        known = {key.name for key in keys.values()}
        for name in document:
            if name not in known:
                self._unknown(name, keys, start)
        return {part: self._value(key, document.get(key.name), start + key.name) for part, key in keys.items()}

    def _value(self, key: Key | Section | Named, given: object, path: str) -> Any:
        if isinstance(key, Section):
            return key.kind(**self.section(key.kind, {} if given is None else given, path))
        if isinstance(key, Named):
            bodies = sorted(self._names({} if given is None else given, path).items())
            return tuple(
                key.kind(name=name, **self.section(key.kind, body, f"{path}.{step(name)}")) for name, body in bodies
            )
        value = key.default if given is None else given
        try:
            return key.read(value, self.short)
        except ValueError as wrong:
            self._problem(path, "missing" if value is None else f"{shown(value)} will not do", str(wrong))
            return None

    def _names(self, document: object, path: str) -> dict[str, Any]:
        """Read a map of names, unique ignoring case as for Greengrass; those of null are left out."""
        if not isinstance(document, Mapping):
            self._problem(path, f"{shown(document)} will not do", "a map of names")
            return {}
        found: dict[str, str] = {}
        for name in document:
            where = f"{path}.{step(name)}"
            if not isinstance(name, str) or not name or not name.isprintable():
                self._problem(where, "this is no name", "a printable text")
            elif found.setdefault(name.casefold(), name) != name:
                same = found[name.casefold()]
                self._problem(where, f"{step(same)} is the same name but for case", "another name")
        return {name: document[name] for name in found.values() if document[name] is not None}

    def _problem(self, path: str, what: str, write: str) -> None:
        self.problems.append(f"{path or 'configuration'}: {what}; write {write}")

    def _unknown(self, name: object, keys: Keys, start: str) -> None:
        known = {path.rpartition(".")[2].casefold(): path for path in _paths(keys)}
        near = difflib.get_close_matches(name[:80].casefold(), known, n=1) if isinstance(name, str) else []
        only = f"only {', '.join(key.name for key in keys.values())}"
        self._problem(f"{start}{step(name)}", "unknown key", f"{known[near[0]]}, if that was meant" if near else only)


def shown(value: object) -> str:
    """Show a value of a document, in JSON and shortened, whatever it is."""
    if isinstance(value, str):
        text = value if len(value) <= _SHOWN_LENGTH else value[:_SHOWN_LENGTH] + "…"
        # A lone surrogate, which JSON can carry, could be written nowhere.
        return json.dumps(text, ensure_ascii=False).encode(errors="backslashreplace").decode()
    if isinstance(value, int) and abs(value) >= 10**_SHOWN_LENGTH:
        return "a number of so many digits"
    if value is None or isinstance(value, (int, float)):
        return json.dumps(value)
    return "a map" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else "this"


def step(name: object) -> str:
    """Write a key as a part of a path, in quotes where a reader could take it for something else."""
    plain = isinstance(name, str) and re.fullmatch(r"(?!.*: )[\w@-](?:[\w:@ -]{0,58}[\w@-])?", name)
    return name if plain and isinstance(name, str) else shown(name)


def _paths(keys: Keys) -> list[str]:
    sections = [key for key in keys.values() if isinstance(key, Section)]
    inner = [f"{part.name}.{path}" for part in sections for path in _paths(keys_of(part.kind))]
    return [*inner, *(key.name for key in keys.values())]
