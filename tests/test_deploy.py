"""What `deploy/` gives a fleet: the cloud's template, the deployments in two stages, the questions to the index."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.session import get_session
from botocore.validate import validate_parameters

from client_device_pruner.doctor import BRIDGE, diagnose, required_entries
from client_device_pruner.document import parse_duration
from client_device_pruner.reports import TYPE_PREFIX, Reports
from client_device_pruner.settings import DEFAULTS, EmqxSource, Settings, parse
from client_device_pruner.topics import topic_matches

PROJECT = Path(__file__).parents[1]
DEPLOY = PROJECT / "deploy"
COMPONENT = "community.greengrass.ClientDevicePruner"
EMQX = "aws.greengrass.clientdevices.mqtt.EMQX"
STAGES = ("dry-run", "live")
PLACEHOLDERS = {
    "REGION": "eu-central-1",
    "ACCOUNT": "123456789012",
    "GROUP": "Cores",
    "BRIDGE_VERSION": "1.2.3",
    "EMQX_VERSION": "1.2.3",
}
EVENTS = (
    "marked",
    "unmarked",
    "disassociated",
    "failed",
    "returned",
    "restored",
    "held",
    "released",
    "cycle",
    "coverage",
    "configuration",
)
"""The contract's types of events."""


class Template(yaml.SafeLoader):
    """Reads CloudFormation's short forms: `!Ref x` becomes `{"Ref": x}`."""


def short_form(loader: Template, name: str, node: yaml.Node) -> dict[str, Any]:
    """Read one tagged value."""
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    assert isinstance(node, yaml.SequenceNode)
    return {name: loader.construct_sequence(node, deep=True)}


Template.add_multi_constructor("!", short_form)
TEMPLATE: dict[str, Any] = yaml.load((DEPLOY / "template.yaml").read_text("utf-8"), Template)  # noqa: S506 - a safe loader
RESOURCES: dict[str, Any] = {name: body["Properties"] for name, body in TEMPLATE["Resources"].items()}
RULE: dict[str, Any] = RESOURCES["EventsToMetrics"]["TopicRulePayload"]


def deployment(stage: str) -> dict[str, Any]:
    """Read a deployment document, with values in place of its placeholders."""
    text = (DEPLOY / f"deployment-{stage}.json").read_text("utf-8")
    for name, value in PLACEHOLDERS.items():
        text = re.sub(rf"\b{name}\b", value, text)
    document: dict[str, Any] = json.loads(text)
    return document


def merge(stage: str, component: str) -> dict[str, Any]:
    """Read what a deployment merges into a component's configuration."""
    merged: dict[str, Any] = json.loads(deployment(stage)["components"][component]["configurationUpdate"]["merge"])
    return merged


def settings(stage: str) -> Settings:
    """Give the settings of a core device after a deployment, as the nucleus merges maps by key."""
    return parse({**DEFAULTS, **merge(stage, COMPONENT)})


def accepted(service: str, operation: str, document: dict[str, Any]) -> None:
    """Check a call's input against the model of the API; unknown and missing keys are refused."""
    model = get_session().get_service_model(service).operation_model(operation)
    validate_parameters(document, model.input_shape)


def reports(sent: list[tuple[str, Any]]) -> Reports:
    """Make reports whose messages to AWS IoT Core are kept."""

    def keep(topic: str, payload: bytes) -> bool:
        sent.append((topic, json.loads(payload)))
        return True

    def drop(*_: object) -> None:
        """Take no notice."""

    return Reports("core-1", wall=lambda: 0.0, publish=drop, publish_to_iot_core=keep, record=drop)


# --- The template -------------------------------------------------------------------------------------------


def test_cfn_lint_finds_nothing() -> None:
    """The template is clean of errors and warnings in every region that CloudFormation knows."""
    lint = [sys.executable, "-c", "from cfnlint.runner import main; main()", "--regions", "ALL_REGIONS", "--"]
    done = subprocess.run(
        [*lint, str(DEPLOY / "template.yaml")], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def actions(**granted: bool) -> set[str]:
    """Give the actions that the policy allows when its conditions are these."""
    (statement,) = RESOURCES["CorePolicy"]["PolicyDocument"]["Statement"]
    found = set()
    for action in statement["Action"]:
        if isinstance(action, str):
            found.add(action)
            continue
        condition, then, otherwise = action["If"]
        assert otherwise == {"Ref": "AWS::NoValue"}
        if granted[condition]:
            found.add(then)
    return found


def test_policy_grants_what_the_readme_lists() -> None:
    """With both parameters everything in the README's table; by default List alone, which a dry run needs."""
    readme = (PROJECT / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| `(greengrass:\w+)` \|", readme, re.MULTILINE)
    associate = "greengrass:BatchAssociateClientDeviceWithCoreDevice"
    disassociate = "greengrass:BatchDisassociateClientDeviceFromCoreDevice"
    list_only = {"greengrass:ListClientDevicesAssociatedWithCoreDevice"}
    assert sorted(listed) == sorted(list_only | {associate, disassociate})
    assert actions(MayDisassociate=True, MayAssociate=True) == set(listed)
    assert actions(MayDisassociate=True, MayAssociate=False) == list_only | {disassociate}
    assert actions(MayDisassociate=False, MayAssociate=True) == list_only | {associate}
    assert actions(MayDisassociate=False, MayAssociate=False) == list_only
    for condition in ("Disassociate", "Associate"):
        parameter = f"Allow{condition}"
        assert TEMPLATE["Conditions"][f"May{condition}"] == {"Equals": [{"Ref": parameter}, "true"]}
        assert TEMPLATE["Parameters"][parameter]["Default"] == "false"


@pytest.mark.parametrize("value", ["${credentials-iot:ThingName}", "core-1", "site-*", "*"])
def test_policy_is_about_the_core_itself_or_a_pattern(value: str) -> None:
    """The default is the variable that names the calling core device; a name or a pattern may stand for it."""
    parameter = TEMPLATE["Parameters"]["CoreDevices"]
    assert parameter["Default"] == "${credentials-iot:ThingName}"
    assert re.fullmatch(parameter["AllowedPattern"], value)
    (statement,) = RESOURCES["CorePolicy"]["PolicyDocument"]["Statement"]
    arn = "arn:${AWS::Partition}:greengrass:${AWS::Region}:${AWS::AccountId}:coreDevices:${CoreDevices}"
    assert statement["Resource"] == {"Sub": arn}


@pytest.mark.parametrize("value", ["", "a/b", "${aws:username}", "x${credentials-iot:ThingName}", "core 1"])
def test_policy_takes_no_other_names(value: str) -> None:
    """What could widen the ARN beyond core devices is refused before anything is made."""
    assert not re.fullmatch(TEMPLATE["Parameters"]["CoreDevices"]["AllowedPattern"], value)


def rule() -> tuple[str, re.Pattern[str]]:
    """Give the topic filter of the rule, and the pattern of the types that it counts."""
    found = re.fullmatch(r"SELECT type FROM '(.+)' WHERE regexp_matches\(type, '(.+)'\)", RULE["Sql"])
    assert found
    return found[1], re.compile(found[2])


@pytest.mark.parametrize("stage", STAGES)
def test_rule_hears_what_the_deployments_publish(stage: str) -> None:
    """Its topic is that of `reports.iotCoreTopic`, with any core device for `{thingName}`."""
    topic = settings(stage).reports.iot_core_topic
    assert topic.count("{thingName}") == 1
    assert rule()[0] == topic.replace("{thingName}", "+")


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_has_its_metric(kind: str) -> None:
    """An event that the component makes is taken by the rule; what follows the prefix is the metric's name."""
    sent: list[tuple[str, Any]] = []
    reports(sent).event(settings("live"), kind)
    ((topic, event),) = sent
    topic_filter, types = rule()
    assert topic_matches(topic_filter, topic)
    assert types.search(event["type"])
    (action,) = (action["CloudwatchMetric"] for action in RULE["Actions"])
    assert action["MetricName"] == f"${{substring(type, {len(TYPE_PREFIX)})}}"
    assert event["type"][len(TYPE_PREFIX) :] == kind
    assert [kind in row for row in dashboard_metrics()].count(True) == 1


def test_metrics_are_no_more_than_the_events() -> None:
    """Types that nobody knows make no metric, and nothing makes one for each core device: metrics cost."""
    types = rule()[1]
    strangers = ["x", "", f"x{TYPE_PREFIX}held", f"{TYPE_PREFIX}helds", f"{TYPE_PREFIX}x", "heldcycle"]
    assert not [kind for kind in strangers if types.search(kind)]
    assert sorted(row[1] for row in dashboard_metrics()) == sorted(EVENTS)
    (action,) = (action["CloudwatchMetric"] for action in RULE["Actions"])
    assert "topic(" not in json.dumps(action)
    assert (action["MetricValue"], action["MetricUnit"]) == ("1", "Count")


def test_code_publishes_no_event_without_a_metric() -> None:
    """All types that the code names are the contract's."""
    code = "".join(path.read_text("utf-8") for path in (PROJECT / "src/client_device_pruner").glob("*.py"))
    named = set(re.findall(r"event\(\s*(?:self\.settings,\s*)?\"(\w+)\"", code))
    assert {"marked", "held", "cycle"} <= named <= set(EVENTS)


def dashboard_metrics() -> list[list[str]]:
    """Give the dashboard's metrics, each its namespace and name."""
    widgets = json.loads(RESOURCES["Dashboard"]["DashboardBody"]["Sub"])["widgets"]
    return [metric for widget in widgets for metric in widget["properties"].get("metrics", [])]


def test_all_speak_of_one_namespace() -> None:
    """Rule, permission, alarms and dashboard have the namespace of the parameter."""
    namespace = {"Ref": "MetricNamespace"}
    (action,) = (action["CloudwatchMetric"] for action in RULE["Actions"])
    (policy,) = RESOURCES["MetricsRole"]["Policies"]
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert action["MetricNamespace"] == namespace
    assert statement["Action"] == "cloudwatch:PutMetricData"
    assert statement["Condition"] == {"StringEquals": {"cloudwatch:namespace": namespace}}
    assert {row[0] for row in dashboard_metrics()} == {"${MetricNamespace}"}


@pytest.mark.parametrize("kind", ["held", "failed"])
def test_alarms(kind: str) -> None:
    """An alarm begins with the events of an hour, ends when there are none, and is told to the topic if any."""
    alarm = RESOURCES[f"{kind.capitalize()}Alarm"]
    assert (alarm["MetricName"], alarm["Namespace"]) == (kind, {"Ref": "MetricNamespace"})
    assert (alarm["Statistic"], alarm["Period"], alarm["TreatMissingData"]) == ("Sum", 3600, "notBreaching")
    assert "Dimensions" not in alarm
    told = {"If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
    assert alarm["AlarmActions"] == alarm["OKActions"] == told


# --- The deployments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_deployments_are_inputs_of_the_api(stage: str) -> None:
    """`aws greengrassv2 create-deployment --cli-input-json` takes them once the placeholders are filled in."""
    document = deployment(stage)
    accepted("greengrassv2", "CreateDeployment", document)
    assert re.fullmatch(r"arn:[^:]*:iot:[^:]*:[0-9]+:thinggroup/.+", document["targetArn"])
    left = re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b", json.dumps(document["components"]))
    assert not left


@pytest.mark.parametrize("stage", STAGES)
def test_deployments_name_this_version(stage: str) -> None:
    """The component's version is the recipe's; only what differs from fleet to fleet is a placeholder."""
    recipe = yaml.safe_load((PROJECT / "recipe.yaml").read_text("utf-8"))
    components = deployment(stage)["components"]
    assert set(components) == {COMPONENT, BRIDGE, EMQX}
    assert components[COMPONENT]["componentVersion"] == recipe["ComponentVersion"]


@pytest.mark.parametrize("stage", STAGES)
def test_settings_of_a_deployment_are_accepted(stage: str) -> None:
    """The first stage rehearses, the second one works; both are settings without a problem."""
    assert settings(stage).dry_run == (stage == "dry-run")


@pytest.mark.parametrize("stage", STAGES)
def test_bridge_of_a_deployment_is_as_it_should_be(stage: str) -> None:
    """Its mapping is that of the contract, and the doctor finds nothing wrong with it."""
    below = {"source": "LocalMqtt", "target": "Pubsub", "targetTopicPrefix": "client-device-pruner/in/"}
    sent = {"source": "Pubsub", "target": "LocalMqtt", "targetTopicPrefix": "clients/"}
    bridge = merge(stage, BRIDGE)
    assert bridge == {
        "mqttTopicMapping": {
            "PrunerConnected": {"topic": "$SYS/brokers/+/clients/+/connected", **below},
            "PrunerDisconnected": {"topic": "$SYS/brokers/+/clients/+/disconnected", **below},
            "PrunerCount": {"topic": "$SYS/brokers/+/stats/live_connections/count", **below},
            "PrunerUptime": {"topic": "$SYS/brokers/+/uptime", **below},
            "PrunerMessages": {"topic": "clients/+/telemetry", **below},
            "PrunerCanary": {"topic": "pruner-canary/+", **sent},
        }
    }
    assert bridge["mqttTopicMapping"] == required_entries(settings(stage))
    assert diagnose(bridge, settings(stage)) == ()


@pytest.mark.parametrize("stage", STAGES)
def test_emqx_of_a_deployment_announces_what_the_source_needs(stage: str) -> None:
    """Its events are on, and its counts come more often than the source may be quiet."""
    system = merge(stage, EMQX)["emqxConfig"]["sys_topics"]
    (source,) = (source for source in settings(stage).sources if isinstance(source, EmqxSource))
    assert system["sys_event_messages"] == {"client_connected": True, "client_disconnected": True}
    for interval in (system["sys_msg_interval"], system["sys_heartbeat_interval"]):
        assert parse_duration(interval) * 3 <= source.max_quiet_seconds


def test_going_live_changes_dry_run_alone() -> None:
    """Bridge and broker see no change, and so no restart, between the stages."""
    rehearsal, work = (merge(stage, COMPONENT) for stage in STAGES)
    assert {**rehearsal, "dryRun": False} == work
    before, after = (deployment(stage)["components"] for stage in STAGES)
    assert before[BRIDGE] == after[BRIDGE]
    assert before[EMQX] == after[EMQX]


def test_going_live_is_slower_and_stops_sooner() -> None:
    """Fewer core devices a minute, a smaller part of failures; both roll back, and let a batch end first."""
    first, second = (deployment(stage) for stage in STAGES)
    rates = [document["iotJobConfiguration"]["jobExecutionsRolloutConfig"] for document in (first, second)]
    assert rates[1]["maximumPerMinute"] < rates[0]["maximumPerMinute"]
    limits = [
        {c["thresholdPercentage"] for c in document["iotJobConfiguration"]["abortConfig"]["criteriaList"]}
        for document in (first, second)
    ]
    assert max(limits[1]) < min(limits[0])
    for document in (first, second):
        policies = document["deploymentPolicies"]
        assert policies["failureHandlingPolicy"] == "ROLLBACK"
        assert policies["componentUpdatePolicy"]["action"] == "NOTIFY_COMPONENTS"
        assert policies["componentUpdatePolicy"]["timeoutInSeconds"] > 30  # as long as a batch may defer it


# --- The index ----------------------------------------------------------------------------------------------

QUESTIONS = (DEPLOY / "fleet-indexing.md").read_text("utf-8")
INDEXING: dict[str, Any] = json.loads((DEPLOY / "fleet-indexing.json").read_text("utf-8"))
STATUS: dict[str, Any] = {
    "coverage": {"associated": 2, "provable": 1, "reasons": ["x"]},
    "counts": dict.fromkeys(("present", "absent", "unknown", "marked", "due", "protected"), 0),
    "guards": [{"guard": "accessDenied"}],
    "sources": {"emqx": {"vouching": True}},
}


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no map, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    else:
        yield path, value


def fields() -> dict[str, Any]:
    """Give the fields that the index has of the shadow that the component writes."""
    sent: list[tuple[str, Any]] = []
    desk = reports(sent)
    desk.event(parse(DEFAULTS), "cycle", complete=True, disassociated=0)
    desk.shadow(settings("live"), STATUS)
    ((topic, document),) = sent
    name = topic.split("/")[-2]
    return dict(leaves(document["state"]["reported"], f"shadow.name.{name}.reported"))


def test_indexing_is_an_input_of_the_api() -> None:
    """`aws iot update-indexing-configuration --cli-input-json` takes it, and it names the shadow that is written."""
    accepted("iot", "UpdateIndexingConfiguration", INDEXING)
    configuration = INDEXING["thingIndexingConfiguration"]
    assert configuration["filter"]["namedShadowNames"] == [DEFAULTS["reports"]["shadowName"]]
    assert configuration["namedShadowIndexingMode"] == "ON"


def test_custom_fields_are_the_shadow_s() -> None:
    """Each has the type of the value that the component writes."""
    kinds = {str: "String", bool: "Boolean", int: "Number"}
    written = fields()
    for field in INDEXING["thingIndexingConfiguration"]["customFields"]:
        assert kinds[type(written[field["name"]])] == field["type"]


def test_questions_are_about_fields_of_the_shadow() -> None:
    """Every field that a query names is written, and what is aggregated is a custom field."""
    asked = set(re.findall(r"shadow\.name\.[\w.-]+\w", QUESTIONS))
    assert asked
    assert asked <= set(fields())
    custom = {field["name"] for field in INDEXING["thingIndexingConfiguration"]["customFields"]}
    aggregated = set(re.findall(r"--aggregation-field (\S+)", QUESTIONS))
    assert aggregated
    assert aggregated <= custom


def test_queries_are_short_enough() -> None:
    """A query has at most twelve terms (AWS IoT's documentation of the query syntax)."""
    queries = re.findall(r"--query-string '([^']+)'", QUESTIONS) + re.findall(
        r"^\| .+\? \| `(.+)` \|$", QUESTIONS, re.MULTILINE
    )
    assert len(queries) > 8
    for query in queries:
        assert len(re.split(r" (?:OR|AND)(?: NOT)? ", query)) <= 12
