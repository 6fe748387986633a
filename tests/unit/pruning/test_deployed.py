"""What deployments configure: what is kept when it cannot be read."""

from __future__ import annotations

import pytest

from client_device_pruner.config.bridge import BRIDGE
from client_device_pruner.greengrass.ipc import Configuration
from fakes.core_device import KnownDevices


@pytest.mark.parametrize(
    ("error", "kept"),
    [("ServiceError: busy", True), ("ResourceNotFoundError: none", False), ("ResourceNotFoundError", False)],
)
def test_a_read_that_fails_leaves_what_was_read_in_force(known: KnownDevices, error: str, kept: bool) -> None:
    """Only where the bridge is not deployed nothing reaches us through it, and messages are counted anew."""
    core = known("speaks", "alive")
    for _minute in range(5):
        core.speak("speaks")
        core.run(120)
    core.run(400)
    (before,) = core.select("SELECT messages FROM devices WHERE name = 'speaks'")[0]
    assert before

    assert core.ipc is not None
    core.ipc.tell(Configuration(BRIDGE, None, error))
    core.run(400)

    assert core.select("SELECT messages FROM devices WHERE name = 'speaks'") == [(before if kept else 0,)]
