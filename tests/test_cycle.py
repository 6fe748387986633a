"""A cycle and what it turns to: lists, plans, guards, failures and restores, in virtual time."""

from __future__ import annotations

import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner import settings
from client_device_pruner.pruning import next_delay_seconds
from desk import STEP_SECONDS, Site

DAY_SECONDS = 86_400.0
GONE = tuple(f"gone-{number}" for number in range(4))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No log: a virtual day has a long one."""
    monkeypatch.setattr(logging.getLogger("client_device_pruner"), "disabled", True)


def known_site(directory: Path, *names: str, **more: Any) -> Site:
    """A site on which these devices are connected and known."""
    site = Site(directory, None, **more)
    site.cloud.associate(*names)
    site.connected = dict.fromkeys(names, 0)
    site.run_until(lambda: site.rows("SELECT count(*) FROM devices WHERE seen") == [(len(names),)], 900)
    return site


def lose(site: Site, *names: str) -> None:
    """Disconnect them one after another."""
    for name in names:
        site.disconnect(name)
        site.run(STEP_SECONDS)


def failures(site: Site) -> list[str]:
    """The codes of all `failed` events."""
    return [data["code"] for data in site.of_type("failed")]


def limits(**more: Any) -> dict[str, Any]:
    """Limits that let everything pass, but for those given."""
    return {"maxPerCycle": 100, "maxPercentPerDay": 100, "approvalPercent": 100, **more}


def test_nothing_to_do_takes_one_list_and_no_other_call(tmp_path: Path) -> None:
    """A cycle without due devices lists once."""
    site = known_site(tmp_path, "alive")
    site.cloud.calls.clear()

    cycles = len(site.of_type("cycle"))
    site.run_until(lambda: len(site.of_type("cycle")) > cycles, 900)

    assert site.cloud.calls == [("list", ())]
    site.stop()


def test_the_journal_has_the_evidence(tmp_path: Path) -> None:
    """Each row says which incarnation, in which cycle, on what proof."""
    site = known_site(tmp_path, "gone", "alive")
    stamp = site.cloud.associations["gone"]
    lose(site, "gone")
    site.run_until(lambda: site.of_type("disassociated"), 3_000)

    ((name, timestamp, cycle_id, evidence),) = site.rows(
        "SELECT name, associated_at, cycle_id, evidence FROM disassociations"
    )
    (said,) = site.of_type("disassociated")
    assert (name, timestamp, cycle_id) == ("gone", stamp, said["cycleId"])
    assert json.loads(evidence) == {key: value for key, value in said.items() if key != "cycleId"}
    assert said["proof"] == "census"
    site.stop()


@pytest.mark.parametrize("stamps", [True, False])
def test_a_device_that_is_associated_anew_begins_anew(tmp_path: Path, stamps: bool) -> None:
    """A new timestamp is a new incarnation; where timestamps are missing, a list without the name shows it."""
    site = Site(tmp_path)
    site.cloud.associate("gone", "alive", timestamps=stamps)
    site.connected = {"gone": 0, "alive": 0}
    site.run_until(lambda: site.rows("SELECT count(*) FROM devices WHERE seen") == [(2,)], 900)
    lose(site, "gone")
    site.run_until(lambda: site.of_type("marked", "gone"), 3_000)

    del site.cloud.associations["gone"]
    if not stamps:
        site.run_until(lambda: site.of_type("unmarked", "gone"), 600)
    site.cloud.associate("gone", timestamps=stamps)
    site.run(3_000)

    assert site.of_type("unmarked", "gone")
    assert "gone" in site.cloud.associations, "it was not seen since"
    site.stop()


def test_a_list_that_loses_its_timestamps_confirms_nothing(tmp_path: Path) -> None:
    """A device still listed, though without its timestamp, is not reported as disassociated."""
    site = known_site(tmp_path, "gone", "alive")
    lose(site, "gone")
    site.cloud.fail("disassociate", "unreachable")

    def forget_stamps(operation: str, _names: tuple[str, ...]) -> None:
        if operation == "disassociate":
            site.cloud.associations = dict.fromkeys(site.cloud.associations)

    site.when_called = forget_stamps
    site.run_until(lambda: site.rows("SELECT 1 FROM disassociations WHERE outcome = 'notDone'"), 3_000)

    assert not site.of_type("disassociated")
    assert site.cloud.associations.keys() == {"gone", "alive"}
    site.stop()


@pytest.mark.parametrize("kind", ["throttled", "server", "unreachable", "garbage", "credentials", "coreNotFound"])
@pytest.mark.parametrize("operation", ["start", "list", "disassociate"])
def test_a_failure_that_repeats_is_said_once_and_waited_for(tmp_path: Path, operation: str, kind: str) -> None:
    """Of each kind one event, in however many cycles; then all goes on, and the next time is news again."""
    # Enough devices for the day's budget: an intent whose answer was lost uses it, too.
    alive = tuple(f"alive-{number}" for number in range(10))
    site = known_site(tmp_path, "gone-0", "gone-1", *alive)
    for name in ("gone-0", "gone-1"):
        lose(site, name)
        site.cloud.fail(operation, kind, times=4)
        site.run_until(lambda: not site.cloud.failing, 20_000)
        assert name in site.cloud.associations
        site.run_until(lambda name=name: site.of_type("disassociated", name), 20_000)  # type: ignore[misc]

    assert failures(site) == [kind.title() if operation != "start" else kind] * 2
    site.check_audit()
    site.stop()


def test_the_delay_after_failures_doubles_up_to_ten_minutes(tmp_path: Path) -> None:
    """One minute, two, four, eight, ten, ten; after a success the interval is in force again."""
    site = known_site(tmp_path, "alive", checkInterval="6h")
    site.cloud.fail("list", "throttled", times=6)
    begun: list[float] = []
    site.when_called = lambda operation, _names: begun.append(site.clock.now) if operation == "list" else None
    site.run_until(lambda: len(begun) == 8, 60_000)

    delays = [after - before for before, after in itertools.pairwise(begun)]
    assert delays == [60, 120, 240, 480, 600, 600, 21_600]
    site.stop()


def test_a_long_back_off_never_exceeds_the_interval(tmp_path: Path) -> None:
    """With an interval of three minutes no delay is longer."""
    site = known_site(tmp_path, "alive")
    site.cloud.fail("list", "throttled", times=6)
    begun: list[float] = []
    site.when_called = lambda operation, _names: begun.append(site.clock.now) if operation == "list" else None
    site.run_until(lambda: len(begun) == 7, 60_000)

    assert max(after - before for before, after in itertools.pairwise(begun)) <= 180
    site.stop()


@pytest.mark.parametrize("failures", [5, 1_025, 1_000_000])
def test_the_cloud_may_be_away_for_years(failures: int) -> None:
    """However many cycles have failed in a row, the next comes ten minutes later, a tenth more or less."""
    assert next_delay_seconds(settings.parse({}), 0.0, failures=failures) == pytest.approx(540.0)
    assert next_delay_seconds(settings.parse({}), 1.0, failures=failures) == pytest.approx(660.0)


def test_what_may_be_disassociated_is_decided_by_that_operation(tmp_path: Path) -> None:
    """Access denied to Disassociate holds though lists work, one device tries each time, and a grant releases."""
    site = known_site(tmp_path, *GONE, "alive")
    lose(site, *GONE)
    site.cloud.fail("disassociate", "accessDenied", times=5)
    site.run_until(lambda: "accessDenied" in site.guards(), 3_000)
    site.run_until(lambda: not site.cloud.failing, 6_000)
    assert site.guards() == {"accessDenied"}
    sizes = [len(names) for operation, names in site.cloud.calls if operation == "disassociate"]
    assert sizes[1:] == [1] * 4
    assert len(failures(site)) == 1

    site.run_until(lambda: not set(GONE) & site.cloud.associations.keys(), 3_000)

    assert site.guards() == set()
    assert len([d for d in site.of_type("held") if d["guard"] == "accessDenied"]) == 1
    site.run(600)
    site.check_audit()
    site.stop()


def test_a_failed_list_does_not_release_what_was_denied_to_a_batch(tmp_path: Path) -> None:
    """The remedy names the operation that was refused."""
    site = known_site(tmp_path, "gone", "alive")
    lose(site, "gone")
    site.cloud.fail("list", "accessDenied")
    site.run_until(lambda: "accessDenied" in site.guards(), 3_000)
    (held,) = [data for data in site.of_type("held") if data["guard"] == "accessDenied"]

    assert "ListClientDevices" in held["remedy"]
    site.run_until(lambda: "accessDenied" not in site.guards(), 3_000)
    site.stop()


def test_a_short_confirming_list_settles_nothing(tmp_path: Path) -> None:
    """After a batch whose answer is lost, a list of less than half of the devices is not taken for success."""
    names = ("gone", "a", "b", "c", "d")
    site = known_site(tmp_path, *names)
    lose(site, "gone")
    site.cloud.fail("disassociate", "unreachable")
    whole = dict(site.cloud.associations)

    def cut(operation: str, _names: tuple[str, ...]) -> None:
        if operation == "disassociate":
            site.cloud.associations = {"a": whole["a"]}

    site.when_called = cut
    site.run_until(lambda: "list" in site.guards(), 3_000)
    assert [row[0] for row in site.rows("SELECT outcome FROM disassociations")] == ["open"]
    assert site.rows("SELECT count(*) FROM devices") == [(5,)]

    site.when_called = lambda _operation, _names: None
    site.cloud.associations = dict(whole)
    site.run_until(lambda: site.of_type("disassociated", "gone"), 3_000)

    assert [row[0] for row in site.rows("SELECT outcome FROM disassociations")] == ["notDone", "done"]
    site.stop()


def test_an_implausible_list_is_believed_after_three_cycles_in_a_row(tmp_path: Path) -> None:
    """A plausible one between begins the count anew."""
    names = tuple(f"device-{number}" for number in range(10))
    site = known_site(tmp_path, *names)
    whole, part = dict(site.cloud.associations), {"device-0": site.cloud.associations["device-0"]}

    def cycles(number: int) -> None:
        until = sum(call[0] == "list" for call in site.cloud.calls) + number
        site.run_until(lambda: sum(call[0] == "list" for call in site.cloud.calls) >= until, 3_000)

    for listed, number in ((part, 2), (whole, 1), (part, 2)):
        site.cloud.associations = dict(listed)
        cycles(number)
        assert len(site.component.watch.ledger.devices) == 10  # type: ignore[union-attr]
        assert ("list" in site.guards()) == (listed is part)

    cycles(1)

    assert len(site.component.watch.ledger.devices) == 1  # type: ignore[union-attr]
    assert site.guards() == set()
    site.stop()


@pytest.mark.parametrize(
    ("percent", "a_day"), [(0, 0), (1, 1), (20, 1), (21, 2), (100, 4)]
)  # 5 devices: rounded up, 0 is none
def test_the_days_allowance_is_rounded_up_and_counted_across_restarts(tmp_path: Path, percent: int, a_day: int) -> None:
    """So many a day of running time, whatever is restarted."""
    site = known_site(tmp_path, *GONE, "alive", limits=limits(maxPercentPerDay=percent))
    lose(site, *GONE)
    for _restart in range(3):
        site.run(1_200)
        site.stop()
    site.run(300)

    assert len(site.cloud.carried) == a_day
    if 0 < a_day < 4:
        assert site.guards() == {"maxPercentPerDay"}
        site.sleep(DAY_SECONDS)
        site.run(900)
        assert len(site.cloud.carried) == a_day + math.ceil((5 - a_day) * percent / 100), "of those that are left"
    site.stop()


def test_the_longest_absent_go_first_and_so_many_a_cycle(tmp_path: Path) -> None:
    """`maxPerCycle` holds the others until the next cycle."""
    site = known_site(tmp_path, *GONE, "alive", limits=limits(maxPerCycle=1), noticePeriod="15m")
    lose(site, *reversed(GONE))
    site.run_until(lambda: len(site.cloud.carried) == 4, 9_000)

    assert [carried.name for carried in site.cloud.carried] == list(reversed(GONE))
    per_cycle = [row[0] for row in site.rows("SELECT count(*) FROM disassociations GROUP BY cycle_id")]
    assert per_cycle == [1, 1, 1, 1]
    assert "maxPerCycle" in {data["guard"] for data in site.of_type("held")}
    site.stop()


def test_a_batch_is_filled_before_another_is_begun(tmp_path: Path) -> None:
    """A cycle takes the fewest calls that the API allows, which is 100 entries each."""
    gone = tuple(f"gone-{number:03}" for number in range(200))
    site = known_site(tmp_path, *gone, "alive", limits=limits(maxPerCycle=200), massLoss={"minDevices": 1000})
    site.disconnect(*gone)
    site.run_until(lambda: len(site.cloud.carried) == 200, 3_000)

    batches = [len(names) for operation, names in site.cloud.calls if operation == "disassociate"]
    assert batches == [100, 100]
    site.stop()


def test_one_device_on_a_core_is_pruned(tmp_path: Path) -> None:
    """No guard freezes a small site for ever: with the defaults' limits the only device of a core goes."""
    site = known_site(tmp_path, "gone", limits={}, massLoss={})
    lose(site, "gone")

    site.run_until(lambda: site.of_type("disassociated", "gone"), 3_000)

    assert not site.cloud.associations
    site.stop()


def test_a_plan_that_shrinks_keeps_its_id_and_one_that_grows_gets_another(tmp_path: Path) -> None:
    """An approval goes on covering the devices and incarnations that it named."""
    names = tuple(f"gone-{number}" for number in range(6))
    no_outage = {"window": "0.1s", "minDevices": 100}
    site = known_site(tmp_path, *names, "alive", limits=limits(approvalPercent=50), massLoss=no_outage)
    site.disconnect(*names[:5])
    site.run_until(lambda: len(site.component.pruning.waiting_plan()[1]) == 5, 3_000)  # type: ignore[union-attr]
    (first, _members) = site.component.pruning.waiting_plan()  # type: ignore[union-attr]
    assert [d["plan"] for d in site.of_type("held") if d["guard"] == "approval"][-1] == first

    site.connect("gone-0")
    site.run(600)
    assert site.component.pruning.waiting_plan()[0] == first  # type: ignore[union-attr]
    assert set(names) <= site.cloud.associations.keys()

    site.disconnect("gone-0")
    lose(site, "gone-5")
    site.run_until(lambda: len(site.component.pruning.waiting_plan()[1]) == 6, 3_000)  # type: ignore[union-attr]
    assert site.component.pruning.waiting_plan()[0] != first  # type: ignore[union-attr]

    site.request("approve", first)
    site.run_until(lambda: len(site.cloud.carried) == 5, 3_000)
    assert {carried.name for carried in site.cloud.carried} == set(names[:5])
    site.run(600)
    # The one that is left is alone, and waits for nobody.
    assert site.cloud.associations.keys() == {"alive"}
    site.check_audit()
    site.stop()


def test_an_outage_waits_for_its_approval_by_the_configuration(tmp_path: Path) -> None:
    """Devices lost together stay until the plan that the guard names is approved."""
    site = known_site(tmp_path, *GONE, "alive", massLoss={})
    site.disconnect(*GONE)
    site.run_until(lambda: "outage" in site.guards(), 3_000)
    site.run(900)
    (held,) = [data for data in site.of_type("held") if data["guard"] == "outage"]
    assert held["plan"] in held["remedy"]
    assert not site.cloud.carried

    site.settings = {**site.settings, "approvedPlan": held["plan"]}
    site.stop()
    site.run_until(lambda: len(site.cloud.carried) == 4, 6_000)

    assert site.cloud.associations.keys() == {"alive"}
    site.stop()


def test_a_dry_run_uses_no_budget_and_calls_no_batch(tmp_path: Path) -> None:
    """It says what would have been done."""
    site = known_site(tmp_path, "gone", "alive", dryRun=True)
    lose(site, "gone")
    site.run_until(lambda: any(d.get("wouldDisassociate") == 1 for d in site.of_type("cycle")), 3_000)

    assert {operation for operation, _names in site.cloud.calls} == {"list"}
    assert not site.rows("SELECT * FROM disassociations")
    site.stop()


def test_an_entry_refused_to_be_restored_is_given_up(tmp_path: Path) -> None:
    """The thing was deleted meanwhile: it is said, and not tried for ever."""
    site = known_site(tmp_path, "gone", "alive")
    lose(site, "gone")
    site.run_until(lambda: site.of_type("disassociated"), 3_000)
    site.cloud.refusing = {"gone": "ResourceNotFoundException"}
    site.request("restore", {"all": True})
    site.run(1_800)

    assert failures(site) == ["ResourceNotFoundException"]
    assert sum(operation == "associate" for operation, _names in site.cloud.calls) == 1
    site.stop()


def test_a_restore_that_fails_is_tried_again_in_each_cycle(tmp_path: Path) -> None:
    """It is said once, naming the device, and holds nothing else back."""
    site = known_site(tmp_path, "gone-0", "gone-1", "alive")
    lose(site, "gone-0")
    site.run_until(lambda: site.of_type("disassociated"), 3_000)
    site.cloud.fail("associate", "accessDenied", times=4)
    site.request("restore", {"names": ["gone-0"]})
    lose(site, "gone-1")
    site.run_until(lambda: site.of_type("restored"), 6_000)

    (failed,) = site.of_type("failed", "gone-0")
    assert "BatchAssociate" in failed["remedy"]
    assert not [data for data in site.of_type("held") if data["guard"] == "accessDenied"]
    site.run_until(lambda: site.of_type("disassociated", "gone-1"), 3_000)
    site.stop()


def test_requests_have_their_kinds(tmp_path: Path) -> None:
    """By name, by cycle, all: each restores what it means, and what cannot be undone is passed over."""
    site = known_site(tmp_path, *GONE, "alive", limits=limits(maxPerCycle=2), noticePeriod="15m")
    lose(site, *GONE)
    site.run_until(lambda: len(site.of_type("disassociated")) == 4, 9_000)
    first_cycle = site.of_type("disassociated")[0]["cycleId"]

    site.request("restore", {"names": ["gone-3", "nobody"]})
    site.run(120)
    assert site.cloud.associations.keys() == {"alive", "gone-3"}
    site.request("restore", {"cycle": first_cycle})
    site.run(120)
    assert site.cloud.associations.keys() == {"alive", "gone-3", "gone-0", "gone-1"}
    site.request("restore", {"all": True})
    site.run(120)
    assert site.cloud.associations.keys() == {"alive", *GONE}
    assert {data["requestedBy"] for data in site.of_type("restored")} == {"command"}
    site.stop()
