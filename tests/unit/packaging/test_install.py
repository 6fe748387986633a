"""`install.sh`, run for real: what it makes, what it keeps, what it says when it cannot, and the command it writes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trustme

from fakes.package_index import serving

pytestmark = pytest.mark.timeout(600)  # it computes for long where it has to give way to others
PROJECT = Path(__file__).parents[3]
NO_INDEX = "http://127.0.0.1:9/"
"""Nobody listens there."""
REAL_PATH = os.environ["PATH"]
COMMANDS = ["sh", "mkdir", "chmod", "rm", "mv", "ln", "cat", "cut", "sed", "sha256sum", "readlink", "date", "sync"]
"""What the script calls, beside Python."""
COMPONENT = """
import os, sys, boto3
print(boto3.version, sys.argv[1:], os.getcwd())
"""
"""Stands in for the component: it prints how it was called."""


@dataclass
class Device:
    """A work directory, an artifact, a folder that comes first on the PATH, and the shell that runs the script."""

    artifact: Path
    work: Path
    tools: Path
    shell: tuple[str, ...] = ("sh",)

    def install(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script as the recipe does, and wait for its end."""
        with self.installing(**environment) as process:
            stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def installing(self, **environment: str) -> subprocess.Popen[str]:
        """Begin to run the script as the recipe does; this machine's settings for pip have no say."""
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PIP_") and not name.endswith("CA_BUNDLE")
        }
        own |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": NO_INDEX, "PIP_RETRIES": "0"}
        own["PATH"] = f"{self.tools}{os.pathsep}{REAL_PATH}"
        return subprocess.Popen(
            [*self.shell, self.artifact / "src/install.sh", self.artifact, f"{self.work}/"],
            env={name: value for name, value in (own | environment).items() if value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def pruner(self, *arguments: str, cwd: Path = Path("/")) -> str:
        """Run the installed command and return what it prints."""
        command = [*self.shell, str(self.work / "pruner"), *arguments]
        return subprocess.check_output(command, env={"PWD": str(cwd)}, cwd=cwd, text=True).strip()

    def require(self, wheel: Path) -> str:
        """Have requirements.txt ask for a wheel; return the name of its environment."""
        name, version, _ = wheel.name.split("-", 2)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        requirements = self.artifact / "requirements.txt"
        requirements.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
        return f"venv-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"

    def bundle(self, version: str) -> str:
        """Put wheels of that version into the artifact, and require them; return the name of their environment."""
        return self.require(make_wheel(self.artifact / "wheelhouse", version))

    @property
    def python(self) -> str:
        """What the script of a Python does that works."""
        return f'PATH="{REAL_PATH}" exec "{self.tools}/python3.14" "$@"'

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
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    folder.mkdir(exist_ok=True)
    wheel = folder / f"fakes-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # without the time, which would change the hash
    return wheel


def make_device(folder: Path, tools: Path) -> Device:
    """Make a device whose paths are as awkward as they may be, with version 1.0 of the packages bundled."""
    device = Device(folder / "the artifact's", folder / "work of $HOME's", tools)
    package = device.artifact / "src/client_device_pruner"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(COMPONENT)
    for script in ("install.sh", "install_authorities.py"):
        shutil.copy(PROJECT / "src" / script, device.artifact / "src")
    device.bundle("1.0")
    return device


def add_python(tools: Path, name: str, script: str) -> None:
    """Put an executable of that name on the PATH."""
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)


@pytest.fixture(scope="module")
def quick_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Python that makes environments by copying one that it made before: making takes seconds."""
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        pytest.skip("this Python lacks venv or ensurepip: nothing can be installed with it")
    folder = tmp_path_factory.mktemp("quick")
    (folder / "bin").mkdir()
    subprocess.run([sys.executable, "-m", "venv", folder / "made"], check=True)
    copy = f"""[ "$1 $2" != "-m venv" ] || exec cp -a '{folder / "made"}' "$3" """
    add_python(folder / "bin", "python3.14", f"""{copy}\nexec '{sys.executable}' "$@" """)
    return folder / "bin"


@pytest.fixture
def device(tmp_path: Path, quick_tools: Path) -> Device:
    """A device on which nothing is installed yet."""
    return make_device(tmp_path, quick_tools)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, quick_tools: Path) -> Path:
    """The work directory of a device after its first installation, made once since that takes a while."""
    device = make_device(tmp_path_factory.mktemp("template"), quick_tools)
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
    """A folder for PATH with the commands that the script calls, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        path = shutil.which(name)
        assert path is not None
        (folder / name).symlink_to(path)
    return folder


# --- What it makes and keeps -----------------------------------------------------------------------------------


def test_makes_environment_and_command(device: Device, tmp_path: Path) -> None:
    """Bundled wheels are enough, without network, /tmp and people's settings; the same are not installed again."""
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text("[install]\nuser = true\nprefix = /nowhere\n")
    nowhere = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "/dev/full")
    settings = {"PIP_CONFIG_FILE": "", "PIP_USER": "1", "PIP_TARGET": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    result = device.install(PATH=REAL_PATH, HOME=str(tmp_path), **nowhere, **settings)
    assert (result.returncode, result.stderr) == (0, "")
    assert device.in_force == device.bundle("1.0")
    assert {path.name for path in device.work.iterdir()} == {device.in_force, "venv", "pruner"}
    made = (device.work / "venv/complete").stat().st_mtime_ns
    device.artifact = device.artifact.rename(device.artifact.with_name("next version"))
    assert device.install().returncode == 0
    assert (device.work / "venv/complete").stat().st_mtime_ns == made
    assert device.pruner().startswith("1.0")


def test_keeps_the_last_environment_and_removes_older_ones(installed: Device) -> None:
    """After a switch the one that was in force is kept for a way back, and no more."""
    names = []
    for version in ("1.0", "2.0", "3.0"):
        names.append(installed.bundle(version))
        assert installed.install().returncode == 0
        assert installed.pruner().startswith(version)
    assert installed.in_force == names[2]
    assert installed.environments == {names[1], names[2]}
    installed.require(installed.artifact / "wheelhouse/fakes-2.0-py3-none-any.whl")
    shutil.rmtree(installed.artifact / "wheelhouse")
    assert installed.install().returncode == 0
    assert installed.pruner().startswith("2.0")


def test_what_fails_or_is_ended_leaves_the_one_in_force(installed: Device) -> None:
    """Without an index, or ended or killed while pip waits (the nucleus' time-out); the next one begins anew."""
    before = {path.name for path in installed.work.iterdir()}
    newer = installed.bundle("2.0")
    hidden = (installed.artifact / "wheelhouse").rename(installed.artifact / "hidden")
    result = installed.install()
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("could not be installed; see pip's messages above.")
    assert installed.pruner().startswith("1.0")
    assert {path.name for path in installed.work.iterdir()} == before
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with installed.installing(PIP_INDEX_URL=f"http://127.0.0.1:{silent.getsockname()[1]}/") as process:
                asked, _address = silent.accept()
                os.killpg(process.pid, number)
                process.communicate()
            asked.close()
            assert process.returncode
            assert installed.in_force in before
            tidy = {path.name for path in installed.work.iterdir()} == before
            assert tidy == (number == signal.SIGTERM)
    hidden.rename(installed.artifact / "wheelhouse")
    assert installed.install().returncode == 0
    assert installed.pruner().startswith("2.0")
    assert {path.name for path in installed.work.iterdir()} == before | {newer}


def test_unusable_environment_is_replaced_only_by_a_complete_one(installed: Device) -> None:
    """One in force that no longer works stays until its successor is made."""
    broken = installed.in_force
    for module in (installed.work / "venv/lib").glob("*/site-packages/boto3.py"):
        module.unlink()
    hidden = (installed.artifact / "wheelhouse").rename(installed.artifact / "hidden")
    assert installed.install().returncode == 1
    assert installed.environments == {installed.in_force} == {broken}
    hidden.rename(installed.artifact / "wheelhouse")
    for _repeated in range(2):
        assert installed.install().returncode == 0
        assert installed.environments - {broken} == {installed.in_force}
    assert installed.pruner().startswith("1.0")


def test_command_knows_its_work_directory(installed: Device, tmp_path: Path) -> None:
    """Which may be given explicitly, too; it stays in the current directory, but takes no module from there."""
    work, here = str(installed.work), tmp_path / "here"
    here.mkdir()
    (here / "boto3.py").write_text("version = 'wrong'\n")
    for rest in (["restore", "a b", "--json"], ["x", "--work-dir", "/elsewhere"], []):
        version, _, called = installed.pruner(*rest, cwd=here).partition(" ")
        assert called == f"{['--work-dir', work, *rest]} {here}"
        assert version == "1.0" or sys.version_info < (3, 11)
        assert not rest or not list(installed.artifact.rglob("*.pyc")), "root's files the component could not remove"


# --- What it says when it cannot -------------------------------------------------------------------------------


def test_newest_complete_python_is_taken(device: Device, tools: Path, tmp_path: Path) -> None:
    """They are asked from 3.14 down; an old one, one that only pretends, and one without ensurepip are passed over."""
    shim, asked = tmp_path / "shim", tmp_path / "asked"
    shim.mkdir()
    (shim / "ensurepip.py").write_text("raise ImportError\n")
    real = f'exec "{device.tools}/python3.14" "$@"'
    pythons = {"3.14": "exit 127", "3.13": f'PYTHONPATH="{shim}" {real}', "3.12": "exit 1", "3.11": real, "3": real}
    for version, script in pythons.items():
        add_python(tools, f"python{version}", f'echo {version} >>"{asked}"\n{script}')
    result = device.install(PATH=f"{tools}{os.pathsep}{REAL_PATH}")
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("1.0")
    assert list(dict.fromkeys(asked.read_text().split())) == ["3.14", "3.13", "3.12", "3.11"]


def test_says_which_modules_are_missing(device: Device, tools: Path, tmp_path: Path) -> None:
    """Each module that a distribution split off has its sentence, with what to do."""
    lacking = ("venv", "ensurepip", "sqlite3", "ssl")
    (tmp_path / "shim").mkdir()
    for module in lacking:
        (tmp_path / f"shim/{module}.py").write_text("raise ImportError\n")
    add_python(tools, "python3", f'PYTHONPATH="{tmp_path}/shim" exec "{sys.executable}" "$@"')
    result = device.install(PATH=str(tools))
    assert result.returncode == 1
    for module, sentence in zip(lacking, result.stderr.splitlines(), strict=True):
        assert f"lacks the module {module}; " in sentence
        assert ("on Debian and Ubuntu install python3." in sentence) == (module in {"venv", "ensurepip"})


def make_32_bit(device: Device, tools: Path) -> None:
    """For a 32-bit Python there is no wheel of awscrt."""
    shutil.rmtree(device.artifact / "wheelhouse")
    add_python(tools, "python3", f'case "$*" in *maxsize*) exit 1 ;; esac\n{device.python}')


def make_need(device: Device, _tools: Path) -> None:
    """Have the script need more free space than there is."""
    script = device.artifact / "src/install.sh"
    script.write_text(script.read_text().replace("needed_mb=150", "needed_mb=999999999"))


def require(text: str) -> Callable[[Device, Path], object]:
    """Have requirements.txt say this."""
    return lambda device, _tools: (device.artifact / "requirements.txt").write_text(text)


def work_in(device: Device, _tools: Path, place: str) -> None:
    """Have the work directory elsewhere."""
    device.work.with_name("file").touch()
    device.work = device.work.parent / place


def lose_execution(_device: Device, tools: Path) -> None:
    """Be on a file system without execution: here as if, by a `chmod` without effect."""
    (tools / "chmod").unlink()
    add_python(tools, "chmod", "exit 0")


FAILURES: dict[str, tuple[Callable[[Device, Path], object], str]] = {
    "no Python": (lambda _device, tools: (tools / "python3").unlink(), "it needs Python 3.10 or newer"),
    "old Python": (lambda _device, tools: add_python(tools, "python3", "exit 1"), "it needs Python 3.10 or newer"),
    "32-bit Python": (make_32_bit, "takes cmake, a C compiler and Python's headers"),
    "no space": (make_need, "needs 999999999 MB of free space"),
    "another hash": (require(f"fakes==1.0 --hash=sha256:{'0' * 64}\n"), "could not be installed"),
    "other packages": (require(""), "does not find the packages"),
    "work directory in a file": (partial(work_in, place="file/work"), "cannot be created."),
    "work directory that nobody can write in": (partial(work_in, place="/proc"), "is not writable."),
    "no execution": (lose_execution, "programs cannot be executed in the work directory"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_says_in_a_sentence_what_fails(device: Device, tools: Path, failure: str) -> None:
    """It comes last on standard error, below what pip said, and nothing is left behind."""
    add_python(tools, "python3", device.python)
    spoil, sentence = FAILURES[failure]
    spoil(device, tools)
    result = device.install(PATH=str(tools))
    assert result.returncode == 1
    assert sentence in result.stderr.splitlines()[-1]
    assert not device.work.is_relative_to(tools.parent) or not list(device.work.glob("*"))


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "GG_ROOT_CA_PATH"])
def test_authorities_of_the_core_device(device: Device, tmp_path: Path, variable: str) -> None:
    """Whom AWS's bundle or the core's root CA trusts is believed, nobody else; a file that is none spoils nothing."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "root CA.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    (broken,) = {"AWS_CA_BUNDLE", "GG_ROOT_CA_PATH"} - {variable}
    (tmp_path / "index").mkdir()
    (device.artifact / "wheelhouse").rename(tmp_path / "index/fakes")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with serving(tmp_path / "index", context=context) as (port, asked):
        settings = {"PIP_INDEX_URL": f"https://localhost:{port}/", broken: str(tmp_path / "broken.pem")}
        assert device.install(**settings, **{variable: str(tmp_path / "other.pem")}).returncode == 1
        assert asked == []
        result = device.install(**settings, **{variable: str(tmp_path / "root CA.pem")})
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("1.0")


@pytest.mark.parametrize("name", ["busybox", "bash"])
def test_other_shells(device: Device, tools: Path, name: str) -> None:
    """BusyBox, with no commands but its own, and bash as `sh` say and do the same as any other."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    for tool in COMMANDS if name == "busybox" else ["sh"]:
        (tools / tool).unlink()
        (tools / tool).symlink_to(program)
    device.shell = (str(tools / "sh"),)
    without = device.install(PATH=str(tools))
    assert (without.returncode, without.stderr.count("needs Python 3.10")) == (1, 1)
    add_python(tools, "python3", device.python)
    for version in ("1.0", "1.0", "2.0"):
        device.bundle(version)
        result = device.install(PATH=str(tools))
        assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner("restore", "a b") == f"2.0 {['--work-dir', str(device.work), 'restore', 'a b']} /"
