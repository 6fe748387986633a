"""When cycles come, how long a call may take, and what a deployment waits for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from client_device_pruner.config.settings import parse
from client_device_pruner.pruning.cloud import DEADLINE_SECONDS, Batch, ListPage, Ready
from client_device_pruner.pruning.scheduler import next_delay_seconds
from fakes.core_device import CoreDevice, KnownDevices


def listings(core: CoreDevice) -> list[float]:
    """When each listing came."""
    return [call.at for call in core.cloud.calls if call.operation == "list"]


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 21_600 * 0.9), (0.5, 21_600), (1.0, 21_600 * 1.1)])
def test_cycles_are_shifted_by_a_tenth(jitter: float, seconds: float) -> None:
    """So that all cores of an account do not call at the same minute."""
    assert next_delay_seconds(parse({}), jitter, failures=0) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("failures", "most"), [(1, 60), (2, 120), (5, 960), (9, 15_360), (10, 21_600), (1_000_000, 21_600)]
)
def test_the_delay_after_failures_doubles_up_to_the_interval(failures: int, most: float) -> None:
    """From a minute to `checkInterval`, with full jitter; a second at the least, however long the cloud is away."""
    assert next_delay_seconds(parse({}), 1.0, failures=failures) == most
    assert next_delay_seconds(parse({}), 0.5, failures=failures) == most / 2
    assert next_delay_seconds(parse({}), 0.0, failures=failures) == 1.0


def test_cycles_that_fail_are_followed_by_longer_and_longer_delays(known: KnownDevices) -> None:
    """Half of a minute, of two, of four …, with a jitter of a half; after a success the interval is in force again."""
    core = known("alive")
    core.cloud.fail("list", "throttled", times=4)
    core.cloud.calls.clear()
    core.run_until(lambda: core.cloud.count("list") == 6, 7_200)

    assert [round(after - before) for before, after in itertools.pairwise(listings(core))] == [30, 60, 120, 240, 600]


def test_a_cycle_that_the_state_file_breaks_off_comes_again_soon(known: KnownDevices) -> None:
    """The guard `database` holds meanwhile, and the back-off is that of any failure."""
    core = known("gone", "alive")
    core.disconnect("gone")
    core.run_until(lambda: core.of_type("marked"), 7_200)
    core.run_to_batch()
    core.disk_full, core.cloud.held = True, False
    core.cloud.release()
    core.run(1)
    core.disk_full = False
    core.cloud.calls.clear()
    broke_off = core.clock.now
    core.run_until(lambda: core.of_type("disassociated"), 100)

    assert "database" in {data["guard"] for data in core.of_type("held")}
    assert round(listings(core)[0] - broke_off) <= 30


@pytest.mark.parametrize("listed", [False, True])
def test_the_first_cycle_comes_within_one_interval(tmp_path: Path, listed: bool) -> None:
    """At random; within ten minutes where no association is known yet: `coverage` is told after as long."""
    core = CoreDevice(tmp_path, checkInterval="6h", offlineThreshold="1d")
    core.cloud.associate("alive")
    core.start()
    if listed:
        core.run_until(lambda: core.cloud.calls, 700)
        core.run(60)
        core.stop()
        core.cloud.calls.clear()
    began = core.clock.now
    core.run_until(lambda: core.cloud.calls, 12_000)

    assert listings(core)[0] - began == pytest.approx(10_800 if listed else 300, abs=60)
    core.stop()


def test_a_start_that_finds_a_batch_unconfirmed_does_not_wait(known: KnownDevices) -> None:
    """What became of it is found out within a minute, whatever `checkInterval` says."""
    core = known("gone", "alive", checkInterval="6h", offlineThreshold="7h")
    core.disconnect("gone")
    core.run_until(lambda: core.of_type("marked"), 90_000)
    core.run_to_batch()
    core.die()
    core.cloud.held = False
    core.cloud.calls.clear()
    core.start()
    began = core.clock.now
    core.run_until(lambda: core.of_type("disassociated"), 70)

    assert listings(core)[0] - began <= 60
    core.check_audit()


@pytest.mark.parametrize("kind", [Ready, ListPage, Batch])
def test_past_its_deadline_a_call_is_given_up(known: KnownDevices, kind: type[Ready | ListPage | Batch]) -> None:
    """The cycle goes on as if the answer had been lost: a batch is looked up in the next list."""
    operation = {Ready: "start", ListPage: "list", Batch: "disassociate"}[kind]
    core = known("gone", "alive")
    core.disconnect("gone")
    core.run_until(lambda: core.of_type("marked"), 7_200)
    if kind is Ready:
        core.cloud.held = True
        starts = core.cloud.starts
        core.run_until(lambda: core.cloud.starts > starts, 7_200)
    else:
        core.cloud.fail(operation, "unreachable", silent=True)
        core.run_until(lambda: not core.cloud.faults, 7_200)
    asked = core.clock.now
    core.run_until(lambda: core.of_type("failed"), 200)
    core.cloud.held = False

    assert core.clock.now - asked == pytest.approx(DEADLINE_SECONDS[kind], abs=0.1)
    assert core.of_type("failed")[0]["code"] == "Deadline"
    core.run_until(lambda: core.of_type("disassociated"), 7_200)
    core.check_audit()


def test_a_deployment_waits_for_a_batch_in_flight(known: KnownDevices) -> None:
    """It is put off while a batch call is under way, and goes on afterwards."""
    core = known("gone", "alive")
    core.disconnect("gone")
    core.run_until(lambda: core.of_type("marked"), 7_200)
    core.run_to_batch()
    assert core.ipc is not None
    core.ipc.deploy("d1")
    core.run(0.1)
    assert core.ipc.deferred[-1][1] > 0

    core.cloud.held = False
    core.cloud.release()
    core.run(0.1)
    core.ipc.deploy("d1")
    core.run(0.1)
    assert core.ipc.deferred[-1] == ("d1", 0)


def test_nothing_is_called_without_a_state_file(tmp_path: Path) -> None:
    """A newer schema holds pruning: the guard says so, and no call is made."""
    core = CoreDevice(tmp_path)
    core.cloud.associate("alive")
    core.run(60)
    core.stop()
    core.write("PRAGMA user_version = 99")
    core.cloud.calls.clear()
    core.run(3_600)

    assert "database" in core.guards()
    assert not core.cloud.calls
    core.stop()
