"""What the component tells others: events as CloudEvents, and its log as lines of JSON."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from client_device_pruner.config.settings import parse
from client_device_pruner.reports.events import LOGGER, Events, log_to_standard_streams, rfc3339


class Desk:
    """Keeps what was published and recorded."""

    def __init__(self, **settings: Any) -> None:
        self.settings = parse(settings)
        self.local: list[tuple[str, bytes]] = []
        self.cloud: list[tuple[str, bytes]] = []
        self.history: list[tuple[float, str, str | None, dict[str, Any]]] = []
        self._events = Events(
            "core-1",
            wall=lambda: 1_790_000_000.25,
            publish=lambda topic, payload: self.local.append((topic, payload)),
            publish_to_iot_core=lambda topic, payload: self.cloud.append((topic, payload)),
            record=lambda *row: self.history.append(row),
        )

    def event(self, kind: str, name: str | None = None, /, **data: Any) -> None:
        """Publish an event."""
        self._events.event(self.settings, kind, name, **data)


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
    desk.event("marked", "ü:1", silentSeconds=5.5, evidence="rhythm")
    desk.event("cycle", disassociated=0, held=["approval"])
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
        "data": {"silentSeconds": 5.5, "evidence": "rhythm"},
    }
    assert "subject" not in cycle
    assert cycle["data"] == {"disassociated": 0, "held": ["approval"]}


def test_events_go_where_the_settings_say() -> None:
    """An empty topic switches one way off; the history gets them always."""
    desk = Desk(reports={"localTopic": "", "iotCoreTopic": "fleet/{thingName}/events"})
    desk.event("held", guard="list")
    assert desk.local == []
    assert [topic for topic, _ in desk.cloud] == ["fleet/core-1/events"]
    assert desk.history == [(1_790_000_000.25, "held", None, {"guard": "list"})]

    desk = Desk(reports={"localTopic": "mine"})
    desk.event("held", guard="list")
    assert [topic for topic, _ in desk.local] == ["mine"]
    assert not desk.cloud


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
    logger.info("cycle", extra={"fields": {"thingName": None, "odd": {1}}})
    logger.warning("two\nlines")
    try:
        json.loads("{")
    except ValueError:
        logger.exception("broken")
    out, err = capsys.readouterr()
    (quiet,), (warned, broken) = map(str.splitlines, (out, err))
    line = json.loads(quiet)
    assert (line["level"], line["message"], line["odd"]) == ("INFO", "cycle", "{1}")
    assert "thingName" not in line
    assert json.loads(warned)["message"] == "two\nlines"
    assert "JSONDecodeError" in json.loads(broken)["exception"]


@pytest.mark.parametrize(
    ("kind", "level"), [("failed", "ERROR"), ("held", "WARNING"), ("disassociated", "WARNING"), ("cycle", "INFO")]
)
@pytest.mark.usefixtures("logger")
def test_events_are_logged_as_loud_as_they_matter(kind: str, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What somebody should look at is a warning, what went wrong an error."""
    log_to_standard_streams("DEBUG")
    Desk().event(kind, "a", code="x")
    line = json.loads("".join(capsys.readouterr()))
    assert (line["level"], line["message"], line["thingName"], line["code"]) == (level, kind, "a", "x")


@pytest.mark.parametrize("text", ["a", "ü", "🦆"])
def test_an_event_is_never_too_long_for_greengrass_lite(text: str) -> None:
    """What is too long is cut, and says so; the history has it whole."""
    desk = Desk()
    problems = [f"{number}: {text * 100}" for number in range(300)]
    desk.event("configuration", accepted=False, problems=problems)
    desk.event("held", guard="configuration", reason=text * 30_000, remedy="correct it")
    for topic, payload in desk.local:
        assert len(payload) <= 7_000
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
    desk.event("coverage", associated=1, removable=0, reasons=reasons)
    ((_topic, payload),) = desk.local
    assert json.loads(payload)["data"]["reasons"] == reasons
