"""The benchmarks: each part runs and gives its figures, which the table tells; none of them is judged here."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_core.bench.__main__ import main, table
from local_core.bench.parts import PARTS, SHORT
from local_core.bench.subjects import Kind, running

OURS, BARE = Kind.COMPONENT.value, Kind.BARE.value


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", PARTS)
async def test_each_part_runs(part: str) -> None:
    """With small numbers, whatever they come to."""
    figures = await PARTS[part](SHORT)
    assert any(whose == OURS for _name, whose in figures)


@pytest.mark.e2e
@pytest.mark.timeout(300)
async def test_a_storm_leaves_the_final_state_right() -> None:
    """However fast the events come: what was held present at the end is what is connected."""
    figures = await PARTS["storm"](SHORT)
    wrong = [value for (name, _whose), value in figures.items() if "present" in name or "dropped" in name]
    assert wrong == [0.0, 0.0, 0.0]


@pytest.mark.e2e
async def test_each_runs_as_it_would_on_a_device() -> None:
    """The component with the recipe's settings and all compiled beforehand; a bare subscriber without any of them."""
    ours = ("PYTHON", "MALLOC_")
    async with running(Kind.BARE) as bare:
        assert not [name for name in environment(bare.pid) if name.startswith(ours)]
    async with running(Kind.COMPONENT) as component:
        recipe = component.core.recipe.phases["run"].environment
        assert recipe.keys() == {name for name in environment(component.pid) if name.startswith(ours)}
        cache = component.core.work_dir / "bytecode"
        assert list(cache.rglob("client_device_pruner/commands.*.pyc")), "which the component itself never imports"


def environment(pid: int) -> set[str]:
    """The names of a process's environment variables."""
    return {entry.partition("=")[0] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0")}


def test_the_table_tells_medians_ranges_and_ratios() -> None:
    """A ratio is of figures of the same run."""
    found = {"a, MiB": {BARE: [10.0, 20.0, 40.0], OURS: [20.0, 20.0, 40.0]}, "b": {OURS: [1234.5]}}
    lines = table(found).splitlines()
    assert lines[2:] == [
        "| a, MiB | 20 (10 to 40) |  | 20 (20 to 40) | 1 (1 to 2) x |",
        "| b |  |  | 1,234 |  |",
    ]


def test_a_part_that_there_is_none_of_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A slip of the pen measures nothing for minutes."""
    with pytest.raises(SystemExit):
        main(["memmory"])
    assert "memmory" in capsys.readouterr().err
