"""What the fleet simulation finds, held for a small fleet: a change of the delays cannot break it unnoticed."""

from __future__ import annotations

import pytest

from fleet.__main__ import STARTS, main
from fleet.cores import HOUR, Fleet

CORES, DEVICES, RATE = 1_500, 500, 10.0


@pytest.mark.parametrize(
    ("start", "throttled"),
    [
        ("first installation, all in one minute", 0.65),
        ("first installation, 50 cores a minute", 0.02),
        ("upgrade, all in one minute", 0.02),
        ("cloud back after an hour", 0.02),
    ],
)
def test_every_core_device_is_served(start: str, throttled: float) -> None:
    """Within an interval and an hour, with several pages each; in the first hour so few calls are throttled."""
    fleet = Fleet(CORES, DEVICES, RATE, **STARTS[start])
    fleet.run(7 * HOUR)

    assert len(fleet.waited) == CORES
    assert fleet.share("throttled", "calls", range(1)) < throttled


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each start and quota; a small fleet is served at once."""
    main(["--cores", "10", "--devices", "100"])

    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == [*STARTS, *STARTS]
    assert {row[5] for row in rows} == {"100.0%"}
