"""The nucleus' local publish/subscribe."""

import pytest

from local_core.pubsub import Message, PubSub, topic_matches


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("in/#", "in/$SYS/x", True),
    ],
)
def test_filters_match_as_mqtt_says(topic_filter: str, topic: str, *, matches: bool) -> None:
    """`+` is one level, `#` the rest with its parent, and neither opens `$` topics."""
    assert topic_matches(topic_filter, topic) is matches


def test_subscribers_get_messages_in_order_until_they_unsubscribe() -> None:
    """Delivery is in the order of publication, and ends with the subscription, also in the middle of a delivery."""
    pubsub = PubSub()
    got: list[bytes] = []
    unsubscribe = pubsub.subscribe("a/+", lambda message: got.append(message.payload))
    for number in range(3):
        pubsub.publish(Message("a/b", b"%d" % number))
    pubsub.publish(Message("b", b"elsewhere"))
    unsubscribe()
    unsubscribe()
    pubsub.publish(Message("a/b", b"late"))
    assert got == [b"0", b"1", b"2"]


def test_a_failing_subscriber_spares_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Its exception is logged, with its filter."""
    pubsub = PubSub()
    got: list[Message] = []

    def fail(_message: Message) -> None:
        raise RuntimeError("no")

    pubsub.subscribe("a/#", fail)
    pubsub.subscribe("a", got.append)
    pubsub.publish(Message("a", b"", "me"))
    assert got == [Message("a", b"", "me")]
    assert "a/#" in caplog.text


def test_messages_can_be_lost() -> None:
    """What the predicate says is delivered to nobody."""
    pubsub = PubSub()
    got: list[str] = []
    pubsub.subscribe("#", lambda message: got.append(message.topic))
    pubsub.drops = lambda message: message.topic.startswith("pruner-probe/")
    for topic in ("pruner-probe/1", "other"):
        pubsub.publish(Message(topic, b""))
    assert got == ["other"]
