"""README.md and the documents beside it: each command is run by a test or marked, each table is the code's."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore import xform_name
from botocore.session import get_session

from client_device_pruner import commands as command_line
from client_device_pruner.doctor import required_entries
from client_device_pruner.settings import DEFAULTS, parse
from client_device_pruner.source_settings import DEFAULT_SOURCES
from local_core.core import BRIDGE
from readme import LANGUAGES, PROJECT, Command, blocks, commands, headings, rows, tokens
from trial_site import COMPONENT, EVENT_DATA

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "deploy/fleet-indexing.md")
NEED_AN_ACCOUNT = ("aws", "gdk")
"""Programs that no test can run: what they are given is checked here and in `test_deploy`, `test_packaging`."""
RUN_BY = {
    "make test": (".ci/run", "make test"),
    "make versions": (".ci/run", "make versions"),
    "make lint": ("Makefile", "lint units e2e"),
    "make demo": ("tests/e2e/test_demo.py", '"-m", "local_core.demo"'),
    "make simulate": ("tests/test_simulation.py", "campaign.simulate("),
    "make fuzz": ("tests/local_core/test_fuzz.py", "local_core.fuzz.__main__ import main"),
    "make soak": ("tests/local_core/test_soak.py", "await soak("),
    "make wheelhouse": ("tests/test_packaging.py", 'make("wheelhouse")'),
    "make sbom": ("tests/test_packaging.py", 'make("sbom")'),
}
"""What CI or another test runs: the file, and the words in it that do so."""
SHORTENED = {
    "make bench": "decision calls --short",
    "make fleet": "--cores 20",
    "python -m local_core.simulation --seed N": "--seed 1 --years 0.05",
    "PYTHONPATH=src .venv/bin/python -m local_core --help": "",
}
"""What is run here, with arguments in place of its own that make it short."""
COMMANDS = [(document, command) for document in DOCUMENTS for command in commands(document)]
IN_AN_ACCOUNT = {str(command): command for _, command in COMMANDS if command.words[0] in NEED_AN_ACCOUNT}


# Commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("document", "command"), COMMANDS, ids=str)
def test_a_command_is_run_by_a_test_or_marked(document: str, command: Command) -> None:
    """Those typed on a core device `test_packaging` runs, all of them; the others stand here."""
    assert document
    if command.words[0] in NEED_AN_ACCOUNT:
        assert re.search("needs? an AWS account", command.told, re.IGNORECASE), "the reader is not told"
    elif not command.is_for_a_core:
        assert str(command) in RUN_BY.keys() | SHORTENED.keys()


def test_there_are_commands() -> None:
    """They are found, and only languages are used in which they would be."""
    assert {str(command) for _, command in COMMANDS} >= RUN_BY.keys() | SHORTENED.keys()
    assert len(IN_AN_ACCOUNT) > 8
    for document in DOCUMENTS:
        assert {token.info for token in tokens(document) if token.type == "fence"} <= set(LANGUAGES)


@pytest.mark.parametrize(("file", "words"), RUN_BY.values(), ids=RUN_BY)
def test_what_is_said_to_run_a_command_does(file: str, words: str) -> None:
    """The words that run it stand there."""
    assert words in (PROJECT / file).read_text("utf-8")


def made_by(target: str) -> str:
    """Give the last command that make would run for a target."""
    command = ["make", "--no-print-directory", "-C", str(PROJECT), "--dry-run", target]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n", " ").splitlines()[-1]


def test_the_demo_is_what_its_test_runs() -> None:
    """`make demo` adds nothing to the module."""
    assert made_by("demo") == "PYTHONPATH=src .venv/bin/python -m local_core.demo"


@pytest.mark.e2e
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("text", "shorter"), SHORTENED.items(), ids=SHORTENED)
def test_commands_of_development(text: str, shorter: str, tmp_path: Path) -> None:
    """They end well and print what they found, on this environment."""
    words = shlex.split(made_by(text.split()[1]) if text.startswith("make ") else text)
    words = [word for word in words if "=" not in word][1:]
    if shorter:
        words = [*words[: words.index("-m") + 2], *shorter.split()]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": "src", "TMPDIR": str(tmp_path)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5


# What needs an account ------------------------------------------------------------------------------------------


def options_of(words: tuple[str, ...]) -> dict[str, list[str]]:
    """Give the options of a command with the words that follow each."""
    options: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            options[word.removeprefix("--")] = []
        else:
            options[list(options)[-1]].append(word)
    return options


def document_of(address: str) -> dict[str, Any]:
    """Read what `file://` names, from the project's directory on."""
    assert address.startswith("file://")
    found: dict[str, Any] = json.loads((PROJECT / address.removeprefix("file://")).read_text("utf-8"))
    return found


API_CALLS = [
    command for command in IN_AN_ACCOUNT.values() if command.words[0] == "aws" and command.words[1] != "cloudformation"
]


@pytest.mark.parametrize("command", API_CALLS, ids=str)
def test_calls_are_the_api_s(command: Command) -> None:
    """Service and operation exist, every option is a parameter, and no required one is missing."""
    _, service, operation, *rest = command.words
    model = get_session().get_service_model(service)
    names = {xform_name(name, "-"): name for name in model.operation_names}
    shape = model.operation_model(names[operation]).input_shape
    given = options_of(tuple(rest))
    members = set[str]()
    for address in given.pop("cli-input-json", []):
        members |= document_of(address).keys()
    parameters = {xform_name(name, "-"): name for name in shape.members}
    for option, values in given.items():
        member = shape.members[parameters[option]]
        assert len(values) == 1
        if member.type_name == "structure":
            assert values[0].partition("=")[0] in member.members
        members.add(parameters[option])
    assert set(shape.required_members) <= members <= set(shape.members)


STACKS = [
    command for command in IN_AN_ACCOUNT.values() if command.words[:3] == ("aws", "cloudformation", "deploy")
]  # a command of the CLI alone: no model has it


@pytest.mark.parametrize("command", STACKS, ids=str)
def test_stacks_fit_their_template(command: Command) -> None:
    """The template is there, has the parameters with these values, and takes no capability but the one given."""
    given = options_of(command.words[3:])
    assert given.keys() <= {"stack-name", "template-file", "capabilities", "parameter-overrides"}
    text = (PROJECT / given["template-file"][0]).read_text("utf-8")
    template = yaml.load(re.sub(r"!(\w+)", "", text), yaml.BaseLoader)  # noqa: S506 - a loader of texts alone
    for override in given.get("parameter-overrides", []):
        name, _, value = override.partition("=")
        assert value in template["Parameters"][name]["AllowedValues"]
    roles = [body["Properties"] for body in template["Resources"].values() if body["Type"].startswith("AWS::IAM::")]
    assert roles
    assert given["capabilities"] == ["CAPABILITY_IAM"]
    assert not [role for role in roles if {"RoleName", "ManagedPolicyName", "PolicyName"} & role.keys()]


# Sections and tables --------------------------------------------------------------------------------------------


def test_sections_come_in_the_catalogue_s_order() -> None:
    """What a reader looks for is where other components of the community have it."""
    assert headings("README.md", "h2") == [
        "Why",
        "Requirements",
        "Two commands",
        "Permissions",
        "Deploy",
        "Configuration",
        "How it knows",
        "Operate",
        "Troubleshoot",
        "Costs and limits",
        "Threat model",
        "Report a security problem",
        "Development",
    ]
    deploy = ["The bridge's entries", "What runs on your core", "Console", "CLI", "CloudFormation"]
    assert headings("README.md", "h3")[: len(deploy)] == deploy


def leaves(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Give a configuration's values by path; maps of the user's own names are one value."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner and key != "sources":
            found |= leaves(inner, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = inner
    return found


def test_configuration_table_has_every_key_and_its_default() -> None:
    """Rows with several keys have as many defaults; `sources` names its sources."""
    told: dict[str, str] = {}
    for key, default, *_ in rows("README.md", "key", "default"):
        first, *others = re.findall("`(.+?)`", key)
        names = [first, *(first.rpartition(".")[0] + other for other in others)]
        told |= dict(zip(names, default.split(", "), strict=True)) if others else {first: default}
    expected = {}
    for path, value in leaves(DEFAULTS).items():
        texts = list(value) if path == "sources" else [value if isinstance(value, str) else json.dumps(value)]
        expected[path] = ", ".join("`" + (text or '""') + "`" for text in texts)
    assert told == expected


def test_command_table_has_every_command() -> None:
    """With the arguments that the command line takes."""
    told = [re.findall("`pruner (\\w+)", row[0])[0] for row in rows("README.md", "command", "does")]
    assert told == [command.name for command in command_line.COMMANDS]


def test_guard_table_has_every_guard() -> None:
    """Each guard that the code names has its row, and no other."""
    told = {row[0].strip("`").partition(":")[0] for row in rows("README.md", "guard")}
    code = "".join(path.read_text("utf-8") for path in (PROJECT / "src/client_device_pruner").glob("*.py"))
    contract = "approval outage maxPerCycle maxPercentPerDay list configuration accessDenied coreNotFound database"
    assert told == {*contract.split(), "instance", "source"}
    for guard in told:
        assert re.search(f'"{guard}[:"]', code), guard


def test_source_table_has_every_key_and_its_default() -> None:
    """Of both types; the topics of `emqx` are known to whoever has that broker, and not written out."""
    table = rows("README.md", "key", "`emqx`", "`activity`")
    for column, name in enumerate(DEFAULT_SOURCES, 1):
        keys = {key for row in table if row[column] for key in re.findall("`(\\w+)`", f"{row[0]} {row[column]}")}
        told = {default for row in table for default in re.findall("`(.*?)`", row[column])}
        for key, value in DEFAULT_SOURCES[name].items():
            if key not in {"type", "enabled"}:
                assert key in keys
                default = value if isinstance(value, str) else json.dumps(value)
                assert (default or '""') in told or default.startswith("$SYS/brokers/")


def test_event_table_has_every_event_and_its_data() -> None:
    """At least what every one of them has."""
    told = {
        kind: set(re.findall("`(\\w+)`", data))
        for kinds, _, data in rows("README.md", "event", "when", "data")
        for kind in re.findall("`(\\w+)`", kinds)
    }
    assert told.keys() == EVENT_DATA.keys()
    for kind, data in EVENT_DATA.items():
        assert told[kind] >= data


def test_every_symptom_has_command_cause_and_remedy() -> None:
    """No cell is empty, and each command is one."""
    table = rows("README.md", "symptom", "command", "cause", "remedy")
    assert len(table) > 6
    for row in table:
        assert all(row)
        assert re.match("`(pruner|sudo) ", row[1])


def test_what_surprises_is_said_plainly() -> None:
    """What granting List changes, beside `dryRun` too; what a wide mapping does; what a standby core wants."""
    readme = " ".join((PROJECT / "README.md").read_text("utf-8").split())
    assert "it ends offline authentication for every device that is not > associated" in readme
    (dry_run,) = (row for row in rows("README.md", "key", "default") if row[0] == "`dryRun`")
    assert "what granting List changes, it changes all the same" in dry_run[2]
    assert "`LocalMqtt # → IotCore` also carries `$SYS/…` to AWS IoT Core" in readme
    assert 'A standby core sees no devices at all. Give it `"protectedClients": ["*"]`' in readme


# Examples and links ---------------------------------------------------------------------------------------------


def test_examples_are_what_the_code_wants() -> None:
    """The bridge's entries are those of the defaults, the example of a core is the file in the table."""
    entries, example = (json.loads(block) for block in blocks("README.md", "json"))
    assert entries == {"mqttTopicMapping": required_entries(parse(DEFAULTS))}
    assert example == json.loads((PROJECT / "docs/setups/moquette.json").read_text("utf-8"))
    assert set(example) == {COMPONENT, BRIDGE}


@pytest.mark.parametrize("document", [*DOCUMENTS, "tests/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    """Files and pictures of the project are there."""
    for token in tokens(document):
        for child in token.children or ():
            address = str(child.attrGet("href") or child.attrGet("src") or "")
            if address and not address.startswith("https://"):
                assert ((PROJECT / document).parent / address).exists(), address
