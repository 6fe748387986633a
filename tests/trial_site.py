"""A local core for each test, its component under the settings of a trial, and real client devices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_core.core import BRIDGE, LocalCore
from local_core.devices import ClientDevices

COMPONENT = "community.greengrass.ClientDevicePruner"
INBOUND = "client-device-pruner/in/"
REPOSITORY = Path(__file__).resolve().parents[1]

MAPPING: dict[str, dict[str, str]] = {
    "PrunerConnected": {"topic": "$SYS/brokers/+/clients/+/connected", "source": "LocalMqtt"},
    "PrunerDisconnected": {"topic": "$SYS/brokers/+/clients/+/disconnected", "source": "LocalMqtt"},
    "PrunerCount": {"topic": "$SYS/brokers/+/stats/live_connections/count", "source": "LocalMqtt"},
    "PrunerUptime": {"topic": "$SYS/brokers/+/uptime", "source": "LocalMqtt"},
    "PrunerMessages": {"topic": "clients/+/telemetry", "source": "LocalMqtt"},
}
for _entry in MAPPING.values():
    _entry |= {"target": "Pubsub", "targetTopicPrefix": INBOUND}
MAPPING["PrunerCanary"] = {
    "topic": "pruner-canary/+",
    "source": "Pubsub",
    "target": "LocalMqtt",
    "targetTopicPrefix": "clients/",
}

TRIAL: dict[str, Any] = {
    "allowShortDurations": True,
    "offlineThreshold": "3s",
    "noticePeriod": "1s",
    "checkInterval": "0.5s",
    "sources": {"emqx": {"maxQuiet": "1.5s"}, "messages": {"maxQuiet": "2s"}},
    "limits": {"approvalPercent": 100, "maxPercentPerDay": 100},
    "massLoss": {"window": "0.1s"},
}


@dataclass(slots=True)
class Site:
    """A core with its client devices."""

    core: LocalCore
    devices: ClientDevices

    def of_type(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """The data of the events of that type, about that device if one is named."""
        wanted = f"community.greengrass.pruner.{kind}"
        return [
            event["data"]
            for event in self.core.events
            if event["type"] == wanted and (name is None or event.get("subject") == name)
        ]

    async def event(self, kind: str, name: str | None = None, seconds: float = 30.0, **data: Any) -> dict[str, Any]:
        """Wait for an event, past or to come; returns its data."""
        wanted = f"community.greengrass.pruner.{kind}"

        def matches(event: dict[str, Any]) -> bool:
            return (
                event["type"] == wanted
                and (name is None or event.get("subject") == name)
                and all(event["data"].get(key) == value for key, value in data.items())
            )

        event = await self.core.wait_for_event(matches, timeout_seconds=seconds)
        found: dict[str, Any] = event["data"]
        return found

    async def cycles(self, number: int, seconds: float = 30.0) -> None:
        """Wait until so many more cycles have ended."""
        until = len(self.of_type("cycle")) + number
        await self.core.wait_for_event(
            lambda _event: len(self.of_type("cycle")) >= until, timeout_seconds=seconds
        )

    async def deploy(self, **settings: Any) -> None:
        """Deploy the trial's settings and the bridge's mapping, with changes."""
        await self.core.deploy(
            {COMPONENT: {"merge": {**TRIAL, **settings}}, BRIDGE: {"merge": {"mqttTopicMapping": MAPPING}}}
        )

    @property
    def associated(self) -> set[str]:
        """The names that are associated now."""
        return set(self.core.cloud.associations)

    def operations(self, name: str) -> list[Any]:
        """The calls of that operation so far."""
        return [call for call in self.core.cloud.calls if call.operation == name]


MakeSite = Callable[..., Awaitable[Site]]
