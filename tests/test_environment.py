"""`.ci/environment.py` makes the development environment also where Python comes in pieces."""

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

SCRIPT = Path(__file__).parents[1] / ".ci/environment.py"

pytestmark = pytest.mark.timeout(120)


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
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Return content type and body for a path, if there is such a page."""
        self.requests.append(path)
        if path == f"/files/{self.wheel.name}":
            return "application/octet-stream", self.wheel.read_bytes()
        if path != "/simple/pip/":
            return None
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
            found = index.answer(self.path)
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", found[0] if found else "text/plain")
            self.end_headers()
            self.wfile.write(found[1] if found else b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        index.url = f"http://127.0.0.1:{server.server_port}/simple"
        yield index
        server.shutdown()
        thread.join()


@dataclass
class Checkout:
    """A folder with requirements, and a Python that may lack modules."""

    folder: Path

    def make(self, *lacking: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script with a Python that lacks these modules."""
        shim = self.folder / "shim"
        shim.mkdir(exist_ok=True)
        for module in lacking:
            (shim / f"{module}.py").write_text(f"raise ImportError({module!r})\n")
        requirements = self.folder / "requirements.txt"
        requirements.write_text("# none\n")
        return subprocess.run(
            [sys.executable, SCRIPT, self.venv, requirements],
            env={**os.environ, "PYTHONPATH": str(shim), "PIP_CONFIG_FILE": os.devnull, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def venv(self) -> Path:
        """The environment that is made."""
        return self.folder / "the venv"

    def pip_version(self) -> str:
        """Ask the environment's own pip for its version."""
        command = [str(self.venv / "bin/python"), "-c", "import pip; print(pip.__version__)"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout in which nothing is set up."""
    return Checkout(tmp_path)


def test_complete_python_needs_no_index(checkout: Checkout) -> None:
    """The normal way is taken where it is open, and what is there is left alone."""
    bundled_pip()
    result = checkout.make(PIP_INDEX_URL="http://127.0.0.1:9/")
    assert result.returncode == 0, result.stderr
    (checkout.venv / "mine").touch()
    assert checkout.make(PIP_INDEX_URL="http://127.0.0.1:9/").returncode == 0
    assert (checkout.venv / "mine").exists()


def test_broken_environment_is_made_anew(checkout: Checkout) -> None:
    """An environment whose Python is gone is no environment."""
    bundled_pip()
    (checkout.venv / "bin").mkdir(parents=True)
    (checkout.venv / "bin/python").symlink_to("/nowhere/python")
    assert checkout.make().returncode == 0
    assert checkout.pip_version()


@pytest.mark.parametrize("form", ["json", "html"])
def test_without_ensurepip(checkout: Checkout, index: Index, form: str) -> None:
    """The newest stable pip that runs here comes from the index, whichever form its pages have."""
    index.form = form
    result = checkout.make("ensurepip", PIP_INDEX_URL=index.url)
    assert result.returncode == 0, result.stderr
    assert index.requests[:2] == ["/simple/pip/", f"/files/{index.wheel.name}"]
    assert index.wheel.name.startswith(f"pip-{checkout.pip_version()}-")


def test_index_of_a_configuration_file(checkout: Checkout, index: Index, tmp_path: Path) -> None:
    """An index that is only configured in a file is found."""
    configuration = tmp_path / "pip.conf"
    configuration.write_text(f"[global]\nindex-url = {index.url}/\n")
    environment = {"PIP_CONFIG_FILE": str(configuration), "PIP_INDEX_URL": ""}
    assert checkout.make("ensurepip", **environment).returncode == 0
    assert index.requests[0] == "/simple/pip/"


def test_wrong_hash(checkout: Checkout, index: Index) -> None:
    """A wheel that is not what the index said is refused."""
    index.sha256 = "0" * 64
    result = checkout.make("ensurepip", PIP_INDEX_URL=index.url)
    assert result.returncode == 1
    assert "does not have the sha256" in result.stderr.splitlines()[-1]


def test_no_index(checkout: Checkout) -> None:
    """Without an index, one sentence says what is missing."""
    result = checkout.make("ensurepip", PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert "pip could not be fetched from the package index" in sentence


@pytest.mark.timeout(180)
def test_without_venv(checkout: Checkout) -> None:
    """Where even venv is missing, virtualenv from the index makes the environment."""
    environment = {name: os.environ.get(name, "") for name in ("PIP_INDEX_URL", "PIP_CONFIG_FILE")}
    result = checkout.make("ensurepip", "venv", **environment)
    assert result.returncode == 0, result.stderr
    assert checkout.pip_version()
