"""A page in headless Chromium, driven over its debugging pipe: what a person would see, and what went wrong."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LONGEST_SECONDS = 90.0
"""How long any answer of the browser is waited for."""
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Page:
    """One page, opened by `browse`."""

    def __init__(self, commands: int, answers: int) -> None:
        self.requests: list[str] = []  # the address of each request that the page made, its own included
        self.complaints: list[str] = []  # what the console, the policy or an exception said
        self._commands, self._answers = commands, answers
        self._number = 0
        self._rest = b""
        self._session = ""
        self._loaded = False

    def attach(self) -> None:
        """Take a new page into hand."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, address: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Go to an address on a screen of that size, in CSS pixels, and wait until it is loaded."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.requests.clear()
        self.complaints.clear()
        self._loaded = False
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._receive()

    def run(self, script: str) -> Any:
        """Run an expression in the page; returns its value."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, x: float, y: float, to: float) -> None:
        """Press the mouse there, move it sideways, and let go."""
        for kind, at in (("mousePressed", x), ("mouseMoved", to), ("mouseReleased", to)):
            self.call("Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left", buttons=1, clickCount=1)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + LONGEST_SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self._answers, 1 << 16)
            assert piece, "Chromium ended"
            self._rest += piece
        line, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.complaints.append(json.dumps(message["params"]))
        return message


@contextmanager
def browse(profile: Path) -> Iterator[Page]:
    """A page in a Chromium of its own, whose profile is that directory."""
    assert CHROMIUM
    commands_in, commands = os.pipe()
    answers, answers_out = os.pipe()
    # Chromium reads its third descriptor and writes to its fourth.
    redirect = f'exec "$@" 3<&{commands_in} 4>&{answers_out}'
    with subprocess.Popen(
        ["/bin/bash", "-c", redirect, "sh", CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(commands_in, answers_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(commands_in)
        os.close(answers_out)
        page = Page(commands, answers)
        try:
            page.attach()
            yield page
        finally:
            os.close(commands)
            os.close(answers)
            process.terminate()
