"""Whatever the cloud does, over real HTTP: nothing false happens, it is said once, and made up for afterwards."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from local_core.cloud import ASSOCIATE, CREDENTIALS, DISASSOCIATE, LIST, Call, Fault
from trial_site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NO_OUTAGE: dict[str, Any] = {"massLoss": {"window": "0.1s", "minDevices": 100}}
DENIED: dict[str, Any] = {"status": 403, "error": "AccessDeniedException", "times": None}
HTML = b"<html><body>Welcome to our Wi-Fi</body></html>"


async def watched_site(make_site: MakeSite, *gone: str, **settings: Any) -> Site:
    """A site whose census vouches, with a device that stays and those that are to go, all connected."""
    site = await make_site()
    site.core.cloud.associate("alive", *gone)
    await site.deploy(**{**NO_OUTAGE, **settings})
    await site.event("cycle", seconds=60)
    await site.devices.connect("alive", telemetry_seconds=0.5)
    for name in gone:
        await site.devices.connect(name, process=name)
    await site.event("cycle", seconds=60, present=1 + len(gone))
    await site.until(lambda: site.status()["sources"]["emqx"]["vouching"], 60, "the census did not match")
    return site


async def lose(site: Site, *names: str) -> None:
    """Kill these devices."""
    for name in names:
        await site.devices.kill(name)


async def attempts(site: Site, number: int) -> None:
    """Wait until so many more cycles have begun; each has a child that asks for credentials of its own."""
    until = len(site.operations(CREDENTIALS)) + number
    await site.until(lambda: len(site.operations(CREDENTIALS)) >= until, 90, "no more cycles began")


def audit(site: Site) -> list[tuple[str, str]]:
    """Name and outcome of each journalled disassociation."""
    return [(row["name"], row["outcome"]) for row in site.rows("SELECT * FROM disassociations ORDER BY id")]


def request(site: Site, kind: str, argument: Any) -> None:
    """Queue a request as the command line does."""
    with closing(sqlite3.connect(site.core.work_dir / "pruner.db", timeout=10)) as connection, connection:
        connection.execute("INSERT INTO requests (kind, argument) VALUES (?, ?)", (kind, json.dumps(argument)))


@pytest.mark.parametrize(
    ("fault", "code", "guard"),
    [
        pytest.param(Fault(LIST, None, status=429, error="SlowDown"), "SlowDown", "", id="throttled"),
        pytest.param(Fault(LIST, None, status=503, error="ServiceUnavailable"), "ServiceUnavailable", "", id="5xx"),
        pytest.param(Fault(LIST, None, drop=True), "ConnectionClosedError", "", id="reset"),
        pytest.param(Fault(LIST, None, body=b'{"associ'), "GarbageAnswer", "list", id="garbage"),
        pytest.param(Fault(LIST, None, body=HTML, content_type="text/html"), "GarbageAnswer", "list", id="portal"),
        pytest.param(Fault(LIST, None, without=("associatedClientDevices",)), "GarbageAnswer", "list", id="no key"),
        pytest.param(Fault(LIST, None, repeat_token=True), "GarbageAnswer", "list", id="token repeated"),
        pytest.param(Fault(LIST, **DENIED), "AccessDeniedException", "accessDenied", id="list denied"),
        pytest.param(
            Fault(LIST, None, status=404, error="ResourceNotFoundException"),
            "ResourceNotFoundException", "coreNotFound", id="core not found",
        ),
        pytest.param(Fault(CREDENTIALS, None, expired=True), None, "", id="credentials expired"),
        pytest.param(Fault(CREDENTIALS, None, status=404), None, "", id="credentials missing"),
        pytest.param(Fault(CREDENTIALS, None, drop=True), None, "", id="token exchange down"),
    ],
)  # fmt: skip
async def test_while_no_list_can_be_had_nothing_goes(
    make_site: MakeSite, fault: Fault, code: str | None, guard: str
) -> None:
    """One event says it, however often it repeats; the watch goes on; afterwards the cycle completes."""
    site = await watched_site(make_site, "gone")
    site.core.cloud.faults.append(fault)
    await lose(site, "gone")

    failed = await site.event("failed", seconds=60)
    before = site.clock("emqx")
    await attempts(site, 3)
    await site.until(lambda: site.clock("emqx") > before, what="the watch stood still")

    assert site.associated == {"alive", "gone"}
    assert not site.operations(DISASSOCIATE)
    assert failed["message"]
    assert code in {None, failed["code"]}
    assert len(site.of_type("failed")) == 1, site.of_type("failed")
    held = [data["guard"] for data in site.of_type("held")]
    assert [name for name in held if not name.startswith("source:")] == ([guard] if guard else [])
    site.core.cloud.faults.clear()
    await site.event("disassociated", "gone", seconds=60)
    assert site.associated == {"alive"}
    if guard:
        (said,) = [data for data in site.of_type("held") if data["guard"] == guard]
        assert said["remedy"]
        await site.event("released", guard=guard)
    site.check_events()


async def test_a_list_that_does_not_come_is_given_up_and_asked_for_again(make_site: MakeSite) -> None:
    """After three attempts that time out the cycle fails with one event, and a later one completes."""
    site = await watched_site(make_site, "gone")
    site.core.cloud.faults.append(Fault(LIST, 3, hang=True))
    await lose(site, "gone")

    failed = await site.event("failed", seconds=120)
    assert failed["code"] == "ReadTimeoutError"
    assert site.associated == {"alive", "gone"}
    assert not site.operations(DISASSOCIATE)

    await site.event("disassociated", "gone", seconds=60)
    assert len(site.of_type("failed")) == 1


async def test_a_cloud_that_cannot_be_reached_is_waited_for_longer_and_longer(make_site: MakeSite) -> None:
    """Refused connections: each delay is longer than the one before; then all goes on by itself."""
    site = await watched_site(make_site, "gone", checkInterval="20s")
    await site.core.cloud.stop()
    await lose(site, "gone")
    await site.event("failed", seconds=60)
    failures: list[float] = []

    def slower() -> bool:
        delay = site.status()["nextCheckInSeconds"]
        if delay and delay not in failures:
            failures.append(delay)
        return max(failures, default=0.0) > 2.0

    await site.until(slower, 90, "the delay did not grow")
    assert len(site.of_type("failed")) == 1
    await site.core.cloud.start()
    await site.event("disassociated", "gone", seconds=90)


async def test_a_slow_token_exchange_delays_and_harms_nothing(make_site: MakeSite) -> None:
    """Credentials that take a while are waited for."""
    site = await watched_site(make_site, "gone")
    site.core.cloud.faults.append(Fault(CREDENTIALS, None, delay_seconds=1.0))
    await lose(site, "gone")

    await site.event("disassociated", "gone", seconds=90)

    assert not site.of_type("failed")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"drop": True}, id="reset"),
        pytest.param({"hang": True}, id="time-out"),
        pytest.param({"status": 500, "error": "InternalServerException"}, id="5xx"),
        pytest.param({"body": HTML, "content_type": "text/html"}, id="portal"),
    ],
)
@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_lost_answer_is_settled_by_listing(
    make_site: MakeSite, fault: dict[str, Any], carried_out: bool
) -> None:
    """A batch whose answer is lost is asked for again only if the list still has the device."""
    site = await watched_site(make_site, "gone")
    site.core.cloud.faults.append(Fault(DISASSOCIATE, carried_out=carried_out, **fault))
    await lose(site, "gone")

    await site.event("disassociated", "gone", seconds=120)

    calls = [call.entries for call in site.operations(DISASSOCIATE)]
    await site.until(lambda: audit(site)[-1:] == [("gone", "done")])
    assert calls == [("gone",)] * (1 if carried_out else 2)
    assert audit(site) == ([] if carried_out else [("gone", "notDone")]) + [("gone", "done")]
    assert len(site.of_type("disassociated")) == 1
    assert len(site.of_type("failed")) == 1
    assert site.associated == {"alive"}


async def test_refused_entries_stay_and_say_so_once(make_site: MakeSite) -> None:
    """An entry refused with a code that nobody knows is said once; names not asked for say nothing; others go."""
    site = await watched_site(make_site, "gone-1", "gone-2")
    codes = {"gone-1": "AnUnheardOfException", "stranger": "AnotherOne"}
    site.core.cloud.faults.append(Fault(DISASSOCIATE, None, error_entries=codes))
    await lose(site, "gone-1", "gone-2")

    failed = await site.event("failed", "gone-1", seconds=60)
    await site.event("disassociated", "gone-2", seconds=60)
    await site.cycles(3, 60)

    assert failed["code"] == "AnUnheardOfException"
    assert len(site.of_type("failed")) == 1
    assert site.associated == {"alive", "gone-1"}
    (budget,) = site.rows("SELECT value FROM meta WHERE key = 'budget'")
    assert json.loads(budget["value"])["used"] == 1, "what was refused is given back"
    site.core.cloud.faults.clear()
    await site.event("disassociated", "gone-1", seconds=60)


async def test_denied_disassociation_holds_until_it_is_granted(make_site: MakeSite) -> None:
    """The guard names what to grant, does not flap with listings that work, and ends with the first that is granted."""
    site = await watched_site(make_site, "gone-1", "gone-2")
    site.core.cloud.faults.append(Fault(DISASSOCIATE, **DENIED))
    await lose(site, "gone-1", "gone-2")

    held = await site.event("held", guard="accessDenied", seconds=60)
    await attempts(site, 4)

    assert "greengrass:BatchDisassociateClientDeviceFromCoreDevice" in held["remedy"]
    assert len([d for d in site.of_type("held") if d["guard"] == "accessDenied"]) == 1
    assert not [d for d in site.of_type("released") if d["guard"] == "accessDenied"]
    assert len(site.of_type("failed")) == 1
    assert all(len(call.entries) == 1 for call in site.operations(DISASSOCIATE)[1:]), "one device tries at most"
    assert site.associated == {"alive", "gone-1", "gone-2"}
    site.core.cloud.faults.clear()
    await site.event("released", guard="accessDenied", seconds=60)
    for name in ("gone-1", "gone-2"):
        await site.event("disassociated", name, seconds=60)


async def test_an_incomplete_list_is_believed_only_when_it_lasts(make_site: MakeSite) -> None:
    """Less than half of last time is no reason to forget anybody; three cycles that say the same are."""
    site = await watched_site(make_site)
    site.core.cloud.associate(*(f"device-{number:03}" for number in range(250)))
    await site.event("cycle", seconds=60, unknown=0, absent=250)
    site.core.cloud.faults.append(Fault(LIST, 1, without=("nextToken",)))
    await site.event("held", guard="list", seconds=60)
    assert len(site.rows("SELECT name FROM devices")) == 251
    await site.event("released", guard="list", seconds=60)

    site.core.cloud.disassociate(*(f"device-{number:03}" for number in range(250)))

    await site.until(lambda: len(site.rows("SELECT name FROM devices")) == 1, 60)
    assert len([data for data in site.of_type("held") if data["guard"] == "list"]) == 2


@pytest.mark.parametrize("may_associate", [True, False])
async def test_a_device_that_connects_during_the_call_is_associated_again(
    make_site: MakeSite, may_associate: bool
) -> None:
    """A sign of life between check and confirmation restores at once; without permission that is said loudly."""
    site = await watched_site(make_site, "back")
    first = site.core.cloud.associations["back"]

    async def connect_meanwhile(call: Call) -> None:
        if call.operation == DISASSOCIATE:
            site.core.cloud.before = None
            await site.devices.connect("back", process="back-2")
            await site.until(lambda: "back" in site.core.broker.connections)
            # What the component is told takes the way over the bridge: the self-test that follows it shows it.
            await asyncio.sleep(0.5)

    site.core.cloud.before = connect_meanwhile
    if not may_associate:
        site.core.cloud.faults.append(Fault(ASSOCIATE, **DENIED))
    await lose(site, "back")

    if not may_associate:
        failed = await site.event("failed", "back", seconds=60)
        assert "greengrass:BatchAssociateClientDeviceWithCoreDevice" in failed["remedy"]
        await site.cycles(2, 60)
        assert len(site.of_type("failed")) == 1
        assert site.associated == {"alive"}
        assert len(site.of_type("disassociated", "back")) == 1, "who was not taken back is gone, and it is said"
        site.core.cloud.faults.clear()
    await site.event("restored", "back", seconds=60, requestedBy="lastMoment")

    assert site.associated == {"alive", "back"}
    assert site.core.cloud.associations["back"] != first
    await site.cycles(3, 60)
    assert site.associated == {"alive", "back"}
    site.check_events()


async def test_a_returned_device_is_associated_again_and_safe_for_its_whole_threshold(make_site: MakeSite) -> None:
    """With restoreOnReturn the first sign of life is enough; the next absence counts from the beginning."""
    site = await watched_site(make_site, "back", restoreOnReturn=True)
    await lose(site, "back")
    await site.event("disassociated", "back", seconds=60)

    await site.devices.connect("back", process="back-2")

    returned = await site.event("returned", "back", seconds=60, willRestore=True)
    assert returned["disassociatedAt"]
    await site.event("restored", "back", seconds=60, requestedBy="return")
    assert site.associated == {"alive", "back"}
    # The new association is listed and written by then; seen is what it was before, until then.
    await site.cycles(2)
    await site.until(lambda: site.rows("SELECT 1 FROM devices WHERE name = 'back' AND seen"), 60)
    await lose(site, "back-2")
    lost = asyncio.get_running_loop().time()
    await site.until(lambda: len(site.of_type("disassociated", "back")) == 2, 90)
    assert site.operations(DISASSOCIATE)[-1].when - lost >= 4.0, "threshold and notice"


async def test_a_disassociation_is_undone_by_command(make_site: MakeSite) -> None:
    """A request in the state file associates again; without restoreOnReturn a return is only said."""
    site = await watched_site(make_site, "gone", "back")
    await lose(site, "gone", "back")
    for name in ("gone", "back"):
        await site.event("disassociated", name, seconds=60)

    await site.devices.connect("back", process="back-2")
    await site.event("returned", "back", seconds=60, willRestore=False)
    assert site.associated == {"alive"}
    request(site, "restore", {"names": ["gone"]})

    await site.event("restored", "gone", seconds=60, requestedBy="command")
    await site.cycles(4, 60)
    assert site.associated == {"alive", "gone"}
    assert not site.rows("SELECT * FROM requests")


@pytest.mark.parametrize("by", ["configuration", "command"])
async def test_a_plan_waits_for_its_approval(make_site: MakeSite, by: str) -> None:
    """More than half of the devices due wait, with the plan's id, until it is approved either way."""
    names = tuple(f"gone-{number}" for number in range(4))
    limits = {"approvalPercent": 50, "maxPercentPerDay": 100}
    site = await watched_site(make_site, *names, limits=limits)
    await lose(site, *names)

    held = await site.event("held", guard="approval", seconds=60)
    await site.until(lambda: site.status()["plan"] and len(site.status()["plan"]["devices"]) == 4, 60)
    plan = site.status()["plan"]["id"]
    await site.cycles(2, 60)
    assert held["plan"]
    assert site.associated == {"alive", *names}
    if by == "command":
        request(site, "approve", plan)
    else:
        await site.deploy(**NO_OUTAGE, limits=limits, approvedPlan=plan)

    for name in names:
        await site.event("disassociated", name, seconds=60)
    await site.event("released", guard="approval", seconds=60)
    assert site.associated == {"alive"}
