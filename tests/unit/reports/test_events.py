"""What the component tells others: events as CloudEvents, and its log as lines of JSON."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.config.settings import parse
from client_device_pruner.pruning.core import Core
from client_device_pruner.reports.events import LOGGER, cloud_event, log_event, log_to_standard_streams, rfc3339
from client_device_pruner.store.database import read_only
from client_device_pruner.store.history import read_history
from fakes.clock import FakeClock


def made(kind: str, name: str | None = None, **data: Any) -> bytes:
    """An event as it is published."""
    return cloud_event("core-1", 1_790_000_000.25, kind, name, data)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The component's logger, put back afterwards."""
    before = LOGGER.handlers[:], LOGGER.propagate, LOGGER.level
    yield LOGGER
    LOGGER.handlers[:], LOGGER.propagate = before[0], before[1]
    LOGGER.setLevel(before[2])


def test_an_event_is_a_cloud_event() -> None:
    """Structured JSON of CloudEvents 1.0, about a device or not, each with an id of its own."""
    marked = json.loads(made("marked", "ü:1", silentSeconds=5.5, evidence="rhythm"))
    cycle = json.loads(made("cycle", disassociated=0, held=["approval"]))
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


def test_events_go_where_the_settings_say(tmp_path: Path) -> None:
    """An empty topic switches one way off; the history gets them always."""
    told: list[str] = []

    def publish(topic: str, _payload: bytes) -> None:
        told.append(topic)

    core = Core(tmp_path, "core-1", FakeClock(), publish=publish, publish_to_iot_core=publish)
    for reports in ({"localTopic": "", "iotCoreTopic": "fleet/{thingName}/events"}, {"localTopic": "mine"}):
        core.adopt(parse({"reports": reports}))
        core.event("held", guard="list")
    core.close({})
    assert told == ["fleet/core-1/events", "mine"]
    with closing(read_only(tmp_path / "pruner.db")) as connection:
        assert [(one.kind, one.data) for one in read_history(connection)] == [("held", {"guard": "list"})] * 2


@pytest.mark.parametrize(("wall", "text"), [(0.0, "1970-01-01T00:00:00.000Z"), (-1.5, "1969-12-31T23:59:58.500Z")])
def test_times_are_utc(wall: float, text: str) -> None:
    """RFC 3339 with milliseconds, whatever the wall clock says."""
    assert rfc3339(wall) == text


def test_the_log_is_lines_of_json(capsys: pytest.CaptureFixture[str], logger: logging.Logger) -> None:
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
    log_event(kind, "a", {"code": "x"})
    line = json.loads("".join(capsys.readouterr()))
    assert (line["level"], line["message"], line["thingName"], line["code"]) == (level, kind, "a", "x")


@pytest.mark.parametrize("text", ["a", "ü", "🦆"])
def test_an_event_is_never_too_long_for_greengrass_lite(text: str) -> None:
    """What is too long is cut, and says so."""
    problems = [f"{number}: {text * 100}" for number in range(300)]
    refused = made("configuration", accepted=False, problems=problems)
    kept_back = made("held", guard="configuration", reason=text * 30_000, remedy="correct it")
    for payload in (refused, kept_back):
        assert len(payload) <= 7_000
        assert len(base64.b64encode(payload)) < 9_400, "of 10,000, in which the topic stands too"
    told, held = (json.loads(payload)["data"] for payload in (refused, kept_back))
    assert told["accepted"] is False
    assert told["problems"][:2] == problems[:2]
    left = 300 - (len(told["problems"]) - 1)
    assert told["problems"][-1] == f"… and {left} more: see the log"
    assert (held["guard"], held["remedy"]) == ("configuration", "correct it")
    assert held["reason"].endswith(f"{text}…")


def test_an_event_that_fits_is_whole() -> None:
    """Nothing is cut that need not be."""
    reasons = ["x" * 3_000, "y" * 3_000]
    assert json.loads(made("coverage", associated=1, removable=0, reasons=reasons))["data"]["reasons"] == reasons
