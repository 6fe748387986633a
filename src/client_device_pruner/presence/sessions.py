"""Sessions, where the broker announces connections, and the broker's restarts that end them (DESIGN, model 4)."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from client_device_pruner.presence.devices import Device, Devices

LATE_END_SECONDS = 5.0  # an end of another session that comes sooner after a `connected` is the old session's, late
IMPLIED_SECONDS = (60.0, 3_600.0)
"""How far apart two messages without a session have to be, at least and at most, to imply one."""
UPTIME_SLACK_SECONDS = 60.0
"""By how much an uptime has to be shorter than it should be, to tell a restart from a late message."""
_TAKEN_OVER = frozenset({"takenover", "discarded"})


@dataclass(frozen=True, slots=True)
class Uptime:
    """How long a node of the broker had been running, in seconds, when that was heard, in monotonic seconds."""

    node: str
    seconds: float
    heard_at: float


class Sessions:
    """Opens and closes the sessions of all names."""

    def __init__(self, devices: Devices, began: float, broker: Uptime | None = None) -> None:
        self.broker = broker  # the uptime by which the next one is judged
        self.scale = 1.0  # what the fixed times are multiplied by
        self._devices = devices
        self._began = began
        self._heard: Uptime | None = None  # what was heard of it since the last probe came back
        self._spoke: dict[str, float] = {}

    @property
    def open(self) -> int:
        """How many sessions are known."""
        return sum(device.session for device in self._devices.by_name.values())

    def connected(self, device: Device, session_id: int | None, received: float) -> bool:
        """A `connected`: opens the session or replaces it, and returns True, unless that one has ended before."""
        if session_id is not None and session_id in (device.ended_id, device.session_id):
            return False
        device.announced = min(2, device.announced + 1)
        self._open(device, session_id, received)
        self._devices.touch(device, urgent=True)
        return True

    def disconnected(self, device: Device, session_id: int | None, reason: str, received: float) -> bool:
        """A `disconnected`; returns whether the device left with it, also where its `connected` was not heard."""
        repeated = session_id is not None and session_id == device.ended_id
        if session_id is not None:
            device.ended_id = session_id
        self._spoke.pop(device.name, None)
        self._devices.touch(device, urgent=True)
        if repeated:
            return False
        another = None not in (session_id, device.session_id) and session_id != device.session_id
        if reason in _TAKEN_OVER:
            # Another connection of the same name goes on: its `connected` may come before this, or after.
            if not another:
                device.session_id = None
            return False
        since = device.session_since
        if since is not None and another and received - since < LATE_END_SECONDS * self.scale:
            return False
        self._close(device)
        device.then = None
        return True

    def message(self, device: Device, received: float) -> None:
        """A message: the second one implies a session, whose `connected` was lost."""
        if device.session or not device.announced:
            return
        first = self._spoke.setdefault(device.name, received)
        nearest, farthest = (seconds * self.scale for seconds in IMPLIED_SECONDS)
        if received - first > farthest:
            self._spoke[device.name] = received
        elif received - first >= nearest:
            self._open(device, None, received)
            self._devices.touch(device, urgent=True)

    def uptime(self, node: str, seconds: float, received: float) -> None:
        """The broker's uptime, judged when the next probe comes back: then no later one is on its way."""
        self._heard = Uptime(node, seconds, received)

    def speaks(self, node: str, received: float) -> None:
        """A node of the broker spoke; another one than before is another broker."""
        if self.broker is not None and node != self.broker.node and self._heard is None:
            self._heard = Uptime(node, 0.0, received)

    def probe_returned(self, observed_seconds: float) -> bool:
        """Judge what was heard of the broker; returns whether it has restarted."""
        heard, self._heard = self._heard, None
        if heard is None:
            return False
        before, self.broker = self.broker, heard
        if before is None:
            return False
        expected = before.seconds + heard.heard_at - before.heard_at
        if heard.node == before.node and heard.seconds >= expected - UPTIME_SLACK_SECONDS * self.scale:
            return False
        self.end_all(observed_seconds, since=heard.heard_at - heard.seconds)
        return True

    def end_all(self, observed_seconds: float, since: float = float("inf")) -> None:
        """End all sessions but those that were heard to open since then, in monotonic seconds."""
        self._devices.dropped_session = False
        self._spoke.clear()
        for device in self._devices.by_name.values():
            if device.session_since is not None and device.session_since < since:
                self._end_unheard(device, observed_seconds)

    def gap(self, observed_seconds: float, *, listed: bool) -> None:
        """A probe was lost: a name that is not associated and was announced once may never be heard of again.

        `listed` is whether it is known which names are associated.
        """
        self._spoke.clear()
        for device in self._devices.by_name.values() if listed else ():
            if device.session and not device.associated and device.announced < 2:
                self._end_unheard(device, observed_seconds)

    def forget(self, observed_seconds: float) -> None:
        """Connection events are switched off: forget all that they told, but that a session was open until now."""
        for device in self._devices.by_name.values():
            if device.session:
                device.silent_since = observed_seconds
            if device.session or device.announced or device.ended_id is not None or device.then is not None:
                device.session_since = device.session_id = device.ended_id = None
                device.announced, device.then, device.keepalive = 0, None, True
                self._devices.touch(device, urgent=True)
        self.broker = self._heard = None
        self._spoke.clear()
        self._devices.dropped_session = False

    def forget_bridge(self, bridge_ids: str) -> None:
        """What is the bridge's by now has no session: its connection is counted apart."""
        for device in self._devices.by_name.values():
            if device.session and fnmatchcase(device.name, bridge_ids):
                self._close(device)
                self._devices.touch(device, urgent=True)

    def hears_uptime(self, at: float, late_seconds: float) -> bool:
        """Whether the broker's uptime was heard within so long, or the run is younger than that."""
        heard = self._heard or self.broker
        return at - max(self._began, heard.heard_at if heard else 0.0) <= late_seconds

    def _open(self, device: Device, session_id: int | None, received: float) -> None:
        device.session_since, device.session_id, device.then = received, session_id, None
        self._spoke.pop(device.name, None)

    def _close(self, device: Device) -> None:
        device.session_since = device.session_id = None

    def _end_unheard(self, device: Device, observed_seconds: float) -> None:
        self._close(device)
        device.then, device.silent_since = None, observed_seconds
        self._devices.touch(device, urgent=True)
