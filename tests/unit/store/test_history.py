"""What happened is kept in its order, up to a number of rows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from client_device_pruner.store import history
from client_device_pruner.store.database import open_database
from client_device_pruner.store.history import CHANGE, Happening


def test_the_latest_are_kept_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the wall clock says; an event is found by its device."""
    monkeypatch.setattr(history, "MAX_HISTORY", 3)
    monkeypatch.setattr(history, "MAX_TIMELINE", 2)
    with closing(open_database(tmp_path / "pruner.db", "core-1")[0]) as connection:
        for wall in (50.0, 40.0, 10.0, 30.0):
            history.add_history(connection, [Happening(wall, "marked", f"pump-{wall:g}", {"silentSeconds": wall})])
            history.add_timeline(connection, [(wall, None, "observing")])
        history.prune(connection)

        assert [row.wall for row in history.read_history(connection)] == [40.0, 10.0, 30.0]
        assert history.read_history(connection, "pump-10") == [
            Happening(10.0, "marked", "pump-10", {"silentSeconds": 10.0})
        ]
        assert history.read_timeline(connection) == [Happening(at, "observing", None, CHANGE) for at in (10.0, 30.0)]
