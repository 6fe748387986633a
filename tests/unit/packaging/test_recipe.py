"""The recipe, as nucleus classic, Greengrass Lite and `gdk` read it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PATH = Path(__file__).parents[3] / "recipe.yaml"
NAME = "community.greengrass.ClientDevicePruner"
RECIPE: dict[str, Any] = yaml.safe_load(PATH.read_text("utf-8"))
CONFIGURATION: dict[str, Any] = RECIPE["ComponentConfiguration"]["DefaultConfiguration"]
ACCESS: dict[str, Any] = CONFIGURATION["accessControl"]
(MANIFEST,) = RECIPE["Manifests"]
LIFECYCLE: dict[str, Any] = MANIFEST["Lifecycle"]
STRIPPED = re.compile(r"PYTHON(PATH|HOME|INSPECT|USERBASE)|LD_\w+|(BASH_)?ENV")
"""Variables that sudo takes from the environment, whatever `-E` says."""


def test_fits_the_service() -> None:
    """Format and size are what the service accepts; one manifest serves every Linux, on nucleus classic and Lite."""
    assert RECIPE["RecipeFormatVersion"] == "2020-01-25"
    assert PATH.stat().st_size < 16_000
    assert MANIFEST["Platform"] == {"os": "linux", "runtime": "*"}


def test_access_control_is_the_contract_s() -> None:
    """No more is granted than is used, and what was released stays as it is, beside new ones with ids of their own.

    A nucleus keeps what it has of a policy when it upgrades: a changed one would reach no core that has it.
    """
    pubsub, proxy = "aws.greengrass.ipc.pubsub", "aws.greengrass.ipc.mqttproxy"
    shadow = "$aws/things/*/shadow/name/client-device-pruner/update"
    granted = {
        policy: (service, rule["operations"], rule["resources"])
        for service, policies in ACCESS.items()
        for policy, rule in policies.items()
    }
    assert granted == {
        f"{NAME}:pubsub:subscribe:1": (pubsub, ["aws.greengrass#SubscribeToTopic"], ["client-device-pruner/*"]),
        f"{NAME}:pubsub:publish:1": (
            pubsub,
            ["aws.greengrass#PublishToTopic"],
            ["client-device-pruner/*", "pruner-probe/*"],
        ),
        f"{NAME}:mqttproxy:publish:1": (
            proxy,
            ["aws.greengrass#PublishToIoTCore"],
            ["client-device-pruner/*", shadow],
        ),
    }


def test_dependencies() -> None:
    """Credentials are needed; nothing is that some core devices cannot have."""
    dependencies = {name: entry["DependencyType"] for name, entry in RECIPE["ComponentDependencies"].items()}
    assert dependencies == {"aws.greengrass.Nucleus": "SOFT", "aws.greengrass.TokenExchangeService": "HARD"}


def test_lifecycle() -> None:
    """Phases are lower-case and without privilege; installing has a time-out, running none."""
    assert set(LIFECYCLE) == {"install", "run"}
    assert LIFECYCLE["install"]["Timeout"] == 900
    assert LIFECYCLE["run"]["Script"] == 'exec "{work:path}/pruner"'
    assert LIFECYCLE["install"]["Script"].split() == [
        "sh",
        '"{artifacts:decompressedPath}/client-device-pruner/src/install.sh"',
        '"{artifacts:decompressedPath}/client-device-pruner"',
        '"{work:path}"',
    ]


@pytest.mark.parametrize("phase", ["install", "run"])
def test_phases_run_under_sudo_on_any_nucleus(phase: str) -> None:
    """No variable that sudo strips (case 32), nor a value that Lite cannot export; no brace but a recipe variable's."""
    assert set(LIFECYCLE[phase]) <= {"Script", "Timeout", "Setenv"}
    for name, value in LIFECYCLE[phase].get("Setenv", {}).items():
        assert not STRIPPED.fullmatch(name)
        assert re.fullmatch(r"[^\s\"'`$;&|]+", value)
    script = LIFECYCLE[phase]["Script"]
    assert "$" not in script
    for variable in ("{artifacts:decompressedPath}", "{work:path}"):
        script = script.replace(variable, "/somewhere")
    assert not set("{}") & set(script)
    subprocess.run(["sh", "-n", "-c", script], check=True)


def test_scalars_read_alike_everywhere() -> None:
    """YAML 1.1 and 1.2 agree on every scalar: texts that look like something else are quoted."""
    for token in yaml.scan(PATH.read_text("utf-8")):
        if isinstance(token, yaml.ScalarToken) and token.plain:
            assert not re.fullmatch(r"(?i)yes|no|on|off|y|n|~|null|[-+.\d][-+._:\d]*[.:_][-+._:\d]*", token.value)
