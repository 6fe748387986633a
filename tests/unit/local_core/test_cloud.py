"""Named shadows, as AWS IoT keeps them; what else the cloud answers is shown by the child process's own tests."""

from __future__ import annotations

import json
from typing import Any

from local_core.cloud import Shadows
from local_core.pubsub import Message


def test_shadows_merge_what_is_reported() -> None:
    """By key and level; null removes a key, a list is replaced whole; what AWS IoT rejects changes nothing."""
    shadows = Shadows()

    def publish(reported: Any, topic: str = "$aws/things/core-1/shadow/name/status/update") -> None:
        shadows.take(Message(topic, json.dumps({"state": {"reported": reported}}).encode()))

    publish({"a": {"b": 1, "c": 2}, "list": [1, 2], "gone": 1})
    publish({"a": {"b": 3}, "list": [4], "gone": None})
    publish({"other": 1}, "$aws/things/core-1/shadow/update")
    assert not shadows.rejected
    publish([1])
    publish({"x": "y" * 8_192})
    assert shadows.reported == {("core-1", "status"): {"a": {"b": 3, "c": 2}, "list": [4]}}
    assert len(shadows.rejected) == 2
