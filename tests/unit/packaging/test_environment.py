"""`.ci/environment.py` makes the development environment also where Python comes in pieces."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

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


@dataclass
class Index:
    """A package index on loopback that offers pip, among files that are not to be taken."""

    form: str = "json"
    sha256: str = ""
    wheel: Path = field(default_factory=bundled_pip)
    url: str = ""

    def answer(self, path: str) -> tuple[str, bytes]:
        """Return content type and body for a path."""
        if path == f"/files/{self.wheel.name}":
            return "application/octet-stream", self.wheel.read_bytes()
        assert path == "/simple/pip/"
        digest = self.sha256 or hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        offers = [
            ("pip-1.0-py3-none-any.whl", {}),
            (self.wheel.name, {"requires-python": ">=3.9"}),
            ("pip-9999.0b1-py3-none-any.whl", {}),
            ("pip-9998.0-py3-none-any.whl", {"requires-python": ">=3.99"}),
            ("pip-9997.0-py3-none-any.whl", {"yanked": "broken"}),
            ("pip-9996.0.tar.gz", {}),
        ]
        if self.form == "json":
            files = [
                {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": digest}, **more}
                for name, more in offers
            ]
            return "application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode()
        links = "".join(
            f'<a href="../../files/{name}#sha256={digest}"'
            + "".join(f' data-{key}="{value.replace(">", "&gt;")}"' for key, value in more.items())
            + f">{name}</a>\n"
            for name, more in offers
        )
        return "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()


@pytest.fixture
def index() -> Iterator[Index]:
    """An index that serves."""
    index = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = index.answer(self.path)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        index.url = f"http://127.0.0.1:{server.server_port}/simple"
        yield index
        server.shutdown()
        thread.join()


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
def test_without_ensurepip(tmp_path: Path, index: Index, form: str) -> None:
    """The newest stable pip that runs here comes from the index, whichever form its pages have."""
    index.form = form
    result = make(tmp_path, "ensurepip", index=index.url)
    assert result.returncode == 0, result.stderr
    assert index.wheel.name.startswith(f"pip-{pip_version(tmp_path)}-")


def test_wrong_hash_and_no_index(tmp_path: Path, index: Index) -> None:
    """A wheel that is not what the index said is refused; without an index one sentence says what is missing."""
    index.sha256 = "0" * 64
    for url, sentence in ((index.url, "does not have the sha256"), (NO_INDEX, "pip could not be fetched")):
        result = make(tmp_path, "ensurepip", index=url)
        assert result.returncode == 1
        assert sentence in result.stderr.splitlines()[-1]


@pytest.mark.long
def test_without_venv(tmp_path: Path) -> None:
    """Where even venv is missing, virtualenv from the configured index makes the environment."""
    result = make(tmp_path, "ensurepip", "venv", index=os.environ.get("PIP_INDEX_URL", ""))
    assert result.returncode == 0, result.stderr
    assert pip_version(tmp_path)
