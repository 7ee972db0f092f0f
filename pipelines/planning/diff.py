"""Compare two plans: which nodes differ, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.dag.differences import difference
from pipelines.dag.plan import Node, Plan, data_changed
from pipelines.formatting import align_columns

Change = Literal["new", "gone", "changed", "inputs", "runtime"]

LABELS: dict[Change, str] = {
    "new": "new",
    "gone": "gone",
    "changed": "changed",
    "inputs": "follows",
    "runtime": "same result",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One node that differs between two plans."""

    node: str
    """Node id."""

    change: Change
    """``changed``: its own settings differ. ``inputs``: only the results it reads differ.
    ``runtime``: it produces the same result with other runtime settings."""

    why: list[str]
    """Reasons, such as ``images: 128 → 144``."""


def compare(old: Plan, new: Plan) -> list[Difference]:
    """All nodes that differ, in the order of the new plan; removed nodes come last.

    A node that differs only through its inputs names the node where the change began.
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
        elif runtime := difference(_runtime(before.node), _runtime(verdict.node)):
            found.append(Difference(node=name, change="runtime", why=runtime))
    gone = [name for name in old.verdicts if name not in new.verdicts]
    return found + [Difference(node=name, change="gone", why=[]) for name in gone]


def settings_changed(old: Node, new: Node) -> list[str]:
    """Changes of a node's own settings as ``key: old → new``, and of the nodes it reads."""
    was, now = _plain(old.settings), _plain(new.settings)
    changed = data_changed(was.pop("source", None), now.pop("source", None))
    return changed + difference(was, now) + difference(dict(old.inputs), dict(new.inputs), "input")


def _runtime(node: Node) -> Any:
    return _plain({**node.runtime, "cpus": node.cpus})


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def text(old: Plan, new: Plan, found: list[Difference]) -> str:
    """The differences as a table for the terminal: one line per node and reason."""
    head = f"{len(found)} of {len({*old.verdicts, *new.verdicts})} nodes differ"
    cells = [
        [LABELS[d.change], d.node, why] if i == 0 else ["", "", why]
        for d in found
        for i, why in enumerate(d.why or [""])
    ]
    return "\n".join([head, *([""] if cells else []), *align_columns(cells)])
