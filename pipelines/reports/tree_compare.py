"""Two runs' expert trees side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.reports.tree import GROUPS, aligned, columns, interval_text, rows, state_text

Tree = Mapping[str, Any]


def compare(a: Tree, b: Tree) -> dict[str, Any]:
    """Every expert and every measurement of either, with the difference B − A where both have it.

    Losses and gains of an expert differ meaningfully only on one interval, so those of experts
    that were trained on different ones are shown without a difference.
    """
    names = {**a["stages"], **b["stages"]}
    nothing: Tree = {"experts": {}, "evaluations": {}}
    return {
        "a": _head(a),
        "b": _head(b),
        "stages": {
            name: _stage(a["stages"].get(name, nothing), b["stages"].get(name, nothing))
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
        was, now = a["evaluations"].get(group, {}), b["evaluations"].get(group, {})
        evaluations[group] = {
            key: {"a": was.get(key), "b": now.get(key), "difference": minus(now, was, key)}
            for key in {**was, **now}
        }
    return {
        "experts": {
            name: _expert(a["experts"].get(name), b["experts"].get(name))
            for _, _, name, _ in rows(both)
        },
        "evaluations": evaluations,
    }


def _expert(a: Tree | None, b: Tree | None) -> dict[str, Any]:
    found: dict[str, Any] = {"a": a and _shown(a), "b": b and _shown(b)}
    if not (a and b):
        return {**found, "only_in": "a" if a else "b"}
    is_same = all(a[k] == b[k] for k in ("q_lo", "q_hi"))
    keys = ("val_loss", "val_gain") if is_same else ()
    differences = {key: minus(b["metrics"], a["metrics"], key) for key in keys}
    return {
        **found,
        "same_interval": is_same,
        "same_weights": a["weights_sha256"] is not None
        and a["weights_sha256"] == b["weights_sha256"],
        "difference": {"images": b["images"] - a["images"], **differences},
    }


def _shown(expert: Tree) -> dict[str, Any]:
    keys = ("sigma_lo", "sigma_hi", "images", "in_ensemble", "weights_sha256")
    measured = {k: expert["metrics"].get(k) for k in ("val_loss", "val_gain")}
    return {k: expert[k] for k in keys} | {"state": state_text(expert)} | measured


def minus(b: Mapping[str, Any], a: Mapping[str, Any], key: str) -> float | None:
    return b[key] - a[key] if key in a and key in b else None


def text(found: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = []
    for side in ("a", "b"):
        head = found[side]
        lines.append("  ".join([side.upper(), head["execution"], head["state"], *head["labels"]]))
    for name, stage in found["stages"].items():
        remarks = ["", *(remark(e) for e in stage["experts"].values())]
        table = aligned(expert_table(stage["experts"]))
        lines += ["", name, *(f"{line}  {r}".rstrip() for line, r in zip(table, remarks))]
        lines.append("  ● in the ensemble, of A and of B")
        if measured := evaluation_table(stage["evaluations"]):
            lines += ["", *aligned(measured)]
    return "\n".join(lines)


def expert_table(experts: Mapping[str, Any]) -> list[list[str]]:
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
    """What the numbers do not say of one expert."""
    if side := e.get("only_in"):
        return f"only in {side.upper()}"
    said = ["same weights"] if e["same_weights"] else []
    said += [] if e["same_interval"] else [f"B: {interval_text(e['b'])}"]
    for side in ("a", "b"):
        if (state := e[side]["state"]) not in ("done", "reused"):
            said.append(f"{side.upper()}: {state}")
    return "; ".join(said)


def evaluation_table(evaluations: Mapping[str, Any]) -> list[list[str]]:
    """Three rows a group of experts: A, B and the difference; empty without evaluations."""
    keys = columns(evaluations)
    table = [["", *keys.values()]]
    groups = [g for g in GROUPS if evaluations.get(g)]
    width = max((len(GROUPS[g]) for g in groups), default=0)
    for group in groups:
        of = [evaluations[group].get(k, {}) for k in keys]
        table += [
            [f"{GROUPS[group]:<{width}}  A", *(number(m.get("a"), ".3f") for m in of)],
            [f"{'':<{width}}  B", *(number(m.get("b"), ".3f") for m in of)],
            [f"{'':<{width}}  B − A", *(signed(m.get("difference"), 3) for m in of)],
        ]
    return table if len(table) > 1 else []


def number(value: float | None, how: str = ".4f") -> str:
    return "–" if value is None else format(value, how)


def signed(difference: float | None, digits: int = 4) -> str:
    return "=" if difference == 0 else number(difference, f"+.{digits}f")
