"""Makes an environment of bundled wheels, for a Python that comes without `venv` or `ensurepip`.

Usage: install_wheels.py REQUIREMENTS WHEELHOUSE ENVIRONMENT

What makes a folder an environment is `pyvenv.cfg` (PEP 405), which every Python reads, with or without `venv`. A
wheel is a zip file whose top level belongs into site-packages (PEP 427). Only wheels with a pinned hash are taken.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

_REQUIREMENT = re.compile(r"([\w.-]+)==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)")
_WHEEL = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl"
)
_OLD_PLATFORMS = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}


class Unfit(Exception):
    """The wheels cannot be installed; the message says why."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What is pinned: a name, a version, and the SHA-256 of every file that will do."""

    name: str
    version: str
    sha256: frozenset[str]


@dataclass(frozen=True, slots=True)
class Target:
    """The Python that the wheels are for.

    Attributes:
        minor: of CPython 3.
        machine: as wheels have it, `x86_64` for instance; empty for a 32-bit Python on a 64-bit kernel.
        glibc: its version; (0, 0) where there is another C library.
    """

    minor: int
    machine: str
    glibc: tuple[int, int]

    @classmethod
    def here(cls) -> Target:
        """The Python that runs this."""
        try:
            libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
        except (OSError, ValueError):
            libc = ""
        version = re.match(r"glibc (\d+)\.(\d+)", libc)
        machine = platform.machine() if sys.maxsize > 2**32 else ""
        return cls(sys.version_info.minor, machine, (int(version[1]), int(version[2])) if version else (0, 0))

    def rank(self, wheel: str) -> int:
        """How well a wheel of that file name fits: 0 not at all, and more for one built for a newer Python."""
        parts = _WHEEL.fullmatch(wheel)
        if parts is None or not any(map(self._runs_on, parts["platform"].split("."))):
            return 0
        abis = parts["abi"].split(".")
        return max(self._rank_python(python, abi) for python in parts["python"].split(".") for abi in abis)

    def _rank_python(self, python: str, abi: str) -> int:
        tag = re.fullmatch(r"(py|cp)3(\d*)", python)
        if tag is None:
            return 0
        kind, minor = tag[1], int(tag[2] or 0)
        if (abi == "none" and kind == "py") or abi == "abi3":
            return minor + 1 if minor <= self.minor else 0
        return minor + 1 if minor == self.minor and abi in {"none", python} else 0

    def _runs_on(self, tag: str) -> bool:
        if tag == "any":
            return True
        kind, _, machine = tag.partition("_")
        glibc = _OLD_PLATFORMS.get(kind)
        if numbered := re.fullmatch(r"manylinux_(\d+)_(\d+)_(.+)", tag):
            glibc, machine = (int(numbered[1]), int(numbered[2])), numbered[3]
        return glibc is not None and machine == self.machine and glibc <= self.glibc


def read_requirements(text: str) -> list[Requirement]:
    """Return what a hashed requirements.txt pins.

    Raises:
        Unfit: for a line that is no plain pin with hashes.
    """
    requirements = []
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        plain = re.sub(r"(^|\s)#.*", "", line).strip()
        if not plain:
            continue
        pin = _REQUIREMENT.fullmatch(plain)
        if pin is None:
            raise Unfit(f"this line of the requirements takes pip: {plain}")
        requirements.append(Requirement(pin[1], pin[2], frozenset(re.findall(r"sha256:(\w+)", pin[3]))))
    return requirements


def choose(requirement: Requirement, wheelhouse: Path, target: Target) -> Path:
    """Return the bundled wheel that fits best and has a pinned hash.

    Raises:
        Unfit: if there is none.
    """
    folded = _folded(requirement.name)
    wheels = [
        path
        for path in wheelhouse.glob("*.whl")
        if (parts := _WHEEL.fullmatch(path.name))
        and (_folded(parts["name"]), parts["version"]) == (folded, requirement.version)
        and target.rank(path.name)
    ]
    for path in sorted(wheels, key=lambda path: target.rank(path.name), reverse=True):
        if hashlib.sha256(path.read_bytes()).hexdigest() in requirement.sha256:
            return path
    raise Unfit(
        f"{wheelhouse} holds no wheel of {requirement.name} {requirement.version} with a pinned hash "
        f"for Python 3.{target.minor} on {target.machine or '32 bits'}"
    )


def make_environment(environment: Path) -> Path:
    """Lay out an environment for the Python that runs this; return its site-packages."""
    python = Path(getattr(sys, "_base_executable", None) or sys.executable)
    site_packages = environment / f"lib/python3.{sys.version_info.minor}/site-packages"
    site_packages.mkdir(parents=True)
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to(python)
    (environment / "pyvenv.cfg").write_text(
        f"home = {python.parent}\ninclude-system-site-packages = false\nversion = {platform.python_version()}\n"
    )
    return site_packages


def unpack(wheel: Path, site_packages: Path) -> None:
    """Unpack a wheel; its scripts and other data are left out, since nobody calls them."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = re.sub(r"^[^/]+\.data/(?:purelib|platlib)/", "", name)
            if name.endswith("/") or re.match(r"[^/]+\.data/", inner):
                continue
            path = site_packages / inner
            if ".." in path.parts:
                raise Unfit(f"{wheel} names a file outside of its place: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))


def _folded(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(requirements: str, wheelhouse: str, environment: str) -> int:
    """Install; return the exit status."""
    try:
        target = Target.here()
        pinned = read_requirements(Path(requirements).read_text("utf-8"))
        wheels = [choose(requirement, Path(wheelhouse), target) for requirement in pinned]
        site_packages = make_environment(Path(environment))
        for wheel in wheels:
            unpack(wheel, site_packages)
    except (Unfit, OSError, zipfile.BadZipFile) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
