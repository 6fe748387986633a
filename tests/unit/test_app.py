"""The component as a whole, in virtual time, at its public edges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.greengrass.ipc import Disconnected
from client_device_pruner.greengrass.link import IN
from fakes.component import Component, World

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
QUICK = {
    "offlineThreshold": "1d",
    "gracePeriod": "1h",
    "checkInterval": "1h",
    "presence": {"probeInterval": "10m"},
    "limits": {"maxPercentPerDay": 100, "approvalPercent": 100},
    "massLoss": {"minDevices": 1000},
}


class Site(Component):
    """A core on a broker that tells nothing about connections, where devices publish each hour while they live."""

    def __init__(self, work_dir: Path, configuration: dict[str, Any] | None = None, devices: int = 3) -> None:
        super().__init__(World(), work_dir, QUICK if configuration is None else configuration)
        self.alive = {f"pump-{number}" for number in range(devices)}
        self.cloud.associate(*self.alive)
        self.interval = HOUR
        self.world.after(1.0, self._speak)

    def _speak(self) -> None:
        for name in sorted(self.alive):
            self.hear(f"{IN}clients/{name}/telemetry", b"21.5")
        self.world.after(self.interval, self._speak)

    def living(self, seconds: float) -> Site:
        """Start, and let time pass."""
        self.start()
        self.world.run(seconds)
        return self

    def status(self) -> dict[str, Any]:
        """The committed status."""
        status: dict[str, Any] = self.kept("status")
        return status

    def guards(self) -> dict[str, str]:
        """The guards in force, with their reasons."""
        return {guard["guard"]: guard["reason"] for guard in self.status()["guards"]}


def _dying(tmp_path: Path, configuration: dict[str, Any] | None = None) -> Site:
    """A site on which pump-0 died after two days."""
    site = Site(tmp_path, configuration).living(2 * DAY)
    site.alive.discard("pump-0")
    return site


def _marked(tmp_path: Path, configuration: dict[str, Any] | None = None) -> Site:
    """A site on which pump-0 died and has just been marked."""
    site = _dying(tmp_path, configuration)
    while not site.happened("marked"):
        site.world.run(MINUTE)
    return site


def test_a_mark_goes_within_a_second_of_a_sighting(tmp_path: Path) -> None:
    """It need not wait for a cycle, or for a probe; it is written at once, so that a kill does not lose it."""
    site = _marked(tmp_path)
    site.hear(f"{IN}clients/pump-0/telemetry", b"21.5")
    site.world.run(1)
    assert site.happened("unmarked", "pump-0")[0].data["reason"] == "it was sighted"
    site.world.run(100)
    site.kill()
    site.start()
    site.world.run(20 * HOUR)
    assert not site.cloud.batches()


def test_what_has_arrived_is_taken_before_an_orderly_end(tmp_path: Path) -> None:
    """A message that waits when the component is stopped is a sighting, and takes the mark off."""
    site = _marked(tmp_path)
    site.hear(f"{IN}clients/pump-0/telemetry", b"21.5")
    site.stop()
    assert site.happened("unmarked", "pump-0")
    (row,) = site.rows("SELECT seen_by, marked_at FROM devices WHERE name = 'pump-0'")
    assert tuple(row) == ("message", None)


def test_silence_without_observed_time_makes_nobody_gone(tmp_path: Path) -> None:
    """The bridge is broken for 10 days: no time passes, nothing is marked; guard, status and timeline say so."""
    site = Site(tmp_path).living(2 * DAY)
    assert site.ipc is not None
    observed = site.status()["observing"]["seconds"]
    site.ipc.carries_probe = False
    alive, site.alive = site.alive, set()
    site.world.run(10 * DAY)
    assert not site.happened("marked")
    assert site.status()["observing"]["seconds"] - observed < HOUR
    (held,) = [event for event in site.happened("held") if event.data["guard"] == "notObserving"]
    assert "does not come back from the broker" in site.guards()["notObserving"]
    assert held.data["remedy"]
    assert site.running
    site.alive = alive
    site.ipc.carries_probe = True
    site.world.run(DAY)
    assert [event.data["guard"] for event in site.happened("released")] == ["notObserving"]
    states = [row["state"] for row in site.rows("SELECT state FROM timeline WHERE name IS NULL ORDER BY id")]
    assert states == ["started", "observing", "notObserving", "observing"]
    assert not site.happened("marked")


@pytest.mark.parametrize(("fault", "minutes"), [("probe", 10), ("subscription", 2)])
def test_what_works_now_and_then_is_not_observed(tmp_path: Path, fault: str, minutes: int) -> None:
    """Every second probe is lost, or the subscription dies once renewed: that is said, and none goes (case 29)."""
    site = Site(tmp_path, devices=2).living(2 * DAY)
    observed = site.status()["observing"]["seconds"]
    if fault == "probe":
        site.alive.clear()

    def fail() -> None:
        if site.ipc is not None and fault == "probe":
            site.ipc.carries_probe = not site.ipc.carries_probe
        elif site.ipc is not None:
            site.ipc.drop()
        site.world.after(minutes * MINUTE, fail)

    site.world.after(5 * MINUTE, fail)
    site.world.run(5 * DAY)
    assert site.status()["observing"]["seconds"] - observed < HOUR
    assert "notObserving" in site.guards()
    assert not site.happened("marked")
    assert not site.cloud.batches()


def test_a_daemon_that_is_gone_is_said_in_the_status(tmp_path: Path) -> None:
    """After two exits in an hour the process stays, tries on, and says since when there is no connection (case 24)."""
    site = Site(tmp_path).living(2 * HOUR)
    site.refuse_connection = "the token is void"
    assert site.ipc is not None
    site.ipc.tell(Disconnected("gone"))
    site.world.run(50 * MINUTE)
    assert len(site.exits) == 2
    assert site.running
    assert "no connection to Greengrass" in site.guards()["notObserving"]
    assert site.status()["observing"]["since"] is None
    site.refuse_connection = ""
    site.world.run(HOUR)
    assert "notObserving" not in site.guards()


def test_a_refused_configuration_holds_pruning(tmp_path: Path) -> None:
    """The last good one stays in force for watching; all problems are told; a corrected one goes on."""
    site = _dying(tmp_path)
    site.configure({"offlineThreshold": "never", "checkIntervall": "1h"})
    site.world.run(3 * DAY)
    refused = site.happened("configuration")[-1].data
    assert refused["accepted"] is False
    mistakes = ["checkIntervall", "offlineThreshold"]
    assert sorted(problem.partition(":")[0] for problem in refused["problems"]) == mistakes
    assert all(path in site.guards()["configuration"] for path in mistakes)
    assert site.happened("held")[-1].data["remedy"].startswith("correct it with a deployment")
    assert site.happened("marked")
    assert not site.cloud.batches()
    site.configure({"offlineThreshold": "1d", "checkIntervall": None})
    site.world.run(HOUR)
    assert "configuration" in site.guards()
    del site.configuration["checkIntervall"]
    site.configure({})
    site.world.run(3 * HOUR)
    assert site.happened("released")[-1].data["guard"] == "configuration"
    assert site.cloud.batches() == [("pump-0",)]


def test_a_first_configuration_that_is_refused_leaves_the_defaults_in_force(tmp_path: Path) -> None:
    """They watch, and nothing goes."""
    site = Site(tmp_path, {"colour": "red"}).living(HOUR)
    assert list(site.guards()) == ["configuration"]
    assert site.status()["coverage"]["associated"] == 3


@pytest.mark.parametrize("restarts", [False, True])
def test_a_deployment_that_loses_protection_begins_every_grace_period_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, restarts: bool
) -> None:
    """The `configuration` event names what ended (case 14); Greengrass Lite starts the component anew for it."""
    site = _marked(tmp_path, {**QUICK, "gracePeriod": "12h", "dryRun": True, "protectedDevices": ["gate-*"]})
    site.world.run(10 * HOUR)
    if restarts:
        site.stop()
    site.configure({"dryRun": False, "protectedDevices": []})
    site.start()
    site.world.run(4 * HOUR)
    changed = site.happened("configuration")[-1].data
    assert set(changed["changed"]) == {"dryRun", "protectedDevices"}
    ended = ["dryRun ended: from now on devices are disassociated", 'protectedDevices no longer names "gate-*"']
    assert changed["protectionEnded"] == ended
    said = [record for record in caplog.records if record.message == "protection ended"]
    assert [(one.levelname, one.fields["what"]) for one in said] == [("WARNING", sentence) for sentence in ended]  # type: ignore[attr-defined]
    assert site.happened("unmarked")[0].data["reason"] == "the configuration protects less than before"
    assert not site.cloud.batches()
    site.world.run(12 * HOUR)
    assert site.cloud.batches() == [("pump-0",)]


def test_another_configuration_is_explained_at_once(tmp_path: Path) -> None:
    """What `explain` says of a device follows the settings within seconds."""
    site = _dying(tmp_path, {**QUICK, "gracePeriod": "12h"})
    while not site.happened("marked"):
        site.world.run(HOUR)
    site.configure({"dryRun": True})
    site.world.run(5)
    ((verdict,),) = site.rows("SELECT verdict FROM verdicts WHERE name = 'pump-0'")
    assert "A dry run only reports this." in verdict


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protectedDevices": ["*-0"]}, "it is protected"),
        (
            {"thresholds": {"a": {"devices": ["pump-*"], "offlineThreshold": "2d"}}},
            "its silence is now shorter than its patience",
        ),
    ],
)
def test_a_configuration_that_protects_more_takes_a_mark_off(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    """In the next cycle."""
    site = _marked(tmp_path)
    site.configure(change)
    site.world.run(2 * HOUR)
    assert [event.data["reason"] for event in site.happened("unmarked")] == [reason]
    assert not site.cloud.batches()


def test_the_state_survives_a_kill(tmp_path: Path) -> None:
    """Killed each five hours, the component loses minutes, not days."""
    site = _dying(tmp_path)
    for _time in range(8):
        site.world.run(5 * HOUR)
        site.kill()
        site.start()
    (gone,) = site.happened("disassociated")
    assert (gone.name, gone.data["evidence"], gone.data["patienceSeconds"]) == ("pump-0", "rhythm", DAY)
    assert site.cloud.batches() == [("pump-0",)]


def test_a_disk_that_fails_holds_pruning_and_watching_goes_on(tmp_path: Path) -> None:
    """`database` says what to do; what is heard meanwhile counts (case 20)."""
    site = _dying(tmp_path)
    site.world.run(20 * HOUR)
    site.disk_full = True
    site.world.run(2 * DAY)
    assert not site.cloud.batches()
    (held,) = site.happened("held")
    assert (held.data["guard"], held.data["remedy"]) == (
        "database",
        "free space on the file system, or make it writable",
    )
    assert "pruner.db cannot be written" in held.data["reason"]
    site.disk_full = False
    site.world.run(4 * HOUR)
    assert site.cloud.batches() == [("pump-0",)]


def test_a_broken_state_file_is_set_aside(tmp_path: Path) -> None:
    """Whatever is wrong with it: silences begin anew, and the component goes on."""
    site = _dying(tmp_path)
    site.stop()
    (tmp_path / "pruner.db").write_bytes(b"not a database" * 1_000)
    site.living(HOUR)
    assert (tmp_path / "pruner.db.aside-1").exists()
    assert site.status()["coverage"]["associated"] == 3


def test_the_shadow_changes_only_with_what_a_person_would_act_on(tmp_path: Path) -> None:
    """A site that is as ever publishes next to nothing (case 19)."""
    site = Site(tmp_path).living(2 * HOUR)
    assert site.ipc is not None
    before = len(site.ipc.to_iot_core)
    site.world.run(5 * DAY)
    shadows = [payload for topic, payload in site.ipc.to_iot_core if "/shadow/name/client-device-pruner/" in topic]
    assert len(shadows) - before <= 3
    assert json.loads(shadows[-1])["state"]["reported"]["removable"] == 3


def test_a_trial_needs_two_settings(tmp_path: Path) -> None:
    """Whatever does not fit is made smaller, and the dead device goes within a minute or so (case 21)."""
    site = Site(tmp_path, {"allowShortDurations": True, "offlineThreshold": "20s"})
    site.interval = 2.0
    site.start()
    site.world.run(3 * MINUTE)
    site.alive.discard("pump-0")
    site.world.run(90)
    assert [event.name for event in site.happened("disassociated")] == ["pump-0"]


def test_a_session_survives_a_kill(tmp_path: Path) -> None:
    """What the broker announced is written at once."""
    site = Site(tmp_path).living(HOUR)
    for kind, session in (("connected", 1), ("disconnected", 0)):
        site.hear(f"{IN}$SYS/brokers/emqx/clients/pump-0/{kind}", b'{"clientid": "pump-0", "connected_at": 1}')
        site.world.run(3)
        site.kill()
        assert [tuple(row) for row in site.rows("SELECT session FROM devices WHERE name = 'pump-0'")] == [(session,)]
        site.start()
        site.world.run(MINUTE)


def test_the_configuration_stays_in_force_when_the_state_opens_late(tmp_path: Path) -> None:
    """Another instance, or a disk, held it back: the client list is asked and believed as soon as it is there."""
    site = Site(tmp_path).living(2 * HOUR)
    site.stop()
    site.disk_full = True
    (tmp_path / "pruner.db").rename(tmp_path / "kept.db")
    site.start()
    site.world.run(HOUR)
    (tmp_path / "kept.db").rename(tmp_path / "pruner.db")
    site.disk_full = False
    site.world.run(2 * HOUR)
    assert site.status()["observing"]["since"] is not None
    assert site.status()["coverage"]["associated"] == 3
