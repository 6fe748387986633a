"""What `gdk component build` would pack, and that all that carries a version carries the same."""

import glob
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[1]
NAME = "community.greengrass.ClientDevicePruner"
CONFIGURATION: dict[str, Any] = json.loads((PROJECT / "gdk-config.json").read_text("utf-8"))
COMPONENT: dict[str, Any] = CONFIGURATION["component"][NAME]
OPTIONS: dict[str, Any] = COMPONENT["build"]["options"]


def excluded(project: Path) -> set[str]:
    """Return what a zip build leaves out: paths that a glob names, from the project's directory on."""
    patterns = ["gdk-config.json", "greengrass-build", "recipe.yaml", *OPTIONS["excludes"]]
    return {
        path.rstrip("/")
        for pattern in patterns
        for path in glob.glob(f"{glob.escape(str(project))}/{pattern}", recursive=True)  # noqa: PTH207 - what gdk calls
    }


def packed(project: Path, folder: Path) -> set[str]:
    """Pack a project as a zip build does; return the names of the files in the archive."""
    left_out = excluded(project)

    def ignore(directory: str, names: list[str]) -> set[str]:
        return {name for name in names if str(Path(directory) / name) in left_out}

    shutil.copytree(project, folder / "copy", ignore=ignore)
    archive = shutil.make_archive(str(folder / OPTIONS["zip_name"]), "zip", root_dir=folder / "copy")
    with zipfile.ZipFile(archive) as opened:
        return {name for name in opened.namelist() if not name.endswith("/")}


def test_artifact_holds_what_a_device_needs_and_no_more(tmp_path: Path) -> None:
    """The component, its installer, its pinned requirements, licence and README."""
    package = PROJECT / "src/client_device_pruner"
    modules = {str(path.relative_to(PROJECT)) for path in package.rglob("*.py")}
    others = {
        "LICENSE",
        "README.md",
        "requirements.txt",
        "src/client_device_pruner/py.typed",
        "src/install.sh",
    }
    assert packed(PROJECT, tmp_path) == modules | others


def test_leftovers_of_work_are_left_out(tmp_path: Path) -> None:
    """Caches, environments and builds of a checkout in use do not travel."""
    project = tmp_path / "a [checkout]"
    for name in (
        ".git/config",
        ".venv/lib/x.py",
        ".hypothesis/x",
        ".ci/run",
        "build/lib/x.py",
        "docs/x.md",
        "deploy/x.json",
        "greengrass-build/recipes/recipe.yaml",
        "zip-build/x/x.py",
        "src/client_device_pruner.egg-info/PKG-INFO",
        "src/client_device_pruner/__init__.py",
        "src/client_device_pruner/__pycache__/__init__.cpython-311.pyc",
        "src/client_device_pruner/sub/.swp",
        "src/local_core/core.py",
        "tests/test_x.py",
        "wheelhouse/boto3.whl",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    assert packed(project, tmp_path) == {"src/client_device_pruner/__init__.py", "wheelhouse/boto3.whl"}


def test_is_a_zip_build_under_the_recipe_s_artifact_name() -> None:
    """The recipe names the archive that is built, and gdk uploads to where it says."""
    assert COMPONENT["build"]["build_system"] == "zip"
    recipe = yaml.safe_load((PROJECT / "recipe.yaml").read_text("utf-8"))
    (artifact,) = recipe["Manifests"][0]["Artifacts"]
    assert artifact["Uri"] == f"s3://BUCKET_NAME/COMPONENT_NAME/COMPONENT_VERSION/{OPTIONS['zip_name']}.zip"
    assert OPTIONS["zip_name"] == "client-device-pruner"


def test_versions_are_equal() -> None:
    """Recipe, gdk and Python package are one version, and a fixed one."""
    recipe = yaml.safe_load((PROJECT / "recipe.yaml").read_text("utf-8"))
    assert recipe["ComponentName"] == NAME
    assert recipe["ComponentVersion"] == COMPONENT["version"]
    project = (PROJECT / "pyproject.toml").read_text("utf-8")
    assert re.findall(r'^version = "(.+)"$', project, re.MULTILINE) == [recipe["ComponentVersion"]]


def test_recipe_fits() -> None:
    """A zip build refuses a recipe beyond 16,000 bytes."""
    assert (PROJECT / "recipe.yaml").stat().st_size < 16_000
