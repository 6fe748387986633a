"""What the commands answer, on a state as the component writes it."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from client_device_pruner.cli import answers
from client_device_pruner.store.database import read_only
from fakes.state import DAY, EVIDENCE, WALL, Pruner


class TestStatus:
    """`pruner status`; its keys, and what it says where all is well, are compared with the documentation."""

    def test_what_is_wrong_comes_with_its_remedy(self, pruner: Pruner) -> None:
        """Inputs, guards, a failed cycle (case 30), a plan, findings, and a dry run."""
        assert "Guards in force\n  none\n" in pruner.text("status")
        status = pruner.state.status
        status["observing"]["since"] = None
        status["observing"]["inputs"]["probe"] |= {"alive": False, "reason": "it does not return", "remedy": "look"}
        status["guards"] = [{"guard": "approval", "reason": "4 of 5 are due", "remedy": "see whether they are gone"}]
        status["plan"] = {"id": "p1", "devices": ["press-3"]}
        failed = {"at": "2027-01-15T07:00:00Z", "code": "AccessDenied", "message": "no", "remedy": "grant\nit"}
        status["lastCycle"] = {"completeAt": None, "failed": failed}
        status["doctor"] = [{"finding": "the bridge lacks an entry", "remedy": '{"mqttTopicMapping": {}}'}]
        status["dryRun"] = True
        pruner.state.write()

        said = pruner.text("status")

        for line in (
            "Observing   nothing is observed now; 98% of the last day, 75% of the last month\n",
            "  clientList: not in use (EMQX' HTTP API is off)\n",
            "  probe: not alive (it does not return)\n    → look\n",
            "  approval: 4 of 5 are due\n    → see whether they are gone\n",
            "Last cycle  none is complete yet\n",
            "Failed since the last complete cycle\n  2027-01-15 07:00:00Z: AccessDenied: no\n    → grant\n    → it\n",
            "Plan that waits for approval: p1\n  1 device: press-3\n    → pruner approve p1\n",
            '  the bridge lacks an entry\n    → {"mqttTopicMapping": {}}\n',
            "Dry run     dryRun is on: nothing is disassociated\n",
        ):
            assert line in said

    def test_a_young_component_tells_since_when_it_knows(self, pruner: Pruner) -> None:
        """Shares of a day or a month that is not known yet would mislead."""
        pruner.state.status["observing"] |= {"knownSince": "2027-01-15T06:00:00.000Z", "shareOfMonth": 0.98}
        pruner.state.write()
        assert "2027-01-14 08:00:00Z; 98% since 2027-01-15 06:00:00Z\n" in pruner.text("status")

    def test_a_remedy_is_said_once(self, pruner: Pruner) -> None:
        """What mends an input and what the doctor found may be one and the same."""
        status = pruner.state.status
        status["observing"]["inputs"]["clientList"] |= {"remedy": '{"emqxConfig": {}}'}
        status["doctor"] = [{"finding": f"EMQX {what}", "remedy": '{"emqxConfig": {}}'} for what in ("a", "b")]
        pruner.state.write()
        assert pruner.text("status").count('→ {"emqxConfig": {}}') == 1

    def test_what_does_not_run_observes_nothing(self, stopped: Pruner) -> None:
        """Whatever the status said last; list and explain say of when they are."""
        status = stopped.value("status")

        assert status["running"] is False
        assert status["observing"]["since"] is None
        assert not any(one["alive"] for one in status["observing"]["inputs"].values())
        assert status["nextCheckInSeconds"] is None
        assert "does not run" in stopped.text("status")
        # On standard error, so that the list stays a list.
        said = (0, "The component does not run: this was the state at 2027-01-15 08:00:00Z.\n")
        assert stopped.run("list")[::2] == said
        assert "The component does not run, so nothing changes." in stopped.run("explain", "press-3")[1]
        assert stopped.value("explain", "press-3")["running"] is False

    def test_texts_from_outside_do_not_steer_the_terminal(self, pruner: Pruner) -> None:
        """Control characters are shown as harmless ones."""
        pruner.state.status["guards"] = [{"guard": "accessDenied", "reason": "no\x1b[2J\u202e", "remedy": "a\x1b]0;b"}]
        pruner.state.write()

        said = pruner.text("status")

        assert "no?[2J?" in said
        assert "\x1b" not in said


class TestList:
    """`pruner list`."""

    def test_each_device_has_its_figures(self, pruner: Pruner) -> None:
        """A present one is not silent, whatever the evidence would be; the figures are as of the status."""
        listed = {device["thingName"]: device for device in pruner.value("list")}

        assert list(listed) == ["press-1", "press-2", "press-3", "quiet-1"]
        assert listed["press-3"] == {
            "thingName": "press-3",
            "state": "marked",
            "lastSeenAt": "2026-12-15T20:00:00.000Z",
            "lastSeenBy": "message",
            "silentSeconds": 30.5 * DAY,
            "patienceSeconds": 30 * DAY,
            "evidence": "connectionCount",
            "dueInSeconds": DAY / 2,
        }
        assert (listed["press-1"]["silentSeconds"], listed["press-1"]["evidence"]) == (None, None)
        assert (listed["quiet-1"]["lastSeenAt"], listed["quiet-1"]["patienceSeconds"]) == (None, None)
        assert "\nquiet-1  neverSeen  never                 50d     unlimited  -  " in pruner.text("list")

    def test_a_due_device_waits_for_the_guards(self, pruner: Pruner) -> None:
        """It goes in the next cycle only if no guard is in force."""
        pruner.state.add("press-4", "due", 31 * DAY, evidence="connectionCount", due_in_seconds=0.0)
        pruner.state.write()
        assert pruner.text("list", "--state", "due").endswith("next cycle\n")
        pruner.state.status["guards"] = [{"guard": "maxPerCycle", "reason": "2 are due", "remedy": "wait"}]
        pruner.state.write()
        assert pruner.text("list", "--state", "due").endswith("held by a guard\n")

    def test_only_one_state(self, pruner: Pruner) -> None:
        """`--state` leaves the others out."""
        assert [device["thingName"] for device in pruner.value("list", "--state", "marked")] == ["press-3"]
        assert pruner.text("list", "--state", "due") == "No device is due.\n"

    def test_before_the_first_listing(self, pruner: Pruner) -> None:
        """Nothing is claimed about what is associated; what is not, or not any more, is not listed."""
        for device in pruner.state.devices.values():
            device.unlisted_at = 0.0
        pruner.state.write()

        assert pruner.text("list", "--state", "due") == pruner.text("list")
        assert "press-2" not in pruner.text("list")
        assert "or the first cycle has not listed them yet" in pruner.text("list")
        assert "or the first cycle has not listed them yet" in pruner.failure("explain", "press-9")
        assert "It was last seen at 2027-01-12 08:00:00Z." in pruner.text("explain", "press-2")


class TestExplain:
    """`pruner explain THING`."""

    def test_guards_are_named_where_they_hold_it_back(self, pruner: Pruner) -> None:
        """For a device that is on its way out, not for one that stays."""
        pruner.state.status["guards"] = [{"guard": "maxPerCycle", "reason": "it is 0", "remedy": "raise it"}]
        pruner.state.write()

        assert "  maxPerCycle: it is 0\n    → raise it\n" in pruner.text("explain", "press-3")
        assert "maxPerCycle" not in pruner.text("explain", "press-2")

    def test_an_unknown_name_gets_near_ones(self, pruner: Pruner) -> None:
        """Or how to see all."""
        assert "Did you mean press-1 or" in pruner.failure("explain", "pres-1")
        assert "pruner list shows" in pruner.failure("explain", "xyz")

    def test_a_disassociated_device_is_told_when_why_and_how_to_take_it_back(self, pruner: Pruner) -> None:
        """On what evidence; the documentation shows what is said."""
        pruner.state.disassociate("c1", "gone-1")

        explained = pruner.value("explain", "gone-1")

        assert explained["state"] == "disassociated"
        assert explained["disassociatedAt"] == "2027-01-15T07:00:00.000Z"
        assert {key: explained[key] for key in EVIDENCE} == EVIDENCE


class TestHistory:
    """`pruner history [THING]`."""

    def test_tells_what_happened_with_its_evidence(self, pruner: Pruner) -> None:
        """From events and journal, oldest first; what the cloud refused was none, what is open is said to be."""
        state = pruner.state
        state.happened(WALL - 9_000, "marked", "gone-1", **EVIDENCE, dueInSeconds=DAY)
        state.happened(WALL - 8_000, "cycle", None, cycleId="c1")
        state.disassociate("c1", "gone-1")
        state.disassociate("c2", "gone-2", outcome="open")
        state.disassociate("c2", "gone-3", outcome="refused")
        state.happened(WALL - 1_000, "restored", "gone-1", requestedBy="command")

        assert [(one["type"], one["thingName"]) for one in pruner.value("history")] == [
            ("marked", "gone-1"), ("intended", "gone-2"), ("disassociated", "gone-1"), ("restored", "gone-1"),
        ]  # fmt: skip
        assert "gone-1  restored       requested by command\n" in pruner.text("history", "gone-1")
        assert "outcome not known yet" in pruner.text("history", "gone-2")

    def test_nothing_yet(self, pruner: Pruner) -> None:
        """That is an answer, also for one device."""
        assert pruner.text("history") == "No device has been marked, disassociated or restored yet.\n"
        assert pruner.text("history", "press-1").startswith("press-1 has not been marked")
        assert pruner.value("history", "press-1") == []


class TestRequests:
    """`pruner restore` and `pruner approve`; end-to-end tests show that the component does what was asked."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["gone-1", "Gone-2"], "Gone-2 cannot be restored"),
            (["gone-1", "Gone-2"], "Did you mean gone-1?"),
            (["--cycle", "c9"], "in which cycle"),
        ],
    )
    def test_restore_refuses_what_cannot_be_restored(self, pruner: Pruner, arguments: list[str], sentence: str) -> None:
        """Nothing is asked for, not even what was right beside it."""
        assert "There is nothing to restore" in pruner.failure("restore", "--all")
        pruner.state.disassociate("c1", "gone-1")

        assert sentence in pruner.failure("restore", *arguments)
        assert pruner.state.requests() == []

    def test_approve_names_what_it_concerns(self, pruner: Pruner) -> None:
        """Also a plan that waited a little earlier and is still known."""
        assert "There is no plan p1: no plan waits." in pruner.failure("approve", "p1")
        pruner.state.meta["plans"] = [["p1", ["press-3@1700000000.0"]]]
        pruner.state.write()

        assert pruner.value("approve", "p1") == {"queued": True, "plan": "p1", "names": ["press-3"], "running": True}
        assert pruner.state.requests() == [("approve", "p1")]

    def test_a_state_file_that_is_busy_is_said(self, pruner: Pruner, monkeypatch: pytest.MonkeyPatch) -> None:
        """A writer that never ends its turn: a sentence, and nothing asked for."""
        pruner.state.disassociate("c1", "gone-1")
        monkeypatch.setattr(answers, "BUSY_SECONDS", 0.05)
        with closing(pruner.state.connect()) as busy:
            busy.execute("BEGIN IMMEDIATE")
            assert "locked" in pruner.failure("restore", "gone-1")
            busy.execute("ROLLBACK")
        assert pruner.state.requests() == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
    def test_root_does_not_lock_the_component_out(self, stopped: Pruner) -> None:
        """What root makes beside the state file belongs to the file's owner."""
        work_dir = stopped.state.work_dir
        stopped.state.disassociate("c1", "gone-1")
        for path in (work_dir, work_dir / "pruner.db"):
            os.chown(path, 65534, 65534)
        with closing(read_only(work_dir / "pruner.db")) as reader:
            reader.execute("SELECT * FROM meta").fetchall()
            stopped.text("restore", "gone-1")
            found = {path.name: path.stat() for path in work_dir.glob("pruner.db*")}

        assert {"pruner.db", "pruner.db-wal", "pruner.db-shm"} <= set(found)
        assert {(stat.st_uid, stat.st_gid, stat.st_mode & 0o777) for stat in found.values()} == {(65534, 65534, 0o600)}
