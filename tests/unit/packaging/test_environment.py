"""`.ci/environment.py` makes the development environment also where Python comes in pieces."""

from __future__ import annotations

import hashlib
import html
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.package_index import serving

pytestmark = pytest.mark.timeout(600)  # it computes for long where it has to give way to others
SCRIPT = Path(__file__).parents[3] / ".ci/environment.py"
NO_INDEX = "http://127.0.0.1:9/simple"
"""Nobody listens there."""


def bundled_pip() -> Path:
    """Return the pip wheel that comes with Python, or skip where there is none."""
    found = importlib.util.find_spec("ensurepip")
    wheels = list(Path(found.origin).parent.glob("_bundled/pip-*.whl")) if found and found.origin else []
    if not wheels:
        pytest.skip("this Python bundles no pip to serve")
    return wheels[0]


def write_index(folder: Path, form: str = "json", sha256: str = "") -> Path:
    """Write an index that offers pip, among files that are not to be taken; returns the wheel that is."""
    wheel = bundled_pip()
    pages = folder / "simple/pip"
    pages.mkdir(parents=True, exist_ok=True)
    shutil.copy(wheel, folder)
    sha256 = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
    offers: list[tuple[str, dict[str, str]]] = [
        ("pip-1.0-py3-none-any.whl", {}),
        (wheel.name, {"requires-python": ">=3.9"}),
        ("pip-9999.0b1-py3-none-any.whl", {}),
        ("pip-9998.0-py3-none-any.whl", {"requires-python": ">=3.99"}),
        ("pip-9997.0-py3-none-any.whl", {"yanked": "broken"}),
        ("pip-9996.0.tar.gz", {}),
    ]
    links, files = "", []
    for name, more in offers:
        attributes = "".join(f' data-{key}="{html.escape(value)}"' for key, value in more.items())
        links += f'<a href="../../{name}#sha256={sha256}"{attributes}>{name}</a>\n'
        files.append({"filename": name, "url": f"../../{name}", "hashes": {"sha256": sha256}, **more})
    (pages / "index.html").write_text(json.dumps({"files": files}) if form == "json" else f"<!DOCTYPE html>{links}")
    return wheel


def make(folder: Path, *lacking: str, index: str) -> subprocess.CompletedProcess[str]:
    """Make an environment without requirements, with a Python that lacks modules."""
    (folder / "shim").mkdir(exist_ok=True)
    for module in lacking:
        (folder / f"shim/{module}.py").write_text(f"raise ImportError({module!r})\n")
    (folder / "requirements.txt").write_text("# none\n")
    settings = {"PYTHONPATH": str(folder / "shim"), "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index}
    command = [sys.executable, str(SCRIPT), str(folder / "the venv"), str(folder / "requirements.txt")]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)


def pip_version(folder: Path) -> str:
    """Ask the environment's own pip for its version."""
    command = [str(folder / "the venv/bin/python"), "-c", "import pip; print(pip.__version__)"]
    return subprocess.check_output(command, text=True).strip()


def test_complete_python_needs_no_index(tmp_path: Path) -> None:
    """What is broken is made anew, what is there is left alone."""
    bundled_pip()
    (tmp_path / "the venv/bin").mkdir(parents=True)
    (tmp_path / "the venv/bin/python").symlink_to("/nowhere/python")
    assert make(tmp_path, index=NO_INDEX).returncode == 0
    assert pip_version(tmp_path)
    (tmp_path / "the venv/mine").touch()
    assert make(tmp_path, index=NO_INDEX).returncode == 0
    assert (tmp_path / "the venv/mine").exists()


@pytest.mark.parametrize("form", ["json", "html"])
def test_without_ensurepip(tmp_path: Path, form: str) -> None:
    """The newest stable pip that runs here comes from the index, whichever form its pages have."""
    wheel = write_index(tmp_path / "index", form)
    with serving(tmp_path / "index", pages=form) as (port, _asked):
        result = make(tmp_path, "ensurepip", index=f"http://127.0.0.1:{port}/simple")
    assert result.returncode == 0, result.stderr
    assert wheel.name.startswith(f"pip-{pip_version(tmp_path)}-")


def test_wrong_hash_and_no_index(tmp_path: Path) -> None:
    """A wheel that is not what the index said is refused; without an index one sentence says what is missing."""
    write_index(tmp_path / "index", sha256="0" * 64)
    with serving(tmp_path / "index", pages="json") as (port, _asked):
        for url, sentence in (
            (f"http://127.0.0.1:{port}/simple", "does not have the sha256"),
            (NO_INDEX, "pip could not be fetched"),
        ):
            result = make(tmp_path, "ensurepip", index=url)
            assert result.returncode == 1
            assert sentence in result.stderr.splitlines()[-1]


@pytest.mark.long
def test_without_venv(tmp_path: Path) -> None:
    """Where even venv is missing, virtualenv from the configured index makes the environment."""
    result = make(tmp_path, "ensurepip", "venv", index=os.environ.get("PIP_INDEX_URL", ""))
    assert result.returncode == 0, result.stderr
    assert pip_version(tmp_path)
