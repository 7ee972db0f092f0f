"""Parses YAML in bounded time and memory, and refuses keys that are given twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_CHARACTERS = 2**20
MAX_DEPTH = 64
"""How deep lists and mappings may be nested. A spec nests about eight deep."""

TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep"

MAX_VALUES = 50_000
"""How many values a text may hold, where an alias counts as all that it stands for."""

MAX_DIGITS = 64
"""Length of the longest number, in characters."""

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MERGE = "tag:yaml.org,2002:merge"


def parse(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        ValueError: It is not valid YAML, exceeds a limit of this module, or has a key twice. The
            message is one line and quotes no value, which may be a secret.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters; write at most {MAX_CHARACTERS:,}")
    try:
        return yaml.load(text, _Loader)
    except _Refused as error:
        raise ValueError(_where(error)) from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML: {_where(error)}") from None


def _where(error: yaml.YAMLError) -> str:
    """What is wrong, and the line's number. Not the line, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    message = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{message} (line {error.problem_mark.line + 1})"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, checked before any value is made from the text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.values = 0
        self.sizes: dict[int, int] = {}
        """Id of a composed node → the number of values in it, with aliases expanded."""

    def fetch_flow_collection_start(self, *token: Any) -> None:
        """Stop the scanner too, which looks ahead, and slower with each bracket that is open."""
        if self.flow_level >= MAX_DEPTH:
            raise _Refused(TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(*token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, alias = self.values, self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused(TOO_DEEP, mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not alias:
            self.values += 1
            self.sizes[id(node)] = self.values - before
        elif id(node) in self.sizes:
            self.values += self.sizes[id(node)]
        else:
            raise _Refused("an alias stands for a value that it is in", mark)
        if self.values > MAX_VALUES:
            raise _Refused(f"it holds more than {MAX_VALUES:,} values, aliases expanded", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a key that a mapping has twice. PyYAML itself keeps the last one."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                same = lines[name] == line
                where = f"line {line}" if same else f"lines {lines[name]} and {line}"
                raise ValueError(f"`{key.value:.60}` is given twice ({where}); keep one")
            lines[name] = line
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
            raise _Refused(f"a number has more than {MAX_DIGITS} characters", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            # PyYAML's own, for a value that does not fit its tag, such as the date 2001-99-99.
            kind = node.tag.rpartition(":")[2]
            raise _Refused(f"a value is no valid {kind}", node.start_mark) from error


class _Refused(yaml.MarkedYAMLError):
    """The text is YAML, but more than this module reads, or with a value that does not fit."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


# YAML 1.2 reads 1e-4 as a number; PyYAML follows 1.1, which wants 1.0e-4.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
