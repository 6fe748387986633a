"""The verdict in sentences."""

from __future__ import annotations

import re

from client_device_pruner.decisions import explain
from client_device_pruner.decisions.policy import UNNAMED, State
from fakes.site import DAY, Site


def _text(site: Site, name: str = "pump-7") -> str:
    facts = site.facts
    device = site.device(name)
    document = explain.document(site.verdict(name), device, site.settings, facts, site.presence.replays.hint(name))
    text = " ".join(document["sentences"])
    assert set(re.findall(r"{(\w+)}", text)) <= {"silent", "lastSeen", "left", "due"}
    return text


def _left() -> Site:
    site = Site()
    site.associate("pump-7")
    site.connected("pump-7", 1)
    site.minutes(1)
    site.disconnected("pump-7", 1)
    site.counts = 1
    site.minutes(12)
    return site


def test_a_connected_device() -> None:
    """Where it is, how long it would have to be silent, and what would happen if it left; its keepalive (case 12)."""
    site = Site()
    site.associate("pump-7")
    site.connected("pump-7", 1)
    text = _text(site)
    assert "It is connected: the broker announced that it connected" in text
    assert "silent for 30d (offlineThreshold)" in text
    assert "disassociated in 31d at the earliest" in text
    site.connected("pump-7", 2, keepalive=0)
    assert "connected without keepalive" in _text(site)


def test_what_makes_patient_where_the_broker_announces_nothing_is_told() -> None:
    """Too few messages, or a hole: why it takes longer than twice its longest silence."""
    site = Site()
    site.associate("pump-7")
    for word in range(5):
        site.message("pump-7")
        site.minutes(1)
        if word == 0:
            assert "too short a time (from its first message to its last it has to be 7d12h at least)" in _text(site)
        site.days(20)
        if word == 1:
            assert "for 120d, 4 times offlineThreshold: the broker announces no connections, and fewer" in _text(site)
            assert "It published over 7d12h or more, so the component would hear it" in _text(site)
    assert "before, and twice that is more than offlineThreshold" in _text(site)
    site.days(5)
    site = site.restarted(boot="another")
    assert "and since then the core device started" in _text(site)


def test_a_list_counts_against_the_events() -> None:
    """One that names the bridge: what is on it is present, whatever was announced."""
    site = _left()
    site.list("pump-7")
    assert site.facts.is_present(site.device("pump-7"))
    assert "announced that it disconnected, but lists it: the list counts" in _text(site)


def test_what_shows_that_it_is_gone_or_is_missing() -> None:
    """More unnamed connections than when it left: the client list would tell."""
    site = _left()
    assert "1 connection that cannot be named, not more than the 1 when it left" in _text(site)
    site.counts = 3
    site.minutes(12)
    text = _text(site)
    assert "3 connections that cannot be named, where it had 1 when the device left" in text
    assert "presence.clientList.url" in text


def test_the_whole_way_to_the_disassociation() -> None:
    """Gone, marked, due; the grace period runs on observed time."""
    site = _left()
    site.days(31)
    assert "the next cycle marks it" in _text(site)
    site.device("pump-7").marked_at = site.presence.observed.seconds
    assert "disassociated in {due} at the earliest, unless it is seen" in _text(site)
    site.clock.advance(10 * DAY)
    assert site.verdict("pump-7").state is State.MARKED
    site.minutes(2)
    site.days(1)
    assert "Its grace period is over: the next cycle checks it once more" in _text(site)
    assert site.verdict("pump-7").state is State.DUE


def test_a_raised_patience_is_explained() -> None:
    """It is twice the longest silence, at most four times the threshold."""
    site = _left()
    device = site.device("pump-7")
    device.longest_silence = 20 * DAY
    assert "silent for 20d before, and twice that is more than offlineThreshold" in _text(site)
    assert site.verdict("pump-7").patience_seconds == 40 * DAY
    device.longest_silence = 200 * DAY
    assert "; 4 times offlineThreshold is the limit" in _text(site)
    assert site.verdict("pump-7").patience_seconds == 120 * DAY


def test_a_never_seen_device() -> None:
    """On a broker that tells nothing about connections it stays; and one that is never removed."""
    site = Site()
    site.associate("pump-7")
    assert "never been seen" in _text(site)
    assert "gone after 90d (neverSeenThreshold)" in _text(site)
    assert "announces no connections, and the device was never heard" in _text(site)
    site.days(100)
    assert not site.verdict("pump-7").gone
    site.settings = Site({"neverSeenThreshold": ""}).settings
    assert "never disassociated" in _text(site)


def test_the_fingerprint_changes_with_the_sentences() -> None:
    """And not with time alone, so that little is written."""
    site = _left()

    def fingerprint() -> object:
        facts = site.facts
        return explain.summary(site.verdict("pump-7"), site.device("pump-7"), facts)

    before = fingerprint()
    site.minutes(5)
    assert fingerprint() == before
    site.counts = 4
    site.minutes(12)
    assert fingerprint() != before
    device = site.device("pump-7")
    device.marked_at, device.silent_since = 0.0, site.facts.observed_seconds - 30 * DAY + 60
    before = fingerprint()
    site.minutes(2)
    assert fingerprint() != before
    for days in (200, 300):
        before, site.device("pump-7").longest_silence = fingerprint(), days * DAY
        assert fingerprint() != before


def test_coverage_tells_what_could_not_be_removed_and_why() -> None:
    """Devices that are connected will have a figure of their own when they leave."""
    site = Site({"protectedDevices": ["gate-*"]})
    site.associate("pump-7", "pump-8", "gate-1")
    site.connected("pump-8", 1)
    site.counts = 4
    site.minutes(12)
    obstacles = [explain.obstacle(site.verdict(name)) for name in ("pump-7", "pump-8", "gate-1")]
    assert obstacles == [UNNAMED, "", "protectedDevices names them"]
