"""Configurations are taken over while the component runs, and it says what changed and what protection ended."""

from __future__ import annotations

import pytest

from e2e.trial import COMPONENT, QUICK, Trial, failing
from local_core.cloud import DISASSOCIATE

pytestmark = [pytest.mark.e2e]


async def test_the_end_of_a_dry_run_is_said_and_begins_the_grace_period_anew(trial: Trial) -> None:
    """Case 14: a dry run does all but the call; its end is in the event and the log, takes the mark off, and counts."""
    settings = {**QUICK, "gracePeriod": "1s"}
    await trial.watch("alive", "dead", **settings, dryRun=True, protectedDevices=["dead-*"])
    await trial.devices.drop("dead")
    cycle = await trial.event("cycle", wouldDisassociate=1)
    assert (cycle["dryRun"], cycle["disassociated"], cycle["due"]) == (True, 0, 1)
    assert "A dry run only reports this." in await trial.explain("dead")
    assert not trial.batches

    await trial.core.deploy({COMPONENT: {"merge": {"dryRun": False, "protectedDevices": []}}})
    told = await trial.event("configuration", accepted=True, changed=["dryRun", "protectedDevices"])
    ended = ["dryRun ended: from now on devices are disassociated", 'protectedDevices no longer names "dead-*"']
    assert told["protectionEnded"] == ended
    lines = [line for line in trial.log() if line["message"] == "protection ended"]
    assert [(line["level"], line["what"]) for line in lines] == [("WARNING", sentence) for sentence in ended]
    await trial.event("unmarked", "dead", reason="the configuration protects less than before")
    gone = await trial.event("disassociated", "dead")
    _first, again = trial.of_type("marked", "dead")
    assert again["dueInSeconds"] == 1.0
    assert gone["silentSeconds"] >= again["silentSeconds"] + 1.0
    assert "wouldDisassociate" not in (await trial.event("cycle", disassociated=1))
    assert trial.core.component.starts == 1


async def test_protection_and_a_longer_threshold_spare_a_marked_device(trial: Trial) -> None:
    """In the next cycle, before which the deployment is read, though nobody told of it (case 28)."""
    await trial.watch("alive", "lamp-1", "lamp-2", **{**QUICK, "gracePeriod": "2s"})
    await trial.devices.drop("lamp-1", "lamp-2")
    for name in ("lamp-1", "lamp-2"):
        await trial.event("marked", name)

    trial.core.ipc.mute_configuration()
    since = len(trial.core.events)
    thresholds = {
        "short": {"devices": ["lamp-*"], "offlineThreshold": "5s"},
        "long": {"devices": ["*-2"], "offlineThreshold": "1h"},
    }
    await trial.core.deploy({COMPONENT: {"merge": {"thresholds": thresholds, "protectedDevices": ["*-1"]}}})
    assert "protectedDevices" in (await trial.event("configuration", since=since, accepted=True))["changed"]
    await trial.event("unmarked", "lamp-1", reason="it is protected")
    await trial.event("unmarked", "lamp-2", reason="its silence is now shorter than its patience")
    await trial.event("cycle", present=1, silent=1, protected=1)
    assert "protectedDevices names it" in await trial.explain("lamp-1")
    assert "silent for 1h (thresholds.long)" in await trial.explain("lamp-2")
    assert not trial.batches


async def test_a_deployment_waits_for_a_batch_in_flight(trial: Trial) -> None:
    """Announced during a call it is deferred until that has been answered."""
    await trial.watch("alive", "dead", **QUICK)
    with failing(trial, DISASSOCIATE, times=1, delay_seconds=3.0):
        await trial.devices.drop("dead")
        await trial.until(lambda: trial.batches, "the batch is sent")
        assert "dead" in trial.associated
        await trial.core.deploy({COMPONENT: {"merge": {"logLevel": "WARNING"}}})
        assert trial.associated == {"alive"}
    await trial.event("configuration", changed=["logLevel"])
    await trial.event("disassociated", "dead")
    assert trial.core.component.starts == 1
