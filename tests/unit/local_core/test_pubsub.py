"""The nucleus' local publish/subscribe."""

from local_core.pubsub import Message, PubSub


def test_subscribers_get_messages_in_order_until_they_unsubscribe() -> None:
    """In the order of publication, but for what is lost to order."""
    pubsub = PubSub()
    got: list[bytes] = []
    unsubscribe = pubsub.subscribe("a/+", lambda message: got.append(message.payload))
    pubsub.drops = lambda message: message.payload == b"1"
    for number in range(3):
        pubsub.publish(Message("a/b", b"%d" % number))
    pubsub.publish(Message("b", b"elsewhere"))
    unsubscribe()
    unsubscribe()
    pubsub.publish(Message("a/b", b"late"))
    assert got == [b"0", b"2"]
