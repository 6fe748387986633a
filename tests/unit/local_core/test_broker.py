"""The broker, spoken to by real MQTT clients."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakes.mqtt import COUNT, EVENTS, Listener
from fakes.waiting import until
from local_core.broker import Broker
from local_core.mqtt_client import MqttClient


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
    """One that comes and goes makes two events that name the same session; its id may have a slash (case 5)."""
    client_id = "tool/88741-laptop"
    client = await connected(broker, client_id, keepalive_seconds=30)
    connected_at = broker.connections[client_id]
    client.disconnect()
    await until(lambda: len(listener.events(client_id)) == 2)
    came, went = listener.events(client_id)
    assert listener.messages[-1][0] == "$SYS/brokers/emqx@127.0.0.1/clients/tool/88741-laptop/disconnected"
    assert came["clientid"] == went["clientid"] == client_id
    both = {"clientid", "username", "ipaddress", "sockport", "protocol", "proto_name"} | {
        "proto_ver",
        "connected_at",
        "ts",
    }
    assert came.keys() == both | {"event", "keepalive", "clean_start", "expiry_interval"}
    assert went.keys() == both | {"event", "reason", "disconnected_at"}
    assert (came["keepalive"], came["connected_at"]) == (30, connected_at)
    assert (went["reason"], went["connected_at"]) == ("normal", connected_at)


async def test_a_client_that_misses_its_keepalive_is_given_up(broker: Broker, listener: Listener) -> None:
    """Its socket stays open, so only its silence tells."""
    (await connected(broker, "robot", keepalive_seconds=1)).freeze()
    await until(lambda: listener.story("robot") == ["connected", "keepalive_timeout"])


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
