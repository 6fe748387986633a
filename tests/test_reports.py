"""What the component tells others: events as CloudEvents, and its log as lines of JSON."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from client_device_pruner.reports import (
    LOGGER,
    JsonLines,
    Reports,
    log_to_standard_streams,
    rfc3339,
)
from client_device_pruner.settings import parse


class Desk:
    """Keeps what was published and recorded."""

    def __init__(self) -> None:
        self.local: list[tuple[str, bytes]] = []
        self.cloud: list[tuple[str, bytes]] = []
        self.history: list[tuple[float, str, str | None, dict[str, Any]]] = []
        self.connected = True
        self.reports = Reports(
            "core-1",
            wall=lambda: 1_790_000_000.25,
            publish=lambda topic, payload: self.local.append((topic, payload)),
            publish_to_iot_core=self._take,
            record=lambda *row: self.history.append(row),
        )

    def _take(self, topic: str, payload: bytes) -> bool:
        if self.connected:
            self.cloud.append((topic, payload))
        return self.connected


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The component's logger, put back afterwards."""
    before = LOGGER.handlers[:], LOGGER.propagate, LOGGER.level
    yield LOGGER
    LOGGER.handlers[:], LOGGER.propagate = before[0], before[1]
    LOGGER.setLevel(before[2])


def test_an_event_is_a_cloud_event() -> None:
    """Structured JSON of CloudEvents 1.0, about a device or not, each with an id of its own."""
    desk = Desk()
    desk.reports.event(parse({}), "marked", "ü:1", offlineSeconds=5.5, proof="census")
    desk.reports.event(parse({}), "cycle", disassociated=0, held=["approval"])
    (topic, first), (_, second) = desk.local
    assert topic == "client-device-pruner/events"
    marked, cycle = json.loads(first), json.loads(second)
    assert marked.pop("id") != cycle.pop("id")
    assert marked == {
        "specversion": "1.0",
        "source": "/greengrass/core-1/client-device-pruner",
        "type": "community.greengrass.pruner.marked",
        "subject": "ü:1",
        "time": "2026-09-21T14:13:20.250Z",
        "datacontenttype": "application/json",
        "data": {"offlineSeconds": 5.5, "proof": "census"},
    }
    assert "subject" not in cycle
    assert cycle["data"] == {"disassociated": 0, "held": ["approval"]}


def test_events_go_where_the_settings_say() -> None:
    """An empty topic switches one way off; the history gets them always."""
    desk = Desk()
    topics = {"localTopic": "", "iotCoreTopic": "fleet/{thingName}/events"}
    desk.reports.event(parse({"reports": topics}), "held", guard="list")
    assert desk.local == []
    assert [topic for topic, _ in desk.cloud] == ["fleet/core-1/events"]
    desk.reports.event(parse({"reports": {"localTopic": "mine"}}), "held", guard="list")
    assert [topic for topic, _ in desk.local] == ["mine"]
    assert len(desk.cloud) == 1
    assert desk.history == [(1_790_000_000.25, "held", None, {"guard": "list"})] * 2


@pytest.mark.parametrize(("wall", "text"), [(0.0, "1970-01-01T00:00:00.000Z"), (-1.5, "1969-12-31T23:59:58.500Z")])
def test_times_are_utc(wall: float, text: str) -> None:
    """RFC 3339 with milliseconds, whatever the wall clock says."""
    assert rfc3339(wall) == text


def test_the_log_is_lines_of_json_on_the_standard_streams(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    """Warnings and worse on standard error, the rest on standard output, below the level nowhere."""
    log_to_standard_streams("INFO")
    logger.debug("unsaid")
    logger.info("cycle", extra={"fields": {"thingName": None, "disassociated": 2}})
    logger.warning("two\nlines")
    try:
        json.loads("{")
    except ValueError:
        logger.exception("broken")
    out, err = capsys.readouterr()
    (quiet,), (warned, broken) = map(str.splitlines, (out, err))
    line = json.loads(quiet)
    assert (line["level"], line["message"], line["disassociated"]) == ("INFO", "cycle", 2)
    assert "thingName" not in line
    assert json.loads(warned)["message"] == "two\nlines"
    assert "JSONDecodeError" in json.loads(broken)["exception"]


@pytest.mark.parametrize(
    ("kind", "level"), [("failed", "ERROR"), ("held", "WARNING"), ("disassociated", "WARNING"), ("cycle", "INFO")]
)
def test_events_are_logged_as_loud_as_they_matter(
    kind: str, level: str, capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    """What somebody should look at is a warning, what went wrong an error."""
    del logger
    log_to_standard_streams("DEBUG")
    Desk().reports.event(parse({}), kind, "a", code="x")
    line = json.loads("".join(capsys.readouterr()))
    assert (line["level"], line["message"], line["thingName"], line["code"]) == (level, kind, "a", "x")


def test_what_json_cannot_carry_is_logged_as_text() -> None:
    """A line is never lost for an odd value."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "m", (), None)
    record.fields = {"odd": {1}}
    assert json.loads(JsonLines().format(record))["odd"] == "{1}"


def status(provable: int, *guards: str) -> dict[str, Any]:
    """A status as `status.describe` makes it, cut down to what the shadow takes."""
    return {
        "coverage": {"associated": 3, "provable": provable, "reasons": ["3 of 3 devices: no source vouches"]},
        "counts": {"present": 2, "absent": 1},
        "guards": [{"guard": guard, "reason": "r", "remedy": "m"} for guard in guards],
        "sources": {"emqx": {"vouching": True}, "messages": {"vouching": False}},
    }


def test_the_shadow_is_written_when_it_changed_and_only_then() -> None:
    """The named shadow holds what fleet indexing asks for, and is published again only with another content."""
    desk = Desk()
    settings = parse({})
    for said in (status(0, "accessDenied"), status(0, "accessDenied"), status(3)):
        desk.reports.shadow(settings, said)

    first, second = desk.cloud
    assert first[0] == "$aws/things/core-1/shadow/name/client-device-pruner/update"
    reported = json.loads(first[1])["state"]["reported"]
    assert reported["guards"] == ["accessDenied"]
    assert reported["holding"] == 1
    assert reported["reason"] == "3 of 3 devices: no source vouches"
    assert reported["vouching"] == ["emqx"]
    assert json.loads(second[1])["state"]["reported"]["holding"] == 0


def test_the_shadow_tells_of_the_last_cycle() -> None:
    """When it ended, whether it was complete, and what it did, in forms that an index compares."""
    desk = Desk()
    desk.reports.shadow(parse({}), status(3))
    desk.reports.event(parse({}), "cycle", complete=True, disassociated=2, held=[])
    desk.reports.shadow(parse({}), status(3))

    before, after = (json.loads(payload)["state"]["reported"] for _topic, payload in desk.cloud)
    assert "lastCycle" not in before, "what an earlier run wrote stays"
    assert after.pop("lastCycle") == {"endedAt": 1_790_000_000, "complete": True, "disassociated": 2}
    assert after == before


def test_the_shadow_of_a_large_site_fits() -> None:
    """AWS IoT takes shadows of up to 8 KiB; twenty sources with long names and every guard stay far below."""
    desk = Desk()
    said = status(3, *(f"source:{'s' * 64}{number}" for number in range(20)), *"abcdefghijk")
    said["sources"] = {f"{'s' * 64}{number}": {"vouching": True} for number in range(20)}
    desk.reports.shadow(parse({}), said)
    ((_topic, payload),) = desk.cloud
    assert len(payload) < 8 * 1024


@pytest.mark.parametrize("text", ["a", "ü", "🦆"])
def test_an_event_is_never_too_long_for_greengrass_lite(text: str) -> None:
    """What is too long is cut, and says so; the history has it whole."""
    desk = Desk()
    problems = [f"{number}: {text * 100}" for number in range(300)]
    desk.reports.event(parse({}), "configuration", accepted=False, problems=problems)
    desk.reports.event(parse({}), "held", guard="configuration", reason=text * 30_000, remedy="correct it")
    for topic, payload in desk.local:
        assert len(base64.b64encode(payload)) + len(topic) < 9_500, "of 10,000, in which more stands"
    told, held = (json.loads(payload)["data"] for _topic, payload in desk.local)
    assert told["accepted"] is False
    assert told["problems"][:2] == problems[:2]
    left = 300 - (len(told["problems"]) - 1)
    assert told["problems"][-1] == f"… and {left} more: see the log"
    assert (held["guard"], held["remedy"]) == ("configuration", "correct it")
    assert held["reason"].endswith(f"{text}…")
    assert desk.history[0][3]["problems"] == problems


def test_an_event_that_fits_is_whole() -> None:
    """Nothing is cut that need not be."""
    desk = Desk()
    reasons = ["x" * 3_000, "y" * 3_000]
    desk.reports.event(parse({}), "coverage", associated=1, provable=0, reasons=reasons)
    ((_topic, payload),) = desk.local
    assert json.loads(payload)["data"]["reasons"] == reasons


def test_a_shadow_that_could_not_be_sent_is_sent_later() -> None:
    """Without a connection nothing is taken for written."""
    desk = Desk()
    desk.connected = False
    desk.reports.shadow(parse({}), status(1))
    desk.connected = True
    desk.reports.shadow(parse({}), status(1))
    assert len(desk.cloud) == 1


def test_no_shadow_without_a_name() -> None:
    """An empty shadow name writes none."""
    desk = Desk()
    desk.reports.shadow(parse({"reports": {"shadowName": ""}}), status(1))
    assert desk.cloud == []
