"""Client devices: real MQTT clients in processes of their own, which can be dropped, frozen and killed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_core.mqtt_client import MqttClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

_AT_ONCE = 50
_LINE_LIMIT_BYTES = 1 << 20
_SOURCE_DIRECTORY = Path(__file__).resolve().parents[1]


class DeviceError(Exception):
    """A device process could not do what it was told, or is gone."""


class ClientDevices:
    """The device processes of one local core, spawned as they are needed; leaving the context kills them.

    Args:
        broker_port: tells the broker's TCP port on loopback when a process is spawned.
    """

    def __init__(self, broker_port: Callable[[], int]) -> None:
        self._broker_port = broker_port
        self._processes: dict[str, _Process] = {}
        self._homes: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in list(self._processes):
            await self.kill(process)

    async def connect(
        self,
        *names: str,
        process: str = "devices",
        telemetry_seconds: float | None = None,
        topic: str = "clients/{name}/telemetry",
        keepalive: int = 60,
        clean: bool = True,
        reconnect_seconds: float | None = None,
        will: str | None = None,
    ) -> None:
        """Connect devices, and wait until the broker has accepted all of them.

        Args:
            names: client ids; one that is connected already in this process starts a second connection.
            process: the process that they live in, spawned if there is none of this name.
            telemetry_seconds: time between two messages of a device; None sends none.
            topic: where its messages go; `{name}` stands for its name.
            keepalive: its MQTT keep-alive in seconds.
            clean: whether the broker forgets the session when it ends.
            reconnect_seconds: how long after a lost connection it tries again, again and again; None never.
            will: payload of a will on its topic.

        Raises:
            DeviceError: one of them was not accepted, or the process is gone.
        """
        if process not in self._processes:
            self._processes[process] = await _Process.spawn(process, self._broker_port())
        self._homes.update(dict.fromkeys(names, process))
        await self._processes[process].order(
            do="connect",
            names=names,
            telemetry_seconds=telemetry_seconds,
            topic=topic,
            keepalive=keepalive,
            clean=clean,
            reconnect_seconds=reconnect_seconds,
            will=will,
        )

    async def disconnect(self, *names: str) -> None:
        """Have devices take leave properly, with a DISCONNECT packet."""
        await self._order_each(names, do="disconnect")

    async def drop(self, *names: str) -> None:
        """Have devices close their sockets without a word."""
        await self._order_each(names, do="drop")

    async def publish(self, name: str, payload: str, topic: str | None = None) -> None:
        """Have a connected device publish (QoS 1), by default on its own topic."""
        await self._order_each([name], do="publish", payload=payload, topic=topic)

    async def freeze(self, process: str) -> None:
        """Suspend a process: its devices stay connected and say nothing."""
        self._find(process).signal(signal.SIGSTOP)

    async def thaw(self, process: str) -> None:
        """Let a frozen process go on."""
        self._find(process).signal(signal.SIGCONT)

    async def kill(self, process: str) -> None:
        """Kill a process, and all its devices with it."""
        await self._find(process).kill()
        del self._processes[process]
        self._homes = {name: home for name, home in self._homes.items() if home != process}

    def pid(self, process: str) -> int:
        """Return the process id."""
        return self._find(process).pid

    async def _order_each(self, names: tuple[str, ...] | list[str], **order: Any) -> None:
        homes: dict[str, list[str]] = {}
        for name in names:
            if name not in self._homes:
                raise DeviceError(f"no device {name} was ever connected here")
            homes.setdefault(self._homes[name], []).append(name)
        for home, residents in homes.items():
            await self._find(home).order(names=residents, **order)

    def _find(self, process: str) -> _Process:
        if process not in self._processes:
            raise DeviceError(f"there is no device process {process}")
        return self._processes[process]


class _Process:
    """The near end of one device process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process
        self._turn = asyncio.Lock()
        self._orders = 0

    @classmethod
    async def spawn(cls, name: str, port: int) -> _Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "local_core.devices",
            "--port",
            str(port),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=_SOURCE_DIRECTORY,
            limit=_LINE_LIMIT_BYTES,
            start_new_session=True,
        )
        return cls(name, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def order(self, **order: Any) -> None:
        """Have one order carried out.

        Raises:
            DeviceError: it was not, or the process is gone.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101, PT018  # both are pipes; for mypy
        async with self._turn:
            self._orders += 1
            answer: dict[str, Any] = {}
            with contextlib.suppress(ConnectionError):
                stdin.write(json.dumps({"number": self._orders, **order}).encode() + b"\n")
                await stdin.drain()
                # An answer with another number is to an order that was given up waiting for.
                while answer.get("number") != self._orders and (line := await stdout.readline()):
                    answer = json.loads(line)
        if answer.get("number") != self._orders:
            raise DeviceError(f"the device process {self._name} is gone")
        if answer["error"]:
            raise DeviceError(f"{self._name}: {answer['error']}")

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.communicate()


class _Device:
    """One client device in a device process."""

    def __init__(self, name: str, port: int, options: dict[str, Any]) -> None:
        self._port = port
        self.topic = str(options["topic"]).replace("{name}", name)
        self._telemetry_seconds: float | None = options["telemetry_seconds"]
        self._reconnect_seconds: float | None = options["reconnect_seconds"]
        self._messages = 0
        self._timer: asyncio.TimerHandle | None = None
        self._attempt: asyncio.Task[None] | None = None
        will = (self.topic, str(options["will"]).encode()) if options["will"] is not None else None
        self._client = MqttClient(name, keepalive_seconds=options["keepalive"], clean=options["clean"], will=will)
        self._client.on_lost = self._lost

    async def connect(self) -> None:
        await self._client.connect(self._port)
        self._send_telemetry()

    def publish(self, topic: str | None, payload: str) -> None:
        if not self._client.connected:
            raise ConnectionError(f"{self._client.client_id} is not connected")
        self._client.publish(topic or self.topic, payload.encode(), qos=1)

    def give_way(self) -> None:
        """Stop connecting again by itself."""
        self._reconnect_seconds = None
        if self._attempt is not None:
            self._attempt.cancel()

    def leave(self, *, properly: bool) -> None:
        self.give_way()
        if properly:
            self._client.disconnect()
        else:
            self._client.drop()

    def _send_telemetry(self) -> None:
        if self._telemetry_seconds is not None:
            self._messages += 1
            self._client.publish(self.topic, json.dumps({"message": self._messages}).encode())
            self._timer = asyncio.get_running_loop().call_later(self._telemetry_seconds, self._send_telemetry)

    def _lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reconnect_seconds is not None:
            self._attempt = asyncio.ensure_future(self._reconnect(self._reconnect_seconds))

    async def _reconnect(self, seconds: float) -> None:
        while not self._client.connected:
            await asyncio.sleep(seconds)
            with contextlib.suppress(OSError):
                await self.connect()


class _Fleet:
    """The devices of one device process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._devices: dict[str, _Device] = {}

    async def carry_out(self, order: dict[str, Any]) -> None:
        do, names = order["do"], order["names"]
        if do == "connect":
            places = asyncio.Semaphore(_AT_ONCE)
            await asyncio.gather(*(self._connect(name, order, places) for name in names))
            return
        for name in names:
            device = self._devices[name]
            if do == "publish":
                device.publish(order["topic"], order["payload"])
            else:
                device.leave(properly=do == "disconnect")

    async def _connect(self, name: str, options: dict[str, Any], places: asyncio.Semaphore) -> None:
        async with places:
            if name in self._devices:
                self._devices[name].give_way()
            device = _Device(name, self._port, options)
            await device.connect()
        self._devices[name] = device


async def _serve(port: int) -> None:
    """Carry out orders from stdin, one JSON object a line, until it closes; acknowledge each on stdout."""
    reader = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    fleet = _Fleet(port)
    while line := await reader.readline():
        order, problem = json.loads(line), ""
        try:
            await fleet.carry_out(order)
        except (OSError, LookupError) as error:
            problem = str(error) or repr(error)
        sys.stdout.write(json.dumps({"number": order["number"], "error": problem}) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Run a device process."""
    parser = argparse.ArgumentParser(description="Client devices for the embedded local core.")
    parser.add_argument("--port", type=int, required=True, help="the broker's port on loopback")
    asyncio.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
