"""Mutates JSON as JSON: libFuzzer's own mutations hardly ever get past the parser."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1.5, 10**18, 1e300, float("nan")),
    *("", "a", "0", "\x00", "\ud800", [], {}),
)
_TIMES = (1, 1, 1, 2, 3, 5)  # how many changes make one mutation


def mutate(data: bytes, largest_bytes: int, seed: int, words: Sequence[Any]) -> bytes | None:
    """Change a JSON document here and there; the same seed changes the same.

    Returns:
        the new document, or None if the old one is no JSON or the new one is too long.
    """
    random = Random(seed)  # noqa: S311 - it fuzzes
    try:
        root = [json.loads(data)]
        for _ in range(random.choice(_TIMES)):
            _change(root, random, words)
        text = json.dumps(root[0]).encode()
    except (ValueError, RecursionError):
        return None
    return text if len(text) <= largest_bytes else None


def _change(root: list[Any], random: Random, words: Sequence[Any]) -> None:
    places = list(_places(root))
    parent, key = random.choice(places)
    value = parent[key]
    changes: list[Callable[[], None]] = [lambda: _replace(parent, key, random, words)] * 2
    if isinstance(value, dict):
        changes += [lambda: _change_map(value, random, words)] * 4
    elif isinstance(value, list):
        changes += [lambda: _change_list(value, random, words)] * 4
    else:
        changes.append(lambda: parent.__setitem__(key, _nudged(value, random)))
    random.choice(changes)()


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every value of the document, as where it stands."""
    places: list[tuple[Any, Any]] = [(root, 0)]
    for parent, key in places:
        value = parent[key]
        if isinstance(value, dict):
            places += [(value, inner) for inner in value]
        elif isinstance(value, list):
            places += [(value, index) for index in range(len(value))]
    return places


def _word(random: Random, words: Sequence[Any]) -> Any:
    return copy.deepcopy(random.choice(words if random.random() < 0.8 else _SCALARS))


def _replace(parent: Any, key: Any, random: Random, words: Sequence[Any]) -> None:
    wrapped = random.random()
    if wrapped < 0.1:
        parent[key] = [parent[key]]
    elif wrapped < 0.2:
        parent[key] = {str(_word(random, words)): parent[key]}
    else:
        parent[key] = _word(random, words)


def _change_map(value: dict[str, Any], random: Random, words: Sequence[Any]) -> None:
    keys = list(value)
    if not keys or random.random() < 0.4:
        value[str(_word(random, words))] = _word(random, words)
        return
    key, other = random.choice(keys), random.choice(keys)
    action = random.randrange(3)
    if action == 0:
        del value[key]
    elif action == 1:
        value[key], value[other] = value[other], value[key]
    else:
        value[str(_word(random, words))] = value.pop(key)


def _change_list(value: list[Any], random: Random, words: Sequence[Any]) -> None:
    if not value or random.random() < 0.4:
        value.insert(random.randint(0, len(value)), _word(random, words))
        return
    index, other = random.randrange(len(value)), random.randrange(len(value))
    action = random.randrange(3)
    if action == 0:
        del value[index]
    elif action == 1:
        value[index], value[other] = value[other], value[index]
    else:
        value.insert(other, copy.deepcopy(value[index]))


def _nudged(value: Any, random: Random) -> Any:
    """Change a scalar a little, or into one of another type that looks the same."""
    if isinstance(value, str):
        place = random.randint(0, len(value))
        return random.choice(
            [
                value[:place],
                value[place:],
                value[:place] + chr(random.randrange(256)) + value[place:],
                value[:place] + random.choice("/+#*.\"'{}[]0-_$ ") + value[place + 1 :],
                value.swapcase(),
                value * 2,
                _number(value),
            ]
        )
    if isinstance(value, bool) or value is None:
        return random.choice([not value, str(value).lower()])
    return random.choice([value + 1, value - 1, -value, value * 1000, value // 7, str(value)])


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return len(text)
