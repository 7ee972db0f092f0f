"""Commands in manifests and documents, as the project's own command line understands them."""

import re
import shlex
from pathlib import Path

import typer

import pipelines.cli


def understood(words: list[str]) -> None:
    """Raises unless ``ediffi`` takes these words."""
    assert Path(words[0]).name == "ediffi"
    command, words = typer.main.get_command(pipelines.cli.app), words[1:]
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


def in_markdown(text: str) -> list[list[str]]:
    """Every ``ediffi …`` line of a document's code blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith("ediffi ")]
    return [shlex.split(line) for line in found]
