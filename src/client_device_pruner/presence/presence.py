"""Presence: takes what is heard, and keeps what is known of the devices and of the inputs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any
from zlib import crc32

from client_device_pruner.config.emqx import Access, NoAccess
from client_device_pruner.config.settings import DEFAULTS, Settings, parse
from client_device_pruner.presence.client_list import ClientList
from client_device_pruner.presence.clock import Clock, ObservedClock
from client_device_pruner.presence.counts import Counts
from client_device_pruner.presence.devices import NEVER_LISTED, Device, Devices
from client_device_pruner.presence.facts import Facts, Input
from client_device_pruner.presence.listing import Listing
from client_device_pruner.presence.messages import Messages, is_name
from client_device_pruner.presence.replays import QUIET_SECONDS, Heard, Replays
from client_device_pruner.presence.sessions import Sessions, Uptime

SYS = "$SYS/brokers/"
SHORTEST_COUNT_SECONDS = 180.0
"""A count that is late by less says nothing of the broker, which sends one each minute, in a trial too (model 2)."""
HOLE_SECONDS = 3_600.0  # a device that speaks rarely may have spoken unheard in a hole that is longer
MOST_PENDING = 20_000  # sightings that wait for a probe to come back
MOST_DIGITS = 18  # larger numbers are no time and no count, and cannot be stored
_EVENTS_OFF = "if the broker does not announce connections any more, set presence.connectionEvents to false"


class Presence:
    """Owned by one thread; `stored` is what `document` gave in an earlier run."""

    def __init__(self, devices: Devices, clock: Clock, stored: dict[str, Any] | None = None) -> None:
        kept = stored or {}
        same_boot = kept.get("boot") == clock.boot_id()
        self.devices = devices
        self.observed = ObservedClock(
            float(kept.get("observedSeconds", 0.0)),
            kept.get("advancedAt") if same_boot else None,
            float(kept.get("holeAt", 0.0)),
        )
        # names whose sighting is to be reported at once, in `sighted_watched`; so are marked ones
        self.watched: set[str] = set()
        self.sighted_watched: list[str] = []  # the watched names that were sighted; its reader empties it
        self.gaps = 0  # how many there were in this run
        self._clock = clock
        self._events_in_use = bool(kept.get("eventsInUse", False))
        self._count_in_use = bool(kept.get("countInUse", False))
        self.listing = Listing(in_use=bool(kept.get("listInUse", False)))
        self._message_filters: list[str] | None = kept.get("messageFilters")
        self._listed_once = bool(kept.get("listedOnce", False))
        devices.dropped_session = bool(kept.get("sessionsIncomplete", False))
        broker = kept.get("broker") if same_boot else None
        self.sessions = Sessions(devices, clock.monotonic(), Uptime(**broker) if broker else None)
        self.counts = Counts(devices, kept.get("belowSince") if same_boot else None)
        if kept and not same_boot:
            # The broker runs on this host: it has restarted too.
            self.sessions.end_all(self.observed.seconds)
        # names that were sighted since a probe came back last → since when they had been silent; None: they were not
        self._pending: dict[str, float | None] = {}
        self._published: dict[str, int] = {}
        self._heard: dict[str, Heard] = {}
        self._unmapped: frozenset[str] = frozenset()
        self._bridge_ids = "mqtt-bridge-*"
        self._messages = Messages((), ())
        self.replays = Replays()
        self._settings = parse(DEFAULTS)
        self._wall = clock.wall()

    # Configuration

    def use(self, settings: Settings) -> None:
        """Put settings in force; connection events that are switched off are forgotten."""
        self._settings = settings
        self.sessions.scale = self.counts.scale = settings.scale
        presence = settings.presence
        self._messages = Messages(presence.message_topics, presence.ignored_payloads)
        if not presence.connection_events and (self._events_in_use or self._count_in_use):
            self._events_in_use = self._count_in_use = False
            self.sessions.forget(self.observed.seconds)
            self.counts = Counts(self.devices)
            self.counts.scale = settings.scale

    def use_bridge(self, bridge_ids: str, message_filters: Iterable[str], unmapped: frozenset[str]) -> None:
        """Take over what the bridge is configured to do.

        `bridge_ids` is a glob of its client ids. Another set of `message_filters`, through which messages reach us,
        starts counting anew. `unmapped` are those of `clients` and `count` that it does not map.
        """
        self._bridge_ids, self._unmapped = bridge_ids, unmapped
        self.sessions.forget_bridge(bridge_ids)
        filters = sorted(message_filters)
        if self._message_filters is not None and self._message_filters != filters:
            for device in self.devices.by_name.values():
                if device.messages:
                    device.messages = 0
                    self.devices.touch(device)
        self._message_filters = filters

    def use_list(self, access: Access | NoAccess) -> None:
        """Take over how to get the client list; one that is switched off is forgotten."""
        before = self._present_names()
        self.listing.use(access)
        self._date_absent(before)

    # What is heard

    def read_wall_clock(self) -> None:
        """What is taken from now on was seen at this time: devices that are heard together share one reading."""
        self._wall = self._clock.wall()

    def take(self, topic: str, payload: bytes, received: float) -> None:
        """Take a message of the bridge, by its topic at the broker."""
        if topic.startswith(SYS):
            if self._settings.presence.connection_events:
                self._take_sys(topic[len(SYS) :], payload, received)
            return
        name = self._messages.thing_name(topic, payload)
        if name is not None:
            device = self.devices.get(name)
            self._sight(device, "message")
            self._published[name] = self._published.get(name, 0) + 1
            self._heard[name] = Heard(topic, crc32(payload))
            if self._events_in_use:
                self.sessions.message(device, received)

    def _take_sys(self, topic: str, payload: bytes, received: float) -> None:
        node, _, rest = topic.partition("/")
        if rest.startswith("clients/"):
            self._take_client_event(rest.rpartition("/")[2], node, payload, received)
        elif len(payload) > MOST_DIGITS or not payload.isdigit():
            return
        elif rest == "stats/live_connections/count":
            self._count_in_use = True
            self.sessions.speaks(node, received)
            self.counts.count(int(payload), self.sessions.open, received)
        elif rest == "uptime":
            self.sessions.uptime(node, int(payload) / 1000, received)

    def _take_client_event(self, kind: str, node: str, payload: bytes, received: float) -> None:
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            return
        if kind not in ("connected", "disconnected") or not isinstance(event, dict):
            return
        name = event.get("clientid")
        if not isinstance(name, str) or not is_name(name) or fnmatchcase(name, self._bridge_ids):
            return
        self._events_in_use = True
        self.sessions.speaks(node, received)
        number = event.get("connected_at")
        session_id = number if isinstance(number, int) and abs(number) < 10**MOST_DIGITS else None
        if kind == "connected" and event.get("connack", 0) != 0:
            return
        device = self.devices.get(name)
        # Not `kind` itself: it is a text of its own for each event.
        self._sight(device, "connected" if kind == "connected" else "disconnected")
        self.counts.event(received)
        known_since = received if device.session_since is None else device.session_since
        if kind == "connected":
            if self.sessions.connected(device, session_id, received):
                device.keepalive = event.get("keepalive") != 0
        elif self.sessions.disconnected(device, session_id, str(event.get("reason", "")), received):
            # Present until now: the sighting is stamped only when the next probe comes back.
            device.silent_since = self.observed.seconds
            self.counts.left(device, known_since, received)

    def take_list(self, answer: ClientList) -> None:
        """Take an answer of the broker's client list, if it can be believed."""

        def is_known_open(name: str) -> bool:
            device = self.devices.by_name.get(name)
            since = device.session_since if device is not None else None
            return (since is not None and since < answer.began) or fnmatchcase(name, self._bridge_ids)

        before = self._present_names()
        if not self.listing.take(answer, is_known_open):
            return
        self._date_absent(before)
        for name in answer.names:
            if name in self.devices.by_name or (not self._listed_once and is_name(name)):
                self._sight(self.devices.get(name), "clientList")

    def _present_names(self) -> frozenset[str]:
        if self.listing.in_use:
            return self.listing.latest.names if self.listing.latest else frozenset()
        return frozenset(device.name for device in self.devices.by_name.values() if device.session)

    def _date_absent(self, before: frozenset[str]) -> None:
        """What was present, by the list or by its session, and is not any more, was present until now."""
        for name in before - self._present_names():
            if device := self.devices.by_name.get(name):
                device.silent_since = self.observed.seconds
                self.devices.touch(device)

    def sight(self, name: str, by: str) -> None:
        """Note a sighting: by the client list when asked by name, or by our own restore."""
        device = self.devices.get(name)
        self._sight(device, by)
        self.devices.touch(device, urgent=True)

    def _sight(self, device: Device, by: str) -> None:
        name = device.name
        if device.marked_at is not None or name in self.watched:
            self.sighted_watched.append(name)
        if len(self._pending) >= MOST_PENDING:
            # No probe comes back: dated by a clock that stands still, they may as well go.
            self.stamp()
            self._pending.clear()
            self._heard.clear()
        if name not in self._pending:
            # Before it was ever seen or listed there is no silence that could end.
            unknown = not device.seen_by and device.unlisted_at == NEVER_LISTED
            self._pending[name] = None if unknown or self._is_present(device) else device.silent_since
        device.seen_by, device.seen_wall = by, self._wall

    def _is_present(self, device: Device) -> bool:
        latest = self.listing.latest
        return device.name in latest.names if self.listing.in_use and latest else device.session

    # Observed time

    def probe_returned(self, sent: float, received: float) -> bool:
        """A probe came back before its successor was due; returns whether the broker had restarted meanwhile."""
        self.counts.settle(received)
        interval, scale = self._settings.presence.probe_interval_seconds, self._settings.scale
        alive = all(given.alive for given in self.inputs(received).values())
        hole, wall = HOLE_SECONDS * scale, self._clock.wall()
        self.observed.returned(sent, received, interval_seconds=interval, hole_seconds=hole, alive=alive, wall=wall)
        began = self.observed.seconds - QUIET_SECONDS * scale
        silences = ((name, self._pending[name]) for name in self._heard)
        self.replays.heard(self._heard, {name for name, since in silences if since is not None and since < began})
        self._heard.clear()
        self.stamp()
        self._pending.clear()
        restarted = self.sessions.probe_returned(self.observed.seconds)
        if restarted:
            # What was counted before, or beside sessions that had ended, tells nothing of now.
            self.counts.gap()
        return restarted

    def stamp(self) -> None:
        """Date what was heard since the last return of a probe: at the observed clock's reading.

        The next return dates it once more, so that it counts as made then, and never earlier. Before a commit this
        keeps a crash from losing it: afterwards the clock goes on from the same reading.
        """
        at = self.observed.seconds
        for name, silent_since in self._pending.items():
            device = self.devices.by_name.get(name)
            if device is None:
                continue
            urgent = False
            if silent_since is not None:
                device.end_silence(silent_since, at)
                # A crash must not lose what ends a long silence.
                urgent = at - silent_since > self._settings.threshold_seconds(name) / 2
            device.silent_since = at
            if not device.seen_by:  # its row was dropped meanwhile, and made anew
                device.seen_by, device.seen_wall = "message", self._wall
            if published := self._published.get(name):
                if not device.messages:
                    device.first_message = at
                device.messages, device.last_message = device.messages + published, at
            self.devices.touch(device, urgent=urgent)
        self._published.clear()

    def gap(self) -> None:
        """Something may have been lost: a probe, messages in our own queue, or a subscription."""
        self.gaps += 1
        self.counts.gap()
        # Before the first probe of a run nothing was lost: our own restart ends no session.
        if self.observed.gap():
            self.sessions.gap(self.observed.seconds, listed=self._listed_once)

    def reconcile(self, listed: Mapping[str, float | None]) -> tuple[str, ...]:
        """Take a list of associations over; returns the names whose mark was taken off."""
        self._listed_once = True
        return self.devices.reconcile(listed, self.observed.seconds)

    def take_over(self, earlier: Presence) -> None:
        """Take over what was heard before the stored state could be read: it is newer."""
        for name, device in earlier.devices.by_name.items():
            own = self.devices.get(name)
            if device.ended_id is not None:
                self.sessions.disconnected(own, device.ended_id, "", self._clock.monotonic())
            if device.session_since is not None:
                self.sessions.connected(own, device.session_id, device.session_since)
            self._sight(own, device.seen_by or "message")
        self._events_in_use = self._events_in_use or earlier._events_in_use
        self._count_in_use = self._count_in_use or earlier._count_in_use
        if earlier._message_filters is not None:
            self.use_bridge(earlier._bridge_ids, earlier._message_filters, earlier._unmapped)
        if earlier.listing.access is not None:
            self.use_list(earlier.listing.access)

    # What is known

    def inputs(self, at: float) -> dict[str, Input]:
        """The inputs that come through the broker, `connectionEvents` and `clientList`, at monotonic seconds `at`."""
        interval = self._settings.presence.client_list.interval_seconds
        return {"connectionEvents": self._events_input(at), "clientList": self.listing.input(at, interval)}

    def _events_input(self, at: float) -> Input:
        presence = self._settings.presence
        if not (self._events_in_use or self._count_in_use):
            on = presence.connection_events
            reason = "the broker has not announced any connection" if on else "switched off"
            return Input(in_use=False, alive=True, reason=reason)
        reason = ""
        used = {name for name, used in (("clients", self._events_in_use), ("count", self._count_in_use)) if used}
        if gone := sorted(self._unmapped & used):
            what = " and ".join({"clients": "connections", "count": "the connection count"}[name] for name in gone)
            reason = f"the bridge no longer maps {what}"
        elif self._count_in_use and at - (self.counts.heard_at or float("-inf")) > self._late_seconds:
            reason = "the broker's connection count does not arrive"
        return Input(in_use=True, alive=not reason, reason=reason, remedy=_EVENTS_OFF if reason else "")

    @property
    def _late_seconds(self) -> float:
        return max(3 * self._settings.presence.probe_interval_seconds, SHORTEST_COUNT_SECONDS)

    def facts(self, at: float) -> Facts:
        """By what the devices are judged at monotonic seconds `at`."""
        self.counts.settle(at)
        problem = ""
        unnamed = self.counts.now(at)
        if self.devices.dropped_session:
            problem = "more client ids connected than are kept, so the connection count is no evidence"
        elif self.counts.is_below(at):
            problem = "more sessions are known than the broker has connections: a disconnect event was lost"
        elif not (self._events_in_use and self._count_in_use):
            problem = "the broker announces connections, but its connection count or the announcements are not heard"
        elif unnamed is None:
            problem = "no connection count of the last hour is reliable"
        elif not self.sessions.hears_uptime(at, self._late_seconds):
            problem = "the broker's uptime is not heard, so a restart of the broker would not be noticed"
        return Facts(
            observed_seconds=self.observed.seconds,
            hole_at=self.observed.hole(at, HOLE_SECONDS * self._settings.scale),
            sighted=self._pending.keys(),
            events_in_use=self._events_in_use,
            count_in_use=self._count_in_use,
            unnamed=unnamed,
            count_problem=problem,
            list_in_use=self.listing.in_use,
            listed=self.listing.latest.names if self.listing.latest else None,
        )

    @property
    def unknown_ids(self) -> tuple[str, ...]:
        """Names that connected or spoke and are not associated, at most ten; empty if any associated one did."""
        devices = self.devices.by_name.values()
        if any(device.seen_by for device in devices if device.associated):
            return ()
        return tuple(device.name for device in devices if not device.associated and device.seen_by)[:10]

    def document(self) -> dict[str, Any]:
        """The values to store once, beside the devices."""
        return {
            "boot": self._clock.boot_id(),
            "observedSeconds": self.observed.seconds,
            "advancedAt": self.observed.advanced_at,
            "holeAt": self.observed.hole_at,
            "eventsInUse": self._events_in_use,
            "countInUse": self._count_in_use,
            "listInUse": self.listing.in_use,
            "listedOnce": self._listed_once,
            "messageFilters": self._message_filters,
            "sessionsIncomplete": self.devices.dropped_session,
            "broker": asdict(self.sessions.broker) if self.sessions.broker else None,
            "belowSince": self.counts.below_since,
        }
