"""All sources together: what goes where, what a changed configuration keeps, and which roll call is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner import sources as module
from client_device_pruner.ledger import Ledger
from client_device_pruner.model import Association, Proof, Witness
from client_device_pruner.settings import parse
from client_device_pruner.sources import ROLL_CALL, Sources
from client_device_pruner.topics import topic_matches

PREFIX = "client-device-pruner/in/"
LEVELS = st.sampled_from(["a", "b", "$a", ""])
CALL = {"rollCall": {"url": "http://127.0.0.1:18083/api/v5", "keyFile": "/key"}}


class Core:
    """Sources with a ledger, in which devices a and b are associated; time begins at 0."""

    def __init__(self, **settings: Any) -> None:
        self.ledger = Ledger(None, 0.0)
        self.sources = Sources(parse(settings), self.ledger, 0.0)
        self.ledger.reconcile([Association("a", 1.0), Association("b", 1.0)], 0.0)

    def change(self, at: float, **settings: Any) -> None:
        """Take over another configuration."""
        self.sources = Sources(parse(settings), self.ledger, at, self.sources)

    def take(self, topic: str, at: float, payload: object = b"", prefix: str = PREFIX) -> None:
        """Take a message as the bridge brings it."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.sources.take(prefix + topic, body, at)

    def event(self, name: str, kind: str, number: int, at: float) -> None:
        """Take a client event."""
        self.take(f"$SYS/brokers/n1/clients/{name}/{kind}", at, {"connected_at": number})

    def count(self, number: int, *moments: float) -> None:
        """Take counts of live connections."""
        for at in moments:
            self.take("$SYS/brokers/n1/stats/live_connections/count", at, number)

    def witness(self, name: str, at: float) -> Witness:
        """What one source says."""
        return next(witness for witness in self.sources.witnesses(at) if witness.name == name)

    def absence(self, name: str, source: str) -> float:
        """The absence of a device on a source's clock."""
        record = self.ledger.sources[source]
        marker = self.ledger.devices[name].marker(record.source_id)
        return record.clock.credit_seconds - max(marker, record.clock.floor_seconds)


@pytest.fixture
def core() -> Core:
    """The default sources."""
    return Core()


class TestRoutes:
    """Which message goes to which source."""

    def test_each_topic_reaches_its_source(self, core: Core) -> None:
        """Events, counts, uptimes and messages arrive with the prefix that the bridge puts before them."""
        core.event("a", "connected", 1, -10.0)
        core.count(2, 2.0, 62.0)
        core.take("clients/b/telemetry", 63.0)
        assert core.sources.present_names() == {"a"}
        assert core.witness("emqx", 63.0).clock_seconds == 60.0
        habits = core.ledger.devices["b"].habits
        assert habits
        assert [habit.heard for habit in habits.values()] == [1]
        core.take("$SYS/brokers/n1/uptime", 64.0, 5000)
        core.take("$SYS/brokers/n1/uptime", 65.0, 10)
        assert core.sources.present_names() == set()
        core.event("a", "connected", 2, 66.0)
        core.event("a", "disconnected", 2, 67.0)
        assert not core.sources.present("a")

    def test_topics_without_the_prefix_concern_nobody(self, core: Core) -> None:
        """What does not come through the bridge's entries is no witness."""
        for prefix in ("", "client-device-pruner/", "x/client-device-pruner/in/", PREFIX + "/"):
            core.take("clients/a/telemetry", 1.0, prefix=prefix)
        assert core.ledger.devices["a"].habits is None

    def test_without_a_prefix_topics_are_taken_as_they_are(self) -> None:
        """With an empty `inboundPrefix` each source has topics of its own."""
        core = Core(inboundPrefix="")
        core.take("clients/a/telemetry", 1.0, prefix="")
        assert core.ledger.devices["a"].habits

    def test_a_message_reaches_every_source_that_it_concerns(self) -> None:
        """Two sources may hear the same topic; one message is a message on both."""
        core = Core(sources={"births": {"type": "activity", "topic": "clients/+/birth", "canaryTopic": ""}})
        core.take("clients/a/birth", 1.0)
        assert len(core.ledger.devices["a"].habits or {}) == 2

    def test_the_thing_name_may_stand_on_another_level(self) -> None:
        """`thingNameLevel` says where; topics that are too short for it name nobody, and hurt nobody."""
        core = Core(
            sources={
                "emqx": {
                    "connectedTopic": "up/#",
                    "disconnectedTopic": "down/#",
                    "thingNameLevel": 3,
                },
                "messages": {"topic": "site/#", "thingNameLevel": 2},
            }
        )
        core.take("site/x/a", 1.0)
        for topic in ("site", "site/x", "up", "up/1/2", "down", ""):
            core.take(topic, 2.0, {"connected_at": 1})
        assert core.ledger.devices["a"].habits
        core.take("up/1/2/a", 3.0, {"connected_at": 1})
        assert core.sources.present_names() == {"a"}

    @given(
        topic_filter=st.lists(LEVELS | st.just("+"), min_size=1, max_size=4).map("/".join),
        rest=st.sampled_from(["", "/#"]),
        topic=st.lists(LEVELS, min_size=1, max_size=6).map("/".join),
    )
    def test_every_filter_is_understood_as_the_broker_does(self, topic_filter: str, rest: str, topic: str) -> None:
        """What a source hears is what matches its filter, whatever wildcards that has."""
        topic_filter += rest
        heard: list[list[str]] = []
        route = module._Route(topic_filter, lambda levels, _payload, _at: heard.append(levels))
        levels = topic.split("/")

        assert (route.fits(len(levels)) and route.matches(levels)) == topic_matches(topic_filter, topic)


class TestTogether:
    """What one source means for the others."""

    def test_life_on_one_source_is_life_on_all(self, core: Core) -> None:
        """A message ends the absence on the census' clock too, and an event that on the messages' clock."""
        core.event("z", "connected", 9, -10.0)
        core.count(2, 1.0, 61.0, 121.0)
        assert core.absence("a", "emqx") == 120.0
        core.take("clients/a/x", 131.0)
        core.count(2, 181.0)
        assert core.absence("a", "emqx") == 181.0 - 131.0
        assert core.absence("b", "emqx") == 180.0

    def test_activity_opens_a_session_that_began_unheard(self, core: Core) -> None:
        """The second of two messages of a device that the broker has named: the census matches again."""
        core.event("a", "disconnected", 1, -10.0)
        core.count(2, 2.0, 62.0, 122.0)
        assert not core.sources.present("a")
        core.take("clients/a/x", 130.0)
        core.take("clients/a/x", 191.0)
        assert core.sources.present("a")
        core.count(2, 222.0, 282.0)
        assert core.witness("emqx", 282.0).vouching

    def test_activity_opens_none_beside_a_second_broker(self) -> None:
        """Which of them it is connected to is not told; on the other one its session would stand for somebody else."""
        topics = {"connectedTopic": "b/+/c/+/up", "disconnectedTopic": "b/+/c/+/down"}
        second = {"type": "emqx", **topics, "countTopic": "b/+/count", "uptimeTopic": "b/+/uptime"}
        core = Core(sources={"second": second})
        core.event("a", "connected", 1, -10.0)
        core.count(2, 2.0, 62.0)
        core.take("b/n/count", 3.0, 2)
        for at in (4.0, 64.0, 124.0):
            core.take("clients/a/x", at)
        core.take("b/n/count", 125.0, 2)
        assert "does not match" in core.witness("emqx", 125.0).silenced

    def test_the_canary_opens_none(self, core: Core) -> None:
        """Not even if a client of that name was announced; and it is no device."""
        core.event("pruner-canary", "disconnected", 1, -10.0)
        core.count(2, 2.0, 62.0, 122.0)
        for at in (10.0, 80.0, 150.0):
            core.take("clients/pruner-canary/telemetry", at)
        assert core.sources.present_names() == set()
        assert core.witness("messages", 150.0).clock_seconds == 140.0

    def test_a_broker_that_does_not_match_silences_habits(self, core: Core) -> None:
        """Until its count matches; where no broker is heard nothing is silenced."""
        assert core.witness("messages", 0.0).silenced == ""
        core.count(2, 1.0)
        assert core.witness("messages", 1.0).silenced
        core.count(1, 61.0, 121.0)
        assert core.witness("messages", 121.0).silenced == ""

    def test_a_broker_that_does_not_match_silences_another_broker_s_census(self) -> None:
        """Whoever is counted there unheard is not gone, though nobody counts him here."""
        topics = {"connectedTopic": "b/+/c/+/up", "disconnectedTopic": "b/+/c/+/down"}
        second = {"type": "emqx", **topics, "countTopic": "b/+/count", "uptimeTopic": "b/+/uptime"}
        core = Core(sources={"second": second})
        core.count(1, 60.0, 120.0, 180.0)
        assert core.witness("emqx", 181.0).vouching
        assert core.witness("emqx", 181.0).silenced == ""
        core.take("b/n/count", 182.0, 2)
        assert "does not match" in core.witness("emqx", 182.0).silenced
        assert core.witness("second", 182.0).silenced == ""

    def test_doubt_is_told_with_where_each_clock_stood(self, core: Core) -> None:
        """Until those in doubt are confirmed; the clocks go on meanwhile."""
        core.event("a", "connected", 1, -10.0)
        core.count(2, 60.0, 120.0)
        core.count(3, 180.0, 240.0)
        for at in (250.0, 280.0):
            core.take("clients/b/telemetry", at)
        core.count(2, 300.0, 360.0)
        assert core.witness("emqx", 360.0).doubted_seconds == 60.0
        core.count(2, 420.0)
        core.take("clients/b/telemetry", 420.0)
        census, habit = core.witness("emqx", 420.0), core.witness("messages", 420.0)
        assert "in doubt" in census.doubted
        assert "in doubt" in habit.doubted
        assert (census.clock_seconds, census.doubted_seconds) == (120.0, 60.0)
        assert (habit.clock_seconds, habit.doubted_seconds) == (170.0, 30.0)
        core.event("a", "disconnected", 1, 430.0)
        assert core.witness("emqx", 430.0).doubted == ""
        assert core.witness("messages", 430.0).doubted == ""

    def test_doubt_that_comes_up_again_begins_anew(self, core: Core) -> None:
        """The clocks' readings are those of the last time."""
        core.event("a", "connected", 1, -10.0)
        core.count(2, 60.0, 120.0)
        core.count(3, 180.0, 240.0)
        core.count(2, 300.0, 360.0)
        assert core.witness("emqx", 360.0).doubted_seconds == 60.0
        core.count(2, 420.0, 480.0)
        core.count(3, 540.0)
        core.count(2, 600.0, 660.0)
        assert core.witness("emqx", 660.0).doubted_seconds == 180.0

    def test_a_roll_call_is_not_doubted(self) -> None:
        """It names who is there, so it needs no sums."""
        core = Core(**CALL)
        core.event("a", "connected", 1, -10.0)
        core.count(2, 60.0, 120.0)
        core.count(3, 180.0, 240.0)
        core.count(2, 300.0, 360.0)
        assert core.witness("emqx", 360.0).doubted
        assert core.witness(ROLL_CALL, 360.0).doubted == ""

    def test_an_overflow_is_a_gap_for_every_source(self) -> None:
        """Lost messages: nobody vouches, nobody is held present, and absences begin here for those who were."""
        core = Core(**CALL)
        core.event("a", "connected", 1, -10.0)
        core.count(2, 2.0, 62.0)
        for at in (3.0, 63.0):
            core.take("clients/b/x", at)
            core.sources.roll_call_begins()
            assert core.sources.roll_call_answered(frozenset({"a"}), at)
        assert [witness.vouching for witness in core.sources.witnesses(70.0)] == [True] * 3
        core.sources.overflow(70.0)
        core.sources.tick(70.0)
        assert [witness.vouching for witness in core.sources.witnesses(70.0)] == [False] * 3
        assert core.sources.present_names() == set()

    def test_the_strongest_proof_comes_first(self) -> None:
        """A census, then the roll call, then habits."""
        core = Core(**CALL)
        assert [w.proof for w in core.sources.witnesses(0.0)] == [Proof.CENSUS, Proof.ROLL_CALL, Proof.HABIT]

    def test_fresh_vouchers_are_known(self, core: Core) -> None:
        """Whether a source vouched after a moment, for the check in the moment."""
        core.count(1, 1.0, 61.0)
        source_id = core.witness("emqx", 61.0).source_id
        assert core.sources.fresh_voucher(source_id, 61.0)
        assert not core.sources.fresh_voucher(source_id, 61.1)
        assert core.sources.max_quiet_seconds(source_id) == 180.0

    def test_the_bridge_is_known_by_its_configuration(self, core: Core) -> None:
        """Its client id is taken as it is, not as a glob; where it names none, `bridgeClientId` counts."""
        core.sources.set_bridge("br[1]*", known=True)
        core.event("br[1]*", "connected", 1, -10.0)
        core.event("br1x", "connected", 2, -10.0)
        assert core.sources.sessions() == {"br1x"}
        core.sources.set_bridge("", known=True)
        core.event("mqtt-bridge-7", "connected", 3, -10.0)
        assert core.sources.sessions() == {"br1x"}

    def test_canaries_are_sent_often_enough(self) -> None:
        """Every minute, or every quarter of maxQuiet if that is shorter; none where there is none."""
        assert [(c.topic, c.interval_seconds) for c in Core().sources.canaries] == [("pruner-canary/telemetry", 60.0)]
        quick = Core(sources={"messages": {"maxQuiet": "1m"}}).sources.canaries
        assert [canary.interval_seconds for canary in quick] == [15.0]
        assert Core(sources={"messages": {"canaryTopic": ""}}).sources.canaries == ()


class TestChanges:
    """A source is its type and topics."""

    def fill(self, core: Core) -> None:
        """Device a is connected, and b spoke; both sources vouch and have earned a minute."""
        core.event("a", "connected", 1, -10.0)
        core.count(2, 1.0, 61.0)
        core.take("clients/b/x", 1.0)
        core.take("clients/b/x", 61.0)

    def test_a_source_that_stays_goes_on(self, core: Core) -> None:
        """Its sessions, clock and habits are kept when something else changes, or its maxQuiet."""
        self.fill(core)
        core.change(62.0, offlineThreshold="2d", sources={"emqx": {"maxQuiet": "2m"}})
        assert core.sources.present("a")
        core.count(2, 121.0)
        assert core.witness("emqx", 121.0).clock_seconds == 120.0
        assert core.ledger.devices["b"].habits
        assert core.witness("emqx", 121.0 + 121.0).vouching is False

    def test_a_renamed_source_goes_on(self, core: Core) -> None:
        """A name is for people."""
        self.fill(core)
        same = {"type": "activity", "topic": "clients/+/#"}
        core.change(62.0, sources={"messages": {"enabled": False}, "talk": same})
        core.take("clients/b/x", 71.0)
        assert core.witness("talk", 71.0).clock_seconds == 70.0
        (habit,) = (core.ledger.devices["b"].habits or {}).values()
        assert habit.heard == 3

    def test_changed_topics_start_habits_and_markers_anew(self, core: Core) -> None:
        """The clock goes on; nothing that was held against anybody on it counts."""
        self.fill(core)
        assert core.absence("a", "messages") > 0.0
        core.change(62.0, sources={"messages": {"topic": "devices/+/#"}})
        assert core.witness("messages", 62.0).clock_seconds == 60.0
        assert not core.witness("messages", 62.0).vouching
        assert not core.ledger.devices["b"].habits
        assert core.absence("a", "messages") == core.absence("b", "messages") == 0.0

    @pytest.mark.parametrize("change", [{"ignoredValues": ["ok", "off"]}, {"payloadField": "state"}])
    def test_a_source_that_ignores_other_messages_starts_habits_anew(self, change: dict[str, Any]) -> None:
        """Whoever says what is ignored now keeps speaking, and would be silent for ever."""
        core = Core(sources={"messages": {"ignoredValues": ["off"]}})
        for at in (1.0, 61.0):
            core.take("clients/b/x", at, b"ok")
        core.take("clients/a/x", 121.0, b"ok")
        assert core.absence("b", "messages") == 60.0
        core.change(122.0, sources={"messages": {"ignoredValues": ["off"], **change}})
        assert core.witness("messages", 122.0).clock_seconds == 120.0
        assert not core.ledger.devices["b"].habits
        assert core.absence("b", "messages") == 0.0

    def test_changed_topics_let_the_known_sessions_go(self, core: Core) -> None:
        """Those of other topics say nothing of the new ones; who was present was so until now."""
        self.fill(core)
        topic = "$SYS/brokers/+/clients/+/up"
        core.change(70.0, sources={"emqx": {"connectedTopic": topic}})
        assert core.sources.present_names() == set()
        assert core.absence("a", "emqx") == 0.0
        core.count(1, 71.0, 131.0)
        assert core.absence("a", "emqx") == 60.0

    def test_a_source_that_was_off_starts_anew(self, core: Core) -> None:
        """While off it says nothing; on again, its clock goes on from where it was, and absences begin there."""
        self.fill(core)
        core.change(62.0, sources={"emqx": {"enabled": False}})
        assert core.sources.present_names() == set()
        assert [witness.name for witness in core.sources.witnesses(62.0)] == ["messages"]
        core.event("a", "connected", 1, 63.0)
        core.count(1, 64.0, 124.0)
        core.change(200.0)
        assert core.witness("emqx", 200.0).clock_seconds == 60.0
        assert core.absence("b", "emqx") == 0.0
        core.count(1, 201.0, 261.0)
        assert core.absence("b", "emqx") == 60.0

    def test_who_was_held_until_a_source_was_switched_off_is_absent_from_then_on(self) -> None:
        """On all others too, though its last sign of life is long past: by a census, or by a roll call."""
        core = Core(**CALL)
        self.fill(core)
        core.sources.roll_call_begins()
        core.sources.roll_call_answered(frozenset({"a", "b", "mqtt-bridge-1"}), 62.0)
        for at in (121.0, 181.0):
            core.count(2, at)
            core.take("clients/pruner-canary/x", at)
        core.change(182.0, **CALL, sources={"emqx": {"enabled": False}})
        assert core.absence("a", "messages") <= 0.0
        assert core.absence("b", "messages") > 0.0
        core.change(183.0)
        assert core.absence("b", "messages") <= 0.0

    def test_a_change_does_not_forget_who_was_there_before_the_roll_call(self) -> None:
        """An answer that comes after it still has to name them."""
        core = Core(**CALL)
        core.event("a", "connected", 1, -10.0)
        core.sources.roll_call_begins()
        core.change(1.0, **CALL, offlineThreshold="2d")
        assert not core.sources.roll_call_answered(frozenset({"mqtt-bridge-1"}), 2.0)

    def test_what_is_not_heard_any_more_is_let_go_in_time(self, core: Core) -> None:
        """Though no message brings it about."""
        self.fill(core)
        core.sources.tick(61.0 + 180.1)
        assert core.sources.present_names() == set()

    def test_an_added_source_begins_with_everybody_there(self, core: Core) -> None:
        """Nobody's absence on it is older than the source."""
        self.fill(core)
        core.change(62.0, sources={"births": {"type": "activity", "topic": "births/+"}})
        core.take("births/b", 63.0)
        core.take("births/b", 163.0)
        assert core.absence("a", "births") <= 100.0

    def test_a_roll_call_switched_off_lets_its_names_go(self) -> None:
        """They were present until now."""
        core = Core(**CALL)
        core.sources.roll_call_begins()
        core.sources.roll_call_answered(frozenset({"a", "mqtt-bridge-1"}), 10.0)
        assert core.sources.present("a")
        core.change(20.0)
        assert not core.sources.present("a")
        assert [witness.name for witness in core.sources.witnesses(20.0)] == ["emqx", "messages"]


class TestRollCall:
    """An answer is believed only if it names who must have been there."""

    @pytest.fixture
    def core(self) -> Core:
        """With a roll call every 15 minutes; devices a and c have a known session."""
        core = Core(**CALL)
        core.event("a", "connected", 1, -10.0)
        core.event("c", "connected", 2, -10.0)
        return core

    def call(self, core: Core, at: float, *names: str) -> bool:
        """One roll call without anything between question and answer."""
        core.sources.roll_call_begins()
        return core.sources.roll_call_answered(frozenset(names), at)

    def test_a_believed_answer_vouches_and_names_who_is_present(self, core: Core) -> None:
        """Who is named is present and alive, also one that no event ever announced."""
        assert self.call(core, 10.0, "a", "b", "c")
        assert not core.witness(ROLL_CALL, 10.0).vouching
        assert self.call(core, 100.0, "a", "b", "c")
        assert core.witness(ROLL_CALL, 100.0).clock_seconds == 90.0
        assert core.witness(ROLL_CALL, 100.0).vouching
        assert core.sources.present_names() >= {"a", "b", "c"}
        assert core.ledger.announced("b")

    @pytest.mark.parametrize("names", [(), ("b",), ("a",), ("b", "mqtt-bridge-1"), ("A", "c")])
    def test_an_answer_without_a_connected_client_is_not_believed(self, core: Core, names: tuple[str, ...]) -> None:
        """Every client whose session was open before the call and after it must be in it."""
        assert self.call(core, 10.0, "a", "c")
        assert not self.call(core, 20.0, *names)
        assert not core.witness(ROLL_CALL, 20.0).vouching
        assert "lacks" in core.witness(ROLL_CALL, 20.0).reason
        assert self.call(core, 30.0, "a", "c")
        assert core.witness(ROLL_CALL, 30.0).clock_seconds == 0.0, "what it vouched for ends with an answer like that"

    def test_who_came_or_went_during_the_call_may_be_missing(self, core: Core) -> None:
        """Only an unbroken session is held against an answer."""
        core.sources.roll_call_begins()
        core.event("c", "disconnected", 2, 11.0)
        core.event("d", "connected", 3, 12.0)
        assert core.sources.roll_call_answered(frozenset({"a"}), 13.0)

    def test_whom_an_answer_names_was_there_believed_or_not(self, core: Core) -> None:
        """That an answer lacks a connected client is not believed; that it names another is a sign of life."""
        assert not self.call(core, 900.0, "b")
        assert core.ledger.announced("b")

    def test_an_answer_vouches_up_to_where_its_call_began(self, core: Core) -> None:
        """Who left while it was under way may still be named, and a check asks for a call of its own."""
        assert self.call(core, 10.0, "a", "c")
        core.sources.roll_call_begins()
        assert core.sources.roll_call_answered(frozenset({"a", "c"}), 100.0, began=95.0)
        source_id = core.witness(ROLL_CALL, 100.0).source_id
        assert core.witness(ROLL_CALL, 100.0).clock_seconds == 85.0
        assert core.sources.fresh_voucher(source_id, 95.0)
        assert not core.sources.fresh_voucher(source_id, 96.0)

    def test_the_bridge_is_known_without_an_emqx_source(self) -> None:
        """A broker that refuses `$SYS` still answers roll calls, and the bridge in them shows which broker it is."""
        core = Core(**CALL, sources={"emqx": {"enabled": False}})
        assert self.call(core, 10.0, "a", "mqtt-bridge-1")
        core.sources.set_bridge("our-bridge", known=True)
        assert not self.call(core, 20.0, "a", "mqtt-bridge-1")
        assert self.call(core, 30.0, "a", "our-bridge")

    def test_an_answer_that_names_nobody_known_is_not_believed(self) -> None:
        """Neither the bridge nor a known session: it may be another broker's."""
        core = Core(**CALL)
        assert not self.call(core, 10.0)
        assert not self.call(core, 20.0, "b", "x")
        assert "neither the bridge" in core.witness(ROLL_CALL, 20.0).reason
        assert self.call(core, 30.0, "b", "mqtt-bridge-1")

    def test_who_is_no_longer_named_is_absent_from_then_on(self, core: Core) -> None:
        """He was held present until the next believed answer."""
        self.call(core, 10.0, "a", "b", "c")
        self.call(core, 910.0, "a", "c")
        assert not core.sources.present("b")
        assert core.absence("b", ROLL_CALL) == 0.0
        self.call(core, 1010.0, "a", "c")
        assert core.absence("b", ROLL_CALL) == 100.0

    def test_no_answer_says_nothing(self, core: Core) -> None:
        """An error lets nobody go at once; after three intervals without an answer nobody is held any more."""
        self.call(core, 10.0, "a", "b", "c")
        core.sources.roll_call_failed("the connection was refused")
        core.sources.tick(10.0 + 2700.0)
        assert core.sources.present("b")
        core.sources.tick(10.1 + 2700.0)
        assert not core.sources.present("b")
        assert core.absence("b", ROLL_CALL) == 0.0
        assert "the connection was refused" in core.witness(ROLL_CALL, 3000.0).reason

    def test_a_roll_call_that_fails_after_it_was_believed_silences_habits(self) -> None:
        """Who is connected without a word was named by it, and keeps no habit; one that never worked is no witness."""
        core = Core(**CALL, sources={"emqx": {"enabled": False}})
        core.sources.roll_call_failed("the connection was refused")
        assert core.witness("messages", 1.0).silenced == ""
        assert self.call(core, 10.0, "a", "mqtt-bridge-1")
        assert self.call(core, 100.0, "a", "mqtt-bridge-1")
        core.sources.roll_call_failed("the connection was refused")
        assert core.witness("messages", 100.0 + 2700.0).silenced == ""
        assert "not answered any more" in core.witness("messages", 100.1 + 2700.0).silenced
        assert self.call(core, 2900.0, "a", "mqtt-bridge-1")
        assert core.witness("messages", 2900.0).silenced == ""

    def test_an_associated_thing_is_not_the_bridge(self) -> None:
        """Whatever its name: it shows nothing of which broker answered."""
        core = Core(**CALL)
        core.ledger.reconcile([Association("mqtt-bridge-of-hall-7", 1.0)], 0.0)
        assert not self.call(core, 10.0, "mqtt-bridge-of-hall-7")

    def test_an_answer_when_it_is_off_says_nothing(self) -> None:
        """A late answer after a change of the configuration is dropped."""
        core = Core()
        core.sources.roll_call_failed("late")
        assert not core.sources.roll_call_answered(frozenset({"a", "mqtt-bridge-1"}), 1.0)
        assert not core.sources.present("a")
