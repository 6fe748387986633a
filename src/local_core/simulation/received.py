"""What reached the component: by it its clocks, its absences and its known sessions are held to account."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

MAX_QUIET_SECONDS = {"emqx": 180.0, "messages": 3600.0, "rollCall": 2700.0}
"""Of each source, by its name in the component: two vouchers further apart vouch for nothing in between."""
SAMPLING_SECONDS = 5.0
"""A broker counts apart from its events: an event so shortly before a count may explain what it shows."""


class Reading(NamedTuple):
    """A moment on the true clock and on those of all sources, had each of them vouched whenever it could; seconds.

    Of a sign it counts what was vouched for before it, and not the interval that it lies in, which may be broken.
    """

    now: float
    vouched: dict[str, float]


@dataclass(slots=True)
class Words:
    """What a device said on the `activity` source since it was associated."""

    heard: int
    first: Reading
    last: Reading
    longest_silence: float = 0.0


class Received:
    """Kept beside the component from the same messages, by DESIGN's words and with none of its code.

    Everything here is a bound: a clock cannot show more than `vouched`, nobody can be absent for longer than since
    his sign, and no session can be known that was not told. All times are true ones.
    """

    def __init__(self) -> None:
        self._vouched = dict.fromkeys(MAX_QUIET_SECONDS, 0.0)
        self.last_voucher: dict[str, float] = {}
        self._signs: dict[str, Reading] = {}
        self._committed: dict[str, Reading] = {}
        self._associated: dict[str, Reading] = {}
        self._restarted = self._restarted_committed = 0.0
        self.words: dict[str, Words] = {}
        self.told: dict[str, dict[int | None, float]] = {}
        self.must: dict[str, int] = {}
        """Each name's last session that was told, and must be known; `told` holds all that may be, with the moment."""
        self._ended: set[tuple[str, int]] = set()
        self._spoken: dict[str, deque[float]] = {}
        self._counted: float | None = None
        self._differed = False
        self._explained = float("-inf")

    # Clocks

    def voucher(self, source: str, now: float, *, steadily: bool = False) -> None:
        """A source vouches; `steadily` if it also did every minute since its last voucher."""
        last = self.last_voucher.get(source)
        if last is not None and now <= last:
            return
        if last is not None and (steadily or now - last <= MAX_QUIET_SECONDS[source]):
            self._vouched[source] += now - last
        self.last_voucher[source] = now

    def reading(self, now: float) -> Reading:
        """The clocks at this moment, with what the running intervals may still earn."""
        vouched = self._vouched.copy()
        for source, last in self.last_voucher.items():
            if now - last <= MAX_QUIET_SECONDS[source]:
                vouched[source] += now - last
        return Reading(now, vouched)

    # Signs of life

    def associated(self, name: str, now: float) -> None:
        """An association is made: before it nothing counts."""
        self._associated[name] = Reading(now, self._vouched.copy())
        self._signs.pop(name, None)
        self._committed.pop(name, None)
        self.words.pop(name, None)

    def sign(self, name: str, now: float) -> None:
        """A sign of life arrives."""
        if name in self._associated:
            self._signs[name] = Reading(now, self._vouched.copy())

    def present(self, names: Iterable[str], now: float) -> None:
        """All these are held present: a sign of life of each."""
        reading = Reading(now, self._vouched.copy())
        self._signs.update((name, reading) for name in names if name in self._associated)

    def last_sign(self, name: str) -> Reading:
        """The last sign of life of an associated device, or its association."""
        return self._signs.get(name) or self._associated[name]

    def absence(self, name: str, source: str, now: Reading) -> float:
        """The longest absence that the component may believe in, in seconds on a source's clock."""
        begun = self.last_sign(name).vouched[source]
        if source == "emqx":
            begun = max(begun, self._restarted)
        return now.vouched[source] - begun

    def committed(self) -> None:
        """What arrived so far outlives the process."""
        self._committed = self._signs.copy()
        self._restarted_committed = self._restarted

    # Known sessions

    def spoke(self, name: str, now: float) -> None:
        """A message of a device arrives: the second of two, well apart, may open a session that began unheard."""
        self.voucher("messages", now)
        self.sign(name, now)
        self._explained = now
        reading = self.last_sign(name) if name in self._associated else self.reading(now)
        words = self.words.get(name)
        if words is None:
            self.words[name] = Words(1, reading, reading)
        else:
            words.heard += 1
            words.longest_silence = max(words.longest_silence, now - words.last.now)
            words.last = reading
        spoken = self._spoken.setdefault(name, deque())
        while spoken and now - spoken[0] > 20 * MAX_QUIET_SECONDS["emqx"]:
            spoken.popleft()
        if spoken and now - spoken[0] >= MAX_QUIET_SECONDS["emqx"] / 3:
            self.told.setdefault(name, {}).setdefault(None, now)
        spoken.append(now)

    def connected(self, name: str, number: int, now: float) -> None:
        """An event arrives."""
        self._event(name, now)
        if (name, number) in self._ended:
            return
        self.told.setdefault(name, {})[number] = now
        if self._counted is not None:
            # A client id has one connection: the end of the one before may have been lost.
            self.must[name] = number

    def disconnected(self, name: str, number: int, now: float) -> None:
        """An event arrives: it ends this session, and one that nobody announced."""
        self._event(name, now)
        self._ended.add((name, number))
        told = self.told.get(name, {})
        told.pop(None, None)
        told.pop(number, None)
        if not told:
            self.told.pop(name, None)
        if self.must.get(name) == number:
            del self.must[name]

    def _event(self, name: str, now: float) -> None:
        self.quiet(now)
        self._explained = now
        self.sign(name, now)

    def quiet(self, now: float) -> None:
        """Let go of the sessions when nothing was counted for too long."""
        if self._counted is not None and now - self._counted > MAX_QUIET_SECONDS["emqx"]:
            self.forget()

    def uptime(self, broker_began: float) -> None:
        """An uptime arrives, of a broker that began then."""
        if self._counted is not None and broker_began > self._counted:
            # All sessions from before are gone, and no count is compared with them any more.
            self.must.clear()
            self._differed = False
            self.told = {
                name: {number: at for number, at in sessions.items() if at > broker_began}
                for name, sessions in self.told.items()
                if max(sessions.values()) > broker_began
            }

    def counted(self, surplus: int, now: float) -> None:
        """A count arrives: so many more are connected than are known."""
        self.quiet(now)
        if self._counted is not None and self._differed and not surplus:
            explained = self._explained >= self._counted - SAMPLING_SECONDS
            if not explained:
                # Somebody came and went unannounced, and nobody knows who.
                self._restarted = self._vouched["emqx"]
        if surplus < 0:
            # After ten minutes of it the set is thrown away.
            self.must.clear()
        self._counted, self._differed = now, surplus != 0
        self.voucher("emqx", now)

    def counted_steadily(self, now: float) -> None:
        """Counts arrived every minute until now, each like the last one."""
        self.voucher("emqx", now, steadily=True)
        self._counted = now

    def forget(self) -> None:
        """Messages were dropped, or nothing was counted for too long: no session is known any more."""
        self.told.clear()
        self.must.clear()
        self._counted = None
        self._differed = False

    def overflowed(self) -> None:
        """Messages were dropped: a gap for all."""
        self.forget()
        self.last_voucher.clear()

    def died(self) -> None:
        """The run ended: what was not committed was never received."""
        self.overflowed()
        self._signs = self._committed.copy()
        self._restarted = self._restarted_committed
        self._ended.clear()
        self._spoken.clear()
