"""The calls to the cloud as the one thread makes them, through a child process that it can kill."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

_LONGEST_LINE = 1 << 20  # a page of 100 devices needs 20 kB
_GRACE_SECONDS = 0.2  # a child that waits for requests ends within milliseconds of the end of its input
_PACKAGE_PATH = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class ListPage:
    """Ask for a page of the associated client devices.

    Attributes:
        request_id: chosen by the caller, unique among the requests of one child.
        next_token: from the page before; None asks for the first.
    """

    request_id: int
    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Associate or disassociate up to 100 client devices in one call.

    Attributes:
        request_id: chosen by the caller, unique among the requests of one child.
        operation: which of the two.
        names: 1 to 100 thing names.
        issued_seconds: monotonic seconds at which it was found to be right; the child refuses it 2 s later.
    """

    request_id: int
    operation: Literal["associate", "disassociate"]
    names: tuple[str, ...]
    issued_seconds: float


Request = ListPage | Batch


@dataclass(frozen=True, slots=True)
class Ready:
    """The child has its clients and credentials, and takes requests; it answers none, so `request_id` is None."""

    request_id: None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of the associated client devices.

    Attributes:
        request_id: the request's.
        devices: thing name and associationTimestamp in epoch seconds; None where the service gave none.
        next_token: asks for the next page; None after the last one.
    """

    request_id: int
    devices: tuple[tuple[str, float | None], ...]
    next_token: str | None


@dataclass(frozen=True, slots=True)
class EntryError:
    """What the service says about an entry of a batch that it did not carry out."""

    thing_name: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Batched:
    """The answer to a batch: what is not among the errors is said to be done."""

    request_id: int
    errors: tuple[EntryError, ...]


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A request that failed, or with it the child.

    Attributes:
        request_id: the request's; None if it cannot be told, or if no further request will be answered
            (the child did not get ready, ended unasked, or broke the protocol).
        kind: `throttled`, `accessDenied`, `coreNotFound`, `credentials`, `unreachable`, `server`, `garbage`,
            `refused`, `tooOld`, `internal`, or `crashed`.
        code: the service's or library's own name for it; may be empty.
        message: for people.
    """

    request_id: int | None
    kind: str
    code: str
    message: str


Reply = Ready | Listed | Batched | CallFailed

NOT_CARRIED_OUT = frozenset({"throttled", "accessDenied", "coreNotFound", "credentials", "refused", "tooOld"})
"""Kinds of failure after which it is certain that a batch changed nothing."""
DEADLINE_SECONDS: Mapping[type[Ready | ListPage | Batch], float] = MappingProxyType(
    {Ready: 60.0, ListPage: 120.0, Batch: 45.0}
)
"""How long to wait for the answer to a request, and after `start` for `Ready`, before `kill`.

An attempt takes up to 20 s (5 to connect, 15 to read), of which a batch has one and a page three, with pauses of 13 s;
new credentials take 9 s, the import of boto3 20 s on a small board. The rest is for name servers, second addresses, and
answers that trickle in.
"""


class Cloud(Protocol):
    """The seam: one process for one cycle or restore, from `start` to `stop`."""

    def start(self) -> None:
        """Begin; `Ready` or `CallFailed` will be delivered."""

    def send(self, request: Request) -> None:
        """Send a request; its reply will be delivered."""

    def kill(self) -> None:
        """End it at once, in a call too; nothing is delivered about it."""

    def stop(self) -> None:
        """End it, and wait until it is gone."""


class CloudChild:
    """`Cloud` in a child process.

    All methods are for one thread, which must live as long as the child: the kernel kills it when the thread
    that started it ends.

    Args:
        core_device: thing name of the core device.
        deliver: called with each reply, mostly from a thread of the child's own; it must not block.
        command: how to run the child; its options are appended.
    """

    def __init__(
        self,
        core_device: str,
        deliver: Callable[[Reply], None],
        command: Sequence[str] = (sys.executable, "-m", f"{__package__}.cloud_child"),
    ) -> None:
        self._command = (*command, "--core-device", core_device, "--parent", str(os.getpid()))
        self._deliver = deliver
        self._pending: dict[int, Request] = {}
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def process_id(self) -> int | None:
        """The child's; None before it is started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """See `Cloud`."""
        # The child runs the same code as its parent, however that came onto the parent's path.
        path = os.pathsep.join(filter(None, (str(_PACKAGE_PATH), os.environ.get("PYTHONPATH"))))
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        except (OSError, ValueError) as error:
            self._deliver(CallFailed(None, "crashed", type(error).__name__, f"cannot start the child: {error}"))
            return
        self._process = process
        assert process.stdin is not None  # noqa: S101 - for the type checker
        os.set_blocking(process.stdin.fileno(), False)
        self._reader = threading.Thread(target=self._read, args=(process,), name="cloud", daemon=True)
        self._reader.start()

    def send(self, request: Request) -> None:
        """See `Cloud`; if the child cannot take the request, `CallFailed` is delivered."""
        self._pending[request.request_id] = request
        line = _encode(request)
        try:
            if self._process is None or self._process.stdin is None or self._ending.is_set():
                raise BrokenPipeError("it does not run")
            if os.write(self._process.stdin.fileno(), line) != len(line):
                raise BlockingIOError("it does not take requests")
        except OSError as error:
            # Also where the pipe, which holds several batches, is full: a child that lets it fill has hung.
            self.kill()
            message = f"the child process that calls the cloud is gone: {error}"
            self._deliver(CallFailed(request.request_id, "crashed", type(error).__name__, message))

    def kill(self) -> None:
        """See `Cloud`; call `stop` as well."""
        if self._process is not None:
            self._ending.set()
            self._process.kill()

    def stop(self) -> None:
        """See `Cloud`; takes 0.2 s at the most, and may be called again."""
        if self._process is None or self._process.stdin is None or self._reader is None:
            return
        self._ending.set()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._reader.join(_GRACE_SECONDS)
        if self._reader.is_alive():
            self._process.kill()
            self._reader.join()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        with process.stdout as replies:
            while line := replies.readline(_LONGEST_LINE):
                reply = _decode(line, self._pending)
                if self._ending.is_set():
                    break
                if isinstance(reply, CallFailed) and reply.request_id is None:
                    self.kill()
                    self._deliver(reply)
                    break
                self._deliver(reply)
        try:
            status = process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            # Without an output it is of no use.
            process.kill()
            status = process.wait()
        if not self._ending.is_set():
            self._ending.set()
            end = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            message = f"the child process that calls the cloud {end}; standard error in the log tells why"
            self._deliver(CallFailed(None, "crashed", str(status), message))


def _encode(request: Request) -> bytes:
    message: dict[str, Any] = {"id": request.request_id}
    if isinstance(request, ListPage):
        message |= {"op": "list", "nextToken": request.next_token}
    else:
        message |= {"op": request.operation, "names": request.names, "issued": request.issued_seconds}
    return json.dumps(message).encode() + b"\n"


def _decode(line: bytes, pending: dict[int, Request]) -> Reply:
    """A line of the child; one that is no answer to what is pending is a failure of the child."""
    try:
        message = json.loads(line)
        if error := message.get("error"):
            return CallFailed(message["id"], error["kind"], error["code"], error["message"])
        if message["id"] is None:
            return Ready()
        request, result = pending.pop(message["id"]), message["ok"]
        if isinstance(request, ListPage):
            devices = tuple((name, timestamp) for name, timestamp in result["devices"])
            return Listed(request.request_id, devices, result["nextToken"])
        errors = tuple(EntryError(e["thingName"], e["code"], e["message"]) for e in result["errors"])
        return Batched(request.request_id, errors)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        message = f"not an answer of the child process that calls the cloud: {line[:100]!r}"
        return CallFailed(None, "garbage", "Protocol", message)
