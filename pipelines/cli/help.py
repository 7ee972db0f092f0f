"""The list of verbs in ``ediffi --help``, grouped by task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

VERBS = {
    "Start": ("init", "doctor"),
    "Run": ("plan", "run", "retrain", "runs", "status", "cancel", "diff"),
    "Look": ("tree", "sample", "studio", "evaluate", "ema"),
    "Studies": tuple(f"study {v}" for v in ("plan", "run", "status", "report", "cells")),
    "Models": ("models", "promote", "rollback", "export"),
    "Serve": ("serve",),
    "Data": ("data stats", "data show"),
    "Clusters and schedules": ("submit", "jobs", "logs", "stop", "schedule", "gc"),
}
"""Every verb by task, in the order of the help."""


class ByTask(TyperGroup):
    """The root command: its help lists the verbs under the tasks of :data:`VERBS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(len(verb) for verbs in VERBS.values() for verb in verbs)
        for task, verbs in VERBS.items():
            found = [(v, c) for v in verbs if (c := self.find(ctx, v)) and not c.hidden]
            if not found:
                continue
            with formatter.section(task):
                # Whole sentences: a narrow terminal folds them.
                formatter.write_dl(
                    [(f"{v:<{width}}", c.get_short_help_str(limit=1000)) for v, c in found]
                )

    def find(self, ctx: Any, verb: str) -> Any:
        """The command of a verb of one or two words; None if there is none."""
        command: Any = self
        for word in verb.split():
            command = command.get_command(ctx, word) if command else None
        return command


class Sectioned(TyperCommand):
    """A command with many options: its help lists them in sections, named by their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                is_argument = param.param_type_name == "argument"
                title = getattr(param, "rich_help_panel", None) or "Other options"
                sections.setdefault("Arguments" if is_argument else title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def verbs_of(group: Any, before: str = "") -> Iterator[str]:
    """Every verb below a group, as a user types it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs_of(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"
