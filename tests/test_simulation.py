"""The simulation of whole sites: nothing false, nothing forgotten, and what it leaves out changes nothing."""

from __future__ import annotations

import pytest

from local_core.simulation import campaign, mutations
from local_core.simulation.judge import EXCEPTION
from local_core.simulation.world import Site, World

pytestmark = pytest.mark.timeout(600)


def test_some_hundred_device_years_find_nothing() -> None:
    """Whole sites with faults for some 200 device-years: nothing false, late, in vain, beyond the budget, or raised."""
    total = campaign.Sum()
    for seed, kind in enumerate(("both", "messages", "events", "messages"), start=101):
        total.add(*campaign.simulate(Site(seed, kind=kind, devices=50)))
    assert not total.findings, total.tables()
    assert total.device_years > 180
    assert total.pruned["false"] == 0
    assert total.pruned["gone"] > 20, "the simulation is idle"
    # The same devices, the same messages, simpler rules: they are not harmless here.
    assert all(sum(tally.values()) for tally in total.baselines.values())
    assert "device-years" in total.tables()


@pytest.mark.parametrize(("seed", "kind"), [(5, "messages"), (5, "both"), (4, "events"), (5, "rollCall")])
def test_folding_changes_no_decision(seed: int, kind: str) -> None:
    """With every minute of it simulated, a site with faults comes to the same decisions at the same times."""

    def decisions(*, fold: bool) -> list[object]:
        short = {"years": 0.06, "devices": 8, "offline_threshold": "10d", "lifetime_years": 0.1}
        world = World(Site(seed, kind=kind, fold=fold, **short))  # type: ignore[arg-type]
        world.run()
        assert not world.judge.figures.findings
        assert world.decisions, "nothing was decided"
        return [*world.decisions, sorted(world.cloud.associations), world.cloud.calls]

    assert decisions(fold=True) == decisions(fold=False)


def test_a_seed_is_the_same_story_each_time() -> None:
    """Two runs of a seed tell the same timeline, but for the random names of cycles and plans."""

    def timeline() -> list[tuple[float, str]]:
        told: list[tuple[float, str]] = []
        World(Site(9, years=0.2, devices=12), told=lambda at, text: told.append((at, text.partition("{")[0]))).run()
        return told

    assert timeline() == timeline()


def test_the_judge_is_not_blind() -> None:
    """A device that is connected, or keeps coming, is a finding when it is disassociated in the component's name."""
    world = World(Site(3, years=0.02, devices=8, kind="both", faults=False))
    world.after(5 * 86_400.0, lambda: world.judge.pruned("d1"))
    judge = world.run()
    assert [(finding.kind, finding.name) for finding in judge.figures.findings] == [("false", "d1")]
    assert judge.figures.pruned[EXCEPTION] == 0


@pytest.mark.parametrize(("power", "verdict"), [(True, "false"), (False, "honest")])
def test_who_comes_back_to_a_core_without_power_stays_away(power: bool, verdict: str) -> None:
    """It was there for nobody; a return to a broker that runs ends its absence."""
    world = World(Site(3, years=0.1, devices=8, kind="rollCall", faults=False, offline_threshold="16d"))
    verdicts = []

    def comes_and_goes() -> None:
        world.broker_up = power
        world._return(world.devices["d1"])
        world._leave(world.devices["d1"])
        world.broker_up = True

    world.after(2 * 86_400.0, lambda: world._leave(world.devices["d1"]))
    world.after(14 * 86_400.0, comes_and_goes)
    world.after(19 * 86_400.0, lambda: verdicts.append(world.judge.truth("d1", 16 * 86_400.0)))
    world.run()
    assert verdicts == [verdict]


@pytest.mark.parametrize(
    ("bug", "seed", "kind"),
    [
        ("any_disconnect_closes", 1, "session"),
        ("restart_keeps_sessions", 1, "session"),
        ("presence_is_ignored", 1, "proof"),
        ("moment_is_skipped", 2, "moment"),
        ("notice_is_skipped", 2, "proof"),
    ],
)
def test_the_judge_notices_a_planted_bug(bug: str, seed: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of those that `make simulate` plants, on the site that shows each, which is clean without it."""
    mutations.bugs()[bug].plant(monkeypatch)
    findings = World(mutations.searched(seed)).run().figures.findings
    assert findings[0].kind == kind


@pytest.mark.parametrize("seed", [1, 2])
def test_without_a_bug_there_is_nothing_to_notice(seed: int) -> None:
    """The same sites, and something happens on them."""
    figures = World(mutations.searched(seed)).run().figures
    assert not figures.findings
    assert figures.faults
