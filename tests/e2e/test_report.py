"""The report page as a person meets it: in a real browser, from a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.cli import reading, timeline
from e2e.browser import CHROMIUM, Page, browse
from fakes.state import DAY, EVIDENCE, WALL, WrittenState

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests of this file."""
    with browse(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """A core where one of four devices was disassociated, which was blind for a day, and whose texts are hostile."""
    state = WrittenState(tmp_path / "work")
    state.add("gate", "protected", 9 * DAY, sentences=("protectedDevices names it.",))
    state.add("lamp", "present", sentences=("It is connected.",))
    state.add("pump", "marked", 31 * DAY, due_in_seconds=DAY / 2, evidence="rhythm")
    state.write()
    ago: list[tuple[float, str | None, str]] = [(40, None, "started"), (40, None, "observing")]
    ago += [(20, None, "notObserving"), (19, None, "observing")]
    ago += [(40, "gate", "protected"), (40, "lamp", "present"), (40, "pump", "present"), (31, "pump", "silent")]
    ago += [(0.5, "pump", "marked"), (40, "camera", "present"), (36, "camera", "silent"), (5, "camera", "marked")]
    state.changed(*((WALL - days * DAY, name, what) for days, name, what in sorted(ago, key=lambda one: -one[0])))
    state.happened(WALL - 5 * DAY, "marked", "camera", **EVIDENCE)
    state.happened(WALL - 4 * DAY, "disassociated", "camera", **EVIDENCE, cycleId="c1")
    state.happened(WALL - 3 * DAY, "held", None, guard="maxPerCycle", reason="it is 0", remedy="raise it")
    events, changes = reading.read_record(state.work_dir)
    data = timeline.compose(reading.read(state.work_dir), events, changes)
    gate = next(one for one in data["devices"] if one["name"] == "gate")
    gate |= {"says": HOSTILE, "decisions": [[0.0, "failed", [[HOSTILE, HOSTILE]]]]}
    said = {"guard": HOSTILE, "finding": HOSTILE, "reason": HOSTILE, "remedy": HOSTILE}
    return {**data, "core": HOSTILE, "doctor": [said], "held": [said]}


def written(data: dict[str, Any], directory: Path) -> str:
    """The address of a page with this data, in a directory whose name needs escaping."""
    file = directory / "a directory & more" / "report.html"
    file.parent.mkdir()
    file.write_text(timeline.page(data), "utf-8")
    return file.as_uri()


def names(page: Page) -> list[str]:
    """The devices in sight, from top to bottom."""
    found: list[str] = page.run("[...document.querySelectorAll('#list button')].map((one) => one.textContent)")
    return found


def place(page: Page, name: str, days_ago: float) -> tuple[float, float]:
    """Where a time lies on a row's timeline, in CSS pixels."""
    found = page.run(
        f"""(() => {{
          const row = [...document.querySelectorAll(".row")].find((one) => one.textContent.includes("{name}"));
          const box = row.querySelector("canvas").getBoundingClientRect();
          return [box.left + placeOf(data.end - {days_ago * DAY}, box.width), box.top + box.height / 2];
        }})()"""
    )
    return found[0], found[1]


def tip(page: Page) -> str:
    """What the tip says; "" while it says nothing."""
    said: str = page.run("$('tip').hidden ? '' : $('tip').innerText")
    return said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_from_a_file_without_a_word_or_a_request(
    page: Page, data: dict[str, Any], tmp_path: Path, scheme: str
) -> None:
    """All devices are there, drawn in their colours; nothing is asked of anybody, no text runs."""
    address = written(data, tmp_path)
    page.open(address, scheme=scheme)

    assert page.run("document.body.dataset.ready") == "yes"
    assert names(page) == ["pump", "camera", "gate", "lamp"]
    drawn = page.run(
        """(() => {
          const seen = new Set();
          for (const canvas of document.querySelectorAll(".row canvas")) {
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255)
              seen.add("#" + [0, 1, 2].map((j) => data[i + j].toString(16).padStart(2, "0")).join(""));
          }
          return Object.keys(colours).filter((kind) => seen.has(colours[kind]));
        })()"""
    )
    assert {"present", "silent", "marked", "gone"} <= set(drawn)
    page.run("[...document.querySelectorAll('#list button')].find((one) => one.textContent === 'gate').click()")
    assert page.run("$('core').textContent") == HOSTILE
    assert HOSTILE in page.run("$('detail').innerText")
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.requests == [address]
    assert page.complaints == []


def test_the_mouse_finds_the_evidence(page: Page, data: dict[str, Any], tmp_path: Path) -> None:
    """Pointing at a decision shows what it rests on, beside it how things stood; a name opens all of one device."""
    page.open(written(data, tmp_path))

    page.point(*place(page, "camera", 4))
    assert "disassociated" in tip(page)
    assert "connectionCount" in tip(page)
    page.point(*place(page, "lamp", 19.5))
    assert "present (not observing" in tip(page)
    page.point(*place(page, "guard maxPerCycle", 1))
    assert "raise it" in tip(page)
    page.point(5, 5)
    assert tip(page) == ""

    page.run("[...document.querySelectorAll('#list button')].find((one) => one.textContent === 'camera').click()")
    assert "pruner restore camera" in page.run("$('detail').innerText")
    assert page.run("$('detail').querySelectorAll('li').length") == 2


def test_filters_sorts_and_looks_closer(page: Page, data: dict[str, Any], tmp_path: Path) -> None:
    """By name, by state, by another order, and to a part of the time by dragging."""
    page.open(written(data, tmp_path))
    page.run("$('query').focus()")
    page.call("Input.insertText", text="AM")
    assert names(page) == ["camera", "lamp"]
    page.run("$('query').select()")
    page.call("Input.insertText", text="x")
    assert page.run("$('empty').hidden") is False
    page.run("$('query').value = ''; $('query').dispatchEvent(new Event('input'))")
    page.run("$('sort').value = 'name'; $('sort').dispatchEvent(new Event('change'))")
    assert names(page) == ["camera", "gate", "lamp", "pump"]
    page.run("document.querySelector('[data-state=disassociated]').click()")
    assert names(page) == ["camera"]

    whole = page.run("view.to - view.from")
    left, top, wide = page.run(
        "(() => { const b = $('axis').getBoundingClientRect(); return [b.left, b.top, b.width]; })()"
    )
    page.drag(left + wide * 0.25, top + 10, left + wide * 0.5)
    assert page.run("view.to - view.from") == pytest.approx(whole / 4, rel=0.05)
    page.run("$('ranges').firstElementChild.click()")
    assert page.run("view.to - view.from") == whole
    assert page.complaints == []


def test_thousands_of_devices_on_a_telephone(page: Page, data: dict[str, Any], tmp_path: Path) -> None:
    """Only the rows in sight exist, scrolling finds the others, and nothing reaches beyond the screen."""
    one = data["devices"][0]
    data["devices"] = [{**one, "name": f"{HOSTILE} {number:04}"} for number in range(5_000)]
    page.open(written(data, tmp_path), width=390, height=844)

    assert 0 < len(names(page)) < 50
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert names(page)[-1] == f"{HOSTILE} 4999"
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("document.querySelectorAll('img').length") == 0
