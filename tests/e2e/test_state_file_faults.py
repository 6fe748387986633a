"""A state file that cannot be written holds pruning, the watch goes on, and all recovers by itself."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from local_core.cloud import DISASSOCIATE
from trial_site import REPOSITORY, MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NO_OUTAGE: dict[str, Any] = {"massLoss": {"window": "0.1s", "minDevices": 100}}
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where the component is to keep its state."""
    work_dir = tmp_path / "core" / "work" / "community.greengrass.ClientDevicePruner"
    work_dir.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(work_dir)],  # noqa: S607 - as the system has it
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system takes root")
    yield work_dir
    subprocess.run(["umount", "-l", str(work_dir)], check=True)  # noqa: S607 - as above


async def watched_site(make_site: MakeSite) -> Site:
    """A site whose census vouches, with one device that stays and one that is to go."""
    site = await make_site()
    site.core.cloud.associate("alive", "gone")
    await site.deploy(**NO_OUTAGE)
    await site.event("cycle", seconds=60)
    await site.devices.connect("alive", "gone")
    await site.event("cycle", seconds=60, present=2)
    await site.until(lambda: site.status()["sources"]["emqx"]["vouching"], 60, "the census did not match")
    return site


async def held_then_recovers(site: Site, recover: Any) -> None:
    """Lose a device while the file refuses: it stays until there is room again, and then goes."""
    held = await site.event("held", guard="database", seconds=60)
    await site.devices.drop("gone")
    await site.cycles(3, 60)
    assert held["reason"]
    assert "make room" in held["remedy"]
    assert site.associated == {"alive", "gone"}
    assert not site.operations(DISASSOCIATE)

    recover()

    await site.event("released", guard="database", seconds=60)
    await site.event("disassociated", "gone", seconds=60)
    assert site.associated == {"alive"}
    assert len([data for data in site.of_type("held") if data["guard"] == "database"]) == 1
    assert site.core.component.starts == 1


async def test_a_full_file_system_holds_pruning_until_there_is_room(make_site: MakeSite, small_disk: Path) -> None:
    """On a file system of one megabyte that something else fills."""
    site = await watched_site(make_site)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            pass

    await held_then_recovers(site, filler.unlink)


async def test_a_file_that_may_not_grow_holds_pruning_until_it_may(make_site: MakeSite) -> None:
    """With a limit on the size of files, as a quota sets it, on the running process."""
    site = await watched_site(make_site)
    pid = site.core.component.pid
    assert pid is not None
    # A log that is full refuses each write, and a pipe for the child's answers is no file.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    await held_then_recovers(site, lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, UNLIMITED))


async def test_a_read_only_file_system_is_waited_for(make_site: MakeSite, small_disk: Path) -> None:
    """A start on a file system that has become read-only watches and prunes nothing, until it can be written."""
    site = await watched_site(make_site)
    await site.core.stop_component()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)  # noqa: S607, ASYNC221 - as the system has it, and at once
    held_before = len(site.of_type("held"))

    site.core.start_component()

    await site.until(
        lambda: [d for d in site.of_type("held")[held_before:] if d["guard"] == "database"], 60, "it did not hold"
    )
    await site.devices.drop("gone")
    assert site.core.component.starts == 2
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)  # noqa: S607, ASYNC221 - as above
    # Without a file the last settings are not known: the next try comes after a whole minute.
    await site.event("released", guard="database", seconds=150)
    assert site.associated == {"alive", "gone"}
    assert not site.operations(DISASSOCIATE)


async def test_a_second_instance_on_the_same_state_prunes_nothing(make_site: MakeSite, tmp_path: Path) -> None:
    """It says that another one owns the state and calls nobody; the first goes on."""
    site = await watched_site(make_site)
    environment = {**os.environ, **site.core._environment(), "PYTHONPATH": str(REPOSITORY / "src")}
    output = tmp_path / "second.log"
    with output.open("wb") as log:
        command = [sys.executable, "-m", "client_device_pruner", "--work-dir", str(site.core.work_dir)]
        second = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220 - it only has to start
        try:
            held = await site.event("held", guard="instance", seconds=60)
            await site.devices.drop("gone")
            await site.event("disassociated", "gone", seconds=60)
            assert second.poll() is None
        finally:
            second.kill()
            second.wait()

    assert "another instance" in held["reason"]
    assert len(site.operations(DISASSOCIATE)) == 1
    assert [row["outcome"] for row in site.rows("SELECT outcome FROM disassociations")] == ["done"]


async def test_a_file_of_another_core_device_is_set_aside_and_nobody_goes_by_it(make_site: MakeSite) -> None:
    """A copied SD card: what another core knew says nothing here, and is kept."""
    site = await watched_site(make_site)
    await site.devices.drop("gone")
    await site.core.stop_component()
    path = site.core.work_dir / "pruner.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as state:
        state.execute("UPDATE meta SET value = '\"core-2\"' WHERE key = 'core'")
    calls = len(site.operations(DISASSOCIATE))

    site.core.start_component()

    await site.logged("state file set aside", 60)
    await site.cycles(3, 60)
    with closing(sqlite3.connect(path.with_name("pruner.db.aside-1"))) as aside:
        assert aside.execute("SELECT value FROM meta WHERE key = 'core'").fetchone() == ('"core-2"',)
    assert len(site.operations(DISASSOCIATE)) == calls
    assert site.associated == {"alive", "gone"}


async def test_a_newer_schema_is_only_read_and_holds_pruning(make_site: MakeSite) -> None:
    """A roll-back: the file of the newer version stays as it is, and the watch goes on without pruning."""
    site = await watched_site(make_site)
    await site.devices.drop("gone")
    await site.core.stop_component()
    path = site.core.work_dir / "pruner.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as state:
        state.execute("PRAGMA user_version = 99")
    before, calls = path.read_bytes(), len(site.operations(DISASSOCIATE))
    held_before = len(site.of_type("held"))

    site.core.start_component()

    await site.until(lambda: [d for d in site.of_type("held")[held_before:] if d["guard"] == "database"], 60)
    await site.until(lambda: [d for d in site.of_type("released") if d["guard"] == "source:messages"][1:], 60)
    assert path.read_bytes() == before
    assert len(site.operations(DISASSOCIATE)) == calls
    assert site.core.component.starts == 2


async def test_a_corrupt_file_is_set_aside_and_nobody_goes_by_it(make_site: MakeSite) -> None:
    """After a start on a corrupt file absences begin anew, and the corrupt file is kept."""
    site = await watched_site(make_site)
    await site.devices.drop("gone")
    await site.core.stop_component()
    path = site.core.work_dir / "pruner.db"
    shutil.copy(REPOSITORY / "recipe.yaml", path)
    calls = len(site.operations(DISASSOCIATE))

    site.core.start_component()

    await site.logged("state file set aside", 60)
    await site.cycles(3, 60)
    assert path.with_name("pruner.db.aside-1").read_bytes() == (REPOSITORY / "recipe.yaml").read_bytes()
    assert len(site.operations(DISASSOCIATE)) == calls
    assert site.associated == {"alive", "gone"}, "it was not seen since the new file began"
