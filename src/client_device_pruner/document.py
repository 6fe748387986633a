"""Reading a document of a nucleus or of Greengrass Lite by the classes that it fills, with every problem told."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

SHORTEST_SECONDS = 0.1
"""The lower bound of durations where short ones are allowed."""
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_DURATION = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _UNITS))
_DURATION_FORM = 'whole numbers with the units d, h, m and s, largest first, such as "1d12h"'
_SHOWN_LENGTH = 60


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


class Key(NamedTuple):
    """A key of a document, whose value `read(value, short durations allowed)` reads; its ValueErrors say what to write.

    Absent and null mean the default; without one (None) they are read as None, or refused when required.
    """

    name: str
    default: object
    read: Callable[[Any, bool], Any]
    required: bool = False


class Section(NamedTuple):
    """A key whose value is a map of the keys of a class."""

    name: str
    kind: type[Any]


Keys = Mapping[str, Key | Section]
"""The keys of a document or of a section, by the fields that they fill."""


def keys_of(kind: type[Any]) -> Keys:
    """Give the keys with which the fields of a named tuple are annotated."""
    found = kind.__annotations__.items()
    return {field: key for field, annotation in found for key in getattr(annotation, "__metadata__", ())}


def duration(name: str, default: str | None, least: float, most: float, *, or_never: bool = False) -> Key:
    """Make a key for a duration from `least` to `most` seconds, required if it has no default."""

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

    return Key(name, default, read, required=default is None)


def number(name: str, default: int | None, least: int, most: int, *, whole: bool = False) -> Key:
    """Make a key for a number from `least` to `most`; Greengrass Lite gives it as a text."""

    def read(value: Any, _: bool) -> float:
        found = (
            float(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", value) else value
        )
        known = isinstance(found, (int, float)) and not isinstance(found, bool)
        if known and least <= found <= most and (not whole or found == int(found)):
            return int(found) if whole else float(found)
        raise ValueError(f"a {'whole ' if whole else ''}number from {least} to {most}")

    return Key(name, default, read)


def flag(name: str, default: bool) -> Key:
    """Make a key for true or false; Greengrass Lite gives it as a text."""

    def read(value: Any, _: bool) -> bool:
        found = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        if isinstance(found, bool):
            return found
        raise ValueError("true or false")

    return Key(name, default, read)


def text(name: str, default: str, accepts: Callable[[str], object], write: str, *, or_empty: bool = False) -> Key:
    """Make a key for a text that `accepts` says yes to, or that is empty where that is allowed."""

    def read(value: Any, _: bool) -> str:
        if isinstance(value, str) and (accepts(value) if value else or_empty):
            return value
        raise ValueError(f'{write}, or ""' if or_empty else write)

    return Key(name, default, read)


def texts(name: str, default: list[str] | None, accepts: Callable[[str], object], write: str) -> Key:
    """Make a key for a list of texts that `accepts` says yes to, required if it has no default."""

    def read(value: Any, _: bool) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"a list, each entry {write}")  # noqa: TRY004 - a reader raises nothing else
        wrong = [shown(entry) for entry in value if not (isinstance(entry, str) and accepts(entry))]
        if wrong:
            raise ValueError(f"{write}, instead of {', '.join(wrong[:5])}")
        return tuple(value)

    return Key(name, default, read, required=default is None)


def anything(name: str, default: object) -> Key:
    """Make a key whose value is left for later."""
    return Key(name, default, lambda value, _: value)


def defaults(keys: Keys) -> dict[str, Any]:
    """Write the document of the defaults."""
    found = {key.name: key.default if isinstance(key, Key) else defaults(keys_of(key.kind)) for key in keys.values()}
    return {name: default for name, default in found.items() if default is not None}


class Reading:
    """One document being read: a value with a problem is read as None, and the problem is kept.

    Attributes:
        short: durations below their lower bounds, and with decimals, are accepted.
        problems: all that were found.
    """

    def __init__(self) -> None:
        self.short = False
        self.problems: list[str] = []

    def problem(self, path: str, what: str, write: str) -> None:
        """Keep a problem."""
        self.problems.append(f"{path or 'configuration'}: {what}; write {write}")

    def section(self, keys: Keys, document: object, path: str = "") -> dict[str, Any]:
        """Read all keys of a section, into the fields that they fill."""
        start = f"{path}." if path else ""
        if not isinstance(document, Mapping):
            self.problem(path, f"{shown(document)} will not do", "a map of keys and values")
            document = {}
        known = {key.name for key in keys.values()}
        for name in document:
            if name not in known:
                self._unknown(name, keys, start)
        return {field: self._value(key, document.get(key.name), start + key.name) for field, key in keys.items()}

    def names(self, document: object, path: str) -> dict[str, Any]:
        """Read a map of names, unique ignoring case; those of null are left out."""
        if not isinstance(document, Mapping):
            self.problem(path, f"{shown(document)} will not do", "a map of names")
            return {}
        found: dict[str, str] = {}
        for name in document:
            where = f"{path}.{step(name)}"
            if not isinstance(name, str) or not name or not name.isprintable():
                self.problem(where, "this is no name", "a printable text")
            elif name.startswith("_"):
                self.problem(where, "Greengrass drops names that begin with _", "another name")
            elif found.setdefault(name.casefold(), name) != name:
                same = found[name.casefold()]
                self.problem(where, f"{step(same)} is the same name but for case", "another name")
        return {name: document[name] for name in found.values() if document[name] is not None}

    def _value(self, key: Key | Section, given: object, path: str) -> Any:
        if isinstance(key, Section):
            return key.kind(**self.section(keys_of(key.kind), {} if given is None else given, path))
        value = key.default if given is None else given
        if value is None and not key.required:
            return None
        try:
            return key.read(value, self.short)
        except ValueError as wrong:
            self.problem(path, "missing" if value is None else f"{shown(value)} will not do", str(wrong))
            return None

    def _unknown(self, name: object, keys: Keys, start: str) -> None:
        import difflib  # a document in order has no use for it

        known = {path.rpartition(".")[2].casefold(): path for path in _paths(keys)}
        near = difflib.get_close_matches(name[:80].casefold(), known, n=1) if isinstance(name, str) else []
        only = f"only {', '.join(key.name for key in keys.values())}"
        self.problem(f"{start}{step(name)}", "unknown key", f"{known[near[0]]}, if that was meant" if near else only)


def _paths(keys: Keys) -> list[str]:
    sections = [key for key in keys.values() if isinstance(key, Section)]
    inner = [f"{section.name}.{key.name}" for section in sections for key in keys_of(section.kind).values()]
    return [*inner, *(key.name for key in keys.values())]
