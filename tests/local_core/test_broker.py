"""The broker, spoken to by real MQTT clients over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from local_core.broker import Broker
from local_core.mqtt_client import MqttClient

if TYPE_CHECKING:
    from collections.abc import Callable

EVENTS = ("$SYS/brokers/+/clients/+/connected", "$SYS/brokers/+/clients/+/disconnected")


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until a condition holds, and fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


class Listener:
    """A client that keeps what it receives."""

    def __init__(self, client_id: str = "listener", **options: Any) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.client = MqttClient(client_id, **options)
        self.client.on_message = lambda topic, payload: self.messages.append((topic, payload))

    async def listen(self, broker: Broker, *filters: str) -> Listener:
        """Connect and subscribe."""
        await self.client.connect(broker.port)
        await self.client.subscribe(*filters)
        return self

    def events(self, client_id: str) -> list[dict[str, Any]]:
        """Return the presence events of a client, each with its kind under `event`."""
        return [
            {"event": topic.rsplit("/", 1)[1], **json.loads(payload)}
            for topic, payload in self.messages
            if f"/clients/{client_id}/" in topic
        ]

    def story(self, client_id: str) -> list[str]:
        """Return what happened to a client, in a word each."""
        return [event.get("reason", event["event"]) for event in self.events(client_id)]


@pytest.fixture
async def listener(broker: Broker) -> Listener:
    """Provide a client that is subscribed to the presence events."""
    return await Listener().listen(broker, *EVENTS)


async def connected(broker: Broker, client_id: str, **options: Any) -> MqttClient:
    """Return a connected client."""
    client = MqttClient(client_id, **options)
    await client.connect(broker.port)
    return client


async def raw_connect(broker: Broker, client_id: str, keepalive_seconds: int) -> asyncio.StreamWriter:
    """Return the socket of a client that was accepted and says nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    body = b"\x00\x04MQTT\x04\x02" + keepalive_seconds.to_bytes(2, "big")
    body += len(client_id).to_bytes(2, "big") + client_id.encode()
    writer.write(bytes([0x10, len(body)]) + body)
    assert (await reader.readexactly(4))[3] == 0
    return writer


async def test_a_connection_is_announced_with_emqx_fields(broker: Broker, listener: Listener) -> None:
    """A client that comes and goes properly makes two events that name the same session."""
    client = await connected(broker, "robot", keepalive_seconds=30)
    connected_at = broker.connections["robot"]
    client.disconnect()
    await until(lambda: len(listener.events("robot")) == 2)
    came, went = listener.events("robot")
    assert listener.messages[-1][0] == "$SYS/brokers/emqx@127.0.0.1/clients/robot/disconnected"
    common = {
        "clientid": "robot",
        "username": "undefined",
        "ipaddress": "127.0.0.1",
        "sockport": broker.port,
        "protocol": "mqtt",
        "proto_name": "MQTT",
        "proto_ver": 4,
        "connected_at": connected_at,
    }
    moment = time.time() * 1000
    assert abs(came.pop("ts") - moment) < 5000
    assert abs(went.pop("ts") - moment) < 5000
    assert abs(went.pop("disconnected_at") - moment) < 5000
    extra = {"keepalive": 30, "clean_start": True, "expiry_interval": 0}
    assert came == common | extra | {"event": "connected"}
    assert went == common | {"event": "disconnected", "reason": "normal"}
    assert list(broker.connections) == ["listener"]


async def test_a_socket_that_goes_without_a_word_is_tcp_closed(broker: Broker, listener: Listener) -> None:
    """A device that loses power is announced as such."""
    client = await connected(broker, "robot")
    client.drop()
    await until(lambda: listener.story("robot") == ["connected", "tcp_closed"])


async def test_a_silent_client_is_closed_after_its_keepalive(broker: Broker, listener: Listener) -> None:
    """Half an interval beyond the keep-alive the broker gives a client up."""
    writer = await raw_connect(broker, "robot", keepalive_seconds=1)
    begun = time.monotonic()
    await until(lambda: listener.story("robot") == ["connected", "keepalive_timeout"])
    assert time.monotonic() - begun > 1.3
    writer.close()


async def test_pings_keep_a_client_alive(broker: Broker, listener: Listener) -> None:
    """A client that has nothing to say stays connected."""
    client = await connected(broker, "robot", keepalive_seconds=1)
    await asyncio.sleep(2.5)
    assert client.connected
    assert listener.story("robot") == ["connected"]
    client.disconnect()


@pytest.mark.parametrize(("clean", "reason"), [(True, "discarded"), (False, "takenover")])
async def test_a_second_connection_takes_over(broker: Broker, listener: Listener, clean: bool, reason: str) -> None:
    """The older of two with one client id is closed; its end is announced late, under its own number."""
    first = await connected(broker, "robot", clean=clean)
    old = broker.connections["robot"]
    second = await connected(broker, "robot", clean=clean)
    await until(lambda: len(listener.events("robot")) == 3)
    assert listener.story("robot") == ["connected", "connected", reason]
    new = broker.connections["robot"]
    assert [event["connected_at"] for event in listener.events("robot")] == [old, new, old]
    assert new != old
    await until(lambda: not first.connected)
    assert second.connected
    assert len(broker.connections) == 2
    second.disconnect()
    await until(lambda: listener.story("robot")[3:] == ["normal"])
    assert listener.events("robot")[3]["connected_at"] == new


async def test_many_connections_of_one_client_leave_one(broker: Broker, listener: Listener) -> None:
    """However many arrive at the same moment, each is announced once, and all but one of them ended."""
    clients = [MqttClient("robot") for _ in range(20)]
    await asyncio.gather(*(client.connect(broker.port) for client in clients), return_exceptions=True)
    await until(lambda: listener.story("robot").count("discarded") == 19)
    await until(lambda: sum(client.connected for client in clients) == 1)
    events = listener.events("robot")
    opened = [event["connected_at"] for event in events if event["event"] == "connected"]
    closed = [event["connected_at"] for event in events if event["event"] == "disconnected"]
    assert len(set(opened)) == 20
    assert set(opened) - set(closed) == {broker.connections["robot"]}
    assert len(closed) == 19


async def test_the_subscriptions_of_the_one_that_takes_over_work(broker: Broker) -> None:
    """A clean takeover starts with no subscription, and its own ones work."""
    first = await Listener("robot").listen(broker, "a/+")
    second = await Listener("robot").listen(broker, "b/+")
    sender = await connected(broker, "sender")
    sender.publish("a/1", b"old")
    sender.publish("b/1", b"new")
    await until(lambda: second.messages == [("b/1", b"new")])
    assert first.messages == []


async def test_hash_does_not_match_system_topics(broker: Broker) -> None:
    """A subscription to everything receives no `$SYS` message, one that names it does."""
    everything = await Listener("everything").listen(broker, "#", "+/brokers/#")
    named = await Listener("named").listen(broker, "$SYS/#")
    broker.publish_system("$SYS/brokers/x/uptime", "5")
    (await connected(broker, "sender")).publish("end", b"")
    await until(lambda: everything.messages == [("end", b"")])
    assert ("$SYS/brokers/x/uptime", b"5") in named.messages


async def test_overlapping_filters_are_delivered_once_each(broker: Broker) -> None:
    """A client with two filters that match gets two copies, as on EMQX."""
    listener = await Listener().listen(broker, "clients/#", "clients/+/x", "clients/robot/y")
    (await connected(broker, "robot")).publish("clients/robot/x", b"1")
    await until(lambda: listener.messages == [("clients/robot/x", b"1")] * 2)


async def test_messages_arrive_in_order_at_any_quality_of_service(broker: Broker) -> None:
    """What a client publishes arrives complete and in order, even when it leaves at once."""
    listener = await Listener().listen(broker, "t/+")
    for qos in (0, 1):
        sender = await connected(broker, f"sender{qos}")
        for number in range(20):
            sender.publish(f"t/{qos}", str(number).encode(), qos=qos)
        await asyncio.sleep(0)
        if qos == 0:
            sender.disconnect()
    expected = [(f"t/{qos}", str(number).encode()) for qos in (0, 1) for number in range(20)]
    await until(lambda: sorted(listener.messages) == sorted(expected))
    assert [m for m in listener.messages if m[0] == "t/0"] == expected[:20]
    assert [m for m in listener.messages if m[0] == "t/1"] == expected[20:]


async def test_retained_messages_reach_later_subscribers_only(broker: Broker) -> None:
    """A retained message is kept until an empty one replaces it, and is no business of other clients."""
    sender = await connected(broker, "sender")
    sender.publish("a/state", b"on", qos=1, retain=True)
    await until(lambda: broker._engine is not None and broker._engine.retained_messages)
    listener = await Listener().listen(broker, "a/+")
    await until(lambda: listener.messages == [("a/state", b"on")])
    other = await Listener("other").listen(broker, "b/+")
    sender.publish("a/state", b"", qos=1, retain=True)
    sender.publish("b/1", b"x")
    await until(lambda: other.messages == [("b/1", b"x")])
    late = await Listener("late").listen(broker, "a/+", "end")
    sender.publish("end", b"")
    await until(lambda: late.messages == [("end", b"")])


async def test_a_will_is_published_only_when_the_client_goes_without_a_word(broker: Broker) -> None:
    """A DISCONNECT discards the will."""
    listener = await Listener().listen(broker, "clients/+/state")
    for name in ("polite", "broken"):
        client = await connected(broker, name, will=(f"clients/{name}/state", b"offline"))
        client.disconnect() if name == "polite" else client.drop()
    await until(lambda: listener.messages)
    assert listener.messages == [("clients/broken/state", b"offline")]


async def test_a_kept_session_gets_what_came_meanwhile(broker: Broker) -> None:
    """A client that is not clean finds its subscriptions and what was sent at QoS 1 while it was away."""
    listener = await Listener("robot", clean=False).listen(broker, "t/+")
    listener.client.disconnect()
    await until(lambda: "robot" not in broker.connections)
    sender = await connected(broker, "sender")
    sender.publish("t/1", b"kept", qos=1)
    sender.publish("t/2", b"lost", qos=0)
    await asyncio.sleep(1.2)  # amqtt sweeps sessions once a second: this one must survive it
    await listener.client.connect(broker.port)
    sender.publish("t/3", b"new", qos=1)
    await until(lambda: len(listener.messages) == 2)
    assert listener.messages == [("t/1", b"kept"), ("t/3", b"new")]


async def test_unsubscribed_topics_stay_silent(broker: Broker) -> None:
    """After an UNSUBSCRIBE nothing more arrives by that filter."""
    listener = await Listener().listen(broker, "a", "b")
    listener.client.unsubscribe("a")
    await listener.client.subscribe("c")
    sender = await connected(broker, "sender")
    for topic in ("a", "b"):
        sender.publish(topic, b"")
    await until(lambda: listener.messages == [("b", b"")])


async def test_counts_and_uptime_are_published_and_the_uptime_starts_again() -> None:
    """The census counts every connection; a restart on the same port shows in the uptime."""
    broker = Broker(count_interval_seconds=0.05, uptime_interval_seconds=0.1, node="emqx@core")
    await broker.start()
    port = broker.port
    system = ("$SYS/brokers/+/stats/live_connections/count", "$SYS/brokers/+/uptime")
    listener = await Listener().listen(broker, *system)
    client = await connected(broker, "robot")
    await until(lambda: ("$SYS/brokers/emqx@core/stats/live_connections/count", b"2") in listener.messages)
    client.drop()
    await until(lambda: listener.messages[-1][1] == b"1")

    def uptimes() -> list[int]:
        return [int(payload) for topic, payload in listener.messages if topic.endswith("/uptime")]

    await until(lambda: len(uptimes()) >= 4)
    highest = max(uptimes())
    assert highest >= 400
    await broker.stop()
    assert broker.connections == {}
    await until(lambda: not listener.client.connected)
    listener.messages.clear()
    await broker.start()
    assert broker.port == port
    await listener.listen(broker, *system)
    await until(uptimes)
    assert uptimes()[0] < highest
    await broker.stop()


async def test_a_broker_that_dies_tells_nobody(broker: Broker, listener: Listener) -> None:
    """Stopping makes no event, and one client's session numbers never repeat over restarts."""
    client = await connected(broker, "robot")
    first = broker.connections["robot"]
    await broker.stop()
    await until(lambda: not client.connected and not listener.client.connected)
    assert listener.story("robot") == ["connected"]
    await broker.start()
    await client.connect(broker.port)
    assert broker.connections["robot"] > first


async def test_without_presence_nothing_is_published() -> None:
    """As Moquette, such a broker says nothing of itself."""
    broker = Broker(presence=False, count_interval_seconds=0.01, uptime_interval_seconds=0.01)
    await broker.start()
    listener = await Listener().listen(broker, "$SYS/#", "#")
    (await connected(broker, "robot")).drop()
    sender = await connected(broker, "sender")
    await asyncio.sleep(0.1)
    sender.publish("end", b"")
    await until(lambda: listener.messages)
    assert listener.messages == [("end", b"")]
    await broker.stop()


async def test_events_can_be_suppressed_and_injected(broker: Broker, listener: Listener) -> None:
    """Tests can have devices come unannounced, and have events repeated."""
    broker.suppress_events = True
    await connected(broker, "robot")
    broker.suppress_events = False
    assert "robot" in broker.connections
    for _ in range(2):
        broker.publish_system("$SYS/brokers/x/clients/robot/connected", json.dumps({"connected_at": 1}))
    await until(lambda: [event["connected_at"] for event in listener.events("robot")] == [1, 1])


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x10\x02\x00", b"\x10\xff\xff\xff\xff\x7f"])
async def test_strangers_do_no_harm(broker: Broker, noise: bytes) -> None:
    """A socket that speaks something else is closed, and counts as no connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(noise)
    await writer.drain()
    client = await connected(broker, "robot")
    assert list(broker.connections) == ["robot"]
    writer.close()
    client.disconnect()


async def test_a_client_that_leaves_as_soon_as_it_came_is_not_left_behind(broker: Broker) -> None:
    """A socket that closes right behind its CONNECT leaves no connection."""
    for number in range(50):
        (await raw_connect(broker, f"robot{number}", 60)).close()
    await until(lambda: not broker.connections)


async def test_hundreds_of_connections_are_held(broker: Broker) -> None:
    """Three hundred clients connect, fifty at a time, and are all gone after a stop."""
    clients = [MqttClient(f"robot{number}") for number in range(300)]
    for start in range(0, 300, 50):
        await asyncio.gather(*(client.connect(broker.port) for client in clients[start : start + 50]))
    assert len(broker.connections) == 300
    await broker.stop()
    await until(lambda: not any(client.connected for client in clients))
