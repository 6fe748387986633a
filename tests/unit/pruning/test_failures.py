"""What is said of calls that fail: once, with a remedy; the guards; and what `status` tells."""

from __future__ import annotations

import pytest

from client_device_pruner.pruning.failures import ASSOCIATE, DISASSOCIATE, LIST, remedy
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


def test_credentials_of_a_clock_that_is_behind(known: KnownDevices) -> None:
    """Case 3: for two hours each list is refused; nothing is removed, and the one event names the clock."""
    core = known("gone", "alive")
    core.disconnect("gone")
    core.cloud.fail("list", "credentials", code="ExpiredTokenException", times=1_000)
    core.cloud.calls.clear()
    core.run(7_200)

    (failed,) = core.of_type("failed")
    assert "clock" in failed["remedy"]
    assert not core.cloud.carried
    # With a jitter of a half: 30 s, 60 s, 120 s … up to half of the interval of ten minutes.
    assert core.cloud.count("list") < 30


def test_the_status_names_what_failed_since_the_last_complete_cycle(known: KnownDevices) -> None:
    """Case 30: with code, message, remedy and time; a cycle that goes well ends it, a restart keeps its time."""
    core = known("alive")
    core.run(300)
    complete = core.status()["lastCycle"]["completeAt"]
    assert complete is not None
    assert core.status()["lastCycle"]["failed"] is None

    core.cloud.fail("start", "credentials", code="CredentialRetrievalError", times=2)
    core.run_until(lambda: len(core.cloud.faults) < 2, 1_200)
    core.run(10)
    last = core.status()["lastCycle"]
    assert last["completeAt"] == complete
    assert last["failed"]["code"] == "CredentialRetrievalError"
    assert "TokenExchangeService" in last["failed"]["remedy"]
    assert last["failed"]["at"] > complete

    core.stop()
    core.run(30)
    assert core.status()["lastCycle"]["completeAt"] == complete
    core.run_until(lambda: not core.cloud.faults, 1_200)
    core.run_until(lambda: core.of_type("cycle")[-1]["complete"], 1_200)
    core.run(300)
    assert core.status()["lastCycle"]["failed"] is None
    assert core.status()["lastCycle"]["completeAt"] > complete


@pytest.mark.parametrize(
    ("kind", "operation", "named"),
    [
        ("accessDenied", ASSOCIATE, "greengrass:BatchAssociateClientDeviceWithCoreDevice"),
        ("throttled", LIST, "quota"),
        ("server", LIST, "the next cycle tries again"),
    ],
)
def test_a_failure_has_its_remedy(kind: str, operation: str, named: str) -> None:
    """Of a denied operation it is the IAM action to allow."""
    assert named in remedy(kind, "AccessDeniedException", operation)


@pytest.mark.parametrize(
    ("kind", "reason", "remedy"),
    [
        ("accessDenied", "made to fail", "greengrass:ListClientDevicesAssociatedWithCoreDevice"),
        ("coreNotFound", "core-1", "whether the core device was deleted or renamed"),
        ("garbage", "made to fail", "portal or proxy"),
    ],
)
def test_a_refused_list_holds_until_one_is_answered(known: KnownDevices, kind: str, reason: str, remedy: str) -> None:
    """The guard is said once, with what to do, and is released by the next list."""
    guard = "list" if kind == "garbage" else kind
    core = known("alive")
    core.cloud.fail("list", kind, times=3)
    core.run_until(lambda: not core.cloud.faults, 1_200)
    assert core.guards() == {guard}
    core.run_until(lambda: not core.guards(), 1_200)
    (held,) = core.of_type("held")
    assert reason in held["reason"]
    assert remedy in held["remedy"]
