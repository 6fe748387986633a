"""`install.sh`, run for real: what it makes, what it keeps, and what it says when it cannot."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
NO_INDEX = "http://127.0.0.1:9/"
"""Nobody listens there."""

pytestmark = pytest.mark.timeout(120)


@dataclass
class Device:
    """A work directory, an unpacked artifact, and a PATH."""

    artifact: Path
    work: Path
    environment: dict[str, str] = field(default_factory=dict)

    def install(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script as the recipe does."""
        return subprocess.run(
            ["sh", self.artifact / "src/install.sh", self.artifact, f"{self.work}/"],  # noqa: S607 - whatever sh there is
            env={
                **os.environ,
                "PIP_INDEX_URL": NO_INDEX,
                "PIP_RETRIES": "0",
                **self.environment,
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def pruner(self, *arguments: str) -> str:
        """Run the installed command and return what it prints."""
        return subprocess.run(
            [self.work / "pruner", *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    def require(self, wheel: Path) -> str:
        """Make requirements.txt ask for a bundled wheel; return the name of its environment."""
        name, version, _ = wheel.name.split("-", 2)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        requirements = self.artifact / "requirements.txt"
        requirements.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
        return f"venv-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"

    @property
    def in_force(self) -> str:
        """The environment that the link names."""
        return str((self.work / "venv").readlink())

    @property
    def environments(self) -> set[str]:
        """The environments in the work directory."""
        return {path.name for path in self.work.glob("venv-*")}


def make_wheel(folder: Path, version: str) -> Path:
    """Make a wheel that stands in for the component's real requirements."""
    files = {f"{module}.py": f"version = '{version}'\n" for module in ("awscrt", "awsiot", "boto3")}
    info = f"fakes-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: fakes\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record += f"{name},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    folder.mkdir(exist_ok=True)
    wheel = folder / f"fakes-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # without the time, which would change the hash
    return wheel


def make_artifact(folder: Path) -> Path:
    """Make an artifact with the real script and a component that prints how it was called."""
    component = folder / "src/client_device_pruner"
    component.mkdir(parents=True)
    (component / "__main__.py").write_text("import sys, boto3\nprint(boto3.version, sys.argv[1:])\n")
    shutil.copy(PROJECT / "src/install.sh", folder / "src")
    return folder


def make_device(folder: Path) -> Device:
    """Make a device whose paths are as awkward as they may be, with version 1.0 of the packages bundled."""
    device = Device(make_artifact(folder / "the artifact's"), folder / "work of $HOME's")
    device.require(make_wheel(device.artifact / "wheelhouse", "1.0"))
    return device


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device on which nothing is installed yet."""
    return make_device(tmp_path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a device after its first installation, made once since that takes seconds."""
    device = make_device(tmp_path_factory.mktemp("template"))
    assert device.install().returncode == 0
    return device.work


@pytest.fixture
def installed(device: Device, template: Path) -> Device:
    """A device on which version 1.0 is installed."""
    shutil.copytree(template, device.work, symlinks=True)
    assert device.install().returncode == 0
    return device


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with the commands that the script uses, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (
        "sh",
        "mkdir",
        "chmod",
        "rm",
        "mv",
        "ln",
        "cat",
        "cut",
        "sed",
        "sha256sum",
        "readlink",
        "date",
        "sync",
    ):
        path = shutil.which(name)
        assert path is not None
        (folder / name).symlink_to(path)
    return folder


def add_python(tools: Path, name: str, script: str) -> None:
    """Put an executable of that name on the PATH."""
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)


def test_makes_environment_and_command(device: Device) -> None:
    """Bundled wheels are enough; the command puts the work directory behind the command's name."""
    result = device.install()
    assert (result.returncode, result.stderr) == (0, "")
    assert device.in_force == device.require(device.artifact / "wheelhouse/fakes-1.0-py3-none-any.whl")
    assert device.environments == {device.in_force}
    work = str(device.work)
    assert device.pruner() == f"1.0 {['--work-dir', work]}"
    assert (
        device.pruner("restore", "a b", "--json") == f"1.0 {['restore', '--work-dir', work, 'a b', '--json']}"
    )
    assert (device.work / "pruner").stat().st_mode & 0o777 == 0o755
    assert {path.name for path in device.work.iterdir()} == {device.in_force, "venv", "pruner"}


def test_repeated_does_nothing_slow(installed: Device) -> None:
    """With the same requirements the environment stays, and the command follows the new artifact."""
    made = (installed.work / "venv/complete").stat().st_mtime_ns
    moved = installed.artifact.with_name("next version")
    installed.artifact.rename(moved)
    installed.artifact = moved
    begin = time.monotonic()
    assert installed.install().returncode == 0
    assert time.monotonic() - begin < 5
    assert (installed.work / "venv/complete").stat().st_mtime_ns == made
    assert installed.pruner("status").startswith("1.0")


def test_keeps_the_last_environment_and_removes_older_ones(installed: Device) -> None:
    """After a switch the one that was in force is kept for a way back, and no more."""
    names = []
    for version in ("1.0", "2.0", "3.0"):
        names.append(installed.require(make_wheel(installed.artifact / "wheelhouse", version)))
        assert installed.install().returncode == 0
        assert installed.pruner().startswith(version)
    assert installed.in_force == names[2]
    assert installed.environments == {names[1], names[2]}
    installed.require(installed.artifact / "wheelhouse/fakes-2.0-py3-none-any.whl")
    shutil.rmtree(installed.artifact / "wheelhouse")
    assert installed.install().returncode == 0
    assert installed.pruner().startswith("2.0")


def test_failed_install_leaves_the_one_in_force(installed: Device) -> None:
    """Without an index the old environment and command go on, and nothing half made stays."""
    name, before = installed.in_force, installed.pruner()
    installed.require(make_wheel(installed.artifact / "elsewhere", "2.0"))
    shutil.rmtree(installed.artifact / "wheelhouse")
    result = installed.install()
    assert result.returncode == 1
    assert "could not be installed; see pip's messages above." in result.stderr.splitlines()[-1]
    assert installed.pruner() == before
    assert {path.name for path in installed.work.iterdir()} == {name, "venv", "pruner"}


def test_wrong_hash_is_refused(device: Device) -> None:
    """A wheel that is not the one that was pinned is not installed."""
    requirements = device.artifact / "requirements.txt"
    requirements.write_text(f"fakes==1.0 --hash=sha256:{'0' * 64}\n")
    assert device.install().returncode == 1
    assert not (device.work / "venv").exists()


def test_interrupted_install_is_begun_anew(installed: Device) -> None:
    """An environment that never became complete is not taken for one."""
    (installed.work / "venv").unlink()
    (installed.work / installed.environments.pop() / "complete").unlink()
    assert installed.install().returncode == 0
    assert installed.pruner().startswith("1.0")
    assert len(installed.environments) == 1


def test_unusable_environment_is_replaced_only_by_a_complete_one(installed: Device) -> None:
    """One in force that no longer works stays until its successor is made."""
    broken = installed.in_force
    for module in (installed.work / "venv/lib").glob("*/site-packages/boto3.py"):
        module.unlink()
    hidden = installed.artifact / "wheelhouse.away"
    (installed.artifact / "wheelhouse").rename(hidden)
    assert installed.install().returncode == 1
    assert installed.in_force == broken
    assert installed.environments == {broken}
    hidden.rename(installed.artifact / "wheelhouse")
    assert installed.install().returncode == 0
    assert installed.in_force != broken
    assert installed.pruner().startswith("1.0")
    unchanged = installed.in_force
    assert installed.install().returncode == 0
    assert installed.in_force == unchanged


def test_settings_for_people_do_not_redirect(device: Device, tmp_path: Path) -> None:
    """Options for personal installations, and files in a home directory, have no say."""
    home = tmp_path / "home"
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text("[install]\nuser = true\nprefix = /nowhere\n")
    result = device.install(
        HOME=str(home), PIP_USER="1", PIP_TARGET=str(home / "target"), PYTHONPATH=str(home)
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert not (home / "target").exists()
    assert device.pruner().startswith("1.0")


def test_externally_managed_python(device: Device) -> None:
    """A distribution's Python that forbids installing packages (PEP 668) serves all the same."""
    found = [
        python
        for minor in range(10, 15)
        if (python := Path(f"/usr/bin/python3.{minor}")).exists()
        and Path(f"/usr/lib/python3.{minor}/EXTERNALLY-MANAGED").exists()
        and subprocess.run(
            [python, "-c", "import ensurepip, venv"], capture_output=True, check=False
        ).returncode
        == 0
    ]
    if not found:
        pytest.skip("no externally managed Python with venv here")
    result = device.install(PATH=f"{found[0].parent}{os.pathsep}{os.environ['PATH']}")
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("1.0")


def test_newest_complete_python_is_taken(device: Device, tools: Path, tmp_path: Path) -> None:
    """An old Python, one that only pretends, and one without ensurepip are passed over."""
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "ensurepip.py").write_text("raise ImportError\n")
    add_python(tools, "python3.14", "exit 127")
    add_python(tools, "python3.13", f'PYTHONPATH="{shim}" exec "{sys.executable}" "$@"')
    add_python(tools, "python3.10", f'exec "{sys.executable}" "$@"')
    result = device.install(PATH=str(tools))
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("1.0")


def test_says_which_modules_are_missing(device: Device, tools: Path, tmp_path: Path) -> None:
    """Each missing module has its sentence, with what to do."""
    shim = tmp_path / "shim"
    shim.mkdir()
    for module in ("ensurepip", "sqlite3"):
        (shim / f"{module}.py").write_text("raise ImportError\n")
    add_python(tools, "python3", f'PYTHONPATH="{shim}" exec "{sys.executable}" "$@"')
    result = device.install(PATH=str(tools))
    assert result.returncode == 1
    ensurepip, sqlite3 = result.stderr.splitlines()
    assert "lacks the module ensurepip; on Debian and Ubuntu install python3." in ensurepip
    assert "lacks the module sqlite3; install" in sqlite3


@pytest.mark.parametrize("script", ["", "exit 1"], ids=["none", "old"])
def test_says_that_python_is_missing(device: Device, tools: Path, script: str) -> None:
    """No Python, or only an old one, is one sentence."""
    if script:
        add_python(tools, "python3", script)
    result = device.install(PATH=str(tools))
    assert result.returncode == 1
    assert "needs Python 3.10 or newer" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_says_that_space_is_short(device: Device) -> None:
    """Too little free space is found before anything is made."""
    script = device.artifact / "src/install.sh"
    script.write_text(script.read_text().replace("needed_mb=150", "needed_mb=999999999"))
    result = device.install()
    assert result.returncode == 1
    assert "needs 999999999 MB of free space" in result.stderr
    assert list(device.work.iterdir()) == []


def test_says_that_the_work_directory_is_unusable(device: Device, tmp_path: Path) -> None:
    """A work directory that cannot be made, or written in, is one sentence."""
    (tmp_path / "file").touch()
    for work, sentence in (
        (tmp_path / "file/work", "cannot be made."),
        (Path("/proc"), "cannot be written in."),
    ):
        device.work = work
        result = device.install()
        assert result.returncode == 1
        assert result.stderr.strip().endswith(sentence)
        assert len(result.stderr.splitlines()) == 1


def test_says_that_programs_cannot_be_executed(device: Device) -> None:
    """A work directory on a file system without execution is one sentence."""
    device.work.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", device.work],  # noqa: S607 - wherever it is
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        result = device.install()
    finally:
        subprocess.run(["umount", device.work], check=True)  # noqa: S607 - wherever it is
    assert result.returncode == 1
    assert "programs cannot be executed in the work directory" in result.stderr


@pytest.mark.timeout(180)
def test_real_requirements(device: Device) -> None:
    """What is pinned installs from the index, hashes and all."""
    shutil.rmtree(device.artifact / "wheelhouse")
    shutil.copy(PROJECT / "requirements.txt", device.artifact)
    (device.artifact / "src/client_device_pruner/__main__.py").write_text(
        "import awsiot, boto3\nprint('imported')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PIP_INDEX_URL"}
    result = subprocess.run(
        ["sh", device.artifact / "src/install.sh", device.artifact, device.work],  # noqa: S607 - whatever sh there is
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner() == "imported"
