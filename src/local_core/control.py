"""The control socket of a running core: a request is one JSON object, the answer another one.

``{"call": "cloud.associate", "arguments": ["pump"]}`` calls that method of the core with those arguments, and is
answered by ``{"ok": true, "status": {…}}`` or ``{"ok": false, "error": text}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from local_core.core import LocalCore

SOCKET_NAME = "control.sock"


class ControlError(RuntimeError):
    """The core refused a call, or no core runs there; the message is for the user."""


class ControlServer:
    """Lets other processes drive a `LocalCore` through ``control.sock`` in its root."""

    def __init__(self, core: LocalCore) -> None:
        self._core = core
        self._link = core.root / SOCKET_NAME
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; the socket lies beside the IPC socket, and the root has a link to it."""
        path = self._core.socket_path.with_name(SOCKET_NAME)
        self._server = await asyncio.start_unix_server(self._serve, path)
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(path)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.close()
            self._link.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.read())
            done = attrgetter(request["call"])(self._core)(*request["arguments"])
            if inspect.isawaitable(done):
                await done
            answer = {"ok": True, "status": self._core.status()}
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the user is told
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        writer.write(json.dumps(answer).encode())
        writer.close()


def ask(root: Path, call: str, *arguments: Any) -> dict[str, Any]:
    """Have the core that runs at a root call one of its methods, and return its status after that.

    Raises:
        ControlError: If no core runs there, or it refused.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        try:
            connection.connect(str((root / SOCKET_NAME).resolve()))
        except OSError as error:
            raise ControlError(f"no core runs at {root} ({error.strerror}): start one") from error
        connection.sendall(json.dumps({"call": call, "arguments": arguments}).encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile(encoding="utf-8") as file:
            answer = json.load(file)
    if not answer["ok"]:
        raise ControlError(answer["error"])
    status: dict[str, Any] = answer["status"]
    return status
