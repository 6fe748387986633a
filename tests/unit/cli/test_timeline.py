"""The report page: what it is composed of, and what it lets in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.cli import reading, timeline
from fakes.state import DAY, EVIDENCE, WALL, Pruner

HOSTILE = '</script><script>alert(1)</script><!-- {{data}} & "quoted" \u2028'
TEMPLATE = Path(timeline.__file__).with_name("report.html").read_text("utf-8")


def composed(pruner: Pruner) -> dict[str, Any]:
    """What the page of this core would show, as its reader gets it."""
    work_dir = pruner.state.work_dir
    events, changes = reading.read_record(work_dir)
    data: dict[str, Any] = json.loads(json.dumps(timeline.compose(reading.read(work_dir), events, changes)))
    # Every span lies in the page's time, does not end before it begins, and follows the one before.
    for row in data["lanes"] + data["devices"]:
        ends = [time for span in row["spans"] for time in span[:2]]
        assert ends == sorted(ends)
        assert all(0 <= time <= data["end"] for time in [*ends, *(one[0] for one in row["decisions"])])
    return data


def row(data: dict[str, Any], name: str) -> dict[str, Any]:
    """One row of a page."""
    return next(one for one in data["lanes"] + data["devices"] if one["name"] == name)


def spans(data: dict[str, Any], name: str) -> list[tuple[float, float, str]]:
    """The spans of a row, in seconds before the page's end."""
    return [(round(a - data["end"]), round(b - data["end"]), kind) for a, b, kind, _why in row(data, name)["spans"]]


def test_the_way_of_a_device_that_goes_and_comes_back(pruner: Pruner) -> None:
    """Its states follow one another, each decision with its evidence."""
    state = pruner.state
    state.changed((WALL - 9_000, "press-2", "present"), (WALL - 8_000, "press-2", "silent"))
    state.changed((WALL - 5_000, "press-2", "marked"))
    state.happened(WALL - 5_000, "marked", "press-2", **EVIDENCE, dueInSeconds=DAY)
    state.happened(WALL - 3_000, "disassociated", "press-2", **EVIDENCE, cycleId="c1")
    state.happened(WALL - 1_000, "restored", "press-2", requestedBy="command")

    data = composed(pruner)

    assert spans(data, "press-2") == [
        (-9_000, -8_000, "present"), (-8_000, -5_000, "silent"), (-5_000, -3_000, "marked"),
        (-3_000, -1_000, "disassociated"), (-1_000, 0, "silent"),
    ]  # fmt: skip
    assert [kind for _at, kind, _lines in row(data, "press-2")["decisions"]] == ["marked", "disassociated", "restored"]
    assert ["silent", "31d of 30d"] in row(data, "press-2")["decisions"][0][2]
    assert row(data, "press-2")["figure"] == "3d of 30d"
    assert row(data, "press-3")["figure"] == "due in 12h"
    assert row(data, "press-3")["says"] == "It has been silent for 30d12h. It will be disassociated in 12h."
    assert row(data, "quiet-1")["figure"] == "50d of unlimited"


def test_what_was_disassociated_stays_on_the_page(pruner: Pruner) -> None:
    """Names that merely left do not, and kinds of event of another version are passed over."""
    pruner.state.happened(WALL - 3_599, "disassociated", "gone-1", **EVIDENCE, cycleId="c1")
    pruner.state.happened(WALL - 3_000, "brandNew", "press-1", what=1)
    pruner.state.changed((WALL - 9_000, "left-1", "present"))

    data = composed(pruner)

    assert {one["name"] for one in data["devices"]} == {"press-1", "press-2", "press-3", "quiet-1", "gone-1"}
    assert row(data, "gone-1")["state"] == "disassociated"
    assert "pruner restore gone-1" in row(data, "gone-1")["says"]
    assert spans(data, "gone-1") == [(-3_599, 0, "disassociated")]


def test_when_it_observed_and_when_it_did_not_run(pruner: Pruner) -> None:
    """A run that was killed is known to have gone on until it last wrote."""
    changes = [
        (-9_000, None, "started"), (-8_900, None, "observing"), (-8_000, None, "stopped"),
        (-7_000, None, "started"), (-6_900, None, "observing"), (-6_000, "press-1", "present"),
        (-4_000, None, "started"), (-3_900, None, "observing"), (-2_000, None, "notObserving"),
    ]  # fmt: skip
    pruner.state.changed(*((WALL + at, name, what) for at, name, what in changes))

    assert spans(composed(pruner), "the component") == [
        (-9_000, -8_900, "notObserving"), (-8_900, -8_000, "observing"), (-8_000, -7_000, "stopped"),
        (-7_000, -6_900, "notObserving"), (-6_900, -6_000, "observing"), (-6_000, -4_000, "stopped"),
        (-4_000, -3_900, "notObserving"), (-3_900, -2_000, "observing"), (-2_000, 0, "notObserving"),
    ]  # fmt: skip


def test_guards_show_while_they_hold_and_cycles_when_they_ended(pruner: Pruner) -> None:
    """A guard's span carries why it held and what was to be done."""
    held = {"guard": "maxPerCycle", "reason": "it is 0", "remedy": "raise it"}
    pruner.state.happened(WALL - 9_000, "held", None, **held)
    pruner.state.happened(WALL - 8_000, "cycle", None, cycleId="c1", complete=True, held=["maxPerCycle"])
    pruner.state.happened(WALL - 7_000, "released", None, **held)
    pruner.state.happened(WALL - 6_000, "configuration", None, accepted=False, changed=[], problems=["a: b", "c: d"])

    data = composed(pruner)

    assert spans(data, "maxPerCycle") == [(-9_000, -7_000, "held")]
    assert row(data, "maxPerCycle")["spans"][0][3] == [["why", "it is 0"], ["what to do", "raise it"]]
    (_, cycle, lines), (_, configuration, problems) = row(data, "the component")["decisions"]
    assert (cycle, configuration) == ("cycle", "configuration")
    assert ["held", "maxPerCycle"] in lines
    assert ["problems", "a: b, c: d"] in problems


@pytest.mark.parametrize("jump", [-10 * 365 * DAY, -DAY, DAY, 56 * 365 * DAY])
def test_a_wall_clock_that_was_wrong_breaks_nothing(pruner: Pruner, jump: float) -> None:
    """The order of things holds, the latest time is taken to be right, and years off do not stretch the page."""
    pruner.state.changed((WALL - 9_000 + jump, "press-2", "present"), (WALL - 8_000 + jump, "press-2", "silent"))
    pruner.state.changed((WALL - 5_000, "press-2", "marked"))

    data = composed(pruner)

    assert data["end"] <= timeline.LONGEST_SECONDS
    assert spans(data, "press-2")[-1] == (-5_000, 0, "marked")


def test_no_text_can_leave_its_place(pruner: Pruner) -> None:
    """Names and reasons are data: they open no element, whatever they are made of."""
    data = {**composed(pruner), "core": HOSTILE}
    data["devices"][0]["says"] = HOSTILE

    page = timeline.page(data)

    assert page.count("<script") == page.count("</script>") == 2
    embedded = re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert embedded
    assert json.loads(embedded[1]) == data


def test_the_page_allows_its_own_style_and_script_and_nothing_else(pruner: Pruner) -> None:
    """Its policy has their hashes and no other source; its script puts data in as text only."""
    page = timeline.page(composed(pruner))

    found = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found
    policy = dict(part.strip().partition(" ")[::2] for part in found[1].replace("&#x27;", "'").split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for kind in ("style", "script"):
        text = re.search(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert text
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", TEMPLATE)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=", TEMPLATE)


def test_the_command_writes_one_file(pruner: Pruner, tmp_path: Path) -> None:
    """Which may be there already; it says where, and how much it is. One that cannot be written is a sentence."""
    file = tmp_path / "a page.html"
    file.write_text("old")

    assert pruner.value("report", str(file)) == {"file": str(file), "devices": 4, "bytes": file.stat().st_size}
    assert file.read_text("utf-8").startswith("<!doctype html>")
    assert "cannot be written (No such file" in pruner.failure("report", str(tmp_path / "no" / "page.html"))
