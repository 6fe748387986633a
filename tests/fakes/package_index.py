"""A package index on loopback: a folder, served as it is."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def serving(
    folder: Path, *, pages: str = "html", context: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Serve while the block runs, with index pages of `html` or `json`; gives the port, and the paths asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_said: object) -> None:
            asked.append(self.path)

        def guess_type(self, path: object) -> str:
            kind = {"html": "text/html", "json": "application/vnd.pypi.simple.v1+json"}[pages]
            return kind if str(path).endswith(".html") else "application/octet-stream"

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()
