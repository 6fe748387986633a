"""The demo's story: what happens on the stage, chapter by chapter, and the proof that it really did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from client_device_pruner.cli import reading
from local_core.cloud import DISASSOCIATE
from local_core.component import State
from local_core.core import EMQX, LocalCore
from local_core.devices import ClientDevices

DEVICES = ("alarm", "camera", "door", "lamp-1", "lamp-2", "pump", "sensor")
PROTECTED = "alarm"
THRESHOLD_SECONDS = 6.0
PATIENT_SECONDS = 12.0
GRACE_SECONDS = 3.0

SETTINGS: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": f"{THRESHOLD_SECONDS:g}s",
    "thresholds": {"cameras": {"devices": ["camera*"], "offlineThreshold": f"{PATIENT_SECONDS:g}s"}},
    "gracePeriod": f"{GRACE_SECONDS:g}s",
    "checkInterval": "1s",
    "protectedDevices": [PROTECTED],
    "presence": {"probeInterval": "0.4s", "clientList": {"interval": "1s"}},
    # Seven devices that come and go within seconds are neither an outage nor too many for a day.
    "massLoss": {"window": "0.1s", "minPercent": 100},
    "limits": {"maxPercentPerDay": 100},
}

_IN = {"source": "LocalMqtt", "target": "Pubsub", "targetTopicPrefix": "client-device-pruner/in/"}
MAPPING: dict[str, dict[str, str]] = {
    "PrunerClients": {"topic": "$SYS/brokers/+/clients/#", **_IN},
    "PrunerCount": {"topic": "$SYS/brokers/+/stats/live_connections/count", **_IN},
    "PrunerUptime": {"topic": "$SYS/brokers/+/uptime", **_IN},
    "PrunerMessages": {"topic": "clients/+/telemetry", **_IN},
    "PrunerProbe": {"topic": "pruner-probe/+", "source": "Pubsub", "target": "LocalMqtt"},
    "PrunerProbeBack": {"topic": "pruner-probe/+", **_IN},
}
"""The bridge's `mqttTopicMapping`, as a real deployment has it."""

_READING_SECONDS = 1.2
_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_TELEMETRY_SECONDS = 1.5
_RECONNECT_SECONDS = 0.3
_BETWEEN_MESSAGES_SECONDS = 1.0  # a minute or more, at the demo's scale

Found = TypeVar("Found")


class StoryError(Exception):
    """Something did not come out as told; the message says what, in a sentence."""


class Narrator(Protocol):
    """Tells the story to the viewer."""

    def chapter(self, title: str) -> None:
        """Begin a chapter."""

    def say(self, text: str) -> None:
        """Say what happens, or what was seen."""

    def show(self) -> None:
        """Show all devices as they stand, where the table is not in sight all the time."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Observed time, as the component's last status has it: how much, and whether it passes."""

    seconds: float
    passes: bool


@dataclass(frozen=True, slots=True)
class Look:
    """One device now: by the broker, by the component, by the cloud."""

    name: str
    connected: bool
    state: str
    thought: str
    associated: bool


class Stage:
    """The local core and its devices, and what can be known of them.

    Args:
        core: Entered, with the component deployed.
        devices: Of that core.
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

    async def until(self, what: str, found: Callable[[], Found | None]) -> Found:
        """Wait until something is found, and return it.

        Raises:
            StoryError: It is not in time, or the component is broken; `what` completes the sentence.
        """
        end = asyncio.get_running_loop().time() + _WAIT_SECONDS
        while not (it := found()):
            if self.core.component.state is State.BROKEN:
                raise StoryError("The component does not run: it ended with an error three times.")
            if asyncio.get_running_loop().time() > end:
                raise StoryError(f"{_WAIT_SECONDS:g} s have passed without this: {what}.")
            await asyncio.sleep(_LOOK_SECONDS)
        return it

    def known(self) -> reading.Snapshot | None:
        """Return what the component last wrote down, as its own commands read it; None before that."""
        try:
            return reading.read(self.core.work_dir)
        except reading.Failed:
            return None

    def thing(self, name: str) -> reading.Thing | None:
        """Return what the component last wrote down of a device; None if that is nothing."""
        known = self.known()
        return known.things.get(name) if known else None

    def observes(self) -> bool:
        """Whether observed time passes."""
        observed = self.observed()
        return observed is not None and observed.passes

    def observed(self) -> Observed | None:
        """Return observed time; None before the first status."""
        known = self.known()
        if known is None:
            return None
        return Observed(known.status["observedSeconds"], known.status["observing"]["since"] is not None)

    def looks(self) -> list[Look]:
        """Return every device as it stands now."""
        known, connected, associated = self.known(), self.core.broker.connections, self.associated
        looks = []
        for name in DEVICES:
            thing = known.things.get(name) if known else None
            state = thing.state if thing else ""
            looks.append(Look(name, name in connected, state, _thought(thing), name in associated))
        return looks


def _thought(thing: reading.Thing | None) -> str:
    """Return what the component knows of a device, in words."""
    if thing is None or not thing.state:
        return "not associated"
    if thing.state == "marked":
        return f"marked, {thing.due_in_seconds or 0.0:.0f} s of grace left"
    if thing.silent_seconds is None or thing.state == "present":
        return thing.state
    return f"{thing.state}, not seen for {thing.silent_seconds:.0f} s"


async def tell(stage: Stage, narrator: Narrator) -> None:
    """Play the whole story on a stage whose component runs and observes.

    Raises:
        StoryError: It did not come out as told.
    """
    for chapter in (_connect, _vanish, _return, _break_the_bridge, _name_it, _ask_the_broker):
        await chapter(stage, narrator)
        narrator.show()


async def _read_along() -> None:
    await asyncio.sleep(_READING_SECONDS)


async def _connect(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("1. Seven devices connect")
    narrator.say(f"Associated with the core, before: {', '.join(sorted(stage.associated))}.")
    narrator.say("Each device is a real MQTT client; only the two lamps publish telemetry.")
    for name in DEVICES:
        await stage.devices.connect(
            name,
            telemetry_seconds=_TELEMETRY_SECONDS if name.startswith("lamp") else None,
            # The door's battery is nearly empty: once its connection is lost, it stays away.
            reconnect_seconds=None if name == "door" else _RECONNECT_SECONDS,
        )
    await stage.until(
        "the component knows that six are present, and the alarm is protected", partial(_all_known, stage)
    )
    narrator.say("The component heard each of them connect: six are present, and the alarm is protected.")
    await _read_along()


async def _vanish(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("2. Three devices lose their power")
    for name in ("sensor", "camera", PROTECTED):
        await stage.devices.drop(name)
        protection = ", but protectedDevices names it, so it stays associated" if name == PROTECTED else ""
        narrator.say(f"The {name} loses its power{protection}.")
        await stage.until(f"the component misses the {name}", partial(_is_missed, stage, name))
        await _read_along()


async def _return(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("3. One is marked, and comes back in its grace period")
    narrator.say(
        f"offlineThreshold is {THRESHOLD_SECONDS:g} s, and {PATIENT_SECONDS:g} s for cameras. A device that is silent"
        " for longer, and not connected as the broker's count shows, is marked, and its grace period begins."
    )
    (marked,) = await stage.until("the sensor is marked", partial(stage.events, "marked", "sensor"))
    await stage.devices.connect("sensor", reconnect_seconds=_RECONNECT_SECONDS)
    narrator.say(
        f"Event marked: sensor, silent for {marked['silentSeconds']:.1f} s, evidence {marked['evidence']},"
        f" due in {marked['dueInSeconds']:.0f} s. And the sensor connects again."
    )
    (unmarked,) = await stage.until("the sensor loses its mark", partial(stage.events, "unmarked", "sensor"))
    narrator.say(f"Event unmarked: sensor, {unmarked['reason']}.")
    await _read_along()


async def _break_the_bridge(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("4. The bridge stops: observed time stands still")
    await stage.devices.drop("pump")
    narrator.say("The pump loses its connection. The component still hears that.")
    await stage.until("the component misses the pump", partial(_is_missed, stage, "pump"))
    broken = len(stage.core.events)
    await stage.core.bridge.stop()
    narrator.say(
        "The bridge stops. The probe, a message that the component sends to itself through the broker, is lost."
    )
    (held,) = await stage.until(
        "the component says that it does not observe",
        lambda: stage.events("held", since=broken, guard="notObserving"),
    )
    narrator.say(f"Event held: notObserving. {held['reason'][0].upper()}{held['reason'][1:]}.")
    stood = await stage.until("observed time stands still", partial(_standing, stage))
    await stage.devices.connect("pump", reconnect_seconds=_RECONNECT_SECONDS)
    narrator.say("Now the pump connects again. The component does not hear that.")
    narrator.show()
    await _read_along()
    still = stage.observed()
    if still is None or still.seconds != stood.seconds:
        raise StoryError("Observed time should have stood still while the bridge was stopped, but it passed.")
    await stage.core.bridge.start()
    narrator.say("The bridge runs again. The broker does not send the pump's event again.")
    await stage.until(
        "observed time passes again",
        lambda: stage.events("released", since=broken, guard="notObserving") and stage.observes(),
    )
    narrator.say(f"Event released: notObserving. Observed time stood still at {still.seconds:.1f} s, and passes again.")


async def _name_it(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("5. No device is removed while a connection is unnamed")
    narrator.say("The broker counts one connection more than the component can name. It may be any device's.")
    camera = await stage.until("the camera is silent for longer than its patience", partial(_overdue, stage, "camera"))
    if camera.state != "silent" or stage.events("disassociated"):
        raise StoryError("The camera should not have been marked while a connection was unnamed, but it was.")
    narrator.say(
        f"The camera is silent for {camera.silent_seconds or 0.0:.1f} s, longer than its patience of"
        f" {camera.patience_seconds or 0.0:.0f} s, and it is not marked:"
    )
    for sentence in camera.sentences:
        narrator.say(f"  {sentence}")
    narrator.show()
    await _read_along()
    narrator.say(
        "The pump publishes twice, one second apart: now the component knows that the connection is the pump's."
    )
    await stage.devices.publish("pump", "running")
    await asyncio.sleep(_BETWEEN_MESSAGES_SECONDS)
    await stage.devices.publish("pump", "running")
    (marked,) = await stage.until("the camera is marked", partial(stage.events, "marked", "camera"))
    narrator.say(f"Event marked: camera, silent for {marked['silentSeconds']:.1f} s, evidence {marked['evidence']}.")
    await _goes(stage, narrator, "camera", "connectionCount")


async def _ask_the_broker(stage: Stage, narrator: Narrator) -> None:
    narrator.chapter("6. The broker's own client list")
    narrator.say(
        "A deployment switches EMQX's HTTP API on. That restarts the broker: all connections end, without events."
    )
    await stage.core.deploy({EMQX: {"merge": stage.core.emqx_api.configuration()}})
    narrator.say("The other devices connect again at once. The door does not, and no event says so.")
    await stage.until("the component misses the door", partial(_is_missed, stage, "door"))
    narrator.say("The client list shows it: here the component reads the list every second, and the door is not on it.")
    narrator.show()
    (marked,) = await stage.until("the door is marked", partial(stage.events, "marked", "door"))
    narrator.say(f"Event marked: door, silent for {marked['silentSeconds']:.1f} s, evidence {marked['evidence']}.")
    await _goes(stage, narrator, "door", "clientList")
    if stage.events("marked", PROTECTED):
        raise StoryError(f"The {PROTECTED} is protected, but it was marked.")
    batches = [call.entries for call in stage.core.cloud.calls if call.operation == DISASSOCIATE]
    if stage.associated != set(DEVICES) - {"camera", "door"} or batches != [("camera",), ("door",)]:
        raise StoryError(f"Only camera and door should have been disassociated; the calls were: {batches}.")
    narrator.say(f"Associated with the core, after: {', '.join(sorted(stage.associated))}.")
    narrator.say(f"The sensor came back in time, the pump was connected, and the {PROTECTED} is protected: they stay.")


async def _goes(stage: Stage, narrator: Narrator, name: str, evidence: str) -> None:
    """Wait until a device is disassociated, on that evidence."""
    (gone,) = await stage.until(f"the {name} is disassociated", partial(stage.events, "disassociated", name))
    if gone["evidence"] != evidence or gone["silentSeconds"] < gone["patienceSeconds"] + GRACE_SECONDS:
        raise StoryError(
            f"The {name} should have been disassociated by {evidence}, after threshold and grace period: {gone}."
        )
    narrator.say(
        f"Event disassociated: {name}, silent for {gone['silentSeconds']:.1f} s, evidence {gone['evidence']},"
        " confirmed by listing again."
    )
    await _read_along()


def _all_known(stage: Stage) -> bool:
    present = sum(look.state == "present" for look in stage.looks())
    return present == len(DEVICES) - 1 and stage.observes()


def _is_missed(stage: Stage, name: str) -> bool:
    """Whether the component knows that a device is not connected."""
    thing = stage.thing(name)
    return name not in stage.core.broker.connections and thing is not None and thing.silent_seconds is not None


def _overdue(stage: Stage, name: str) -> reading.Thing | None:
    thing = stage.thing(name)
    if thing is None or thing.silent_seconds is None or thing.patience_seconds is None:
        return None
    return thing if thing.silent_seconds > thing.patience_seconds else None


def _standing(stage: Stage) -> Observed | None:
    observed = stage.observed()
    return observed if observed and not observed.passes else None
