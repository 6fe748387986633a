"""What is kept of each thing name, and of each association (DESIGN, what is stored)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

HALF_YEAR_SECONDS = 182.5 * 86_400.0  # a window of the longest silence, in observed time (DESIGN, model 3)
KEPT_SECONDS = 90 * 86_400.0  # how long a name that left the list keeps its row, in observed time (DESIGN, model 10)
MOST_UNLISTED = 10_000  # names that are not associated, kept at most (DESIGN, model 1)
AT_ONCE, VERDICT, STATE = 1, 2, 4
"""Why a row does not wait: session, mark or association changed; verdict, or state, is to be written with it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What was said of a device, shared by those of which the same was said."""

    state: str  # empty if it is not associated
    fingerprint: int  # of its verdict


NOTHING_TOLD = Told("", 0)
NEVER_LISTED = -1.0  # in place of when an association left the list


@dataclass(slots=True)
class Device:
    """One thing name."""

    name: str
    # what the last sighting was: `connected`, `disconnected`, `message`, `clientList` or `restore`; empty: none
    seen_by: str = ""
    seen_wall: float = 0.0  # epoch seconds of it, for people
    # observed seconds of the latest of: its last sighting, its last presence, the first listing of its association
    silent_since: float = 0.0
    silence_window: int = 0  # the half-year of observed time to which `longest_silence` belongs
    longest_silence: float = 0.0  # the longest silence that a sighting ended in that half-year, in observed seconds
    longest_before: float = 0.0  # the same in the half-year before
    messages: int = 0  # how many messages it published since the topics that we hear changed
    first_message: float = 0.0  # observed seconds of the first of them
    last_message: float = 0.0  # observed seconds of the last of them
    session_since: float | None = None  # monotonic seconds at which its session was heard to open; None: it has none
    session_id: int | None = None  # the `connected_at` of that; None if unknown
    ended_id: int | None = None  # the `connected_at` that ended last; it never opens again
    announced: int = 0  # how many `connected` were heard, counted up to two
    then: int | None = None  # the unnamed connections when it left; None if no figure was taken
    # tells one association of the name from the next; None if the cloud gave none
    association_timestamp: float | None = None
    # observed seconds at which its association left the list; None while it is on it
    unlisted_at: float | None = NEVER_LISTED
    marked_at: float | None = None  # observed seconds at which its grace period began; None if it is not marked
    keepalive: bool = True  # False if it connected without keepalive, so that the broker does not notice when it fails
    told: Told = NOTHING_TOLD  # what was last said of it; not stored

    @property
    def session(self) -> bool:
        """Whether a session is known."""
        return self.session_since is not None

    @property
    def associated(self) -> bool:
        """Whether it is on the latest list of associations."""
        return self.unlisted_at is None

    def longest(self, observed_seconds: float) -> float:
        """The longest silence that a sighting ended over the last one to two half-years, in observed seconds."""
        age = int(observed_seconds // HALF_YEAR_SECONDS) - self.silence_window
        if age <= 0:
            return max(self.longest_silence, self.longest_before)
        return self.longest_silence if age == 1 else 0.0

    def end_silence(self, since: float, observed_seconds: float) -> None:
        """Note that a sighting ends now the silence that began at `since`, both in observed seconds."""
        window = int(observed_seconds // HALF_YEAR_SECONDS)
        if window > self.silence_window:
            self.longest_before = self.longest_silence if window == self.silence_window + 1 else 0.0
            self.longest_silence, self.silence_window = 0.0, window
        self.longest_silence = max(self.longest_silence, observed_seconds - since)


class Devices:
    """All names that are kept."""

    def __init__(self, by_name: dict[str, Device] | None = None) -> None:
        self.by_name = by_name or {}  # every name that is kept, associated or not
        self.changed: dict[str, int] = {}  # names whose row has to be written → why it does not wait: 0, or flags
        self.urgent = False  # whether any has to be written at once
        self.removed: set[str] = set()  # names whose row has to go
        self.dropped_session = False  # whether a name with a session had to be dropped, so that sessions are incomplete
        self._unlisted = sum(not device.associated for device in self.by_name.values())

    def associated(self) -> Iterator[Device]:
        """The devices on the latest list."""
        return (device for device in self.by_name.values() if device.associated)

    @property
    def associated_count(self) -> int:
        """How many devices are on the latest list."""
        return len(self.by_name) - self._unlisted

    def get(self, name: str) -> Device:
        """The device of that name, made if it is new."""
        device = self.by_name.get(name)
        if device is None:
            if self._unlisted >= MOST_UNLISTED:
                self._drop_oldest()
            device = self.by_name[name] = Device(name)
            self._unlisted += 1
            self.removed.discard(name)
        return device

    def touch(self, device: Device, *, urgent: bool = False) -> None:
        """Have its row written; at once if a session, a mark or an association changed."""
        self.changed[device.name] = self.changed.get(device.name, 0) | AT_ONCE * urgent
        self.urgent = self.urgent or urgent

    def tell(self, device: Device, told: Told) -> None:
        """Have its verdict written with its row, and its state if that changed."""
        changed = told.state not in {"", device.told.state}
        self.changed[device.name] = self.changed.get(device.name, 0) | VERDICT | STATE * changed
        device.told = told

    def written(self, names: Iterable[str]) -> None:
        """Note that these rows are written, all urgent ones among them, and the removed ones gone."""
        for name in names:
            del self.changed[name]
        self.urgent = False
        if not self.changed:
            self.changed.clear()  # gives its memory back
        self.removed.clear()

    def reconcile(self, listed: Mapping[str, float | None], observed_seconds: float) -> tuple[str, ...]:
        """Take a list of associations over: thing names with their associationTimestamps.

        Returns the names whose mark was taken off, since their association ended, or a new one began.
        """
        unmarked = []
        for name, timestamp in listed.items():
            device = self.get(name)
            same = self._is_same(device, timestamp)
            if same and device.associated and device.association_timestamp == timestamp:
                continue
            self._unlisted -= not device.associated
            device.unlisted_at = None
            device.association_timestamp = timestamp or (device.association_timestamp if same else None)
            if not same:
                if device.marked_at is not None:
                    unmarked.append(name)
                device.silent_since, device.marked_at = observed_seconds, None
            self.touch(device, urgent=True)
        for device in list(self.by_name.values()):
            left_at = device.unlisted_at
            if left_at is None:
                if device.name not in listed:
                    if device.marked_at is not None:
                        unmarked.append(device.name)
                    device.unlisted_at, device.marked_at = observed_seconds, None
                    self._unlisted += 1
                    self.touch(device, urgent=True)
            elif left_at != NEVER_LISTED and observed_seconds - left_at > KEPT_SECONDS and not device.session:
                self._drop(device.name)
        return tuple(unmarked)

    @staticmethod
    def _is_same(device: Device, timestamp: float | None) -> bool:
        """Whether this is the association that is known: same name, same timestamp, also if it was off the list."""
        if None in (device.association_timestamp, timestamp):
            return device.associated
        return device.association_timestamp == timestamp

    def _drop_oldest(self) -> None:
        """Drop the tenth of the names that are not associated that was seen longest ago."""
        unlisted = [device for device in self.by_name.values() if not device.associated]
        unlisted.sort(key=lambda device: (device.session, device.silent_since))
        for device in unlisted[: MOST_UNLISTED // 10]:
            self.dropped_session = self.dropped_session or device.session
            self._drop(device.name)

    def _drop(self, name: str) -> None:
        del self.by_name[name]
        self._unlisted -= 1
        self.changed.pop(name, None)
        self.removed.add(name)
