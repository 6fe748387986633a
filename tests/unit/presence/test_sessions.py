"""Sessions, and the broker's restarts."""

from __future__ import annotations

import pytest

from fakes.site import Site

C, D = "connected", "disconnected"
Event = tuple[str, int] | tuple[str, int, str]


@pytest.mark.parametrize(
    ("events", "session"),
    [
        pytest.param([(C, 10), (C, 20), (D, 10)], 20, id="the old session's end comes late"),
        pytest.param([(C, 10), (D, 10), (C, 10)], None, id="one that ended never opens again"),
        pytest.param([(C, 10), (D, 10), (D, 10, "discarded"), (C, 20)], 20, id="a persistent one is replaced: case 36"),
        pytest.param([(D, 10, "takenover"), (C, 20)], 20, id="a takeover"),
        pytest.param([(C, 20), (D, 10, "takenover")], 20, id="a takeover, the other way round"),
    ],
)
def test_what_events_make_of_a_session(events: list[Event], session: int | None) -> None:
    """They come twice and out of order; each one is a sighting."""
    site = Site()
    for kind, *event in events:
        getattr(site, kind)("pump-7", *event)
        site.clock.advance(2)
    site.probe()
    device = site.device("pump-7")
    assert (device.session_id if device.session else None) == session
    assert device.silent_since == site.presence.observed.seconds
    if session:
        site.disconnected("pump-7", session)
        assert not device.session


def test_a_takeover_leaves_the_session_open() -> None:
    """The `connected` of the connection that took over may be lost: the device is present all the same."""
    site = Site()
    site.connected("pump-7", 10)
    site.clock.advance(60)
    site.disconnected("pump-7", 10, "takenover")
    assert site.device("pump-7").session
    assert site.device("pump-7").session_id is None


def test_two_units_with_one_id_are_one_session() -> None:
    """They take over from each other every second: present, and counted once (case 8)."""
    site = Site()
    for number in range(1, 2_000):
        if number % 2:
            site.disconnected("pump-7", number - 1, "takenover")
            site.connected("pump-7", number)
        else:
            site.connected("pump-7", number)
            site.disconnected("pump-7", number - 1, "takenover")
        site.clock.advance(1)
        assert site.device("pump-7").session
    assert site.presence.sessions.open == 1
    site.disconnected("pump-7", 1_999, "normal")
    assert not site.device("pump-7").session


def test_an_end_whose_beginning_was_not_heard_is_a_departure() -> None:
    """Its figure is taken then, and one of an earlier departure is forgotten; nothing is open any more."""
    site = Site()
    site.connected("pump-7", 1)
    site.disconnected("pump-7", 1)
    site.clock.advance(10)
    site.count(3)
    assert (site.facts.unnamed, site.device("pump-7").then) == (3, 3)
    for opened in (None, 5):
        if opened:
            site.connected("pump-7", opened)
        site.clock.advance(3_600)
        site.disconnected("pump-7", 2 if opened is None else 6)
        assert (site.device("pump-7").session, site.device("pump-7").then) == (False, None)
        site.clock.advance(10)
        site.count(1)
        assert (site.facts.unnamed, site.device("pump-7").then) == (1, 1)


def test_messages_imply_a_session() -> None:
    """Two messages a minute to an hour apart imply one; one message, as a retained one, does not."""
    site = Site()
    site.connected("pump-7", 10)
    site.disconnected("pump-7", 10)
    for seconds, implied in ((0, False), (59, False), (3_700, False), (600, True)):
        site.clock.advance(seconds)
        site.message("pump-7")
        site.message("never announced")
        assert site.device("pump-7").session is implied
    site.disconnected("pump-7", 30)
    assert not site.device("pump-7").session
    assert not site.device("never announced").session


def test_retained_messages_of_two_reconnections_imply_no_session() -> None:
    """A lost probe between them says that the second one may be the first one again."""
    site = Site()
    site.connected("pump-7", 1)
    site.disconnected("pump-7", 1)
    site.probe()
    site.message("pump-7", b"online")
    site.presence.gap()
    site.clock.advance(600)
    site.message("pump-7", b"online")
    assert not site.device("pump-7").session


def test_a_restart_of_the_broker_ends_what_was_heard_before() -> None:
    """A shorter uptime ends all sessions but those opened since, and every count: for all that are away it is one."""
    site = Site()
    site.uptime(1_000)
    for name in ("left", "pump-1"):
        site.connected(name, 10)
    site.minutes(10)
    site.disconnected("left", 10)
    site.clock.advance(5)
    site.count(1)
    assert site.facts.unnamed == 0
    site.connected("pump-2", 20)
    site.clock.advance(5)
    site.uptime(10)
    assert site.device("pump-1").session
    site.probe()
    assert [site.device(name).session for name in ("pump-1", "pump-2")] == [False, True]
    assert site.facts.unnamed is None
    site.count(3)
    site.probe()
    assert site.facts.unnamed == 2
    assert [site.device(name).then for name in ("left", "pump-1")] == [1, None]


def test_a_late_uptime_is_no_restart() -> None:
    """What counts is the last uptime before a probe comes back, within a minute."""
    site = Site()
    site.uptime(1_000)
    site.connected("pump-1", 10)
    site.minutes(10)
    site.uptime(1_000 + 550)
    site.probe()
    assert site.device("pump-1").session


def test_another_node_is_another_broker() -> None:
    """A node of another name ends the sessions of the one before."""
    site = Site()
    site.uptime(1_000)
    site.connected("pump-1", 10)
    site.minutes(1)
    site.node = "emqx@172.17.0.2"
    site.connected("pump-2", 10)
    site.minutes(1)
    assert not site.device("pump-1").session
    assert site.device("pump-2").session


def test_a_boot_of_the_host_ends_all_sessions_and_a_restart_of_ours_none() -> None:
    """The broker runs on this host; the component's own end says nothing of it."""
    site = Site()
    site.uptime(1_000)
    site.connected("pump-1", 10)
    site.minutes(1)
    again = site.restarted()
    assert again.device("pump-1").session
    again.clock.advance(60)
    again.uptime(1_120)
    again.probe()
    assert again.device("pump-1").session
    assert again.restarted(boot="boot-2").presence.sessions.open == 0


def test_a_tool_with_a_new_id_at_each_start_leaves_no_session_behind() -> None:
    """A name that is not associated and was announced once loses its session at the next gap."""
    site = Site()
    site.associate("pump-7")
    site.connected("pump-7", 1)
    for number in range(20):
        site.connected(f"tool-{number}", number + 2)
    site.connected("dashboard", 50)
    site.disconnected("dashboard", 50)
    site.connected("dashboard", 51)
    site.presence.gap()
    assert site.presence.sessions.open == 22, "our own start ends none"
    site.probe()
    site.presence.gap()
    assert site.presence.sessions.open == 2


def test_refused_logins_are_no_sightings() -> None:
    """EMQX 4 announces a refused login as `connected` with another `connack` than 0 (case 9)."""
    site = Site()
    site.associate("pump-7")
    site.connected("pump-7", 10, connack=135)
    site.probe()
    assert not site.device("pump-7").seen_by
    assert not site.device("pump-7").session


def test_switching_connection_events_off_forgets_all() -> None:
    """What was learnt from them must not decide any more."""
    site = Site()
    site.connected("pump-7", 10)
    site.count(3)
    site.probe()
    site.settings = Site({"presence": {"connectionEvents": False}}).settings
    site.presence.use(site.settings)
    site.connected("pump-7", 20)
    assert not site.device("pump-7").session
    assert (site.facts.events_in_use, site.facts.count_in_use) == (False, False)


def test_the_bridge_has_no_session_once_its_client_id_is_known() -> None:
    """Its connection would be counted twice."""
    site = Site()
    site.connected("site-bridge", 1)
    assert site.presence.sessions.open == 1
    site.presence.use_bridge("site-bridge", (), frozenset())
    assert site.presence.sessions.open == 0


def test_a_broker_whose_uptime_is_not_heard_is_no_evidence() -> None:
    """It may have restarted, and the sessions that are known may be over."""
    site = Site()
    site.tells_uptime = False
    site.connected("pump-7", 1)
    site.counts = 2
    site.minutes(2)
    assert site.facts.count_problem == ""
    site.minutes(5)
    assert "uptime is not heard" in site.facts.count_problem
