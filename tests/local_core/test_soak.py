"""Endurance: the plan, the truth and the gauges of `make soak`; and a run of a few seconds."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from local_core.soak.__main__ import main, soak
from local_core.soak.faults import FAULTS
from local_core.soak.gauges import Sample, sample, slope, trend
from local_core.soak.plan import KILLS, make_plan
from local_core.soak.shifted_clock import ShiftedClock
from local_core.soak.site import Pace
from local_core.soak.truth import Life, Style, Truth, Verdict

DAY = 86_400.0


# The plan -------------------------------------------------------------------------------------------------------


def test_a_seed_is_the_same_plan_each_time() -> None:
    """What a seed makes go wrong can be repeated; another seed makes other things go wrong."""
    assert make_plan(7, 600.0, 2.0) == make_plan(7, 600.0, 2.0)
    assert make_plan(7, 600.0, 2.0) != make_plan(8, 600.0, 2.0)


def test_one_thing_goes_wrong_at_a_time_and_everything_does() -> None:
    """A fault is over before the next one begins; a day of them has every kind; the middle third kills nobody."""
    plan = make_plan(1, DAY, 2.0)
    assert all(one.at_seconds + one.seconds < other.at_seconds for one, other in pairwise(plan))
    kinds = {step.kind for step in plan}
    assert kinds > FAULTS.keys()
    assert all(kind.startswith(("cloud", "no credentials")) for kind in kinds - FAULTS.keys())
    killed = [step.at_seconds / DAY for step in plan if step.kind in KILLS]
    assert killed
    assert not [at for at in killed if 1 / 3 < at < 2 / 3]


def test_a_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--plan` nothing is run."""
    assert main(["--plan", "--seed", "7", "--minutes", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(step) for step in make_plan(7, 60.0, Pace().max_quiet)]


# The truth ------------------------------------------------------------------------------------------------------


@pytest.fixture
def truth() -> Truth:
    """Ten seconds are the threshold, and two a moment; a device `a` that is silent."""
    truth = Truth(10.0, 2.0)
    truth.lives["a"] = Life(Style.SILENT, born=0.0)
    return truth


def test_who_is_connected_is_disassociated_falsely(truth: Truth) -> None:
    """With the timeline that led to it."""
    truth.look(1.0, {"a": 1})
    truth.tell(4.0, "FAULT bridge away")
    assert truth.asked("a", 5.0) is Verdict.FALSE
    (finding,) = truth.findings
    assert "FAULT bridge away" in finding


def test_who_calls_is_disassociated_falsely_between_two_calls(truth: Truth) -> None:
    """It keeps its habit."""
    truth.lives["a"].style = Style.CALLER
    truth.look(1.0, {"a": 1})
    truth.look(2.0, {})
    assert truth.asked("a", 5.0) is Verdict.FALSE


def test_who_is_away_is_counted_apart(truth: Truth) -> None:
    """By how long it has been away, or has not come."""
    assert truth.asked("a", 5.0) is Verdict.EARLY
    assert truth.asked("a", 10.0) is Verdict.AWAY
    truth.look(11.0, {"a": 1})
    truth.look(12.0, {})
    assert truth.asked("a", 15.0) is Verdict.EARLY
    assert not truth.findings


def test_who_has_just_come_back_is_of_the_moment(truth: Truth) -> None:
    """No call can take back what came while it was under way."""
    truth.look(11.0, {"a": 1})
    assert truth.asked("a", 12.0) is Verdict.MOMENT
    assert truth.asked("a", 13.5) is Verdict.FALSE


def test_who_died_is_to_go(truth: Truth) -> None:
    """Even if the broker has not noticed yet."""
    truth.look(1.0, {"a": 1})
    truth.lives["a"].died = 2.0
    assert truth.asked("a", 3.0) is Verdict.GONE
    assert truth.verdicts == {Verdict.GONE: 1}


# The gauges -----------------------------------------------------------------------------------------------------


def life(run: int, samples: int, *, leak: int = 0) -> list[Sample]:
    """Make the samples of a life, one each ten seconds, of which every fourth comes while a call is under way."""
    return [
        Sample(run, 10.0 * n, 20_000, 30_000 + n * leak, 15 + n * leak + (3 if n % 4 == 0 else 0), 5 + (n % 4 == 0))
        for n in range(samples)
    ]


def test_a_life_that_needs_no_more_and_no_less() -> None:
    """Calls that come and go are no growth; the longest life counts, from its second minute on."""
    found = trend([*life(1, 10), *life(2, 60), *life(3, 20)])
    assert found is not None
    assert not found.grew
    assert (found.seconds, found.kib_a_minute, found.descriptors, found.threads) == (530.0, 0.0, (15, 15), (5, 5))


def test_a_connection_that_is_made_anew_is_no_less() -> None:
    """A descriptor that one look in the first quarter missed has not come since."""
    samples = life(1, 120)
    samples[12] = replace(samples[12], descriptors=1, threads=1)
    found = trend(samples)
    assert found is not None
    assert not found.grew


def test_a_leak_is_noticed() -> None:
    """A descriptor and a KiB each ten seconds."""
    found = trend(life(1, 60, leak=1))
    assert found is not None
    assert found.grew
    assert found.kib_a_minute == pytest.approx(6.0)


def test_short_lives_say_nothing() -> None:
    """Nor does none at all."""
    assert trend([*life(1, 10), *life(2, 10)]) is None
    assert trend([]) is None


def test_slope() -> None:
    """Of a line."""
    assert slope([0.0, 1.0, 2.0], [5.0, 7.0, 9.0]) == pytest.approx(2.0)


def test_a_process_is_sampled() -> None:
    """This one has memory, descriptors and a thread; one that has ended has nothing."""
    found = sample(os.getpid(), 1, 5.0)
    assert found is not None
    assert found.rss_kib >= found.pss_kib > 1_000
    assert found.descriptors > 2
    assert found.threads >= 1
    assert sample(2**22 + 1, 1, 5.0) is None


def test_a_clock_that_is_shifted(tmp_path: Path) -> None:
    """A process of the environment tells another time from one moment to the next, and finds this one's packages."""
    clock = ShiftedClock(tmp_path / "environment")
    script = "import time, pytest\nfor _ in range(2): print(time.time(), time.monotonic(), flush=True); input()"
    command = [str(tmp_path / "environment/bin/python"), "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = [float(figure) for figure in process.stdout.readline().split()]
        clock.shift(-DAY)
        process.stdin.write("\n")
        process.stdin.flush()
        after = [float(figure) for figure in process.stdout.readline().split()]
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.returncode == 0
    passed = after[1] - before[1]
    assert after[0] - before[0] == pytest.approx(passed - DAY, abs=0.05)


# A run ----------------------------------------------------------------------------------------------------------

FAST = Pace(
    max_quiet=1.0, threshold=2.0, notice=0.5, check=1.0, birth=3.0, sample=0.5, silent=2, talkers=2, others=0, spare=120
)
SEED = 953


@pytest.mark.e2e
@pytest.mark.timeout(240)
async def test_a_few_seconds_are_endured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With real devices and faults: what died goes, nothing else does, and a table says so."""
    assert {"kill", "bridge away"} <= {step.kind for step in make_plan(SEED, 7.0, FAST.max_quiet)}

    status = await soak(SEED, 7.0, FAST, tmp_path)

    said = capsys.readouterr().out
    assert status == 0, said
    rows = dict(line.split("  ", 1) for line in said.splitlines() if "  " in line)
    rows = {name: figure.strip() for name, figure in rows.items()}
    assert rows["disassociated, false"] == "0"
    assert int(rows["disassociated, gone"]) >= 1
    assert "1 killed, 0 ended by itself" in rows["component"]
    assert "FAULT kill" in (tmp_path / "timeline").read_text()
