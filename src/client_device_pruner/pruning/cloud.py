"""The calls to the cloud as the one thread makes them, through a child process that it can kill.

Requests and replies are dataclasses, one a line: `["ListPage", {"next_token": null}]`. The child says `Ready` or
`CallFailed` when it has begun, and then answers each request with one reply, in their order.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

_PACKAGE_PATH = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class ListPage:
    """Ask for a page of the associated client devices: the first one, or the one that `next_token` stands for."""

    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Associate or disassociate 1 to 100 client devices; the child refuses one that was issued over 2 s ago."""

    operation: Literal["associate", "disassociate"]
    names: Sequence[str]
    issued_seconds: float  # monotonic


@dataclass(frozen=True, slots=True)
class Ready:
    """The child has its clients and credentials, and takes requests."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of the associated client devices; after the last one `next_token` is None."""

    devices: Mapping[str, float | None]
    """Thing names with their associationTimestamps in epoch seconds; None where the service gave none."""
    next_token: str | None


@dataclass(frozen=True, slots=True)
class Batched:
    """The answer to a batch: a name that is not among the errors was carried out."""

    errors: Mapping[str, Sequence[str]]
    """Thing names with the code and the message of what went wrong."""


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A request that failed, or the child itself."""

    kind: str
    """`throttled`, `accessDenied`, `coreNotFound`, `credentials`, `unreachable`, `server`, `garbage`, `refused`,
    `tooOld`, `internal`, or `crashed`."""
    code: str  # the service's or library's own name for it; may be empty
    message: str


Request = ListPage | Batch
Reply = Ready | Listed | Batched | CallFailed
_KINDS = {kind.__name__: kind for kind in (ListPage, Batch, Ready, Listed, Batched, CallFailed)}
_ANSWERS: Mapping[type[Request], type[Reply]] = {ListPage: Listed, Batch: Batched}

NOT_CARRIED_OUT = frozenset({"throttled", "accessDenied", "coreNotFound", "credentials", "refused", "tooOld"})
"""Kinds of failure after which it is certain that a batch changed nothing."""
DEADLINE_SECONDS: Mapping[type[Ready | ListPage | Batch], float] = {Ready: 60.0, ListPage: 120.0, Batch: 45.0}
"""How long to wait for the answer to a request, and after `start` for `Ready`, before `stop`.

An attempt takes up to 20 s (5 to connect, 15 to read); a batch has one, a page three, with pauses of 13 s;
new credentials take 9 s, the import of boto3 20 s on a small board. The rest is for name servers, second addresses, and
answers that trickle in.
"""


def encode(message: Request | Reply) -> bytes:
    """A message as a line."""
    return json.dumps([type(message).__name__, asdict(message)]).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The message of a line; raises ValueError, TypeError or KeyError where it is none."""
    kind, fields = json.loads(line)
    return _KINDS[kind](**fields)


class Cloud(Protocol):
    """The seam: one process for one cycle or restore, from `start` to `stop`."""

    def start(self) -> None:
        """Begin; `Ready` or `CallFailed` will be delivered."""

    def send(self, request: Request) -> None:
        """Send a request, once the one before is answered; its reply will be delivered."""

    def stop(self) -> None:
        """End it at once, in a call too; from then on requests fail."""


class CloudChild:
    """`Cloud` in a child process.

    All methods are for one thread, which must live as long as the child: the kernel kills the child when the thread
    that started it ends. Replies are delivered from a thread of the child's own; `deliver` must not block.
    """

    def __init__(
        self,
        core_device: str,
        deliver: Callable[[Reply], None],
        command: Sequence[str] = (sys.executable, "-m", f"{__package__}.cloud_child"),
    ) -> None:
        self._command = (*command, core_device, str(os.getpid()))
        self._deliver = deliver
        self._process: subprocess.Popen[bytes] | None = None
        self._awaited: type[Reply] = Ready
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """See `Cloud`."""
        # The child runs the same code as its parent, however that came onto the parent's path.
        path = os.pathsep.join(filter(None, (str(_PACKAGE_PATH), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path}
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
        except OSError as error:
            self._deliver(_crashed(f"cannot be started: {error}"))
            return
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="cloud", daemon=True)
        self._reader.start()

    def send(self, request: Request) -> None:
        """See `Cloud`."""
        self._awaited = _ANSWERS[type(request)]
        try:
            if self._process is None or self._process.stdin is None:
                raise BrokenPipeError("it does not run")
            self._process.stdin.write(encode(request))
            self._process.stdin.flush()
        except OSError as error:
            self._deliver(_crashed(f"is gone: {error}"))

    def stop(self) -> None:
        """See `Cloud`; may be called again."""
        process, self._process = self._process, None
        if process is None or process.stdin is None or self._reader is None:
            return
        process.kill()
        self._reader.join()
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        with process.stdout as replies:
            for line in replies:
                reply = self._understand(line)
                if self._process is process:
                    self._deliver(reply or _garbage(line))
                if reply is None:
                    process.kill()  # what it says next may be the answer to what was asked before
                    break
        status = process.wait()
        if self._process is process:
            end = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            self._deliver(_crashed(f"{end}; standard error in the log tells why"))

    def _understand(self, line: bytes) -> Reply | None:
        """The answer that a line holds, if it is one to what was asked."""
        with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
            reply = decode(line)
            if isinstance(reply, self._awaited | CallFailed) and _is_sound(reply):
                return reply
        return None


def _is_sound(reply: Reply) -> bool:
    """Whether what is in a reply can be stored and told."""
    match reply:
        case Listed(dict(devices), None | str()):
            stamps = all(stamp is None or isinstance(stamp, float) for stamp in devices.values())
            return stamps and all(map(str.isprintable, devices))
        case Batched(dict(errors)):
            return all(isinstance(text, str) for code, message in errors.values() for text in (code, message))
        case CallFailed(kind, code, message):
            return all(isinstance(text, str) for text in (kind, code, message))
    return isinstance(reply, Ready)


def _garbage(line: bytes) -> CallFailed:
    return CallFailed("crashed", "Protocol", f"not an answer of the child process: {line[:100]!r}")


def _crashed(what: str) -> CallFailed:
    return CallFailed("crashed", "", f"the child process that calls the cloud {what}")
