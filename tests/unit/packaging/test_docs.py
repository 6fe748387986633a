"""That the documentation is true of the code: links, configuration, events, guards, commands, what is to be pasted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner.cli.commands import COMMANDS
from client_device_pruner.config.bridge import diagnose, message_filters, required_entries
from client_device_pruner.config.emqx import Access, client_list_access
from client_device_pruner.config.schema import SettingsRefused
from client_device_pruner.config.settings import DEFAULTS, parse
from client_device_pruner.decisions.policy import Evidence, State

PROJECT = Path(__file__).parents[3]
PAGES = (
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "deploy").glob("*.md")),
)
SOURCE = "\n".join(path.read_text("utf-8") for path in sorted((PROJECT / "src/client_device_pruner").rglob("*.py")))
SETTINGS = parse({})


def text_of(name: str) -> str:
    """Read a page of the documentation."""
    return (PROJECT / "docs" / f"{name}.md").read_text("utf-8")


def rows(page: str, heading: str = "") -> Iterator[list[str]]:
    """Give the cells of each row of a page's tables, without their heads; below one heading if it is named."""
    section = re.split(rf"^#+ {heading}$", page, maxsplit=1, flags=re.MULTILINE)[1] if heading else page
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0] if heading else section
    for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def named(cell: str) -> list[str]:
    """Give what stands in a cell as code."""
    return re.findall(r"`([^`]+)`", cell)


def blocks(page: str, language: str) -> list[str]:
    """Give the blocks of code in one language, also those in a list."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """Give the names by which the headings of a page can be linked to, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leaves(document: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Give the path of each key of the defaults, with its value."""
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def problem(path: str, value: object) -> str:
    """Give what is said of a value that is refused."""
    for key in reversed(path.split(".")):
        value = {key: value}
    with pytest.raises(SettingsRefused) as refused:
        parse(value)
    return str(refused.value)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_resolve(path: Path) -> None:
    """Every link to a file of the project leads to one, and every anchor to a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.is_file(), target
            assert not anchor or anchor in anchors(there.read_text("utf-8")), target


def test_every_page_can_be_found() -> None:
    """The README links every page of the documentation."""
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", (PROJECT / "README.md").read_text("utf-8")))
    assert {str(path.relative_to(PROJECT)) for path in PAGES if path.parent.name == "docs"} == linked


def test_configuration_is_documented() -> None:
    """The reference has each key of the defaults and no other, with its default and the bounds that are enforced."""
    documented = {named(key)[0]: (named(default)[0], bounds) for key, default, bounds, _ in key_rows()}
    texts = {path: value if value and isinstance(value, str) else json.dumps(value) for path, value in leaves(DEFAULTS)}
    assert {path: default for path, (default, _) in documented.items()} == texts
    for path, (_, bounds) in documented.items():
        if bounds:
            assert bounds in problem(path, "x"), path


def key_rows() -> Iterator[list[str]]:
    """Give the rows of the reference that are about a key."""
    return (row for row in rows(text_of("configuration")) if len(row) == 4)


def test_events_are_documented() -> None:
    """The reference has each type that is published and no other, and what it says of their data stands in the code."""
    documented = {named(kind)[0]: named(data) for kind, _, data in rows(text_of("events"), "Types")}
    assert documented.keys() == set(re.findall(r"event\(\s*\"(\w+)\"", SOURCE))
    for key in {key for keys in documented.values() for key in keys}:
        assert re.search(rf"\b{key}=|\"{key}\"", SOURCE), key


def test_states_and_evidence_are_documented() -> None:
    """The events' page explains each state, and the model's page each piece of evidence."""
    assert {named(state)[0] for state, _ in rows(text_of("events"), "States of a device")} == {
        one.value for one in State
    }
    assert {named(one)[0] for one, *_ in rows(text_of("how-it-works"), "Evidence")} == {one.value for one in Evidence}


def test_guards_are_documented() -> None:
    """Each guard of the code, and no other, has its row in the troubleshooting, and stands among the events."""
    guards = set(re.findall(r"Hold\(\s*\"(\w+)\"", SOURCE))
    assert {named(guard)[0] for guard, *_ in rows(text_of("troubleshoot"), "Guards")} == guards
    (listed,) = re.findall(r"`guard` is one of the.*?`held`", text_of("events"), re.DOTALL)
    assert set(named(listed)) - {"guard", "held"} == guards


def test_what_troubleshooting_quotes_is_said() -> None:
    """A sentence that a person looks up, in italics, is one of the component's; `…` stands for what changes."""
    # Its parts stand on lines of their own.
    said = re.sub(r'"\s*\n\s*f?"', "", SOURCE + (PROJECT / "src/install.sh").read_text("utf-8"))
    for quoted, *_ in rows(text_of("troubleshoot")):
        for sentence in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", quoted):
            for piece in re.sub(r"^(connectionEvents|clientList): ", "", sentence).split("…"):
                assert piece.strip(" ,:") in said or "install.sh" in sentence, sentence


def test_commands_are_documented() -> None:
    """Each command has a section, and no page names one that is not there."""
    names = {command.name for command in COMMANDS}
    assert names <= anchors(text_of("commands"))
    for path in PAGES:
        commands = re.findall(r"(?:^|`|/|\$ )pruner (\w+)", path.read_text("utf-8"), re.MULTILINE)
        assert set(commands) <= names, path.name


def test_every_invariant_has_its_test() -> None:
    """What the tests' page names for an invariant is about it."""
    page = (PROJECT / "tests/README.md").read_text("utf-8")
    invariants = {name: re.findall(r"\]\(([^)]+\.py)\)", tests) for name, _, tests in rows(page, "The invariants")}
    assert sorted(invariants) == [f"I{number}" for number in range(1, 9)]
    for name, files in invariants.items():
        assert files, name
        for file in files:
            assert re.search(rf"\b{name}\b", (PROJECT / "tests" / file).read_text("utf-8")), (name, file)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_what_is_to_be_pasted_can_be_read(path: Path) -> None:
    """JSON is JSON, Python compiles, and a configuration of ours is accepted."""
    page = path.read_text("utf-8")
    for block in blocks(page, "python"):
        compile(block, path.name, "exec")
    for block in blocks(page, "json"):
        document = json.loads(block)
        if document.keys() <= DEFAULTS.keys():
            parse(document)


def test_bridge_entries_are_those_that_are_needed() -> None:
    """What Deploy has is what the doctor asks for; what Moquette has is enough there."""
    (deploy,) = (json.loads(block) for block in blocks(text_of("deploy"), "json"))
    assert deploy["mqttTopicMapping"] == required_entries(SETTINGS)
    (moquette,) = (json.loads(block) for block in blocks(text_of("moquette"), "json"))
    assert diagnose(SETTINGS, moquette, None, lite=False) == ()


def test_topics_of_ones_own_are_mapped() -> None:
    """The example of another topic changes the component and the bridge alike."""
    settings, bridge = (json.loads(block) for block in blocks(text_of("messages"), "json")[:2])
    assert message_filters(parse(settings), bridge) == {"plant/+/heartbeat"}


def test_client_list_can_be_asked_as_documented() -> None:
    """EMQX's configuration opens its API on the core's loopback, with a login, and the component finds it."""
    emqx = json.loads(blocks(text_of("client-list"), "json")[0])
    access = client_list_access(SETTINGS, emqx)
    assert isinstance(access, Access)
    assert (access.url, access.username) == ("http://127.0.0.1:18083/api/v5", "pruner")
    for block in blocks(text_of("client-list"), "json")[1:]:
        ours = client_list_access(parse(json.loads(block)), emqx)
        assert isinstance(ours, Access)
        assert ours.credentials_file == "/etc/client-device-pruner/emqx"
