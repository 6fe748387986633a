"""What `gdk component build` would pack, that it installs from an index, and the recipe as each nucleus reads it."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from client_device_pruner import __version__

PROJECT = Path(__file__).parents[3]
NAME = "community.greengrass.ClientDevicePruner"
RECIPE_PATH = PROJECT / "recipe.yaml"
RECIPE: dict[str, Any] = yaml.safe_load(RECIPE_PATH.read_text("utf-8"))
ACCESS: dict[str, Any] = RECIPE["ComponentConfiguration"]["DefaultConfiguration"]["accessControl"]
(MANIFEST,) = RECIPE["Manifests"]
LIFECYCLE: dict[str, Any] = MANIFEST["Lifecycle"]
COMPONENT: dict[str, Any] = json.loads((PROJECT / "gdk-config.json").read_text("utf-8"))["component"][NAME]
OPTIONS: dict[str, Any] = COMPONENT["build"]["options"]
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")


def pack(project: Path, folder: Path) -> Path:
    """Pack a project as a zip build does, which leaves out what globs name from the project on; return the archive."""
    patterns = ["gdk-config.json", "greengrass-build", "recipe.yaml", *OPTIONS["excludes"]]
    left_out = {
        path.rstrip("/")
        for pattern in patterns
        for path in glob.glob(f"{glob.escape(str(project))}/{pattern}", recursive=True)  # noqa: PTH207 - what gdk calls
    }

    def ignore(directory: str, names: list[str]) -> set[str]:
        return {name for name in names if str(Path(directory) / name) in left_out}

    shutil.copytree(project, folder / "copy", ignore=ignore)
    return Path(shutil.make_archive(str(folder / OPTIONS["zip_name"]), "zip", root_dir=folder / "copy"))


def packed(project: Path, folder: Path) -> set[str]:
    """Pack a project; return the names of the files in the archive."""
    with zipfile.ZipFile(pack(project, folder)) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_artifact_holds_what_a_device_needs_and_no_more(tmp_path: Path) -> None:
    """The component, its installer, its pinned requirements and the licence."""
    package = PROJECT / "src/client_device_pruner"
    component = {
        str(path.relative_to(PROJECT))
        for path in package.rglob("*")
        if path.is_file() and path.suffix in {".py", ".html", ".typed"}
    }
    others = {"LICENSE", "requirements.txt", "src/install.sh", "src/install_authorities.py"}
    wheels = {f"wheelhouse/{path.name}" for path in PROJECT.glob("wheelhouse/*")}
    assert packed(PROJECT, tmp_path) - wheels == component | others


def test_leftovers_of_work_are_left_out(tmp_path: Path) -> None:
    """Caches, environments and builds of a checkout in use do not travel; bundled wheels do."""
    kept = {"src/client_device_pruner/__init__.py", "src/client_device_pruner/cli/x.py", "wheelhouse/boto3.whl"}
    project = tmp_path / "a [checkout]"
    for name in (
        ".ci/run",
        ".git/config",
        ".hypothesis/x",
        ".venv/lib/x.py",
        "benchmarks/x.py",
        "build/envs/3.10/x.py",
        "deploy/x.json",
        "docs/x.md",
        "greengrass-build/recipes/recipe.yaml",
        "local-core/work/pruner.db",
        "src/client_device_pruner.egg-info/PKG-INFO",
        "src/client_device_pruner/__pycache__/__init__.cpython-311.pyc",
        "src/client_device_pruner/sub/.swp",
        "src/local_core/core.py",
        "tests/test_x.py",
        "zip-build/x/x.py",
        *kept,
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    assert packed(project, tmp_path) == kept


def test_is_a_zip_build_under_the_recipe_s_artifact_name() -> None:
    """The recipe names the archive that is built, gdk uploads to where it says, and a nucleus unpacks it."""
    (artifact,) = MANIFEST["Artifacts"]
    assert (COMPONENT["build"]["build_system"], OPTIONS["zip_name"]) == ("zip", "client-device-pruner")
    assert artifact["Uri"] == "s3://BUCKET_NAME/COMPONENT_NAME/COMPONENT_VERSION/client-device-pruner.zip"
    assert artifact["Unarchive"] == "ZIP"


def test_versions_are_equal() -> None:
    """Recipe, gdk, Python package and project are one version, and the changelog has an entry for it."""
    project = (PROJECT / "pyproject.toml").read_text("utf-8")
    changes = (PROJECT / "CHANGELOG.md").read_text("utf-8")
    assert RECIPE["ComponentName"] == NAME
    assert RECIPE["ComponentVersion"] == COMPONENT["version"] == __version__
    assert re.findall(r'^version = "(.+)"$', project, re.MULTILINE) == [__version__]
    assert re.findall(r"^## \[([\d.]+)\]", changes, re.MULTILINE)[0] == __version__


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_are_pinned_and_hashed(name: str) -> None:
    """Every package has one version a Python, and hashes for each file."""
    text = re.sub(r"\s*\\\n\s*", " ", (PROJECT / name).read_text("utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) > 5
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==\S+( ;[^-]+(-\w[^-]*)*)?( --hash=sha256:[0-9a-f]{64})+", line), line[:80]


@pytest.mark.long
def test_artifact_installs_from_the_index(tmp_path: Path) -> None:
    """The artifact installs the real packages where it is unpacked, and its command runs in a bare environment."""
    with zipfile.ZipFile(pack(PROJECT, tmp_path)) as archive:
        archive.extractall(tmp_path / "artifact")
    path = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
    install = ["sh", *(str(tmp_path / name) for name in ("artifact/src/install.sh", "artifact", "work"))]
    done = subprocess.run(install, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pruner = str(tmp_path / "work/pruner")
    helped = subprocess.run([pruner, "--help"], env={}, capture_output=True, text=True, check=False)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage: pruner" in helped.stdout
    modules = "import awscrt.io, awsiot.greengrasscoreipc, boto3, sys; print(sys.prefix)"
    said = subprocess.check_output([tmp_path / "work/venv/bin/python", "-c", modules], env={}, text=True)
    assert said.strip().startswith(str(tmp_path / "work/venv"))


def test_fits_the_service() -> None:
    """Format and size are what the service accepts; one manifest serves every Linux, on nucleus classic and Lite."""
    assert RECIPE["RecipeFormatVersion"] == "2020-01-25"
    assert RECIPE_PATH.stat().st_size < 16_000
    assert MANIFEST["Platform"] == {"os": "linux", "runtime": "*"}


def test_access_control_is_the_contract_s() -> None:
    """No more than is used; what was released stays, since a nucleus that upgrades keeps what it has of a policy."""
    pubsub, proxy = "aws.greengrass.ipc.pubsub", "aws.greengrass.ipc.mqttproxy"
    probe, shadow = "pruner-probe/*", "$aws/things/*/shadow/name/client-device-pruner/update"
    granted = {
        policy: (service, rule["operations"], rule["resources"])
        for service, policies in ACCESS.items()
        for policy, rule in policies.items()
    }
    assert granted == {
        f"{NAME}:pubsub:subscribe:1": (pubsub, ["aws.greengrass#SubscribeToTopic"], ["client-device-pruner/*"]),
        f"{NAME}:pubsub:publish:1": (pubsub, ["aws.greengrass#PublishToTopic"], ["client-device-pruner/*", probe]),
        f"{NAME}:mqttproxy:publish:1": (proxy, ["aws.greengrass#PublishToIoTCore"], ["client-device-pruner/*", shadow]),
    }


def test_dependencies() -> None:
    """Credentials are needed; nothing is that some core devices cannot have."""
    dependencies = {name: entry["DependencyType"] for name, entry in RECIPE["ComponentDependencies"].items()}
    assert dependencies == {"aws.greengrass.Nucleus": "SOFT", "aws.greengrass.TokenExchangeService": "HARD"}


def test_lifecycle() -> None:
    """Phases are lower-case and without privilege; installing has a time-out, running none."""
    assert set(LIFECYCLE) == {"install", "run"}
    assert LIFECYCLE["install"]["Timeout"] == 900
    assert LIFECYCLE["run"]["Script"] == 'exec "{work:path}/pruner"'
    artifact = "{artifacts:decompressedPath}/client-device-pruner"
    script = ["sh", f'"{artifact}/src/install.sh"', f'"{artifact}"', '"{work:path}"']
    assert LIFECYCLE["install"]["Script"].split() == script


@pytest.mark.parametrize("phase", ["install", "run"])
def test_phases_run_under_sudo_on_any_nucleus(phase: str) -> None:
    """No variables, since sudo strips some (case 32), Lite cannot export all; no brace but a recipe variable's."""
    assert set(LIFECYCLE[phase]) <= {"Script", "Timeout"}
    script = LIFECYCLE[phase]["Script"]
    assert "$" not in script
    for variable in ("{artifacts:decompressedPath}", "{work:path}"):
        script = script.replace(variable, "/somewhere")
    assert not set("{}") & set(script)
    subprocess.run(["sh", "-n", "-c", script], check=True)


def test_scalars_read_alike_everywhere() -> None:
    """YAML 1.1 and 1.2 agree on every scalar: texts that look like something else are quoted."""
    for token in yaml.scan(RECIPE_PATH.read_text("utf-8")):
        if isinstance(token, yaml.ScalarToken) and token.plain:
            assert not re.fullmatch(r"(?i)yes|no|on|off|y|n|~|null|[-+.\d][-+._:\d]*[.:_][-+._:\d]*", token.value)
