"""Topics and payloads on local pub/sub: anybody may publish there, and devices choose their own payloads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.greengrass.link import IN
from client_device_pruner.presence.devices import MOST_UNLISTED
from fuzz.anything import ALIVE, DEAD, a_core, as_json, lives_on, nearly, search, texts

pytestmark = [pytest.mark.long]

EVENT = {"clientid": DEAD[0], "connected_at": 1_800_000_000_001, "keepalive": 60, "reason": "normal", "connack": 0}
LEVELS = (
    "$SYS", "brokers", "emqx@127.0.0.1", "clients", "connected", "disconnected", "stats", "live_connections", "count",
    "uptime", "pruner-probe", "heartbeat", "self-test", "telemetry", *DEAD,
)  # fmt: skip
name = st.one_of(st.sampled_from(DEAD), texts)
topics = st.one_of(
    st.builds(
        "$SYS/brokers/{}/clients/{}/{}".format,
        st.sampled_from(["emqx@127.0.0.1", "", "\ud800"]),
        name,
        st.sampled_from(["connected", "disconnected", "subscribed", ""]),
    ),
    st.sampled_from(["$SYS/brokers/emqx@127.0.0.1/stats/live_connections/count", "$SYS/brokers/emqx@127.0.0.1/uptime"]),
    st.builds("clients/{}/telemetry".format, name),
    st.lists(st.one_of(st.sampled_from(LEVELS), texts), max_size=8).map("/".join),
)
payloads = st.one_of(
    as_json(nearly(EVENT)),
    st.integers(-1, 10**20).map(lambda number: str(number).encode()),
    st.sampled_from([b"", b"[" * 100_000, b"9" * 5_000, b"\xff\xfe", b"offline", b'{"clientid": "dead-1"}' * 1_000]),
)
messages = st.tuples(topics, payloads, st.sampled_from([0.0, 0.0, 1.0, 20.0, 100.0]))


@search(70)
@given(heard=st.lists(messages, min_size=3, max_size=40))
def test_messages_of_any_kind(heard: list[tuple[str, bytes, float]]) -> None:
    """Whatever is published, the component goes on and spares the living, also after it was started anew."""
    with a_core() as core:
        for topic, payload, pause in heard:
            core.hear(IN + topic, payload)
            core.run(pause)
        core.stop()
        core.start()
        lives_on(core)


@search(2)
@given(
    kinds=st.lists(st.sampled_from(["connected", "disconnected", "message"]), min_size=1, max_size=4),
    pause=st.sampled_from([0.0, 0.01]),
)
def test_names_without_end(kinds: list[str], pause: float) -> None:
    """However many names are heard, no more are kept than the bound says, and none of the associated is forgotten."""
    with a_core() as core:
        for number in range(MOST_UNLISTED + 3_000):
            kind, stranger = kinds[number % len(kinds)], f"stranger-{number}"
            if kind == "message":
                core.hear(f"{IN}clients/{stranger}/telemetry", b"1")
            else:
                event = b'{"clientid": "%s", "connected_at": %d}' % (stranger.encode(), number)
                core.hear(f"{IN}$SYS/brokers/emqx@127.0.0.1/clients/{stranger}/{kind}", event)
            core.run(pause if number % 100 == 0 else 0.0)
        lives_on(core)
        kept = {row[0] for row in core.select("SELECT name FROM devices")}
    assert len(kept) <= MOST_UNLISTED + len(ALIVE) + len(DEAD)
    assert kept >= {*ALIVE, *DEAD}
