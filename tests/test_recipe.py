"""The recipe, as nucleus classic, Greengrass Lite and `gdk` read it."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from client_device_pruner.connection import Connection
from client_device_pruner.ipc import Ipc
from client_device_pruner.reports import Reports
from client_device_pruner.settings import parse
from client_device_pruner.source_settings import ActivitySource
from client_device_pruner.sources import Canary
from local_core.authorization import MQTT_PROXY, PUBSUB, is_allowed

PATH = Path(__file__).parents[1] / "recipe.yaml"
NAME = "community.greengrass.ClientDevicePruner"
RECIPE: dict[str, Any] = yaml.safe_load(PATH.read_text("utf-8"))
DEFAULTS: dict[str, Any] = RECIPE["ComponentConfiguration"]["DefaultConfiguration"]
(MANIFEST,) = RECIPE["Manifests"]
LIFECYCLE: dict[str, Any] = MANIFEST["Lifecycle"]
VARIABLES = {"{artifacts:decompressedPath}": "/unpacked", "{work:path}": "/work"}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is no map, and every empty map, with its path."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    else:
        yield path, value


def test_fits_the_service() -> None:
    """Format, name and size are what the service accepts."""
    assert RECIPE["RecipeFormatVersion"] == "2020-01-25"
    assert RECIPE["ComponentName"] == NAME
    assert re.fullmatch(r"\d+\.\d+\.\d+", RECIPE["ComponentVersion"])
    assert len(PATH.read_bytes()) < 16_000


def test_defaults_are_the_contract_s() -> None:
    """Every key of the configuration has its default, nested as it is in a deployment."""
    configuration = {key: value for key, value in DEFAULTS.items() if key != "accessControl"}
    assert configuration == {
        "offlineThreshold": "30d",
        "noticePeriod": "1d",
        "checkInterval": "6h",
        "dryRun": False,
        "inboundPrefix": "client-device-pruner/in/",
        "sources": {
            "emqx": {
                "type": "emqx",
                "enabled": True,
                "connectedTopic": "$SYS/brokers/+/clients/+/connected",
                "disconnectedTopic": "$SYS/brokers/+/clients/+/disconnected",
                "countTopic": "$SYS/brokers/+/stats/live_connections/count",
                "uptimeTopic": "$SYS/brokers/+/uptime",
                "maxQuiet": "3m",
                "bridgeClientId": "mqtt-bridge-*",
            },
            "messages": {
                "type": "activity",
                "enabled": True,
                "topic": "clients/+/#",
                "maxQuiet": "1h",
                "canaryTopic": "pruner-canary/telemetry",
                "payloadField": "",
                "ignoredValues": [],
            },
        },
        "rollCall": {"url": "", "keyFile": "", "interval": "15m"},
        "thresholds": {},
        "protectedClients": [],
        "neverSeenThreshold": "",
        "limits": {"maxPerCycle": 100, "maxPercentPerDay": 10, "approvalPercent": 50},
        "approvedPlan": "",
        "massLoss": {"window": "10m", "minDevices": 3, "minPercent": 30},
        "restoreOnReturn": False,
        "reports": {
            "localTopic": "client-device-pruner/events",
            "iotCoreTopic": "",
            "shadowName": "client-device-pruner",
        },
        "allowShortDurations": False,
        "logLevel": "INFO",
    }


def test_access_control() -> None:
    """No more is granted than is used, under ids that never change."""
    granted = {
        (service, policy): (rule["operations"], rule["resources"])
        for service, policies in DEFAULTS["accessControl"].items()
        for policy, rule in policies.items()
    }
    pubsub, proxy = "aws.greengrass.ipc.pubsub", "aws.greengrass.ipc.mqttproxy"
    assert granted == {
        (pubsub, f"{NAME}:pubsub:subscribe:1"): (
            ["aws.greengrass#SubscribeToTopic"],
            ["client-device-pruner/*"],
        ),
        (pubsub, f"{NAME}:pubsub:publish:1"): (
            ["aws.greengrass#PublishToTopic"],
            ["client-device-pruner/*", "pruner-canary/*"],
        ),
        (proxy, f"{NAME}:mqttproxy:publish:1"): (
            ["aws.greengrass#PublishToIoTCore"],
            ["client-device-pruner/*", "$aws/things/*/shadow/name/client-device-pruner/update"],
        ),
    }


RELEASED_POLICIES: dict[str, tuple[str, list[str], list[str]]] = {}
"""The policies of released versions: id → service, operations, resources. A release adds its own, and none ever leaves.

None was released before 0.1.0.
"""


def test_released_policies_are_unchanged() -> None:
    """A nucleus keeps what it has of a policy when it upgrades: a changed one would reach no core that has it."""
    now = {
        policy: (service, rule["operations"], rule["resources"])
        for service, policies in DEFAULTS["accessControl"].items()
        for policy, rule in policies.items()
    }
    assert {policy: now.get(policy) for policy in RELEASED_POLICIES} == RELEASED_POLICIES


class Listener:
    """The edge to Greengrass; keeps the operation and the topic of each call."""

    def __init__(self) -> None:
        self.calls: set[tuple[str, str, str]] = set()

    def subscribe(self, topic: str) -> None:
        """Subscribe."""
        self.calls.add((PUBSUB, "aws.greengrass#SubscribeToTopic", topic))

    def publish(self, topic: str, _payload: bytes) -> None:
        """Publish on local pub/sub."""
        self.calls.add((PUBSUB, "aws.greengrass#PublishToTopic", topic))

    def publish_to_iot_core(self, topic: str, _payload: bytes) -> bool:
        """Publish to AWS IoT Core."""
        self.calls.add((MQTT_PROXY, "aws.greengrass#PublishToIoTCore", topic))
        return True

    def __getattr__(self, _name: str) -> Callable[..., None]:
        """Take every other call, which needs no permission."""
        return lambda *_args, **_more: None


def calls_of(**reports: str) -> set[tuple[str, str, str]]:
    """What the component's own code asks of Greengrass with the recipe's configuration and these reports."""
    document = {key: value for key, value in DEFAULTS.items() if key != "accessControl"}
    settings = parse({**document, "reports": {**document["reports"], **reports}})
    edge = Listener()
    connection = Connection(lambda: None, lambda _reason: None)
    connection.use(settings, 0.0)
    connection.connected(cast(Ipc, edge), 0.0)
    canaries = [Canary(source.canary_topic, 60.0) for source in settings.sources if isinstance(source, ActivitySource)]
    connection.send_canaries(canaries, 0.0, now=True)
    said = Reports(
        "core-1",
        wall=lambda: 0.0,
        publish=connection.publish,
        publish_to_iot_core=connection.publish_to_iot_core,
        record=lambda *_row: None,
    )
    said.event(settings, "cycle")
    coverage: dict[str, Any] = {"associated": 0, "provable": 0, "reasons": {}}
    said.shadow(settings, {"coverage": coverage, "counts": {}, "guards": [], "sources": {}})
    return edge.calls


def test_permissions_are_what_the_code_uses() -> None:
    """Each call of the component is granted as a core decides it, and no grant is without its call."""
    calls = calls_of(iotCoreTopic="client-device-pruner/{thingName}/events")
    assert {operation for _, operation, _ in calls} == {
        operation
        for policies in DEFAULTS["accessControl"].values()
        for rule in policies.values()
        for operation in rule["operations"]
    }
    for call in calls:
        assert is_allowed(DEFAULTS["accessControl"], *call), call
    for service, policies in DEFAULTS["accessControl"].items():
        for rule in policies.values():
            for resource in rule["resources"]:
                alone = {service: {"alone": {**rule, "resources": [resource]}}}
                assert any(is_allowed(alone, *call) for call in calls), resource


def test_keys_survive_a_nucleus() -> None:
    """No key folds into another, and none starts with what a nucleus drops."""

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert len({key.casefold() for key in value}) == len(value)
            assert not any(key.startswith("_") for key in value)
            for inner in value.values():
                check(inner)

    check(DEFAULTS)


def test_dependencies() -> None:
    """Credentials are needed; nothing is that some core devices cannot have."""
    dependencies = {name: entry["DependencyType"] for name, entry in RECIPE["ComponentDependencies"].items()}
    assert dependencies == {"aws.greengrass.Nucleus": "SOFT", "aws.greengrass.TokenExchangeService": "HARD"}


def test_platform_and_artifact() -> None:
    """One manifest serves every Linux, on nucleus classic and Lite."""
    assert MANIFEST["Platform"] == {"os": "linux", "runtime": "*"}
    (artifact,) = MANIFEST["Artifacts"]
    assert artifact["Uri"].endswith("/client-device-pruner.zip")
    assert artifact["Unarchive"] == "ZIP"


def test_lifecycle() -> None:
    """Phases are lower-case, without privilege; installing has a time-out, running none."""
    assert set(LIFECYCLE) == {"install", "run"}
    assert LIFECYCLE["install"]["Timeout"] == 900
    assert set(LIFECYCLE["install"]) == {"Script", "Timeout"}
    assert set(LIFECYCLE["run"]) == {"Script", "Setenv"}


def test_environment_is_text_that_lite_can_export() -> None:
    """Lite writes the values into `export` as they are: they are strings without blanks or quotes."""
    assert LIFECYCLE["run"]["Setenv"] == {
        "PYTHONPATH": "{artifacts:decompressedPath}/client-device-pruner/src",
        "PYTHONUNBUFFERED": "1",
        "PYTHONOPTIMIZE": "2",
        "PYTHONPYCACHEPREFIX": "{work:path}/bytecode",
        "MALLOC_TRIM_THRESHOLD_": "131072",
    }
    for _, value in leaves(LIFECYCLE["run"]["Setenv"]):
        assert re.fullmatch(r"[^\s\"'`$;&|]+", value)


@pytest.mark.parametrize("phase", ["install", "run"])
def test_scripts(phase: str) -> None:
    """Scripts hold no brace but a variable's, and are plain `sh` once those are replaced."""
    script = LIFECYCLE[phase]["Script"]
    for variable, value in VARIABLES.items():
        script = script.replace(variable, value)
    assert not set("{}") & set(script)
    subprocess.run(["sh", "-n", "-c", script], check=True)  # noqa: S607 - whatever sh there is


def test_run_replaces_its_shell() -> None:
    """Signals reach Python, and the install script gets the artifact and the work directory."""
    assert LIFECYCLE["run"]["Script"] == (
        'exec "{work:path}/venv/bin/python" -m client_device_pruner --work-dir "{work:path}"'
    )
    assert LIFECYCLE["install"]["Script"].split() == [
        "sh",
        '"{artifacts:decompressedPath}/client-device-pruner/src/install.sh"',
        '"{artifacts:decompressedPath}/client-device-pruner"',
        '"{work:path}"',
    ]


def test_scalars_read_alike_everywhere() -> None:
    """YAML 1.1 and 1.2 agree on every scalar: texts that look like something else are quoted."""
    for token in yaml.scan(PATH.read_text("utf-8")):
        if isinstance(token, yaml.ScalarToken) and token.plain:
            assert not re.fullmatch(r"(?i)yes|no|on|off|y|n|~|null|[-+.\d][-+._:\d]*[.:_][-+._:\d]*", token.value)
