"""`python -m client_device_pruner`: without a command it runs the component."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence


class SystemClock:
    """The machine's clocks, as `model.Clock`."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for wrong use."""
    match sys.argv[1:] if arguments is None else list(arguments):
        case []:
            return run(os.getcwd())
        case ["--work-dir", work_dir]:
            # As the recipe starts it: what the commands need stays out of memory.
            return run(work_dir)
        case others:
            from client_device_pruner import commands

            options = commands.parser().parse_args(others)
            return run(options.work_dir) if options.command is None else commands.carry_out(options)


def run(work_dir: str | os.PathLike[str]) -> int:
    """Run the component until SIGTERM or SIGINT."""
    from client_device_pruner import state_file
    from client_device_pruner.cloud_worker import CloudWorker
    from client_device_pruner.component import Component, Connected, Edges, Item, NotConnected
    from client_device_pruner.inbox import Inbox
    from client_device_pruner.reports import LOGGER, log_to_standard_streams
    from client_device_pruner.roll_call import RollCaller

    log_to_standard_streams()
    core_device = os.environ.get("AWS_IOT_THING_NAME", "")
    if not core_device:
        LOGGER.error("AWS_IOT_THING_NAME is not set: Greengrass starts this, and sets it; --help has the commands")
        return 2

    def connect(inbox: Inbox[Item]) -> None:
        def attempt() -> None:
            from client_device_pruner.ipc import GreengrassIpc

            try:
                ipc = GreengrassIpc(deliver=inbox.put, report=inbox.put_always)
            except Exception as error:  # noqa: BLE001 - the SDK raises many kinds; each is a failed attempt
                inbox.put_always(NotConnected(f"{type(error).__name__}: {error}"))
            else:
                inbox.put_always(Connected(ipc))

        threading.Thread(target=attempt, name="connect", daemon=True).start()

    locks: list[int] = []

    def own() -> bool:
        if not locks and (lock := state_file.lock_instance(work_dir)) is not None:
            locks.append(lock)
        return bool(locks)

    os.makedirs(work_dir, exist_ok=True)
    # Opening the state can take a while: a signal that comes meanwhile is kept.
    stopping = threading.Event()
    _when_told_to_end(stopping.set)
    edges = Edges(
        connect,
        worker=lambda deliver: CloudWorker(core_device=core_device, deliver=deliver),
        roll_caller=lambda deliver: RollCaller(deliver, time.monotonic),
    )
    component = Component(work_dir, core_device, SystemClock(), edges, own=own)
    _when_told_to_end(component.stop)
    if stopping.is_set():
        component.stop()
    return component.run()


def _when_told_to_end(act: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: act())


if __name__ == "__main__":
    sys.exit(main())
