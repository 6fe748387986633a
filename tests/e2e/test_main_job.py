"""The main job on the local core: over the real wire, from a killed device to its association's end."""

from __future__ import annotations

import pytest
from trial_site import MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


async def test_a_killed_device_is_disassociated_and_nobody_else(make_site: MakeSite) -> None:
    """A device whose process is killed goes after threshold and notice, in one batch call; all others stay."""
    site = await make_site()
    site.core.cloud.associate("dead", "alive", "returns", "protected-1", "never-seen")
    await site.deploy(protectedClients=["protected-*"])
    await site.event("cycle")
    await site.devices.connect("alive", "stranger")
    for name in ("dead", "returns", "protected-1"):
        await site.devices.connect(name, process=name)
    await site.event("released", guard="source:emqx")
    for name in ("dead", "returns", "protected-1"):
        await site.devices.kill(name)
    await site.event("marked", "returns")
    await site.devices.connect("returns")
    await site.event("unmarked", "returns")

    gone = await site.event("disassociated", "dead")

    assert gone["proof"] == "census"
    assert gone["offlineSeconds"] >= 3.0 + 1.0
    await site.cycles(3)
    assert site.associated == {"alive", "returns", "protected-1", "never-seen"}
    (call,) = site.operations("BatchDisassociateClientDeviceFromCoreDevice")
    assert call.entries == ("dead",)
