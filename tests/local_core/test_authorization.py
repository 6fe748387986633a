"""What access control grants."""

import pytest

from local_core.authorization import MQTT_PROXY, PUBSUB, is_allowed

_SUBSCRIBE = "aws.greengrass#SubscribeToTopic"


def _grant(*resources: str, operations: tuple[str, ...] = (_SUBSCRIBE,)) -> dict[str, object]:
    return {PUBSUB: {"id:1": {"operations": list(operations), "resources": list(resources)}}}


@pytest.mark.parametrize(
    ("granted", "wanted", "allowed"),
    [
        ("in/*", "in/#", True),
        ("in/*", "in/$SYS/+/x", True),
        ("in/#", "in/#", True),
        ("in/#", "in/a", False),
        ("in/+", "in/a", False),
        ("*", "anything/#", True),
        ("$aws/things/*/shadow/update", "$aws/things/core/shadow/update", True),
        ("a.b", "axb", False),
        ("in/*", "in", False),
        ("a/${*}", "a/*", True),
        ("a/${*}", "a/b", False),
    ],
)
def test_only_a_star_is_a_wildcard(granted: str, wanted: str, *, allowed: bool) -> None:
    """The text of the filter is compared; `+` and `#` mean themselves."""
    assert is_allowed(_grant(granted), PUBSUB, _SUBSCRIBE, wanted) is allowed


def test_operation_and_service_count() -> None:
    """A grant for one operation of one service is none for another; `*` is for all operations."""
    publish = "aws.greengrass#PublishToTopic"
    assert not is_allowed(_grant("*"), PUBSUB, publish, "a")
    assert is_allowed(_grant("*", operations=("*",)), PUBSUB, publish, "a")
    assert not is_allowed(_grant("*", operations=("*",)), MQTT_PROXY, publish, "a")


@pytest.mark.parametrize("access", [None, {}, [], {PUBSUB: None}, {PUBSUB: {"id": None}}, {PUBSUB: {"id": {}}}])
def test_what_is_not_granted_is_refused(access: object) -> None:
    """So is everything under an access control that makes no sense."""
    assert not is_allowed(access, PUBSUB, _SUBSCRIBE, "a")
