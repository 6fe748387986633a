"""Coverage: how many devices can ever be pruned, and what is missing for the others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from client_device_pruner.coverage import Coverage, cover
from client_device_pruner.model import Device, Habit, Proof, Witness, pack
from client_device_pruner.policy import Circumstances
from client_device_pruner.settings import parse

DAY = 86_400.0
CENSUS = Witness("emqx", 0, Proof.CENSUS, 100 * DAY, 0.0, True, "they match")
HABIT = Witness("messages", 1, Proof.HABIT, 100 * DAY, 0.0, True, "spoke")
SPEAKS = Habit(5, 0.0, 8 * DAY)


def device(name: str = "a", *, seen: bool = True, habit: Habit | None = None) -> Device:
    """Make a device that shows life at this moment."""
    return Device(name, seen=seen, markers=pack([100 * DAY] * 2), habits={1: habit} if habit else None)


def covered(
    devices: Collection[Device], *witnesses: Witness, findings: Collection[str] = (), **settings: Any
) -> Coverage:
    """Judge these devices by these witnesses."""
    return cover(devices, Circumstances(parse(settings), witnesses, ()), findings)


def deaf(witness: Witness) -> Witness:
    """The witness, when it does not vouch."""
    return witness._replace(vouching=False, reason="nothing heard")


def test_a_census_covers_everybody_that_was_seen() -> None:
    """It would show anybody."""
    assert covered([device("a"), device("b")], CENSUS, HABIT, findings=["no matter"]) == Coverage(2, 2, ())


def test_a_habit_covers_those_that_have_one() -> None:
    """For the others it takes a heartbeat, or more time."""
    found = covered([device("a", habit=SPEAKS), device("b"), device("c", habit=Habit(4, 0.0, 8 * DAY))], HABIT)
    assert (found.associated, found.provable) == (3, 1)
    assert found.reasons == (
        "2 of 3 devices: not heard often and long enough to have a habit: a heartbeat, or more time",
    )


def test_a_habit_needs_no_silence_yet() -> None:
    """A device that speaks at this moment could be proven gone later."""
    assert covered([device(habit=SPEAKS)], deaf(CENSUS), HABIT).provable == 1


def test_devices_never_seen_need_their_threshold_and_a_census() -> None:
    """Without any sign of life no habit will do."""
    unseen = [device(seen=False)]
    assert "neverSeenThreshold is empty" in covered(unseen, CENSUS).reasons[0]
    assert covered(unseen, CENSUS, neverSeenThreshold="90d").provable == 1
    assert "takes a census" in covered(unseen, HABIT, neverSeenThreshold="90d").reasons[0]


def test_protected_devices_are_not_provable() -> None:
    """They will never be pruned."""
    found = covered([device("a"), device("gate-1")], CENSUS, protectedClients=["gate-*"])
    assert found.provable == 1
    assert found.reasons == ("1 of 2 devices: protected by protectedClients",)


def test_sources_that_do_not_vouch_are_named_with_what_the_doctor_found() -> None:
    """Where nothing can be proven the reasons say why, and what to paste."""
    found = covered([device()], deaf(CENSUS), deaf(HABIT), findings=["paste this"])
    assert found.provable == 0
    assert found.reasons == (
        "1 of 1 devices: no source vouches at present",
        "source emqx does not vouch: nothing heard",
        "source messages does not vouch: nothing heard",
        "paste this",
    )


def test_a_silenced_habit_covers_nobody() -> None:
    """Beside a broker whose count does not match no habit proves anything."""
    silenced = HABIT._replace(silenced="the count does not match")
    found = covered([device(habit=SPEAKS)], deaf(CENSUS), silenced)
    assert found.provable == 0
    assert found.reasons[0] == "1 of 1 devices: the count does not match", "that source vouches all the same"


def test_without_any_source_nothing_can_ever_be_proven() -> None:
    """That is said even where no device is associated yet."""
    assert "no source is enabled" in covered([]).reasons[-1]
    assert covered([device()]).provable == 0


def test_doubt_is_among_the_reasons() -> None:
    """Told once, though the census and the habits share it; who is covered stays so."""
    doubted = [witness._replace(doubted="2 sessions are in doubt") for witness in (CENSUS, HABIT)]
    coverage = covered([device(habit=SPEAKS)], *doubted)
    assert coverage.provable == 1
    assert coverage.reasons == ("2 sessions are in doubt",)
