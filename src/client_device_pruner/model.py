"""The words of the project as types: what the sources tell, the ledger keeps and the policy decides."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from enum import Enum
from struct import Struct
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """The two clocks of the machine; only the monotonic one is ever used for a decision."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment of this boot; never goes back."""

    def wall(self) -> float:
        """Seconds since the epoch, for people to read."""


class Proof(str, Enum):
    """What proves an absence (DESIGN, model 5)."""

    CENSUS = "census"
    ROLL_CALL = "rollCall"
    HABIT = "habit"


class State(str, Enum):
    """Where an associated client device stands on its way from present to gone."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"
    MARKED = "marked"
    DUE = "due"
    PROTECTED = "protected"


class Association(NamedTuple):
    """One incarnation: a thing name, and when it was associated (epoch seconds; None where the cloud does not say)."""

    name: str
    timestamp: float | None


class Mark(NamedTuple):
    """A stale device whose notice runs, measured on the clock of the source that proves it."""

    source_id: int
    proof: Proof
    clock_seconds: float
    cycle_id: str


class Habit(NamedTuple):
    """How one device speaks on one `activity` source.

    `first_seconds` and `last_seconds` are readings of the source's clock; `last_running_seconds` and
    `longest_silence_seconds` are measured on the component's running time, so that a break counts as silence.
    """

    heard: int = 0
    first_seconds: float = 0.0
    last_seconds: float = 0.0
    last_running_seconds: float = 0.0
    longest_silence_seconds: float = 0.0

    def after(self, clock_seconds: float, running_seconds: float) -> Habit:
        """The habit after one more message."""
        if not self.heard:
            return Habit(1, clock_seconds, clock_seconds, running_seconds)
        silence = running_seconds - self.last_running_seconds
        longest = max(self.longest_silence_seconds, silence)
        return Habit(self.heard + 1, self.first_seconds, clock_seconds, running_seconds, longest)


def pack(readings: Iterable[float]) -> bytes:
    """Readings of all sources' clocks, by source id, as a device keeps them: eight bytes each."""
    return array("d", readings).tobytes()


_reading = Struct("d").unpack_from
SEEN, ANNOUNCED, AWAY, HERE = 1, 2, 4, 8
"""The bits of `Device.flags`: four attributes of their own would take 32 bytes."""


class _Flag:
    def __init__(self, bit: int) -> None:
        self._bit = bit

    def __get__(self, device: Device, _owner: type[Device]) -> bool:
        return device.flags & self._bit != 0

    def __set__(self, device: Device, value: bool) -> None:
        device.flags = device.flags | self._bit if value else device.flags & ~self._bit


class Device:
    """What the ledger keeps of one name, in as few bytes as it takes: there can be 100,000.

    `associated_at` is the timestamp of the association (see `Association`), which is what tells incarnations apart.
    `markers` are the readings of all sources' clocks, packed, at the last sign of life on any source (or when the
    association was first listed, if later). `seen` says whether this incarnation ever showed life; `announced` whether
    a broker's event or a roll call ever named it; `away` whether its next sign of life is a return; `here` what the
    timeline says.
    """

    __slots__ = ("associated_at", "flags", "habits", "mark", "markers", "name")

    seen, announced, away, here = _Flag(SEEN), _Flag(ANNOUNCED), _Flag(AWAY), _Flag(HERE)

    def __init__(
        self,
        name: str,
        associated_at: float | None = None,
        *,
        seen: bool = False,
        announced: bool = False,
        markers: bytes = b"",
        habits: dict[int, Habit] | None = None,
        mark: Mark | None = None,
        away: bool = True,
    ) -> None:
        self.name = name
        self.associated_at = associated_at
        self.flags = seen * SEEN | announced * ANNOUNCED | away * AWAY
        self.markers = markers
        self.habits = habits
        self.mark = mark

    def __eq__(self, other: object) -> bool:
        """Whether the same is known of both."""
        return isinstance(other, Device) and all(getattr(self, a) == getattr(other, a) for a in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # since it changes

    @property
    def association(self) -> Association:
        """The incarnation; made when it is asked for, since there are many devices."""
        return Association(self.name, self.associated_at)

    @property
    def readings(self) -> array[float]:
        """A copy of the markers, by source id; there is none for a source that is younger."""
        return array("d", self.markers)

    def marker(self, source_id: int) -> float:
        """The source's clock at the last sign of life; 0 where the source is younger than that sign."""
        place = source_id * 8
        marker: float = _reading(self.markers, place)[0] if place < len(self.markers) else 0.0
        return marker


class Absence(NamedTuple):
    """An absence that ended: the readings of all sources' clocks, by source id, at its beginning and at the return."""

    name: str
    began: tuple[float, ...]
    ended: tuple[float, ...]


class Witness(NamedTuple):
    """A source as the policy sees it at one moment.

    Attributes:
        name: its name in the configuration.
        source_id: its place in each device's markers.
        proof: the proof that it can give.
        clock_seconds: its clock now.
        floor_seconds: every absence on it begins here at the earliest (somebody came and went unannounced).
        vouching: whether it vouches now: it has earned credit in this run since its last break.
        reason: for people: why it vouches, or why not.
        stretch_seconds: the reading of its clock at which the current unbroken stretch began.
        pauses: intervals between vouchers in that stretch, each longer than all after it, as
            (length, reading of the clock at its end), both in seconds.
        cadence_seconds: how often the component itself sees to a voucher (the canary's interval), 0 if never.
        fresh_seconds: a device heard there so recently is called present (its maxQuiet; habits only).
        silenced: why it proves nothing at present beside an `emqx` source, or "" if nothing speaks against it.
        doubted: whose sessions, known to be open, need not be open any more, in words; "" where none is in doubt.
        doubted_seconds: the reading of its clock at which that doubt came up.
    """

    name: str
    source_id: int
    proof: Proof
    clock_seconds: float
    floor_seconds: float
    vouching: bool
    reason: str
    stretch_seconds: float = 0.0
    pauses: Sequence[tuple[float, float]] = ()
    cadence_seconds: float = 0.0
    fresh_seconds: float = 0.0
    silenced: str = ""
    doubted: str = ""
    doubted_seconds: float = 0.0

    def unbroken_since(self, limit_seconds: float) -> float:
        """The reading at which the stretch began that holds no interval between vouchers longer than the limit."""
        since = self.stretch_seconds
        for length, end in self.pauses:
            if length > limit_seconds:
                since = end
        return since


class Hold(NamedTuple):
    """A guard that holds pruning back: which, why (with its figure), and what to do."""

    guard: str
    reason: str
    remedy: str
    plan: str = ""
