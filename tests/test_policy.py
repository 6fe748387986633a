"""The decisions: who is present, absent, unknown, marked or due, and what the guards leave of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner import policy
from client_device_pruner.model import Device, Habit, Hold, Mark, Proof, State, Witness, pack
from client_device_pruner.outages import Outages
from client_device_pruner.policy import (
    Budget,
    Circumstances,
    Plan,
    Verdict,
    assess,
    day_allowance,
    member,
    new_plan_id,
    plan,
)
from client_device_pruner.settings import parse

DAY = 86_400.0
HOUR = 3_600.0
CENSUS = Witness("emqx", 0, Proof.CENSUS, 100 * DAY, 0.0, True, "they match")
ROLL_CALL = Witness("rollCall", 1, Proof.ROLL_CALL, 80 * DAY, 0.0, True, "answered")
HABIT = Witness("messages", 2, Proof.HABIT, 100 * DAY, 0.0, True, "spoke", cadence_seconds=60.0, fresh_seconds=HOUR)
SPEAKS = Habit(heard=100, first_seconds=0.0, last_seconds=60 * DAY, longest_silence_seconds=HOUR)


def device(
    absent: float = 31 * DAY,
    *,
    seen: bool = True,
    mark: Mark | None = None,
    habit: Habit | None = None,
    outlived: float = 0.0,
) -> Device:
    """Make a device that has been absent for so many seconds on each of the three sources above.

    Its last sign of life is the last message of its habit, or one of another source, so many seconds later.
    """
    markers = [w.clock_seconds - absent for w in (CENSUS, ROLL_CALL, HABIT)]
    if habit:
        last = markers[HABIT.source_id] - outlived
        first = last - (habit.last_seconds - habit.first_seconds)
        habit = habit._replace(first_seconds=first, last_seconds=last)
    habits = {HABIT.source_id: habit} if habit else None
    return Device("a", 7.0, seen=seen, markers=pack(markers), mark=mark, habits=habits)


def now(*witnesses: Witness, present: Collection[str] = (), returns: Any = None, **settings: Any) -> Circumstances:
    """Make circumstances, of the defaults with changes."""
    return Circumstances(parse(settings), witnesses, present, "cycle-1", Outages(returns or {}, frozenset()))


def with_(witness: Witness, **changes: Any) -> Witness:
    """Change a witness."""
    return witness._replace(**changes)


def marked(witness: Witness, ago: float) -> Mark:
    """A mark that was set so many seconds ago on the witness's clock."""
    return Mark(witness.source_id, witness.proof, witness.clock_seconds - ago, "cycle-0")


class TestProof:
    """What proves an absence, and what does not."""

    @pytest.mark.parametrize("witness", [CENSUS, ROLL_CALL])
    def test_a_census_or_roll_call_proves_the_absence_of_anybody(self, witness: Witness) -> None:
        """An absence of the threshold on a source that vouches now: the device becomes stale and is marked."""
        verdict = assess(device(30 * DAY), now(witness))
        assert verdict.state is State.MARKED
        assert verdict.mark == Mark(witness.source_id, witness.proof, witness.clock_seconds, "cycle-1")
        assert verdict.due_in_seconds == DAY
        assert verdict.testimony
        assert verdict.testimony.absence_seconds == 30 * DAY

    def test_a_second_less_than_the_threshold_proves_nothing(self) -> None:
        """It is absent, and no more."""
        assert assess(device(30 * DAY - 1), now(CENSUS, ROLL_CALL)).state is State.ABSENT

    @pytest.mark.parametrize("witness", [CENSUS, ROLL_CALL, HABIT])
    def test_a_source_that_does_not_vouch_now_proves_nothing(self, witness: Witness) -> None:
        """No proof outlives its witness."""
        verdict = assess(device(habit=SPEAKS), now(with_(witness, vouching=False)))
        assert (verdict.state, verdict.mark) == (State.UNKNOWN, None)

    def test_one_source_is_enough(self) -> None:
        """Another source that does not vouch, or on which less time has passed, does not stand against it."""
        young = with_(ROLL_CALL, floor_seconds=ROLL_CALL.clock_seconds - DAY)
        verdict = assess(device(), now(with_(HABIT, vouching=False), young, CENSUS))
        assert verdict.mark
        assert verdict.mark.proof is Proof.CENSUS

    def test_present_on_any_source_is_present(self) -> None:
        """A known session, or the last believed roll call, ends every absence, and takes a mark off."""
        verdict = assess(device(mark=marked(CENSUS, 2 * DAY)), now(CENSUS, ROLL_CALL, present={"a"}))
        assert (verdict.state, verdict.mark, verdict.reason) == (State.PRESENT, None, "it is connected")

    def test_case_matters_in_names(self) -> None:
        """A session of `A` says nothing of `a`."""
        assert assess(device(), now(CENSUS, present={"A"})).state is State.MARKED

    def test_absences_begin_at_the_floor_at_the_earliest(self) -> None:
        """Where somebody came and went unannounced, every absence on that source restarted."""
        floor = CENSUS.clock_seconds - 30 * DAY
        assert assess(device(90 * DAY), now(with_(CENSUS, floor_seconds=floor))).state is State.MARKED
        assert assess(device(90 * DAY), now(with_(CENSUS, floor_seconds=floor + 1))).state is State.ABSENT

    def test_absences_count_from_the_first_return_of_an_outage(self) -> None:
        """One who was lost together with it came back: the absence of the others counts from there."""
        back = {"a": {CENSUS.source_id: CENSUS.clock_seconds - DAY}}
        assert assess(device(90 * DAY), now(CENSUS, returns=back)).state is State.ABSENT

    def test_a_protected_device_is_protected(self) -> None:
        """Whatever is proven, and its mark goes."""
        verdict = assess(device(mark=marked(CENSUS, 2 * DAY)), now(CENSUS, protectedClients=["[a-c]"]))
        assert (verdict.state, verdict.mark, verdict.reason) == (State.PROTECTED, None, "it is protected")

    def test_the_longest_threshold_that_matches_counts(self) -> None:
        """A device of its own kind has a threshold of its own."""
        thresholds = {
            "short": {"clients": ["*"], "offlineThreshold": "2d"},
            "long": {"clients": ["a"], "offlineThreshold": "60d"},
        }
        assert assess(device(59 * DAY), now(CENSUS, thresholds=thresholds)).state is State.ABSENT
        assert assess(device(60 * DAY), now(CENSUS, thresholds=thresholds)).state is State.MARKED

    def test_a_device_never_seen_stays_by_default(self) -> None:
        """Without any sign of life nothing says that it is gone rather than not yet there."""
        verdict = assess(device(99 * DAY, seen=False, habit=SPEAKS), now(CENSUS, HABIT))
        assert (verdict.state, verdict.mark) == (State.ABSENT, None)

    def test_a_device_never_seen_has_a_threshold_of_its_own(self) -> None:
        """`neverSeenThreshold` takes the place of the other one, be it longer or shorter."""
        assert assess(device(89 * DAY, seen=False), now(CENSUS, neverSeenThreshold="90d")).state is State.ABSENT
        assert assess(device(90 * DAY, seen=False), now(CENSUS, neverSeenThreshold="90d")).state is State.MARKED
        assert assess(device(2 * DAY, seen=False), now(CENSUS, neverSeenThreshold="2d")).state is State.MARKED
        assert assess(device(2 * DAY), now(CENSUS, neverSeenThreshold="2d")).state is State.ABSENT

    def test_a_device_that_was_seen_has_nothing_to_do_with_it(self) -> None:
        """Be it shorter or longer."""
        assert assess(device(30 * DAY), now(CENSUS, neverSeenThreshold="90d")).mark is not None
        assert assess(device(29 * DAY), now(CENSUS, neverSeenThreshold="2d")).mark is None

    def test_no_habit_proves_the_absence_of_a_device_never_seen(self) -> None:
        """That takes a census or a roll call."""
        circumstances = now(HABIT, neverSeenThreshold="2d")
        assert assess(device(99 * DAY, seen=False, habit=SPEAKS), circumstances).mark is None


class TestHabit:
    """When silence on an `activity` source says something."""

    def test_silence_against_its_habit_proves_absence(self) -> None:
        """It used to speak, and the source has vouched without a break since."""
        verdict = assess(device(30 * DAY, habit=SPEAKS), now(HABIT))
        assert verdict.mark
        assert verdict.mark.proof is Proof.HABIT

    @pytest.mark.parametrize(("heard", "proven"), [(4, False), (5, True)])
    def test_five_messages_are_needed(self, heard: int, proven: bool) -> None:
        """Less is no habit."""
        habit = SPEAKS._replace(heard=heard)
        assert (assess(device(habit=habit), now(HABIT)).mark is not None) is proven

    @pytest.mark.parametrize(("span", "proven"), [(7.5 * DAY - 1, False), (7.5 * DAY, True)])
    def test_a_quarter_of_the_threshold_is_needed(self, span: float, proven: bool) -> None:
        """Five messages in a minute are no habit either."""
        habit = SPEAKS._replace(first_seconds=5.0, last_seconds=5.0 + span)
        assert (assess(device(habit=habit), now(HABIT)).mark is not None) is proven

    def test_without_a_habit_nothing_is_proven(self) -> None:
        """It was never heard there, or only on another source."""
        assert assess(device(), now(HABIT)).mark is None
        other = device(habit=SPEAKS)
        other.habits = {CENSUS.source_id: SPEAKS}
        assert assess(other, now(HABIT)).mark is None

    def test_its_threshold_is_twice_its_longest_silence(self) -> None:
        """A device that once was silent for 20 days is not gone after 30."""
        habit = SPEAKS._replace(longest_silence_seconds=20 * DAY)
        assert assess(device(40 * DAY - 1, habit=habit), now(HABIT)).mark is None
        assert assess(device(40 * DAY, habit=habit), now(HABIT)).mark is not None

    @pytest.mark.parametrize(("absent", "proven"), [(40 * DAY - 1, False), (40 * DAY, True)])
    def test_a_silence_that_it_outlived_is_a_silence_of_its_habit(self, absent: float, proven: bool) -> None:
        """It was silent there for 20 days when another source heard it, which may be switched off since."""
        silent = device(absent, habit=SPEAKS, outlived=20 * DAY)
        assert policy.testify(silent, HABIT, now()).proves is proven
        assert policy.testify(silent, CENSUS, now()).proves, "which would have shown it"

    def test_its_threshold_is_raised_to_at_most_four_times_the_configured_one(self) -> None:
        """The longest silence, a year for instance, raises it to no more than that; the watch must be as long still."""
        habit = SPEAKS._replace(last_seconds=300 * DAY, longest_silence_seconds=65 * DAY)
        witness = with_(HABIT, clock_seconds=500 * DAY)
        absent = device(habit=habit)
        absent.markers = pack([0.0, 0.0, 500 * DAY - 119 * DAY])
        assert policy.testify(absent, witness, now()).threshold_seconds == 120 * DAY
        assert not policy.testify(absent, witness, now()).proves
        absent.markers = pack([0.0, 0.0, 500 * DAY - 121 * DAY])
        assert policy.testify(absent, witness, now()).applies
        assert not policy.testify(absent, witness, now()).proves
        absent.markers = pack([0.0, 0.0, 500 * DAY - 130 * DAY])
        assert policy.testify(absent, witness, now()).proves

    @pytest.mark.parametrize("witness", [CENSUS, ROLL_CALL])
    def test_a_habit_raises_the_threshold_of_other_proofs_too(self, witness: Witness) -> None:
        """Who visits every 20 days, and once in a gap that nobody noticed, is not gone after 30."""
        rare = SPEAKS._replace(longest_silence_seconds=20 * DAY)
        assert assess(device(40 * DAY - 1, habit=rare), now(witness)).mark is None
        assert assess(device(40 * DAY, habit=rare), now(witness)).mark is not None
        twice = rare._replace(heard=4)
        assert assess(device(31 * DAY, habit=twice), now(witness)).mark is not None, "too few words for a habit"
        begun = rare._replace(first_seconds=rare.last_seconds - 7.5 * DAY, heard=5)
        assert assess(device(31 * DAY, habit=begun), now(witness)).mark is None
        brief = begun._replace(first_seconds=begun.first_seconds + 1)
        assert assess(device(31 * DAY, habit=brief), now(witness)).mark is not None, "too short a time for a habit"

    def test_the_raise_is_measured_from_its_own_threshold(self) -> None:
        """A rule for the device counts for its habit too."""
        habit = SPEAKS._replace(longest_silence_seconds=20 * DAY)
        rules = {"r": {"clients": ["a"], "offlineThreshold": "2d"}}
        testimony = policy.testify(device(31 * DAY, habit=habit), HABIT, now(thresholds=rules))
        assert testimony.threshold_seconds == 8 * DAY

    @pytest.mark.parametrize(("unbroken", "proven"), [(2 * HOUR - 1, False), (2 * HOUR, True)])
    def test_an_unbroken_watch_of_twice_its_longest_silence_is_needed(self, unbroken: float, proven: bool) -> None:
        """In one run: what the source vouched for before a break may have missed its return."""
        witness = with_(HABIT, stretch_seconds=HABIT.clock_seconds - unbroken)
        assert (assess(device(habit=SPEAKS), now(witness)).mark is not None) is proven

    @pytest.mark.parametrize(("length", "proven"), [(HOUR, True), (HOUR + 1, False)])
    def test_an_interval_longer_than_its_longest_silence_is_a_break(self, length: float, proven: bool) -> None:
        """In so long a quiet it may have spoken, and the message been lost."""
        witness = with_(HABIT, pauses=((length, HABIT.clock_seconds - 2 * HOUR + 1),))
        assert (assess(device(habit=SPEAKS), now(witness)).mark is not None) is proven

    def test_the_watch_begins_with_its_last_sign_of_life(self) -> None:
        """An unbroken stretch from before does not count."""
        habit = SPEAKS._replace(longest_silence_seconds=20 * DAY)
        testimony = policy.testify(device(31 * DAY, habit=habit), HABIT, now())
        assert any("unbroken watch of 31d since, 40d needed" in c.text and not c.met for c in testimony.conditions)

    def test_nothing_is_proven_beside_a_broker_that_does_not_match(self) -> None:
        """Somebody unannounced is there, and it may be this device."""
        witness = with_(HABIT, silenced="the count does not match")
        testimony = policy.testify(device(habit=SPEAKS), witness, now())
        assert testimony.applies
        assert not testimony.proves


def test_a_census_proves_nothing_beside_another_broker_that_does_not_match() -> None:
    """Somebody unannounced is there."""
    witness = with_(CENSUS, silenced="the other broker's count does not match")
    testimony = policy.testify(device(31 * DAY), witness, now(witness))
    assert testimony.applies
    assert not testimony.proves


class TestDoubt:
    """While known sessions are in doubt, a census or a habit has to last for longer."""

    @pytest.mark.parametrize(("days", "proven"), [(0, False), (119.9, False), (120, True)])
    @pytest.mark.parametrize("witness", [CENSUS, HABIT])
    def test_four_thresholds_are_needed_since_the_doubt(self, witness: Witness, days: float, proven: bool) -> None:
        """Who came unheard would have to stay for so long without a word, and who left as long away."""
        doubted = with_(
            witness, clock_seconds=200 * DAY, doubted="2 sessions are in doubt", doubted_seconds=(200 - days) * DAY
        )
        testimony = policy.testify(device(31 * DAY, habit=SPEAKS), doubted, now(doubted))
        assert testimony.proves == proven
        assert testimony.applies
        assert "2 sessions are in doubt; watched for" in testimony.conditions[-1].text
        assert "120d needed otherwise" in testimony.conditions[-1].text


class TestMark:
    """From stale to due, and back."""

    @pytest.mark.parametrize(("ago", "state"), [(DAY - 1, State.MARKED), (DAY, State.DUE), (9 * DAY, State.DUE)])
    def test_the_notice_runs_on_the_proving_clock(self, ago: float, state: State) -> None:
        """Marked until the notice is over on that clock, then due."""
        mark = marked(CENSUS, ago)
        verdict = assess(device(mark=mark), now(CENSUS))
        assert (verdict.state, verdict.mark) == (state, mark)
        assert verdict.due_in_seconds == max(0.0, DAY - ago)

    def test_without_a_notice_a_stale_device_is_due_at_once(self) -> None:
        """With `noticePeriod: 0s` one cycle marks and disassociates."""
        verdict = assess(device(), now(CENSUS, noticePeriod="0s"))
        assert verdict.state is State.DUE
        assert verdict.mark

    def test_the_notice_stands_still_while_the_source_does_not_vouch(self) -> None:
        """The device stays marked, and is not due, however long ago it was marked."""
        mark = marked(CENSUS, 2 * DAY)
        verdict = assess(device(mark=mark), now(with_(CENSUS, vouching=False)))
        assert (verdict.state, verdict.mark, verdict.due_in_seconds) == (State.MARKED, mark, 0.0)
        verdict = assess(device(mark=marked(CENSUS, HOUR)), now(with_(CENSUS, vouching=False)))
        assert verdict.due_in_seconds == DAY - HOUR

    def test_the_notice_starts_anew_if_the_proof_changes_source(self) -> None:
        """The clock of another source has nothing to do with the first one's."""
        mark = marked(CENSUS, 2 * DAY)
        verdict = assess(device(mark=mark), now(with_(CENSUS, vouching=False), ROLL_CALL))
        assert verdict.state is State.MARKED
        assert verdict.mark == Mark(ROLL_CALL.source_id, Proof.ROLL_CALL, ROLL_CALL.clock_seconds, "cycle-1")

    def test_the_notice_goes_on_with_its_source_while_that_proves_it(self) -> None:
        """A stronger source that proves it as well does not start it anew."""
        mark = marked(HABIT, DAY)
        verdict = assess(device(mark=mark, habit=SPEAKS), now(CENSUS, ROLL_CALL, HABIT))
        assert (verdict.state, verdict.mark) == (State.DUE, mark)
        assert verdict.testimony
        assert verdict.testimony.witness is HABIT

    @pytest.mark.parametrize(
        "circumstances",
        [
            now(CENSUS, offlineThreshold="40d"),
            now(with_(CENSUS, floor_seconds=CENSUS.clock_seconds - DAY)),
            now(with_(ROLL_CALL, vouching=False)),
            now(),
        ],
        ids=["longer-threshold", "absences-restarted", "source-removed", "no-source"],
    )
    def test_a_mark_goes_when_its_ground_is_gone(self, circumstances: Circumstances) -> None:
        """A longer threshold, an absence that starts anew, or the loss of its source unmark it."""
        verdict = assess(device(mark=marked(CENSUS, 2 * DAY)), circumstances)
        assert (verdict.mark, verdict.testimony) == (None, None)
        assert verdict.reason

    def test_a_mark_goes_when_its_habit_is_gone(self) -> None:
        """The threshold is reached still, and there is nothing left that would have shown the device."""
        assert assess(device(mark=marked(HABIT, 2 * DAY)), now(HABIT)).mark is None


class TestState:
    """What is said of devices that nothing is proven of."""

    def test_without_a_source_that_vouches_nothing_is_known(self) -> None:
        """Neither present nor absent."""
        assert assess(device(DAY), now()).state is State.UNKNOWN
        assert assess(device(DAY), now(with_(CENSUS, vouching=False))).state is State.UNKNOWN

    def test_heard_within_max_quiet_is_called_present(self) -> None:
        """Where only messages tell, a device heard lately is there, and one with a habit that is silent is absent."""
        assert assess(device(HOUR), now(HABIT)).state is State.PRESENT
        assert assess(device(HOUR + 1, habit=SPEAKS), now(HABIT)).state is State.ABSENT
        assert assess(device(HOUR + 1), now(HABIT)).state is State.UNKNOWN
        assert assess(device(HOUR + 1, habit=SPEAKS), now(with_(HABIT, source_id=1))).state is State.UNKNOWN
        assert assess(device(HOUR, seen=False), now(HABIT)).state is State.UNKNOWN


def due(name: str, absent: float = 31 * DAY, source_id: int = 0) -> Verdict:
    """Make the verdict of a due device."""
    witness = with_(CENSUS, source_id=source_id)
    gone = Device(name, 7.0, seen=True)
    return Verdict(gone, State.DUE, policy.Testimony(witness, absent, 30 * DAY, (), applies=True, proves=True))


def planned(
    verdicts: Collection[Verdict],
    *,
    associated: int = 1000,
    used: int = 0,
    approved: Collection[str] = (),
    unexplained: Collection[tuple[str, int]] = (),
    standing: tuple[Hold, ...] = (),
    **limits: Any,
) -> Plan:
    """Plan with the default limits, changed."""
    return plan(
        verdicts,
        associated=associated,
        settings=parse({"limits": limits}),
        budget=Budget(associated, used, 3600.0),
        approved=approved,
        plan_id="p1",
        unexplained=unexplained,
        standing=standing,
    )


def names(of: Plan) -> list[str]:
    """The names that a plan takes, in its order."""
    return [verdict.device.name for verdict in of.take]


def guards(of: Plan) -> list[str]:
    """The guards that hold something back."""
    return [hold.guard for hold in of.holds]


MANY = [due(f"d{number:03}", absent=31 * DAY + number) for number in range(150)]


class TestPlan:
    """What the guards leave of the due devices."""

    def test_the_longest_absent_go_first(self) -> None:
        """Ties are broken by name, so that a plan is the same twice."""
        found = planned([due("b"), due("c", 99 * DAY), due("a")])
        assert names(found) == ["c", "a", "b"]
        assert guards(found) == []

    def test_no_more_than_max_per_cycle(self) -> None:
        """0 means none, never all."""
        found = planned(MANY, maxPercentPerDay=100, maxPerCycle=3)
        assert names(found) == ["d149", "d148", "d147"]
        assert guards(found) == ["maxPerCycle"]
        assert planned(MANY, maxPerCycle=0).take == ()

    def test_no_more_than_max_percent_per_day(self) -> None:
        """What was used in this window counts; 0 means none."""
        assert len(planned(MANY).take) == 100
        found = planned(MANY, used=97)
        assert len(found.take) == 3
        assert guards(found) == ["maxPercentPerDay"]
        assert "97 of 100" in found.holds[0].reason
        assert planned(MANY, used=500).take == ()
        assert planned(MANY, maxPercentPerDay=0).take == ()

    @given(st.integers(0, 5000), st.integers(0, 1000))
    def test_the_percentage_is_rounded_up_and_not_by_more(self, base: int, tenths: int) -> None:
        """The allowance of a small core is at least one, and no figure gives one more than it says."""
        settings = parse({"limits": {"maxPercentPerDay": tenths / 10}})
        exact = math.ceil(Fraction(base * tenths, 1000))
        assert day_allowance(base, settings) == (max(1, exact) if tenths else 0)

    @pytest.mark.parametrize(
        ("number", "associated", "waits"),
        [(3, 3, False), (4, 8, False), (4, 7, True), (5, 8, True), (150, 1000, False)],
    )
    def test_many_at_once_wait_for_approval(self, number: int, associated: int, waits: bool) -> None:
        """More than three, and more than half of the associated ones, before budgets."""
        found = planned(MANY[:number], associated=associated, maxPercentPerDay=100, maxPerCycle=100)
        assert ("approval" in guards(found)) is waits
        assert (found.take == ()) is waits
        if waits:
            assert found.holds[0].plan == "p1"
            assert len(found.waiting) == number

    def test_what_is_approved_goes(self) -> None:
        """An approval covers the devices and incarnations that it names, and no others."""
        five = MANY[:5]
        approved = [member(verdict.device) for verdict in five[:4]] + ["d004@8.0"]
        found = planned(five, associated=5, approved=approved, maxPercentPerDay=100)
        assert names(found) == ["d003", "d002", "d001", "d000"]
        assert found.waiting == {"d004"}
        found = planned(five[:4], associated=5, approved=approved, maxPercentPerDay=100)
        assert guards(found) == []

    def test_devices_lost_together_wait(self) -> None:
        """As long as none of them came back, on the source that proves their absence; the others go."""
        found = planned([due("a"), due("b"), due("c")], unexplained={("a", 0), ("b", 2)})
        assert names(found) == ["b", "c"]
        assert guards(found) == ["outage"]
        assert found.waiting == {"a"}
        found = planned([due("a")], unexplained={("a", 0)}, approved=["a@7.0"])
        assert names(found) == ["a"]

    def test_a_standing_guard_holds_everything(self) -> None:
        """A guard that stands lets nobody go, approved or not."""
        hold = Hold("configuration", "refused", "correct it")
        found = planned([due("a")], standing=(hold,), approved=["a@7.0"])
        assert found.take == ()
        assert found.holds == (hold,)

    @given(
        st.integers(0, 40),
        st.integers(1, 60),
        st.integers(0, 20),
        st.integers(0, 20),
        st.integers(0, 100),
    )
    def test_budgets_are_never_exceeded(self, number: int, base: int, used: int, per_cycle: int, per_day: int) -> None:
        """Whatever is due and used: the plan stays within the cycle's and the day's limit (invariant I5)."""
        found = planned(
            MANY[:number],
            associated=base,
            used=used,
            maxPerCycle=per_cycle,
            maxPercentPerDay=per_day,
            approvalPercent=100,
        )
        assert len(found.take) <= per_cycle
        assert len(found.take) == 0 or len(found.take) + used <= math.ceil(base * per_day / 100)


def test_members_and_plan_ids_name_incarnations() -> None:
    """The same members make the same id, in whatever order; another incarnation is another member."""
    assert member(Device("a", 7.0)) == "a@7.0"
    assert member(Device("a")) == "a@"
    assert new_plan_id(["a@7.0", "b@"]) == new_plan_id(["b@", "a@7.0"]) != new_plan_id(["a@8.0", "b@"])


@given(st.floats(0, 200 * DAY), st.booleans(), st.sets(st.sampled_from("ab")), st.booleans())
def test_a_decision_is_a_pure_function(absent: float, seen: bool, present: set[str], vouching: bool) -> None:
    """The same device in the same circumstances gets the same verdict, and neither is changed (invariant I7)."""
    judged = device(absent, seen=seen, habit=SPEAKS, mark=marked(CENSUS, DAY))
    before = {name: copy.copy(getattr(judged, name)) for name in judged.__slots__}
    circumstances = now(with_(CENSUS, vouching=vouching), HABIT, present=present)
    first = assess(judged, circumstances)
    assert assess(judged, circumstances) == first
    assert {name: copy.copy(getattr(judged, name)) for name in judged.__slots__} == before


@given(st.floats(0, 200 * DAY), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_nobody_is_due_without_a_proof(
    absent: float, seen: bool, connected: bool, census: bool, habit: bool, silenced: bool
) -> None:
    """Due takes a witness that vouches now, an absence of the threshold on it, and presence on none (invariant I1)."""
    witnesses = (with_(CENSUS, vouching=census), with_(HABIT, vouching=habit, silenced="x" if silenced else ""))
    judged = device(absent, seen=seen, habit=SPEAKS, mark=marked(CENSUS, 9 * DAY))
    verdict = assess(judged, now(*witnesses, present={"a"} if connected else ()))
    if verdict.state is State.DUE:
        assert seen
        assert absent >= 30 * DAY
        assert census
        assert not connected
    if verdict.state is State.MARKED and not census:
        assert verdict.mark == judged.mark or (habit and not silenced)
