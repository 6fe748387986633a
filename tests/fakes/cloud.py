"""The cloud of one core device: its associations, and a child process that answers in the same process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from client_device_pruner.pruning.cloud import Batch, Batched, CallFailed, Listed, ListPage, Ready, Reply, Request

PAGE_SIZE = 100
"""Entries on a page of a listing, as the service has it."""
BATCH_AGE_SECONDS = 2.0
"""How old a batch may be, as the real child has it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that reached the cloud: `list`, `associate` or `disassociate`, and when in monotonic seconds."""

    operation: str
    names: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True)
class Carried:
    """A disassociation that took place."""

    name: str
    timestamp: float | None
    at: float


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of one call; `operation` may be `start`, the child's own beginning.

    `carried_out`: the call takes effect, and its answer is lost. `silent`: no answer comes at all.
    """

    operation: str
    kind: str
    code: str = ""
    carried_out: bool = False
    silent: bool = False


class FakeCloud:
    """The truth of one core device's associations; what each child process is asked goes through it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.associations: dict[str, float | None] = {}  # thing name → associationTimestamp
        self.hidden: set[str] = set()  # names that listings leave out, though they are associated
        self.refusing: dict[str, str] = {}  # thing name → code with which that entry of a batch is refused
        self.faults: list[Fault] = []  # each is used once, by the next call of its operation
        self.held = False  # while true, answers wait for `release`
        self.calls: list[Call] = []  # every call that reached the cloud, also those that failed
        self.carried: list[Carried] = []  # every disassociation that took place
        self.in_vain: list[str] = []  # names that were to be disassociated and were not associated
        self.starts = 0  # how many child processes were started
        # Called with what has just become of a call; a test may raise there, as if the process died.
        self.point: Callable[[str], None] = lambda _label: None
        self._monotonic = monotonic
        self._stamp = 1_700_000_000.0
        self._waiting: list[Callable[[], None]] = []

    def associate(self, *names: str, timestamps: bool = True) -> None:
        """Associate devices; those that are already stay as they are."""
        for name in names:
            self._stamp += 1.0
            self.associations.setdefault(name, self._stamp if timestamps else None)

    def disassociate(self, *names: str) -> None:
        """Somebody else disassociates devices."""
        for name in names:
            self.associations.pop(name, None)

    def fail(
        self,
        operation: str,
        kind: str,
        *,
        code: str = "",
        carried_out: bool = False,
        silent: bool = False,
        times: int = 1,
    ) -> None:
        """Let the next calls of an operation fail."""
        self.faults += [Fault(operation, kind, code or kind.title(), carried_out, silent)] * times

    def count(self, operation: str) -> int:
        """How many calls of an operation reached the cloud."""
        return sum(call.operation == operation for call in self.calls)

    def batches(self, operation: str = "disassociate") -> list[tuple[str, ...]]:
        """The names of each batch."""
        return [call.names for call in self.calls if call.operation == operation]

    def release(self) -> None:
        """Deliver the answers that wait."""
        waiting, self._waiting = self._waiting, []
        for deliver in waiting:
            deliver()

    # What the child processes use

    def start(self) -> Reply:
        """A child process begins."""
        self.point("child started")
        self.starts += 1
        fault = self._fault("start")
        return CallFailed(fault.kind, fault.code, "made to fail") if fault else Ready()

    def answer(self, request: Request) -> Reply | None:
        """Carry a request out, or not, and answer it; None if no answer is to come."""
        now = self._monotonic()
        operation = "list" if isinstance(request, ListPage) else request.operation
        names = () if isinstance(request, ListPage) else tuple(request.names)
        self.point(f"{operation} about to be sent")
        self.calls.append(Call(operation, names, now))
        fault = self._fault(operation)
        reply: Reply
        if fault and not fault.carried_out:
            reply = CallFailed(fault.kind, fault.code, "made to fail")
        elif isinstance(request, ListPage):
            reply = self._list(request)
        elif now - request.issued_seconds > BATCH_AGE_SECONDS:
            reply = CallFailed("tooOld", "TooOld", "not sent")
        else:
            reply = self._batch(request, now)
        if fault and fault.carried_out:
            reply = CallFailed(fault.kind, fault.code, "made to fail")
        self.point(f"{operation} carried out")
        return None if fault and fault.silent else reply

    def hand_in(self, deliver: Callable[[Reply], None], reply: Reply) -> None:
        """Deliver an answer now, or when it is released."""
        self._waiting.append(lambda: deliver(reply))
        if not self.held:
            self.release()

    def _fault(self, operation: str) -> Fault | None:
        fault = next((fault for fault in self.faults if fault.operation == operation), None)
        if fault:
            self.faults.remove(fault)
        return fault

    def _list(self, request: ListPage) -> Listed:
        shown = sorted(item for item in self.associations.items() if item[0] not in self.hidden)
        begin = int(request.next_token or 0)
        end = begin + PAGE_SIZE
        return Listed(dict(shown[begin:end]), str(end) if end < len(shown) else None)

    def _batch(self, request: Batch, now: float) -> Batched:
        for name in request.names:
            if name in self.refusing:
                continue
            if request.operation == "associate":
                self.associate(name)
            elif name in self.associations:
                self.carried.append(Carried(name, self.associations.pop(name), now))
            else:
                self.in_vain.append(name)
        return Batched({name: (self.refusing[name], "no") for name in request.names if name in self.refusing})


class FakeCloudChild:
    """`Cloud` without a process: each answer comes within the call, or when the cloud is told to release it."""

    def __init__(self, cloud: FakeCloud, deliver: Callable[[Reply], None]) -> None:
        self._cloud = cloud
        self._deliver = deliver
        self._alive = True

    def start(self) -> None:
        """See `Cloud`."""
        self._cloud.hand_in(self._take, self._cloud.start())

    def send(self, request: Request) -> None:
        """See `Cloud`."""
        if not self._alive:
            self._deliver(CallFailed("crashed", "BrokenPipeError", "it does not run"))
            return
        reply = self._cloud.answer(request)
        if reply is not None:
            self._cloud.hand_in(self._take, reply)

    def stop(self) -> None:
        """See `Cloud`."""
        self._alive = False

    def _take(self, reply: Reply) -> None:
        if self._alive:
            self._deliver(reply)
            self._cloud.point("answered")
