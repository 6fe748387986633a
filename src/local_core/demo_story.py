"""The demo's story: what happens on the stage, chapter by chapter, and the proof that it really did."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from client_device_pruner import snapshot
from client_device_pruner.model import State as Standing
from client_device_pruner.policy import absence_seconds, assess
from local_core.cloud import DISASSOCIATE
from local_core.component import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from local_core.core import LocalCore
    from local_core.devices import ClientDevices

DEVICES = ("alarm", "camera", "lamp-1", "lamp-2", "pump", "sensor")
PROTECTED = "alarm"
THRESHOLD_SECONDS = 5.0
NOTICE_SECONDS = 12.0
MAX_QUIET_SECONDS = 3.0

SETTINGS: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": f"{THRESHOLD_SECONDS:g}s",
    "noticePeriod": f"{NOTICE_SECONDS:g}s",
    "checkInterval": "1s",
    "protectedClients": [PROTECTED],
    "sources": {"emqx": {"maxQuiet": f"{MAX_QUIET_SECONDS:g}s"}, "messages": {"maxQuiet": "2s"}},
    # On a site of six, three that are lost within seconds are no outage.
    "massLoss": {"window": "0.1s", "minPercent": 100},
}

_SOURCE = "emqx"
_INBOUND = "client-device-pruner/in/"
MAPPING: dict[str, dict[str, str]] = {
    name: {"topic": topic, "source": "LocalMqtt", "target": "Pubsub", "targetTopicPrefix": _INBOUND}
    for name, topic in (
        ("PrunerConnected", "$SYS/brokers/+/clients/+/connected"),
        ("PrunerDisconnected", "$SYS/brokers/+/clients/+/disconnected"),
        ("PrunerCount", "$SYS/brokers/+/stats/live_connections/count"),
        ("PrunerUptime", "$SYS/brokers/+/uptime"),
        ("PrunerMessages", "clients/+/telemetry"),
    )
} | {
    "PrunerCanary": {
        "topic": "pruner-canary/+",
        "source": "Pubsub",
        "target": "LocalMqtt",
        "targetTopicPrefix": "clients/",
    }
}
"""The bridge's `mqttTopicMapping`, as a real deployment has it."""

_READING_SECONDS = 1.2
_PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_TELEMETRY_SECONDS = 1.5

Found = TypeVar("Found")


class StoryError(Exception):
    """Something did not come out as told; the message says what, in a sentence."""


class Narrator(Protocol):
    """Tells the story to whoever watches."""

    def chapter(self, title: str) -> None:
        """Begin a chapter."""

    def say(self, text: str) -> None:
        """Say what happens, or what was seen."""

    def show(self) -> None:
        """Show all devices as they stand, where the table is not in sight all the time."""


@dataclass(frozen=True, slots=True)
class SourceClock:
    """The `emqx` source, as the component's last status has it."""

    seconds: float
    vouching: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """One device at one moment: by the broker, by the component, by the cloud."""

    name: str
    connected: bool
    standing: Standing | None
    thought: str
    associated: bool


class Stage:
    """The local core and its devices, and what can be known of them.

    Args:
        core: entered, with the component deployed.
        devices: of that core.
    """

    def __init__(self, core: LocalCore, devices: ClientDevices) -> None:
        self.core = core
        self.devices = devices

    @property
    def associated(self) -> set[str]:
        """The names that are associated with the core now."""
        return set(self.core.cloud.associations)

    def events(self, kind: str, name: str | None = None, *, since: int = 0, **data: Any) -> list[dict[str, Any]]:
        """Return the data of the component's events of a type, from the one of that index on."""
        return [
            event["data"]
            for event in self.core.events[since:]
            if event["type"] == f"community.greengrass.pruner.{kind}"
            and name in (None, event.get("subject"))
            and data.items() <= event["data"].items()
        ]

    async def until(
        self, what: str, found: Callable[[], Found], *, patience_seconds: float = _PATIENCE_SECONDS
    ) -> Found:
        """Wait until something is found, and return it.

        Raises:
            StoryError: It is not in time, or the component is broken; `what` completes the sentence.
        """
        end = asyncio.get_running_loop().time() + patience_seconds
        while not (it := found()):
            if self.core.component.state is State.BROKEN:
                raise StoryError("The component does not run: it ended with an error three times.")
            if asyncio.get_running_loop().time() > end:
                raise StoryError(f"{patience_seconds:g} s passed, and still this was not so: {what}.")
            await asyncio.sleep(_LOOK_SECONDS)
        return it

    def known(self) -> snapshot.Snapshot | None:
        """Return what the component last wrote down, as its own commands read it; None before that."""
        try:
            return snapshot.read(self.core.work_dir)
        except snapshot.StateUnreadable:
            return None

    def clock(self) -> SourceClock | None:
        """Return the clock of the `emqx` source; None before the first status."""
        known = self.known()
        source = known and known.status["sources"].get(_SOURCE)
        return SourceClock(source["clockSeconds"], source["vouching"], source["reason"]) if source else None

    def looks(self) -> list[Look]:
        """Return every device as it stands now."""
        known, connected, associated = self.known(), self.core.broker.connections, self.associated
        return [
            Look(name, name in connected, *_thought(known, name), associated=name in associated) for name in DEVICES
        ]

    def look(self, name: str) -> Look:
        """Return one device as it stands now."""
        return next(look for look in self.looks() if look.name == name)


def _thought(known: snapshot.Snapshot | None, name: str) -> tuple[Standing | None, str]:
    """Return what the component thinks of a device, and the same in words."""
    device = known.devices.get(name) if known else None
    if known is None or device is None:
        return None, "not on its list"
    verdict = assess(device, known.now)
    if verdict.state is Standing.MARKED:
        return verdict.state, f"marked, {verdict.due_in_seconds or 0.0:.0f} s of notice left"
    if verdict.state in (Standing.ABSENT, Standing.UNKNOWN):
        witness = next(witness for witness in known.now.witnesses if witness.name == _SOURCE)
        return verdict.state, f"{verdict.state.value}, unheard for {absence_seconds(device, witness, known.now):.0f} s"
    return verdict.state, verdict.state.value


async def tell(stage: Stage, narrator: Narrator) -> None:
    """Play the whole story on a stage whose component runs and hears the broker.

    Raises:
        StoryError: It did not come out as told.
    """
    for chapter in (_connect, _kill, _mark_and_return, _break_the_bridge, _prune):
        await chapter(stage, narrator)
        narrator.show()


async def _read_along() -> None:
    await asyncio.sleep(_READING_SECONDS)


async def _connect(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("1. Six devices connect")
    narrator.say(f"Associated with the core, before: {', '.join(sorted(stage.associated))}.")
    narrator.say("Each device is a real MQTT client in a process of its own; only the two lamps send telemetry.")
    await asyncio.gather(
        *(
            stage.devices.connect(
                name, process=name, telemetry_seconds=_TELEMETRY_SECONDS if name.startswith("lamp") else None
            )
            for name in DEVICES
        )
    )
    present = len(DEVICES) - 1
    await stage.until(
        "the component knows all six to be connected",
        lambda: _number_present(stage) == present and (clock := stage.clock()) and clock.vouching,
    )
    clock = stage.clock()
    narrator.say(f'The component says: "{clock.reason if clock else ""}".')
    narrator.say("So nobody is there whom it does not know: it can vouch for absence, and its clock goes.")
    await _read_along()


async def _kill(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("2. Three are killed")
    for name in ("sensor", "camera", PROTECTED):
        pid = stage.devices.pid(name)
        await stage.devices.kill(name)
        protection = " (protected by protectedClients: whatever happens, it stays)" if name == PROTECTED else ""
        narrator.say(f"kill -9 {pid}: {name} is gone{protection}.")
        await stage.until(f"the component misses {name}", partial(_is_missed, stage, name))
        await _read_along()


async def _mark_and_return(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("3. Two are marked, and one comes back within the notice")
    narrator.say(
        f"Absent for {THRESHOLD_SECONDS:g} s on the clock, a device is stale: it is marked, and its notice begins."
    )
    for name in ("sensor", "camera"):
        (marked,) = await stage.until(f"{name} is marked", partial(stage.events, "marked", name))
        narrator.say(
            f"Event marked: {name}, absent for {marked['offlineSeconds']:.1f} s, proven by {marked['proof']};"
            f" due in {marked['dueInSeconds']:.0f} s."
        )
    await stage.devices.connect("sensor", process="sensor", telemetry_seconds=_TELEMETRY_SECONDS)
    narrator.say("The sensor connects again.")
    (unmarked,) = await stage.until("the sensor loses its mark", lambda: stage.events("unmarked", "sensor"))
    narrator.say(f"Event unmarked: sensor, because {unmarked['reason']}.")
    await _read_along()


async def _break_the_bridge(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("4. The bridge breaks, and a device comes back in the gap")
    await stage.devices.drop("pump")
    narrator.say("The pump loses its connection; that is still heard.")
    await stage.until("the component misses the pump", lambda: stage.look("pump").standing is Standing.ABSENT)
    await stage.core.bridge.stop()
    narrator.say("The bridge breaks: the component hears nothing any more.")
    # Longer than it takes to connect, and shorter than maxQuiet.
    await stage.devices.connect("pump", process="pump")
    narrator.say("Now the pump connects again, and nobody hears it.")
    await asyncio.sleep(_READING_SECONDS / 2)
    gap = len(stage.core.events)
    await stage.core.bridge.start()
    narrator.say("The bridge is back. No event will ever tell of the pump: by hearsay it is still offline.")
    await stage.until(
        "the component notices that somebody unannounced is there",
        lambda: (clock := stage.clock()) and not clock.vouching and "more than known" in clock.reason,
    )
    stood = stage.clock()
    narrator.say(f'The component says: "{stood.reason if stood else ""}".')
    narrator.say("Somebody is there unannounced; it might be anyone. The clock stands still, and all notices with it.")
    (held,) = await stage.until(
        "the component reports that it holds pruning back",
        lambda: stage.events("held", since=gap, guard="source:emqx"),
    )
    still = stage.clock()
    if still is None or stood is None or still.seconds != stood.seconds:
        raise StoryError("The clock should have stood still while somebody unannounced was there, and it went on.")
    if stage.events("disassociated"):
        raise StoryError("A device was disassociated before the bridge's gap was over.")
    narrator.say(f"Event held: {held['guard']}. The clock has stood at {still.seconds:.1f} s all the while.")
    narrator.show()
    await _read_along()
    spoken = len(stage.core.events)
    narrator.say("The pump speaks: two messages, well apart.")
    await stage.devices.publish("pump", "running")
    # The second opens its session only a third of maxQuiet after the first.
    await asyncio.sleep(MAX_QUIET_SECONDS / 3 + 0.5)
    await stage.devices.publish("pump", "running")
    await stage.until(
        "the clock goes on after the pump has spoken",
        lambda: (
            stage.events("released", since=spoken, guard="source:emqx")
            and (clock := stage.clock())
            and clock.vouching
            and clock.seconds > still.seconds
        ),
    )
    narrator.say("Event released: source:emqx. Everybody is known again, and the clock goes on.")
    await _read_along()


async def _prune(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("5. The one that is gone")
    narrator.say("The rest of the camera's notice passes on the clock.")
    (gone,) = await stage.until("the camera is disassociated", lambda: stage.events("disassociated", "camera"))
    narrator.say(
        f"Event disassociated: camera, absent for {gone['offlineSeconds']:.1f} s on the clock,"
        f" proven by {gone['proof']}, confirmed by listing again."
    )
    if gone["offlineSeconds"] < THRESHOLD_SECONDS + NOTICE_SECONDS:
        raise StoryError("The camera was disassociated before threshold and notice were over.")
    if stage.events("marked", PROTECTED):
        raise StoryError(f"The {PROTECTED} is protected, and was marked all the same.")
    batches = [call.entries for call in stage.core.cloud.calls if call.operation == DISASSOCIATE]
    if stage.associated != set(DEVICES) - {"camera"} or batches != [("camera",)]:
        raise StoryError(f"Only the camera should have been disassociated, in one call; the calls were: {batches}.")
    await stage.until("the component has let go of the camera", lambda: stage.look("camera").standing is None)
    narrator.say(f"Associated with the core, after: {', '.join(sorted(stage.associated))}.")
    narrator.say(
        f"The sensor came back in time, the pump was never taken for gone, and the {PROTECTED} is protected: they stay."
    )


def _number_present(stage: Stage) -> int:
    return sum(look.standing is Standing.PRESENT for look in stage.looks())


def _is_missed(stage: Stage, name: str) -> bool:
    look = stage.look(name)
    return not look.connected and look.standing is not Standing.PRESENT
