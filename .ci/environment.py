"""Makes a virtual environment with the pinned requirements, with nothing but a Python and a package index.

Usage: environment.py VENV REQUIREMENTS…

Distributions split off `ensurepip`, and some `venv`. What is missing comes from the index that pip is
configured for: pip itself as a wheel, and with it, where there is no `venv`, virtualenv.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import html.parser
import importlib.util
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

PUBLIC_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PIP_WHEEL = re.compile(r"pip-(\d+(?:\.\d+)*)-py3-none-any\.whl")


class SetupError(Exception):
    """The environment cannot be made; the message is for the person who wants it."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file that an index offers."""

    name: str
    url: str
    sha256: str
    requires_python: str
    yanked: bool

    @property
    def version(self) -> tuple[int, ...]:
        """The version of a stable pip; empty for anything else."""
        found = _PIP_WHEEL.fullmatch(self.name)
        return tuple(map(int, found[1].split("."))) if found else ()

    def runs_here(self) -> bool:
        """Whether this Python is new enough for it."""
        minimum = re.search(r">=\s*3\.(\d+)", self.requires_python)
        return minimum is None or sys.version_info >= (3, int(minimum[1]))


class _Page(html.parser.HTMLParser):
    """Collects the files of a PEP 503 page."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.files.append(dict(attrs))


def pip_setting(name: str) -> str:
    """Return what pip is told by its environment variables or files, such as `index-url`; else nothing."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    home = Path.home()
    folders = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)
    files = [
        *(Path(folder) / "pip/pip.conf" for folder in folders),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
    ]
    files.append(Path(os.environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip/pip.conf")
    only = os.environ.get("PIP_CONFIG_FILE")
    if only == os.devnull:
        files = []
    elif only:
        files.append(Path(only))
    configuration = configparser.RawConfigParser()
    configuration.read(files, "utf-8")  # later ones win, as with pip; missing ones are passed over
    return configuration.get("install", name, fallback="") or configuration.get("global", name, fallback="")


def fetch(url: str, accept: str = "*/*") -> tuple[bytes, str, str]:
    """Return a body, its content type, and the address it came from in the end."""
    parts = urllib.parse.urlsplit(url)
    headers = {"Accept": accept}
    if parts.username:
        user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    context = ssl.create_default_context(cafile=pip_setting("cert") or None)
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the user's own index
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:  # noqa: S310 - as above
        return answer.read(), answer.headers.get_content_type(), answer.geturl()


def read_page(body: bytes, content_type: str, url: str) -> list[Wheel]:
    """Return the files that a project's page lists, in JSON (PEP 691) or HTML (PEP 503)."""
    if content_type.endswith("json"):
        return [
            Wheel(
                entry["filename"],
                urllib.parse.urljoin(url, entry["url"]),
                entry.get("hashes", {}).get("sha256", ""),
                entry.get("requires-python") or "",
                bool(entry.get("yanked")),
            )
            for entry in json.loads(body)["files"]
        ]
    page = _Page()
    page.feed(body.decode("utf-8", "replace"))
    wheels = []
    for attributes in page.files:
        address, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(url, attributes.get("href") or ""))
        name = urllib.parse.unquote(address.rpartition("/")[2])
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
        requires = attributes.get("data-requires-python") or ""
        wheels.append(Wheel(name, address, sha256, requires, "data-yanked" in attributes))
    return wheels


def fetch_pip(folder: Path) -> Path:
    """Fetch the newest pip that runs here into a folder, and check its hash."""
    index = pip_setting("index-url") or PUBLIC_INDEX
    page = f"{index.rstrip('/')}/pip/"
    try:
        wheels = read_page(*fetch(page, _ACCEPT))
        fit = [wheel for wheel in wheels if wheel.version and wheel.sha256 and not wheel.yanked and wheel.runs_here()]
        if not fit:
            raise SetupError("the package index offers no pip with a sha256 for this Python.")
        wheel = max(fit, key=lambda wheel: wheel.version)
        body = fetch(wheel.url)[0]
    except (OSError, ValueError, KeyError) as problem:
        raise SetupError(f"pip could not be fetched from the package index: {problem}.") from None
    if hashlib.sha256(body).hexdigest() != wheel.sha256:
        raise SetupError(f"{wheel.name} from the package index does not have the sha256 that the index says.")
    path = folder / wheel.name
    path.write_bytes(body)
    return path


def run(*arguments: str | Path, **environment: str) -> None:
    """Run a command whose failure ends the set-up."""
    if subprocess.run(arguments, env={**os.environ, **environment}, check=False).returncode:
        raise SetupError(f"this failed: {' '.join(map(str, arguments))}")


def make(venv: Path) -> None:
    """Make a virtual environment with pip in it, by whichever way this Python allows."""
    missing = [name for name in ("venv", "ensurepip") if not _has(name)]
    if not missing:
        run(sys.executable, "-m", "venv", "--clear", venv)
        return
    print(
        f"This Python has no {' and no '.join(missing)}: taking what is missing from the package index.",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        pip = fetch_pip(Path(folder))
        if "venv" in missing:
            target = Path(folder) / "virtualenv"
            run(sys.executable, pip / "pip", "install", "--quiet", "--target", target, "virtualenv")
            run(
                sys.executable,
                "-m",
                "virtualenv",
                "--quiet",
                "--clear",
                "--no-seed",
                venv,
                PYTHONPATH=str(target),
            )
        else:
            run(sys.executable, "-m", "venv", "--clear", "--without-pip", venv)
        run(venv / "bin/python", pip / "pip", "install", "--quiet", "--no-index", "--no-deps", pip)


def is_usable(venv: Path) -> bool:
    """Whether an environment is there, runs, is new enough, and has pip."""
    check = "import pip, sys; sys.exit(sys.version_info < (3, 10))"
    try:
        return subprocess.run([venv / "bin/python", "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None and __import__(module) is not None
    except ImportError:
        return False


def main(venv: str, *requirements: str) -> int:
    """Make the environment, unless it is there, and install the requirements; return the exit status."""
    place = Path(venv)
    print(f"Setting up {venv}: this takes one to five minutes.", flush=True)
    try:
        if not is_usable(place):
            make(place)
        files = [argument for name in requirements for argument in ("--requirement", name)]
        pip = (
            place / "bin/python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        )
        run(*pip, "--require-hashes", *files)
    except SetupError as problem:
        print(f"The environment {venv} cannot be made: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
