"""The targets of `make fuzz`: each runs over its corpus without the fuzzer, and notices a bug that is planted in it."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client_device_pruner.activity import ActivitySource
from client_device_pruner.cloud import Cloud
from client_device_pruner.cloud_worker import EntryError
from client_device_pruner.document import Reading
from client_device_pruner.pruning import Pruning
from client_device_pruner.self_test import SelfTest
from client_device_pruner.sources import Sources
from local_core.fuzz.__main__ import main
from local_core.fuzz.mutation import mutate
from local_core.fuzz.target import Target
from local_core.fuzz.targets import TARGETS


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No log: the targets switch it off for good, which only tests undo."""
    monkeypatch.setattr(logging.getLogger("client_device_pruner"), "disabled", True)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_the_corpus_and_what_is_near_it_breaks_nothing(target: Target) -> None:
    """The seeds, and some hundred mutations of them."""
    for seed in target.seeds:
        data = seed
        target.check(data)
        for number in range(20):
            data = mutate(data, target.largest_bytes, number, target.words or ("a",)) or seed
            target.check(data)


def _somebody_else_speaks(self: Sources, topic: str, payload: bytes, at: float) -> None:
    del topic, payload
    self.spoke("a", 0, at)


def _without_a_path(self: Reading, path: str, what: str, write: str) -> None:
    del path
    self.problems.append(f"{what}; write {write}")


def _any_address(document: dict[str, Any]) -> Any:
    return SimpleNamespace(roll_call=SimpleNamespace(url=document["rollCall"]["url"]))


def _any_echo(self: SelfTest, payload: bytes) -> None:
    del payload
    self.alive = True


def _all_of_them(self: Pruning, argument: Any) -> Any:
    del argument
    return list(self.watch.journal.restorable(0.0))


FUZZ = "local_core.fuzz"
OURS = "client_device_pruner"
PLANTED: list[tuple[str, str | type, str, Callable[..., Any]]] = [
    ("emqx", f"{OURS}.emqx", "decode_event", lambda _payload: {}),
    ("messages", Sources, "take", _somebody_else_speaks),
    ("activity", ActivitySource, "_is_ignored", lambda _self, _payload: False),
    ("self-test", SelfTest, "echo", _any_echo),
    ("topics", f"{FUZZ}.broker", "topic_matches", lambda topic_filter, topic: topic_filter == topic),
    ("roll-call-pages", f"{OURS}.roll_call", "_client", lambda entry, _page: (str(entry), True)),
    ("roll-call-http", f"{OURS}.roll_call", "_page", lambda *_: ({"a": True, "b": True, "c": True}, False)),
    ("roll-call-url", f"{FUZZ}.roll_calls", "parse", _any_address),
    ("cloud-request", Cloud, "_carry_out", lambda _self, _request: {}),
    ("cloud-reply", f"{OURS}.cloud_worker", "_entry_error", lambda _entry: EntryError("x", "", "")),
    ("cloud-service", f"{OURS}.cloud", "_association", lambda _device: ("x", None)),
    ("configuration", Reading, "problem", _without_a_path),
    ("durations", f"{FUZZ}.configuration", "format_duration", lambda _seconds: "1d"),
    ("bridge", f"{FUZZ}.configuration", "diagnose", lambda _bridge, _settings: ()),
    ("documents", f"{OURS}.state_documents", "is_number", lambda value: isinstance(value, (int, float))),
    ("state", f"{OURS}.state_documents", "check", lambda _connection: None),
    ("requests", Pruning, "_wanted", _all_of_them),
]


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize(("name", "place", "attribute", "bug"), PLANTED, ids=[planted[0] for planted in PLANTED])
def test_a_planted_bug_is_noticed(
    name: str, place: str | type, attribute: str, bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target whose property cannot fail would be worth nothing: its corpus alone finds a bug."""
    if isinstance(place, str):
        monkeypatch.setattr(f"{place}.{attribute}", bug)
    else:
        monkeypatch.setattr(place, attribute, bug)

    def check_all() -> None:
        for data in (*TARGETS[name].seeds, b"http://emqx.example/api/v5"):
            TARGETS[name].check(data)

    with pytest.raises(Exception, match=r"."):
        check_all()
    # Where the bug ended a start, its connection is still open: Python 3.13 would say so in another test.
    gc.collect()


def test_every_target_has_a_planted_bug() -> None:
    """None is left out."""
    assert [planted[0] for planted in PLANTED] == list(TARGETS)


def test_a_mutation_is_json_again_and_the_same_each_time() -> None:
    """What is no JSON is left to the fuzzer, and what grew too long as well."""
    data = json.dumps({"a": [1, "x", {"b": None}], "c": "clients/+/#"}).encode()
    mutated = {mutate(data, 200, seed, ("word", {"deep": [1]})) for seed in range(50)}
    assert len(mutated) > 30
    for one in mutated - {None}:
        json.loads(one or b"")
    assert mutate(data, 200, 7, ("word",)) == mutate(data, 200, 7, ("word",))
    assert mutate(b"no json", 200, 1, ("word",)) is None
    assert mutate(data, 3, 1, ("word" * 10,)) is None


def test_an_input_is_replayed_without_the_fuzzer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the command that a finding prints."""
    file = tmp_path / "input"
    file.write_bytes(b"1d12h")
    assert main(["--replay", "durations", str(file)]) == 0
    assert "Nothing breaks" in capsys.readouterr().out
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(TARGETS)
    with pytest.raises(SystemExit):
        main(["no-such-target"])
