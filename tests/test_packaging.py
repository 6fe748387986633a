"""What `gdk component build` would pack, that it installs without a network, and that its versions are the same."""

import asyncio
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client_device_pruner import __version__
from install_wheels import Target, choose, read_requirements
from local_core.component import State
from local_core.core import LocalCore
from local_core.devices import ClientDevices
from readme import commands
from trial_site import COMPONENT as COMPONENT_NAME
from trial_site import Site

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


def pack(project: Path, folder: Path) -> Path:
    """Pack a project as a zip build does; return the archive."""
    left_out = excluded(project)

    def ignore(directory: str, names: list[str]) -> set[str]:
        return {name for name in names if str(Path(directory) / name) in left_out}

    shutil.copytree(project, folder / "copy", ignore=ignore)
    return Path(shutil.make_archive(str(folder / OPTIONS["zip_name"]), "zip", root_dir=folder / "copy"))


def packed(project: Path, folder: Path) -> set[str]:
    """Pack a project; return the names of the files in the archive."""
    with zipfile.ZipFile(pack(project, folder)) as opened:
        return {name for name in opened.namelist() if not name.endswith("/")}


def test_artifact_holds_what_a_device_needs_and_no_more(tmp_path: Path) -> None:
    """The component, its installer, its pinned requirements, licence and README; and what was built to go with them."""
    package = PROJECT / "src/client_device_pruner"
    modules = {str(path.relative_to(PROJECT)) for path in package.rglob("*.py")}
    others = {
        "LICENSE",
        "README.md",
        "requirements.txt",
        "src/client_device_pruner/py.typed",
        "src/client_device_pruner/report.html",
        "src/install.sh",
        "src/install_authorities.py",
        "src/install_bytecode.py",
        "src/install_wheels.py",
    }
    built = {"build/sbom.cdx.json", *(f"wheelhouse/{path.name}" for path in PROJECT.glob("wheelhouse/*"))}
    assert packed(PROJECT, tmp_path) - built == modules | others


def test_leftovers_of_work_are_left_out(tmp_path: Path) -> None:
    """Caches, environments and builds of a checkout in use do not travel."""
    project = tmp_path / "a [checkout]"
    for name in (
        ".git/config",
        ".venv/lib/x.py",
        ".hypothesis/x",
        ".ci/run",
        "build/lib/x.py",
        "build/envs/3.10/x.py",
        "build/sbom.cdx.json",
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
    kept = {"build/sbom.cdx.json", "src/client_device_pruner/__init__.py", "wheelhouse/boto3.whl"}
    assert packed(project, tmp_path) == kept


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
    assert __version__ == recipe["ComponentVersion"], "what the shadow and --version say"


def test_recipe_fits() -> None:
    """A zip build refuses a recipe beyond 16,000 bytes."""
    assert (PROJECT / "recipe.yaml").stat().st_size < 16_000


def make(target: str, *, dry: bool = True) -> str:
    """Return what make would run for a target."""
    command = ["make", "--no-print-directory", "-C", str(PROJECT), *(["--dry-run"] if dry else []), target]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_bill_of_materials(tmp_path: Path) -> None:
    """It is valid CycloneDX, always the same, and names what is pinned in the versions that are."""
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    for file in files:
        command = make("sbom").replace("\\\n", "").splitlines()[-1].split()
        command[command.index("build/sbom.cdx.json")] = str(file)
        assert "--no-validate" not in command
        subprocess.run([sys.executable, *command[1:]], cwd=PROJECT, check=True)
    bill = json.loads(files[0].read_text("utf-8"))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert bill["bomFormat"] == "CycloneDX"
    pinned = read_requirements((PROJECT / "requirements.txt").read_text("utf-8"))
    assert {(part["name"], part["version"], part["purl"]) for part in bill["components"]} == {
        (pin.name, pin.version, f"pkg:pypi/{pin.name}@{pin.version}") for pin in pinned
    }
    assert bill["metadata"]["component"]["version"] == COMPONENT["version"]
    assert str(PROJECT) not in files[0].read_text("utf-8")


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheelhouse` makes, downloaded once."""
    folder = tmp_path_factory.mktemp("built") / "wheelhouse"
    command = make("wheelhouse").splitlines()[-1].split()
    assert command[-1] == "wheelhouse"
    subprocess.run([sys.executable, *command[1:-1], str(folder)], cwd=PROJECT, check=True)
    return folder


@pytest.fixture
def fresh(wheelhouse: Path) -> Iterator[Path]:
    """A folder outside of /tmp with the unpacked artifact, the wheelhouse in it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="fresh core ") as name:
        folder = Path(name)
        with zipfile.ZipFile(pack(PROJECT, folder)) as archive:
            archive.extractall(folder / "artifact")
        shutil.rmtree(folder / "copy")
        shutil.rmtree(folder / "artifact/wheelhouse", ignore_errors=True)
        shutil.copytree(wheelhouse, folder / "artifact/wheelhouse")
        yield folder


@pytest.mark.timeout(240)
def test_wheelhouse_serves_every_machine_and_python(wheelhouse: Path) -> None:
    """Both machines and each Python have every package; what is pinned, and nothing else. Sizes are the README's."""
    pinned = read_requirements((PROJECT / "requirements.txt").read_text("utf-8"))
    chosen = {
        machine: {
            choose(requirement, wheelhouse, Target(minor, machine, (2, 17)))
            for requirement in pinned
            for minor in range(10, 15)
        }
        for machine in ("x86_64", "aarch64")
    }
    assert set.union(*chosen.values()) == set(wheelhouse.iterdir())
    readme = " ".join((PROJECT / "README.md").read_text("utf-8").split())
    assert f"; {megabytes(set(wheelhouse.iterdir())):.0f} MB, downloads for both machines" in readme
    for machine, wheels in chosen.items():
        assert f"{machine} ({megabytes(wheels):.1f} MB" in readme


def megabytes(files: set[Path]) -> float:
    """How large files are together."""
    return sum(path.stat().st_size for path in files) / 1e6


WITHOUT_NETWORK = """
set -e
mount -t tmpfs -o size=16k,mode=1777 tmpfs /tmp
cd "$1"
env -i PATH="$2" AWS_CA_BUNDLE=/nowhere GG_ROOT_CA_PATH=/nowhere sh artifact/src/install.sh artifact work
env -i PATH="$2" work/pruner --help
env -i work/venv/bin/python -c 'import sys, awscrt.io, awsiot.greengrasscoreipc, boto3; print(sys.prefix)'
"""


def add_program(path: Path, script: str) -> None:
    """Make an executable script."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lacking", ["", "venv ensurepip"], ids=["venv", "no-venv"])
def test_fresh_machine_without_network(fresh: Path, lacking: str) -> None:
    """With no network, no home, no pip settings and almost no /tmp the real packages install and load."""
    if subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, check=False).returncode:  # noqa: S607 - wherever it is
        pytest.skip("a machine without network takes root's rights")
    (fresh / "bin").mkdir()
    for module in lacking.split():
        (fresh / "bin" / f"{module}.py").write_text("raise ImportError\n")
    for minor in ("", *(f".{number}" for number in range(10, 14))):
        add_program(fresh / f"bin/python3{minor}", "exit 127")
    python = sys._base_executable  # type: ignore[attr-defined]
    add_program(fresh / "bin/python3.14", f'PYTHONPATH="{fresh}/bin" exec "{python}" "$@"')
    result = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", WITHOUT_NETWORK, "sh", fresh, f"{fresh}/bin:/usr/bin:/bin"],  # noqa: S607 - as above
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage:" in result.stdout.lower()
    assert result.stdout.rstrip().splitlines()[-1].startswith(str(fresh / "work/venv"))


@pytest.fixture
async def site(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A core on which the component was installed and runs from the archive alone, without an index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    core = LocalCore(
        fresh / "core", artifact=fresh / "artifact", count_interval_seconds=0.25, uptime_interval_seconds=0.25
    )
    async with core, ClientDevices(lambda: core.broker.port) as devices:
        yield Site(core, devices)


GONE = [f"press-{number}" for number in range(6)]
ON_A_CORE = {
    str(command)
    for document in ("README.md", "CONTRIBUTING.md", "deploy/fleet-indexing.md")
    for command in commands(document)
    if command.is_for_a_core
}


@pytest.mark.e2e
@pytest.mark.timeout(400)
async def test_the_built_artifact_runs_all_that_the_documents_show(site: Site, tmp_path: Path) -> None:
    """The recipe's install and run, then each command of README.md with its installed `pruner`, in one story."""
    ran = set[str]()

    async def run(*forms: str, **named: str) -> str:
        """Run commands as they stand in a document, with these for its placeholders; returns what the last said."""
        printed = b""
        for form in forms:
            ran.add(form)
            words = [named.get(word.rstrip("…"), word) for word in form.removeprefix("sudo ").split()]
            program = re.sub("^pruner$", f"{site.core.work_dir}/pruner", words[0])
            words = [word.replace("/greengrass/v2", str(site.core.root)) for word in (program, *words[1:])]
            process = await asyncio.create_subprocess_exec(
                *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}
            )
            printed, complaint = await process.communicate()
            assert (process.returncode, complaint) == (0, b""), form
        return printed.decode()

    site.core.cloud.associate("alive", *GONE)
    limits = {"approvalPercent": 50, "maxPercentPerDay": 100, "maxPerCycle": 2}
    await site.deploy(limits=limits, massLoss={"window": "10s"})
    await site.core.component.wait_for_state(State.RUNNING, timeout_seconds=240)
    await site.event("cycle", seconds=60)
    await site.devices.connect("alive")
    await site.devices.connect(*GONE, process="line")
    await site.event("released", guard="source:emqx")
    assert "alive" in await run("pruner status", "pruner list")
    # What is shown is written within a second of an event.
    until = time.monotonic() + 30
    while "it is connected" not in await run("pruner history", "pruner explain THING", THING="alive"):
        assert time.monotonic() < until, "what is shown does not follow"

    await site.devices.kill("line")
    plan = await site.until(lambda: site.status()["plan"], what="no plan waits")
    while set(plan["devices"]) != set(GONE):
        plan = await site.until(lambda: site.status()["plan"])
    assert GONE[0] in await run("pruner list --state S", "pruner list --state due", S="due")
    await run("pruner approve PLAN", PLAN=plan["id"])
    cycles: dict[str, list[str]] = {}
    for name in GONE:
        gone = await site.event("disassociated", name)
        cycles.setdefault(gone["cycleId"], []).append(name)
    (_, first), (second, others), (_, last) = sorted(cycles.items(), key=lambda cycle: -len(cycle[1]))
    assert "census" in await run("pruner history THING", THING=first[0])

    folder = f"sudo /greengrass/v2/work/{COMPONENT_NAME}"
    # One each: the component may have carried one out before the next is asked for.
    await run(f"{folder}/pruner history", "pruner restore THING…", THING=first[0])
    await run("pruner restore THING", THING=first[1])
    await run(f"{folder}/pruner restore THING", THING=last[0])
    await run("pruner restore --cycle ID", ID=second)
    for name in (*first, last[0], *others):
        await site.event("restored", name)
    assert last[1] not in site.associated
    await run("pruner restore --all")
    await site.event("restored", last[1])
    assert site.associated == {"alive", *GONE}
    await run("pruner report FILE.html", **{"FILE.html": str(tmp_path / "FILE.html")})
    assert (tmp_path / "FILE.html").stat().st_size > 10_000
    assert "message" in await run(f"sudo tail /greengrass/v2/logs/{COMPONENT_NAME}.log")

    await site.core.stop_component()
    (compiled,) = (site.core.work_dir / "bytecode").rglob("client_device_pruner/component.*.pyc")
    os.truncate(compiled, 1000)
    site.core.start_component()
    await site.core.component.wait_for_state(State.BROKEN)
    assert "marshal data" in await run(f"sudo tail /greengrass/v2/logs/{COMPONENT_NAME}.log")
    await run(f"sudo rm -r /greengrass/v2/work/{COMPONENT_NAME}/bytecode")
    until = len(site.of_type("cycle"))
    site.core.start_component()
    await site.until(lambda: len(site.of_type("cycle")) > until)
    assert ran == ON_A_CORE
    site.check_events()
