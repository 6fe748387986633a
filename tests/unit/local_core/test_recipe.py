"""Recipes, and what deployments do to configurations."""

from pathlib import Path
from typing import Any

import pytest

from local_core.recipe import merge, read_recipe

_RECIPE = """
ComponentName: com.example.Test
ComponentVersion: "1.2.3"
ComponentDependencies:
  aws.greengrass.TokenExchangeService: {VersionRequirement: "^2.0.0", DependencyType: HARD}
ComponentConfiguration:
  DefaultConfiguration:
    limits: {a: 1}
Manifests:
  - Platform: {os: windows}
    Lifecycle: {run: never}
  - Platform: {os: linux, runtime: "*"}
    Lifecycle:
      Setenv: {A: "1", B: "{work:path}"}
      install: {Script: "make venv", Timeout: 900, Setenv: {A: "2"}}
      run: "exec run {work:path} {no:such}"
  - Platform: {os: linux}
    Lifecycle: {run: second}
"""


def test_the_first_manifest_for_this_platform_is_read(tmp_path: Path) -> None:
    """Defaults, dependencies and phases with their environment come from it; unknown variables stay."""
    (tmp_path / "recipe.yaml").write_text(_RECIPE)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe.name, recipe.version) == ("com.example.Test", "1.2.3")
    assert recipe.configuration == {"limits": {"a": 1}}
    assert recipe.dependencies == {"aws.greengrass.TokenExchangeService"}
    install, run = recipe.phases["install"], recipe.phases["run"]
    assert (install.script, install.environment["A"], install.timeout_seconds) == ("make venv", "2", 900)
    assert run.timeout_seconds is None
    ready = run.interpolated({"work:path": "/w"})
    assert (ready.script, ready.environment) == ("exec run /w {no:such}", {"A": "1", "B": "/w"})


@pytest.mark.parametrize(
    ("base", "update", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"offlineThreshold": "30d"}, {"OFFLINETHRESHOLD": "9d"}, {"offlineThreshold": "9d"}),
        ({"a": 1}, {"_a": 2, "b": {"_c": 1}}, {"a": 1, "b": {}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
    ],
)
def test_merging(base: dict[str, Any], update: dict[str, Any], merged: dict[str, Any]) -> None:
    """Maps merge by key with case folded, lists are replaced, underscored keys vanish."""
    before = repr(base)
    assert merge(base, update) == merged
    assert repr(base) == before
