"""A child process with a pipe to its standard input, and one from its standard output.

It does the little that is needed of `subprocess`, which holds half a MiB for good once it is imported (Python 3.11).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_POLL_SECONDS = 0.01


class Child:
    """A process that runs from the making of this object to `end`.

    It shares standard error with its parent, and no other descriptor.

    Args:
        command: The program's absolute path, and its arguments.
        environment: All that the child finds there.

    Attributes:
        pid: Its process id, which is another process's once the child has ended and was reaped.
        input: Leads to its standard input, and never blocks: `write` returns None, or less than it was given, when
            the pipe is full.
        output: Comes from its standard output. Who made the child closes both.

    Raises:
        OSError: It cannot be started: there is no such program, say, or no descriptor left.
        ValueError: A null byte stands in what it is given.
    """

    __slots__ = ("_lock", "_status", "input", "output", "pid")

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._lock = threading.RLock()
        self._status: int | None = None
        _occupy_standard_streams()
        ends: list[int] = []
        try:
            ends += os.pipe()
            ends += os.pipe()
            stdin, our_input, our_output, stdout = ends
            self.pid = os.posix_spawn(
                command[0],
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, stdout, 1),
                    # The SDK lets its connection be inherited. To close what is closed by then is no error.
                    *((os.POSIX_SPAWN_CLOSE, number) for number in map(int, os.listdir("/proc/self/fd")) if number > 2),
                ],
                # Python ignores them, and what is ignored stays so in a child.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except BaseException:
            for end in ends:
                os.close(end)
            raise
        os.close(stdin)
        os.close(stdout)
        os.set_blocking(our_input, False)
        self.input = os.fdopen(our_input, "wb", buffering=0)
        self.output = os.fdopen(our_output, "rb")

    def poll(self) -> int | None:
        """Reap it if it has ended; from any thread.

        Returns:
            Its exit status, or the number of the signal that killed it, negated; None while it runs.
        """
        with self._lock:
            if self._status is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:
                    # The kernel reaps the children of who ignores SIGCHLD; how they ended is lost.
                    self._status = 0
                else:
                    self._status = os.waitstatus_to_exitcode(status) if pid else None
            return self._status

    def kill(self) -> None:
        """Kill it, unless it has ended; from any thread."""
        # Within the lock nobody else can reap it: its number is still its own.
        with self._lock:
            if self.poll() is None:
                os.kill(self.pid, signal.SIGKILL)

    def end(self, grace_seconds: float) -> int:
        """Wait until it has ended, which it has to within the grace: after that it is killed.

        Returns:
            As `poll`.
        """
        deadline = time.monotonic() + grace_seconds
        while (status := self.poll()) is None:
            if time.monotonic() >= deadline:
                self.kill()
            time.sleep(_POLL_SECONDS)
        return status


def _occupy_standard_streams() -> None:
    """Have those that are closed lead nowhere: a pipe that took the number of one would be mistaken for it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
