"""The report page: what the ledger keeps for it, what it is composed of, and what it lets in."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner import ledger as ledger_module
from client_device_pruner import report, snapshot, state_file
from client_device_pruner.__main__ import main
from client_device_pruner.ledger import Ledger
from client_device_pruner.model import Association
from client_device_pruner.snapshot import Happening
from desk import Site

DEVICES = ("gone", "lamp", "pump")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No log, which would be long."""
    monkeypatch.setattr(logging.getLogger("client_device_pruner"), "disabled", True)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A core with three devices, all of them seen."""
    site = Site(tmp_path)
    site.cloud.associate(*DEVICES)
    site.connected = dict.fromkeys(DEVICES, 0)
    site.run_until(lambda: site.rows("SELECT count(*) FROM devices WHERE seen") == [(3,)], 900)
    yield site
    site.stop()


def composed(site: Site) -> dict[str, Any]:
    """What a page of this site would show."""
    work_dir = site._work_dir
    return report.compose(snapshot.read(work_dir), snapshot.read_record(work_dir), snapshot.read_history(work_dir))


def device(data: dict[str, Any], name: str) -> dict[str, Any]:
    """One device of a page."""
    return next(one for one in data["devices"] if one["name"] == name)


def transitions(site: Site, name: str) -> list[tuple[Any, ...]]:
    """What was kept of a device's comings and goings."""
    return site.rows(f"SELECT type, turns FROM transitions WHERE name = '{name}' ORDER BY id")  # noqa: S608 - own text


def check_spans(data: dict[str, Any]) -> None:
    """Every span lies in the page's time, does not end before it begins, and follows the one before."""
    spans = [data["runs"], *data["backgrounds"], *(source["spans"] for source in data["sources"])]
    for one in data["devices"]:
        spans += [one[kind] for kind in ("present", "outage", "marked", "gone")]
        assert all(0 <= at <= data["end"] for at, _kind, _lines in one["decisions"])
    for lane in spans:
        ends = [moment for span in lane for moment in span[:2]]
        assert ends == sorted(ends)
        assert all(0 <= moment <= data["end"] for moment in ends)


class TestLedger:
    """What is kept for timelines."""

    def test_messages_of_a_present_device_leave_no_trace(self, site: Site) -> None:
        """Only comings and goings are kept, however often a device shows life."""
        before = site.rows("SELECT count(*) FROM transitions")

        for _message in range(50):
            assert site.component is not None
            site.component.watch.ledger.alive("lamp", site.clock.now)
        site.run(300)

        assert site.rows("SELECT count(*) FROM transitions") == before

    def test_a_device_that_flaps_costs_two_rows_a_commit(self, site: Site) -> None:
        """Of what comes between two commits the first and the last are kept, and how often it turned."""
        before = transitions(site, "pump")
        for _flap in range(40):
            site.disconnect("pump")
            site.connect("pump")
        site.run(180)

        assert transitions(site, "pump") == [*before, ("left", 39), ("arrived", 0)]

    def test_rows_are_bounded_and_the_latest_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """History and transitions share their numbers, and neither can push the other out."""
        monkeypatch.setattr(ledger_module, "MAX_TRANSITIONS", 10)
        connection, _aside = state_file.open_state(tmp_path / "pruner.db", "core-1")
        with closing(connection):
            ledger = Ledger(connection, 0.0, lambda: 5.0)
            ledger.record(1.0, "marked", "a", {})
            for number in range(30):
                ledger.note("presence", "arrived", f"device-{number}")
            assert ledger.commit(1.0)

            kept = [row["name"] for row in connection.execute("SELECT name FROM transitions ORDER BY id")]
            assert kept == [f"device-{number}" for number in range(20, 30)]
            assert connection.execute("SELECT id FROM history").fetchone()[0] == 1
            again = Ledger(connection, 0.0)
            again.record(2.0, "unmarked", "a", {})
            assert again.commit(1.0)
            assert connection.execute("SELECT max(id) FROM history").fetchone()[0] == 32

    def test_a_silent_device_left_when_it_was_last_heard(self) -> None:
        """A device that only speaks is known to have left when it speaks again, and since when."""
        ledger = Ledger(None, 0.0)
        ledger.adopt([("messages", "m", 60.0)], 0.0)
        ledger.reconcile([Association("lamp", 1.0)], 0.0)
        for at in (0.0, 10.0, 20.0):
            ledger.hear("lamp", 0, at)
        ledger._transitions.clear()

        ledger.hear("lamp", 0, 5000.0)

        assert [row[2:] for row in ledger._transition_rows()] == [
            ("left", "lamp", 0, 4980.0),
            ("arrived", "lamp", 0, 0.0),
        ]

    def test_the_history_command_does_not_list_them(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        """`history` stays what was marked, disassociated and restored."""
        site.disconnect("pump")
        site.run(120)

        assert main(["history", "--work-dir", str(site._work_dir), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []


class TestCompose:
    """What the page shows."""

    def test_the_way_of_a_device_that_goes_and_is_restored(self, site: Site) -> None:
        """Present, marked and disassociated follow one another, each decision with its evidence."""
        site.disconnect("gone")
        site.run_until(lambda: site.of_type("disassociated"), 3600)
        site.run(120)

        data = composed(site)
        gone = device(data, "gone")
        check_spans(data)
        assert gone["state"] == "disassociated"
        (left,) = [until for _since, until in gone["present"]][-1:]
        (marked,) = gone["marked"]
        (after,) = gone["gone"]
        assert left < marked[0] < marked[1] <= after[0] < after[1] == data["end"]
        assert [kind for _at, kind, _lines in gone["decisions"]] == ["marked", "disassociated"]
        evidence = dict(gone["decisions"][1][2])
        assert evidence["proof"] == "census, source emqx"
        assert " of 4m" in evidence["absent"]
        assert device(data, "lamp")["state"] == "present"
        assert device(data, "lamp")["present"][-1][1] == data["end"]

        site.request("restore", {"all": True})
        site.run_until(lambda: site.of_type("restored"), 600)
        site.run(600)
        gone = device(composed(site), "gone")
        assert [kind for _at, kind, _lines in gone["decisions"]][2:3] == ["restored"]
        assert gone["gone"][0][1] < composed(site)["end"]

    def test_while_it_did_not_run_nothing_is_known(self, site: Site) -> None:
        """Between two runs no device is present and no source vouches."""
        site.stop()
        site.clock.now += 7200
        site.run(600)

        data = composed(site)
        check_spans(data)
        (_first, stopped), (started, _last) = data["runs"]
        assert started - stopped == pytest.approx(7200, abs=120)
        during = (stopped + started) / 2
        lanes = [device(data, "lamp")["present"], *(source["spans"] for source in data["sources"])]
        assert not [span for lane in lanes for span in lane if span[0] < during < span[1]]

    def test_a_run_that_was_killed_ends_with_its_last_status(self, site: Site) -> None:
        """Nobody wrote when it ended: it is known to have run until it last wrote."""
        site.die()
        site.clock.now += 7200
        site.run(600)

        (_first, stopped), (started, _last) = composed(site)["runs"]
        assert started - stopped == pytest.approx(7200, abs=240)

    def test_sources_show_when_they_vouched_and_why_not(self, site: Site) -> None:
        """A census that does not match ends the span, and its guard's reason is there to read."""
        site.connected["stranger"] = 0
        site.run(600)
        del site.connected["stranger"]
        site.run(600)

        emqx = next(source for source in composed(site)["sources"] if source["name"] == "emqx")
        assert len(emqx["spans"]) == 2
        assert emqx["spans"][-1][1] == composed(site)["end"]
        held = next(lines for _at, kind, lines in emqx["events"] if kind == "held")
        assert "more than known" in dict(held)["why"]

    def test_an_outage_shows_from_the_loss_until_one_returns(self, tmp_path: Path) -> None:
        """Devices that were lost together are in an outage, and no longer once one is back."""
        site = Site(tmp_path, massLoss={"window": "10m", "minDevices": 3, "minPercent": 30}, offlineThreshold="60m")
        site.cloud.associate(*DEVICES)
        site.connected = dict.fromkeys(DEVICES, 0)
        site.run_until(lambda: site.rows("SELECT count(*) FROM devices WHERE seen") == [(3,)], 900)
        site.disconnect(*DEVICES)
        site.run(600)

        lost = device(composed(site), "lamp")
        assert lost["state"] == "outage"
        assert lost["outage"][-1][0] == lost["present"][-1][1]

        site.connect("pump")
        site.run(600)
        data = composed(site)
        assert device(data, "lamp")["state"] == "absent"
        assert device(data, "lamp")["outage"][-1][1] < data["end"]
        site.stop()

    def test_guards_show_while_they_hold(self, tmp_path: Path) -> None:
        """A guard's span carries why it held and what was to be done."""
        site = Site(tmp_path, limits={"maxPerCycle": 0, "maxPercentPerDay": 100, "approvalPercent": 100})
        site.cloud.associate(*DEVICES)
        site.connected = dict.fromkeys(DEVICES, 0)
        site.run_until(lambda: site.rows("SELECT count(*) FROM devices WHERE seen") == [(3,)], 900)
        site.disconnect("gone")
        site.run_until(lambda: "maxPerCycle" in site.guards(), 3600)
        site.run(120)

        data = composed(site)
        (guard,) = data["guards"]
        assert guard["name"] == "maxPerCycle"
        assert guard["spans"][-1][1] == data["end"]
        assert "limits.maxPerCycle is 0" in guard["spans"][-1][2]
        assert [held["guard"] for held in data["held"]] == ["maxPerCycle"]
        site.stop()

    def test_a_disassociation_that_only_the_journal_knows_is_shown(self, site: Site) -> None:
        """A crash can take an event from the history, never an intent from the journal."""
        site.disconnect("gone")
        site.run_until(lambda: site.of_type("disassociated"), 3600)
        site.run(120)
        site.write("DELETE FROM history WHERE type = 'disassociated'")

        gone = device(composed(site), "gone")
        assert gone["state"] == "disassociated"
        assert [kind for _at, kind, _lines in gone["decisions"]] == ["marked", "disassociated"]

    @pytest.mark.parametrize("jump", [-10 * 365 * 86_400.0, -86_400.0, 86_400.0, 56 * 365 * 86_400.0])
    def test_a_wall_clock_that_was_wrong_breaks_nothing(self, site: Site, jump: float) -> None:
        """The order of things holds, the latest time is taken to be right, and years off do not stretch the page."""
        site.disconnect("gone")
        site.run_until(lambda: site.of_type("disassociated"), 3600)
        site.run(300)
        found, record = snapshot.read(site._work_dir), snapshot.read_record(site._work_dir)
        half = len(record) // 2
        wrong = tuple(replace(one, wall=one.wall + jump) for one in record[:half])

        data = report.compose(found, wrong + record[half:], ())

        check_spans(data)
        assert data["end"] <= report.LONGEST_SECONDS
        assert [kind for _at, kind, _lines in device(data, "gone")["decisions"]] == ["marked", "disassociated"]

    def test_a_state_without_any_past_makes_a_page(self, site: Site) -> None:
        """A state of before the first note is shown as it stands."""
        found = snapshot.read(site._work_dir)

        data = report.compose(found, (), ())

        check_spans(data)
        assert {one["name"] for one in data["devices"]} == set(DEVICES)

    def test_what_the_cloud_or_a_configuration_said_is_only_text(self, site: Site) -> None:
        """Unknown kinds and odd data of another version are passed over or shown, never a failure."""
        found, record = snapshot.read(site._work_dir), snapshot.read_record(site._work_dir)
        odd = (
            Happening(found.written, "failed", "lamp", {"code": "X", "message": "<b>no</b>", "cycleId": ""}),
            Happening(found.written, "configuration", None, {"accepted": False, "problems": ["a: b"]}),
            Happening(found.written, "brandNew", "lamp", {"what": 1}),
        )

        data = report.compose(found, record + odd, ())

        assert [kind for _at, kind, _lines in device(data, "lamp")["decisions"]] == ["failed"]


class TestPage:
    """What the page lets in."""

    HOSTILE = '</script><script>alert(1)</script><!-- {{data}} & "quoted" \u2028'

    def test_no_text_can_leave_its_place(self, site: Site) -> None:
        """Names and reasons are data: they open no element, whatever they are made of."""
        data = {**composed(site), "core": self.HOSTILE}
        data["devices"][0]["says"] = self.HOSTILE

        page = report.render(data)

        assert page.count("<script") == page.count("</script>") == 2
        assert "alert(1)</script>" not in page
        embedded = re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
        assert embedded
        assert json.loads(embedded[1]) == json.loads(json.dumps(data))

    def test_its_policy_allows_its_own_style_and_script_and_nothing_else(self, site: Site) -> None:
        """The hashes are those of what is there, and no other source is named."""
        page = report.render(composed(site))

        found = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
        assert found
        policy = dict(part.strip().partition(" ")[::2] for part in found[1].replace("&#x27;", "'").split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
        for kind in ("style", "script"):
            text = re.search(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
            assert text
            digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
            assert policy[f"{kind}-src"] == f"'sha256-{digest}'"

    def test_it_names_no_address_and_needs_no_markup_of_its_data(self) -> None:
        """Nothing is loaded from anywhere, and the script puts data in as text only."""
        template = Path(report.__file__).with_name("report.html").read_text("utf-8")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", template)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=", template)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_can_be_read_in_both_schemes(self, scheme: str) -> None:
        """Contrast of text is at least 4.5, of all that is drawn at least 3 (WCAG 2.1, AA)."""
        template = Path(report.__file__).with_name("report.html").read_text("utf-8")
        blocks = re.findall(r":root \{(.*?)\}", template, re.DOTALL)
        colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[0]))
        if scheme == "dark":
            colours |= dict(re.findall(r"--(\w+): (#\w{6})", blocks[1]))
        for ground in ("ground", "surface", "hover"):
            for text in ("ink", "soft"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (scheme, text, ground)
        drawn = ("present", "absent", "unknown", "outage", "marked", "due", "gone", "restored", "focus")
        for colour in drawn:
            assert contrast(colours[colour], colours["surface"]) >= 3, (scheme, colour)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


class TestCommand:
    """`pruner report FILE.html`."""

    def test_writes_the_page_and_says_where(
        self, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One file, which may be there already; where, and how much it is."""
        file = tmp_path / "a page.html"
        file.write_text("old")

        assert main(["report", str(file), "--work-dir", str(site._work_dir)]) == 0

        assert str(file) in capsys.readouterr().out
        assert file.read_text("utf-8").startswith("<!doctype html>")

    def test_for_machines(self, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`--json` has the documented form."""
        file = tmp_path / "page.html"

        assert main(["report", str(file), "--work-dir", str(site._work_dir), "--json"]) == 0

        answer = json.loads(capsys.readouterr().out)
        assert answer == {"file": str(file), "devices": 3, "bytes": file.stat().st_size}

    def test_a_file_that_cannot_be_written_is_a_sentence(
        self, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit status 1, and what to do."""
        file = tmp_path / "no" / "page.html"

        assert main(["report", str(file), "--work-dir", str(site._work_dir)]) == 1

        assert "cannot be written (No such file or directory)" in capsys.readouterr().err
