"""A component's recipe, and what deployments do to its configuration."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Configuration = dict[str, Any]

_ABSENT = object()


class RecipeError(ValueError):
    """The recipe cannot be deployed on this core; the message says why."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One lifecycle phase: what ``sh`` runs, the recipe's ``Setenv``, and how long it may take; None is no limit."""

    script: str
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float | None = None

    def interpolated(self, variables: Mapping[str, str]) -> Phase:
        """Return the phase with variables such as ``{work:path}`` replaced; unknown ones stay."""
        texts = {"": self.script, **self.environment}
        for name, value in variables.items():
            texts = {key: text.replace(f"{{{name}}}", value) for key, text in texts.items()}
        return Phase(texts.pop(""), texts, self.timeout_seconds)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a core takes from a recipe for its own runtime; the phases are by lower-case name."""

    name: str
    version: str
    configuration: Configuration
    dependencies: frozenset[str]
    phases: Mapping[str, Phase]


def read_recipe(path: Path, *, lite: bool = False) -> Recipe:
    """Read a YAML (or JSON) recipe and choose the first of its manifests for Linux and the runtime.

    Raises:
        RecipeError: If it names no component, or no manifest fits.
    """
    document = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(document, dict) or not document.get("ComponentName"):
        raise RecipeError(f"{path.name} is not a recipe: it has no ComponentName")
    # A manifest that names no runtime is for the classic nucleus alone.
    runtimes = {"*", "aws_nucleus_lite"} if lite else {"*", "aws_nucleus_classic", None}
    platforms = [(manifest.get("Platform") or {}, manifest) for manifest in document.get("Manifests") or []]
    fitting = [m for platform, m in platforms if platform.get("os") == "linux" and platform.get("runtime") in runtimes]
    if not fitting:
        raise RecipeError(f"{path.name} has no manifest for Linux and {'Greengrass Lite' if lite else 'the nucleus'}")
    return Recipe(
        name=document["ComponentName"],
        version=str(document.get("ComponentVersion", "0.0.0")),
        configuration=(document.get("ComponentConfiguration") or {}).get("DefaultConfiguration") or {},
        dependencies=frozenset(document.get("ComponentDependencies") or {}),
        phases=_phases(fitting[0].get("Lifecycle") or {}),
    )


def merge(base: Configuration, update: Mapping[str, Any]) -> Configuration:
    """Return the configuration with an update merged in, as a deployment does; neither argument changes.

    Maps merge key by key and anything else is replaced whole. A key that differs from an existing one only
    in case is that one; a key that starts with ``_`` vanishes.
    """
    merged = dict(base)
    for name, value in update.items():
        if name.startswith("_"):
            continue
        key = _find_key(merged, name)
        if isinstance(value, Mapping):
            old = merged.get(key)
            merged[key] = merge(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def reset(configuration: Configuration, defaults: Configuration, pointers: list[str]) -> Configuration:
    """Return the configuration with some top-level keys (``/limits``), or all (an empty pointer), at their defaults."""
    if "" in pointers:
        return dict(defaults)
    keys = {_find_key(configuration, pointer.removeprefix("/")) for pointer in pointers}
    kept = {key: value for key, value in configuration.items() if key not in keys}
    return kept | {key: defaults[key] for key in keys if key in defaults}


def look_up(configuration: Any, path: list[str], missing: Any = None) -> Any:
    """Return the value at a path of keys, which fold case, or `missing`."""
    value = configuration
    for name in path:
        if not isinstance(value, dict):
            return missing
        value = value.get(_find_key(value, name), missing)
    return value


def as_texts(value: Any) -> Any:
    """Return a configuration as Greengrass Lite reads it from its file: every scalar a string."""
    if isinstance(value, dict):
        return {key: as_texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_texts(inner) for inner in value]
    return value if isinstance(value, str) else json.dumps(value)


def changed_paths(before: Any, after: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every leaf that two configurations do not have in common."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            yield from changed_paths(before.get(key, _ABSENT), after.get(key, _ABSENT), (*path, key))
    elif before is _ABSENT or after is _ABSENT or before != after:
        yield path


def _find_key(mapping: Mapping[str, Any], name: str) -> str:
    """Return the mapping's own spelling of a key, or the name itself if it is new."""
    if name in mapping:
        return name
    return next((key for key in mapping if key.casefold() == name.casefold()), name)


def _phases(lifecycle: Mapping[str, Any]) -> dict[str, Phase]:
    by_name = {name.lower(): value for name, value in lifecycle.items()}
    common = by_name.pop("setenv", None) or {}
    phases = {}
    for name, given in by_name.items():
        described: dict[str, Any] = (
            {"script": given} if isinstance(given, str) else {k.lower(): v for k, v in given.items()}
        )
        environment = {k: str(v) for k, v in {**common, **(described.get("setenv") or {})}.items()}
        timeout = described.get("timeout", None if name == "run" else 120)
        phases[name] = Phase(described["script"], environment, None if timeout is None else float(timeout))
    return phases
