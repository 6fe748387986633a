"""The link finds out what has died, renews it, and says what fails meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.greengrass.ipc import Disconnected, Message, News, Refused, StreamClosed, Subscribed
from client_device_pruner.greengrass.link import HEARTBEAT, IN, PROBE, SELF_TEST, Link
from fakes.clock import FakeClock
from fakes.ipc import FakeIpc


class Site:
    """A link as the component runs it, on fake Greengrasses made by each attempt to connect."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.news: list[News] = []
        self.returns: list[tuple[float, float]] = []
        self.gaps: list[str] = []
        self.exits: list[str] = []
        self.attempts = 0
        self.reachable = True  # attempts to connect succeed
        self.deaf = False  # each new Greengrass delivers nothing
        self.link = Link(
            self.connect,
            self.exits.append,
            on_return=lambda sent, received: self.returns.append((sent, received)),
            on_gap=self.gaps.append,
        )
        self.connect()
        self.turn()

    def connect(self) -> None:
        """Make a new connection, or fail to."""
        self.attempts += 1
        if self.reachable:
            self.ipc = FakeIpc(self.clock, self.news.append, self.news.append)
            self.ipc.answers = not self.deaf
            self.link.connected(self.ipc, self.clock.now)
        else:
            self.link.lost("refused", self.clock.now, refused=True)

    def turn(self) -> float:
        """Take the news, then do what is due; gives when to come next."""
        due = self.link.tick(self.clock.now)
        while self.news:
            self.take(self.news.pop(0))
            due = self.link.tick(self.clock.now)
        return due

    def take(self, news: News) -> None:
        """Hand one piece of news to the link."""
        at = self.clock.now
        match news:
            case Message(topic, _, received):
                self.link.take(topic, received)
            case Subscribed():
                self.link.subscribed(at)
            case StreamClosed():
                self.link.stream_closed(at)
            case Disconnected(reason):
                self.link.lost(reason, at, refused=False)
            case Refused():
                self.link.refused(news, at)
            case _:
                pytest.fail(f"unexpected: {news}")

    def run(self, seconds: float) -> None:
        """Let time pass; the link is called whenever it wants to be."""
        end = self.clock.now + seconds
        while (due := max(self.turn(), self.clock.now + 0.001)) <= end:
            self.clock.now = due
        self.clock.now = end
        self.turn()


@pytest.fixture
def site() -> Site:
    """A link whose first probe has come back."""
    return Site()


def test_a_probe_returns_each_interval(site: Site) -> None:
    """The first probe goes out with the subscription, the next ones an interval apart, and nothing else is sent."""
    site.run(180)
    begun = site.returns[0][0]
    assert site.returns == [(begun + 60 * n, begun + 60 * n) for n in range(4)]
    assert (site.gaps, site.link.trouble, site.ipc.published) == (["a new subscription"], "", [])


def test_a_lost_probe_is_a_gap_however_soon_the_next_one_returns(site: Site) -> None:
    """Case 27: one that does not come back is told; its successor goes out on time and counts again."""
    site.ipc.carries_probe = False
    site.run(60)
    site.ipc.carries_probe = True
    del site.gaps[:]
    site.run(60)
    assert site.gaps == ["a probe did not come back"]
    assert len(site.returns) == 2
    assert site.link.trouble == ""


def test_a_late_probe_is_no_return(site: Site) -> None:
    """What comes back after its successor was due, or twice, counts for nothing."""
    site.ipc.carries_probe = False
    site.run(60)
    probe = IN + site.ipc.last_probe
    assert site.link.take(probe, site.clock.now + 60.1)
    assert len(site.returns) == 1
    assert site.link.take(probe, site.clock.now + 1)
    assert site.link.take(probe, site.clock.now + 2)
    assert len(site.returns) == 2


def test_a_heartbeat_counts_as_the_return_of_the_probe(site: Site) -> None:
    """A publisher that cannot echo tells with it that it works; one that was received earlier tells nothing."""
    site.ipc.carries_probe = False
    site.run(60)
    assert site.link.take(HEARTBEAT, site.clock.now - 0.1)
    assert len(site.returns) == 1
    assert site.link.take(HEARTBEAT, site.clock.now + 20)
    assert site.returns[1:] == [(site.clock.now, site.clock.now + 20)]


def test_what_is_not_the_link_s(site: Site) -> None:
    """Other messages are left to others; probes of another process are taken and count for nothing."""
    assert not site.link.take(f"{IN}clients/pump-7/telemetry", site.clock.now)
    assert site.link.take(f"{IN}{PROBE}another-1", site.clock.now)
    assert site.link.take(SELF_TEST, site.clock.now)
    assert len(site.returns) == 1


def test_an_extra_probe(site: Site) -> None:
    """The preflight's probe returns by itself or with a heartbeat, and is no regular return."""
    site.ipc.carries_probe = False
    first = site.link.send_extra(site.clock.now)
    assert not first.returned
    site.link.take(HEARTBEAT, site.clock.now + 1)
    assert first.returned
    site.ipc.carries_probe = True
    second = site.link.send_extra(site.clock.now)
    site.turn()
    assert second.returned
    assert len(site.returns) == 1


def test_a_broken_bridge_renews_nothing(site: Site) -> None:
    """The self-test comes back, so that the bridge or the broker is at fault; the process goes on for days."""
    site.ipc.carries_probe = False
    broken = site.clock.now
    site.run(86_400)
    assert "does not come back from the broker" in site.link.trouble
    assert site.link.trouble_since == broken + 120
    assert (site.ipc.subscribed, site.attempts, site.exits) == (1, 1, [])
    site.ipc.carries_probe = True
    site.run(60)
    assert site.link.trouble == ""


def test_a_subscription_that_died_silently_is_made_anew(site: Site) -> None:
    """On Greengrass Lite no callback tells it; the probe does, in a trial within seconds."""
    for interval in (60, 2):
        site.link.use(interval, interval / 60)
        site.run(60)
        site.ipc.drop()
        site.run(interval * 2.25 + 1)
        assert (site.link.trouble, site.gaps[-1]) == ("", "a new subscription")
    assert (site.ipc.subscribed, site.attempts, site.exits) == (3, 1, [])


@pytest.mark.parametrize(("end", "told", "attempts"), [("stream", "does not work", 1), ("daemon", "(gone)", 2)])
def test_what_ends_with_a_notice_is_made_anew_within_seconds(site: Site, end: str, told: str, attempts: int) -> None:
    """A subscription on the same connection, or the connection."""
    site.ipc.close_stream() if end == "stream" else site.ipc.disconnect()
    site.turn()
    assert told in site.link.trouble
    site.run(5)
    assert (site.attempts, site.link.trouble, site.exits) == (attempts, "", [])


def test_the_remedies_come_in_order(site: Site) -> None:
    """Subscribe anew, connect anew, end the process; while it may not end, connecting goes on every half minute."""
    site.deaf = True
    site.ipc.answers = False
    site.run(60 + 60)
    assert (site.ipc.subscribed, site.attempts) == (1, 1)
    site.run(15)
    assert (site.ipc.subscribed, site.attempts) == (2, 1)
    assert "the component subscribes again" in site.link.trouble
    assert site.link.trouble_since == site.returns[0][0] + 120
    site.run(15)
    assert (site.attempts, site.exits) == (2, [])
    assert "the component connects again" in site.link.trouble
    site.run(15)
    assert len(site.exits) == 1
    assert "twice an hour" in site.link.trouble
    site.run(450)
    assert site.attempts == 12
    site.deaf = False
    site.run(60)
    assert site.link.trouble == ""


def test_a_daemon_that_stays_away(site: Site) -> None:
    """Case 24: after two failed attempts the process asks to end; if it may not, it says so and goes on trying."""
    site.reachable = False
    site.ipc.disconnect()
    site.turn()
    lost = site.clock.now
    site.run(5)
    assert site.exits == []
    site.run(5)
    assert site.exits == ["no connection to Greengrass: refused"]
    site.run(290)
    assert site.attempts == 12
    assert "every 30 s" in site.link.trouble
    assert "twice an hour" in site.link.trouble
    assert site.link.trouble_since == lost
    site.reachable = True
    site.run(30)
    assert site.link.trouble == ""


@pytest.mark.parametrize("refused", [("SubscribeToTopic", f"{IN}#"), ("PublishToTopic", "client-device-pruner/*")])
def test_a_missing_permission_is_waited_for(site: Site, refused: tuple[str, str]) -> None:
    """Neither connecting nor ending helps; end-to-end tests show what is said, and that a deployment heals it."""
    site.take(Refused("PublishToIoTCore", "client-device-pruner/core/events", "no", unauthorized=False))
    assert not site.link.findings, "no permission is missing where a call fails otherwise"
    site.ipc.refusals = {refused, ("PublishToTopic", f"{PROBE}*")}
    site.ipc.close_stream()
    site.run(3600)
    assert "a permission is missing" in site.link.trouble
    assert (site.attempts, site.exits) == (1, [])


FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "close", "disconnect", "freeze", "away", "bridge", "refuse", "deploy", "heal"]),
        st.floats(0, 200),
    ),
    max_size=12,
)


@given(FAULTS)
def test_whatever_fails_the_probe_comes_back_once_all_is_well(faults: list[tuple[str, float]]) -> None:
    """No order of faults leaves the link stuck; every return that it tells came before its successor was due."""
    site = Site()

    def cause(fault: str) -> None:
        match fault:
            case "drop":
                site.ipc.drop()
            case "close":
                site.ipc.close_stream()
            case "disconnect":
                site.ipc.disconnect()
            case "freeze":
                site.ipc.answers, site.deaf = False, True
            case "away":
                site.reachable = False
            case "bridge":
                site.ipc.carries_probe = False
            case "refuse":
                site.ipc.refusals = {("SubscribeToTopic", f"{IN}#")}
            case "deploy":
                site.link.deployed()
            case _:
                site.reachable, site.deaf = True, False
                site.ipc.answers, site.ipc.carries_probe, site.ipc.refusals = True, True, set()

    for fault, seconds in faults:
        cause(fault)
        site.run(seconds)
    cause("heal")
    healed = site.clock.now
    site.run(150)
    assert site.link.trouble == ""
    assert site.returns[-1][1] > healed
    assert all(sent <= received <= sent + 60 for sent, received in site.returns)


def test_a_later_probe_that_comes_back_first_shows_that_the_regular_one_is_lost() -> None:
    """Messages keep their order: the bridge was away when the regular one was sent."""
    site = Site()
    site.ipc.carries_probe = False
    site.clock.advance(60)
    site.turn()
    site.gaps.clear()
    site.ipc.carries_probe = True
    extra = site.link.send_extra(site.clock.advance(1))
    site.turn()
    assert extra.returned
    assert site.gaps == ["a probe did not come back"]
