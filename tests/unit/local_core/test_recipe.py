"""Recipes, and what deployments do to configurations."""

from pathlib import Path
from typing import Any

import pytest

from local_core.recipe import RecipeError, as_texts, changed_paths, look_up, merge, read_recipe, reset

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


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """A recipe as a component has it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(_RECIPE)
    return path


def test_the_first_manifest_for_this_platform_is_read(recipe_path: Path) -> None:
    """Defaults, dependencies and phases with their environment come from it; unknown variables stay."""
    recipe = read_recipe(recipe_path)
    assert (recipe.name, recipe.version) == ("com.example.Test", "1.2.3")
    assert recipe.configuration == {"limits": {"a": 1}}
    assert recipe.dependencies == {"aws.greengrass.TokenExchangeService"}
    install, run = recipe.phases["install"], recipe.phases["run"]
    assert (install.script, install.environment["A"], install.timeout_seconds) == ("make venv", "2", 900)
    assert run.timeout_seconds is None
    ready = run.interpolated({"work:path": "/w"})
    assert (ready.script, ready.environment) == ("exec run /w {no:such}", {"A": "1", "B": "/w"})


def test_lite_needs_a_manifest_that_names_its_runtime(recipe_path: Path) -> None:
    """One without a runtime is for the classic nucleus; the error says what was looked for."""
    assert read_recipe(recipe_path, lite=True).phases["install"].script == "make venv"
    recipe_path.write_text(_RECIPE.replace(', runtime: "*"', ""))
    with pytest.raises(RecipeError, match="Greengrass Lite"):
        read_recipe(recipe_path, lite=True)
    recipe_path.write_text("[]")
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        read_recipe(recipe_path)


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


@pytest.mark.parametrize(
    ("pointers", "result"),
    [([""], {"a": 1, "d": 4}), (["/A", "/y", "/none"], {"a": 1}), (["/d"], {"a": 7, "y": 9, "d": 4})],
)
def test_resetting(pointers: list[str], result: dict[str, Any]) -> None:
    """What has a default gets it back, anything else goes; an empty pointer means all."""
    assert reset({"a": 7, "y": 9}, {"a": 1, "d": 4}, pointers) == result


def test_changes_are_told_leaf_by_leaf() -> None:
    """Added, removed and changed leaves, each with its path."""
    before = {"a": {"b": 1, "c": 2}, "d": 3, "same": [1]}
    after = {"a": {"b": 9, "e": {"f": 1}}, "d": 3, "same": [1]}
    assert set(changed_paths(before, after)) == {("a", "b"), ("a", "c"), ("a", "e")}


def test_look_up_folds_case_and_tells_missing_from_null() -> None:
    """A null is a value; what is not there is `missing`."""
    assert look_up({"Ab": {"c": None}}, ["aB", "C"], "missing") is None
    assert look_up({"Ab": 1}, ["ab", "c"], "missing") == "missing"


def test_scalars_become_texts_as_on_lite() -> None:
    """Wherever they are, but for strings, which stay."""
    assert as_texts({"a": 1, "b": [True, "x", None]}) == {"a": "1", "b": ["true", "x", "null"]}
