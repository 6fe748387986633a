"""A whole core device in one event loop: nucleus, broker, bridge, cloud and the component."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_core.bridge import Bridge
from local_core.broker import Broker
from local_core.cloud import Cloud
from local_core.component import Component, State
from local_core.ipc import IpcServer
from local_core.pubsub import Message, PubSub
from local_core.recipe import Configuration, Phase, Recipe, merge, read_recipe, reset
from local_core.shadows import Shadows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

_log = logging.getLogger(__name__)

BRIDGE = "aws.greengrass.clientdevices.mqtt.Bridge"
EVENTS_TOPIC = "client-device-pruner/events"

_REPOSITORY = Path(__file__).resolve().parents[2]
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
# What `install` needs where packages come from a mirror.
_PIP_VARIABLES = ("PIP_INDEX_URL", "PIP_CERT", "PIP_CONFIG_FILE", "SSL_CERT_FILE")
_EVENTS_KEPT = 100_000


class LocalCore:
    """A development core device; use it as an asynchronous context manager.

    Entering starts everything but the component, which the first `deploy` or `start_component` installs.

    Args:
        root: Its directory, like ``/greengrass/v2``: work directory, logs, unpacked artifacts.
        recipe: The component's recipe; the repository's by default.
        artifact: The directory that stands for the unpacked artifact; the repository by default.
        environment: A virtual environment to link at ``{work:path}/venv`` instead of running ``install``.
        bytecode: With one, a folder to link at ``{work:path}/bytecode``: cores with the same artifact and environment
            share what Python compiles.
        thing_name: The core device's name.
        presence: Whether the broker publishes EMQX's ``$SYS`` topics.
        count_interval_seconds: Time between the broker's counts of connections.
        uptime_interval_seconds: Time between its uptimes.
        mqtt_port: The broker's port; 0 chooses a free one.
        lite: Behave as Greengrass Lite where it differs.
        behind_proxy: Reach the cloud through a proxy alone; only the device's loopback is reached directly.
        user: The numeric user and group that the component runs as, as ``ggc_user`` on a device; whoever runs
            the core by default.
    """

    def __init__(
        self,
        root: Path,
        *,
        recipe: Path | None = None,
        artifact: Path | None = None,
        environment: Path | None = None,
        bytecode: Path | None = None,
        thing_name: str = "core-1",
        presence: bool = True,
        count_interval_seconds: float = 60.0,
        uptime_interval_seconds: float = 30.0,
        mqtt_port: int = 0,
        lite: bool = False,
        behind_proxy: bool = False,
        user: int | None = None,
    ) -> None:
        self.root = root.resolve()
        runtime = "aws_nucleus_lite" if lite else "aws_nucleus_classic"
        self.recipe: Recipe = read_recipe(recipe or _REPOSITORY / "recipe.yaml", runtime=runtime)
        self.thing_name = thing_name
        self.lite = lite
        self._behind_proxy = behind_proxy
        self._user = user
        self.configuration: dict[str, Configuration] = {
            self.recipe.name: self.recipe.configuration,
            BRIDGE: {},
        }
        self.events: list[dict[str, Any]] = []
        self.iot_core: list[Message] = []
        self.shadows = Shadows()
        self.work_dir = self.root / "work" / self.recipe.name
        self.pubsub = PubSub()
        self.ipc = IpcServer(self.pubsub, configuration=self.configuration, iot_core=self._to_iot_core, lite=lite)
        self.broker = Broker(
            port=mqtt_port,
            presence=presence,
            count_interval_seconds=count_interval_seconds,
            uptime_interval_seconds=uptime_interval_seconds,
        )
        self.bridge = Bridge(self.pubsub, broker_port=lambda: self.broker.port, iot_core=self._from_bridge_to_iot_core)
        self.cloud = Cloud(core_device=thing_name)
        self.component = Component(
            self.recipe.name,
            phase=self._phase,
            environment=self._environment,
            work_dir=self.work_dir,
            log_path=self.root / "logs" / f"{self.recipe.name}.log",
            user=user,
        )
        self._artifact = (artifact or _REPOSITORY).resolve()
        self._linked_environment = environment
        self._shared_bytecode = bytecode
        self._socket_dir: Path | None = None
        self._waiters: list[tuple[Callable[[dict[str, Any]], bool], asyncio.Future[dict[str, Any]]]] = []

    @property
    def socket_path(self) -> Path:
        """The IPC socket, in a directory of its own because a socket's path must be short."""
        if self._socket_dir is None:
            raise RuntimeError("the core is not started")
        return self._socket_dir / "ipc.socket"

    async def __aenter__(self) -> LocalCore:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        self.pubsub.subscribe(EVENTS_TOPIC, self._keep_event)
        self._lay_out()
        self._socket_dir = Path(tempfile.mkdtemp(prefix="core-", dir="/tmp"))
        try:
            await self.cloud.start()
            await self._power_on()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.component.stop()
        finally:
            await self._power_off()
            await self.cloud.stop()
            if self._socket_dir:
                shutil.rmtree(self._socket_dir, ignore_errors=True)

    async def deploy(self, updates: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Deploy: announce it, update configurations, and start the component if it has not been started.

        Args:
            updates: ``{component: {"reset": [JSON pointers], "merge": {...}}}``, both optional, for this
                component, the bridge (`BRIDGE`) or any other; resets come first.
        """
        deployment = str(uuid.uuid4())
        await self._announce(deployment)
        for name, update in (updates or {}).items():
            defaults = self.recipe.configuration if name == self.recipe.name else {}
            configuration = reset(self.configuration.get(name, {}), defaults, list(update.get("reset") or []))
            configuration = merge(configuration, update.get("merge") or {})
            self.ipc.set_configuration(name, configuration)
            if name == BRIDGE:
                self.bridge.configure(configuration)
        self.ipc.post_update(deployment)
        if self.lite and updates and self.recipe.name in updates:
            await self.stop_component()
        self.start_component()

    def start_component(self) -> None:
        """Start the component in the background; `component.wait_for_state` tells how that went."""
        self.component.start()

    async def fill_bytecode(self) -> None:
        """Have all that will run compiled beforehand, as the `install` does that a linked environment replaces.

        Raises:
            RuntimeError: If that fails.
        """
        run = self.recipe.phases["run"].interpolated(self._variables, self.configuration[self.recipe.name])
        python = str(self.work_dir / "venv/bin/python")
        process = await asyncio.create_subprocess_exec(python, "-m", "install_bytecode", env=dict(run.environment))
        if await process.wait() != 0:
            raise RuntimeError("the component could not be compiled; see the messages above")

    async def stop_component(self) -> None:
        """Stop the component, as the nucleus does."""
        await self.component.stop()

    async def reboot(self, *, off_seconds: float = 0.0) -> None:
        """Cut the power of the whole device, and turn it on again.

        Args:
            off_seconds: How long it stays off.
        """
        ran = self.component.state is not State.NEW
        await self.component.power_off()
        await self._power_off()
        await asyncio.sleep(off_seconds)
        await self._power_on()
        if ran:
            self.start_component()

    async def wait_for_event(
        self, wanted: Callable[[dict[str, Any]], bool], *, timeout_seconds: float = 30.0
    ) -> dict[str, Any]:
        """Return the first event of the component, past or to come, that is wanted.

        Raises:
            TimeoutError: If none comes in time; the message lists the types that came.
        """
        for event in self.events:
            if wanted(event):
                return event
        found: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiters.append((wanted, found))
        try:
            return await asyncio.wait_for(found, timeout_seconds)
        except asyncio.TimeoutError:
            came = ", ".join(str(event.get("type")) for event in self.events[-20:])
            raise TimeoutError(f"no such event in {timeout_seconds:g} s; the last were: {came}") from None
        finally:
            self._waiters.remove((wanted, found))

    async def _announce(self, deployment: str) -> None:
        """Ask the components until none of them wants the deployment deferred."""
        while True:
            answers = await self.ipc.pre_update(deployment)
            wait_ms = max(answers.values(), default=0)
            if not wait_ms:
                return
            await asyncio.sleep(wait_ms / 1000)

    async def _power_on(self) -> None:
        await self.ipc.start(self.socket_path)
        if self._user is not None:
            self.socket_path.parent.chmod(0o755)
            self.socket_path.chmod(0o666)
        await self.broker.start()
        self.bridge.configure(self.configuration[BRIDGE])
        await self.bridge.start()

    async def _power_off(self) -> None:
        await self.ipc.stop()
        self.ipc.revoke_tokens()
        await self.bridge.stop()
        await self.broker.stop()

    def _lay_out(self) -> None:
        """Lay the artifact where a deployment unpacks it, and the environment where `install` makes it."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(self.work_dir, self._user, self._user)
        _link(self._unpacked / "client-device-pruner", self._artifact)
        if self._linked_environment:
            _link(self.work_dir / "venv", self._linked_environment.absolute())
        if self._shared_bytecode:
            _link(self.work_dir / "bytecode", self._shared_bytecode)
            # Python looks for a file's bytecode by the file's path: that has to lead through the same links.
            for link in (self._unpacked / "client-device-pruner", self.work_dir / "venv"):
                target = self._shared_bytecode / link.resolve().relative_to("/")
                target.mkdir(parents=True, exist_ok=True)
                _link(self._shared_bytecode / link.relative_to("/"), target)

    @property
    def _unpacked(self) -> Path:
        return self.root / "packages" / "artifacts-unarchived" / self.recipe.name / self.recipe.version

    @property
    def _variables(self) -> dict[str, str]:
        end = "/" if self.lite else ""
        packed = self.root / "packages" / "artifacts" / self.recipe.name / self.recipe.version
        return {
            "artifacts:decompressedPath": f"{self._unpacked}{end}",
            "artifacts:path": f"{packed}{end}",
            "work:path": f"{self.work_dir}{end}",
            "kernel:rootPath": str(self.root),
            "iot:thingName": self.thing_name,
        }

    def _phase(self, name: str) -> Phase | None:
        phase = self.recipe.phases.get(name)
        if phase is None or (name == "install" and self._linked_environment):
            return None
        return phase.interpolated(self._variables, self.configuration[self.recipe.name])

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
        return {**passed_on, **environment, **(self._proxy_environment() if self._behind_proxy else {})}

    def _proxy_environment(self) -> dict[str, str]:
        """Return what a nucleus behind a proxy sets: here the cloud itself, which alone knows its name."""
        proxies = dict.fromkeys(("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"), self.cloud.url) | {"NO_PROXY": "localhost"}
        return {
            **proxies,
            **{name.lower(): value for name, value in proxies.items()},
            "AWS_ENDPOINT_URL_GREENGRASSV2": "http://greengrass.invalid",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": self.cloud.credentials_url.replace("127.0.0.1", "localhost"),
        }

    def _from_bridge_to_iot_core(self, topic: str, payload: bytes) -> None:
        self._to_iot_core(Message(topic, payload, BRIDGE))

    def _to_iot_core(self, message: Message) -> None:
        self.iot_core.append(message)
        self.shadows.take(message)

    def _keep_event(self, message: Message) -> None:
        try:
            event = json.loads(message.payload)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            _log.warning("what was published on %s is no event: %.200r", message.topic, message.payload)
            return
        self.events.append(event)
        del self.events[:-_EVENTS_KEPT]
        for wanted, found in self._waiters:
            if not found.done() and wanted(event):
                found.set_result(event)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(target, target_is_directory=True)
