"""Sessions, and the broker's restarts."""

from __future__ import annotations

from fakes.site import Site


def test_the_end_of_an_older_session_does_not_close_a_newer_one() -> None:
    """Events come out of order: the old session's end arrives after the new `connected`."""
    site = Site()
    site.connected("pump-7", 10)
    site.clock.advance(60)
    site.connected("pump-7", 20)
    site.disconnected("pump-7", 10)
    assert site.device("pump-7").session_id == 20
    site.disconnected("pump-7", 20)
    assert not site.device("pump-7").session


def test_a_session_that_ended_never_opens_again() -> None:
    """A `connected` that comes twice, the second time after the end, opens nothing."""
    site = Site()
    site.connected("pump-7", 10)
    site.disconnected("pump-7", 10)
    site.connected("pump-7", 10)
    assert not site.device("pump-7").session


def test_a_takeover_goes_on_whatever_the_order() -> None:
    """Two units with one id that take over from each other are one session, which is present (case 8)."""
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


def test_a_persistent_session_that_is_replaced() -> None:
    """The second end of a session is a repeat and a sighting; the new one stands (case 36)."""
    site = Site()
    site.connected("pump-7", 10)
    site.disconnected("pump-7", 10, "tcp_closed")
    site.days(2)
    site.disconnected("pump-7", 10, "discarded")
    site.connected("pump-7", 20)
    site.probe()
    device = site.device("pump-7")
    assert (device.session, device.session_id) == (True, 20)
    assert device.seen_at == site.presence.observed.seconds


def test_an_end_of_an_unheard_session_closes_the_known_one() -> None:
    """The `connected` of the session that ends was lost: nothing is open any more."""
    site = Site()
    site.connected("pump-7", 10)
    site.clock.advance(3600)
    site.disconnected("pump-7", 20)
    assert not site.device("pump-7").session


def test_messages_imply_a_session() -> None:
    """Two messages a minute to an hour apart imply one; one message, as a retained one, does not."""
    site = Site()
    site.connected("pump-7", 10)
    site.disconnected("pump-7", 10)
    site.message("pump-7")
    site.clock.advance(59)
    site.message("pump-7")
    assert not site.device("pump-7").session
    site.clock.advance(3_700)
    site.message("pump-7")
    assert not site.device("pump-7").session
    site.clock.advance(600)
    site.message("pump-7")
    assert site.device("pump-7").session
    site.disconnected("pump-7", 30)
    assert not site.device("pump-7").session


def test_a_name_that_was_never_announced_has_no_session() -> None:
    """Messages of a device whose connections the broker never announced imply none."""
    site = Site()
    for _minute in range(10):
        site.message("pump-7")
        site.minutes(1)
    assert not site.device("pump-7").session


def test_a_restart_of_the_broker_ends_what_was_heard_before() -> None:
    """A shorter uptime ends all sessions but those that opened since the broker's start."""
    site = Site()
    site.uptime(1_000)
    site.connected("pump-1", 10)
    site.minutes(10)
    site.connected("pump-2", 20)
    site.clock.advance(5)
    site.uptime(30)
    assert site.device("pump-1").session
    site.probe()
    assert not site.device("pump-1").session
    assert site.device("pump-2").session
    assert site.device("pump-1").then is None


def test_a_restart_of_the_broker_makes_every_count_from_before_it_worthless() -> None:
    """Nobody was connected then, so for all that are away only the bridge's connection was unnamed.

    Counts between the restart and the uptime that tells of it are made up with sessions that had ended.
    """
    site = Site()
    site.uptime(1_000)
    for name in ("left", "pump-1", "pump-2"):
        site.connected(name, 10)
    site.minutes(10)
    site.disconnected("left", 10)
    site.clock.advance(5)
    site.count(1)
    assert site.presence.facts(site.clock.now).unnamed == -1
    site.uptime(30)
    site.probe()
    assert site.device("left").then is None
    assert site.presence.facts(site.clock.now).unnamed is None
    site.count(3)
    site.probe()
    assert site.presence.facts(site.clock.now).unnamed == 3
    assert site.device("left").then is None


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
    booted = again.restarted(boot="boot-2")
    assert not booted.device("pump-1").session
    assert booted.presence.sessions.open == 0


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
    assert site.device("pump-7").seen_at is None
    assert not site.device("pump-7").session


def test_switching_connection_events_off_forgets_all() -> None:
    """What was learnt from them must not decide any more."""
    site = Site()
    site.connected("pump-7", 10)
    site.count(3)
    site.probe()
    site.settings = type(site)({"presence": {"connectionEvents": False}}).settings
    site.presence.use(site.settings)
    site.connected("pump-7", 20)
    facts = site.presence.facts(site.clock.now)
    assert not site.device("pump-7").session
    assert (facts.events_in_use, facts.count_in_use) == (False, False)


def test_an_end_whose_beginning_was_not_heard_is_a_departure() -> None:
    """Its figure is taken then, and one of an earlier departure is forgotten."""
    site = Site()
    site.connected("pump-7", 1)
    site.disconnected("pump-7", 1)
    site.clock.advance(10)
    site.count(3)
    assert site.presence.facts(site.clock.now).unnamed == 3
    assert site.device("pump-7").then == 3
    site.clock.advance(3_600)
    site.disconnected("pump-7", 2)
    assert site.device("pump-7").then is None
    site.clock.advance(10)
    site.count(1)
    assert site.presence.facts(site.clock.now).unnamed == 1
    assert site.device("pump-7").then == 1


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
    assert site.presence.facts(site.clock.now).count_problem == ""
    site.minutes(5)
    assert "uptime is not heard" in site.presence.facts(site.clock.now).count_problem
