"""The demo, run as `make demo` runs it, on a linked environment and without a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local_core.demo import REPORT
from local_core.demo_story import DEVICES
from trial_site import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STORY = (
    "before: alarm, camera, lamp-1, lamp-2, pump, sensor.",
    "they match",
    "camera is gone.",
    "alarm is gone (protected",
    "Event marked: camera",
    "The sensor connects again.",
    "Event unmarked: sensor",
    "The bridge breaks",
    "the pump connects again, and nobody hears it.",
    "more than known",
    "Event held: source:emqx. The clock has stood at",
    "clock of the emqx source",
    "stands still",
    "The pump speaks",
    "the clock goes on.",
    "Event disassociated: camera",
    "after: alarm, lamp-1, lamp-2, pump, sensor.",
    "demo-report.html",
    "gdk component build && gdk component publish",
    '{"mqttTopicMapping": {',
    "dryRun false",
)
"""What must be told, in this order."""


@contextmanager
def demo(temporary: Path, environment: Path) -> Iterator[subprocess.Popen[str]]:
    """A running demo whose temporary directory lies in that one."""
    with subprocess.Popen(
        [sys.executable, "-m", "local_core.demo", "--environment", environment],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "TMPDIR": str(temporary)},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_the_story_comes_out_as_told(tmp_path: Path) -> None:
    """It ends by itself with exit 0, tells every chapter, and leaves nothing behind but its page, saying where."""
    began = time.time()
    with demo(tmp_path, Path(sys.prefix)) as process:
        output, _ = process.communicate(timeout=120)

    assert process.returncode == 0, output
    told = " ".join(output.split())
    position = 0
    for line in STORY:
        assert line in told[position:], f"after {told[:position][-200:]!r}, {line!r} is not told in:\n{output}"
        position = told.index(line, position)
    assert "\x1b" not in output
    page = REPOSITORY / REPORT
    assert page.as_uri() in output
    assert page.stat().st_mtime >= began
    for device in DEVICES:
        assert device in page.read_text("utf-8")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_it_cleanly(tmp_path: Path) -> None:
    """On Ctrl-C in the middle everything ends, says so, and the temporary directory is removed."""
    with demo(tmp_path, Path(sys.prefix)) as process:
        assert process.stdout is not None
        seen = ""
        while "Six devices connect" not in seen:
            line = process.stdout.readline()
            assert line, f"it ended early:\n{seen}"
            seen += line
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)

    assert process.returncode == 130, output
    assert "Interrupted" in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def test_a_story_that_fails_says_so_in_a_sentence(tmp_path: Path) -> None:
    """Where the component cannot run it ends with exit 1, a plain sentence and the component's last words."""
    with demo(tmp_path, tmp_path / "no-environment") as process:
        output, _ = process.communicate(timeout=60)

    assert process.returncode == 1, output
    assert "The story did not come out as told: The component does not run" in " ".join(output.split())
    assert "run exited with" in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
