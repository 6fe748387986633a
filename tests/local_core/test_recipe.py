"""Recipes, and what deployments do to configurations."""

from pathlib import Path
from typing import Any

import pytest

from local_core.recipe import (
    RecipeError,
    changed_paths,
    interpolate,
    look_up,
    merge,
    read_recipe,
    reset,
)

_RECIPE = """
RecipeFormatVersion: "2020-01-25"
ComponentName: com.example.Test
ComponentVersion: "1.2.3"
ComponentDependencies:
  aws.greengrass.TokenExchangeService: {VersionRequirement: "^2.0.0", DependencyType: HARD}
ComponentConfiguration:
  DefaultConfiguration:
    limits: {a: 1, _hidden: 2}
Manifests:
  - Platform: {os: windows}
    Lifecycle: {run: never}
  - Platform: {os: linux, architecture: "/amd64|aarch64|arm|.*/", runtime: "*"}
    Artifacts: [{Uri: "s3://BUCKET/x.zip", Unarchive: ZIP}]
    Lifecycle:
      Setenv: {A: "1", B: "{work:path}"}
      install: {Script: "make venv", Timeout: 900, Setenv: {A: "2"}}
      run: "exec run {configuration:/limits/a}"
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
    """Defaults, artifacts, dependencies and phases with their environment come from it."""
    recipe = read_recipe(recipe_path)
    assert (recipe.name, recipe.version) == ("com.example.Test", "1.2.3")
    assert recipe.configuration == {"limits": {"a": 1}}
    assert recipe.dependencies == {"aws.greengrass.TokenExchangeService"}
    assert recipe.artifacts == ("s3://BUCKET/x.zip",)
    install, run = recipe.phases["install"], recipe.phases["run"]
    assert (install.script, install.environment["A"], install.timeout_seconds) == ("make venv", "2", 900)
    assert run.timeout_seconds is None
    ready = run.interpolated({"work:path": "/w"}, recipe.configuration)
    assert (ready.script, ready.environment) == ("exec run 1", {"A": "1", "B": "/w"})


def test_lite_needs_a_manifest_that_names_its_runtime(recipe_path: Path) -> None:
    """One without a runtime is for the classic nucleus; the error says what was looked for."""
    assert read_recipe(recipe_path, runtime="aws_nucleus_lite").phases["install"].script == "make venv"
    recipe_path.write_text(_RECIPE.replace(', runtime: "*"', ""))
    with pytest.raises(RecipeError, match="aws_nucleus_lite"):
        read_recipe(recipe_path, runtime="aws_nucleus_lite")


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "other.yaml"
    path.write_text("[]")
    with pytest.raises(RecipeError, match=r"other\.yaml"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("base", "update", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"offlineThreshold": "30d"}, {"OFFLINETHRESHOLD": "9d"}, {"offlineThreshold": "9d"}),
        ({"a": 1}, {"_a": 2, "b": {"_c": 1}}, {"a": 1, "b": {}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_merging(base: dict[str, Any], update: dict[str, Any], merged: dict[str, Any]) -> None:
    """Maps merge by key with case folded, lists are replaced, underscored keys vanish."""
    before = repr(base)
    assert merge(base, update) == merged
    assert repr(base) == before


@pytest.mark.parametrize(
    ("pointers", "result"),
    [
        ([""], {"a": {"b": 1}, "d": 4}),
        (["/a/b"], {"a": {"b": 1, "x": 8}, "y": 9}),
        (["/a/X", "/y"], {"a": {"b": 7}}),
        (["/a"], {"a": {"b": 1}, "y": 9}),
        (["/d"], {"a": {"b": 7, "x": 8}, "y": 9, "d": 4}),
        (["/no/such"], {"a": {"b": 7, "x": 8}, "y": 9}),
    ],
)
def test_resetting(pointers: list[str], result: dict[str, Any]) -> None:
    """What has a default gets it back, anything else goes; an empty pointer means all."""
    configuration = {"a": {"b": 7, "x": 8}, "y": 9}
    assert reset(configuration, {"a": {"b": 1}, "d": 4}, pointers) == result
    assert configuration == {"a": {"b": 7, "x": 8}, "y": 9}


def test_a_reset_below_what_is_gone_brings_the_default_back() -> None:
    """Also where the parent has been replaced."""
    assert reset({"a": None}, {"a": {"b": 1}}, ["/a/b"]) == {"a": {"b": 1}}


def test_interpolation_leaves_alone_what_it_does_not_know() -> None:
    """Known variables and configuration values are replaced, everything else stays as it is."""
    configuration = {"Name": "n", "deep": {"a/b": True, "list": [1]}}
    text = "{work:path} {configuration:/name} {configuration:/deep/a~1b} {configuration:/deep/list}"
    assert interpolate(text, {"work:path": "/w"}, configuration) == "/w n true [1]"
    for unknown in ("{no:such}", "${VAR}", "{configuration:/no}", "{ a: 1 }", "{}", "{work:path }"):
        assert interpolate(unknown, {"work:path": "/w"}, configuration) == unknown


def test_changes_are_told_leaf_by_leaf() -> None:
    """Added, removed and changed leaves, each with its path."""
    before = {"a": {"b": 1, "c": 2}, "d": 3, "same": [1]}
    after = {"a": {"b": 9, "e": {"f": 1}}, "d": 3, "same": [1]}
    assert set(changed_paths(before, after)) == {("a", "b"), ("a", "c"), ("a", "e")}


def test_look_up_folds_case_and_tells_missing_from_null() -> None:
    """A null is a value; what is not there is `missing`."""
    assert look_up({"Ab": {"c": None}}, ["aB", "C"], "missing") is None
    assert look_up({"Ab": 1}, ["ab", "c"], "missing") == "missing"
