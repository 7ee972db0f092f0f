"""Compare the expert trees of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.reports.tree import (
    group_labels,
    interval_text,
    metric_columns,
    state_text,
    table_lines,
    tree_rows,
)

Tree = Mapping[str, Any]


def compare(a: Tree, b: Tree) -> dict[str, Any]:
    """All experts and metrics of both trees, with the difference B − A where both have a value.

    Losses and gains are comparable only on the same interval, so experts of one name that were
    trained on different intervals get no difference.

    Args:
        a, b: trees from :func:`pipelines.reports.tree.build`.
    """
    names = {**a["stages"], **b["stages"]}
    empty: Tree = {"experts": {}, "evaluations": {}}
    return {
        "a": _head(a),
        "b": _head(b),
        "stages": {
            name: _stage(a["stages"].get(name, empty), b["stages"].get(name, empty))
            for name in names
        },
    }


def _head(tree: Tree) -> dict[str, Any]:
    return {k: tree[k] for k in ("pipeline", "execution", "state")} | {
        "labels": tree.get("labels", [])
    }


def _stage(a: Tree, b: Tree) -> dict[str, Any]:
    both = {**b["experts"], **a["experts"]}
    evaluations = {}
    for group in {**a["evaluations"], **b["evaluations"]}:
        old, new = a["evaluations"].get(group, {}), b["evaluations"].get(group, {})
        evaluations[group] = {
            key: {"a": old.get(key), "b": new.get(key), "difference": difference_of(new, old, key)}
            for key in {**old, **new}
        }
    return {
        "experts": {
            name: _expert(a["experts"].get(name), b["experts"].get(name))
            for _, _, name, _ in tree_rows(both)
        },
        "evaluations": evaluations,
    }


def _expert(a: Tree | None, b: Tree | None) -> dict[str, Any]:
    found: dict[str, Any] = {"a": a and _shown(a), "b": b and _shown(b)}
    if not (a and b):
        return {**found, "only_in": "a" if a else "b"}
    same_interval = all(a[k] == b[k] for k in ("q_lo", "q_hi"))
    keys = ("val_loss", "val_gain") if same_interval else ()
    differences = {key: difference_of(b["metrics"], a["metrics"], key) for key in keys}
    return {
        **found,
        "same_interval": same_interval,
        "same_weights": a["weights_sha256"] is not None
        and a["weights_sha256"] == b["weights_sha256"],
        "difference": {"images": b["images"] - a["images"], **differences},
    }


def _shown(expert: Tree) -> dict[str, Any]:
    keys = ("sigma_lo", "sigma_hi", "images", "in_ensemble", "weights_sha256")
    measured = {k: expert["metrics"].get(k) for k in ("val_loss", "val_gain")}
    return {k: expert[k] for k in keys} | {"state": state_text(expert)} | measured


def difference_of(b: Mapping[str, Any], a: Mapping[str, Any], key: str) -> float | None:
    """b − a of one metric; None if either lacks it."""
    return b[key] - a[key] if key in a and key in b else None


def text(found: Mapping[str, Any]) -> str:
    """The comparison for the terminal."""
    lines = []
    for side in ("a", "b"):
        head = found[side]
        lines.append("  ".join([side.upper(), head["execution"], head["state"], *head["labels"]]))
    for name, stage in found["stages"].items():
        remarks = ["", *(remark(e) for e in stage["experts"].values())]
        table = table_lines(expert_table(stage["experts"]))
        lines += ["", name, *(f"{line}  {r}".rstrip() for line, r in zip(table, remarks))]
        lines.append("  ● in the ensemble (first mark: A, second: B)")
        if measured := evaluation_table(stage["evaluations"]):
            lines += ["", *table_lines(measured)]
    return "\n".join(lines)


def expert_table(experts: Mapping[str, Any]) -> list[list[str]]:
    """A heading and one row per expert: images, loss and gain of both runs, and differences."""
    table = [["", "interval", "images A", "B", "val loss A", "B", "B − A", "gain A", "B", "B − A"]]
    for name, e in experts.items():
        sides = [e["a"] or {}, e["b"] or {}]
        difference = e.get("difference", {})
        marks = "".join(" ●"[s["in_ensemble"]] if s else " " for s in sides)
        table.append(
            [
                f"{marks} {name}",
                interval_text(sides[0] or sides[1]),
                *(f"{s['images']:,}" if s else "–" for s in sides),
                *(number(s.get("val_loss")) for s in sides),
                signed(difference.get("val_loss")),
                *(number(s.get("val_gain"), "+.4f") for s in sides),
                signed(difference.get("val_gain")),
            ]
        )
    return table


def remark(e: Mapping[str, Any]) -> str:
    """What the numbers of an expert do not show: only in one run, same weights, other interval."""
    if side := e.get("only_in"):
        return f"only in {side.upper()}"
    notes = ["same weights"] if e["same_weights"] else []
    notes += [] if e["same_interval"] else [f"B: {interval_text(e['b'])}"]
    for side in ("a", "b"):
        if (state := e[side]["state"]) not in ("done", "reused"):
            notes.append(f"{side.upper()}: {state}")
    return "; ".join(notes)


def evaluation_table(evaluations: Mapping[str, Any]) -> list[list[str]]:
    """Three rows per evaluated model: A, B and the difference; empty without evaluations."""
    keys = metric_columns(evaluations)
    table = [["", *keys.values()]]
    labels = group_labels(evaluations)
    width = max((len(label) for label in labels.values()), default=0)
    for group, label in labels.items():
        values = [evaluations[group].get(k, {}) for k in keys]
        table += [
            [f"{label:<{width}}  A", *(number(v.get("a"), ".3f") for v in values)],
            [f"{'':<{width}}  B", *(number(v.get("b"), ".3f") for v in values)],
            [f"{'':<{width}}  B − A", *(signed(v.get("difference"), 3) for v in values)],
        ]
    return table if len(table) > 1 else []


def number(value: float | None, spec: str = ".4f") -> str:
    """A value in a format specification; a dash for None."""
    return "–" if value is None else format(value, spec)


def signed(difference: float | None, digits: int = 4) -> str:
    """A difference with its sign; ``=`` for zero, a dash for None."""
    return "=" if difference == 0 else number(difference, f"+.{digits}f")
