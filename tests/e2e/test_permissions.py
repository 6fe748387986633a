"""Each permission of the recipe is needed: without it something fails, and the doctor has the JSON that grants it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from e2e.trial import COMPONENT, QUICK, REPOSITORY, Trial
from local_core.component import State

pytestmark = [pytest.mark.e2e]

PUBSUB, MQTT_PROXY = "aws.greengrass.ipc.pubsub", "aws.greengrass.ipc.mqttproxy"
OWN, PROBE = "client-device-pruner/*", "pruner-probe/*"
SHADOW = "$aws/things/*/shadow/name/client-device-pruner/update"
EVENTS = "client-device-pruner/core-1/events"
SHADOW_UPDATE = SHADOW.replace("*", "core-1")

Seen = Callable[[Trial], bool]


def heard_on(topic: str) -> Seen:
    """Whether AWS IoT Core heard anything on a topic."""
    return lambda trial: any(message.topic == topic for message in trial.core.iot_core)


def observes(trial: Trial) -> bool:
    """Whether observed time passes, as the latest event about it says."""
    told = [event["type"].rpartition(".")[2] for event in trial.core.events if "notObserving" in str(event["data"])]
    return told[-1:] == ["released"]


REMOVED: dict[tuple[str, str, str], tuple[str, Seen]] = {
    (PUBSUB, "pubsub:subscribe:1", OWN): ("SubscribeToTopic", observes),
    (PUBSUB, "pubsub:publish:1", OWN): ("PublishToTopic", lambda trial: bool(trial.core.events)),
    (PUBSUB, "pubsub:publish:1", PROBE): ("PublishToTopic", observes),
    (MQTT_PROXY, "mqttproxy:publish:1", OWN): ("PublishToIoTCore", heard_on(EVENTS)),
    (MQTT_PROXY, "mqttproxy:publish:1", SHADOW): ("PublishToIoTCore", heard_on(SHADOW_UPDATE)),
}
"""What each test takes away (service, policy, resource): the operation that fails, and what is not seen meanwhile."""


def policies() -> dict[str, dict[str, Any]]:
    """The recipe's policies, by service and the end of their id."""
    document = yaml.safe_load((REPOSITORY / "recipe.yaml").read_text("utf-8"))
    services = document["ComponentConfiguration"]["DefaultConfiguration"]["accessControl"]
    return {
        name: {policy_id.partition(":")[2]: policy for policy_id, policy in granted.items()}
        for name, granted in services.items()
    }


@pytest.mark.parametrize("removed", REMOVED, ids=["subscribe", "events", "probe", "events in the cloud", "shadow"])
async def test_without_a_permission_the_doctor_has_the_json_that_grants_it(
    trial: Trial, removed: tuple[str, str, str]
) -> None:
    """What fails is logged once, found by the doctor, and heals without a restart when its JSON is deployed."""
    (service, policy_id, resource), (operation, seen) = removed, REMOVED[removed]
    left = [one for one in policies()[service][policy_id]["resources"] if one != resource]
    lacking = {service: {f"{COMPONENT}:{policy_id}": {"resources": left}}}
    reports = {"iotCoreTopic": "client-device-pruner/{thingName}/events"}
    await trial.deploy(listens=False, **QUICK, reports=reports, accessControl=lacking)

    status = await trial.status(lambda status: any(operation in one["finding"] for one in status["doctor"]))
    (found,) = [one for one in status["doctor"] if operation in one["finding"]]
    assert resource in found["finding"].replace("core-1", "*")
    assert not seen(trial)
    if seen is observes:
        status = await trial.status(lambda status: any(one["guard"] == "notObserving" for one in status["guards"]))
        assert found["finding"] in status["guards"][0]["reason"]
        assert status["observing"]["since"] is None

    await trial.core.deploy({COMPONENT: {"merge": json.loads(found["remedy"])}})
    await trial.until(lambda: seen(trial), "what the permission grants")
    await trial.status(lambda status: found not in status["doctor"] and not status["guards"], "all is well")
    logged = [line["level"] for line in trial.log() if found["remedy"] in line.values()]
    assert logged == ["ERROR"]
    assert trial.core.component.state is State.RUNNING
    assert trial.core.component.starts == 1
