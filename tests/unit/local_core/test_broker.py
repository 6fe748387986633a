"""The broker, spoken to by real MQTT clients."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from fakes.waiting import until
from local_core.broker import Broker
from local_core.mqtt_client import MqttClient

EVENTS = "$SYS/brokers/+/clients/#"
COUNT = "$SYS/brokers/emqx@127.0.0.1/stats/live_connections/count"


class Listener:
    """A client that keeps what it hears."""

    def __init__(self, client_id: str = "listener", **options: Any) -> None:
        self.client = MqttClient(client_id, **options)
        self.messages: list[tuple[str, bytes]] = []
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

    def counts(self) -> list[int]:
        """Return the counts that came."""
        return [int(payload) for topic, payload in self.messages if topic == COUNT]


@pytest.fixture
async def listener(broker: Broker) -> Listener:
    """Provide a client that is subscribed to the presence events."""
    return await Listener().listen(broker, EVENTS)


async def connected(broker: Broker, client_id: str, **options: Any) -> MqttClient:
    """Return a connected client."""
    client = MqttClient(client_id, **options)
    await client.connect(broker.port)
    return client


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
    now_ms = time.time() * 1000
    assert abs(came.pop("ts") - now_ms) < 5000
    assert abs(went.pop("ts") - now_ms) < 5000
    assert abs(went.pop("disconnected_at") - now_ms) < 5000
    extra = {"keepalive": 30, "clean_start": True, "expiry_interval": 0}
    assert came == common | extra | {"event": "connected"}
    assert went == common | {"event": "disconnected", "reason": "normal"}
    assert list(broker.connections) == ["listener"]


async def test_a_client_id_with_slashes_is_announced_below_a_deeper_topic(broker: Broker, listener: Listener) -> None:
    """The payload has the whole name (case 5)."""
    await connected(broker, "tool/88741-laptop")
    await until(lambda: listener.messages)
    assert listener.messages[0][0] == "$SYS/brokers/emqx@127.0.0.1/clients/tool/88741-laptop/connected"
    assert json.loads(listener.messages[0][1])["clientid"] == "tool/88741-laptop"


async def test_a_silent_client_is_closed_after_its_keepalive(broker: Broker, listener: Listener) -> None:
    """One that pings stays; one that closes without a word is `tcp_closed`."""
    for name in ("frozen", "alive", "dropped"):
        client = await connected(broker, name, keepalive_seconds=1)
        if name == "frozen":
            client.freeze()
        elif name == "dropped":
            client.drop()
    began = time.monotonic()
    await until(lambda: listener.story("frozen") == ["connected", "keepalive_timeout"])
    assert time.monotonic() - began > 1.3, "it has half an interval more"
    assert listener.story("alive") == ["connected"]
    assert listener.story("dropped") == ["connected", "tcp_closed"]


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
    await until(lambda: not first.connected)
    assert second.connected
    second.disconnect()
    await until(lambda: listener.story("robot")[3:] == ["normal"])
    assert listener.events("robot")[3]["connected_at"] == new


async def test_many_connections_of_one_client_leave_one(broker: Broker, listener: Listener) -> None:
    """However many arrive at once, each is announced once, and all but one of them ended."""
    clients = [MqttClient("robot") for _ in range(20)]
    await asyncio.gather(*(client.connect(broker.port) for client in clients), return_exceptions=True)
    await until(lambda: listener.story("robot").count("discarded") == 19)
    await until(lambda: sum(client.connected for client in clients) == 1)
    events = listener.events("robot")
    opened = [event["connected_at"] for event in events if event["event"] == "connected"]
    closed = [event["connected_at"] for event in events if event["event"] == "disconnected"]
    assert len(set(opened)) == 20
    assert set(opened) - set(closed) == {broker.connections["robot"]}


async def test_a_persistent_session_that_is_replaced_ends_a_second_time(broker: Broker, listener: Listener) -> None:
    """Days after its connection closed, when a clean one comes (case 36); until then the session is there."""
    first = await connected(broker, "robot", clean=False)
    old = broker.connections["robot"]
    first.drop()
    await until(lambda: "robot" not in broker.connections)
    assert "robot" in broker.sessions
    await connected(broker, "robot")
    await until(lambda: len(listener.events("robot")) == 4)
    assert listener.story("robot") == ["connected", "tcp_closed", "discarded", "connected"]
    assert listener.events("robot")[2]["connected_at"] == old


async def test_a_takeover_can_be_counted_twice_for_a_while() -> None:
    """Two channels of one client id are one too many in the count (case 7)."""
    broker = Broker(count_interval_seconds=0.05)
    broker.takeover_overlap_seconds = 0.5
    await broker.start()
    listener = await Listener().listen(broker, COUNT)
    await connected(broker, "robot")
    await until(lambda: listener.counts()[-1:] == [2])
    await connected(broker, "robot")
    await until(lambda: listener.counts()[-1:] == [3])
    await until(lambda: listener.counts()[-1:] == [2])
    await broker.stop()


async def test_counts_and_events_can_be_apart() -> None:
    """A count that is old when it is published, and events that come later than the fact."""
    broker = Broker(count_interval_seconds=0.4)
    broker.count_age_seconds = 0.2
    await broker.start()
    listener = await Listener().listen(broker, COUNT, EVENTS)
    await until(lambda: listener.counts() == [1])
    await asyncio.sleep(0.25)  # sampled, and not yet published
    await connected(broker, "robot")
    await until(lambda: len(listener.counts()) == 3)
    assert listener.counts() == [1, 1, 2]
    assert listener.story("robot") == ["connected"]

    broker.count_age_seconds, broker.event_delay_seconds = 0.0, 1.0
    seen = len(listener.counts())
    await connected(broker, "late")
    await until(lambda: 3 in listener.counts()[seen:])
    assert listener.story("late") == []
    await until(lambda: listener.story("late") == ["connected"])
    await broker.stop()


async def test_a_listener_restart_cuts_everybody_and_tells_nobody() -> None:
    """The uptime goes on, and so do persistent sessions and what is retained (case 13)."""
    broker = Broker(uptime_interval_seconds=0.05)
    await broker.start()
    device = await connected(broker, "robot", clean=False, will=("clients/robot/x", b"offline"))
    device.publish("clients/robot/state", b"on", qos=1, retain=True)
    listener = await Listener().listen(broker, EVENTS, "$SYS/brokers/+/uptime", "clients/#")
    await until(lambda: len(listener.messages) > 5)
    await broker.restart_listener()
    await until(lambda: not device.connected and not listener.client.connected)
    before = listener.messages[:]
    listener.messages.clear()
    await listener.listen(broker, "$SYS/brokers/+/uptime", "clients/#")
    await until(lambda: any("uptime" in topic for topic, _ in listener.messages))
    uptimes = [int(payload) for topic, payload in before + listener.messages if topic.endswith("/uptime")]
    assert uptimes == sorted(uptimes)
    assert ("clients/robot/state", b"on") in listener.messages
    assert not [payload for topic, payload in before if topic.endswith("/disconnected") or payload == b"offline"]
    assert broker.sessions == {"robot", "listener"}
    await broker.stop()


async def test_a_storm_throws_out_a_client_for_which_too_much_waits(broker: Broker, listener: Listener) -> None:
    """What waits for it is lost; fewer messages are delivered when the storm is over (case 35)."""
    slow = await Listener("slow").listen(broker, "$SYS/brokers/+/clients/robot9/#")
    with broker.storm(most_waiting=5):
        for number in range(10):
            await connected(broker, f"robot{number}")
    await until(lambda: not listener.client.connected)
    await until(lambda: slow.story("robot9") == ["connected"])
    assert not [topic for topic, _ in listener.messages if "/robot" in topic]
    assert len(broker.connections) == 11


@pytest.mark.parametrize("announced", [False, True])
async def test_a_login_can_be_refused(broker: Broker, listener: Listener, announced: bool) -> None:
    """EMQX 4 announces it as `connected` with another `connack` (case 9)."""
    broker.refused.add("robot")
    broker.announces_refused = announced
    with pytest.raises(ConnectionRefusedError):
        await connected(broker, "robot")
    (await connected(broker, "other")).disconnect()
    await until(lambda: listener.story("other") == ["connected", "normal"])
    assert [event["connack"] for event in listener.events("robot")] == ([135] if announced else [])
    assert set(broker.connections) == {"listener"}


async def test_hash_does_not_match_system_topics(broker: Broker) -> None:
    """A subscription to everything receives no `$SYS` message, one that names it does."""
    everything = await Listener("everything").listen(broker, "#", "+/brokers/#")
    named = await Listener("named").listen(broker, "$SYS/#")
    broker.publish_system("$SYS/brokers/x/uptime", "5")
    (await connected(broker, "sender")).publish("end", b"")
    await until(lambda: everything.messages == [("end", b"")])
    assert ("$SYS/brokers/x/uptime", b"5") in named.messages


async def test_overlapping_filters_are_delivered_once_each(broker: Broker) -> None:
    """A client with two filters that match gets two copies, as on EMQX; one that is ended brings none."""
    listener = await Listener().listen(broker, "clients/#", "clients/+/x", "clients/robot/y")
    robot = await connected(broker, "robot")
    robot.publish("clients/robot/x", b"1")
    await until(lambda: listener.messages == [("clients/robot/x", b"1")] * 2)
    listener.client.unsubscribe("clients/#")
    await listener.client.subscribe("end")
    robot.publish("clients/robot/x", b"2")
    robot.publish("end", b"")
    await until(lambda: listener.messages[-1][0] == "end")
    assert listener.messages.count(("clients/robot/x", b"2")) == 1


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
    await until(lambda: len(listener.messages) == 40)
    for qos in (0, 1):
        mine = [payload for topic, payload in listener.messages if topic == f"t/{qos}"]
        assert mine == [str(number).encode() for number in range(20)]


async def test_retained_messages_come_again_with_each_subscription(broker: Broker) -> None:
    """Until an empty one replaces them; a will is published when a client goes without a word (cases 10, 11)."""
    polite = await connected(broker, "polite", will=("clients/polite/state", b"offline"))
    polite.publish("clients/polite/state", b"on", qos=1, retain=True)
    broken = await connected(broker, "broken", will=("clients/broken/state", b"offline"))
    listener = Listener()
    await until(lambda: "broken" in broker.connections)
    for _ in range(2):
        listener.messages.clear()
        await listener.listen(broker, "clients/#")
        await until(lambda: listener.messages == [("clients/polite/state", b"on")])
    polite.publish("clients/polite/state", b"", qos=1, retain=True)
    polite.disconnect()
    broken.drop()
    await until(lambda: listener.messages[1:] == [("clients/polite/state", b""), ("clients/broken/state", b"offline")])
    late = await Listener("late").listen(broker, "clients/#", "end")
    (await connected(broker, "sender")).publish("end", b"")
    await until(lambda: late.messages == [("end", b"")])


async def test_a_broker_that_dies_tells_nobody_and_starts_anew() -> None:
    """On the same port; its uptime begins again, and session numbers never repeat."""
    broker = Broker(count_interval_seconds=0.05, uptime_interval_seconds=0.1)
    await broker.start()
    listener = await Listener().listen(broker, EVENTS, "$SYS/brokers/+/uptime")
    robot = await connected(broker, "robot")
    first, port = broker.connections["robot"], broker.port

    def uptimes() -> list[int]:
        return [int(payload) for topic, payload in listener.messages if topic.endswith("/uptime")]

    await until(lambda: len(uptimes()) >= 4)
    highest = max(uptimes())
    await broker.stop()
    await until(lambda: not robot.connected and not listener.client.connected)
    assert broker.connections == {}
    assert listener.story("robot") == ["connected"]
    listener.messages.clear()
    await broker.start()
    assert broker.port == port
    await listener.listen(broker, "$SYS/brokers/+/uptime")
    await robot.connect(broker.port)
    assert broker.connections["robot"] > first
    await until(uptimes)
    assert uptimes()[0] < highest
    await broker.stop()


async def test_without_presence_nothing_is_published() -> None:
    """As Moquette, such a broker says nothing of itself."""
    broker = Broker(presence=False, count_interval_seconds=0.01, uptime_interval_seconds=0.01)
    await broker.start()
    listener = await Listener().listen(broker, "$SYS/#", "#")
    (await connected(broker, "robot")).drop()
    sender = await connected(broker, "sender")
    await asyncio.sleep(0.1)
    sender.publish("end", b"")
    await until(lambda: listener.messages == [("end", b"")])
    await broker.stop()


async def test_events_can_be_suppressed_and_made_up(broker: Broker, listener: Listener) -> None:
    """Devices come unannounced, and events are repeated."""
    broker.suppress_events = True
    await connected(broker, "robot")
    broker.suppress_events = False
    for _ in range(2):
        broker.announce("robot", "disconnected", connected_at=1, reason="normal")
    await until(lambda: listener.story("robot") == ["normal", "normal"])
    assert listener.events("robot")[0]["connected_at"] == 1


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x10\x02\x00", b"\x10\xff\xff\xff\xff\x7f"])
async def test_noise_does_no_harm(broker: Broker, noise: bytes) -> None:
    """A socket that speaks something else is closed, and counts as no connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(noise)
    await writer.drain()
    await connected(broker, "robot")
    assert list(broker.connections) == ["robot"]
    writer.close()
