"""Sightings, silence and the inputs."""

from __future__ import annotations

import re

import pytest

from client_device_pruner.config.emqx import NoAccess
from client_device_pruner.config.finding import Finding
from client_device_pruner.presence.client_list import ClientList
from client_device_pruner.presence.devices import HALF_YEAR_SECONDS
from fakes.site import ACCESS, DAY, Site


def test_a_sighting_before_the_first_list_ends_no_silence() -> None:
    """What is written between two probes dates a sighting twice; the time before it was ever known is no silence."""
    site = Site()
    site.days(100)
    site.connected("pump-7")
    site.presence.stamp()
    site.minutes(2)
    assert site.device("pump-7").longest_silence == 0.0


def test_a_sighting_counts_as_made_at_the_next_return_of_the_probe() -> None:
    """Never earlier: the clock may advance over it."""
    site = Site()
    site.associate("pump-7")
    site.minutes(5)
    site.message("pump-7")
    assert site.verdict("pump-7").silent_seconds == 0
    site.minutes(1)
    assert site.device("pump-7").silent_since == site.presence.observed.seconds


def test_what_was_heard_before_the_first_listing_counts() -> None:
    """Devices that connect and leave before the first list were seen (case 26)."""
    site = Site()
    site.connected("pump-7", 1)
    site.disconnected("pump-7", 1)
    site.probe()
    site.associate("pump-7")
    assert site.device("pump-7").seen_by == "disconnected"
    assert site.verdict("pump-7").state.value == "silent"
    site.message("pump-8")
    for number in range(10_000):
        site.message(f"tool-{number}")  # more names than are kept
    site.associate("pump-7", "pump-8")
    site.probe()
    assert site.verdict("pump-8").state.value == "silent"


def test_a_commit_keeps_what_came_since_the_last_probe() -> None:
    """A crash after it loses no sighting."""
    site = Site()
    site.associate("pump-7")
    site.minutes(10)
    site.message("pump-7")
    again = site.restarted()
    assert again.device("pump-7").silent_since == again.presence.observed.seconds


def test_the_longest_silence_is_that_which_a_sighting_ended() -> None:
    """Also over two half-years; the time before is forgotten."""
    site = Site()
    site.associate("pump-7")
    site.message("pump-7")
    site.probe()
    site.days(20)
    site.message("pump-7")
    site.minutes(1)
    device = site.device("pump-7")
    at = site.presence.observed.seconds
    assert device.longest(at) == pytest.approx(20 * DAY, abs=120)
    assert device.longest(at + HALF_YEAR_SECONDS) == pytest.approx(20 * DAY, abs=120)
    assert device.longest(at + 2 * HALF_YEAR_SECONDS) == 0
    site.days(365)
    site.message("pump-7")
    site.minutes(1)
    assert device.longest(site.presence.observed.seconds) == pytest.approx(365 * DAY, abs=200)


@pytest.mark.parametrize("heard", [True, False])
def test_a_session_is_no_silence(heard: bool) -> None:
    """A device that was connected for 20 days without a word was not silent, nor where the broker ends it unheard."""
    site = Site()
    site.uptime(1_000)
    site.associate("pump-7")
    site.connected("pump-7", 1)
    site.probe()
    site.days(20)
    assert site.verdict("pump-7").silent_seconds == 0
    if heard:
        site.disconnected("pump-7", 1)
    else:
        site.uptime(10)
    site.minutes(1)
    assert not site.device("pump-7").session
    assert site.device("pump-7").longest(site.presence.observed.seconds) == 0
    assert site.verdict("pump-7").silent_seconds < 120


@pytest.mark.parametrize("payload", [b"", b"offline", b"Offline", b'"offline"', b'{"state":"offline"}'])
def test_a_last_will_is_no_sign_of_life(payload: bytes) -> None:
    """Whatever its spelling, with the default and one glob; nor is an empty payload (case 11)."""
    site = Site({"presence": {"ignoredPayloads": ["offline", '*"state":"offline"*']}})
    site.associate("pump-7")
    site.message("pump-7", payload)
    site.probe()
    assert not site.device("pump-7").seen_by


def test_what_cannot_be_read_is_no_sighting() -> None:
    """Bad input loses nothing and shows nothing."""
    site = Site()
    for topic, payload in (
        ("clients/x/connected", b"{"),
        ("clients/x/connected", b"[]"),
        ("clients/x/connected", b'{"clientid": 7}'),
        ("clients/x/connected", b'{"clientid": "' + b"x" * 300 + b'"}'),
        ("clients/x/subscribed", b'{"clientid": "x"}'),
        ("stats/live_connections/count", b"many"),
        ("stats/live_connections/count", b"9" * 5_000),
        ("clients/x/connected", b'{"clientid": []}'),
        ("clients/x/connected", b'{"clientid": "\\ud800x"}'),
        ("uptime", b"-1"),
        ("clients", b"[" * 100_000),
    ):
        site.heard(topic, payload)
    assert not site.presence.devices.by_name


def test_a_lost_count_stops_the_clock() -> None:
    """The count is an input once it was heard: three minutes without one are not observed."""
    site = Site()
    site.counts = 1
    site.minutes(5)
    before = site.presence.observed.seconds
    site.counts = None
    site.minutes(10)
    assert site.presence.observed.seconds - before <= 180
    events = site.presence.inputs(site.clock.now)["connectionEvents"]
    assert (events.in_use, events.alive) == (True, False)
    assert "presence.connectionEvents" in events.remedy
    again = site.restarted()
    again.minutes(10)
    assert again.presence.observed.seconds - before <= 180


def test_a_list_is_believed_if_it_names_the_bridge_or_a_known_session() -> None:
    """Another broker's list, or an incomplete one, says nothing; the session was open before the call began."""
    site = Site()
    site.presence.use_list(ACCESS)
    site.associate("pump-7")
    start = site.clock.now
    for began, believed in ((start, False), (start, False), (start + 2, True)):
        site.presence.take_list(ClientList(frozenset({"pump-7"}), began, site.clock.now))
        told = site.presence.inputs(site.clock.now)["clientList"]
        assert site.facts.list_in_use is told.in_use is believed
        assert ("names neither the bridge nor a session that is known to be open" in told.reason) is not believed
        site.clock.advance(1)
        site.connected("pump-7", 1)


def test_a_list_that_stays_away_stops_the_clock() -> None:
    """Three intervals without an answer are not observed, also after a restart."""
    site = Site({"presence": {"clientList": {"interval": "1m"}}})
    site.list("pump-7")
    site.minutes(3)
    before = site.presence.observed.seconds
    site.minutes(10)
    assert site.presence.observed.seconds - before <= 60
    again = site.restarted()
    again.presence.use_list(NoAccess("not on the loopback alone", Finding("open", "{}")))
    again.minutes(10)
    listing = again.presence.inputs(again.clock.now)["clientList"]
    assert again.presence.observed.seconds - before <= 60
    assert (listing.alive, listing.reason) == (False, "not on the loopback alone")
    assert re.fullmatch('{}\n.*presence.clientList.url to "".*', listing.remedy)


def test_why_a_list_is_not_in_use() -> None:
    """What its configuration lacks now, whatever failed before: the doctor says the same."""
    site = Site()
    site.presence.use_list(ACCESS)
    site.presence.listing.failed("refused")
    assert site.presence.inputs(site.clock.now)["clientList"].reason == "refused"
    site.presence.use_list(NoAccess("not on the loopback alone", Finding("open", "{}")))
    listing = site.presence.inputs(site.clock.now)["clientList"]
    assert (listing.in_use, listing.reason, listing.remedy) == (False, "not on the loopback alone", "{}")


def test_a_new_association_is_listed_anew_and_takes_a_mark_off() -> None:
    """What is known of the name stays."""
    site = Site()
    site.associate("pump-7")
    site.message("pump-7")
    site.days(40)
    site.device("pump-7").marked_at = site.presence.observed.seconds
    assert site.associate("pump-7", timestamp=2.0) == ("pump-7",)
    assert site.verdict("pump-7").silent_seconds == 0
    assert site.device("pump-7").seen_by == "message"


def test_a_name_that_left_the_list_is_kept_for_90_days() -> None:
    """Then its row goes, unless it is connected."""
    site = Site()
    site.associate("pump-7", "pump-8")
    site.connected("pump-8", 1)
    site.connected("pump-8", 2)
    site.associate()
    site.days(89)
    site.associate()
    assert {"pump-7", "pump-8"} <= site.presence.devices.by_name.keys()
    site.days(2)
    site.associate()
    assert "pump-7" not in site.presence.devices.by_name
    assert "pump-8" in site.presence.devices.by_name


def test_what_was_heard_before_the_state_could_be_read_is_taken_over() -> None:
    """The disk failed at the start: sightings and sessions of that time are newer than what is stored."""
    stored, meanwhile = Site(), Site()
    for name in ("pump-7", "pump-8"):
        stored.connected(name, 1)
    stored.associate("pump-7", "pump-8")
    stored.days(9)
    meanwhile.disconnected("pump-7", 1)
    stored.presence.take_over(meanwhile.presence)
    stored.probe()
    assert not stored.device("pump-7").session
    assert stored.device("pump-8").session
    assert stored.presence.sessions.open == 1
    assert stored.device("pump-7").silent_since == stored.presence.observed.seconds


def test_names_that_wait_for_a_probe_are_bounded() -> None:
    """While none comes back, sightings are dated by the clock that stands still."""
    site = Site()
    site.associate("pump-7")
    for number in range(25_000):
        site.message(f"tool-{number}")
    site.message("pump-7")
    site.presence.stamp()
    assert len(site.presence.devices.by_name) <= 10_001
    assert site.device("pump-7").seen_by == "message"


def test_retained_messages_are_pointed_out() -> None:
    """A device that only repeats itself, together with others, may be dead: the topic is named, once (case 10)."""
    site, hints = Site(), set()
    site.associate("pump-7", "pump-8", "pump-9")
    for _reconnection in range(5):
        for name in ("pump-7", "pump-8", "pump-9"):
            site.message(name, b"online", "clients/{}/status")
        site.minutes(60)
        site.message("pump-9", b"22.5")
        site.minutes(60)
        hints.add(site.presence.replays.hint("pump-7"))
    _none, hint = sorted(hints)
    assert "clients/pump-7/status" in hint
    assert site.presence.replays.hint("pump-9") == ""


def test_what_was_present_by_another_input_was_present_until_now() -> None:
    """Switching an input on or off makes nobody silent for the time that it was connected."""
    site = Site()
    site.associate("pump-7", "lamp-1")
    site.connected("pump-7", 1)
    site.connected("lamp-1", 2)
    site.probe()
    site.days(40)
    site.list("lamp-1")
    assert site.verdict("pump-7").silent_seconds == 0
    site.minutes(5)
    assert site.verdict("pump-7").silent_seconds < 600
    site.days(1)
    site.list("lamp-1")
    site.presence.use_list(NoAccess("off", off=True))
    site.settings = Site({"presence": {"connectionEvents": False}}).settings
    site.presence.use(site.settings)
    assert site.verdict("lamp-1").silent_seconds < 600
