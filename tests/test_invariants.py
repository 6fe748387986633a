"""The invariants I1 to I4 and I7 hold over random histories of a small site (DESIGN, invariants).

A failure prints its history, step by step, and the blob and the seed that replay it:
`pytest tests/test_invariants.py --hypothesis-seed=SEED`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from client_device_pruner.model import Device, Habit, Mark, Proof, Witness, pack
from client_device_pruner.policy import Circumstances, assess
from site_simulation import (
    ASSOCIATED,
    CHECK_INTERVAL,
    KINDS,
    NOTICE,
    SETTINGS,
    STRANGERS,
    THRESHOLD,
    Move,
    Site,
    Violation,
    replayed,
)

BUDGET = settings(
    max_examples=300,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""Well under a minute on two cores."""

NAMES = st.sampled_from((*ASSOCIATED, *STRANGERS))
MOVES: st.SearchStrategy[list[Move]] = st.lists(
    st.tuples(NAMES, st.sampled_from(("connect", "disconnect"))), max_size=3
)
SHORT = st.sampled_from((10.0, 45.0, 100.0))
LONG = st.sampled_from((200.0, 700.0, 2500.0))
GAPS = st.one_of(SHORT, SHORT, LONG)
YEARS = st.sampled_from((-20, -1, 0, 1, 20)).map(lambda years: years * 31_557_600.5)
CALM_SECONDS = 3000.0
"""After its last step each history goes on so long without any: what it made the component believe wrongly ripens."""


class SiteMachine(RuleBasedStateMachine):
    """Random histories; `Site` checks I1, I2, I4 and I7 all the while."""

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, Any] = {}
        self.history: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.site: Site | None = None

    def do(self, operation: str, *arguments: Any, **named: Any) -> None:
        """Do it, and keep it for the replay."""
        if self.site is not None:
            self.history.append((operation, arguments, named))
            try:
                getattr(self.site, operation)(*arguments, **named)
            except Violation:
                self.site = None
                raise

    @initialize(
        kind=st.sampled_from(KINDS),
        numbered=st.booleans(),
        lag=st.sampled_from((0.0, 2.0)),
        there=st.lists(NAMES, unique=True),
    )
    def begin(self, kind: str, numbered: bool, lag: float, there: list[str]) -> None:
        """A site of some kind, on which some clients are connected."""
        self.options = {"kind": kind, "numbered": numbered, "lag_seconds": lag}
        self.site = Site(**self.options)
        self.do("advance", 130.0)
        for name in there:
            self.do("move", name, "connect")

    @rule(seconds=st.sampled_from((1.0, 20.0, 61.0, 300.0, 660.0, 2000.0)))
    def time_passes(self, seconds: float) -> None:
        """Nothing happens."""
        self.do("advance", seconds)

    @rule(name=NAMES, action=st.sampled_from(("connect", "connect", "disconnect")))
    def moves(self, name: str, action: str) -> None:
        """A client comes, comes again, or goes."""
        self.do("move", name, action)

    @rule(name=NAMES, period=st.sampled_from((0.0, 30.0, 70.0, 240.0)))
    def talks(self, name: str, period: float) -> None:
        """A client begins to speak, or falls silent."""
        self.do("talk", name, period)

    @rule(delay=st.sampled_from((0.5, 2.0, 4.0)), double=st.booleans())
    def is_disturbed(self, delay: float, double: bool) -> None:
        """The next event comes late or twice: others overtake it."""
        self.do("disturb", delay, double=double)

    @rule(seconds=GAPS, moves=MOVES)
    def loses_the_bridge(self, seconds: float, moves: list[Move]) -> None:
        """Nothing passes the bridge."""
        self.do("bridge_gap", seconds, moves)

    @rule(seconds=GAPS, moves=MOVES)
    def loses_the_subscription(self, seconds: float, moves: list[Move]) -> None:
        """Nothing passes local pub/sub."""
        self.do("ipc_gap", seconds, moves)

    @precondition(lambda self: self.options.get("kind") != "messages")
    @rule(
        down=st.sampled_from((1.0, 30.0)),
        bridge=st.sampled_from((2.0, 40.0, 120.0)),
        returning=st.lists(NAMES, unique=True),
    )
    def restarts_the_broker(self, down: float, bridge: float, returning: list[str]) -> None:
        """All sessions end unheard; some clients are back before the bridge is."""
        self.do("restart_broker", down, bridge, returning)

    @rule(seconds=GAPS, moves=MOVES)
    def kills_the_component(self, seconds: float, moves: list[Move]) -> None:
        """What it had not committed is lost."""
        self.do("kill", seconds, moves)

    @rule(seconds=GAPS, moves=MOVES)
    def suspends_the_component(self, seconds: float, moves: list[Move]) -> None:
        """It sleeps, and reads all later."""
        self.do("suspend", seconds, moves)

    @rule(seconds=GAPS, moves=MOVES, room=st.sampled_from((0, 1, 5)))
    def overflows(self, seconds: float, moves: list[Move], room: int) -> None:
        """Its queue is too small for what comes."""
        self.do("stall", seconds, moves, room=room)

    @rule(ours=YEARS, brokers=YEARS)
    def sets_the_wall_clocks(self, ours: float, brokers: float) -> None:
        """Years, both ways."""
        self.do("set_wall_clocks", ours, brokers)

    def teardown(self) -> None:
        """Let it ripen; and without the jumps of the wall clocks all decisions would have been the same (I3)."""
        if self.site is None:
            return
        self.do("advance", CALM_SECONDS)
        if any(operation == "set_wall_clocks" for operation, _arguments, _named in self.history):
            still = replayed(self.history, **self.options)
            assert self.site.decisions == still.decisions, "I3: a change of a wall clock changed a decision"


# Finding a failure is quick; shrinking it to a history that a person can read takes minutes.
TestInvariants = pytest.mark.timeout(420)(SiteMachine.TestCase)
TestInvariants.settings = BUDGET


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_gone_goes(kind: str) -> None:
    """On a site without faults all who are gone with a proof are disassociated, and nobody else: no test is idle."""
    site = Site(kind=kind, strict=True)
    for name in ("a1", "a2"):
        site.move(name, "connect")
        site.talk(name, 60.0)
    site.move("a3", "connect")
    site.move("s1", "connect")
    site.advance(1200.0)
    site.move("a2", "disconnect")
    site.move("a3", "disconnect")
    site.advance(4000.0)
    # a4 was never there: its own threshold needs a census. a3 never spoke.
    assert set(site.pruned) == ({"a2"} if kind == "messages" else {"a2", "a3", "a4"})


# Where losses in more than one gap make the sums agree again: who is known is in doubt


def _a1_was_there_and_left() -> Site:
    site = Site(kind="events", sure=True)
    site.advance(130.0)
    site.move("a2", "connect")
    site.move("a1", "connect")
    site.advance(10.0)
    site.move("a1", "disconnect")
    site.advance(600.0)
    return site


def test_lost_in_one_gap_gained_in_another() -> None:
    """I4: a2 goes unheard, then, after a count that is lower, a1 comes unheard and stays."""
    site = _a1_was_there_and_left()
    site.bridge_gap(10.0, [("a2", "disconnect")])
    site.advance(120.0)
    site.bridge_gap(10.0, [("a1", "connect")])
    site.advance(4500.0)


def test_gained_in_one_gap_lost_in_another_and_an_event_between() -> None:
    """I4: a1 comes unheard and stays; a3's coming explains the mismatch; a2 goes unheard, and the sums agree."""
    site = _a1_was_there_and_left()
    site.bridge_gap(10.0, [("a1", "connect")])
    site.advance(700.0)
    site.move("a3", "connect")
    site.advance(700.0)
    site.bridge_gap(10.0, [("a2", "disconnect")])
    site.advance(4500.0)


def test_both_gained_in_one_gap_and_one_leaves_heard() -> None:
    """I4: in one gap a1 comes and a2 connects anew; a2's leaving is heard, but ends a session nobody knew."""
    site = _a1_was_there_and_left()
    site.bridge_gap(10.0, [("a1", "connect"), ("a2", "connect")])
    site.advance(700.0)
    site.move("a2", "disconnect")
    site.advance(4500.0)


def test_doubt_ends_when_four_thresholds_have_passed() -> None:
    """Beyond that the exception of I4 begins: who came unheard is taken for gone, after so long without a word.

    Else one steady client that never speaks would hold the pruning for ever.
    """
    site = _a1_was_there_and_left()
    site.bridge_gap(10.0, [("a2", "disconnect")])
    site.advance(120.0)
    site.bridge_gap(10.0, [("a1", "connect")])
    site.advance(4 * THRESHOLD - 60.0)
    assert site.pruned == []
    with pytest.raises(Violation, match=r"^I4: a1 "):
        site.advance(2 * CHECK_INTERVAL + NOTICE)


# I7 by itself, over devices and witnesses that no history would make

SECONDS = st.sampled_from((0.0, 1.0, 450.0, 1799.0, 1800.0, 1801.0, 4000.0, 1e9))
HABITS = st.builds(
    Habit,
    heard=st.integers(0, 7),
    first_seconds=SECONDS,
    last_seconds=SECONDS,
    last_running_seconds=SECONDS,
    longest_silence_seconds=SECONDS,
)
MARKS = st.builds(
    Mark,
    source_id=st.integers(0, 2),
    proof=st.sampled_from(Proof),
    clock_seconds=SECONDS,
    cycle_id=st.just("c"),
)
DEVICES = st.builds(
    Device,
    name=st.just("a1"),
    associated_at=st.none(),
    seen=st.booleans(),
    announced=st.booleans(),
    markers=st.lists(SECONDS, max_size=3).map(pack),
    habits=st.none() | st.dictionaries(st.integers(0, 2), HABITS, max_size=3),
    mark=st.none() | MARKS,
)
WITNESSES = st.lists(
    st.builds(
        Witness,
        name=st.just("w"),
        source_id=st.integers(0, 2),
        proof=st.sampled_from(Proof),
        clock_seconds=SECONDS,
        floor_seconds=SECONDS,
        vouching=st.booleans(),
        reason=st.just("it does"),
        stretch_seconds=SECONDS,
        pauses=st.lists(st.tuples(SECONDS, SECONDS), max_size=2).map(tuple),
        cadence_seconds=SECONDS,
        fresh_seconds=SECONDS,
        silenced=st.sampled_from(("", "it is silenced")),
        doubted=st.sampled_from(("", "some are in doubt")),
        doubted_seconds=SECONDS,
    ),
    max_size=3,
    unique_by=lambda witness: witness.source_id,
).map(tuple)


@settings(max_examples=400, deadline=None, print_blob=True)
@given(device=DEVICES, witnesses=WITNESSES, present=st.booleans(), kind=st.sampled_from(KINDS))
def test_a_verdict_is_a_pure_function(device: Device, witnesses: tuple[Witness, ...], present: bool, kind: str) -> None:
    """I7 and I1: the same inputs, the same verdict, unchanged; and none is due without proof or while present."""
    now = Circumstances(SETTINGS[kind], witnesses, frozenset({"a1"} if present else ()), "c")
    before, same = copy.deepcopy(device), copy.deepcopy(now)
    verdict = assess(device, now)
    assert (device, now) == (before, same)
    assert verdict == assess(before, same)
    if verdict.state.value == "due":
        assert not present
        assert verdict.testimony is not None
        assert verdict.testimony.proves
        assert verdict.testimony.witness.vouching
        assert all(condition.met for condition in verdict.testimony.conditions)
