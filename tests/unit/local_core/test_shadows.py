"""Named shadows, as AWS IoT keeps them."""

import json
from typing import Any

import pytest

from local_core.pubsub import Message
from local_core.shadows import Shadows

TOPIC = "$aws/things/core-1/shadow/name/status/update"


def update(reported: Any) -> Message:
    """What a component publishes."""
    return Message(TOPIC, json.dumps({"state": {"reported": reported}}).encode())


def test_updates_are_merged() -> None:
    """By key and level; null removes a key, a list is replaced whole."""
    shadows = Shadows()
    shadows.take(update({"a": {"b": 1, "c": 2}, "list": [1, 2], "gone": 1}))
    shadows.take(update({"a": {"b": 3}, "list": [4], "gone": None}))
    shadows.take(Message("$aws/things/core-1/shadow/update", b"not a named one"))
    assert shadows.reported == {("core-1", "status"): {"a": {"b": 3, "c": 2}, "list": [4]}}
    assert not shadows.rejected


@pytest.mark.parametrize(
    "message", [Message(TOPIC, b"{"), Message(TOPIC, b'{"reported": {}}'), update([1]), update({"x": "y" * 8_192})]
)
def test_what_aws_iot_rejects(message: Message) -> None:
    """It changes nothing, and is kept to be looked at."""
    shadows = Shadows()
    shadows.take(update({"kept": 1}))
    shadows.take(message)
    assert shadows.reported == {("core-1", "status"): {"kept": 1}}
    assert [rejected for rejected, _reason in shadows.rejected] == [message]
