"""Gathers the certificate authorities for pip: its own and the system's, and those that the core device trusts.

Usage: install_authorities.py FILE, with pip importable. The certificate of a company's proxy is signed by an authority
in `AWS_CA_BUNDLE` or in the core's root CA file (`GG_ROOT_CA_PATH`) alone; pip takes one file for all.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_VARIABLES = ("AWS_CA_BUNDLE", "GG_ROOT_CA_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_SYSTEM = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def sources() -> Iterator[str]:
    """Yield the files that may hold authorities, whether they exist or not."""
    for name in _VARIABLES:
        yield os.environ.get(name, "")
    for key in ("global.cert", "install.cert"):
        command = [sys.executable, "-m", "pip", "config", "get", key]
        yield subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    yield ssl.get_default_verify_paths().cafile or ""
    yield from _SYSTEM
    try:
        from pip._vendor import certifi
    except ImportError:
        return
    yield certifi.where()


def gather() -> str:
    """Return all of them as PEM; a file that holds none would spoil the rest, and is left out."""
    texts = dict[str, None]()
    for name in sources():
        try:
            text = Path(name).read_text("utf-8")
            ssl.create_default_context(cadata=text)
        except (OSError, ValueError):
            continue
        texts[text.rstrip("\n") + "\n"] = None
    return "".join(texts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(gather(), "utf-8")
