"""Reads a configuration document into dataclasses whose fields are its keys, and tells every problem."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

SHORTEST_SECONDS = 0.1  # the lower bound of durations in a trial
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_DURATION = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _UNITS))

Reader = Callable[[Any, bool], Any]
"""Reads a value as a document has it, or raises `Wrong` or `SettingsRefused`; the flag is set in a trial."""


class Wrong(Exception):
    """A value will not do; the text says what to write instead."""


class SettingsRefused(Exception):
    """A document was refused; `problems` are texts `path: what is wrong; write what is right`."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


# --- Keys and sections ----------------------------------------------------------------------------------------


def setting(key: str, default: Any, read: Reader) -> Any:
    """Make a field that a key fills; `default` is what a document would have, None if the key is required."""

    def read_or_default(value: Any, short: bool) -> Any:
        return read(default if value is None else value, short)

    value = dataclasses.MISSING if default is None else read(default, False)
    return dataclasses.field(default=value, metadata={"key": key, "default": default, "read": read_or_default})


def section(key: str, kind: type[Any]) -> Any:
    """Make a field that a map of keys fills, those of the fields of a class."""
    return setting(key, defaults(kind), partial(read_section, kind))


def defaults(kind: type[Any]) -> dict[str, Any]:
    """The document of the defaults of a class."""
    return {part.metadata["key"]: part.metadata["default"] for part in _keys(kind)}


def read_section(kind: type[Any], document: Any, short: bool) -> Any:
    """Read a map of keys into an object of a class."""
    readers = {part.metadata["key"]: part.metadata["read"] for part in _keys(kind)}
    values = read_map(document, readers, short)
    return kind(**{part.name: values[part.metadata["key"]] for part in _keys(kind)})


def read_map(document: Any, readers: Mapping[str, Reader], short: bool) -> dict[str, Any]:
    """Read each key of a map by its reader; an absent key is read as None, and an unknown one is a problem."""
    if not isinstance(document, Mapping):
        raise Wrong("a map of keys and values")
    problems = [f"{key}: unknown key; write only {', '.join(readers)}" for key in document if key not in readers]
    values = {}
    for key, read in readers.items():
        given = document.get(key)
        try:
            values[key] = read(given, short)
        except SettingsRefused as refused:
            problems += [f"{key}.{problem}" for problem in refused.problems]
        except Wrong as wrong:
            problems.append(f"{key}: {given!r:.60} is not valid; write {wrong}")
    if problems:
        raise SettingsRefused(tuple(problems))
    return values


def values_by_path(settings: Any, start: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of an object that was read, by its path such as `limits.maxPerCycle`, with its value."""
    for part in _keys(settings):
        path, value = start + part.metadata["key"], getattr(settings, part.name)
        if dataclasses.is_dataclass(value):
            yield from values_by_path(value, f"{path}.")
        else:
            yield path, value


def _keys(kind: Any) -> list[dataclasses.Field[Any]]:
    return [part for part in dataclasses.fields(kind) if part.metadata]


# --- Values ---------------------------------------------------------------------------------------------------


def format_duration(seconds: float) -> str:
    """Write a duration (to the millisecond) as it is configured: `1d12h`, `45s`, `0.5s`."""
    rest, text = round(seconds * 1000), ""
    for unit in "dhm":
        count, rest = divmod(rest, _UNITS[unit] * 1000)
        text += f"{count}{unit}" if count else ""
    return f"{text}{rest / 1000:g}s" if rest or not text else text


def duration(least: float, most: float, *, or_never: bool = False) -> Reader:
    """Read a duration from `least` to `most` seconds, or an empty text for never (None).

    In a trial shorter ones, down to `SHORTEST_SECONDS`, and decimals are accepted.
    """

    def read(value: Any, short: bool) -> float | None:
        if or_never and value == "":
            return None
        found = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
        lower = min(least, SHORTEST_SECONDS) if short else least
        if found and (short or "." not in value):
            counts = zip(found.groups("0"), _UNITS.values(), strict=True)
            seconds = math.fsum(float(count) * unit for count, unit in counts)
            if lower <= seconds <= most:
                return seconds
        never = ', or "" for never' if or_never else ""
        bounds = f"{format_duration(lower)} to {format_duration(most)}{never}"
        raise Wrong(f'{bounds}: whole numbers with the units d, h, m and s, largest first, such as "1d12h"')

    return read


def number(least: int, most: int, *, whole: bool = False) -> Reader:
    """Read a number from `least` to `most`; Greengrass Lite gives it as a text."""

    def read(value: Any, _short: bool) -> float:
        try:
            found = float(str(value))
        except ValueError:
            found = math.nan
        if least <= found <= most and not (whole and found % 1):
            return int(found) if whole else found
        raise Wrong(f"a {'whole ' if whole else ''}number from {least} to {most}")

    return read


def flag(value: Any, _short: bool) -> bool:
    """Read true or false; Greengrass Lite gives it as a text."""
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise Wrong("true or false")
    return found


def text(pattern: str, write: str) -> Reader:
    """Read a text that matches a regular expression as a whole."""

    def read(value: Any, _short: bool) -> str:
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return value
        raise Wrong(write)

    return read


def texts(pattern: str, write: str) -> Reader:
    """Read a list of texts that match a regular expression as a whole."""

    def read(value: Any, _short: bool) -> tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(entry, str) and re.fullmatch(pattern, entry) for entry in value):
            return tuple(value)
        raise Wrong(f"a list, each entry {write}")

    return read
