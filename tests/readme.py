"""What the documents for users show: their commands, as a reader would type them, their examples and their tables."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

PROJECT = Path(__file__).resolve().parents[1]
LANGUAGES = ("sh", "json", "mermaid")
"""The code blocks that a document may have; commands are in those with `sh`."""
_PROGRAMS = {"aws", "gdk", "greengrass-cli", "journalctl", "pip", "pruner", "python", "sudo", "systemctl"}
"""Programs that this machine need not have, to tell a command from other code in a sentence."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a document.

    Attributes:
        words: it, split as a shell does.
        told: what the reader is told of it: the document's introduction, the paragraph above, and the comments before
            and beside it; in a sentence, the paragraph.
    """

    words: tuple[str, ...]
    told: str

    def __str__(self) -> str:
        """It, in one line."""
        return " ".join(self.words)

    @property
    def is_for_a_core(self) -> bool:
        """Whether it is typed on a core device."""
        return self.words[0] == "pruner" or any(word.startswith("/greengrass/v2/") for word in self.words)


def tokens(document: str) -> list[Token]:
    """Parse a document of the project."""
    text = (PROJECT / document).read_text("utf-8")
    return MarkdownIt("commonmark").enable("table").parse(text)


def headings(document: str, tag: str) -> list[str]:
    """Return the headings of a level (`h2`), in order."""
    parsed = tokens(document)
    opened = [place for place, token in enumerate(parsed) if (token.type, token.tag) == ("heading_open", tag)]
    return [parsed[place + 1].content for place in opened]


def blocks(document: str, language: str) -> list[str]:
    """Return the code blocks in a language."""
    return [token.content for token in tokens(document) if token.type == "fence" and token.info == language]


def rows(document: str, *titles: str) -> list[tuple[str, ...]]:
    """Return the rows of the table that has these titles, as they are written; none if there is no such table."""
    found: list[tuple[str, ...]] = []
    for table in _tables(document):
        if table[0][: len(titles)] == titles:
            found += table[1:]
    return found


def _tables(document: str) -> Iterator[list[tuple[str, ...]]]:
    table: list[tuple[str, ...]] = []
    row: list[str] = []
    inside = False
    for token in tokens(document):
        match token.type:
            case "table_open":
                table, inside = [], True
            case "tr_open":
                row = []
            case "inline" if inside:
                row.append(token.content)
            case "tr_close":
                table.append(tuple(row))
            case "table_close":
                inside = False
                yield table


def commands(document: str) -> list[Command]:
    """Return every command of a document: those of its `sh` blocks, and those in its sentences and tables."""
    found: list[Command] = []
    parsed = tokens(document)
    chapters = [place for place, token in enumerate(parsed) if token.tag == "h2"]
    introduction = "\n".join(token.content for token in parsed[: chapters[0]] if token.type == "inline")
    above = ""
    for token in parsed:
        if token.type == "fence" and token.info == "sh":
            found += _typed(token.content, f"{introduction}\n{above}")
        for child in token.children or ():
            if child.type == "code_inline" and _is_command(child.content):
                found += [Command(words, token.content) for words in _forms(child.content)]
        if token.type == "inline":
            above = token.content
    return found


def _typed(script: str, told: str) -> Iterator[Command]:
    """Yield the commands of a code block, one for each that is run."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        _, _, comment = line.partition("# ")
        if not words:
            told += f"\n{comment}"
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield Command(tuple(words[:end]), f"{told}\n{comment}")
            words = words[end + 1 :]


def _is_command(code: str) -> bool:
    """Whether code in a sentence is a command with an argument, rather than a name."""
    words = [word for word in code.split() if "=" not in word]
    program = words[0].rpartition("/")[2] if len(words) > 1 else ""
    return program in _PROGRAMS or (bool(re.fullmatch("[a-z][a-z0-9-]+", program)) and bool(shutil.which(program)))


def _forms(usage: str) -> Iterator[tuple[str, ...]]:
    """Yield what a usage stands for: with and without what is optional, and each alternative (of the arguments)."""
    optional = re.search(r" ?\[(.+?)\]", usage)
    if optional:
        for chosen in ("", f" {optional[1]}"):
            yield from _forms(usage[: optional.start()] + chosen + usage[optional.end() :])
        return
    first, *others = re.split(r" \\?\| ", usage)
    yield tuple(first.split())
    for other in others:
        yield (*first.split()[:2], *other.split())
