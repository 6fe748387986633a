"""The control socket of a running core: one JSON object a line, each answered by one or more.

A request is ``{"command": name, …}``, an answer ``{"ok": true, "result": …}`` or
``{"ok": false, "error": text}``.
``events`` with ``"follow": true`` goes on answering until the client hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from local_core.core import LocalCore
    from local_core.pubsub import Message

SOCKET_NAME = "control.sock"
_LINE_LIMIT_BYTES = 1 << 24


class ControlError(RuntimeError):
    """The core refused a command, or no core runs there; the message is for the user."""


class ControlServer:
    """Lets other processes drive a `LocalCore` through ``control.sock`` in its root."""

    def __init__(self, core: LocalCore) -> None:
        self._core = core
        self._link = core.root / SOCKET_NAME
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen; the socket lies beside the IPC socket, and the root has a link to it."""
        path = self._core.socket_path.with_name(SOCKET_NAME)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_LINE_LIMIT_BYTES)
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(path)

    async def stop(self) -> None:
        """Stop listening and hang up."""
        if self._server:
            self._server.close()
            self._link.unlink(missing_ok=True)
        while self._clients:
            for client in self._clients:
                client.transport.abort()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while line := await reader.readline():
                async for answer in self._answers(line, reader):
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _answers(self, line: bytes, reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
        try:
            request = json.loads(line)
            if request["command"] == "events":
                for event in list(self._core.events):
                    yield {"ok": True, "result": event}
                if request.get("follow"):
                    async for event in self._follow(reader):
                        yield {"ok": True, "result": event}
            else:
                yield {"ok": True, "result": await self._run(request)}
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the user is told
            yield {"ok": False, "error": f"{type(error).__name__}: {error}"}

    async def _run(self, request: Mapping[str, Any]) -> Any:
        core = self._core
        actions: dict[tuple[str, str | None], Callable[[], Any]] = {
            ("status", None): lambda: None,
            ("deploy", None): lambda: core.deploy(request["updates"]),
            ("associate", None): lambda: core.cloud.associate(*request["names"]),
            ("disassociate", None): lambda: core.cloud.disassociate(*request["names"]),
            ("bridge", "start"): core.bridge.start,
            ("bridge", "stop"): core.bridge.stop,
            ("broker", "start"): core.broker.start,
            ("broker", "stop"): core.broker.stop,
            ("component", "start"): core.start_component,
            ("component", "stop"): core.stop_component,
            ("component", "kill"): core.component.kill,
        }
        if request["command"] == "list":
            connected = core.broker.connections
            return [{"thingName": name, "connected": name in connected} for name in sorted(core.cloud.associations)]
        action = actions.get((request["command"], request.get("action")))
        if action is None:
            raise ControlError(f"there is no command {request['command']} {request.get('action') or ''}".rstrip())
        done = action()
        if inspect.isawaitable(done):
            await done
        return self._status()

    def _status(self) -> dict[str, Any]:
        core = self._core
        return {
            "thingName": core.thing_name,
            "component": core.component.state.value,
            "pid": core.component.pid,
            "mqttPort": core.broker.port,
            "connections": sorted(core.broker.connections),
            "bridgeConnected": core.bridge.connected,
            "cloud": core.cloud.url,
            "associations": len(core.cloud.associations),
            "workDir": str(core.work_dir),
            "log": str(core.root / "logs" / f"{core.recipe.name}.log"),
        }

    async def _follow(self, reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
        from local_core.core import EVENTS_TOPIC

        queue: asyncio.Queue[Message | None] = asyncio.Queue()
        unsubscribe = self._core.pubsub.subscribe(EVENTS_TOPIC, queue.put_nowait)
        hung_up = asyncio.create_task(reader.read())
        hung_up.add_done_callback(lambda _task: queue.put_nowait(None))
        try:
            while message := await queue.get():
                yield json.loads(message.payload)
        finally:
            unsubscribe()
            hung_up.cancel()


def ask(root: Path, command: str, **arguments: Any) -> Iterator[Any]:
    """Send one command to the core that runs at a root, and yield its answers' results.

    Raises:
        ControlError: If no core runs there, or it refused.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        try:
            connection.connect(str((root / SOCKET_NAME).resolve()))
        except OSError as error:
            raise ControlError(f"no core runs at {root} ({error.strerror}): start one") from error
        connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        if not arguments.get("follow"):
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile(encoding="utf-8") as answers:
            for line in answers:
                answer = json.loads(line)
                if not answer["ok"]:
                    raise ControlError(answer["error"])
                yield answer["result"]
