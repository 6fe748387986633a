"""The broker's client list over HTTP: what it shows, what is not believed, and what happens when it stays away."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from e2e.trial import COMPONENT, Trial
from local_core.core import EMQX
from local_core.emqx_api import CLIENT, CLIENTS, EMPTY_PAGE, LOGIN, EmqxApi
from local_core.http_server import Fault

pytestmark = [pytest.mark.e2e]

PASSWORD = "correct-horse-battery"
PRESENCE: dict[str, Any] = {"probeInterval": "1s", "clientList": {"interval": "1s"}}


async def test_a_list_that_is_refused_empty_or_stays_away(trial: Trial) -> None:
    """Case 37: one new login. Nothing empty is believed, nothing is observed meanwhile, and what to do is said."""
    await watch(trial, "dead", "silent")
    api = trial.core.emqx_api
    assert api.calls.count("POST /api/v5/login") == 1
    api.refuse_tokens()
    await trial.until(lambda: api.calls.count("POST /api/v5/login") == 2, "a new login")
    since = len(api.calls)
    await trial.until(lambda: len(api.calls) >= since + 3, "lists with the new token")
    assert api.calls.count("POST /api/v5/login") == 2
    told = (await trial.status())["observing"]["inputs"]["clientList"]
    assert told.items() >= {"inUse": True, "alive": True, "reason": ""}.items()
    assert not [held for held in trial.of_type("held") if "clientList" in held["reason"]]

    # An internal failure of EMQX: nobody is on it, the bridge neither.
    api.faults.append(Fault(operation=CLIENTS, times=None, body=EMPTY_PAGE))
    held = await trial.event("held", guard="notObserving")
    before = (await trial.status())["observedSeconds"]
    await trial.cycles(2)
    assert "names no client on page 1" in held["reason"]
    assert (await trial.status())["observedSeconds"] == before
    api.faults.clear()
    await trial.event("released", guard="notObserving")

    since = len(trial.core.events)
    await api.stop()
    held = await trial.event("held", since=since, guard="notObserving")
    status = await trial.status(lambda status: not status["observing"]["inputs"]["clientList"]["alive"], "not alive")
    assert "did not answer" in held["reason"]
    assert 'set presence.clientList.url to ""' in held["remedy"]
    assert status["observing"]["inputs"]["clientList"]["inUse"]
    assert not trial.of_type("marked")
    await trial.devices.drop("dead")
    await trial.core.deploy({COMPONENT: {"merge": {"presence": {"clientList": {"url": ""}}}}})
    await trial.event("released", since=since, guard="notObserving")
    assert (await trial.event("disassociated", "dead"))["evidence"] == "connectionCount"
    assert trial.associated == {"silent"}


async def test_one_that_is_back_after_the_last_list(trial: Trial) -> None:
    """Before a batch the broker is asked: no answer, no batch; one that is back unannounced is named, and stays."""
    await watch(trial, "back", "silent")
    await trial.devices.drop("back")
    faults, calls = trial.core.emqx_api.faults, trial.core.emqx_api.calls
    # The first question fails; the second leaves time for it to come back.
    faults += [Fault(operation=CLIENT, status=500), Fault(operation=CLIENT, delay_seconds=4.0)]

    await trial.until(lambda: calls.count("GET /api/v5/clients/back") == 2, "the second question")
    assert ["notObserving"] in [cycle["held"] for cycle in trial.of_type("cycle")]
    faults.append(Fault(operation=CLIENTS, times=None, status=503))
    trial.core.broker.suppress_events = True
    await trial.devices.connect("back")
    await trial.event("unmarked", "back")

    await trial.cycles(1)
    assert trial.batches == []
    assert trial.associated == {"back", "silent"}


async def test_the_api_moves_and_emqx_is_replaced(trial: Trial) -> None:
    """A new address is found by itself; where Moquette is instead of EMQX, pruning holds, and says how to go on."""
    await watch(trial, "silent")
    api, elsewhere = trial.core.emqx_api, EmqxApi(trial.core.broker)
    options = api.configuration()["dockerOptions"].replace(str(api.port), str(elsewhere.port))
    await trial.core.deploy({EMQX: {"merge": {"dockerOptions": options}}})
    since = len(api.calls)
    await trial.until(lambda: len(api.calls) >= since + 4, "lists at the new address")
    await trial.observes(1.0)

    del trial.core.configuration[EMQX]
    trial.core.broker.presence = False
    await trial.core.reboot()
    status = await trial.status(lambda status: status["guards"], "a guard")
    assert [held["guard"] for held in status["guards"]] == ["notObserving"]
    listing, events = (status["observing"]["inputs"][name] for name in ("clientList", "connectionEvents"))
    assert listing.items() >= {"inUse": True, "alive": False, "reason": "EMQX is not deployed"}.items()
    assert 'set presence.clientList.url to ""' in listing["remedy"]
    assert "set presence.connectionEvents to false" in events["remedy"]
    assert not status["doctor"]
    gone = {"clientList": {"url": ""}, "connectionEvents": False}
    await trial.core.deploy({COMPONENT: {"merge": {"presence": gone}}})
    await trial.observes(1.0)
    assert trial.associated == {"silent"}


@pytest.mark.parametrize("by_file", [False, True], ids=["configuration", "file"])
async def test_a_login_that_is_refused(trial: Trial, tmp_path: Path, *, by_file: bool) -> None:
    """It is told with EMQX's code, and tried no more often than each interval; the password stands nowhere."""
    client_list: dict[str, Any] = {"interval": "2s"}
    if by_file:
        credentials = tmp_path / "credentials"
        credentials.touch(mode=0o600)
        credentials.write_text(f"pruner:{PASSWORD}\n")
        client_list |= {"url": trial.core.emqx_api.url, "credentialsFile": str(credentials)}
    configuration = trial.core.emqx_api.configuration(password="another" if by_file else PASSWORD)
    trial.core.emqx_api.faults.append(
        Fault(operation=LOGIN, times=None, status=401, error="BAD_USERNAME_OR_PWD", message="Auth failed")
    )
    await trial.core.deploy({EMQX: {"merge": configuration}})
    await trial.deploy(presence={"probeInterval": "1s", "clientList": client_list}, logLevel="DEBUG")

    status = await trial.status(lambda status: status["observing"]["inputs"]["clientList"]["reason"], "a reason")

    assert "401 BAD_USERNAME_OR_PWD" in status["observing"]["inputs"]["clientList"]["reason"]
    assert not status["observing"]["inputs"]["clientList"]["inUse"]
    began, logins = time.monotonic(), trial.core.emqx_api.calls.count("POST /api/v5/login")
    await trial.observes(5.0)
    tried = trial.core.emqx_api.calls.count("POST /api/v5/login") - logins
    assert 1 <= tried <= (time.monotonic() - began) / 2.0 + 1
    for text in everything_said(trial, status):
        assert PASSWORD not in text


async def watch(trial: Trial, *names: str) -> None:
    """Devices that are connected, on a core where the client list is in use."""
    await trial.core.deploy({EMQX: {"merge": trial.core.emqx_api.configuration()}})
    await trial.watch(*names, presence=PRESENCE)
    await trial.status(lambda status: status["observing"]["inputs"]["clientList"]["inUse"], "the list in use")


def everything_said(trial: Trial, status: dict[str, Any]) -> list[str]:
    """Log, events, what went to IoT Core, status, state file, and each process that can be seen."""
    said = [*trial.core.component.output, *map(json.dumps, [*trial.core.events, status])]
    said += [message.payload.decode() for message in trial.core.iot_core]
    said += [path.read_bytes().decode("latin-1") for path in trial.core.work_dir.glob("pruner.db*")]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another's
            said += [(process / name).read_bytes().decode("latin-1") for name in ("cmdline", "environ")]
    return said
