"""Undo: by the command, by itself when a device returns, and when it returns in the last moment."""

from __future__ import annotations

import asyncio

import pytest

from e2e.trial import QUICK, Trial, failing
from local_core.cloud import ASSOCIATE, DISASSOCIATE, Call

pytestmark = [pytest.mark.e2e]


async def test_the_command_restores_by_name_by_cycle_and_all(trial: Trial) -> None:
    """The running component does it within 60 s, a stopped one when it runs again; a dry run restores as well."""
    lost = ("lamp-1", "lamp-2", "lamp-3", "lamp-4")
    limits = {"maxPerCycle": 2, "approvalPercent": 100, "maxPercentPerDay": 100}
    await trial.watch("alive", *lost, **QUICK, limits=limits)
    await trial.devices.drop(*lost)
    cycles = {(await trial.event("disassociated", name))["cycleId"]: name for name in lost}
    # From here on nothing goes again.
    await trial.deploy(**QUICK, limits=limits, dryRun=True)
    await trial.event("configuration", changed=["dryRun"])

    code, _output, errors = await trial.pruner("restore", "alive")
    assert code == 1
    assert "alive cannot be restored" in errors
    by_name, by_cycle = next(iter(cycles.values())), list(cycles)[-1]
    asked = await trial.value("restore", by_name, by_name)
    assert asked == {"queued": True, "names": [by_name], "running": True}
    assert (await trial.event("restored", by_name))["requestedBy"] == "command"

    of_cycle = (await trial.value("restore", "--cycle", by_cycle))["names"]
    for name in of_cycle:
        await trial.event("restored", name)
    assert trial.associated == {"alive", by_name, *of_cycle}

    await trial.core.stop_component()
    code, output, _errors = await trial.pruner("restore", "--all")
    assert code == 0
    assert "The component does not run: it does this after its next start." in output
    assert trial.associated != {"alive", *lost}
    trial.core.start_component()
    await trial.until(lambda: trial.associated == {"alive", *lost}, "the rest is restored")


async def test_devices_that_return_are_restored(trial: Trial) -> None:
    """One while the call is under way: associated again once the role may, which is said until then; one later on."""
    await trial.watch("alive", "late", "later", **QUICK)
    first = trial.core.cloud.associations["late"]
    heard = asyncio.Event()
    trial.core.pubsub.subscribe("client-device-pruner/in/$SYS/brokers/+/clients/late/connected", lambda _: heard.set())

    async def connect_meanwhile(call: Call) -> None:
        if call.operation == DISASSOCIATE:
            trial.core.cloud.before = None
            await trial.devices.connect("late")
            await heard.wait()

    trial.core.cloud.before = connect_meanwhile
    with failing(trial, ASSOCIATE, status=403, error="AccessDeniedException"):
        await trial.devices.drop("late", "later")
        failed = await trial.event("failed", "late")
        assert "greengrass:BatchAssociateClientDeviceWithCoreDevice" in failed["remedy"]
        await trial.event("disassociated", "late")
        await trial.cycles(2)
        assert len(trial.of_type("failed")) == 1
    assert (await trial.event("restored", "late"))["requestedBy"] == "lastMoment"
    assert trial.associated == {"alive", "late"}
    assert trial.core.cloud.associations["late"] != first

    await trial.devices.connect("later")
    returned = await trial.event("returned", "later")
    assert returned["willRestore"]
    assert returned["disassociatedAt"]
    assert (await trial.event("restored", "later"))["requestedBy"] == "return"
    assert trial.associated == {"alive", "late", "later"}
    await trial.known(3)
    assert [set(batch) for batch in trial.batches] == [{"late", "later"}]
