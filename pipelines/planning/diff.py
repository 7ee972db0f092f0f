"""Which nodes of two plans differ, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.dag.differences import difference
from pipelines.dag.plan import Node, Plan, data_changed
from pipelines.formatting import rows_of

Change = Literal["new", "gone", "changed", "inputs", "runtime"]

WORDS: dict[Change, str] = {
    "new": "new",
    "gone": "gone",
    "changed": "changed",
    "inputs": "follows",
    "runtime": "same result",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    node: str
    change: Change
    """``inputs``: its own settings are the same. ``runtime``: so is its result, made otherwise."""

    why: list[str]


def compare(old: Plan, new: Plan) -> list[Difference]:
    """Every node that differs, in the new plan's order; those that are gone come last.

    What follows from another's change names where the change began.
    """
    found: list[Difference] = []
    causes: dict[str, list[str]] = {}
    for name, verdict in new.verdicts.items():
        before = old.verdicts.get(name)
        if before is None:
            found.append(Difference(node=name, change="new", why=[]))
        elif before.fingerprint != verdict.fingerprint:
            if own := settings_changed(before.node, verdict.node):
                found.append(Difference(node=name, change="changed", why=own))
                causes[name] = [name]
                continue
            inputs = verdict.node.inputs.values()
            causes[name] = list(dict.fromkeys(c for i in inputs for c in causes.get(i, ())))
            why = f"through {', '.join(causes[name])}"
            found.append(Difference(node=name, change="inputs", why=[why]))
        elif how := difference(_how(before.node), _how(verdict.node)):
            found.append(Difference(node=name, change="runtime", why=how))
    gone = [name for name in old.verdicts if name not in new.verdicts]
    return found + [Difference(node=name, change="gone", why=[]) for name in gone]


def settings_changed(old: Node, new: Node) -> list[str]:
    """What of a node itself is other: its settings as ``key: old → new``, and what it reads."""
    was, now = _plain(old.settings), _plain(new.settings)
    changed = data_changed(was.pop("source", None), now.pop("source", None))
    return changed + difference(was, now) + difference(dict(old.inputs), dict(new.inputs), "input")


def _how(node: Node) -> Any:
    return _plain({**node.runtime, "cpus": node.cpus})


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def text(old: Plan, new: Plan, found: list[Difference]) -> str:
    """A line a node; of several reasons one below the other."""
    head = f"{len(found)} of {len({*old.verdicts, *new.verdicts})} nodes differ"
    cells = [
        [WORDS[d.change], d.node, why] if i == 0 else ["", "", why]
        for d in found
        for i, why in enumerate(d.why or [""])
    ]
    return "\n".join([head, *([""] if cells else []), *rows_of(cells)])
