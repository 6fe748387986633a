"""The parent's side of the child process that makes the calls to the cloud."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from client_device_pruner.child import Child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LONGEST_LINE = 1 << 20  # a page of 100 devices needs 20 kB
_GRACE_SECONDS = 0.2  # a child that waits for requests ends within milliseconds of the end of its input


class ListPage(NamedTuple):
    """Ask for a page of the associated client devices.

    Attributes:
        request_id: Chosen by the caller, unique among the requests of one child.
        next_token: From the page before; None asks for the first.
    """

    request_id: int
    next_token: str | None = None


class Batch(NamedTuple):
    """Associate or disassociate up to 100 client devices in one call.

    Attributes:
        request_id: Chosen by the caller, unique among the requests of one child.
        operation: Which of the two.
        names: 1 to 100 thing names.
        issued_seconds: `time.monotonic()` when it was found to be right; the child refuses it 2 s later.
    """

    request_id: int
    operation: Literal["associate", "disassociate"]
    names: tuple[str, ...]
    issued_seconds: float


Request = ListPage | Batch


class Ready(NamedTuple):
    """The child has its client and credentials, and takes requests.

    Attributes:
        request_id: None, since it answers none; with it, as all replies, it is no empty tuple, which would be false.
    """

    request_id: None = None


class Listed(NamedTuple):
    """A page of the associated client devices.

    Attributes:
        request_id: The request's.
        devices: Thing name and associationTimestamp in epoch seconds; None where the service gave none.
        next_token: Asks for the next page; None after the last one.
    """

    request_id: int
    devices: tuple[tuple[str, float | None], ...]
    next_token: str | None


class EntryError(NamedTuple):
    """What the service says about an entry of a batch that it did not carry out."""

    thing_name: str
    code: str
    message: str


class Batched(NamedTuple):
    """The answer to a batch: what is not among the errors is said to be done."""

    request_id: int
    errors: tuple[EntryError, ...]


class CallFailed(NamedTuple):
    """A request that failed, or with it the child.

    Attributes:
        request_id: The request's; None if it cannot be told, or if no further request will be answered
            (the child did not get ready, ended unasked, or broke the protocol).
        kind: `throttled`, `accessDenied`, `coreNotFound`, `credentials`, `unreachable`, `server`, `garbage`,
            `refused`, `tooOld`, `internal`, or `crashed`. After all but `throttled`, `accessDenied`,
            `coreNotFound`, `credentials`, `refused` and `tooOld`, a batch may have been carried out all the same.
        code: The service's or library's own name for it; may be empty.
        message: For people.
    """

    request_id: int | None
    kind: str
    code: str
    message: str


Reply = Ready | Listed | Batched | CallFailed

DEADLINE_SECONDS: Mapping[type[Ready | ListPage | Batch], float] = MappingProxyType(
    {Ready: 60.0, ListPage: 120.0, Batch: 45.0}
)
"""How long to wait for the answer to a request, and after `start` for `Ready`, before `kill`.

An attempt takes at most 20 s (5 s to connect, 15 s to read), new credentials 9 s (three attempts of 2 s, and
the pauses between). So a batch of one attempt takes 29 s; a page of three attempts takes 82 s, with pauses of
1 and 2 s that the service can lengthen by 5 s each. Getting ready takes 9 s and the import of boto3, up to
20 s on a small board. The rest is for name servers, second addresses, and answers that trickle in: no
time-out covers those.
"""


class CloudWorker:
    """One child process, from `start` to `stop`; make another one for the next cycle.

    All methods are for one thread, which must live as long as the child: the kernel kills it when the thread
    that started it ends.

    Args:
        command: How to run the child; its options are appended. None: this package's own `cloud` module.
        core_device: Thing name of the core device.
        deliver: Called with each reply, mostly from a thread of the worker's own; it must not block.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        core_device: str,
        deliver: Callable[[Reply], None],
    ) -> None:
        self._command = command or (sys.executable, "-m", f"{__package__}.cloud")
        self._options = ("--core-device", core_device, "--parent", str(os.getpid()))
        self._deliver = deliver
        self._pending: dict[int, Request] = {}
        self._ending = threading.Event()
        self._child: Child | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start the child; `Ready` or `CallFailed` will be delivered."""
        try:
            child = Child((*self._command, *self._options), _environment())
        except (OSError, ValueError) as error:
            self._deliver(CallFailed(None, "crashed", type(error).__name__, f"cannot start the child: {error}"))
            return
        self._child = child
        self._reader = threading.Thread(target=self._read, args=(child,), name="cloud", daemon=True)
        self._reader.start()

    def send(self, request: Request) -> None:
        """Send a request; its answer, or `CallFailed` if the child cannot take it, will be delivered."""
        child = self._child
        self._pending[request.request_id] = request
        try:
            if child is None or self._ending.is_set():
                raise BrokenPipeError("it does not run")
            line = _encode(request)
            if child.input.write(line) != len(line):
                # The pipe holds several batches: a child that lets it fill has hung.
                self.kill()
                raise BrokenPipeError("it does not take requests")
        except OSError as error:
            self._pending.pop(request.request_id, None)
            message = f"the child that calls the cloud is gone: {error}"
            self._deliver(CallFailed(request.request_id, "crashed", type(error).__name__, message))

    def kill(self) -> None:
        """End the child at once, in a call too; nothing is delivered about it. Call `stop` as well."""
        if self._child is not None:
            self._ending.set()
            self._child.kill()

    def stop(self) -> None:
        """End the child and wait until it and the thread are gone, 0.2 s at the most; may be called again."""
        if self._child is None or self._reader is None:
            return
        self._ending.set()
        with contextlib.suppress(OSError):
            self._child.input.close()
        self._reader.join(_GRACE_SECONDS)
        if self._reader.is_alive():
            self._child.kill()
            self._reader.join()

    def _read(self, child: Child) -> None:
        with child.output as replies:
            while line := replies.readline(_LONGEST_LINE):
                reply = self._decode(line)
                if self._ending.is_set():
                    break
                if isinstance(reply, CallFailed) and reply.request_id is None:
                    self.kill()
                    self._deliver(reply)
                    break
                self._deliver(reply)
        status = child.end(_GRACE_SECONDS)  # nobody would hear it any more
        if not self._ending.is_set():
            self._ending.set()
            end = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            message = f"the child process that calls the cloud {end}; standard error in the log tells why"
            self._deliver(CallFailed(None, "crashed", str(status), message))

    def _decode(self, line: bytes) -> Reply:
        try:
            reply = _reply(json.loads(line, parse_constant=_refuse_constant), self._pending)
        except (ValueError, RecursionError):
            reply = None
        if reply is None:
            message = f"not an answer of the child that calls the cloud: {line[:100]!r}"
            return CallFailed(None, "garbage", "Protocol", message)
        return reply


def _environment() -> dict[str, str]:
    # The child runs the same code as its parent, however that came onto the parent's path.
    path = [os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def _encode(request: Request) -> bytes:
    match request:
        case ListPage(request_id, token):
            message: dict[str, Any] = {"id": request_id, "op": "list", "nextToken": token}
        case Batch(request_id, operation, names, issued):
            message = {"id": request_id, "op": operation, "names": names, "issued": issued}
    return json.dumps(message).encode() + b"\n"


def _reply(message: Any, pending: dict[int, Request]) -> Reply | None:
    """Turn an answer into a reply, or None if the protocol has no such answer to what is pending."""
    failure = None
    match message:
        case {"error": {"kind": str(kind), "code": str(code), "message": str(text)}}:
            failure = kind, code, text
    match message:
        case {"ready": True}:
            return Ready()
        case {"ready": False} | {"id": None} if failure:
            return CallFailed(None, *failure)
        case {"id": int(request_id)} if request_id in pending:
            request = pending.pop(request_id)
            return CallFailed(request_id, *failure) if failure else _result(request, message.get("ok"))
    return None


def _result(request: Request, result: Any) -> Listed | Batched | None:
    match request, result:
        case ListPage(request_id), {"devices": list(devices), "nextToken": str() | None as token}:
            associations = tuple(map(_association, devices))
            return Listed(request_id, associations, token)
        case Batch(request_id), {"errors": list(errors)}:
            return Batched(request_id, tuple(map(_entry_error, errors)))
    return None


def _association(device: Any) -> tuple[str, float | None]:
    match device:
        case [str(name), float() | int() | None as stamp]:
            return name, stamp
    raise ValueError(f"not a client device: {device!r}")


def _entry_error(entry: Any) -> EntryError:
    match entry:
        case {"thingName": str(name), "code": str(code), "message": str(message)}:
            return EntryError(name, code, message)
    raise ValueError(f"not an error of a batch: {entry!r}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
