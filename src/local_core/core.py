"""A whole core device in one event loop: nucleus, broker, bridge, EMQX, cloud and the component.

What a test can do, with ``async with LocalCore(root, environment=…) as core``:

- deploy: ``core.deploy({core.recipe.name: {"merge": …}, BRIDGE: …, EMQX: …})``; ``{"reset": ["/limits"]}`` comes first;
- wait: ``core.wait_for_event(lambda event: …)``, ``core.component.wait_for_state(State.RUNNING)``;
- look at ``core.events``, ``.iot_core``, ``.shadows.reported``, ``.cloud.calls``, ``.component.output``, ``.work_dir``;
- associate devices: ``core.cloud.associate("pump")``; have the cloud fail: ``core.cloud.faults.append(Fault(…))``;
- have devices come and go: ``ClientDevices(lambda: core.broker.port)``: connect, disconnect, drop, freeze, publish;
- end the component: ``core.stop_component()``, ``core.component.kill()``; of all: ``core.reboot()``;
- restart the nucleus' IPC: ``core.ipc.drop_connections(forget_tokens=True)``;
- let subscriptions die silently: ``core.ipc.mute_pubsub()``, ``.mute_configuration()``;
- lose messages: ``core.pubsub.drops = lambda message: "/pruner-probe/" in message.topic``;
- break the bridge: ``core.bridge.stop()``, ``.start()``; have it come back late: ``.first_backoff_seconds``; for
  devices that come back before it, stop and start the broker between, with ``connect(…, reconnect_seconds=0.1)``;
- restart the broker: ``core.broker.stop()``, ``.start()``; its listener alone: ``.restart_listener()``;
- overrun the bridge: ``with core.broker.storm(most_waiting=20):`` connect more devices than that;
- miscount: ``core.broker.takeover_overlap_seconds``, ``.count_age_seconds``, ``.event_delay_seconds``;
- hide or make up events: ``core.broker.suppress_events``, ``.announce("pump", "connected", connected_at=1)``;
- refuse logins: ``core.broker.refused``, ``.announces_refused``;
- switch the client list on: ``core.deploy({EMQX: {"merge": core.emqx_api.configuration()}})``; have it fail:
  ``core.emqx_api.faults.append(Fault(operation=CLIENTS, …))``, ``.refuse_tokens()``, ``.before_page``, ``.keys``;
- stand for a bridge (``lite=True`` has neither bridge nor broker): ``core.pubsub.subscribe("pruner-probe/+", …)`` and
  ``core.pubsub.publish(Message(topic, payload, "com.example.Mine"))``, or a ``JsonMessage``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from local_core.bridge import PUBLISHER as BRIDGE
from local_core.bridge import Bridge
from local_core.broker import Broker
from local_core.cloud import Cloud, Shadows
from local_core.component import Component, State
from local_core.emqx_api import EmqxApi
from local_core.ipc import IpcServer
from local_core.pubsub import Message, PubSub
from local_core.recipe import Configuration, Phase, as_texts, merge, read_recipe, reset

__all__ = ["BRIDGE", "EMQX", "EVENTS_TOPIC", "LocalCore"]

EMQX = "aws.greengrass.clientdevices.mqtt.EMQX"
EVENTS_TOPIC = "client-device-pruner/events"

_LOOK_SECONDS = 0.01
_REPOSITORY = Path(__file__).resolve().parents[2]
_EMQX_DEFAULTS: Configuration = {"emqxConfig": {}, "authMode": "enabled", "dockerOptions": "-p 8883:8883"}
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
# What `install` needs where packages come from a mirror.
_PIP_VARIABLES = ("PIP_INDEX_URL", "PIP_CERT", "PIP_CONFIG_FILE", "SSL_CERT_FILE")


class LocalCore:
    """A development core device; use it as an asynchronous context manager.

    Entering starts everything but the component, which the first `deploy` or `start_component` installs.

    Args:
        root: Its directory, like ``/greengrass/v2``: work directory, logs, unpacked artifacts.
        recipe: The component's recipe; the repository's by default.
        artifact: The directory that stands for the unpacked artifact; the repository by default.
        environment: A virtual environment that the recipe's ``install`` gets as a further argument, to put it in force
            instead of making one.
        presence: Whether the broker is EMQX; else it is Moquette, which tells nothing of itself.
        count_interval_seconds: Time between the broker's counts of connections.
        uptime_interval_seconds: Time between its uptimes.
        mqtt_port: The broker's port; 0 chooses a free one.
        lite: Behave as Greengrass Lite where it differs: no broker, no bridge, and texts for scalars.
        user: The user and group, ``ggc_user:ggc_group``, for which ``sudo`` starts the component, as on a device;
            empty: as the core itself.
    """

    def __init__(
        self,
        root: Path,
        *,
        recipe: Path | None = None,
        artifact: Path | None = None,
        environment: Path | None = None,
        presence: bool = True,
        count_interval_seconds: float = 60.0,
        uptime_interval_seconds: float = 30.0,
        mqtt_port: int = 0,
        lite: bool = False,
        user: str = "",
    ) -> None:
        self.root = root.resolve()
        self.recipe = read_recipe(recipe or _REPOSITORY / "recipe.yaml", lite=lite)
        self.thing_name = "core-1"
        self.lite = lite
        self.configuration: dict[str, Configuration] = {self.recipe.name: self.recipe.configuration}
        if lite:
            self.configuration = as_texts(self.configuration)
        else:
            self.configuration |= {BRIDGE: {}, **({EMQX: _EMQX_DEFAULTS} if presence else {})}
        self.events: list[dict[str, Any]] = []
        self.iot_core: list[Message] = []
        self.shadows = Shadows()
        self.work_dir = self.root / "work" / self.recipe.name
        self.events_path = self.root / "logs" / "events.jsonl"
        self.pubsub = PubSub()
        self.ipc = IpcServer(self.pubsub, configuration=self.configuration, iot_core=self._to_iot_core, lite=lite)
        self.broker = Broker(
            port=mqtt_port,
            presence=presence,
            count_interval_seconds=count_interval_seconds,
            uptime_interval_seconds=uptime_interval_seconds,
        )
        self.emqx_api = EmqxApi(self.broker)
        self.bridge = Bridge(self.pubsub, broker_port=lambda: self.broker.port, iot_core=self._to_iot_core)
        self.cloud = Cloud(core_device=self.thing_name)
        self.component = Component(
            self.recipe.name,
            phase=self._phase,
            environment=self._environment,
            work_dir=self.work_dir,
            log_path=self.root / "logs" / f"{self.recipe.name}.log",
            user=user,
        )
        self._artifact = (artifact or _REPOSITORY).resolve()
        self._unpacked = self.root / "packages/artifacts-unarchived" / self.recipe.name / self.recipe.version
        self._ready_environment = environment
        self._user = user
        self.socket_path = Path()

    async def __aenter__(self) -> LocalCore:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        self.pubsub.subscribe(EVENTS_TOPIC, self._keep_event)
        self._lay_out()
        # In a directory of its own because a socket's path must be short.
        self.socket_path = Path(tempfile.mkdtemp(prefix="core-", dir="/tmp")) / "ipc.socket"
        try:
            await self.cloud.start()
            await self._power_on()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        try:
            await self.component.stop()
        finally:
            await self._power_off()
            await self.cloud.stop()
            shutil.rmtree(self.socket_path.parent, ignore_errors=True)

    async def deploy(self, updates: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Deploy: announce it, update configurations, and start the component if it has not been started.

        Args:
            updates: ``{component: {"reset": [JSON pointers], "merge": {...}}}``, both optional, for this component, the
                bridge (`BRIDGE`), EMQX (`EMQX`) or any other; resets come first.
        """
        deployment = str(uuid.uuid4())
        await self._announce(deployment)
        defaults = {self.recipe.name: self.recipe.configuration, EMQX: _EMQX_DEFAULTS}
        for name, update in (updates or {}).items():
            before = self.configuration.get(name, {})
            configuration = reset(before, defaults.get(name, {}), list(update.get("reset") or []))
            configuration = merge(configuration, update.get("merge") or {})
            self.ipc.set_configuration(name, configuration)
            if name == BRIDGE:
                self.bridge.configure(configuration)
            elif name == EMQX and configuration != before:
                await self._restart_emqx(before)
        self.ipc.post_update(deployment)
        if self.lite and updates and self.recipe.name in updates:
            await self.stop_component()
        self.start_component()

    def start_component(self) -> None:
        """Start the component in the background; `component.wait_for_state` tells how that went."""
        self.component.start()

    async def stop_component(self) -> None:
        """Stop the component, as the nucleus does."""
        await self.component.stop()

    async def reboot(self, *, off_seconds: float = 0.0) -> None:
        """Cut the power of the whole device, and turn it on again after that time."""
        ran = self.component.state is not State.NEW
        await self.component.power_off()
        await self._power_off()
        await asyncio.sleep(off_seconds)
        await self._power_on()
        if ran:
            self.start_component()

    def status(self) -> dict[str, Any]:
        """Return states, addresses, and of each associated device whether it is connected."""
        return {
            "component": self.component.state.value,
            "pid": self.component.pid,
            "mqttPort": self.broker.port,
            "bridgeConnected": self.bridge.connected,
            "devices": {name: name in self.broker.connections for name in sorted(self.cloud.associations)},
        }

    async def wait_for_event(
        self, wanted: Callable[[dict[str, Any]], bool], *, timeout_seconds: float = 30.0
    ) -> dict[str, Any]:
        """Return the first event of the component, past or to come, that is wanted.

        Raises:
            TimeoutError: If none comes in time; the message lists the types that came.
        """
        looked, deadline = 0, time.monotonic() + timeout_seconds
        while True:
            for event in self.events[looked:]:
                if wanted(event):
                    return event
            looked = len(self.events)
            if time.monotonic() > deadline:
                came = ", ".join(str(event.get("type")) for event in self.events[-20:])
                raise TimeoutError(f"no such event in {timeout_seconds:g} s; the last were: {came}")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _announce(self, deployment: str) -> None:
        """Ask the components until none of them wants the deployment deferred."""
        while True:
            wait_ms = max((await self.ipc.pre_update(deployment)).values(), default=0)
            if not wait_ms:
                return
            await asyncio.sleep(wait_ms / 1000)

    async def _restart_emqx(self, before: Configuration) -> None:
        """Do what EMQX does on a change: a new container for other Docker options, else a new listener."""
        after = self.configuration[EMQX]
        if after.get("dockerOptions") != before.get("dockerOptions"):
            await self.broker.stop()
            self.emqx_api.refuse_tokens()
            await self.broker.start()
        else:
            await self.broker.restart_listener()
        await self.emqx_api.start(after)

    async def _power_on(self) -> None:
        await self.ipc.start(self.socket_path)
        if self._user:
            self.socket_path.parent.chmod(0o755)
            self.socket_path.chmod(0o666)
        if not self.lite:
            await self.broker.start()
            await self.emqx_api.start(self.configuration.get(EMQX, {}))
            self.bridge.configure(self.configuration[BRIDGE])
            await self.bridge.start()

    async def _power_off(self) -> None:
        await self.ipc.stop()
        self.ipc.revoke_tokens()
        await self.bridge.stop()
        await self.emqx_api.stop()
        self.emqx_api.refuse_tokens()
        await self.broker.stop()

    def _lay_out(self) -> None:
        """Lay the artifact where a deployment unpacks it, and give the work directory to the component's user."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.events_path.parent.mkdir(parents=True, exist_ok=True)
        if self._user:
            shutil.chown(self.work_dir, *self._user.split(":"))
        link = self._unpacked / "client-device-pruner"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(self._artifact, target_is_directory=True)

    def _phase(self, name: str) -> Phase | None:
        if (described := self.recipe.phases.get(name)) is None:
            return None
        end = "/" if self.lite else ""
        phase = described.interpolated(
            {"artifacts:decompressedPath": f"{self._unpacked}{end}", "work:path": f"{self.work_dir}{end}"}
        )
        if name == "install" and self._ready_environment:
            argument = shlex.quote(str(self._ready_environment.absolute()))
            phase = dataclasses.replace(phase, script=f"{phase.script.rstrip()} {argument}")
        return phase

    def _environment(self) -> dict[str, str]:
        """Return what the nucleus gives a process, plus the way to the cloud that stands in for AWS."""
        own_python = str(Path(sys.base_prefix) / "bin")
        environment = {
            "PATH": f"/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:{own_python}",
            "LANG": "C.UTF-8",
            "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": str(self.socket_path),
            "SVCUID": self.ipc.issue_token(self.recipe.name),
            "AWS_IOT_THING_NAME": self.thing_name,
            "AWS_REGION": self.cloud.region,
            "AWS_DEFAULT_REGION": self.cloud.region,
            "GGC_VERSION": "2.1.0" if self.lite else "2.18.0",
            "AWS_ENDPOINT_URL_GREENGRASSV2": self.cloud.url,
            "NO_PROXY": ",".join(filter(None, ["localhost,127.0.0.1", os.environ.get("NO_PROXY")])),
        }
        if "aws.greengrass.TokenExchangeService" in self.recipe.dependencies:
            environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = self.cloud.credentials_url
            environment["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = self.cloud.credentials_token
        passed_on = {k: os.environ[k] for k in (*_PROXY_VARIABLES, *_PIP_VARIABLES) if k in os.environ}
        return {**passed_on, **environment}

    def _to_iot_core(self, message: Message) -> None:
        self.iot_core.append(message)
        self.shadows.take(message)

    def _keep_event(self, message: Message) -> None:
        event = json.loads(message.payload)  # what is none is logged by pub/sub
        self.events.append(event)
        with self.events_path.open("ab") as kept:
            kept.write(message.payload + b"\n")
