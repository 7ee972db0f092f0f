"""The command line's help: verbs by task, a default for every option, plain text, completion."""

import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from pipelines.cli.help import VERBS, verbs_of
from pipelines.cli.verbs import app

COMMAND = typer.main.get_command(app)
EVERY = [verb for verbs in VERBS.values() for verb in verbs]


def command_of(verb):
    command = COMMAND
    for word in verb.split():
        command = command.commands[word]
    return command


def test_every_verb_has_a_task_and_one_only():
    assert sorted(EVERY) == sorted(verbs_of(COMMAND))


def test_the_help_lists_the_verbs_by_task_in_80_columns():
    lines = CliRunner().invoke(app, ["--help"], terminal_width=80).output.splitlines()
    at = [lines.index(f"{task}:") for task in VERBS]
    assert at == sorted(at)
    end = 2 + max(map(len, EVERY))
    for task, begin in zip(VERBS, at):
        listed = lines[begin + 1 : begin + 1 + len(VERBS[task])]
        assert [line[2:end].strip() for line in listed] == list(VERBS[task])
        assert all(line[end:][:2] == "  " and line[end + 2].isupper() for line in listed), listed
    assert max(map(len, lines)) <= 80
    assert not any("..." in line or "\x1b" in line for line in lines if "[ARGS]" not in line)


@pytest.mark.parametrize("verb", EVERY)
def test_every_option_has_a_help_text_and_shows_its_default(verb):
    command = command_of(verb)
    context = typer.Context(command, info_name=verb)
    for param in command.params:
        if getattr(param, "hidden", False):
            continue
        _, text = param.get_help_record(context)
        assert text[:1].isupper() or text.startswith("`"), (param.name, text)
        if getattr(param, "is_flag", False) or param.required or param.name in UNSET:
            continue
        assert "default: " in text, (param.name, text)


UNSET = {"help", "spec", "line"}
"""``schedule`` needs SPEC and --cron but for --list, and says so."""


@pytest.mark.parametrize("verb", EVERY)
def test_every_help_is_in_the_imperative_and_has_an_example(verb):
    first = command_of(verb).help.split()[0]
    assert first[0].isupper() and not first.endswith("s"), first
    assert f"ediffi {verb}" in command_of(verb).epilog


def completed(words):
    env = {**os.environ, "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    found = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'ediffi'; import pipelines.cli as c; "
         "c.main()"],
        env={**env, "_EDIFFI_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return found.stdout.split()


@pytest.mark.slow
def test_the_shell_completes_verbs_and_options():
    assert completed("ediffi pl") == ["plan"]
    assert completed("ediffi data s") == ["stats", "show"]
    assert completed("ediffi data stats --qua") == ["--quarantined"]
    assert completed("ediffi data stats --fau") == []
