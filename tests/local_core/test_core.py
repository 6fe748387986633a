"""The whole core device, with a small component of the test's own on the real SDK."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from local_core.component import State
from local_core.control import ControlError, ControlServer, ask
from local_core.core import BRIDGE, LocalCore
from local_core.http_server import Request
from local_core.mqtt_client import MqttClient
from local_core.pubsub import Message

_SOURCES = Path(__file__).resolve().parents[2] / "src"
_NAME = "community.greengrass.ClientDevicePruner"
_RECIPE = f"""
ComponentName: {_NAME}
ComponentVersion: "0.1.0"
ComponentDependencies: {{aws.greengrass.TokenExchangeService: {{VersionRequirement: "^2.0.0"}}}}
ComponentConfiguration:
  DefaultConfiguration:
    greeting: hello
    accessControl:
      aws.greengrass.ipc.pubsub:
        "test:1":
          operations: ["*"]
          resources: ["client-device-pruner/*"]
Manifests:
  - Platform: {{os: linux, runtime: "*"}}
    Artifacts: [{{Uri: "s3://BUCKET/client-device-pruner.zip", Unarchive: ZIP}}]
    Lifecycle:
      install: "exit 1"
      run:
        Script: |
          cd {{artifacts:decompressedPath}}/client-device-pruner
          exec {{work:path}}/venv/bin/python component.py
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
    message = event.binary_message
    tell("heard", topic=message.context.topic, text=message.message.decode())

def configured(_event):
    value = client.get_configuration(key_path=["greeting"]).value
    tell("configured", **value)

def announced(event):
    if event.pre_update_event:
        client.defer_component_update(deployment_id=event.pre_update_event.deployment_id, recheck_after_ms=0)
        tell("announced")

client.subscribe_to_topic(topic="client-device-pruner/in/#", on_stream_event=heard)
client.subscribe_to_configuration_update(on_stream_event=configured)
client.subscribe_to_component_updates(on_stream_event=announced)
greengrass = boto3.client("greengrassv2")
answer = greengrass.list_client_devices_associated_with_core_device(
    coreDeviceThingName=os.environ["AWS_IOT_THING_NAME"]
)
names = [device["thingName"] for device in answer["associatedClientDevices"]]
tell("started", names=names, home=os.environ["HOME"], pid=os.getpid())
threading.Event().wait()
"""
_MAPPING = {
    "In": {
        "topic": "clients/+/x",
        "source": "LocalMqtt",
        "target": "Pubsub",
        "targetTopicPrefix": "client-device-pruner/in/",
    }
}


def _of_type(kind: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["type"] == kind


@pytest.fixture
def laid_out(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe and an artifact."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_RECIPE)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "component.py").write_text(_COMPONENT)
    return recipe, artifact


@pytest.fixture
async def core(tmp_path: Path, laid_out: tuple[Path, Path]) -> AsyncIterator[LocalCore]:
    """A core deep in the file system, not yet deployed to."""
    recipe, artifact = laid_out
    root = tmp_path / ("deep" * 20) / ("deeper" * 10)
    async with LocalCore(root, recipe=recipe, artifact=artifact, environment=Path(sys.prefix)) as started:
        yield started


async def test_a_component_lives_on_it_as_on_a_device(core: LocalCore) -> None:
    """It is deployed, lists its devices, hears a client through the bridge, and takes a new configuration."""
    core.cloud.associate("robot-1")
    await core.deploy({BRIDGE: {"merge": {"mqttTopicMapping": _MAPPING}}})
    started = await core.wait_for_event(_of_type("started"))
    assert started["names"] == ["robot-1"]
    assert started["home"] == str(core.work_dir)
    assert started["pid"] == core.component.pid

    await _until(lambda: core.bridge.connected)
    device = MqttClient("robot-1")
    await device.connect(core.broker.port)
    await _until(lambda: "robot-1" in core.broker.connections)
    heard = asyncio.create_task(core.wait_for_event(_of_type("heard")))
    while not heard.done():
        # The bridge may not have subscribed yet, and QoS 0 is not repeated.
        device.publish("clients/robot-1/x", b"alive")
        await asyncio.sleep(0.1)
    assert heard.result()["topic"] == "client-device-pruner/in/clients/robot-1/x"
    device.disconnect()

    await core.deploy({_NAME: {"merge": {"greeting": "hi"}}})
    configured = await core.wait_for_event(_of_type("configured"))
    assert configured["greeting"] == "hi"
    await core.wait_for_event(_of_type("announced"))
    await core.deploy({_NAME: {"reset": ["/greeting"]}})
    assert core.configuration[_NAME]["greeting"] == "hello"
    assert core.component.starts == 1


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


async def test_the_component_gets_a_devices_environment(core: LocalCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the nucleus gives, and the way to the cloud; a new start's token ends the old one."""
    monkeypatch.setenv("NO_PROXY", "example.com")
    monkeypatch.setenv("UNRELATED", "x")
    first, second = core._environment(), core._environment()
    assert {"HOME", "UNRELATED"}.isdisjoint(first)
    assert len(first["AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"]) < 100
    assert first["AWS_ENDPOINT_URL_GREENGRASSV2"] == core.cloud.url
    assert first["AWS_CONTAINER_CREDENTIALS_FULL_URI"] == core.cloud.credentials_url
    assert first["NO_PROXY"] == "localhost,127.0.0.1,example.com"
    assert core.ipc.component_of(first["SVCUID"]) is None
    assert core.ipc.component_of(second["SVCUID"]) == _NAME


async def test_waiting_for_an_event_in_vain_lists_what_came(core: LocalCore) -> None:
    """The error names the last events; what is no JSON is none."""
    for payload in (b'{"type": "seen"}', b"{", b"[]"):
        core.pubsub.publish(Message("client-device-pruner/events", payload))
    assert core.events == [{"type": "seen"}]
    with pytest.raises(TimeoutError, match="seen"):
        await core.wait_for_event(_of_type("other"), timeout_seconds=0.1)


async def test_lite_restarts_a_component_whose_configuration_changes(
    tmp_path: Path, laid_out: tuple[Path, Path]
) -> None:
    """And says that it is Lite by its version; its paths end with a slash."""
    recipe, artifact = laid_out
    recipe.write_text(
        _RECIPE.replace("exec {work:path}/venv/bin/python", "echo $GGC_VERSION {work:path}; exec sleep 60 #")
    )
    venv = Path(sys.prefix)
    async with LocalCore(tmp_path / "root", recipe=recipe, artifact=artifact, environment=venv, lite=True) as core:
        await core.deploy()
        await core.component.wait_for_state(State.RUNNING)
        await _until(lambda: f"2.1.0 {core.work_dir}/" in core.component.output)
        await core.deploy({_NAME: {"merge": {"greeting": "hi"}}})
        await _until(lambda: core.component.starts == 2)
        await _until(lambda: list(core.component.output).count(f"2.1.0 {core.work_dir}/") == 2)


async def test_cores_share_what_python_compiles(tmp_path: Path, laid_out: tuple[Path, Path]) -> None:
    """Each has its own path to the artifact's and the environment's files, and all of them the same bytecode."""
    recipe, artifact = laid_out
    (artifact / "src").mkdir()
    (artifact / "src/install_bytecode.py").write_text("import colours\n")
    (artifact / "src/colours.py").write_text("GREEN = 1\n")
    source = "{artifacts:decompressedPath}/client-device-pruner/src"
    settings = f'PYTHONPATH: "{source}", PYTHONPYCACHEPREFIX: "{{work:path}}/bytecode"'
    recipe.write_text(_RECIPE.replace('HOME: "{work:path}"', settings))
    found = set()
    for name in ("one", "other"):
        core = LocalCore(
            tmp_path / name,
            recipe=recipe,
            artifact=artifact,
            environment=Path(sys.prefix),
            bytecode=tmp_path / "shared",
        )
        async with core:
            await core.fill_bytecode()
        (compiled,) = (tmp_path / "shared").rglob("colours.*.pyc")
        found.add((compiled, compiled.stat().st_ino))
    assert len(found) == 1

    (artifact / "src/install_bytecode.py").write_text("raise SystemExit(1)\n")
    with pytest.raises(RuntimeError, match="could not be compiled"):
        await core.fill_bytecode()


async def test_the_control_socket_drives_a_core(core: LocalCore, tmp_path: Path) -> None:
    """Commands of the command line reach the core, and their errors come back."""
    control = ControlServer(core)
    await control.start()

    async def command(name: str, **arguments: Any) -> Any:
        return (await asyncio.to_thread(lambda: list(ask(core.root, name, **arguments))))[0]

    status = await command("associate", names=["a", "b"])
    assert (status["associations"], status["component"]) == (2, "NEW")
    assert await command("list") == [
        {"thingName": "a", "connected": False},
        {"thingName": "b", "connected": False},
    ]
    await command("disassociate", names=["a"])
    assert list(core.cloud.associations) == ["b"]
    await _until(lambda: core.bridge.connected)
    assert (await command("bridge", action="stop"))["bridgeConnected"] is False
    await command("broker", action="stop")
    await command("broker", action="start")
    await command("bridge", action="start")
    await _until(lambda: core.bridge.connected)
    await command("deploy", updates={_NAME: {"merge": {"greeting": "hi"}}})
    await core.wait_for_event(_of_type("started"))
    assert (await command("events"))["type"] == "started"
    assert (await command("component", action="stop"))["component"] == "FINISHED"
    with pytest.raises(ControlError, match="no command bridge fly"):
        await command("bridge", action="fly")
    with pytest.raises(ControlError, match="no core runs"):
        await asyncio.to_thread(lambda: list(ask(tmp_path, "status")))
    await control.stop()


async def test_events_can_be_followed(core: LocalCore) -> None:
    """Past ones first, then each as it comes, until the client hangs up."""
    control = ControlServer(core)
    await control.start()
    core.pubsub.publish(Message("client-device-pruner/events", b'{"type": "past"}'))
    following = ask(core.root, "events", follow=True)
    assert (await asyncio.to_thread(next, following))["type"] == "past"
    await _until(lambda: len(core.pubsub._subscriptions) > 1)
    core.pubsub.publish(Message("client-device-pruner/events", b'{"type": "next"}'))
    assert (await asyncio.to_thread(next, following))["type"] == "next"
    following.close()  # type: ignore[attr-defined]
    await _until(lambda: not control._clients)
    await control.stop()


async def test_the_command_line_runs_a_core(tmp_path: Path, laid_out: tuple[Path, Path]) -> None:
    """`start` says where everything is, other commands reach it, and SIGINT ends it all."""
    recipe, _ = laid_out
    root = tmp_path / "root"
    environment = {**os.environ, "PYTHONPATH": str(_SOURCES)}
    command = [sys.executable, "-m", "local_core"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("start", "--root", str(root), "--recipe", str(recipe), "--environment", sys.prefix),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        greeting = [(await asyncio.wait_for(process.stdout.readline(), 20)).decode() for _ in range(9)]
        assert "is up" in greeting[0]

        def run(*arguments: str) -> str:
            line = [*command, *arguments, "--root", str(root)]
            return subprocess.run(line, env=environment, check=True, capture_output=True, text=True).stdout

        assert json.loads(await asyncio.to_thread(run, "associate", "robot-1"))["associations"] == 1
        port = json.loads(await asyncio.to_thread(run, "status"))["mqttPort"]
        start = [*command, "start", "--recipe", str(recipe), "--mqtt-port", str(port)]
        start += ["--root", str(tmp_path / "other")]
        refused = await asyncio.to_thread(
            lambda: subprocess.run(start, env=environment, check=False, capture_output=True)
        )
        assert refused.returncode == 1
        assert b"address already in use" in refused.stderr
        listed = json.loads(await asyncio.to_thread(run, "list"))
        assert listed == [{"thingName": "robot-1", "connected": False}]
    finally:
        process.send_signal(2)
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def _until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def test_behind_a_proxy_only_the_loopback_is_reached_directly(
    tmp_path: Path, laid_out: tuple[Path, Path]
) -> None:
    """The component lists its devices through the proxy, with credentials that did not come through it."""
    recipe, artifact = laid_out
    site = LocalCore(
        tmp_path / "core", recipe=recipe, artifact=artifact, environment=Path(sys.prefix), behind_proxy=True
    )
    async with site as core:
        core.cloud.associate("robot-1")
        await core.deploy()
        assert (await core.wait_for_event(_of_type("started")))["names"] == ["robot-1"]
        request = Request("GET", "/2016-11-01/credentialprovider/", "", {}, b"", host="localhost")
        assert (await core.cloud._answer(request)).status == 502
