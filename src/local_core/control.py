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


async def serve(core: LocalCore) -> asyncio.Server:
    """Let other processes drive a core through ``control.sock`` in its root, until the server is closed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.read())
            done = attrgetter(request["call"])(core)(*request["arguments"])
            if inspect.isawaitable(done):
                await done
            answer = {"ok": True, "status": core.status()}
        except Exception as error:  # noqa: BLE001 - the user is told of each error
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        writer.write(json.dumps(answer).encode())
        writer.close()

    # Beside the IPC socket: the root's path may be too long for one.
    path, link = core.socket_path.with_name(SOCKET_NAME), core.root / SOCKET_NAME
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return await asyncio.start_unix_server(answer, path)


def ask(root: Path, call: str, *arguments: Any) -> Any:
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
    return answer["status"]
