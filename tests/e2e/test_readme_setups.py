"""Each configuration that the README shows, deployed as it stands: a gone device goes, a living one stays.

The files are those of the table *what runs on your core*; only their durations are shortened for the trial.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.doctor import diagnose
from client_device_pruner.settings import parse
from local_core.cloud import DISASSOCIATE
from local_core.core import BRIDGE
from local_core.emqx_api import EmqxApi
from local_core.recipe import merge
from trial_site import COMPONENT, MAPPING, REPOSITORY, TRIAL, MakeSite, Site, publishing

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SETUPS = REPOSITORY / "docs" / "setups"
THRESHOLD_SECONDS = 3.0
SPOKEN_SECONDS = 0.3
SCALE = 1.5 / 180.0
"""What the trial's settings make of the fixed times."""


# The table ------------------------------------------------------------------------------------------------------


def test_every_setup_has_its_test() -> None:
    """A file that is added for the README is run by a test."""
    files = {path.stem for path in SETUPS.glob("*.json")}
    assert files == {"emqx", "emqx-roll-call", "moquette", "one-device", "lite"}
    for name in files:
        assert f'setup("{name}"' in Path(__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(SETUPS.glob("*.json")), ids=lambda path: path.stem)
def test_a_setup_is_accepted_and_has_nothing_for_the_doctor(path: Path) -> None:
    """As it stands in the README: valid, with real durations, and the bridge's entries fit the sources."""
    deployment = json.loads(path.read_text(encoding="utf-8"))
    assert deployment.keys() <= {COMPONENT, BRIDGE}
    settings = parse(deployment[COMPONENT]["merge"])
    assert not settings.allow_short_durations
    if BRIDGE in deployment:
        assert diagnose(deployment[BRIDGE]["merge"], settings) == ()


async def test_emqx(make_site: MakeSite) -> None:
    """EMQX: its events and its count prove who is gone; devices need not say a word."""
    site = await make_site()
    await deploy(site, setup("emqx"))
    await connect(site, "alive", "dead")
    await site.event("cycle", present=2)
    await site.event("released", guard="source:emqx")

    await loses_the_dead(site, proof="census")


async def test_emqx_with_roll_call(make_site: MakeSite, tmp_path: Path) -> None:
    """EMQX with its HTTP API: also after a gap in which nobody was heard, without a word of any device."""
    site = await make_site()
    api = EmqxApi(lambda: site.core.broker.connections)
    api.start()
    key_file = tmp_path / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(f"{api.key}:{api.secret}\n", encoding="utf-8")
    here = {"url": api.url, "keyFile": str(key_file), "interval": "0.5s"}
    try:
        await deploy(site, setup("emqx-roll-call"), rollCall=here)
        # Before the bridge is there to hear them: the census alone would wait for them to speak.
        await site.core.bridge.stop()
        await connect(site, "alive", "dead")
        await site.core.bridge.start()
        await site.event("cycle", present=2)
        await site.event("released", guard="source:rollCall")

        await loses_the_dead(site, proof="rollCall")
    finally:
        api.stop()


async def test_moquette(make_site: MakeSite) -> None:
    """Moquette: heartbeats at QoS 1 and a will `offline`, which is no sign of life."""
    site = await make_site(presence=False)
    await deploy(site, setup("moquette"))
    wills: list[bytes] = []
    site.core.pubsub.subscribe("client-device-pruner/in/clients/dead/status", lambda m: wills.append(m.payload))
    await connect(site, "alive", telemetry_seconds=SPOKEN_SECONDS)
    await connect(site, "dead", telemetry_seconds=SPOKEN_SECONDS, topic="clients/{name}/status", will="offline")
    await site.until(lambda: site.status()["coverage"]["provable"] == 2, 60, "they got no habits")

    await loses_the_dead(site, proof="habit")

    assert wills[-1] == b"offline"
    (habit,) = {row["data"] for row in site.rows("SELECT data FROM history WHERE type = 'disassociated'")}
    assert json.loads(habit)["sourceName"] == "messages"


async def test_one_device_per_core(make_site: MakeSite) -> None:
    """One device alone: it stays while it speaks; once it is silent the canary shows that the way is open."""
    site = await make_site(presence=False)
    await deploy(site, setup("one-device"), "only")
    await connect(site, "only", telemetry_seconds=SPOKEN_SECONDS)
    await site.until(lambda: site.status()["coverage"]["provable"] == 1, 60, "it got no habit")
    await site.stay()
    assert not site.of_type("marked")
    assert site.status()["doctor"] == []
    await site.devices.kill("only")

    gone = await site.event("disassociated", "only", seconds=60)

    assert gone["proof"] == "habit"
    assert gone["offlineSeconds"] >= THRESHOLD_SECONDS
    assert site.associated == set()


async def test_greengrass_lite_with_a_custom_publisher(make_site: MakeSite) -> None:
    """Greengrass Lite: a component of the site says on local pub/sub whom it hears, and that it is there itself."""
    site = await make_site(lite=True, presence=False)
    del site.core.configuration[BRIDGE]  # there is none on Lite
    await deploy(site, setup("lite"), sources={"presence": {"maxQuiet": "2s"}})
    heard = {"alive", "dead"}
    async with publishing(site, heard):
        await site.until(lambda: site.status()["coverage"]["provable"] == 2, 60, "they got no habits")
        heard.remove("dead")

        await loses_the_dead(site, proof="habit", doctor=1, kill=False)


# The doctor -----------------------------------------------------------------------------------------------------


async def test_a_core_without_any_mapping_says_what_to_paste(make_site: MakeSite) -> None:
    """Nothing can be proven: it says so within ten minutes (5 s here), and what it says to paste makes it work."""
    site = await make_site()
    site.core.cloud.associate("alive", "dead")
    # Every time but the threshold's as usual: the defaults of the recipe, shortened.
    await site.core.deploy({COMPONENT: {"merge": {**TRIAL, "massLoss": {"minDevices": 100}}}})
    configured = await site.event("configuration", accepted=True)
    assert configured["problems"] == []
    await connect(site, "alive", "dead")

    coverage = await site.event("coverage", associated=2, provable=0, seconds=600 * SCALE + 30.0)

    told = await site.logged("as things are, nothing can be pruned on this core")
    assert told["level"] == "ERROR"
    doctor = await site.until(lambda: site.status()["doctor"])
    for finding in doctor:
        assert any(finding["remedy"] in reason for reason in coverage["reasons"]), coverage
        assert any(finding["remedy"] in reason for reason in site.status()["coverage"]["reasons"])
    for finding in doctor:
        await site.core.deploy({BRIDGE: {"merge": json.loads(finding["remedy"])}})
    assert site.core.configuration[BRIDGE] == {"mqttTopicMapping": MAPPING}, "that of the contract"
    await site.until(lambda: site.status()["doctor"] == [], what="the doctor found something else")
    for name in ("alive", "dead"):
        await site.devices.kill(name)
    await connect(site, "alive", "dead", associate=False)
    await site.event("coverage", associated=2, provable=2, seconds=60)
    assert site.status()["coverage"] == {"associated": 2, "provable": 2, "reasons": []}

    await loses_the_dead(site, proof="census")


# What the tests are told in ------------------------------------------------------------------------------------


def setup(name: str) -> dict[str, Any]:
    """The deployment's configuration updates of one row of the table."""
    text = (SETUPS / f"{name}.json").read_text(encoding="utf-8")
    deployment: dict[str, Any] = json.loads(text)
    return deployment


async def deploy(site: Site, deployment: dict[str, Any], *names: str, **shortened: Any) -> None:
    """Deploy a setup with the trial's durations, to a core with these devices (`alive` and `dead` if none)."""
    site.core.cloud.associate(*(names or ("alive", "dead")))
    component = merge(deployment[COMPONENT]["merge"], {**TRIAL, "massLoss": {"minDevices": 100}})
    updates = {**deployment, COMPONENT: {"merge": merge(component, shortened)}}
    await site.core.deploy(updates)
    await site.event("configuration", accepted=True)
    await site.event("cycle")


async def connect(site: Site, *names: str, associate: bool = True, **options: Any) -> None:
    """Connect these devices, each in a process of its own."""
    for name in names:
        assert not associate or name in site.associated
        await site.devices.connect(name, process=name, **options)


async def loses_the_dead(site: Site, *, proof: str, doctor: int = 0, kill: bool = True) -> None:
    """Kill `dead`: it goes with that proof after its threshold, `alive` stays, and the doctor is content."""
    if kill:
        await site.devices.kill("dead")

    gone = await site.event("disassociated", "dead", seconds=60)
    await site.stay()

    assert gone["proof"] == proof
    assert gone["offlineSeconds"] >= THRESHOLD_SECONDS
    (call,) = site.operations(DISASSOCIATE)
    assert call.entries == ("dead",)
    assert site.associated == {"alive"}
    assert not site.of_type("marked", "alive")
    assert len(site.status()["doctor"]) == doctor, site.status()["doctor"]
    site.check_events()
