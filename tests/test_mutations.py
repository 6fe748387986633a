"""Bugs planted in the component, one at a time: the ground truth of `site_simulation` catches each.

Most are caught by a directed history, which the component passes as it is; those that any history shows also by the
random search of `test_invariants`. `tests/README.md` names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import site_simulation
from client_device_pruner import policy
from client_device_pruner.doubt import Doubt
from client_device_pruner.emqx import EmqxSource
from client_device_pruner.ledger import Ledger
from client_device_pruner.moment import Moment
from client_device_pruner.settings import parse
from client_device_pruner.source_clock import SourceClock
from client_device_pruner.sources import Sources
from local_core.simulation import edges
from site_simulation import Site, Violation, replayed
from test_invariants import SiteMachine

Patch = pytest.MonkeyPatch


# The bugs


def any_disconnect_closes(patch: Patch) -> None:
    """A disconnect closes whatever session the name has."""
    real = EmqxSource.disconnected

    def planted(self: EmqxSource, node: str, name: str, payload: bytes, at: float) -> None:
        real(self, node, name, payload, at)
        for other in self._nodes.values():
            if other.sessions.pop(name, None):
                self._known(other, at)

    patch.setattr(EmqxSource, "disconnected", planted)


def ended_open_again(patch: Patch) -> None:
    """A session that ended may open again."""
    patch.setattr(EmqxSource, "_end", lambda _self, _name, _number, _at: None)


def more_is_enough(patch: Patch) -> None:
    """The census takes a count that is higher (`>=` for `==`)."""
    real = EmqxSource.count

    def planted(self: EmqxSource, node: str, payload: bytes, at: float) -> None:
        known = len(self.sessions()) + 1
        real(self, node, b"%d" % min(int(payload), known), at)

    patch.setattr(EmqxSource, "count", planted)


def bridge_is_not_counted(patch: Patch) -> None:
    """The census forgets the bridge's own connection."""
    real = EmqxSource.count

    def planted(self: EmqxSource, node: str, payload: bytes, at: float) -> None:
        real(self, node, b"%d" % (int(payload) + 1), at)

    patch.setattr(EmqxSource, "count", planted)


def restart_keeps_sessions(patch: Patch) -> None:
    """What was open before a restart of the component is still believed open."""
    real = EmqxSource.__init__
    kept: dict[str, Any] = {}

    def planted(self: EmqxSource, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        self._nodes, self._doubt = kept.setdefault("", (self._nodes, self._doubt))

    patch.setattr(EmqxSource, "__init__", planted)


def gap_keeps_sessions(patch: Patch) -> None:
    """A set that no count has confirmed for longer than maxQuiet is kept."""
    patch.setattr(EmqxSource, "tick", lambda _self, _at: None)


def uptime_is_ignored(patch: Patch) -> None:
    """A broker that restarted keeps its sessions."""
    patch.setattr(EmqxSource, "uptime", lambda _self, _node, _payload, _at: None)


def overflow_is_ignored(patch: Patch) -> None:
    """Messages that were dropped change nothing."""
    patch.setattr(Sources, "overflow", lambda _self, _at: None)


def first_message_opens(patch: Patch) -> None:
    """Activity opens a session with its first message."""
    real = EmqxSource.spoke

    def planted(self: EmqxSource, name: str, at: float) -> None:
        self._spoken[name] = at - self.clock.max_quiet_seconds
        real(self, name, at)

    patch.setattr(EmqxSource, "spoke", planted)


def mismatch_restarts_nothing(patch: Patch) -> None:
    """A mismatch that no event explains does not restart the absences."""
    patch.setattr(SourceClock, "restart_absences", lambda _self: None)


def gap_is_credited(patch: Patch) -> None:
    """A clock goes on across a gap longer than maxQuiet."""

    def planted(self: SourceClock, at: float) -> None:
        if self._last is None:
            self.break_stretch()
        else:
            self.credit_seconds += max(0.0, at - self._last)
        self._last = at

    patch.setattr(SourceClock, "vouch", planted)


def wall_clock_is_used(patch: Patch) -> None:
    """Vouchers are timed by the wall clock."""
    real = SourceClock.vouch
    clocks: list[Any] = []
    for kind in (site_simulation.Clock, edges.Clock):
        patch.setattr(kind, "__init__", _kept(kind.__init__, clocks))
    patch.setattr(
        SourceClock, "vouch", lambda self, at: real(self, at + clocks[-1].wall() - clocks[-1].monotonic() - 1.7e9)
    )


def _kept(made: Callable[..., None], clocks: list[Any]) -> Callable[..., None]:
    def planted(self: Any, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        clocks.append(self)

    return planted


def connected_at_is_compared(patch: Patch) -> None:
    """`connected_at` is taken for a time: a session older than the newest is not opened."""
    real = EmqxSource.connected
    newest: dict[EmqxSource, int] = {}

    def planted(self: EmqxSource, node: str, name: str, payload: bytes, at: float) -> None:
        number = json.loads(payload)["connected_at"]
        if number >= newest.get(self, 0):
            newest[self] = number
            real(self, node, name, payload, at)
        else:
            self._event(node, name, at)
            self._signs.alive(name, at)

    patch.setattr(EmqxSource, "connected", planted)


def signs_are_not_committed(patch: Patch) -> None:
    """A commit writes the clocks' credit, but not the signs of life up to it."""
    real = Ledger.alive

    def planted(self: Ledger, name: str, at: float) -> None:
        dirty = name in self._dirty
        real(self, name, at)
        if not dirty:
            self._dirty.discard(name)

    patch.setattr(Ledger, "alive", planted)


def one_message_is_a_habit(patch: Patch) -> None:
    """One message is habit enough."""
    patch.setattr(policy, "HABIT_MESSAGES", 1)


def presence_is_ignored(patch: Patch) -> None:
    """Known sessions do not make anybody present."""
    patch.setattr(Sources, "present_names", lambda _self: frozenset())


def moment_is_skipped(patch: Patch) -> None:
    """Nothing is checked in the moment."""
    patch.setattr(Moment, "poll", lambda _self, _at: (True, None))


def notice_is_skipped(patch: Patch) -> None:
    """A marked device is due at once."""
    real = policy._noticed

    def planted(device: Any, proof: Any, mark: Any, _settings: Any) -> Any:
        return real(device, proof, mark, parse({"noticePeriod": "0s"}))

    patch.setattr(policy, "_noticed", planted)


def nothing_is_doubted(patch: Patch) -> None:
    """A mismatch that went away unaccounted leaves no session in doubt."""
    patch.setattr(Doubt, "raise_for", lambda _self, _names, _at: None)


def a_word_confirms(patch: Patch) -> None:
    """A session in doubt is confirmed by the next best message, which may be a replayed one."""
    real = EmqxSource.spoke

    def planted(self: EmqxSource, name: str, at: float) -> None:
        self._doubt.confirm(name)
        real(self, name, at)

    patch.setattr(EmqxSource, "spoke", planted)


def judging_changes_the_device(patch: Patch) -> None:
    """A verdict leaves a trace in the device."""
    real = policy.assess

    def planted(device: Any, now: Any) -> Any:
        device.announced = not device.announced
        return real(device, now)

    patch.setattr(site_simulation, "assess", planted)
    patch.setattr(policy, "assess", planted)


# The histories: a1 was there and left; a2 is connected


def _begin(site: Site) -> None:
    site.advance(130.0)
    site.move("a2", "connect")
    site.move("a1", "connect")
    site.advance(10.0)
    site.move("a1", "disconnect")
    site.advance(600.0)


def takeover(site: Site) -> None:
    """a1 connects twice, the first session's end comes last; before the next count a2 is lost in a gap."""
    _begin(site)
    site.move("a1", "connect")
    site.advance(100.0)
    site.move("a1", "connect")
    site.bridge_gap(10.0, [("a2", "disconnect")])
    site.advance(3500.0)


def repeated_connect(site: Site) -> None:
    """a1 comes back unheard; before the next count a3 comes and goes, and its coming is announced again afterwards."""
    _begin(site)
    site.bridge_gap(10.0, [("a1", "connect")])
    site.disturb(4.0, double=True)
    site.move("a3", "connect")
    site.advance(1.0)
    site.move("a3", "disconnect")
    site.advance(3500.0)


def unheard_return(site: Site) -> None:
    """a1 comes back unheard."""
    _begin(site)
    site.bridge_gap(10.0, [("a1", "connect")])
    site.advance(3500.0)


def unheard_leave(site: Site) -> None:
    """a1 comes and goes; a2 comes, and goes unheard before the first count."""
    site.move("a1", "connect")
    site.advance(5.0)
    site.move("a1", "disconnect")
    site.move("a2", "connect")
    site.bridge_gap(10.0, [("a2", "disconnect")])
    site.advance(3500.0)


SWAP = [("a2", "disconnect"), ("a1", "connect")]


def swap_while_killed(site: Site) -> None:
    """While the component is not running, a2 goes and a1 comes."""
    _begin(site)
    site.kill(10.0, SWAP)
    site.advance(3500.0)


def swap_in_a_long_gap(site: Site) -> None:
    """While the bridge is down for long, a2 goes and a1 comes."""
    _begin(site)
    site.bridge_gap(700.0, SWAP)
    site.advance(3500.0)


def swap_in_an_overflow(site: Site) -> None:
    """The events of a2 going and a1 coming are dropped."""
    _begin(site)
    site.stall(10.0, SWAP, room=0)
    site.advance(3500.0)


def swap_with_the_broker(site: Site) -> None:
    """The broker restarts: a2 does not come back, a1 does, before the bridge."""
    _begin(site)
    site.restart_broker(1.0, 2.0, ["a1"])
    site.advance(3500.0)


def replayed_message(site: Site) -> None:
    """a1 comes back unheard; a retained message of a3, which is gone, comes once."""
    _begin(site)
    site.move("a3", "connect")
    site.advance(10.0)
    site.move("a3", "disconnect")
    site.bridge_gap(10.0, [("a1", "connect")])
    site.advance(100.0)
    site.replay("a3")
    site.advance(3500.0)


def unheard_visit(site: Site) -> None:
    """a1 comes in one gap and goes in another, without an event between; a2 speaks, so that nobody doubts it."""
    _begin(site)
    site.talk("a2", 70.0)
    site.advance(700.0)
    site.bridge_gap(10.0, [("a1", "connect")])
    site.advance(200.0)
    site.bridge_gap(10.0, [("a1", "disconnect")])
    site.advance(1500.0)


def quiet_gap(site: Site) -> None:
    """Nothing is heard for longer than maxQuiet."""
    _begin(site)
    site.bridge_gap(700.0)
    site.advance(700.0)


def clock_set(site: Site) -> None:
    """The wall clock is put forward by two minutes."""
    _begin(site)
    site.set_wall_clocks(115.0, 0.0)
    site.advance(200.0)


def killed_after_talk(site: Site) -> None:
    """a2 speaks, then the component is killed."""
    _begin(site)
    site.talk("a2", 60.0)
    site.advance(1500.0)
    site.kill(10.0)
    site.advance(100.0)


def two_words(site: Site) -> None:
    """a2 says two things, and then no more."""
    _begin(site)
    site.talk("a2", 460.0)
    site.advance(600.0)
    site.talk("a2", 0.0)
    site.advance(4000.0)


def swap_in_two_gaps(site: Site) -> None:
    """a2 goes in one gap; a1 comes in a later one, after counts that were lower; a retained message of a2 comes."""
    _begin(site)
    site.bridge_gap(10.0, [("a2", "disconnect")])
    site.advance(120.0)
    site.bridge_gap(10.0, [("a1", "connect")])
    site.advance(120.0)
    site.replay("a2")
    site.advance(4500.0)


def silent_connection(site: Site) -> None:
    """a2 stays connected without a word."""
    _begin(site)
    site.advance(3500.0)


@dataclass(frozen=True, slots=True)
class Case:
    """A planted bug, the history that shows it, on what kind of site, and the invariant that is violated."""

    bug: Callable[[Patch], None]
    history: Callable[[Site], None]
    invariant: str
    kind: str = "both"


CASES = (
    Case(any_disconnect_closes, takeover, "I4"),
    Case(ended_open_again, repeated_connect, "I4"),
    Case(more_is_enough, unheard_return, "I4"),
    Case(bridge_is_not_counted, unheard_leave, "I1"),
    Case(restart_keeps_sessions, swap_while_killed, "I4"),
    Case(gap_keeps_sessions, swap_in_a_long_gap, "I4"),
    Case(uptime_is_ignored, swap_with_the_broker, "I4"),
    Case(overflow_is_ignored, swap_in_an_overflow, "I2"),
    Case(first_message_opens, replayed_message, "I4"),
    Case(mismatch_restarts_nothing, unheard_visit, "I4"),
    Case(nothing_is_doubted, swap_in_two_gaps, "I4"),
    Case(a_word_confirms, swap_in_two_gaps, "I4"),
    Case(gap_is_credited, quiet_gap, "I2", "messages"),
    Case(wall_clock_is_used, clock_set, "I2"),
    Case(signs_are_not_committed, killed_after_talk, "I2", "messages"),
    Case(one_message_is_a_habit, two_words, "I1", "messages"),
    Case(presence_is_ignored, silent_connection, "I2"),
    Case(moment_is_skipped, silent_connection, "I1"),
    Case(notice_is_skipped, silent_connection, "I1"),
    Case(judging_changes_the_device, silent_connection, "I7"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.bug.__name__)
def test_history_catches_the_bug(case: Case, monkeypatch: Patch) -> None:
    """The component passes the history; with the bug planted the named invariant is violated."""
    case.history(Site(kind=case.kind, strict=True, sure=True))
    case.bug(monkeypatch)
    with pytest.raises(Violation, match=rf"^{case.invariant}: "):
        case.history(Site(kind=case.kind, strict=True, sure=True))


STEPS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("advance", (130.0,), {}),
    ("move", ("a2", "connect"), {}),
    ("set_wall_clocks", (-3.2e7, -3.2e7), {}),
    ("move", ("a1", "connect"), {}),
    ("advance", (700.0,), {}),
)


def replay() -> None:
    """I3: wall clocks put back by a year change no decision."""
    site = Site()
    for operation, arguments, named in STEPS:
        getattr(site, operation)(*arguments, **named)
    assert site.decisions == replayed(STEPS).decisions


def test_replay_catches_the_compared_time(monkeypatch: Patch) -> None:
    """The component passes the replay; with `connected_at` taken for a time it does not."""
    replay()
    connected_at_is_compared(monkeypatch)
    with pytest.raises(AssertionError):
        replay()


SEARCH = settings(
    max_examples=300,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
"""Bounded and the same each time; not shrunk, since the bug is known."""


@pytest.mark.parametrize(
    "bug",
    [
        gap_is_credited,
        wall_clock_is_used,
        presence_is_ignored,
        moment_is_skipped,
        notice_is_skipped,
        judging_changes_the_device,
        more_is_enough,
        overflow_is_ignored,
    ],
)
def test_search_catches_the_bug(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """The random search of `test_invariants` finds a history that shows the bug."""
    bug(monkeypatch)
    with pytest.raises(AssertionError, match=r"^I\d: "):
        run_state_machine_as_test(SiteMachine, settings=SEARCH)
