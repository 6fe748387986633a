"""The recipe, as nucleus classic, Greengrass Lite and `gdk` read it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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
            assert not re.fullmatch(
                r"(?i)yes|no|on|off|y|n|~|null|[-+.\d][-+._:\d]*[.:_][-+._:\d]*", token.value
            )
