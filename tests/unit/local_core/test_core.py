"""The whole core device, with a small component of the test's own on the real SDK."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.waiting import until
from local_core.__main__ import main
from local_core.control import serve
from local_core.core import BRIDGE, EMQX, LocalCore
from local_core.devices import ClientDevices

_NAME = "community.greengrass.ClientDevicePruner"
_RECIPE = f"""
ComponentName: {_NAME}
ComponentVersion: "0.2.0"
ComponentDependencies: {{aws.greengrass.TokenExchangeService: {{VersionRequirement: "^2.0.0"}}}}
ComponentConfiguration:
  DefaultConfiguration:
    greeting: hello
    number: 7
    accessControl:
      aws.greengrass.ipc.pubsub:
        "test:1":
          operations: ["*"]
          resources: ["client-device-pruner/*"]
Manifests:
  - Platform: {{os: linux, runtime: "*"}}
    Lifecycle:
      install: 'put_in_force() {{ ln -sfn "$1" "{{work:path}}/venv"; }}; put_in_force'
      run:
        Script: exec {{work:path}}/venv/bin/python {{artifacts:decompressedPath}}/client-device-pruner/component.py
        Setenv: {{HOME: "{{work:path}}"}}
"""
_COMPONENT = """
import json, os, threading
import boto3
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc import model

client = GreengrassCoreIPCClientV2()

def tell(kind, **data):
    text = json.dumps({"type": kind, **data}).encode()
    message = model.PublishMessage(binary_message=model.BinaryMessage(message=text))
    client.publish_to_topic_async(topic="client-device-pruner/events", publish_message=message)

def heard(event):
    tell("heard", topic=event.binary_message.context.topic)

def configured(_event):
    tell("configured", **client.get_configuration(key_path=["greeting"]).value)

def announced(event):
    if event.pre_update_event:
        client.defer_component_update(deployment_id=event.pre_update_event.deployment_id, recheck_after_ms=0)
        tell("announced")

client.subscribe_to_topic(topic="client-device-pruner/in/#", on_stream_event=heard)
client.subscribe_to_configuration_update(on_stream_event=configured)
try:
    client.subscribe_to_component_updates(on_stream_event=announced)
except model.ServiceError:
    pass
greengrass = boto3.client("greengrassv2")
answer = greengrass.list_client_devices_associated_with_core_device(
    coreDeviceThingName=os.environ["AWS_IOT_THING_NAME"]
)
names = [device["thingName"] for device in answer["associatedClientDevices"]]
tell("started", names=names, home=os.environ["HOME"], pid=os.getpid(), version=os.environ["GGC_VERSION"])
threading.Event().wait()
"""
_MAPPING = {
    "In": {
        "topic": "$SYS/brokers/+/clients/#",
        "source": "LocalMqtt",
        "target": "Pubsub",
        "targetTopicPrefix": "client-device-pruner/in/",
    }
}
_DEPLOYED = {BRIDGE: {"merge": {"mqttTopicMapping": _MAPPING}}}
_Make = Callable[..., LocalCore]


def _of_type(kind: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["type"] == kind


@pytest.fixture
def make(tmp_path: Path) -> _Make:
    """Makes cores, deep in the file system, not yet entered."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_RECIPE)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "component.py").write_text(_COMPONENT)
    root = tmp_path / ("deep" * 20) / ("deeper" * 10)
    return lambda **options: LocalCore(root, recipe=recipe, artifact=artifact, environment=Path(sys.prefix), **options)


@pytest.fixture
async def core(make: _Make) -> AsyncIterator[LocalCore]:
    """A core, not yet deployed to."""
    async with make() as started:
        yield started


async def test_a_component_lives_on_it_as_on_a_device(core: LocalCore) -> None:
    """It is installed, lists its devices, hears a client through the bridge, and takes a new configuration."""
    core.cloud.associate("robot-1")
    await core.deploy(_DEPLOYED)
    started = await core.wait_for_event(_of_type("started"))
    assert started["names"] == ["robot-1"]
    assert (started["home"], started["pid"]) == (str(core.work_dir), core.component.pid)
    await until(lambda: core.bridge.connected)
    async with ClientDevices(lambda: core.broker.port) as devices:
        await devices.connect("robot-1")
        topic = "client-device-pruner/in/$SYS/brokers/emqx@127.0.0.1/clients/robot-1/connected"
        await core.wait_for_event(lambda event: event.get("topic") == topic)
        assert core.status()["devices"] == {"robot-1": True}
    await core.deploy({_NAME: {"merge": {"greeting": "hi"}}})
    assert (await core.wait_for_event(_of_type("configured")))["greeting"] == "hi"
    await core.wait_for_event(_of_type("announced"))
    await core.deploy({_NAME: {"reset": ["/greeting"]}})
    assert core.configuration[_NAME]["greeting"] == "hello"
    assert core.component.starts == 1
    assert json.loads(core.events_path.read_text().splitlines()[0])["type"] == "started"


async def test_a_reboot_brings_everything_back(core: LocalCore) -> None:
    """On the same port, with a new process and a new token; the work directory stays."""
    await core.deploy()
    first = await core.wait_for_event(_of_type("started"))
    (core.work_dir / "kept").write_text("")
    port = core.broker.port
    await core.reboot(off_seconds=0.1)
    again = await core.wait_for_event(lambda e: e["type"] == "started" and e["pid"] != first["pid"])
    assert again["pid"] == core.component.pid
    assert (core.broker.port, core.component.starts) == (port, 2)
    assert (core.work_dir / "kept").exists()


async def test_emqx_takes_a_new_configuration_as_aws_component_does(core: LocalCore) -> None:
    """Docker options start the broker anew, anything else its listener; the API is there when both say so."""
    async with ClientDevices(lambda: core.broker.port) as devices:
        await devices.connect("robot-1", clean=False)
        await core.deploy({EMQX: {"merge": {"emqxConfig": {"sys_topics": {}}}}})
        assert (core.broker.connections, core.broker.sessions) == ({}, {"robot-1"})
        await core.deploy({EMQX: {"merge": core.emqx_api.configuration()}})
        assert core.broker.sessions == set()
    await asyncio.to_thread(_connect, core.emqx_api.port)
    await core.deploy({EMQX: {"reset": [""]}})
    with pytest.raises(ConnectionRefusedError):
        _connect(core.emqx_api.port)


async def test_lite_is_another_core(make: _Make) -> None:
    """Texts for scalars, neither bridge nor broker, and a new start for each change of the configuration."""
    async with make(lite=True) as core:
        await core.deploy()
        first = await core.wait_for_event(_of_type("started"))
        assert first["version"] == "2.1.0"
        assert first["home"] == f"{core.work_dir}/"
        assert core.configuration[_NAME]["number"] == "7"
        assert core.configuration.keys() == {_NAME}
        assert not core.broker.connections
        await core.deploy({_NAME: {"merge": {"number": 8}}})
        await core.wait_for_event(lambda e: e["type"] == "started" and e["pid"] != first["pid"])
        assert core.component.starts == 2


async def test_other_processes_drive_a_core_by_its_control_socket(
    core: LocalCore, capsys: pytest.CaptureFixture[str]
) -> None:
    """They call its methods, and get its status or what went wrong."""
    control = await serve(core)

    async def call(*arguments: str) -> str:
        await asyncio.to_thread(main, ["--root", str(core.root), "call", *arguments])
        printed = capsys.readouterr()
        return printed.out + printed.err

    status = json.loads(await call("cloud.associate", "robot-1", "robot-2"))
    assert (status["devices"], status["component"]) == ({"robot-1": False, "robot-2": False}, "NEW")
    assert json.loads(await call("bridge.stop"))["bridgeConnected"] is False
    await call("deploy", json.dumps({_NAME: {"merge": {"greeting": "hi"}}}))
    await core.wait_for_event(_of_type("started"))
    assert core.configuration[_NAME]["greeting"] == "hi"
    assert "AttributeError" in await call("bridge.fly")
    control.close()
    core.socket_path.with_name("control.sock").unlink(missing_ok=True)
    assert "no core runs" in await call()


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port)).close()
