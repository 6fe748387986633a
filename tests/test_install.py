"""`install.sh`, run for real: what it makes, what it keeps, and what it says when it cannot."""

import base64
import hashlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from install_wheels import Target, Unfit, choose, read_requirements, unpack

PROJECT = Path(__file__).parents[1]
NO_INDEX = "http://127.0.0.1:9/"
"""Nobody listens there."""
REAL_PATH = os.environ["PATH"]
"""What makes the environment for real; elsewhere it is a copy of one that was."""

pytestmark = pytest.mark.timeout(120)


@dataclass
class Device:
    """A work directory, an artifact, a folder to come first on the PATH, and the shell that runs the script."""

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
    def bytecode(self) -> dict[Path, int]:
        """What is compiled in the work directory and the artifact, with when it was."""
        return {path: path.stat().st_mtime_ns for place in (self.work, self.artifact) for path in place.rglob("*.pyc")}

    def compiled(self, source: Path) -> Path:
        """Where the component looks for a file's bytecode."""
        cached = f"{source.stem}.{sys.implementation.cache_tag}.opt-2.pyc"
        return self.work / "bytecode" / source.parent.relative_to("/") / cached

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
    (component / "__init__.py").touch()
    (component / "cloud.py").touch()
    for script in ("install.sh", "install_wheels.py", "install_authorities.py", "install_bytecode.py"):
        shutil.copy(PROJECT / "src" / script, folder / "src")
    return folder


def make_device(folder: Path, tools: Path) -> Device:
    """Make a device whose paths are as awkward as they may be, with version 1.0 of the packages bundled."""
    device = Device(make_artifact(folder / "the artifact's"), folder / "work of $HOME's", tools)
    device.require(make_wheel(device.artifact / "wheelhouse", "1.0"))
    return device


@pytest.fixture(scope="module")
def quick_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Python that makes environments by copying one that it made before: making takes seconds."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "bin").mkdir()
    if subprocess.run([sys.executable, "-m", "venv", folder / "made"], check=False).returncode == 0:
        copy = f"""[ "$1 $2" != "-m venv" ] || exec cp -a '{folder / "made"}' "$3" """
        add_python(folder / "bin", "python3.14", f"""{copy}\nexec '{sys.executable}' "$@" """)
    return folder / "bin"


@pytest.fixture
def device(tmp_path: Path, quick_tools: Path) -> Device:
    """A device on which nothing is installed yet."""
    return make_device(tmp_path, quick_tools)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, quick_tools: Path) -> Path:
    """The work directory of a device after its first installation, made once since that takes seconds."""
    device = make_device(tmp_path_factory.mktemp("template"), quick_tools)
    assert device.install().returncode == 0
    return device.work


@pytest.fixture
def installed(device: Device, template: Path) -> Device:
    """A device on which version 1.0 is installed."""
    shutil.copytree(template, device.work, symlinks=True)
    assert device.install().returncode == 0
    return device


TOOLS = ["sh", "mkdir", "chmod", "rm", "mv", "ln", "cat", "cut", "sed", "sha256sum", "readlink", "date", "sync"]
"""The commands that the script uses, beside Python."""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with those commands, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
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
    result = device.install(PATH=REAL_PATH)
    assert (result.returncode, result.stderr) == (0, "")
    assert device.in_force == device.require(device.artifact / "wheelhouse/fakes-1.0-py3-none-any.whl")
    assert device.environments == {device.in_force}
    work = str(device.work)
    assert device.pruner() == f"1.0 {['--work-dir', work]}"
    assert device.pruner("restore", "a b", "--json") == f"1.0 {['restore', '--work-dir', work, 'a b', '--json']}"
    assert (device.work / "pruner").stat().st_mode & 0o777 == 0o755
    assert {path.name for path in device.work.iterdir()} == {device.in_force, "venv", "pruner", "bytecode"}


def test_repeated_makes_nothing_anew(installed: Device) -> None:
    """With the same requirements the environment stays, and the command follows the new artifact."""
    made = (installed.work / "venv/complete").stat().st_mtime_ns
    moved = installed.artifact.with_name("next version")
    installed.artifact.rename(moved)
    installed.artifact = moved
    assert installed.install().returncode == 0
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


def test_what_will_run_is_compiled(device: Device) -> None:
    """All of the component and what it imports, at the recipe's level and nowhere else; the command adds nothing."""
    result = device.install(PYTHONDONTWRITEBYTECODE="1")
    assert (result.returncode, result.stderr) == (0, "")
    (boto3,) = (device.work / "venv/lib").glob("*/site-packages/boto3.py")
    sources = [*(device.artifact / "src/client_device_pruner").iterdir(), boto3]
    compiled = device.bytecode
    assert {device.compiled(source) for source in sources} <= compiled.keys()
    assert [path for path in compiled if path.name.startswith("boto3.")] == [device.compiled(boto3)]
    assert not [path for path in compiled if device.artifact in path.parents]
    (device.artifact / "src/client_device_pruner/cloud.py").write_text("changed = True\n")
    (device.artifact / "src/client_device_pruner/__main__.py").write_text(
        "import sys, boto3, client_device_pruner.cloud\nprint(boto3.__cached__, sys.flags.optimize)\n"
    )
    assert device.pruner() == f"{device.compiled(boto3)} 2"
    assert device.bytecode == compiled


def test_an_upgrade_leaves_no_bytecode_of_the_old_version(installed: Device) -> None:
    """Artifacts lie in folders with their version; the new one's is compiled, with the packages in force."""
    old = installed.artifact
    installed.artifact = old.with_name("next version")
    shutil.copytree(old, installed.artifact)
    installed.require(make_wheel(installed.artifact / "wheelhouse", "2.0"))
    assert installed.install().returncode == 0
    cloud = Path("src/client_device_pruner/cloud.py")
    assert installed.compiled(installed.artifact / cloud) in installed.bytecode
    assert not list((installed.work / "bytecode").rglob(f"{old.name}/**/*.pyc"))


@pytest.mark.parametrize("module", ["__init__", "settings", "cloud"])
def test_installs_also_what_cannot_be_compiled(device: Device, module: str) -> None:
    """What fails is told; the component would compile by itself, or say why it cannot."""
    (device.artifact / f"src/client_device_pruner/{module}.py").write_text("raise SystemExit('it is broken')\n")
    result = device.install()
    assert result.returncode == 0
    said = result.stderr.splitlines()
    assert said[0] == "it is broken"
    assert said[-1].startswith("ClientDevicePruner is installed, but not all of it could be compiled")
    assert device.in_force in device.environments
    assert (device.work / "pruner").exists()


def test_starts_with_what_a_full_disk_left_of_the_bytecode(installed: Device) -> None:
    """Python may keep the first part of a file for which there is no room, and ends where it reads that again."""
    (installed.artifact / "src/client_device_pruner/settings.py").write_text(f"LONG = {bytes(100_000)!r}\n")
    main = installed.artifact / "src/client_device_pruner/__main__.py"
    main.write_text(f"import client_device_pruner.settings\n{main.read_text()}")
    installed.shell = ("sh", "-c", 'ulimit -f 64; exec sh "$0" "$@"')
    result = installed.install()
    assert result.returncode == 0, result.stderr
    assert installed.pruner().startswith("1.0")
    environment = os.environ | {
        "PYTHONPATH": str(installed.artifact / "src"),
        "PYTHONOPTIMIZE": "2",
        "PYTHONPYCACHEPREFIX": str(installed.work / "bytecode"),
    }
    run = 'ulimit -f 64; exec "$0" -m client_device_pruner'
    start = ["sh", "-c", run, str(installed.work / "venv/bin/python")]
    for _ in range(2):
        assert subprocess.run(start, env=environment, check=True, capture_output=True).stdout.startswith(b"1.0")
    installed.shell = ("sh",)
    assert installed.install().returncode == 0
    assert installed.compiled(main) in installed.bytecode


def test_failed_install_leaves_the_one_in_force(installed: Device) -> None:
    """Without an index the old environment and command go on, and nothing half made stays."""
    name, before = installed.in_force, installed.pruner()
    installed.require(make_wheel(installed.artifact / "elsewhere", "2.0"))
    shutil.rmtree(installed.artifact / "wheelhouse")
    result = installed.install()
    assert result.returncode == 1
    assert "could not be installed; see pip's messages above." in result.stderr.splitlines()[-1]
    assert installed.pruner() == before
    assert {path.name for path in installed.work.iterdir()} == {name, "venv", "pruner", "bytecode"}


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
        HOME=str(home), PIP_USER="1", PIP_TARGET=str(home / "target"), PYTHONPATH=str(home), PATH=REAL_PATH
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert not (home / "target").exists()
    assert device.pruner().startswith("1.0")


def test_externally_managed_python(device: Device, tools: Path) -> None:
    """A distribution's Python that forbids installing packages (PEP 668) serves all the same."""
    found = [
        python
        for minor in range(10, 15)
        if (python := Path(f"/usr/bin/python3.{minor}")).exists()
        and Path(f"/usr/lib/python3.{minor}/EXTERNALLY-MANAGED").exists()
    ]
    if not found:
        pytest.skip("no externally managed Python here")
    add_python(tools, "python3", f'exec "{found[0]}" "$@"')
    result = device.install(PATH=str(tools))
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("1.0")


def test_newest_complete_python_is_taken(device: Device, tools: Path, tmp_path: Path) -> None:
    """They are asked from 3.14 down; an old one, one that only pretends, and one without ensurepip are passed over."""
    shim, asked = tmp_path / "shim", tmp_path / "asked"
    shim.mkdir()
    (shim / "ensurepip.py").write_text("raise ImportError\n")
    real = f'exec "{sys.executable}" "$@"'
    pythons = {"3.14": "exit 127", "3.13": f'PYTHONPATH="{shim}" {real}', "3.12": "exit 1", "3.10": real, "3": real}
    for version, script in pythons.items():
        add_python(tools, f"python{version}", f'echo {version} >>"{asked}"\n{script}')
    result = device.install(PATH=str(tools))
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("1.0")
    assert list(dict.fromkeys(asked.read_text().split())) == ["3.14", "3.13", "3.12", "3.10"]


def test_says_which_modules_are_missing(device: Device, tools: Path, tmp_path: Path) -> None:
    """Each missing module has its sentence, with what to do."""
    shutil.rmtree(device.artifact / "wheelhouse")
    shim = tmp_path / "shim"
    shim.mkdir()
    lacking = ("venv", "ensurepip", "sqlite3", "ssl")
    for module in lacking:
        (shim / f"{module}.py").write_text("raise ImportError\n")
    add_python(tools, "python3", f'PYTHONPATH="{shim}" exec "{sys.executable}" "$@"')
    result = device.install(PATH=str(tools))
    assert result.returncode == 1
    for module, sentence in zip(lacking, result.stderr.splitlines(), strict=True):
        remedy = "on Debian and Ubuntu install python3." if module in {"venv", "ensurepip"} else "install your"
        assert f"lacks the module {module}; {remedy}" in sentence


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


def test_says_that_programs_cannot_be_executed(device: Device, tools: Path) -> None:
    """A work directory on a file system without execution is one sentence (where none can be mounted, as if)."""
    device.work.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", device.work],  # noqa: S607 - wherever it is
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        (tools / "chmod").unlink()
        add_python(tools, "chmod", "exit 0")
    try:
        result = device.install(PATH=str(tools))
    finally:
        if not mount.returncode:
            subprocess.run(["umount", device.work], check=True)  # noqa: S607 - wherever it is
    assert result.returncode == 1
    assert "programs cannot be executed in the work directory" in result.stderr


def pretend_without(tools: Path, *modules: str) -> None:
    """Put a Python on the PATH that lacks modules."""
    shim = tools.parent / "shim"
    shim.mkdir()
    for module in modules:
        (shim / f"{module}.py").write_text("raise ImportError\n")
    add_python(tools, "python3", f'PYTHONPATH="{shim}" exec "{sys.executable}" "$@"')


@pytest.mark.parametrize("lacking", ["ensurepip", "venv ensurepip"])
def test_bundled_wheels_are_unpacked_without_venv(device: Device, tools: Path, lacking: str) -> None:
    """A Python without what makes environments serves where the wheels are bundled, and is upgraded likewise."""
    pretend_without(tools, *lacking.split())
    result = device.install(PATH=str(tools))
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner("status").startswith("1.0")
    assert {path.name for path in device.work.iterdir()} == {device.in_force, "venv", "pruner", "bytecode"}
    script = "import sys, awscrt; print(sys.prefix == sys.base_prefix, awscrt.__file__)"
    command = [str(device.work / "venv/bin/python"), "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout.split(maxsplit=1)
    assert said[0] == "False"
    assert str(device.work) in said[1]
    newer = device.require(make_wheel(device.artifact / "wheelhouse", "2.0"))
    assert device.install(PATH=str(tools)).returncode == 0
    assert device.in_force == newer
    assert device.pruner().startswith("2.0")


def test_bundled_wheels_with_a_wrong_hash_are_not_unpacked(device: Device, tools: Path) -> None:
    """Without pip the hashes are checked all the same; what was in force before stays."""
    pretend_without(tools, "venv", "ensurepip")
    assert device.install(PATH=str(tools)).returncode == 0
    before = device.pruner()
    (device.artifact / "requirements.txt").write_text(f"fakes==1.0 --hash=sha256:{'0' * 64}\n")
    result = device.install(PATH=str(tools))
    assert result.returncode == 1
    assert "holds no wheel of fakes 1.0 with a pinned hash" in result.stderr.splitlines()[0]
    assert "could not be unpacked" in result.stderr.splitlines()[-1]
    assert device.pruner() == before
    assert len(device.environments) == 1


def test_says_that_packages_are_not_found(device: Device) -> None:
    """Requirements that install but are not what the component imports make no environment."""
    (device.artifact / "requirements.txt").write_text("")
    result = device.install()
    assert result.returncode == 1
    assert "does not find the packages" in result.stderr.splitlines()[-1]
    assert device.environments == set()


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("x-1-py3-none-any.whl", True),
        ("x-1-py2.py3-none-any.whl", True),
        ("x-1-py2-none-any.whl", False),
        ("x-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("x-1-cp312-cp312-manylinux2014_x86_64.whl", True),
        ("x-1-1-cp312-cp312-manylinux1_x86_64.whl", True),
        ("x-1-cp312-cp312t-manylinux2014_x86_64.whl", False),
        ("x-1-cp311-cp311-manylinux2014_x86_64.whl", False),
        ("x-1-cp311-abi3-manylinux2014_x86_64.whl", True),
        ("x-1-cp313-abi3-manylinux2014_x86_64.whl", False),
        ("x-1-cp312-cp312-manylinux2014_aarch64.whl", False),
        ("x-1-cp312-cp312-manylinux_2_39_x86_64.whl", False),
        ("x-1-cp312-cp312-musllinux_1_2_x86_64.whl", False),
        ("x-1-cp312-cp312-macosx_11_0_x86_64.whl", False),
        ("x-1.tar.gz", False),
    ],
)
def test_wheels_that_fit(wheel: str, fits: bool) -> None:
    """Python, ABI, machine and C library decide (PEP 425, 600); nothing compiled fits 32 bits on a 64-bit kernel."""
    assert bool(Target(12, "x86_64", (2, 36)).rank(wheel)) is fits
    if "any" not in wheel:
        assert not Target(12, "", (2, 36)).rank(wheel)
        assert not Target(12, "x86_64", (0, 0)).rank(wheel)


def test_the_wheel_for_the_newest_python_is_chosen(tmp_path: Path) -> None:
    """Of several that fit, the one that was built for the newer Python; names are compared folded."""
    digests = []
    for minor in (9, 11, 13):
        path = tmp_path / f"A_b-1-cp3{minor}-abi3-any.whl"
        path.write_text(str(minor))
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in digests)
    (pinned,) = read_requirements(f"# comment\na.B==1 \\\n    {hashes}\n    # via c\n")
    assert choose(pinned, tmp_path, Target(12, "x86_64", (2, 36))).name == "A_b-1-cp311-abi3-any.whl"


@pytest.mark.parametrize("line", ["a", "a==1", f"a==1 ; x --hash=sha256:{'0' * 64}", "-r b.txt", "a @ http://b"])
def test_requirements_that_take_pip(line: str) -> None:
    """What is no plain pin with hashes is refused rather than guessed."""
    with pytest.raises(Unfit, match="takes pip"):
        read_requirements(line)


def test_unpacking(tmp_path: Path) -> None:
    """Libraries go to site-packages, scripts nowhere, and nothing outside."""
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("a/__init__.py", "x-1.data/purelib/b.py", "x-1.data/platlib/c/d.so", "x-1.data/scripts/run"):
            archive.writestr(name, "")
    unpack(wheel, tmp_path / "site")
    files = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert files == {"a/__init__.py", "b.py", "c/d.so"}
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../out.py", "")
    with pytest.raises(Unfit, match="outside"):
        unpack(wheel, tmp_path / "site")
    assert not (tmp_path / "out.py").exists()


@dataclass
class Index:
    """A package index on loopback, which a proxy's clients may also ask.

    Attributes:
        url: its address.
        requests: the paths, or whole addresses through a proxy, that were asked for.
        flows: whether it answers, or lets its clients wait.
    """

    url: str
    requests: list[str]
    flows: threading.Event


def serve(wheels: Path, certificate: trustme.LeafCert | None = None) -> Iterator[Index]:
    """Serve a folder's wheels of `fakes`, over TLS with a certificate."""
    requests: list[str] = []
    flows = threading.Event()
    flows.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            name = self.path.rpartition("/")[2]
            flows.wait()
            links = "".join(f'<a href="/{path.name}">{path.name}</a>' for path in wheels.iterdir())
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if not name else "application/octet-stream")
            self.end_headers()
            body = (
                (wheels / name).read_bytes() if name else f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
            )
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that does not trust us hangs up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        address = "http://127.0.0.1"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            address = "https://localhost"  # some versions of pip cannot check the certificate of an address
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Index(f"{address}:{server.server_port}/simple", requests, flows)
        flows.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def wheels(device: Device) -> Path:
    """The wheels of a device whose artifact has none."""
    return (device.artifact / "wheelhouse").rename(device.artifact.with_name("wheels"))


@pytest.fixture
def index(wheels: Path) -> Iterator[Index]:
    """An index, or a proxy, that has what the device requires."""
    yield from serve(wheels)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority that nobody trusts."""
    return trustme.CA()


@pytest.fixture
def secure_index(wheels: Path, authority: trustme.CA) -> Iterator[Index]:
    """An index whose certificate only that authority vouches for."""
    yield from serve(wheels, authority.issue_cert("localhost"))


def test_wheels_that_are_not_bundled_come_from_the_index(device: Device, index: Index) -> None:
    """The index is asked only for what is missing in the wheelhouse; hashes hold for both."""
    (device.artifact / "wheelhouse").mkdir()
    result = device.install(PIP_INDEX_URL=index.url)
    assert result.returncode == 0, result.stderr
    assert index.requests == ["/simple/fakes/", "/fakes-1.0-py3-none-any.whl"]
    assert device.pruner().startswith("1.0")


def test_wrong_hash_is_refused(device: Device, index: Index) -> None:
    """A wheel that is not the one that was pinned is not installed, bundled or from an index."""
    shutil.copytree(device.artifact.with_name("wheels"), device.artifact / "wheelhouse")
    (device.artifact / "requirements.txt").write_text(f"fakes==1.0 --hash=sha256:{'0' * 64}\n")
    result = device.install(PIP_INDEX_URL=index.url)
    assert result.returncode == 1
    assert "DO NOT MATCH THE HASHES" in result.stderr
    shutil.rmtree(device.artifact / "wheelhouse")
    result = device.install(PIP_INDEX_URL=index.url)
    assert result.returncode == 1
    assert index.requests[-1] == "/fakes-1.0-py3-none-any.whl"
    assert "DO NOT MATCH THE HASHES" in result.stderr
    assert list(device.work.iterdir()) == []


def test_ended_in_the_middle(device: Device, template: Path, index: Index) -> None:
    """Ended or killed while pip waits (the nucleus' time-out), it leaves the one in force; the next begins anew."""
    shutil.copytree(template, device.work, symlinks=True)
    before = {path.name for path in device.work.iterdir()}
    newer = device.require(make_wheel(device.artifact.with_name("wheels"), "2.0"))
    index.flows.clear()
    for number in (signal.SIGTERM, signal.SIGKILL):
        index.requests.clear()
        with device.installing(PIP_INDEX_URL=index.url) as process:
            while not index.requests:
                assert process.poll() is None
                time.sleep(0.05)
            os.killpg(process.pid, number)
            process.communicate()
        assert process.returncode
        assert device.pruner().startswith("1.0")
        tidy = {path.name for path in device.work.iterdir()} == before
        assert tidy == (number == signal.SIGTERM)
    index.flows.set()
    result = device.install(PIP_INDEX_URL=index.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("2.0")
    assert {path.name for path in device.work.iterdir()} == before | {newer}


@pytest.mark.parametrize("name", ["busybox", "bash"])
def test_other_shells(
    device: Device, tools: Path, secure_index: Index, authority: trustme.CA, name: str, tmp_path: Path
) -> None:
    """BusyBox, with no commands but its own, and bash as `sh` say and do the same as any other."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    for tool in TOOLS if name == "busybox" else ["sh"]:
        (tools / tool).unlink()
        (tools / tool).symlink_to(program)
    device.shell = (str(tools / "sh"),)
    pretend_without(tools, "venv", "ensurepip")
    without_wheels = device.install(PATH=str(tools))
    assert "lacks the module venv;" in without_wheels.stderr.splitlines()[0]
    shutil.copytree(device.artifact.with_name("wheels"), device.artifact / "wheelhouse")
    for _repeated in range(2):
        result = device.install(PATH=str(tools))
        assert (result.returncode, result.stderr) == (0, "")
    command = [*device.shell, str(device.work / "pruner"), "restore", "a b"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout.strip()
    assert said == f"1.0 {['restore', '--work-dir', str(device.work), 'a b']}"

    shutil.rmtree(device.artifact / "wheelhouse")
    newer = device.require(make_wheel(device.artifact.with_name("wheels"), "2.0"))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    add_python(tools, "python3", f'exec "{sys.executable}" "$@"')
    settings = {"PATH": str(tools), "PIP_INDEX_URL": secure_index.url}
    assert device.install(**settings).returncode == 1
    assert device.pruner().startswith("1.0")
    result = device.install(**settings, AWS_CA_BUNDLE=str(tmp_path / "ca.pem"))
    assert (result.returncode, result.stderr) == (0, "")
    assert device.in_force == newer
    assert device.pruner().startswith("2.0")


def test_proxy(device: Device, index: Index) -> None:
    """Where a proxy is set, it is asked, also beside the exceptions that a nucleus sets."""
    others = dict.fromkeys(("http_proxy", "no_proxy", "ALL_PROXY", "all_proxy"), "")
    result = device.install(
        **others,
        HTTP_PROXY=index.url.removesuffix("/simple"),
        NO_PROXY="localhost",
        PIP_INDEX_URL="http://index.invalid/simple",
        PIP_TRUSTED_HOST="index.invalid",
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert index.requests[0] == "http://index.invalid/simple/fakes/"


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "GG_ROOT_CA_PATH"])
def test_authorities_of_the_core_device(
    device: Device, secure_index: Index, authority: trustme.CA, variable: str, tmp_path: Path
) -> None:
    """Whom AWS's bundle or the core's root CA vouches for is believed; a file that is none spoils nothing."""
    bundle, broken = tmp_path / "root CA.pem", tmp_path / "broken.pem"
    bundle.write_bytes(authority.cert_pem.bytes().rstrip())
    broken.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    other = {"AWS_CA_BUNDLE": "GG_ROOT_CA_PATH", "GG_ROOT_CA_PATH": "AWS_CA_BUNDLE"}[variable]
    result = device.install(PIP_INDEX_URL=secure_index.url, **{variable: str(bundle), other: str(broken)})
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("1.0")


def test_unknown_authority_is_not_believed(device: Device, secure_index: Index, tmp_path: Path) -> None:
    """An index that nobody vouches for is refused, and what the device trusts stays a file of its own."""
    (tmp_path / "other.pem").write_bytes(trustme.CA().cert_pem.bytes())
    result = device.install(PIP_INDEX_URL=secure_index.url, GG_ROOT_CA_PATH=str(tmp_path / "other.pem"))
    assert result.returncode == 1
    assert secure_index.requests == []
    assert device.environments == set()


def test_certificate_set_for_pip_wins(
    device: Device, secure_index: Index, authority: trustme.CA, tmp_path: Path
) -> None:
    """Somebody who told pip whom to trust meant it."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trusted, lost = str(tmp_path / "ca.pem"), str(tmp_path / "lost.pem")
    result = device.install(PIP_INDEX_URL=secure_index.url, PIP_CERT=trusted, AWS_CA_BUNDLE=lost)
    assert (result.returncode, result.stderr) == (0, "")


def test_no_home_and_no_room_in_tmp(device: Device, index: Index) -> None:
    """Without a home, and with a temporary directory that takes nothing, it installs."""
    nowhere = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "/dev/full")
    result = device.install(**nowhere, HOME="", PATH=REAL_PATH, PIP_INDEX_URL=index.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert device.pruner().startswith("1.0")
