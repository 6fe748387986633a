"""`tests/README.md` names tests that exist, and none of the invariants and planted bugs is missing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import test_crash
import test_mutations

TESTS = Path(__file__).parent
README = (TESTS / "README.md").read_text()
DESIGNED = {f"I{number}" for number in range(1, 9)}
"""The invariants of DESIGN.md."""


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if "|" in line]


def names_in(text: str) -> set[str]:
    """What stands in backquotes."""
    return set(re.findall(r"`([^`]+)`", text))


def defined(path: Path) -> Iterator[str]:
    """The classes, functions, methods (also with their class) and assigned names of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef))
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def bugs(module: object) -> set[str]:
    """The functions of a module that plant a bug: they take pytest's `patch`, and nothing else."""
    return {
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__annotations__", {}) == {"patch": "Patch", "return": "None"}
    }


def test_whatever_is_named_exists() -> None:
    """Every test, class and file that the page names in the tables or the text."""
    known = {name for path in TESTS.rglob("*.py") for name in defined(path)}
    known |= {path.name for path in TESTS.rglob("*.py")} | {"tests/local_core", "tests/e2e", "make test"}
    named = {name.removesuffix("[…]") for name in names_in(README)}
    tests = {name for name in named if re.match(r"test_|Test|Site|[a-z_]+\.py$", name)} - {"test_X.py"}
    assert tests - known == set()
    assert len(tests) > 10


def test_every_invariant_has_its_test() -> None:
    """Each row names at least one test by its function or class; none refers to a whole file alone."""
    held = {cells[0]: cells[2] for cells in rows("The invariants (DESIGN)") if re.fullmatch(r"I\d", cells[0])}
    assert held.keys() == DESIGNED
    for invariant, cell in held.items():
        assert any(re.match(r"test_\w+$|Test\w+$", name) for name in names_in(cell)), f"{invariant}: {cell}"


def test_every_planted_bug_has_its_row() -> None:
    """And every row its bug, with the history or trial that shows it and the invariant that it violates."""
    planted = bugs(test_mutations) | bugs(test_crash)
    told = {next(iter(re.findall(r"`(\w+)`", cells[0])), ""): cells for cells in rows("The planted bugs")}
    assert told.keys() - {""} == planted
    for bug in planted:
        assert names_in(told[bug][1]), bug
        assert re.match(r"I[1-8]", told[bug][2]), bug
    histories = {case.bug.__name__: (case.history.__name__, case.invariant) for case in test_mutations.CASES}
    for bug, (history, invariant) in histories.items():
        assert history in names_in(told[bug][1]), bug
        assert told[bug][2].startswith(invariant), bug
