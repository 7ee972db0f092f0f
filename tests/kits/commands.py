"""Commands in manifests and pages, checked against the project's own command line."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import typer
from paths import ROOT

from pipelines.cli.verbs import app

ELSEWHERE = "sh cluster"
"""Info string of a block of commands that need other programs, a service or a cluster."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    info: str
    """What follows the opening fence: ``yaml``, ``python``, ``text``, ``sh cluster`` or nothing."""

    text: str


def blocks(markdown: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", markdown, flags=re.M | re.S)
    return [Block(info.strip(), text) for info, text in found]


def lines_of(block: Block) -> list[str]:
    """The commands of a block, continued lines joined, comments removed."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for raw in lines if (line := re.sub(r"(^|\s+)#.*", "", raw).strip())]


def commands(markdown: str) -> list[str]:
    """Every line of the blocks that hold commands which work on any machine."""
    return [line for block in blocks(markdown) if not block.info for line in lines_of(block)]


def in_markdown(markdown: str) -> list[list[str]]:
    """Every ``ediffi …`` line of the blocks of commands, split into words."""
    shells = [block for block in blocks(markdown) if block.info in ("", ELSEWHERE)]
    lines = [line for block in shells for line in lines_of(block)]
    return [shlex.split(line) for line in lines if line.startswith("ediffi ")]


def in_prose(markdown: str) -> set[str]:
    """The verbs that a page names outside its blocks, as ``ediffi VERB …`` in code style."""
    prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    return set(re.findall(r"`ediffi ((?:data |study )?[a-z]+)", prose))


def understood(words: list[str]) -> None:
    """Raise unless ``ediffi`` accepts these words."""
    assert Path(words[0]).name == "ediffi"
    command, words = typer.main.get_command(app), words[1:]
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


@cache
def targets() -> set[str]:
    """The targets that ``make`` lists."""
    return set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.M))


def exists(line: str) -> None:
    """Raise unless a command line of a page works: a verb, a make target, or pytest on a path."""
    words = shlex.split(line)
    if words[0] == "ediffi":
        understood(words)
    elif words[0] == "make":
        assert {w for w in words[1:] if "=" not in w} <= targets(), line
        makefile = (ROOT / "Makefile").read_text()
        for variable in (w.partition("=")[0] for w in words[1:] if "=" in w):
            assert re.search(rf"\b{variable}\b", makefile), line
    else:
        assert words[0] == ".venv/bin/pytest", f"{line!r}: fence it as `{ELSEWHERE}` or `text`"
        assert all((ROOT / w).exists() for w in words[1:] if not w.startswith("-")), line
