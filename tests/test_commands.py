"""The command line, on a state file as the component writes it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner import state_file
from client_device_pruner.__main__ import main
from client_device_pruner.commands import COMMANDS
from client_device_pruner.coverage import cover
from client_device_pruner.doctor import Finding
from client_device_pruner.journal import Journal
from client_device_pruner.ledger import Ledger, get_meta, set_meta, transaction
from client_device_pruner.model import Association, Hold, Mark, Proof, Witness, pack
from client_device_pruner.policy import Circumstances, member
from client_device_pruner.settings import parse
from client_device_pruner.status import describe

DAY = 86_400.0
CONTRACT_KEYS = {
    "running", "sources", "counts", "coverage", "guards", "plan", "nextCheckInSeconds", "doctor",
}  # fmt: skip
CENSUS = Witness(
    name="emqx",
    source_id=0,
    proof=Proof.CENSUS,
    clock_seconds=100 * DAY,
    floor_seconds=0.0,
    vouching=True,
    reason="2 connections counted, as known",
)
HABIT = Witness(
    name="messages",
    source_id=1,
    proof=Proof.HABIT,
    clock_seconds=100 * DAY,
    floor_seconds=0.0,
    vouching=False,
    reason="nothing has been heard",
)
FINDING = Finding("the bridge lacks an entry", '{"mqttTopicMapping": {}}')


@dataclass
class Core:
    """A work directory in which a component has written its state, and what its commands say."""

    work_dir: Path
    capture: pytest.CaptureFixture[str]
    configuration: dict[str, Any] = field(default_factory=dict)
    witnesses: tuple[Witness, ...] = (CENSUS, HABIT)
    holds: tuple[Hold, ...] = ()
    plan: tuple[str, tuple[str, ...]] = ("", ())
    present: frozenset[str] = frozenset()
    absent_days: dict[str, float] = field(default_factory=dict)
    unseen: frozenset[str] = frozenset()
    marked: dict[str, float] = field(default_factory=dict)
    """Name -> days of the notice that have passed."""

    def write(self) -> None:
        """Write the state, as the component does with each commit."""
        with closing(self.connect()) as connection:
            ledger = Ledger(connection, 0.0)
            ledger.adopt([("emqx", "emqx-topics", 180.0), ("messages", "messages-topics", 3600.0)], 0.0)
            ledger.reconcile([Association(name, 1_700_000_000.0) for name in self.absent_days], 0.0)
            for name, days in self.absent_days.items():
                device = ledger.devices[name]
                device.seen = name not in self.unseen
                device.markers = pack([100 * DAY - days * DAY] * 2)
                if name in self.marked:
                    clock = 100 * DAY - self.marked[name] * DAY
                    ledger.set_mark(name, Mark(0, Proof.CENSUS, clock, "c-marked"))
            ledger.present = lambda name: name in self.present
            settings = parse(self.configuration)
            now = Circumstances(settings, self.witnesses, self.present)
            ledger.status = describe(
                now,
                ledger.devices.values(),
                coverage=cover(ledger.devices.values(), now, [str(FINDING)]),
                holds=self.holds,
                findings=[FINDING],
                plan=self.plan,
                next_check_seconds=7200.0,
                wall=1_800_000_000.0,
            )
            assert ledger.commit(1.0)
            with transaction(connection) as write:
                set_meta(write, configuration=self.configuration)
                if self.plan[0]:
                    set_meta(write, plans=[[self.plan[0], list(self.plan[1])]])

    def connect(self) -> sqlite3.Connection:
        """The component's own connection."""
        self.work_dir.mkdir(exist_ok=True)
        connection, _aside = state_file.open_state(self.work_dir / "pruner.db", "core-1")
        return connection

    def disassociate(self, cycle_id: str, *names: str, outcome: str = "done") -> None:
        """Journal disassociations that took place."""
        with closing(self.connect()) as connection:
            journal = Journal(connection)
            journal.budget(10, 0.0)
            evidence = {
                "offlineSeconds": 31 * DAY, "thresholdSeconds": 30 * DAY, "proof": "census", "sourceName": "emqx",
            }  # fmt: skip
            associations = [(Association(name, None), evidence) for name in names]
            intents = journal.intend(cycle_id, associations, wall=1_800_000_100.0, running_seconds=0.0)
            if outcome != "open":
                journal.settle(intents, outcome, 1_800_000_101.0)

    def requests(self) -> list[tuple[str, Any]]:
        """What is queued for the component."""
        with closing(self.connect()) as connection:
            rows = connection.execute("SELECT kind, argument FROM requests ORDER BY id").fetchall()
        return [(row["kind"], json.loads(row["argument"])) for row in rows]

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; returns exit status, standard output and standard error."""
        status = main([*arguments, "--work-dir", str(self.work_dir)])
        out, err = self.capture.readouterr()
        return status, out, err

    def json(self, *arguments: str) -> Any:
        """Run a command for machines, which succeeds."""
        status, out, _err = self.run(*arguments, "--json")
        assert status == 0
        return json.loads(out)


@pytest.fixture
def core(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Core:
    """A core with four devices, one of each kind."""
    return Core(
        tmp_path / "work",
        capsys,
        configuration={"protectedClients": ["keep-*"]},
        present=frozenset({"press-1"}),
        absent_days={"press-1": 0.0, "press-2": 3.0, "press-3": 30.5, "keep-1": 90.0, "quiet-1": 50.0},
        unseen=frozenset({"quiet-1"}),
        marked={"press-3": 0.5},
    )


@pytest.fixture
def running(core: Core) -> Iterator[Core]:
    """The same while the component runs."""
    core.write()
    lock = state_file.lock_instance(core.work_dir)
    assert lock is not None
    yield core
    os.close(lock)


def test_status_for_machines_has_the_keys_of_the_contract(running: Core) -> None:
    """`status --json` has the contract's keys, and `time`; nothing else."""
    status = running.json("status")

    assert set(status) == CONTRACT_KEYS | {"time"}
    assert status["running"] is True
    assert status["sources"]["emqx"] == {
        "vouching": True, "clockSeconds": 100 * DAY, "reason": "2 connections counted, as known",
    }  # fmt: skip
    assert status["counts"] == {
        "present": 1, "absent": 2, "unknown": 0, "marked": 1, "due": 0, "protected": 1,
    }  # fmt: skip
    assert set(status["coverage"]) == {"associated", "provable", "reasons"}
    assert status["doctor"] == [{"finding": "the bridge lacks an entry", "remedy": '{"mqttTopicMapping": {}}'}]
    assert status["plan"] is None
    assert 0 <= status["nextCheckInSeconds"] <= 7200


def test_what_does_not_run_does_not_vouch(core: Core) -> None:
    """Whatever the status said last: a component whose process is gone is not running, and no source vouches."""
    core.write()

    status = core.json("status")

    assert status["running"] is False
    assert not any(source["vouching"] for source in status["sources"].values())
    assert status["nextCheckInSeconds"] is None
    assert "does not run" in core.run("status")[1]


def test_a_reader_leaves_the_lock_to_the_component(core: Core) -> None:
    """After a command has looked, the component takes its lock; and readers do not take each other for it."""
    core.write()
    lock = state_file.lock_instance(core.work_dir)
    assert lock is not None
    os.close(lock)
    reader = os.open(core.work_dir / "pruner.lock", os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    assert core.json("status")["running"] is False
    os.close(reader)

    lock = state_file.lock_instance(core.work_dir)

    assert lock is not None
    os.close(lock)


def test_options_stand_before_or_after_the_command(core: Core) -> None:
    """`--work-dir` and `--json` mean the same in both places."""
    core.write()

    assert main(["--work-dir", str(core.work_dir), "--json", "list"]) == 0

    before = core.capture.readouterr().out
    assert json.loads(before) == core.json("list")


def test_reading_changes_nothing(core: Core) -> None:
    """Reading commands leave the state as it is, byte for byte."""
    core.write()
    core.disassociate("c1", "gone-1")
    path = core.work_dir / "pruner.db"
    before = path.read_bytes()

    for arguments in (["status"], ["list"], ["explain", "press-2"], ["history"], ["list", "--state", "due"]):
        assert core.run(*arguments)[0] == 0

    assert path.read_bytes() == before


def _newer(work_dir: Path) -> None:
    work_dir.mkdir()
    with closing(sqlite3.connect(work_dir / "pruner.db")) as connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda _work: None, "There is no pruner.db"),
        (lambda work: (work.mkdir(), (work / "pruner.db").write_bytes(b"no database" * 1000)), "cannot be read"),
        (lambda work: (work.mkdir(), (work / "pruner.db").touch()), "holds nothing yet"),
        (_newer, "schema 99"),
    ],
    ids=["missing", "corrupt", "empty", "newer"],
)
@pytest.mark.parametrize(
    "arguments",
    [["status"], ["list"], ["explain", "x"], ["history"], ["restore", "x"], ["restore", "--all"], ["approve", "x"]],
    ids=" ".join,
)
def test_a_state_that_cannot_be_read_is_one_sentence(
    core: Core, break_it: Callable[[Path], object], sentence: str, arguments: list[str]
) -> None:
    """A missing, corrupt, empty or newer state file: status 1 and one plain sentence on standard error."""
    break_it(core.work_dir)

    status, out, err = core.run(*arguments, "--json")

    assert (status, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_component_that_has_not_written_its_status_yet_is_said(core: Core) -> None:
    """Just after the first start there is a state but no status: that is said, with what to do."""
    core.connect().close()

    assert core.run("status") == (1, "", "The component has not written its status yet: try again in a minute.\n")


def test_a_status_of_another_version_is_said(core: Core) -> None:
    """A status whose form this version does not know is no traceback."""
    core.write()
    with closing(core.connect()) as connection, transaction(connection) as write:
        set_meta(write, status={"witnesses": [{"name": "emqx", "proof": "census", "pauses": [], "odd": 1}]})

    status, _out, err = core.run("list")

    assert status == 1
    assert "another version" in err


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE meta SET value = '{' WHERE key = 'status'",
        "UPDATE meta SET value = '[]' WHERE key = 'status'",
        "UPDATE devices SET habits = '[]'",
        "INSERT INTO disassociations VALUES (NULL, 'x', NULL, 'c', 'done', '5', 0.0, 0.0, NULL, NULL, NULL)",
        "INSERT INTO history VALUES (1, 1.0, 'marked', 'x', '[')",
        "UPDATE devices SET habits = CAST(X'7bff7d' AS TEXT)",
        "UPDATE sources SET credit_seconds = 1e999",
        "INSERT INTO history VALUES (1, 'x', 'marked', 'x', '{}')",
        "INSERT INTO history VALUES (1, 1e12, 'marked', 'x', '{}')",
    ],
)
def test_a_document_that_nobody_wrote_is_no_traceback(core: Core, change: str) -> None:
    """Bits that flipped in an intact page (found by fuzzing)."""
    core.absent_days = {"a": 1.0}
    core.write()
    with closing(core.connect()) as connection:
        connection.execute(change)

    said = [
        core.run(*arguments) for arguments in (["list"], ["history"], ["restore", "--all"], ["report", "page.html"])
    ]

    assert [err for _status, _out, err in said if "of another version" in err]
    assert not [err for _status, _out, err in said if "Traceback" in err]


def test_list_shows_every_device_with_its_state(running: Core) -> None:
    """Each device has its state, its absence of its threshold, its proof, and what is left of its notice."""
    listed = {device["thingName"]: device for device in running.json("list")}

    assert {name: device["state"] for name, device in listed.items()} == {
        "press-1": "present", "press-2": "absent", "press-3": "marked", "keep-1": "protected", "quiet-1": "absent",
    }  # fmt: skip
    assert listed["press-3"] == {
        "thingName": "press-3",
        "state": "marked",
        "offlineSeconds": 30.5 * DAY,
        "thresholdSeconds": 30 * DAY,
        "proof": "census",
        "sourceName": "emqx",
        "dueInSeconds": 0.5 * DAY,
    }
    assert listed["press-2"]["offlineSeconds"] == 3 * DAY
    assert listed["press-2"]["proof"] is None
    assert listed["press-1"]["offlineSeconds"] == 0


def test_list_for_people_is_aligned_and_filtered(running: Core) -> None:
    """Columns line up, a pipe gets no colours, and `--state` leaves the others out."""
    _status, out, err = running.run("list")
    _status, marked, _err = running.run("list", "--state", "marked")

    lines = out.splitlines()
    place = lines[0].index("STATE")
    assert [line[place:].split()[0] for line in lines[1:]] == [
        "protected", "present", "absent", "marked", "absent",
    ]  # fmt: skip
    assert "\x1b" not in out
    assert err == ""
    assert [line.split()[0] for line in marked.splitlines()[1:]] == ["press-3"]
    assert "30d12h  30d  census  emqx    in 12h" in marked
    assert running.run("list", "--state", "due")[1] == "No device is due.\n"


def test_who_was_never_seen_has_no_threshold_unless_one_is_configured(running: Core) -> None:
    """Silent for longer than the threshold of the others, it goes neither now nor later."""
    quiet = next(device for device in running.json("list") if device["thingName"] == "quiet-1")
    shown = next(line for line in running.run("list")[1].splitlines() if line.startswith("quiet-1"))
    running.configuration["neverSeenThreshold"] = "90d"
    running.write()
    configured = next(device for device in running.json("list") if device["thingName"] == "quiet-1")

    assert quiet["thresholdSeconds"] is None
    assert shown.split()[:4] == ["quiet-1", "absent", "50d", "never"]
    assert configured["thresholdSeconds"] == 90 * DAY


@pytest.mark.parametrize("arguments", [["status"], ["list"], ["explain", "press-2"]])
def test_before_the_first_list_nobody_is_said_not_to_be_associated(running: Core, arguments: list[str]) -> None:
    """Without a device the cloud may not have been asked yet: that is said, and nothing is claimed."""
    running.work_dir.joinpath("pruner.db").unlink()
    running.absent_days = {}
    running.write()

    _status, out, err = running.run(*arguments)

    assert "No device is associated, or the first cycle has not listed them yet" in out + err
    assert "is not associated" not in out + err


def test_list_says_when_it_is_old(core: Core) -> None:
    """Without a running component the list says on standard error of when it is."""
    core.write()

    status, out, err = core.run("list")

    assert status == 0
    assert "press-1" in out
    assert err == "The component does not run: this is how things stood at 2027-01-15 08:00:00Z.\n"


@pytest.mark.parametrize(
    ("name", "state", "conclusion"),
    [
        ("press-1", "present", "It stays, because it is connected. Once gone, it would be marked after 30d of proven"),
        ("press-2", "absent", "it is marked once source emqx has vouched for another 27d without it"),
        ("press-3", "marked", "It is disassociated once source emqx has vouched for another 12h without it, unless"),
        ("keep-1", "protected", "It is never disassociated, because protectedClients has keep-*."),
        ("quiet-1", "absent", "cannot be disassociated: no sign of life since it was associated, and neverSeenThr"),
    ],
)
def test_explain_concludes(running: Core, name: str, state: str, conclusion: str) -> None:
    """Present, absent, marked, protected and never seen: each ends in what would have to happen, or why never."""
    explained = running.json("explain", name)
    _status, out, _err = running.run("explain", name)

    assert explained["state"] == state
    assert conclusion in explained["conclusion"]
    assert out.startswith(f"{name}: {state}\n")
    assert out.endswith(explained["conclusion"] + "\n")


def test_explain_lists_each_condition_with_its_figure(running: Core) -> None:
    """Per source: what is met and what is not, with the figure."""
    explained = running.json("explain", "press-2")
    _status, out, _err = running.run("explain", "press-2")

    assert {"text": "absent 3d of 30d", "met": False} in explained["sources"]["emqx"]["conditions"]
    assert {"text": "heard 0 times there, at least 5 needed", "met": False} in explained["sources"]["messages"][
        "conditions"
    ]
    assert explained["sources"]["emqx"]["offlineSeconds"] == 3 * DAY
    assert "  no   absent 3d of 30d\n" in out
    assert "  yes  source emqx vouches now: 2 connections counted, as known\n" in out


def test_explain_names_the_guards_that_hold_a_due_device(running: Core) -> None:
    """A due device that a guard holds: which, its figure, and what to do."""
    running.marked = {"press-3": 1.5}
    hold = Hold("maxPerCycle", "1 devices are due, limits.maxPerCycle is 0", "raise limits.maxPerCycle")
    running.holds = (hold, Hold("source:messages", "nothing has been heard", "pruner status"))
    running.write()

    explained = running.json("explain", "press-3")

    assert explained["state"] == "due"
    assert "maxPerCycle holds it back" in explained["conclusion"]
    assert "raise limits.maxPerCycle" in explained["conclusion"]
    assert not any("source:messages" in condition["text"] for condition in explained["finally"])


@pytest.mark.parametrize(("in_plan", "held"), [(True, True), (False, False)])
def test_explain_tells_who_waits_for_approval(running: Core, in_plan: bool, held: bool) -> None:
    """A plan that waits holds only the devices that it names."""
    running.marked = {"press-3": 1.5}
    running.holds = (Hold("approval", "4 of 5 are due", "approve with: pruner approve p1", "p1"),)
    running.plan = ("p1", ("press-3@1700000000.0",) if in_plan else ("press-9@None",))
    running.write()

    conclusion = running.json("explain", "press-3")["conclusion"]

    assert ("pruner approve p1" in conclusion) is held


def test_explain_says_that_a_notice_stands_still(running: Core) -> None:
    """While the proving source does not vouch, the notice stands still, and explain says since when it waits."""
    running.witnesses = (CENSUS._replace(vouching=False, reason="the count is 3, known are 2"), HABIT)
    running.write()

    conclusion = running.json("explain", "press-3")["conclusion"]

    assert conclusion.startswith("Its notice stands still with 12h left, until source emqx")
    assert "the count is 3, known are 2" in conclusion


def test_explain_in_a_dry_run_and_without_a_process(core: Core) -> None:
    """A due device in a dry run, and of a component that does not run, does not go; both are said."""
    core.configuration["dryRun"] = True
    core.marked = {"press-3": 1.5}
    core.write()

    conclusion = core.json("explain", "press-3")["conclusion"]

    assert conclusion.startswith("Nothing happens while the component does not run.")
    assert "dryRun is on" in conclusion


def test_explain_shows_an_outage(running: Core) -> None:
    """Devices lost together need approval as long as none has come back."""
    running.absent_days = {f"line-{n}": 31.0 for n in range(5)}
    running.marked = {}
    running.write()

    explained = running.json("explain", "line-1")

    assert any("lost together" in c["text"] and not c["met"] for c in explained["finally"])


def test_explain_of_an_unknown_name_names_near_ones(running: Core) -> None:
    """A name that is not associated fails, with the names that it may have meant."""
    status, out, err = running.run("explain", "Pres-2")

    assert (status, out) == (1, "")
    assert err.startswith("Pres-2 is not associated with this core device. Did you mean press-2")


@pytest.mark.parametrize("command", ["explain", "history"])
def test_an_unknown_name_without_near_ones_is_a_whole_sentence(running: Core, command: str) -> None:
    """It says how to see the names that there are."""
    _status, _out, err = running.run(command, "zzz")

    assert err.endswith("pruner list shows the devices that are associated.\n")


def test_explain_of_a_disassociated_name_says_how_to_undo_it(running: Core) -> None:
    """What was disassociated is not unknown: when, in which cycle, and how to restore it."""
    running.disassociate("c7", "press-9")

    status, out, _err = running.run("explain", "press-9")

    assert status == 0
    assert "in cycle c7; pruner restore press-9 associates it again" in out


def test_history_tells_marks_disassociations_and_restores_with_evidence(core: Core) -> None:
    """From history and journal, oldest first; refused intents are none, open ones are said to be open."""
    core.write()
    with closing(core.connect()) as connection:
        ledger = Ledger(connection, 0.0)
        ledger.status = get_meta(connection, "status")
        evidence = {"offlineSeconds": 30 * DAY, "thresholdSeconds": 30 * DAY, "proof": "census"}
        ledger.record(1_800_000_000.0, "marked", "gone-1", {**evidence, "dueInSeconds": DAY})
        ledger.record(1_800_000_050.0, "held", None, {"guard": "maxPerCycle"})
        ledger.record(1_800_000_200.0, "restored", "gone-1", {"requestedBy": "command"})
        ledger.commit(1.0)
    core.disassociate("c1", "gone-1")
    core.disassociate("c2", "gone-2", outcome="refused")
    core.disassociate("c2", "gone-3", outcome="open")

    happenings = core.json("history")
    only_one = core.json("history", "gone-1")
    _status, out, _err = core.run("history")

    assert [(h["type"], h["thingName"]) for h in happenings] == [
        ("marked", "gone-1"), ("intended", "gone-3"), ("disassociated", "gone-1"), ("restored", "gone-1"),
    ]  # fmt: skip
    assert happenings[2] == {
        "time": "2027-01-15T08:01:41.000Z",
        "type": "disassociated",
        "thingName": "gone-1",
        "data": {
            "offlineSeconds": 31 * DAY, "thresholdSeconds": 30 * DAY, "proof": "census", "sourceName": "emqx",
            "cycleId": "c1",
        },
    }  # fmt: skip
    assert {h["thingName"] for h in only_one} == {"gone-1"}
    assert "absent 31d of 30d; proof census, source emqx; cycle c1" in out
    assert core.run("history", "press-1")[0] == 0
    assert core.run("history", "nobody")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "argument", "names"),
    [
        (["gone-1", "gone-2", "gone-1"], {"names": ["gone-1", "gone-2"]}, ["gone-1", "gone-2"]),
        (["--cycle", "c1"], {"cycle": "c1"}, ["gone-1", "gone-2"]),
        (["--all"], {"all": True}, ["gone-1", "gone-2", "gone-3"]),
    ],
)
def test_restore_queues_one_request(core: Core, arguments: list[str], argument: Any, names: list[str]) -> None:
    """By name, by cycle, or all: one row for the component; asked twice, it is queued once."""
    core.write()
    core.disassociate("c1", "gone-1", "gone-2")
    core.disassociate("c2", "gone-3")

    answer = core.json("restore", *arguments)
    _status, out, _err = core.run("restore", *arguments)

    assert answer == {"queued": True, "names": names, "running": False}
    assert out.endswith("The component does not run: it will be done when it does.\n")
    assert core.requests() == [("restore", argument)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone-1", "press-1"], "press-1 was never disassociated by this component."),
        (["gone-l"], "gone-l was never disassociated by this component. Did you mean gone-1?"),
        (["back-1"], "back-1 is restored already, or longer gone than 90 days."),
        (["--cycle", "c9"], "Nothing that cycle c9 disassociated can be restored"),
    ],
)
def test_restore_refuses_what_was_never_disassociated(core: Core, arguments: list[str], sentence: str) -> None:
    """A wrong name or cycle fails, with a sentence; nothing is queued, not even what was right beside it."""
    core.write()
    core.disassociate("c1", "gone-1", "back-1")
    with closing(core.connect()) as connection:
        journal = Journal(connection)
        journal.restored(next(i for i in journal.restorable(0.0) if i.name == "back-1"), "command")

    status, out, err = core.run("restore", *arguments)

    assert (status, out) == (1, "")
    assert sentence in err
    assert core.requests() == []


@pytest.mark.parametrize("arguments", [[], ["--all", "x"], ["--all", "--cycle", "c1"]], ids=" ".join)
def test_restore_wants_one_of_its_three_ways(core: Core, arguments: list[str]) -> None:
    """Names, a cycle and all exclude one another, and one is needed: else it is wrong use."""
    with pytest.raises(SystemExit) as wrong:
        core.run("restore", *arguments)
    assert wrong.value.code == 2


def test_approve_queues_the_plan_that_waits(running: Core) -> None:
    """The id goes to the component; it says which devices that concerns."""
    running.plan = ("p1", ("press-3@1700000000.0",))
    running.write()

    answer = running.json("approve", "p1")
    _status, out, _err = running.run("approve", "p1")

    assert answer == {"queued": True, "plan": "p1", "names": ["press-3"], "running": True}
    assert out == "Approved plan p1 (1 devices: press-3): the next cycle heeds it.\n"
    assert running.requests() == [("approve", "p1")]


def test_approve_refuses_another_id(running: Core) -> None:
    """A wrong id fails, names the one that waits, and queues nothing."""
    running.plan = ("p1", ("press-3@1700000000.0",))
    running.holds = (Hold("approval", "4 of 5 are due", "approve", "p1"),)
    running.write()

    assert running.run("approve", "p2") == (
        1, "", "There is no plan p2: the one that waits is p1. Nothing was approved.\n",
    )  # fmt: skip
    assert running.requests() == []


def test_what_is_approved_is_not_approved_twice(running: Core) -> None:
    """An approval in force is said; nothing is queued."""
    running.plan = ("p1", ("press-3@1700000000.0",))
    running.configuration["approvedPlan"] = "p1"
    running.write()

    assert running.json("approve", "p1")["queued"] is False
    assert running.requests() == []


def test_requests_that_cannot_be_written_are_said(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that never ends its turn: status 1 and a sentence, nothing queued."""
    core.write()
    core.disassociate("c1", "gone-1")
    monkeypatch.setattr("client_device_pruner.commands.BUSY_SECONDS", 0.05)
    with closing(core.connect()) as busy:
        busy.execute("BEGIN IMMEDIATE")
        status, _out, err = core.run("restore", "gone-1")
        busy.execute("ROLLBACK")

    assert status == 1
    assert "locked" in err
    assert core.requests() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_root_does_not_lock_the_component_out(core: Core) -> None:
    """What root makes beside the state file belongs to the file's owner, and its mode stays."""
    core.write()
    core.disassociate("c1", "gone-1")
    for path in (core.work_dir, core.work_dir / "pruner.db"):
        os.chown(path, 65534, 65534)
    reader = state_file.read_only(core.work_dir / "pruner.db")
    reader.execute("SELECT * FROM meta").fetchall()

    assert core.run("list")[0] == 0
    assert core.run("restore", "gone-1")[0] == 0

    found = {path.name: path.stat() for path in core.work_dir.iterdir()}
    reader.close()
    assert {"pruner.db", "pruner.db-wal", "pruner.db-shm"} <= set(found)
    assert {(stat.st_uid, stat.st_gid, stat.st_mode & 0o777) for stat in found.values()} == {(65534, 65534, 0o600)}


def test_texts_from_outside_do_not_steer_the_terminal(running: Core) -> None:
    """A refusal that carries control characters is shown without them."""
    running.holds = (Hold("accessDenied", "no\x1b[2J\x07 access", "ask\x1b]0;title\x07"),)
    running.write()

    out = running.run("status")[1]

    assert "no?[2J? access" in out
    assert "\x1b" not in out


def test_status_for_people_says_what_to_do(running: Core) -> None:
    """Guards and findings come with their remedies, and a plan with the command that approves it."""
    running.holds = (Hold("approval", "4 of 5 devices are due", "look at them", "p1"),)
    running.plan = ("p1", ("press-3@1700000000.0",))
    running.write()

    out = running.run("status")[1]

    for line in (
        "Component   runs on core-1 (as of ",
        "5 associated: 1 present, 2 absent, 0 unknown, 1 marked, 0 due, 1 protected",
        "  approval: 4 of 5 devices are due\n    → look at them\n",
        "Plan that waits for approval: p1\n  1 devices: press-3\n  → pruner approve p1\n",
        '  the bridge lacks an entry\n    → {"mqttTopicMapping": {}}\n',
    ):
        assert line in out
    assert out.count("the bridge lacks an entry") == 1, "though coverage has it among its reasons"
    assert any(str(FINDING) == reason for reason in running.json("status")["coverage"]["reasons"])


def test_a_source_that_does_not_vouch_is_told_once(running: Core) -> None:
    """Its guard says beside its reason where to look, other than here."""
    running.holds = (Hold("source:messages", HABIT.reason, "README, Troubleshoot"),)
    running.write()

    out = running.run("status")[1]

    assert "source messages does not vouch" not in out
    assert "  source:messages: nothing has been heard\n    → README, Troubleshoot" in out


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_only_on_a_terminal_that_wants_them(core: Core, environment: dict[str, str], coloured: bool) -> None:
    """A terminal gets colours, unless NO_COLOR or a dumb TERM speaks against it."""
    core.write()
    near, far = pty.openpty()
    environment = {"TERM": "xterm", "PYTHONPATH": str(Path(state_file.__file__).parents[1]), **environment}
    ended = subprocess.run(
        [sys.executable, "-m", "client_device_pruner", "list", "--work-dir", str(core.work_dir)],
        stdout=far,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
    )
    os.close(far)
    out = os.read(near, 65536)
    os.close(near)

    assert ended.returncode == 0
    assert b"press-3" in out
    assert (b"\x1b[" in out) is coloured


def test_a_reader_that_leaves_early_is_no_failure(core: Core) -> None:
    """`pruner list | head -1`: no traceback, status 0."""
    core.absent_days = {f"thing-{n}": 1.0 for n in range(3000)}
    core.write()
    process = subprocess.Popen(
        [sys.executable, "-m", "client_device_pruner", "list", "--json", "--work-dir", str(core.work_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(state_file.__file__).parents[1])},
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read().decode()
    process.stderr.close()

    assert process.wait() == 0
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file system that is always full")
@pytest.mark.parametrize("command", ["status", "list --json"])
def test_an_answer_that_cannot_be_written_is_a_sentence(core: Core, command: str) -> None:
    """`pruner list > FILE` where there is no room: status 1 and no traceback."""
    core.write()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "client_device_pruner", *command.split(), "--work-dir", str(core.work_dir)],
            stdout=full,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(Path(state_file.__file__).parents[1])},
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "The answer cannot be written: No space left on device."
    assert "Traceback" not in done.stderr


def test_commands_import_neither_the_sdk_nor_boto3(core: Core) -> None:
    """A command on a small device loads only the standard library and the package itself."""
    core.write()
    script = (
        "import sys\nfrom client_device_pruner.__main__ import main\n"
        f"main(['status', '--work-dir', {str(core.work_dir)!r}])\n"
        "sys.exit(any(name.split('.')[0] in ('awsiot', 'awscrt', 'boto3', 'botocore') for name in sys.modules))"
    )

    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(Path(state_file.__file__).parents[1])},
        capture_output=True,
        check=False,
    )

    assert ended.returncode == 0


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command's help has an example, and the whole one names every command."""
    helps = {name: _help(capsys, name) for name in [None, *(command.name for command in COMMANDS)]}

    for command in COMMANDS:
        assert f"    {command.name}" in helps[None]
        assert f"pruner {command.name}" in helps[command.name].split("example")[1]
    for column in ("THING", "STATE", "ABSENT", "OF", "PROOF", "SOURCE", "DUE"):
        assert f"\n  {column} " in helps["list"]
    assert all(len(line) <= 120 for text in helps.values() for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["status"], ""),
        (["list"], ""),
        (["explain", "press-3"], ""),
        (["explain", "gone-1"], "Of one that it has disassociated: "),
        (["history"], ""),
        (["report"], ""),
        (["restore", "gone-1"], ""),
        (["approve", "p1"], ""),
    ],
    ids=" ".join,
)
def test_the_form_for_machines_is_the_one_that_the_help_documents(
    running: Core, arguments: list[str], more: str
) -> None:
    """Of every command: each key is in its help, and no other."""
    running.plan = ("p1", ("press-3@1700000000.0",))
    running.write()
    running.disassociate("c1", "gone-1")
    (command,) = (command for command in COMMANDS if command.name == arguments[0])
    if command.name == "report":
        arguments = [*arguments, str(running.work_dir / "report.html")]

    answer = running.json(*arguments)

    first = answer[0] if isinstance(answer, list) else answer
    assert set(first) == _documented(command.teaching, more or "with --json: ")


def _documented(teaching: str, beginning: str) -> set[str]:
    """The keys that a help's paragraph on `--json` names, without those of what they hold."""
    form = re.split(r"\n\n|\.\n|, oldest first", teaching.partition(beginning)[2])[0].removeprefix("a list of ")
    if form.startswith("{"):
        form = form[1:].partition("}")[0]
    while (outer := re.sub(r"[\[({][^\[\](){}]*[\])}]", "", form)) != form:
        form = outer
    return {key.split()[0].rstrip(".") for key in form.split(",")}


def _help(capsys: pytest.CaptureFixture[str], name: str | None) -> str:
    with pytest.raises(SystemExit) as end:
        main([*([name] if name else []), "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["explain"], ["list", "--state", "gone"], ["burn"], ["status", "--force"]], ids=" ".join
)
def test_wrong_use_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What the command line does not know is wrong use."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_component_itself_is_not_for_a_shell(tmp_path: Path) -> None:
    """Started without Greengrass it says so, points at the commands, and leaves nothing behind."""
    done = subprocess.run(
        [sys.executable, "-m", "client_device_pruner", "--work-dir", str(tmp_path)],
        capture_output=True,
        env={"PYTHONPATH": str(Path(state_file.__file__).parents[1])},
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "Greengrass starts this" in done.stderr
    assert "--help has the commands" in done.stderr
    assert not any(tmp_path.iterdir())


def test_plans_name_members_as_the_policy_does(core: Core) -> None:
    """The member keys written here are those of the policy."""
    core.write()
    with closing(core.connect()) as connection:
        devices = Ledger(connection, 0.0).devices
    assert member(devices["press-3"]) == "press-3@1700000000.0"
