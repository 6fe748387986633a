"""The check in the moment: fresh vouchers of the proving sources first, then the self-test's echo."""

from __future__ import annotations

import pytest

from client_device_pruner.ledger import Ledger
from client_device_pruner.model import Hold
from client_device_pruner.moment import Moment
from client_device_pruner.self_test import SelfTest
from client_device_pruner.settings import parse
from client_device_pruner.sources import Sources

PREFIX = "client-device-pruner/in/"


class Check:
    """Both default sources vouch when the check begins, at 1000 s."""

    def __init__(self, *names: str) -> None:
        self.ledger = Ledger(None, 0.0)
        self.sources = Sources(parse({}), self.ledger, 0.0)
        self.self_test = SelfTest(1.0)
        self.sent: list[str] = []
        for at in (900.0, 960.0):
            self.count(at)
            self.speak(at)
        ids = [self.ledger.sources[name].source_id for name in names]
        self.moment = Moment(
            ids,
            1000.0,
            sources=lambda: self.sources,
            self_test=self.self_test,
            send_echo=self.sent.append,
            scale=1.0,
        )

    def count(self, at: float, number: int = 1) -> None:
        """The broker counts."""
        self.sources.take(f"{PREFIX}$SYS/brokers/n/stats/live_connections/count", str(number).encode(), at)

    def speak(self, at: float) -> None:
        """The canary comes back."""
        self.sources.take(f"{PREFIX}clients/pruner-canary/telemetry", b"", at)

    def echo(self) -> None:
        """What was sent last comes back."""
        self.self_test.echo(self.sent[-1].encode())

    def hold(self, at: float) -> Hold:
        """The check is over, and this held it up."""
        over, hold = self.moment.poll(at)
        assert over
        assert hold
        return hold


def test_a_voucher_from_before_it_began_is_not_fresh() -> None:
    """What vouched a moment ago may have missed what happened since."""
    check = Check("messages")
    assert check.moment.poll(1000.0) == (False, None)
    assert check.sent == []
    check.speak(1001.0)
    assert check.moment.poll(1001.0) == (False, None)
    assert len(check.sent) == 1


@pytest.mark.parametrize(("counted", "fresh"), [(1000.1, False), (1004.9, False), (1005.0, True)])
def test_a_census_must_be_five_seconds_younger(counted: float, fresh: bool) -> None:
    """EMQX samples its count apart from its events."""
    check = Check("emqx")
    check.count(counted)
    check.moment.poll(counted)
    assert bool(check.sent) is fresh


def test_it_is_over_when_the_echo_has_come_back() -> None:
    """Then all that was sent before it has been processed."""
    check = Check("emqx", "messages")
    check.speak(1001.0)
    check.moment.poll(1001.0)
    check.count(1010.0)
    assert check.moment.poll(1010.0) == (False, None)
    assert check.moment.poll(1011.0) == (False, None)
    assert len(check.sent) == 1
    check.echo()
    assert check.moment.poll(1011.5) == (True, None)


def test_an_older_echo_is_not_its_own() -> None:
    """A self-test that was under way when it began shows nothing."""
    check = Check("messages")
    earlier = check.self_test.next(999.0)
    check.speak(1001.0)
    check.moment.poll(1001.0)
    check.self_test.echo(earlier.encode())
    assert check.moment.poll(1002.0) == (False, None)


def test_a_mismatch_is_no_voucher() -> None:
    """Somebody unannounced came in that moment: the check ends without one."""
    check = Check("emqx")
    check.count(1010.0, 2)
    check.count(1070.0, 2)
    assert check.moment.poll(1185.0) == (False, None)
    assert check.hold(1185.1).guard == "source:emqx"


def test_the_first_voucher_after_a_gap_is_none() -> None:
    """It tells nothing of what was lost before it."""
    check = Check("messages")
    check.sources.overflow(1000.5)
    check.speak(1001.0)
    check.moment.poll(1001.0)
    assert not check.sent
    check.speak(1002.0)
    check.moment.poll(1002.0)
    assert check.sent


def test_its_patience_ends_with_max_quiet_or_ten_minutes() -> None:
    """A source that brings nothing holds the cycle up no longer."""
    check = Check("messages")
    assert check.moment.poll(1605.0) == (False, None)
    hold = check.hold(1605.1)
    assert hold.guard == "source:messages"
    assert "no fresh voucher" in hold.reason
    assert check.sent == []


def test_an_echo_that_stays_away_holds() -> None:
    """Fifteen seconds after it was sent."""
    check = Check("messages")
    check.speak(1001.0)
    check.moment.poll(1001.0)
    assert check.moment.poll(1016.0) == (False, None)
    assert "did not come back" in check.hold(1016.1).reason


def test_a_source_that_is_switched_off_meanwhile_holds() -> None:
    """What it proved, nobody vouches for any more."""
    check = Check("messages")
    check.sources = Sources(parse({"sources": {"messages": {"enabled": False}}}), check.ledger, 1001.0, check.sources)
    assert "no longer in force" in check.hold(1002.0).reason


def test_a_fresh_source_is_not_asked_again() -> None:
    """A voucher that came stays one, also when the other source's comes minutes later."""
    check = Check("emqx", "messages")
    check.count(1010.0)
    check.moment.poll(1010.0)
    check.speak(1190.0)
    check.moment.poll(1200.0)
    assert len(check.sent) == 1
