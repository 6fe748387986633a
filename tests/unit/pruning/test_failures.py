"""What is said of calls that fail: once, with a remedy; the guards; and what `status` tells."""

from __future__ import annotations

import pytest

from client_device_pruner.pruning.failures import DISASSOCIATE, LIST
from fakes.core_device import KnownDevices


@pytest.mark.parametrize("kind", ["throttled", "server", "unreachable", "garbage", "credentials", "coreNotFound"])
@pytest.mark.parametrize("operation", ["start", LIST, DISASSOCIATE])
def test_a_failure_that_repeats_is_said_once_and_waited_for(known: KnownDevices, operation: str, kind: str) -> None:
    """Of each kind one event, in however many cycles; then all goes on, and the next time is news again."""
    # Enough devices for the day's budget: an intent whose answer was lost uses it, too.
    core = known("gone-0", "gone-1", *(f"alive-{number}" for number in range(10)))
    for name in ("gone-0", "gone-1"):
        core.disconnect(name)
        core.cloud.fail(operation, kind, times=4)
        core.run_until(lambda: not core.cloud.faults, 20_000)
        assert name in core.cloud.associations
        core.run_until(lambda name=name: core.of_type("disassociated", name), 20_000)  # type: ignore[misc]
        assert core.guards() == set()

    failed = core.of_type("failed")
    assert [data["code"] for data in failed] == [kind.title()] * 2
    assert all(data["remedy"] and data["cycleId"] and data["message"] for data in failed)
    core.run(60)
    core.check_audit()


def test_the_status_names_when_a_cycle_was_complete_last(known: KnownDevices) -> None:
    """Case 30: a cycle that fails keeps that time, and so does a restart; end-to-end tests show what is said else."""
    core = known("alive")
    core.run(300)
    complete = core.status()["lastCycle"]["completeAt"]
    core.cloud.fail("start", "credentials")
    core.run_until(lambda: not core.cloud.faults, 1_200)
    core.run(10)
    assert core.status()["lastCycle"]["failed"]["at"] > complete

    core.stop()
    core.run(20)
    assert core.status()["lastCycle"]["completeAt"] == complete
    core.run_until(lambda: core.status()["lastCycle"]["completeAt"] > complete, 1_500)


def test_a_list_that_cannot_be_read_holds_until_one_can(known: KnownDevices) -> None:
    """The guard is said once, with what to do."""
    core = known("alive")
    core.cloud.fail("list", "garbage", times=3)
    core.run_until(lambda: not core.cloud.faults, 1_200)
    assert core.guards() == {"list"}
    core.run_until(lambda: not core.guards(), 1_200)
    (held,) = core.of_type("held")
    assert "made to fail" in held["reason"]
    assert "portal or proxy" in held["remedy"]
