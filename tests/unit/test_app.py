"""The component as a whole, in virtual time, at its public edges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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

    def __init__(self, work_dir: Path, configuration: dict[str, Any] = QUICK) -> None:
        super().__init__(World(), work_dir, configuration)
        self.alive = {"pump-0", "pump-1", "pump-2"}
        self.cloud.associate(*self.alive)
        self.world.after(1.0, self._speak)

    def _speak(self) -> None:
        for name in sorted(self.alive):
            self.hear(f"{IN}clients/{name}/telemetry", b"21.5")
        self.world.after(HOUR, self._speak)

    def living(self, seconds: float) -> Site:
        """Start, and let time pass."""
        self.start()
        self.world.run(seconds)
        return self

    def guards(self) -> list[str]:
        """The guards in force."""
        return [guard["guard"] for guard in self.status()["guards"]]


def _dying(tmp_path: Path, configuration: dict[str, Any] = QUICK) -> Site:
    """A site on which pump-0 died after two days."""
    site = Site(tmp_path, configuration).living(2 * DAY)
    site.alive.discard("pump-0")
    return site


def _marked(tmp_path: Path, configuration: dict[str, Any] = QUICK) -> Site:
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


def test_no_row_contradicts_its_verdict(tmp_path: Path) -> None:
    """Whenever a first message is written, the verdict no longer says that the device was never seen; so at an end."""
    site = Site(tmp_path)
    names = [f"new-{number}" for number in range(17)]
    site.cloud.associate(*names)
    site.living(3 * HOUR)
    site.configure({"checkInterval": "7d"})
    seen = "SELECT name FROM devices JOIN verdicts USING (name) WHERE seen_by != ''"
    for number, name in enumerate(names):
        site.configure({"massLoss": {"minDevices": 1000 + number}})  # all is judged at once
        site.world.run(3)
        site.hear(f"{IN}clients/{name}/telemetry", b"21.5")
        for _second in range(50) if number < 16 else ():
            site.world.run(1)
            assert not site.rows(f"{seen} AND verdict LIKE '%neverSeen%'")
    site.stop()
    assert len(site.rows(seen)) == 20
    assert not site.rows(f"{seen} AND verdict LIKE '%neverSeen%'")


def test_silence_without_observed_time_makes_nobody_gone(tmp_path: Path) -> None:
    """The bridge is broken for 10 days: no time passes, nothing is marked; status, guard and timeline say so."""
    site = Site(tmp_path).living(2 * DAY)
    assert site.ipc is not None
    observed = site.status()["observing"]["seconds"]
    site.ipc.carries_probe = False
    alive, site.alive = site.alive, set()
    site.world.run(10 * DAY)
    assert site.status()["observing"]["seconds"] - observed < HOUR
    assert site.guards() == ["notObserving"]
    site.alive = alive
    site.ipc.carries_probe = True
    site.world.run(DAY)
    assert [event.data["guard"] for event in site.happened("released")] == ["notObserving"]
    states = [row["state"] for row in site.rows("SELECT state FROM timeline WHERE name IS NULL ORDER BY id")]
    assert states == ["started", "observing", "notObserving", "observing"]
    assert not site.happened("marked")


def test_a_first_configuration_that_is_refused_leaves_the_defaults_in_force(tmp_path: Path) -> None:
    """They watch, and nothing goes."""
    site = Site(tmp_path, {"colour": "red"}).living(HOUR)
    assert site.guards() == ["configuration"]
    assert site.status()["coverage"]["associated"] == 3


@pytest.mark.parametrize("restarts", [False, True])
def test_a_deployment_that_loses_protection_begins_every_grace_period_anew(tmp_path: Path, restarts: bool) -> None:
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
    assert len(changed["protectionEnded"]) == 2
    assert site.happened("unmarked")[0].data["reason"] == "the configuration protects less than before"
    assert not site.cloud.batches()
    site.world.run(12 * HOUR)
    assert site.cloud.batches() == [("pump-0",)]


def test_another_configuration_is_explained_at_once(tmp_path: Path) -> None:
    """What `explain` says of a device follows the settings within seconds."""
    site = _marked(tmp_path)
    site.configure({"dryRun": True})
    site.world.run(5)
    ((verdict,),) = site.rows("SELECT verdict FROM verdicts WHERE name = 'pump-0'")
    assert "A dry run only reports this." in verdict


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


def test_the_shadow_changes_only_with_what_a_person_would_act_on(tmp_path: Path) -> None:
    """A site that is as ever publishes next to nothing (case 19)."""
    site = Site(tmp_path).living(2 * HOUR)
    assert site.ipc is not None
    before = len(site.ipc.to_iot_core)
    site.world.run(5 * DAY)
    shadows = [payload for topic, payload in site.ipc.to_iot_core if "/shadow/name/client-device-pruner/" in topic]
    assert len(shadows) - before <= 3
    assert json.loads(shadows[-1])["state"]["reported"]["removable"] == 3


def test_a_session_survives_a_kill(tmp_path: Path) -> None:
    """What the broker announced is written at once."""
    site = Site(tmp_path).living(HOUR)
    for kind, session in (("connected", 1), ("disconnected", 0)):
        site.hear(f"{IN}$SYS/brokers/emqx/clients/pump-0/{kind}", b'{"clientid": "pump-0", "connected_at": 1}')
        site.world.run(3)
        site.kill()
        query = "SELECT count(session_since) FROM devices WHERE name = 'pump-0'"
        assert [tuple(row) for row in site.rows(query)] == [(session,)]
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
