"""When cycles come, and how long a call may take."""

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


@pytest.mark.parametrize(
    ("failures", "middle", "spread"),
    [(0, 21_600, 2_160), (1, 30, 30), (2, 60, 60), (5, 480, 480), (9, 7_680, 7_680), (1_000_000, 10_800, 10_800)],
)
def test_when_the_next_cycle_comes(failures: int, middle: float, spread: float) -> None:
    """Shifted by up to a tenth; after failures from a minute, doubled up to `checkInterval`, with full jitter."""
    for jitter in (0.0, 0.5, 1.0):
        seconds = max(1.0, middle + (2 * jitter - 1) * spread)
        assert next_delay_seconds(parse({}), jitter, failures=failures) == pytest.approx(seconds)


def test_cycles_that_fail_are_followed_by_longer_and_longer_delays(known: KnownDevices) -> None:
    """Half of a minute, of two, of four …, with a jitter of a half; after a success the interval is in force again."""
    core = known("alive")
    core.cloud.fail("list", "throttled", times=4)
    core.cloud.calls.clear()
    core.run_until(lambda: core.cloud.count("list") == 6, 7_200)

    assert [round(after - before) for before, after in itertools.pairwise(listings(core))] == [30, 60, 120, 240, 600]


def test_a_cycle_that_the_state_file_breaks_off_comes_again_soon(marked: KnownDevices) -> None:
    """The guard `database` holds meanwhile, and the back-off is that of any failure."""
    core = marked("gone", "alive")
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


def test_a_start_that_finds_a_batch_unconfirmed_does_not_wait(marked: KnownDevices) -> None:
    """What became of it is found out within a minute, whatever `checkInterval` says."""
    core = marked("gone", "alive", checkInterval="6h", offlineThreshold="7h")
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
def test_past_its_deadline_a_call_is_given_up(marked: KnownDevices, kind: type[Ready | ListPage | Batch]) -> None:
    """The cycle goes on as if the answer had been lost: a batch is looked up in the next list."""
    operation = {Ready: "start", ListPage: "list", Batch: "disassociate"}[kind]
    core = marked("gone", "alive")
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
