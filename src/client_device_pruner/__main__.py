"""`python -m client_device_pruner`: without a command it runs the component."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path


class SystemClock:
    """The machine's clocks, as `presence.clock.Clock`."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    def __init__(self) -> None:
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()

    def boot_id(self) -> str:
        """The kernel's id of this boot."""
        return self._boot_id


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for wrong use."""
    match sys.argv[1:] if arguments is None else list(arguments):
        case ["--work-dir", work_dir]:
            # As Greengrass starts it: what the commands need stays out of memory.
            return run(Path(work_dir))
        case others:
            from client_device_pruner.cli import commands

            options = commands.parser().parse_args(others)
            return run(options.work_dir or Path.cwd()) if options.command is None else commands.carry_out(options)


def run(work_dir: Path) -> int:
    """Run the component until SIGTERM or SIGINT."""
    from client_device_pruner.app import App, Connected, Edges, Item
    from client_device_pruner.greengrass.queue import Queue
    from client_device_pruner.presence.client_list import ClientListReader
    from client_device_pruner.pruning.cloud import CloudChild
    from client_device_pruner.reports.events import LOGGER, log_to_standard_streams
    from client_device_pruner.store.database import lock_instance

    log_to_standard_streams()
    core_device = os.environ.get("AWS_IOT_THING_NAME", "")
    if not core_device:
        LOGGER.error("AWS_IOT_THING_NAME is not set: Greengrass sets it; see --help for the commands")
        return 2

    def connect(queue: Queue[Item]) -> None:
        def attempt() -> None:
            from client_device_pruner.greengrass.ipc import Disconnected, GreengrassIpc

            try:
                connection = GreengrassIpc(
                    deliver=lambda message: queue.put(message, len(message.topic) + len(message.payload) + 200),
                    report=queue.put_always,
                )
            except Exception as error:  # noqa: BLE001 - the SDK raises many kinds; each is a failed attempt
                queue.put_always(Disconnected(f"{type(error).__name__}: {error}", refused=True))
            else:
                queue.put_always(Connected(connection))

        threading.Thread(target=attempt, name="connect", daemon=True).start()

    locks: list[int] = []

    def own() -> bool:
        if not locks and (lock := lock_instance(work_dir)) is not None:
            locks.append(lock)
        return bool(locks)

    work_dir.mkdir(parents=True, exist_ok=True)
    edges = Edges(
        connect,
        cloud=lambda deliver: CloudChild(core_device=core_device, deliver=deliver),
        client_lists=lambda deliver: ClientListReader(deliver, time.monotonic),
    )
    app = App(work_dir, core_device, SystemClock(), edges, own=own)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: app.stop())
    return app.run()


if __name__ == "__main__":
    sys.exit(main())
