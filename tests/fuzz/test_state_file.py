"""The state file, broken by flash that forgets, by a power cut or by people; and the commands that read it."""

from __future__ import annotations

import functools
import io
import json
import sqlite3
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.__main__ import main
from fuzz.anything import DEAD, a_core, damaged, lives_on, nearly, search

TABLES = ("meta", "meta", "devices", "verdicts", "disassociations", "history", "timeline", "requests")
DOCUMENTS = {"value", "verdict", "evidence", "data"}  # the columns that hold JSON
COMMANDS = ("status", "list", "explain alive-1", "explain dead-2", "history", "restore dead-2", "restore --all")
CELLS = (None, 0, -1, 2**62, 1e300, -1e300, float("inf"), b"", b"\xff", "", "{}", "null", "1e999", "[" * 50_000)


@functools.cache
def a_state() -> bytes:
    """What a component leaves: devices that live, that went, that came back, that wait for an approval; a request."""
    with a_core() as core:
        core.run_until(lambda: len(core.cloud.carried) == len(DEAD), 10_000)
        ask(core.work_dir, "restore", DEAD[0])
        core.run_until(lambda: core.of_type("restored"), 100)
        core.cloud.associate(*(f"late-{number}" for number in range(4)))
        core.configure({"neverSeenThreshold": "20m", "limits": {"approvalPercent": 0}})
        core.run_until(lambda: "approval" in core.guards(), 10_000)
        core.stop()
        ask(core.work_dir, "restore", "--all")
        return (core.work_dir / "pruner.db").read_bytes()


def change_a_cell(data: st.DataObject, path: Path) -> None:
    """Put something else into one cell; into a document, one that is nearly the same."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, suppress(sqlite3.IntegrityError):
        connection.execute("PRAGMA ignore_check_constraints = 1")
        table = data.draw(st.sampled_from(TABLES))
        found = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - a constant
        columns = [column[0] for column in found.description]
        row, place = data.draw(st.sampled_from(found.fetchall())), data.draw(st.integers(0, len(columns) - 1))
        cell = st.sampled_from(CELLS)
        if columns[place] in DOCUMENTS and data.draw(st.integers(0, 9)):
            cell = nearly(json.loads(row[place])).map(json.dumps)
        change = f'UPDATE {table} SET "{columns[place]}" = ? WHERE "{columns[0]}" IS ?'  # noqa: S608 - as above
        connection.execute(change, (data.draw(cell), row[0]))


def ask(directory: Path, *arguments: str) -> int:
    """Run a command, which ends as the contract says; returns its exit status."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = main([*arguments, "--work-dir", str(directory)])
    assert out.getvalue() if status == 0 else (status == 1 and err.getvalue())
    return status


@search(80)
@given(data=st.data(), command=st.sampled_from(COMMANDS), form=st.sampled_from([(), ("--json",)]))
def test_a_state_file_of_any_kind(data: st.DataObject, command: str, form: tuple[str, ...]) -> None:
    """Bytes that are none, or rows that nobody wrote, are set aside or do no harm; commands end with a sentence."""
    state = data.draw(st.one_of(st.just(a_state()), damaged(a_state())))
    with a_core(state) as core:
        if state == a_state():
            change_a_cell(data, core.work_dir / "pruner.db")
        ask(core.work_dir, *command.split(), *form)
        ask(core.work_dir, "report", str(core.work_dir / "report.html"))
        core.run(60)
        if "database" in core.guards():
            assert "a newer version wrote it" in str(core.of_type("held"))
        else:
            lives_on(core)
            assert ask(core.work_dir, "status") == 0
