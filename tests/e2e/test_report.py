"""The report page as a person meets it: in a real browser, with mouse, finger and keyboard, from a file."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, Page, browse
from client_device_pruner import report, snapshot
from desk import Site
from trial_site import REPOSITORY, MakeSite

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]

HOSTILE = "<img src=x onerror=alert(1)>"
MANY = 1000


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests of this file; each opens its own page in it."""
    with browse(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium: Page) -> Page:
    """The browser, as a desktop's with nothing said yet."""
    chromium.requests.clear()
    chromium.complaints.clear()
    chromium.size(1280, 900)
    chromium.prefer("light")
    return chromium


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The data of a site where one of four devices went, one is back after it was marked, and one is protected."""
    logger = logging.getLogger("client_device_pruner")
    logger.disabled = True
    try:
        site = Site(tmp_path_factory.mktemp("site"), protectedClients=["gate"])
        names = ("camera", "gate", "lamp", "pump")
        site.cloud.associate(*names)
        site.connected = dict.fromkeys(names, 0)
        site.run_until(lambda: site.rows("SELECT count(*) FROM devices WHERE seen") == [(4,)], 900)
        site.disconnect("camera", "pump")
        site.run_until(lambda: site.of_type("marked", "pump"), 3600)
        site.connect("pump")
        site.run_until(lambda: site.of_type("disassociated", "camera"), 3600)
        site.run(600)
        work_dir = site._work_dir
        data = report.compose(snapshot.read(work_dir), snapshot.read_record(work_dir), snapshot.read_history(work_dir))
        site.stop()
    finally:
        logger.disabled = False
    return data


@pytest.fixture
def file(story: dict[str, Any], tmp_path: Path) -> Path:
    """The page of that site, in a directory whose name needs escaping."""
    return written(story, tmp_path / "a directory & more")


def written(data: dict[str, Any], directory: Path) -> Path:
    """A page with this data."""
    directory.mkdir(exist_ok=True)
    file = directory / "report.html"
    file.write_text(report.render(data), "utf-8")
    return file


def names(page: Page) -> list[str]:
    """The devices in sight, from top to bottom."""
    found: list[str] = page.run(
        "[...document.querySelectorAll('.row')].sort((a, b) => parseFloat(a.style.top) - parseFloat(b.style.top))"
        ".map((row) => row.querySelector('button').textContent)"
    )
    return found


def place(page: Page, name: str, kind: str) -> tuple[float, float]:
    """Where a device's latest decision of a kind is drawn, in CSS pixels."""
    found = page.run(
        f"""(() => {{
          const row = [...document.querySelectorAll(".row")].find((one) => one.textContent.startsWith("{name}"));
          const box = row.querySelector("canvas").getBoundingClientRect();
          const device = data.devices.find((one) => one.name === "{name}");
          const [at] = device.decisions.filter((one) => one[1] === "{kind}").pop();
          return [box.left + placeOf(at, box.width), box.top + box.height / 2];
        }})()"""
    )
    return found[0], found[1]


def tip(page: Page) -> str:
    """What the tip says; "" while it says nothing."""
    said: str = page.run("$('tip').hidden ? '' : $('tip').innerText")
    return said


def test_opens_from_a_file_without_a_word_or_a_request(page: Page, file: Path) -> None:
    """All devices are there, nothing is asked of anybody, and the console stays empty."""
    page.open(file.as_uri())

    assert page.run("document.body.dataset.ready") == "yes"
    assert names(page) == ["camera", "lamp", "pump", "gate"]
    assert page.run("$('shown').textContent") == "4 of 4 shown"
    assert page.requests == [file.as_uri()]
    assert page.complaints == []


def test_what_is_drawn_is_there_to_be_seen(page: Page, file: Path) -> None:
    """Timelines show their colours, in both schemes: pixels of the states' own colours, on a ground of the scheme."""
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        page.open(file.as_uri())
        found = page.run(
            """(() => {
              const seen = new Set();
              for (const canvas of document.querySelectorAll(".row canvas")) {
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255)
                  seen.add("#" + [0, 1, 2].map((j) => data[i + j].toString(16).padStart(2, "0")).join(""));
              }
              return ["present", "absent", "marked", "gone"].filter((kind) => !seen.has(colours[kind]));
            })()"""
        )
        assert found == [], scheme
        ground = page.run("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in ground[4:-1].split(",")) / 3
        assert (brightness > 200) == (scheme == "light")
    assert page.complaints == []


def test_each_state_source_and_guard_is_drawn_where_it_was(page: Page, story: dict[str, Any], tmp_path: Path) -> None:
    """An outage, a restored device, a source while it vouched and while not, and a guard with its reason."""
    data = json.loads(json.dumps(story))
    end = data["end"]
    lamp = next(one for one in data["devices"] if one["name"] == "lamp")
    lamp |= {"since": 0, "present": [[0, end * 0.3]], "outage": [[end * 0.5, end * 0.7]], "marked": [], "gone": []}
    lamp["decisions"] = [[end * 0.8, "restored", [["requested by", "command"]]]]
    data["backgrounds"][lamp["background"]] = [[end * 0.65, end]]
    data["sources"][0]["spans"] = [[0, end * 0.3], [end * 0.6, end]]
    data["guards"] = [{"name": "approval", "spans": [[end * 0.5, end * 0.7, "six are due", "approve the plan"]]}]
    page.open(written(data, tmp_path).as_uri())
    colours_of = """(canvas, part) => {
        const ratio = canvas.width / canvas.clientWidth;
        const x = Math.round((placeOf(data.end * part, canvas.clientWidth) - 6) * ratio);
        const found = new Set(), pixels = canvas.getContext("2d").getImageData(x, 0, 12 * ratio, canvas.height).data;
        for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 255)
          found.add("#" + [0, 1, 2].map((j) => pixels[i + j].toString(16).padStart(2, "0")).join(""));
        return Object.keys(colours).filter((kind) => found.has(colours[kind]));
      }"""

    def drawn(name: str, part: float) -> set[str]:
        """The kinds whose colours are drawn on a device's or a lane's timeline, around that part of the time."""
        canvas = f"[...document.querySelectorAll('.row, .lane')].find((one) => one.textContent.startsWith('{name}'))"
        return set(page.run(f"({colours_of})({canvas}.querySelector('canvas'), {part})"))

    kinds = {"present", "absent", "unknown", "outage", "marked", "gone"}
    on_lamp = {part: drawn("lamp", part) & kinds for part in (0.2, 0.4, 0.6, 0.75, 0.8)}
    assert on_lamp[0.2] == {"present"}
    assert on_lamp[0.4] == {"unknown"}
    assert on_lamp[0.6] == {"outage"}
    assert on_lamp[0.75] == {"absent"}
    assert "restored" in drawn("lamp", 0.8)
    source = f"source {data['sources'][0]['name']}"
    assert [drawn(source, part) & kinds for part in (0.2, 0.45, 0.8)] == [{"present"}, {"unknown"}, {"present"}]
    assert "marked" in drawn("guard approval", 0.6)
    assert "marked" not in drawn("guard approval", 0.2)
    box = page.run(
        "(() => { const b = lanes.find((one) => one.name === 'guard approval').canvas.getBoundingClientRect();"
        " return [b.left + placeOf(data.end * 0.6, b.width), b.top + b.height / 2]; })()"
    )
    page.point(*box)
    assert "six are due" in tip(page)
    assert "approve the plan" in tip(page)


def test_filters_by_name_state_and_address_and_sorts(page: Page, file: Path) -> None:
    """Typing, a click on a state, and the address's hash do the same; what is chosen is said to be."""
    page.open(f"{file.as_uri()}#name=am&sort=name")
    assert names(page) == ["camera", "lamp"]

    page.run("$('query').focus(); $('query').select()")
    page.call("Input.insertText", text="PUM")
    assert names(page) == ["pump"]

    page.open(file.as_uri())
    page.run("document.querySelector('[data-state=disassociated]').click()")
    assert names(page) == ["camera"]
    assert page.run("document.querySelector('[data-state=disassociated]').getAttribute('aria-pressed')") == "true"
    page.run("document.querySelector('[data-state=disassociated]').click()")
    assert len(names(page)) == 4

    page.run("location.hash = '#state=protected'")
    page.until("document.querySelectorAll('.row').length === 1")
    assert names(page) == ["gate"]
    page.run("location.hash = '#name=nobody'")
    page.until("!$('empty').hidden")
    assert page.complaints == []


def test_the_mouse_finds_the_evidence(page: Page, file: Path) -> None:
    """Pointing at a decision shows what it rests on, pointing beside it how things stood, leaving takes it away."""
    page.open(file.as_uri())

    x, y = place(page, "camera", "disassociated")
    page.point(x, y)
    said = tip(page)
    assert "camera" in said
    assert "disassociated" in said
    assert "census, source emqx" in said

    x, _y = place(page, "camera", "marked")
    page.point(x + 30, y)
    assert "marked: stale, its notice ran" in tip(page)
    page.point(5, 5)
    assert tip(page) == ""


def test_a_finger_finds_it_too(page: Page, file: Path) -> None:
    """On a telephone a tap shows it and keeps it, and a tap elsewhere takes it away."""
    page.size(390, 844, touch=True, scale=2)
    page.open(file.as_uri())
    page.run("document.querySelector('.row').scrollIntoView({ block: 'center' })")
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    page.tap(*place(page, "camera", "disassociated"))
    page.until("!$('tip').hidden")
    assert "census, source emqx" in tip(page)

    page.tap(20, 20)
    page.until("$('tip').hidden")
    assert page.run("document.documentElement.scrollWidth <= 390")


def test_the_keyboard_reaches_everything(page: Page, file: Path) -> None:
    """Down and up go from device to device, left and right through decisions, Enter opens all of one, Escape leaves."""
    page.open(file.as_uri())
    for _press in range(60):
        page.press("Tab", 9)
        if page.run("document.activeElement.closest('.row') !== null"):
            break
    assert page.run("document.activeElement.textContent") == "camera"
    assert "disassociated" in tip(page)
    assert "camera: disassociated" in page.run("document.activeElement.getAttribute('aria-label')")

    page.press("ArrowLeft", 37)
    assert "marked" in tip(page)
    page.press("End", 35)
    assert page.run("document.activeElement.textContent") == "gate"
    page.press("Home", 36)
    page.press("Enter", 13)
    page.until("$('detail').open")
    assert "pruner restore camera" in page.run("$('detail').innerText")
    assert page.run("$('detail').querySelectorAll('li').length") == 2
    page.press("Escape", 27)
    page.until("!$('detail').open")


def test_the_time_shown_can_be_chosen(page: Page, file: Path) -> None:
    """A button shows the end of it, a drag over the axis a part."""
    page.open(file.as_uri())
    everything = page.run("view.to - view.from")

    page.run("$('ranges').lastElementChild.click()")
    assert page.run("view.to - view.from") < everything
    page.run("$('ranges').firstElementChild.click()")
    left, top, wide = page.run(
        "(() => { const b = $('axis').getBoundingClientRect(); return [b.left, b.top, b.width]; })()"
    )
    page.drag(left + wide * 0.25, top + 10, left + wide * 0.5)
    assert page.run("view.to - view.from") == pytest.approx(everything / 4, rel=0.05)
    assert page.complaints == []


def test_hostile_texts_stay_texts(page: Page, story: dict[str, Any], tmp_path: Path) -> None:
    """What a cloud's message or a name contains is shown as it is, and runs nowhere."""
    data = json.loads(json.dumps(story))
    data["core"] = HOSTILE
    data["devices"][-1]["says"] = data["devices"][-1]["name"] = HOSTILE
    data["devices"][-1]["decisions"][-1][2].append(["message", HOSTILE])
    data["doctor"] = [{"finding": HOSTILE, "remedy": HOSTILE}]
    data["held"] = [{"guard": HOSTILE, "reason": HOSTILE, "remedy": HOSTILE}]
    data["sources"][0]["reason"] = HOSTILE
    file = written(data, tmp_path)

    page.open(file.as_uri())
    page.run("document.querySelector('.row button').click()")

    assert page.run("$('core').textContent") == HOSTILE
    assert HOSTILE in page.run("$('detail').innerText")
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.requests == [file.as_uri()]
    assert page.complaints == []


def test_the_policy_forbids_every_request(page: Page, file: Path) -> None:
    """Even a script that ran in the page could reach nobody."""
    with listening() as (address, heard):
        page.open(file.as_uri())
        page.run(f"fetch('{address}/fetched').catch(() => 0)")
        page.run(
            f"""(() => {{
              const image = document.body.appendChild(new Image()), frame = document.createElement("iframe");
              image.src = "{address}/image";
              frame.src = "{address}/frame";
              const script = document.createElement("script");
              script.src = "{address}/script.js";
              document.body.append(frame, script);
            }})()"""
        )
        page.run("new Promise((done) => setTimeout(done, 300))")

    assert heard == []
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server on the loopback interface: its address, and the paths that it was asked for."""
    heard: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_error(404)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_thousand_devices_stay_usable(page: Page, story: dict[str, Any], tmp_path: Path) -> None:
    """Of 1,000 devices with 200 comings and goings each, only the rows in sight exist, wherever one looks."""
    data = json.loads(json.dumps(story))
    slice_seconds = data["end"] / 400
    flapping = [[2 * i * slice_seconds, (2 * i + 1) * slice_seconds] for i in range(200)]
    data["devices"] = [
        {**data["devices"][number % 4], "name": f"device-{number}", "present": flapping} for number in range(MANY)
    ]
    file = written(data, tmp_path)

    page.open(file.as_uri())

    assert page.run("$('shown').textContent") == "1000 of 1000 shown"
    for step in range(5):
        page.run(f"scrollTo(0, document.body.scrollHeight * {step} / 4)")
        page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert 0 < page.run("document.querySelectorAll('.row').length") < 60
    page.run("filter.query = 'device-999'; applyFilter()")
    assert names(page) == ["device-999"]
    assert page.complaints == []


async def test_a_site_that_ran_for_real_makes_its_page(page: Page, make_site: MakeSite, tmp_path: Path) -> None:
    """On the local core: the device that was killed and disassociated is told of, by the command that a person runs."""
    site = await make_site()
    site.core.cloud.associate("alive", "dead")
    await site.deploy()
    await site.event("cycle")
    await site.devices.connect("alive", process="alive")
    await site.devices.connect("dead", process="dead")
    await site.until(lambda: site.rows("SELECT name FROM devices WHERE held AND name = 'dead'"))
    await site.devices.kill("dead")
    await site.event("disassociated", "dead")
    await site.until(lambda: site.rows("SELECT id FROM transitions WHERE type = 'unlisted'"))
    file = tmp_path / "report.html"

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "client_device_pruner", "report", str(file), "--work-dir", str(site.core.work_dir)],
        cwd=REPOSITORY / "src",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert str(file) in done.stdout
    await asyncio.to_thread(page.open, file.as_uri())
    assert set(names(page)) == {"alive", "dead"}
    assert page.run("data.running")
    dead = page.run("data.devices.find((one) => one.name === 'dead')")
    assert dead["state"] == "disassociated"
    assert [kind for _at, kind, _lines in dead["decisions"]] == ["marked", "disassociated"]
    assert dead["present"][-1][1] < dead["marked"][0][0]
    assert page.run("data.sources.find((one) => one.name === 'emqx').spans.length") >= 1
    assert page.requests == [file.as_uri()]
    assert page.complaints == []
