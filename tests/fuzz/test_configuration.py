"""Configuration documents: ours, the bridge's and EMQX's, as deployments or anybody on the core may have made them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from client_device_pruner.config.bridge import BRIDGE, EMQX, required_entries
from client_device_pruner.config.settings import DEFAULTS, parse
from fakes.component import CLIENT_LIST_ON
from fakes.core_device import QUICK
from fuzz.anything import a_core, lives_on, nearly, search, values

pytestmark = [pytest.mark.long]

OURS = {**DEFAULTS, **QUICK, "thresholds": {"slow": {"devices": ["press-*"], "offlineThreshold": "60d"}}}
OTHERS = {
    BRIDGE: {"mqttTopicMapping": required_entries(parse({})), "clientId": "bridge", "mqtt": {"version": "mqtt5"}},
    EMQX: {**CLIENT_LIST_ON, "authMode": "enabled"},
}


@search(70)
@given(documents=st.lists(st.one_of(nearly(OURS), nearly(OURS), values), min_size=1, max_size=4))
@example(documents=[None])
def test_configurations_of_our_own(documents: list[Any]) -> None:
    """One is taken over or refused whole, with the path of each problem; while one is refused, nothing goes."""
    with a_core() as core:
        assert core.ipc is not None
        good = dict(core.configuration)
        for document in documents:
            told, sent = len(core.of_type("configuration")), core.cloud.count("disassociate")
            core.ipc.configure(None, document)
            core.run(20)
            events = core.of_type("configuration")[told:]
            if "configuration" in core.guards():
                assert core.cloud.count("disassociate") == sent
                for event in events:
                    assert not event["accepted"]
                    assert event["problems"]
                    assert all(problem.partition(": ")[2] for problem in event["problems"])
        core.ipc.configure(None, good)
        core.run(600)
        assert "configuration" not in core.guards()
        lives_on(core)


@search(40)
@given(bridge=st.one_of(nearly(OTHERS[BRIDGE]), values), emqx=st.one_of(nearly(OTHERS[EMQX]), values))
def test_configurations_of_others(bridge: Any, emqx: Any) -> None:
    """Whatever the bridge or EMQX are configured to do, the component goes on, and the doctor's remedies are texts."""
    with a_core() as core:
        assert core.ipc is not None
        core.ipc.configure(BRIDGE, bridge)
        core.ipc.configure(EMQX, emqx)
        lives_on(core)
        for found in core.status()["doctor"]:
            assert found["finding"]
            assert found["remedy"]
