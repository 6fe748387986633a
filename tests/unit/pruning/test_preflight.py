"""The check before a batch: the broker is asked by name, then a probe goes its way and back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from client_device_pruner.config.bridge import EMQX
from client_device_pruner.config.emqx import Access
from client_device_pruner.greengrass.link import IN
from fakes.component import CLIENT_LIST_ON
from fakes.core_device import CoreDevice, KnownDevices


def about_to_be_checked(known: KnownDevices) -> CoreDevice:
    """A core device with the client list on, of whose devices one is marked."""
    core = known("gone", "alive")
    assert core.ipc is not None
    core.ipc.configure(EMQX, CLIENT_LIST_ON)
    core.run(600)
    core.disconnect("gone")
    core.run_until(lambda: core.of_type("marked"), 7_200)
    return core


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("list fails", "404"),
        ("list is silent", "the client list did not answer in time"),
        ("list is open", "the client list, which is in use, cannot be asked"),
        ("bridge", "the probe did not come back"),
        ("flood", "messages may have been lost"),
    ],
)
def test_what_is_not_known_holds(known: KnownDevices, fault: str, told: str) -> None:
    """It is told as what failed, brings the next cycle no sooner, and goes when there is nothing to check."""
    core = about_to_be_checked(known)
    lists, ipc = core.lists, core.ipc
    assert lists is not None
    assert ipc is not None
    ask = lists.ask

    def refuse(access: Access, names: Sequence[str], request: int) -> None:
        failure, lists.failure = lists.failure, "404"
        ask(access, names, request)
        lists.failure = failure

    def ask_and_flood(access: Access, names: Sequence[str], request: int) -> None:
        carry = ipc.to_broker

        def late(topic: str, payload: bytes) -> None:
            for _message in range(20_001):
                core.hear(f"{IN}flood", b"")
            core.world.after(1, lambda: carry(topic, payload))

        ipc.to_broker = late
        ask(access, names, request)

    if fault == "list fails":
        lists.ask = refuse  # type: ignore[method-assign]
    elif fault == "list is silent":
        lists.ask = lambda *_: None  # type: ignore[method-assign]
    elif fault == "list is open":
        core.world.after(560, lambda: ipc.configure(EMQX, CLIENT_LIST_ON | {"dockerOptions": "-p 18083:18083"}))
    elif fault == "bridge":
        core.world.after(560, lambda: core.broker.lose_bridge(float("inf")))
    else:
        lists.ask = ask_and_flood  # type: ignore[method-assign]
    core.run_until(lambda: (core.status()["lastCycle"]["failed"] or {}).get("code") == "Preflight", 2_400)

    assert not core.cloud.carried
    assert told in core.status()["lastCycle"]["failed"]["message"]
    assert "notObserving" in core.of_type("cycle")[-1]["held"]
    assert core.of_type("cycle")[-1]["nextCheckInSeconds"] == 600

    lists.ask = ask  # type: ignore[method-assign]
    ipc.configure(EMQX, CLIENT_LIST_ON)
    core.broker.lose_bridge()
    core.run(5)
    core.connect("gone")
    core.run(1_300)
    assert core.status()["lastCycle"]["failed"] is None


def test_an_answer_to_an_earlier_check_is_dropped(known: KnownDevices) -> None:
    """It says nothing of now."""
    core = about_to_be_checked(known)
    lists = core.lists
    assert lists is not None
    ask, calls = lists.ask, list[tuple[Access, Sequence[str], int]]()
    lists.ask = lambda *call: calls.append(call)  # type: ignore[method-assign]
    core.run_until(lambda: len(calls) == 2, 2_400)
    ask(*calls[0])
    core.run(10)
    assert not core.cloud.carried
    ask(*calls[1])
    core.run(10)
    assert core.cloud.carried
