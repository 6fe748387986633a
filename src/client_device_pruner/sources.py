"""All sources in force: which message goes to which, and what they say together."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Callable, Collection
from operator import itemgetter
from typing import NamedTuple

from client_device_pruner import settings as configured
from client_device_pruner.activity import ActivitySource
from client_device_pruner.emqx import EmqxSource
from client_device_pruner.ledger import Ledger, SourceRecord
from client_device_pruner.model import Proof, Witness
from client_device_pruner.source_clock import SourceClock
from client_device_pruner.topics import level_of

ROLL_CALL = "rollCall"
"""The name under which the roll call stands among the sources."""
BRIDGE_GLOB = "mqtt-bridge-*"
"""The bridge's client id where neither its own configuration nor an `emqx` source names one."""
CANARY_SECONDS = 60.0
"""How often the canary is sent, unless a quarter of the source's maxQuiet is shorter (CONTRACT, sources)."""

_Taker = Callable[[list[str], bytes, float], None]
"""Takes a message: the levels of its topic without the prefix, its payload, and when it was received."""


class Canary(NamedTuple):
    """A message of our own that is to come back through an activity source."""

    topic: str
    interval_seconds: float


class _Route:
    """Where the messages of one topic filter go; it finds them as `topics.topic_matches` does, at a tenth of the cost.

    Args:
        topic_filter: the filter.
        take: whom they are handed to.
    """

    def __init__(self, topic_filter: str, take: _Taker) -> None:
        levels = topic_filter.split("/")
        self.take = take
        self._open = levels[-1] == "#"
        self.depth = len(levels) - self._open
        self._shuns_dollar = levels[0] in {"+", "#"}
        fixed = [index for index, level in enumerate(levels) if level not in {"+", "#"}]
        self._pick = itemgetter(*fixed) if fixed else len
        self._text = self._pick(levels) if fixed else None

    def fits(self, depth: int) -> bool:
        """Whether a topic of so many levels can match."""
        return depth >= self.depth if self._open else depth == self.depth

    def matches(self, levels: list[str]) -> bool:
        """Whether a topic of a fitting number of levels matches."""
        if self._shuns_dollar and levels[0].startswith("$"):
            return False
        return self._text is None or self._pick(levels) == self._text


class RollCallSource:
    """The answers of EMQX's HTTP API; each believed one is a voucher (DESIGN, model 2)."""

    def __init__(self, clock: SourceClock) -> None:
        self.clock = clock
        self.names: frozenset[str] = frozenset()
        self.remark = "no roll call has been answered in this run"

    def outdated(self, at: float) -> bool:
        """Whether the last believed answer is too old to say who is present."""
        last = self.clock.last_voucher_seconds
        return last is None or at - last > self.clock.max_quiet_seconds

    def reason(self, at: float) -> str:
        """Why its clock goes, or what it waits for."""
        if self.clock.vouching(at):
            return f"the last roll call named {len(self.names)} clients"
        return self.remark

    def objects(self, at: float) -> str:
        """Why no habit proves anything now; "" where it does not object."""
        if self.clock.credit_seconds == 0.0 or not self.outdated(at):
            return ""
        # It has vouched before: who is connected without a word would be named, if it were answered.
        return "the roll call, which has been believed before, is not answered any more: mend it, or switch it off"


class Sources:
    """Takes every message that the subscription brings, and answers for all sources together.

    All times are monotonic seconds. A change of the configuration makes a new one; the clocks live in the ledger,
    and a source that stays what it was is taken over with its known sessions.
    """

    def __init__(self, settings: configured.Settings, ledger: Ledger, at: float, before: Sources | None = None) -> None:
        self._ledger = ledger
        self._prefix = settings.inbound_prefix
        self._routes: list[_Route] = []
        self.emqx: dict[str, EmqxSource] = {}
        self._activity: dict[str, ActivitySource] = {}
        self._cadence: dict[str, float] = {}
        self._doubted = ""
        self._doubted_since: float | None = None
        self._doubted_seconds: dict[str, float] = {}
        self._bridge_globs = {
            source.name: source.bridge_client_id
            for source in settings.sources
            if isinstance(source, configured.EmqxSource)
        }
        self._bridge_glob = next(iter(self._bridge_globs.values()), BRIDGE_GLOB)
        self.canaries: tuple[Canary, ...] = ()
        self.roll_call: RollCallSource | None = None
        self.roll_call_sessions: frozenset[str] = frozenset()
        wanted = [(source.name, source.identity, source.max_quiet_seconds) for source in settings.sources]
        if settings.roll_call:
            identity = f"{ROLL_CALL} {settings.roll_call.url}"
            wanted.append((ROLL_CALL, identity, 3 * settings.roll_call.interval_seconds))
        records = ledger.adopt(wanted, at)
        self.identities = {name: identity for name, identity, _max_quiet in wanted}
        kept = {before.identities[name]: emqx for name, emqx in before.emqx.items()} if before else {}
        for source in settings.sources:
            if isinstance(source, configured.EmqxSource):
                self._add_emqx(source, records[source.name], kept, settings.scale)
            else:
                self._add_activity(source, records[source.name])
        deepest = max((route.depth for route in self._routes), default=0)
        # By the number of levels of a topic; the last entry is for all that are deeper than any filter.
        self._by_depth = [tuple(route for route in self._routes if route.fits(depth)) for depth in range(deepest + 2)]
        if settings.roll_call:
            clock = records[ROLL_CALL].clock
            known = before.roll_call if before else None
            self.roll_call = known if known and known.clock is clock else RollCallSource(clock)
        if before and before.roll_call is self.roll_call:
            self.roll_call_sessions = before.roll_call_sessions
        self._dropped(before, at)
        self._records = records
        ledger.present = self.present

    def _add_emqx(
        self,
        source: configured.EmqxSource,
        record: SourceRecord,
        kept: dict[str, EmqxSource],
        scale: float,
    ) -> None:
        clock = record.clock
        emqx = kept.get(source.identity)
        if emqx is None:
            emqx = EmqxSource(clock, self._ledger, bridge_client_id=source.bridge_client_id, scale=scale)
        emqx.scale = scale
        self.emqx[source.name] = emqx
        name_level, known_name = source.thing_name_level, self._ledger.known_name

        def event(take: Callable[[str, str, bytes, float], None], topic: str) -> None:
            node_level = level_of(topic, 1)
            node_level = None if node_level == name_level else node_level

            def taker(levels: list[str], payload: bytes, at: float) -> None:
                if name_level < len(levels):
                    node = "" if node_level is None else levels[node_level]
                    take(node, known_name(levels[name_level]), payload, at)

            self._routes.append(_Route(topic, taker))

        def gauge(take: Callable[[str, bytes, float], None], topic: str) -> None:
            node_level = level_of(topic, 1)

            def taker(levels: list[str], payload: bytes, at: float) -> None:
                take("" if node_level is None else levels[node_level], payload, at)

            self._routes.append(_Route(topic, taker))

        event(emqx.connected, source.connected_topic)
        event(emqx.disconnected, source.disconnected_topic)
        gauge(emqx.count, source.count_topic)
        gauge(emqx.uptime, source.uptime_topic)

    def _add_activity(self, source: configured.ActivitySource, record: SourceRecord) -> None:
        activity = ActivitySource(
            record.source_id,
            record.clock,
            self,
            payload_field=source.payload_field,
            ignored_values=source.ignored_values,
        )
        self._activity[source.name] = activity
        if source.canary_topic:
            self._cadence[source.name] = min(CANARY_SECONDS, source.max_quiet_seconds / 4)
            self.canaries = (*self.canaries, Canary(source.canary_topic, self._cadence[source.name]))
        level = source.thing_name_level

        def taker(levels: list[str], payload: bytes, at: float) -> None:
            activity.message(levels[level] if level < len(levels) else "", payload, at)

        self._routes.append(_Route(source.topic, taker))

    def _dropped(self, before: Sources | None, at: float) -> None:
        """Let go of what a source that is no longer in force held present."""
        if before is None:
            return
        now = {id(source) for source in self.emqx.values()}
        for source in before.emqx.values():
            if id(source) not in now:
                source.overflow(at)
        if before.roll_call is not self.roll_call:
            before.release_roll_call(at)

    # What comes in

    def take(self, topic: str, payload: bytes, at: float) -> None:
        """Hand a message of the subscription to every source that it concerns."""
        if not topic.startswith(self._prefix):
            return
        levels = topic[len(self._prefix) :].split("/")
        for route in self._by_depth[min(len(levels), len(self._by_depth) - 1)]:
            if route.matches(levels):
                route.take(levels, payload, at)

    def spoke(self, name: str, source_id: int, at: float) -> None:
        """A device spoke on an activity source: a sign of life, and perhaps a session that began unheard."""
        self._ledger.hear(name, source_id, at)
        # To which of several brokers it is connected is not told.
        if len(self.emqx) == 1:
            (emqx,) = self.emqx.values()
            emqx.spoke(name, at)

    def overflow(self, at: float) -> None:
        """Messages were lost before they were read: a gap for every source."""
        for emqx in self.emqx.values():
            emqx.overflow(at)
        for activity in self._activity.values():
            activity.clock.break_stretch()
        if self.roll_call:
            self.roll_call.clock.break_stretch()

    def listens_anew(self, at: float) -> None:
        """A subscription stands: what came between it and the one before was not heard."""
        for emqx in self.emqx.values():
            emqx.doubt_all(at)

    def tick(self, at: float) -> None:
        """Let what has not been heard for too long go."""
        for emqx in self.emqx.values():
            emqx.tick(at)
        if self.roll_call and self.roll_call.names and self.roll_call.outdated(at):
            self.release_roll_call(at)

    def set_bridge(self, client_id: str, *, known: bool, unmapped: Collection[str] = ()) -> None:
        """Take what the bridge's configuration says of its client id; "" where it names none.

        Args:
            client_id: as configured.
            known: whether the configuration could be read.
            unmapped: names of the `emqx` sources whose events the bridge does not carry.
        """
        self._bridge_glob = glob.escape(client_id) or next(iter(self._bridge_globs.values()), BRIDGE_GLOB)
        for name, emqx in self.emqx.items():
            client_glob = glob.escape(client_id) or self._bridge_globs[name]
            emqx.set_bridge(client_glob, known=known, mapped=name not in unmapped)

    # The roll call

    def roll_call_begins(self) -> None:
        """Remember whose session is known to be open before the call."""
        self.roll_call_sessions = self.sessions()

    def roll_call_answered(self, names: frozenset[str], at: float, began: float | None = None) -> bool:
        """Take an answer to a call that began then; believed only if it names who must have been there all the while.

        Whom it names was there, believed or not; only what it says of all others takes belief.
        """
        roll_call = self.roll_call
        if roll_call is None:
            return False
        for name in names:
            self._ledger.announce(name)
            self._ledger.alive(name, at)
        open_now = self.sessions()
        missing = (self.roll_call_sessions & open_now) - names
        if missing:
            roll_call.remark = f"the answer lacks {len(missing)} clients that are connected: {min(missing)}, …"
        elif not (names & open_now or self._names_bridge(names)):
            roll_call.remark = "the answer names neither the bridge nor a session known to be open"
        else:
            roll_call.remark = "the next believed answer starts the clock"
            # Who is named again has not been away.
            self._release(roll_call, roll_call.names - names, names, at)
            # Who left the moment it began may be named: it vouches up to there.
            roll_call.clock.vouch(at if began is None else began)
            for name in names:
                self._ledger.announce(name)
                self._ledger.alive(name, at)
            return True
        roll_call.clock.break_stretch()
        return False

    def _names_bridge(self, names: frozenset[str]) -> bool:
        return not all(map(self._ledger.associated, fnmatch.filter(names, self._bridge_glob)))

    def release_roll_call(self, at: float) -> None:
        """Let go of whom the last believed answer named."""
        if self.roll_call is not None:
            self._release(self.roll_call, self.roll_call.names, frozenset(), at)

    def _release(self, roll_call: RollCallSource, gone: frozenset[str], named: frozenset[str], at: float) -> None:
        roll_call.names = named
        for name in gone:
            self._ledger.held_until(name, at)

    def roll_call_failed(self, reason: str) -> None:
        """No answer says nothing of anybody."""
        if self.roll_call is not None:
            self.roll_call.remark = f"no roll call to believe: {reason}"

    # What they say

    def sessions(self) -> frozenset[str]:
        """The names with a session known to be open."""
        return frozenset().union(*(emqx.sessions() for emqx in self.emqx.values()))

    def present(self, name: str) -> bool:
        """Whether any source has the name present now."""
        called = self.roll_call is not None and name in self.roll_call.names
        return called or any(emqx.holds(name) for emqx in self.emqx.values())

    def present_names(self) -> frozenset[str]:
        """All names that any source has present now."""
        called = self.roll_call.names if self.roll_call else frozenset()
        return self.sessions() | called

    def witnesses(self, at: float) -> tuple[Witness, ...]:
        """What the policy hears, the strongest proof first."""
        self._heed_doubt()
        objections = {name: emqx.objects(at) for name, emqx in self.emqx.items()}
        calling = self.roll_call.objects(at) if self.roll_call else ""
        silenced = next(filter(None, (*objections.values(), calling)), "")
        found = [
            self._witness(
                name,
                emqx,
                Proof.CENSUS,
                at,
                # Whoever is counted on another broker is not gone.
                silenced=next((why for other, why in objections.items() if why and other != name), ""),
            )
            for name, emqx in self.emqx.items()
        ]
        if self.roll_call:
            found.append(self._witness(ROLL_CALL, self.roll_call, Proof.ROLL_CALL, at))
        found += [
            self._witness(name, activity, Proof.HABIT, at, silenced=silenced)
            for name, activity in self._activity.items()
        ]
        return tuple(found)

    def _heed_doubt(self) -> None:
        """Keep where all clocks stood when doubt came up last."""
        doubting = [emqx for emqx in self.emqx.values() if emqx.doubted]
        since = max((emqx.doubted_since for emqx in doubting), default=None)
        if since != self._doubted_since:
            self._doubted_since = since
            self._doubted_seconds = {name: record.clock.credit_seconds for name, record in self._records.items()}
        self._doubted = next((emqx.doubted for emqx in doubting), "")

    def _witness(
        self,
        name: str,
        source: EmqxSource | ActivitySource | RollCallSource,
        proof: Proof,
        at: float,
        silenced: str = "",
    ) -> Witness:
        clock = source.clock
        return Witness(
            name=name,
            source_id=self._records[name].source_id,
            proof=proof,
            clock_seconds=clock.credit_seconds,
            floor_seconds=clock.floor_seconds,
            vouching=clock.vouching(at),
            reason=source.reason(at),
            stretch_seconds=clock.stretch_seconds,
            pauses=clock.pauses,
            cadence_seconds=self._cadence.get(name, 0.0),
            fresh_seconds=clock.max_quiet_seconds if proof is Proof.HABIT else 0.0,
            silenced=silenced,
            doubted="" if proof is Proof.ROLL_CALL else self._doubted,
            doubted_seconds=self._doubted_seconds.get(name, clock.credit_seconds),
        )

    def fresh_voucher(self, source_id: int, since: float) -> bool:
        """Whether the source vouched after that moment."""
        last = self._clock(source_id).last_voucher_seconds
        return last is not None and last >= since

    def max_quiet_seconds(self, source_id: int) -> float:
        """How long the source may go without a voucher."""
        return self._clock(source_id).max_quiet_seconds

    def _clock(self, source_id: int) -> SourceClock:
        return next(record.clock for record in self._records.values() if record.source_id == source_id)
