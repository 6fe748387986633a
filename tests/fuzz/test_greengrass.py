"""What Greengrass delivers: messages, which anybody on the core may publish, and configurations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from client_device_pruner.config.bridge import BRIDGE, EMQX, required_entries
from client_device_pruner.config.settings import DEFAULTS, parse
from client_device_pruner.greengrass.link import IN
from client_device_pruner.presence.devices import MOST_UNLISTED
from fakes.component import CLIENT_LIST_ON
from fakes.core_device import QUICK
from fuzz.anything import ALIVE, DEAD, a_core, as_json, lives_on, nearly, search, texts, values

OURS = {**DEFAULTS, **QUICK, "thresholds": {"slow": {"devices": ["press-*"], "offlineThreshold": "60d"}}}
OF_BRIDGE = {"mqttTopicMapping": required_entries(parse({})), "clientId": "bridge"}
SYS = "$SYS/brokers/emqx@127.0.0.1"
EVENT = {"clientid": DEAD[0], "connected_at": 1_800_000_000_001, "keepalive": 60, "reason": "normal", "connack": 0}
LEVELS = ("$SYS", "brokers", "clients", "connected", "stats", "uptime", "pruner-probe", "heartbeat", "self-test", *DEAD)
KINDS = (f"{SYS}/clients/{{}}/connected", f"{SYS}/clients/{{}}/disconnected", "clients/{}/telemetry")
topics = st.one_of(
    st.builds(str.format, st.sampled_from(KINDS), st.one_of(st.sampled_from(DEAD), texts)),
    st.sampled_from([f"{SYS}/stats/live_connections/count", f"{SYS}/uptime", "pruner-probe/heartbeat"]),
    st.lists(st.one_of(st.sampled_from(LEVELS), texts), max_size=8).map("/".join),
)
payloads = st.one_of(
    as_json(EVENT),
    st.integers(-1, 10**20).map(lambda number: str(number).encode()),
    st.sampled_from([b"", b"[" * 100_000, b"9" * 5_000, b"\xff\xfe", b"offline", b'{"clientid": "dead-1"}' * 1_000]),
)


@search(50)
@given(st.lists(st.tuples(topics, payloads, st.sampled_from([0.0, 0.0, 1.0, 20.0, 100.0])), min_size=3, max_size=40))
def test_messages_of_any_kind(heard: list[tuple[str, bytes, float]]) -> None:
    """Whatever is published, the component goes on and spares the living, also after it was started anew."""
    with a_core() as core:
        for topic, payload, pause in heard:
            core.hear(IN + topic, payload)
            core.run(pause)
        core.stop()
        core.start()
        lives_on(core)


@pytest.mark.long
@pytest.mark.parametrize("kinds", [KINDS, KINDS[:1]], ids=["any", "connected"])
def test_names_without_end(kinds: tuple[str, ...]) -> None:
    """However many names are heard, no more are kept than the bound says, and all associated ones are."""
    with a_core() as core:
        for number in range(MOST_UNLISTED + 3_000):
            stranger = f"stranger-{number}"
            core.hear(IN + kinds[number % len(kinds)].format(stranger), b'{"clientid": "%s"}' % stranger.encode())
            core.run(0.01 if number % 100 == 0 else 0.0)
        lives_on(core)
        kept = {row[0] for row in core.select("SELECT name FROM devices")}
    assert {*ALIVE, *DEAD} <= kept
    assert len(kept) <= MOST_UNLISTED + len(ALIVE) + len(DEAD)


@search(50)
@example(documents=[None])
@given(documents=st.lists(st.one_of(nearly(OURS), nearly(OURS), values), min_size=1, max_size=4))
def test_configurations_of_our_own(documents: list[Any]) -> None:
    """One is taken over, or refused with the path of each problem; while one is refused, nothing goes."""
    with a_core() as core:
        assert core.ipc is not None
        good = dict(core.configuration)
        for document in documents:
            told, sent = len(core.of_type("configuration")), core.cloud.count("disassociate")
            core.ipc.configure(None, document)
            core.run(20)
            if "configuration" in core.guards():
                assert core.cloud.count("disassociate") == sent
                for event in core.of_type("configuration")[told:]:
                    assert not event["accepted"]
                    assert all(": " in problem for problem in event["problems"] or [""])
        core.ipc.configure(None, good)
        core.run(600)
        assert "configuration" not in core.guards()
        lives_on(core)


@search(30)
@given(bridge=st.one_of(nearly(OF_BRIDGE), values), emqx=st.one_of(nearly(CLIENT_LIST_ON), values))
def test_configurations_of_others(bridge: Any, emqx: Any) -> None:
    """Whatever the bridge or EMQX are configured to do, the component goes on, and the doctor has remedies."""
    with a_core() as core:
        assert core.ipc is not None
        core.ipc.configure(BRIDGE, bridge)
        core.ipc.configure(EMQX, emqx)
        lives_on(core)
        assert all(found["finding"] and found["remedy"] for found in core.status()["doctor"])
