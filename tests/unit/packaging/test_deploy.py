"""What `deploy/` gives a fleet: the cloud's template, the deployments in two stages, the questions to the index."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode import cfn_yaml  # type: ignore[import-untyped]

from client_device_pruner import __version__
from client_device_pruner.config.bridge import BRIDGE, EMQX
from client_device_pruner.config.settings import DEFAULTS, Settings, parse
from client_device_pruner.reports.events import TYPE_PREFIX
from client_device_pruner.reports.shadow import Shadow
from fakes.documents import check_input, leaves
from fakes.state import a_status

DEPLOY = Path(__file__).parents[3] / "deploy"
COMPONENT = "community.greengrass.ClientDevicePruner"
STAGES = ("dry-run", "live")
PLACEHOLDERS = {"REGION": "eu-central-1", "ACCOUNT": "123456789012", "GROUP": "Cores"}
PLACEHOLDERS |= {"BRIDGE_VERSION": "1.2.3", "EMQX_VERSION": "1.2.3"}
EVENTS = (
    *("marked", "unmarked", "disassociated", "failed", "returned", "restored"),
    *("held", "released", "cycle", "coverage", "configuration"),
)
"""The contract's types of events."""
TEMPLATE: dict[str, Any] = cfn_yaml.load(str(DEPLOY / "template.yaml"))
RESOURCES: dict[str, Any] = {name: body["Properties"] for name, body in TEMPLATE["Resources"].items()}


def deployment(stage: str) -> dict[str, Any]:
    """Read a deployment document, with values in place of its placeholders."""
    text = (DEPLOY / f"deployment-{stage}.json").read_text("utf-8")
    for name, value in PLACEHOLDERS.items():
        text = re.sub(rf"\b{name}\b", value, text)
    document: dict[str, Any] = json.loads(text)
    return document


def merged(stage: str, component: str) -> dict[str, Any]:
    """Read what a deployment merges into a component's configuration."""
    document: dict[str, Any] = json.loads(deployment(stage)["components"][component]["configurationUpdate"]["merge"])
    return document


def settings(stage: str) -> Settings:
    """Give the settings of a core device after a deployment."""
    return parse({**DEFAULTS, **merged(stage, COMPONENT)})


def test_cfn_lint_finds_nothing() -> None:
    """The template is clean of errors and warnings in every region that CloudFormation knows."""
    lint = [sys.executable, "-c", "from cfnlint.runner import main; main()", "--regions", "ALL_REGIONS", "--"]
    done = subprocess.run([*lint, str(DEPLOY / "template.yaml")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_policy_lists_and_more_only_where_it_is_allowed() -> None:
    """By default List alone, which a dry run needs; each parameter adds one action, for the core device itself."""
    (statement,) = RESOURCES["CorePolicy"]["PolicyDocument"]["Statement"]
    nothing = {"Ref": "AWS::NoValue"}
    assert statement["Action"] == [
        "greengrass:ListClientDevicesAssociatedWithCoreDevice",
        {"Fn::If": ["MayDisassociate", "greengrass:BatchDisassociateClientDeviceFromCoreDevice", nothing]},
        {"Fn::If": ["MayAssociate", "greengrass:BatchAssociateClientDeviceWithCoreDevice", nothing]},
    ]
    assert TEMPLATE["Parameters"]["CoreDevices"]["Default"] == "${credentials-iot:ThingName}"
    for parameter in ("AllowDisassociate", "AllowAssociate"):
        assert TEMPLATE["Parameters"][parameter]["Default"] == "false"


def test_every_event_has_its_metric() -> None:
    """The rule hears what the deployments publish, counts the contract's types alone, and the dashboard shows each."""
    rule = RESOURCES["EventsToMetrics"]["TopicRulePayload"]
    found = re.fullmatch(r"SELECT type FROM '(.+)' WHERE regexp_matches\(type, '(.+)'\)", rule["Sql"])
    assert found
    (action,) = (action["CloudwatchMetric"] for action in rule["Actions"])
    assert action["MetricName"] == f"${{substring(type, {len(TYPE_PREFIX)})}}"
    for stage in STAGES:
        assert settings(stage).reports.iot_core_topic.replace("{thingName}", "+") == found[1]
    for kind in EVENTS:
        assert re.search(found[2], TYPE_PREFIX + kind)
    for odd in ("x", f"x{TYPE_PREFIX}held", f"{TYPE_PREFIX}helds"):
        assert not re.search(found[2], odd)
    widgets = json.loads(RESOURCES["Dashboard"]["DashboardBody"]["Fn::Sub"])["widgets"]
    shown = [row[1] for widget in widgets for row in widget["properties"].get("metrics", [])]
    assert sorted(shown) == sorted(EVENTS)


@pytest.mark.parametrize("stage", STAGES)
def test_deployments_are_inputs_of_the_api(stage: str) -> None:
    """`aws greengrassv2 create-deployment --cli-input-json` takes them; only what differs by fleet is a placeholder."""
    document = deployment(stage)
    check_input("greengrassv2", "CreateDeployment", document)
    assert re.fullmatch(r"arn:aws:iot:[^:]+:[0-9]+:thinggroup/.+", document["targetArn"])
    assert set(document["components"]) == {COMPONENT, BRIDGE, EMQX}
    assert document["components"][COMPONENT]["componentVersion"] == __version__
    assert not re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b", json.dumps(document["components"]))


def test_going_live_ends_the_dry_run_alone_and_more_slowly() -> None:
    """Bridge and broker see no change, and so do not restart; fewer core devices a minute, and it stops sooner."""
    first, second = (deployment(stage) for stage in STAGES)
    assert {**merged("dry-run", COMPONENT), "dryRun": False} == merged("live", COMPONENT)
    for component in (BRIDGE, EMQX):
        assert first["components"][component] == second["components"][component]
    jobs = [document["iotJobConfiguration"] for document in (first, second)]
    rates = [job["jobExecutionsRolloutConfig"]["maximumPerMinute"] for job in jobs]
    failures = [{rule["thresholdPercentage"] for rule in job["abortConfig"]["criteriaList"]} for job in jobs]
    assert rates[1] < rates[0]
    assert max(failures[1]) < min(failures[0])
    for document in (first, second):
        assert document["deploymentPolicies"]["failureHandlingPolicy"] == "ROLLBACK"


def fields() -> dict[str, Any]:
    """Give the fields that the index has of the shadow that the component writes."""
    update = Shadow().update(a_status(), 0.0)
    assert update
    return dict(leaves(json.loads(update)["state"]["reported"], "shadow.name.client-device-pruner.reported."))


def test_indexing_is_an_input_of_the_api_and_about_the_shadow() -> None:
    """`aws iot update-indexing-configuration` takes it; each custom field has the type that the component writes."""
    document = json.loads((DEPLOY / "fleet-indexing.json").read_text("utf-8"))
    check_input("iot", "UpdateIndexingConfiguration", document)
    configuration = document["thingIndexingConfiguration"]
    assert configuration["filter"]["namedShadowNames"] == [DEFAULTS["reports"]["shadowName"]]
    kinds, written = {str: "String", bool: "Boolean", int: "Number"}, fields()
    custom = {field["name"]: field["type"] for field in configuration["customFields"]}
    assert custom == {name: kinds[type(written[name])] for name in custom}
    questions = (DEPLOY / "fleet-indexing.md").read_text("utf-8")
    asked = set(re.findall(r"shadow\.name\.[\w.-]+\w", questions))
    aggregated = set(re.findall(r"--aggregation-field (\S+)", questions))
    assert len(asked) > 6
    assert asked <= set(written)
    assert aggregated <= set(custom)
