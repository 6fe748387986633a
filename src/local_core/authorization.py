"""What a component's ``accessControl`` allows it to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PUBSUB = "aws.greengrass.ipc.pubsub"
MQTT_PROXY = "aws.greengrass.ipc.mqttproxy"

_RESOURCE_PART = re.compile(r"\$\{(?P<escaped>[*?$])\}|(?P<any>\*)|(?P<literal>.)", re.DOTALL)


def is_allowed(access_control: object, service: str, operation: str, resource: str) -> bool:
    """Tell whether an access control grants an operation on a resource; what is not granted is refused.

    Args:
        access_control: ``{service: {policy id: {"operations": [...], "resources": [...]}}}``.
        service: `PUBSUB` or `MQTT_PROXY`.
        operation: ``aws.greengrass#SubscribeToTopic``, for instance.
        resource: The topic, or the filter as it was written: ``+`` and ``#`` match only themselves.

    Returns:
        True if any policy lists both; ``*`` stands for every operation, and in a resource for any text.
    """
    policies = access_control.get(service) if isinstance(access_control, Mapping) else None
    if not isinstance(policies, Mapping):
        return False
    return any(
        (operation in operations or "*" in operations)
        and any(_matches(str(pattern), resource) for pattern in _list(policy, "resources"))
        for policy in policies.values()
        for operations in [_list(policy, "operations")]
    )


def _list(policy: object, key: str) -> list[Any]:
    listed = policy.get(key) if isinstance(policy, Mapping) else None
    return listed if isinstance(listed, list) else []


def _matches(pattern: str, resource: str) -> bool:
    expression = "".join(
        ".*" if part["any"] else re.escape(part["escaped"] or part["literal"])
        for part in _RESOURCE_PART.finditer(pattern)
    )
    return re.fullmatch(expression, resource, re.DOTALL) is not None
