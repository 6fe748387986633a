"""A component's recipe, and what deployments do to its configuration."""

from __future__ import annotations

import copy
import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

Configuration = dict[str, Any]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "aarch64", "arm64": "aarch64", "armv7l": "arm"}
_VARIABLE = re.compile(r"\{([A-Za-z_]+:[^{}\s]*)\}")
_ABSENT = object()


class RecipeError(ValueError):
    """The recipe cannot be deployed on this core; the message says why."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One lifecycle phase.

    Attributes:
        script: What ``sh`` runs.
        environment: The recipe's ``Setenv`` for it.
        timeout_seconds: How long it may take, or None for ever.
    """

    script: str
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float | None = None

    def interpolated(self, variables: Mapping[str, str], configuration: Configuration) -> Phase:
        """Return the phase with its script's and its environment's variables replaced."""
        environment = {name: interpolate(text, variables, configuration) for name, text in self.environment.items()}
        script = interpolate(self.script, variables, configuration)
        return replace(self, script=script, environment=environment)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a core takes from a recipe, for its own platform.

    Attributes:
        name: The component's name.
        version: Its version.
        configuration: Its default configuration.
        dependencies: Names of the components it depends on.
        artifacts: URIs of its artifacts.
        phases: Lifecycle phases by lower-case name.
    """

    name: str
    version: str
    configuration: Configuration
    dependencies: frozenset[str]
    artifacts: tuple[str, ...]
    phases: Mapping[str, Phase]


def read_recipe(path: Path, *, runtime: str = "aws_nucleus_classic") -> Recipe:
    """Read a YAML (or JSON) recipe and choose the first of its manifests that fits this machine.

    Raises:
        RecipeError: If it names no component, or no manifest fits.
    """
    document = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(document, dict) or not document.get("ComponentName"):
        raise RecipeError(f"{path.name} is no recipe: it has no ComponentName")
    manifests = document.get("Manifests") or []
    manifest = next((m for m in manifests if _fits(m.get("Platform") or {}, runtime)), None)
    if manifest is None:
        raise RecipeError(f"{path.name} has no manifest for linux, {_architecture()}, {runtime}")
    defaults = (document.get("ComponentConfiguration") or {}).get("DefaultConfiguration") or {}
    return Recipe(
        name=document["ComponentName"],
        version=str(document.get("ComponentVersion", "0.0.0")),
        configuration=merge({}, defaults),
        dependencies=frozenset(document.get("ComponentDependencies") or {}),
        artifacts=tuple(a["Uri"] for a in manifest.get("Artifacts") or [] if a.get("Uri")),
        phases=_phases(manifest.get("Lifecycle") or {}),
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
        key = find_key(merged, name)
        if isinstance(value, Mapping):
            old = merged.get(key)
            merged[key] = merge(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def reset(configuration: Configuration, defaults: Configuration, pointers: list[str]) -> Configuration:
    """Return the configuration with what is at the JSON pointers back at its default, or gone without one.

    Args:
        configuration: What is in force.
        defaults: The recipe's default configuration.
        pointers: JSON pointers such as ``/limits/maxPerCycle``; an empty one resets all.
    """
    result = copy.deepcopy(configuration)
    for pointer in pointers:
        path = split_pointer(pointer)
        if not path:
            result = copy.deepcopy(defaults)
            continue
        parent = look_up(result, path[:-1])
        default = look_up(defaults, path, _ABSENT)
        if isinstance(parent, dict):
            key = find_key(parent, path[-1])
            parent.pop(key, None)
            if default is not _ABSENT:
                parent[key] = copy.deepcopy(default)
        elif default is not _ABSENT:
            nested: Any = default
            for name in reversed(path):
                nested = {name: nested}
            result = merge(result, nested)
    return result


def look_up(configuration: Any, path: list[str], missing: Any = None) -> Any:
    """Return the value at a path of keys, which fold case, or `missing`."""
    value = configuration
    for name in path:
        if not isinstance(value, dict):
            return missing
        value = value.get(find_key(value, name), missing)
    return value


def find_key(mapping: Mapping[str, Any], name: str) -> str:
    """Return the mapping's own spelling of a key, or the name itself if it is new."""
    if name in mapping:
        return name
    return next((key for key in mapping if key.casefold() == name.casefold()), name)


def changed_paths(before: Any, after: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every leaf that two configurations do not have in common."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            yield from changed_paths(before.get(key, _ABSENT), after.get(key, _ABSENT), (*path, key))
    elif before is _ABSENT or after is _ABSENT or before != after:
        yield path


def split_pointer(pointer: str) -> list[str]:
    """Split a JSON pointer into keys."""
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def interpolate(text: str, variables: Mapping[str, str], configuration: Configuration) -> str:
    """Replace variables such as ``{work:path}`` and ``{configuration:/pointer}``; unknown ones stay."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in variables:
            return variables[name]
        if name.startswith("configuration:"):
            found = look_up(configuration, split_pointer(name.partition(":")[2]), _ABSENT)
            if found is not _ABSENT:
                return found if isinstance(found, str) else json.dumps(found)
        return match[0]

    return _VARIABLE.sub(value, text)


def _architecture() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _fits(wanted: Mapping[str, Any], runtime: str) -> bool:
    # A manifest that names no runtime is for the classic nucleus alone.
    offered = {"os": "linux", "architecture": _architecture(), "runtime": runtime}
    if "runtime" not in wanted and runtime != "aws_nucleus_classic":
        return False
    return all(
        choice in {"*", "all", offered[key]}
        or (choice.startswith("/") and re.fullmatch(choice.strip("/"), offered[key]) is not None)
        for key, choice in wanted.items()
        if key in offered
    )


def _phases(lifecycle: Mapping[str, Any]) -> dict[str, Phase]:
    by_name = {name.lower(): value for name, value in lifecycle.items()}
    common = by_name.pop("setenv", None) or {}
    phases = {}
    for name, given in by_name.items():
        described: dict[str, Any] = (
            {"script": given} if isinstance(given, str) else {k.lower(): v for k, v in given.items()}
        )
        if "script" not in described:
            continue
        environment = {k: str(v) for k, v in {**common, **(described.get("setenv") or {})}.items()}
        timeout = described.get("timeout", None if name == "run" else 120)
        phases[name] = Phase(described["script"], environment, None if timeout is None else float(timeout))
    return phases
