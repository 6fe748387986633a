"""That the documentation is true of the code, can be read, and can be run: links, figures, samples, commands, JSON."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_device_pruner import __version__
from client_device_pruner.cli.commands import COMMANDS
from client_device_pruner.config.bridge import diagnose, message_filters, required_entries
from client_device_pruner.config.emqx import Access, client_list_access
from client_device_pruner.config.schema import SettingsRefused
from client_device_pruner.config.settings import DEFAULTS, parse
from client_device_pruner.decisions.policy import Evidence, State
from client_device_pruner.reports.events import TYPE_PREFIX
from client_device_pruner.reports.shadow import Shadow
from fakes.documents import check_input, leaves, nested
from samples import Site

PROJECT = Path(__file__).parents[3]
PAGES = (
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "deploy").glob("*.md")),
)
SOURCE = "\n".join(path.read_text("utf-8") for path in sorted((PROJECT / "src/client_device_pruner").rglob("*.py")))
SETTINGS = parse({})
MOST_LINES, MOST_LINES_OF_THE_README, MOST_WORDS, MOST_WORDS_OF_A_CELL = 250, 200, 35, 40
ID = "[0-9a-f]{10}"
"""An id of a cycle or of a plan, which differs from run to run."""

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The core device whose commands and events the pages show."""
    return Site(tmp_path_factory.mktemp("site"))


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


def prose(page: str) -> str:
    """Give a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$|^ {4,}.*?$", "", page, flags=re.MULTILINE | re.DOTALL)


def sentences(page: str) -> Iterator[str]:
    """Give each sentence of a page, those of lists and tables too; a link is its text."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", prose(page))
    text = re.sub(r"^\|[-| ]+\|$|^#.*$", "\n", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|^ *[-*] |^ *\d+\. |(?<!\\)\||^<.*>$", text, flags=re.MULTILINE):
        yield from re.split(r"(?<=[.!?:;])[*_\"')]*\s", " ".join(paragraph.split()))


def anchors(page: str) -> set[str]:
    """Give the names by which the headings of a page can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pattern(shown: str) -> str:
    """Give a regular expression for what is shown: `…` stands for anything, ids and sizes for other ones."""
    return re.sub(r"\d+\\ KiB", r"\\d+ KiB", re.sub(ID, ID, re.escape(shown).replace("…", ".*")))


@each_page
def test_pages_are_short(path: Path) -> None:
    """A page has at most 250 lines, the README 200; a sentence at most 35 words, a cell of a table 40."""
    page = path.read_text("utf-8")
    assert len(page.splitlines()) <= (MOST_LINES_OF_THE_README if path.name == "README.md" else MOST_LINES)
    assert [one for one in sentences(page) if len(one.split()) > MOST_WORDS] == []
    assert [cell for row in rows(page) for cell in row if len(cell.split()) > MOST_WORDS_OF_A_CELL] == []


@each_page
def test_links_resolve(path: Path) -> None:
    """Every link to a file of the project leads to one, and every anchor to a heading of it."""
    page = path.read_text("utf-8")
    for linked, shown in re.findall(r"\]\(([^)\s]+)\)|src(?:set)?=\"([^\"]+)\"", page):
        target = linked or shown
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.is_file(), target
            assert not anchor or anchor in anchors(there.read_text("utf-8")), target


def test_every_page_can_be_found() -> None:
    """The README links every page of the documentation, and each page has a question as its title."""
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", (PROJECT / "README.md").read_text("utf-8")))
    assert {str(path.relative_to(PROJECT)) for path in PAGES if path.parent.name == "docs"} == linked
    for name in linked:
        assert re.match(r"# .+\?\n", (PROJECT / name).read_text("utf-8")), name


def test_configuration_is_documented() -> None:
    """The page has each key and no other, with its default, the bounds that are enforced, and a value that will do."""
    keys = [row for row in rows(text_of("configuration")) if len(row) == 5]
    documented = {named(key)[0]: named(default)[0] for key, default, *_ in keys}
    texts = {path: value if value and isinstance(value, str) else json.dumps(value) for path, value in leaves(DEFAULTS)}
    assert documented == texts
    for key, _, bounds, example, _ in keys:
        (path,), (value,) = named(key), named(example)
        assert parse(nested(path, json.loads(value))) != SETTINGS, path
        if bounds:
            with pytest.raises(SettingsRefused, match=re.escape(bounds)):
                parse(nested(path, "x"))


def test_states_and_evidence_are_documented() -> None:
    """The page on operation explains each state, and the model's page each piece of evidence."""
    assert {named(state)[0] for state, *_ in rows(text_of("operate"), "list")} == {one.value for one in State}
    assert {named(one)[0] for one, *_ in rows(text_of("how-it-decides"), "Evidence")} == {one.value for one in Evidence}


def test_guards_are_documented() -> None:
    """Each guard of the code, and no other, has its row in the troubleshooting."""
    guards = set(re.findall(r"Hold\(\s*\"(\w+)\"", SOURCE))
    assert {named(guard)[0] for guard, *_ in rows(text_of("troubleshoot"), "Guards")} == guards


def test_what_troubleshooting_quotes_is_said() -> None:
    """A sentence that a person looks up, in italics, is one of the component's; `…` stands for what changes."""
    # Its parts stand on lines of their own.
    said = re.sub(r'"\s*\n\s*f?"', "", SOURCE + (PROJECT / "src/install.sh").read_text("utf-8"))
    for quoted, *_ in rows(text_of("troubleshoot")):
        for sentence in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", quoted):
            for piece in re.sub(r"^(connectionEvents|clientList): ", "", sentence).split("…"):
                assert piece.strip(" ,:") in said or "install.sh" in sentence, sentence


def test_every_invariant_has_its_test() -> None:
    """What the tests' page names for an invariant is about it."""
    page = (PROJECT / "tests/README.md").read_text("utf-8")
    invariants = {name: re.findall(r"\]\(([^)]+\.py)\)", tests) for name, _, tests in rows(page, "The invariants")}
    assert sorted(invariants) == [f"I{number}" for number in range(1, 9)]
    for name, files in invariants.items():
        assert files, name
        for file in files:
            assert re.search(rf"\b{name}\b", (PROJECT / "tests" / file).read_text("utf-8")), (name, file)


def test_files_to_change_are_there() -> None:
    """Each module that the page for developers names is one."""
    modules = [name for name in named(prose(text_of("develop"))) if re.fullmatch(r"\w+/\w+\.py", name)]
    assert len(modules) > 15
    for name in modules:
        assert (PROJECT / "src/client_device_pruner" / name).is_file(), name


def test_commands_are_documented() -> None:
    """Each command has a section, and no page names one that is not there."""
    names = {command.name for command in COMMANDS}
    assert names <= anchors(text_of("operate"))
    for path in PAGES:
        commands = re.findall(r"(?:^|`|/|\$ )pruner (\w+)", path.read_text("utf-8"), re.MULTILINE)
        assert set(commands) <= names, path.name


def test_make_targets_are_there() -> None:
    """Each target of make that a page names is one."""
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for path in PAGES:
        made = re.findall(r"(?:^|`)make ([\w-]+)", path.read_text("utf-8"), re.MULTILINE)
        assert set(made) <= targets, path.name


@each_page
def test_what_cannot_be_tried_says_so(path: Path) -> None:
    """A page whose commands need an AWS account says that."""
    page = path.read_text("utf-8")
    if any(re.search(r"^(aws|gdk) ", block, re.MULTILINE) for block in blocks(page, "sh")):
        assert re.search(r"[Nn]eeds? an AWS account", page)


def test_commands_say_what_is_shown(site: Site, tmp_path: Path) -> None:
    """Each command that a page shows with its answer says just that, of one core device after two weeks."""
    plan = re.search(rf"pruner approve ({ID})", site.say("status"))
    assert plan
    shown = [block for path in PAGES for block in blocks(path.read_text("utf-8"), "console")]
    file, here = "/tmp/report.html", str(tmp_path / "report.html")  # noqa: S108 - as a reader would name it
    assert len(shown) > 7
    for block in shown:
        command, _, answer = block.partition("\n")
        arguments = re.sub(ID, plan[1], command.removeprefix("$ pruner ")).replace(file, here)
        said = site.say(*shlex.split(arguments)).replace(here, file)
        assert re.fullmatch(pattern(answer), said, re.DOTALL), f"{command}\n{said}"


def test_answers_for_machines_have_what_is_listed(site: Site, tmp_path: Path) -> None:
    """The page names each key of each answer in JSON."""
    plan = re.search(rf"pruner approve ({ID})", site.say("status"))
    assert plan
    arguments = {
        "explain": ["press-5"],
        "report": [str(tmp_path / "report.html")],
        "restore": ["pump-7"],
        "approve": [plan[1]],
    }
    listed = {named(command)[0]: set(named(keys)) for command, keys in rows(text_of("operate"), "For machines")}
    assert listed.keys() == {command.name for command in COMMANDS}
    for command, keys in listed.items():
        answer = json.loads(site.say(command, *arguments.get(command, ()), "--json"))
        found = set(answer[0] if isinstance(answer, list) else answer)
        assert found == (keys if command != "explain" else keys - {"explain"} | listed["list"]), command


def test_events_are_those_that_are_published(site: Site) -> None:
    """Each type has a sample and no other has; each sample is one that this core device published."""
    samples = {named(kind)[0]: named(cell) for kind, _, cell in rows(text_of("operate"), "Events")}
    assert samples.keys() == {event.kind for event in site.component.events}
    assert samples.keys() == set(re.findall(r"event\(\s*\"(\w+)\"", SOURCE))
    (whole,) = (json.loads(block) for block in blocks(text_of("operate"), "jsonl"))
    assert site.component.happened(whole["type"].removeprefix(TYPE_PREFIX), whole["subject"])[-1].data == whole["data"]
    for kind, shown in samples.items():
        for sample in [text for text in shown if text.startswith("{")]:
            wanted = pattern(json.dumps(json.loads(sample), ensure_ascii=False))
            published = [json.dumps(event.data, ensure_ascii=False) for event in site.component.happened(kind)]
            assert any(re.fullmatch(wanted, data) for data in published), (kind, published)


def test_the_shadow_is_documented(site: Site) -> None:
    """The page on operation names each key of the named shadow."""
    update = Shadow().update(site.component.kept("status"), 0.0)
    assert update
    section = text_of("operate").partition("## All core devices at once")[2]
    assert set(json.loads(update)["state"]["reported"]) <= set(named(section))


@each_page
def test_what_is_to_be_pasted_can_be_read(path: Path) -> None:
    """JSON is JSON, Python compiles, and a configuration of ours is accepted."""
    page = path.read_text("utf-8")
    for block in blocks(page, "python"):
        compile(block, path.name, "exec")
    for block in blocks(page, "json"):
        document = json.loads(block)
        if document.keys() <= DEFAULTS.keys():
            parse(document)


def documents(name: str, key: str) -> list[dict[str, Any]]:
    """Give the JSON of a page that has this key."""
    found = [json.loads(block) for block in blocks(text_of(name), "json")]
    return [document for document in found if key in document]


def test_bridge_entries_are_those_that_are_needed() -> None:
    """What Deploy has is what the doctor asks for; what Moquette has is enough there."""
    (deploy,) = documents("deploy", "mqttTopicMapping")
    assert deploy["mqttTopicMapping"] == required_entries(SETTINGS)
    (moquette,) = documents("moquette", "mqttTopicMapping")
    assert diagnose(SETTINGS, moquette, None, lite=False) == ()


def test_topics_of_ones_own_are_mapped() -> None:
    """The example of another topic changes the component and the bridge alike."""
    (bridge,) = documents("configuration", "mqttTopicMapping")
    settings = [one for one in documents("configuration", "presence") if "messageTopics" in one["presence"]]
    assert [message_filters(parse(one), bridge) for one in settings] == [{"plant/+/heartbeat"}]


def test_client_list_can_be_asked_as_documented() -> None:
    """EMQX's configuration opens its API on the core's loopback, with a login, and the component finds it."""
    (emqx,) = documents("deploy", "emqxConfig")
    access = client_list_access(SETTINGS, emqx)
    assert isinstance(access, Access)
    assert (access.url, access.username) == ("http://127.0.0.1:18083/api/v5", "pruner")
    ours = [one for one in documents("configuration", "presence") if "clientList" in one["presence"]]
    assert len(ours) == 2
    for document in ours:
        own = client_list_access(parse(document), emqx)
        assert isinstance(own, Access)
        assert own.credentials_file == "/etc/client-device-pruner/emqx"


def test_trial_of_an_hour_stays_a_dry_run() -> None:
    """What Deploy suggests for a first hour removes nothing, and is taken back by the keys that it resets."""
    (trial,) = documents("deploy", "dryRun")
    settings = parse(trial)
    assert (settings.dry_run, settings.offline_threshold_seconds) == (True, 300.0)
    (reset,) = (json.loads(found) for found in re.findall(r"`\"reset\": (\[\"/allow.*?\])`", text_of("deploy")))
    kept = {key: value for key, value in trial.items() if f"/{key}" not in reset}
    assert parse(kept) == parse({"dryRun": True, "reports": trial["reports"]})


def test_greengrass_lite_can_be_deployed_to() -> None:
    """The page's deployment is an input of the API, and configures a dry run."""
    (deployment,) = documents("greengrass-lite", "components")
    check_input("greengrassv2", "CreateDeployment", deployment)
    ours = deployment["components"]["community.greengrass.ClientDevicePruner"]
    assert parse(json.loads(ours["configurationUpdate"]["merge"])).dry_run
    assert ours["componentVersion"] == __version__
