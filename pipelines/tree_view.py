"""The expert tree as data, as text, as Markdown and as one self-contained page."""

from __future__ import annotations

import html as escape_html
from collections.abc import Iterator, Mapping
from typing import Any

from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.plan import SINGLE, Plan


def build(plan: Plan, execution: Any, manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Every expert with its interval, budget, state and gain; the evaluations beside it."""
    stages: dict[str, dict[str, Any]] = {}
    for stage_name, stage in plan.spec.stages.items():
        experts = {}
        for verdict in plan.verdicts.values():
            node = verdict.node
            if node.kind != "train" or not node.name.startswith(f"{stage_name}/"):
                continue
            name = node.settings["expert"]
            low, high = Interval(*node.settings["interval"]).bounds(
                NoiseDistribution(**node.settings["noise"])
            )
            manifest = manifests.get(node.id, {})
            record = execution.nodes.get(node.id, {}) if execution else {}
            parent = node.inputs.get("parent", "").rpartition("/")[2]
            experts[name] = {
                "parent": parent or None,
                "q_lo": node.settings["interval"][0],
                "q_hi": node.settings["interval"][1],
                "sigma_lo": low,
                "sigma_hi": None if high == float("inf") else high,
                "images": node.settings["images"],
                "state": record.get("state", "done" if manifest else "never run"),
                "in_ensemble": name in stage.ensemble,
                "metrics": manifest.get("metrics", {}),
                "weights_sha256": manifest.get("info", {}).get("weights_sha256"),
            }
        evaluations = {
            v.node.name.split("/")[1]: dict(manifests[i]["metrics"])
            for i, v in plan.verdicts.items()
            if v.node.kind == "evaluate"
            and v.node.name.startswith(f"{stage_name}/")
            and i in manifests
        }
        chosen = manifests.get(f"adopt/{stage_name}", {}).get("info", {})
        for role, why in chosen.get("refused", {}).items():
            if (name := role.rpartition("/")[2]) in experts:
                experts[name] |= {"adopted": False, "why": why}
        stages[stage_name] = {"experts": experts, "evaluations": evaluations}
        if "seats" in chosen:
            stages[stage_name]["seats"] = chosen["seats"]
        if grown := plan.trees.get(stage_name):
            stages[stage_name] |= {
                "decisions": [decision.row() for decision in grown.decisions],
                "end": grown.end,
            }
    return {
        "pipeline": plan.spec.name,
        "execution": execution.id if execution else None,
        "state": execution.state if execution else "never run",
        "stages": stages,
    }


Row = tuple[int, str, str, dict[str, Any]]


def rows(experts: Mapping[str, Any]) -> Iterator[Row]:
    """(depth, branches before the name, name, expert) from the root down, high noise first."""

    def below(parent: str | None, depth: int, lines: str) -> Iterator[Row]:
        mine = [(n, e) for n, e in experts.items() if e["parent"] == parent]
        mine.sort(key=lambda item: (item[0] == SINGLE, -item[1]["sigma_lo"]))
        for name, expert in mine:
            last = name == mine[-1][0]
            drawn = lines + ("└─ " if last else "├─ ") if depth else ""
            yield depth, drawn, name, expert
            yield from below(name, depth + 1, lines + ("   " if last or not depth else "│  "))

    yield from below(None, 0, "")


def interval_text(expert: Mapping[str, Any]) -> str:
    low, high = expert["sigma_lo"], expert["sigma_hi"]
    if low == 0 and high is None:
        return "all σ"
    if low == 0:
        return f"σ < {high:.4g}"
    return f"σ ≥ {low:.4g}" if high is None else f"{low:.4g} ≤ σ < {high:.4g}"


def gain_text(expert: Mapping[str, Any]) -> str:
    m = expert["metrics"]
    if "val_gain" not in m:
        return f"val loss {m['val_loss']:.4f}" if "val_loss" in m else ""
    return (
        f"val loss {m['val_loss']:.4f} (parent {m['val_loss_parent']:.4f}, "
        f"gain {m['val_gain']:+.4f} [{m['val_gain_low']:+.4f}, {m['val_gain_high']:+.4f}])"
    )


def text(tree: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = [f"{tree['pipeline']}  {tree['execution'] or ''}  {tree['state']}"]
    for stage_name, stage in tree["stages"].items():
        lines.append(stage_name)
        for _, branches, name, e in rows(stage["experts"]):
            label = f"{branches}{'●' if e['in_ensemble'] else '○'} {name}"
            lines.append(
                f"  {label:<20} {interval_text(e):<24} {e['images']:>9,} images  "
                f"{e['state']:<9} {gain_text(e)}".rstrip()
            )
        lines += ["  ● in the ensemble", "", *evaluation_lines(stage["evaluations"])]
    return "\n".join(lines)


COLUMNS = {
    "alignment": ("alignment", "↑"),
    "objects": ("digits", "↑"),
    "colours": ("colours", "↑"),
    "places": ("places", "↑"),
    "papers": ("papers", "↑"),
    "frechet_distance": ("Fréchet", "↓"),
    "clip_score": ("CLIP", "↑"),
    "val_loss": ("val loss", "↓"),
}


def evaluation_table(evaluations: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A header row and one row a model, the controls below; empty without evaluations."""
    if not evaluations:
        return []
    keys = [k for k in COLUMNS if any(k in m for m in evaluations.values())]
    table = [["", *(" ".join(COLUMNS[k]) for k in keys)]]
    names = {"ensemble": "ensemble", SINGLE: "single model, same budget", "root": "root alone"}
    for group, label in names.items():
        if m := evaluations.get(group):
            table.append([label, *(f"{m[k]:.3f}" if k in m else "–" for k in keys)])
    controls = {
        "untrained_": "untrained",
        "shuffled_": "ensemble, captions shuffled",
        "enlarged_": "pictures of the stage below, enlarged",
        "real_": "real pictures",
    }
    measured = evaluations.get("ensemble", {})
    for prefix, label in controls.items():
        if f"{prefix}alignment" in measured:
            table.append(
                [
                    label,
                    *(
                        f"{measured[prefix + k]:.3f}" if prefix + k in measured else "–"
                        for k in keys
                    ),
                ]
            )
    return table


def evaluation_lines(evaluations: Mapping[str, Mapping[str, float]]) -> list[str]:
    table = evaluation_table(evaluations)
    if not table:
        return []
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  "
        + "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ] + [""]


def markdown(tree: Mapping[str, Any]) -> str:
    """For the description of the execution's run."""
    out = [f"### {tree['pipeline']}: {tree['state']}", ""]
    for stage_name, stage in tree["stages"].items():
        out += [f"**{stage_name}** (bold: in the ensemble)", ""]
        for depth, _, name, e in rows(stage["experts"]):
            label = f"**{name}**" if e["in_ensemble"] else name
            out.append(
                f"{'    ' * depth}- {label} · {interval_text(e)} · {e['images']:,} images · "
                f"{e['state']} · {gain_text(e)}"
            )
        if table := evaluation_table(stage["evaluations"]):
            out += ["", "| " + " | ".join(table[0]) + " |", "|" + " --- |" * len(table[0])]
            out += ["| " + " | ".join(row) + " |" for row in table[1:]]
    return "\n".join(out) + "\n"


def headline_metrics(tree: Mapping[str, Any]) -> dict[str, float]:
    """The evaluations, flat, for the execution's own run."""
    return {
        f"{stage}/{group}/{key}": value
        for stage, content in tree["stages"].items()
        for group, metrics in content["evaluations"].items()
        for key, value in metrics.items()
    }


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8886; --on: #2a78d6; --soft: #8883 }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem }}
h1 {{ font-size: 1.3rem }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }}
td, th {{ padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; font-weight: 400 }}
th {{ opacity: .7 }} td:first-child, th:first-child {{ text-align: left; white-space: nowrap }}
.in {{ font-weight: 600 }} .wrap {{ overflow-x: auto }}
.bar {{ position: relative; height: .7rem; min-width: 12rem;
  background: var(--soft); border-radius: 4px }}
.bar i {{ position: absolute; top: 0; bottom: 0;
  background: var(--on); border-radius: 4px }}
</style>
<h1>{title}</h1><p>{state}. Bars: each expert's share of p(σ), low noise left, high noise right.
Bold: in the ensemble.</p>
{body}
</html>
"""


def html(tree: Mapping[str, Any]) -> str:
    """One self-contained page; light and dark."""
    body = []
    for stage_name, stage in tree["stages"].items():
        body.append(f"<h2>{escape_html.escape(stage_name)}</h2>")
        head = (
            "<tr><th>expert<th>p(σ)<th>interval<th>images<th>state<th>val loss<th>gain over parent"
        )
        body.append(f'<div class="wrap"><table>{head}')
        for depth, _, name, e in rows(stage["experts"]):
            low, high = e["q_lo"], e["q_hi"]
            m = e["metrics"]
            gain = (
                f"{m['val_gain']:+.4f} [{m['val_gain_low']:+.4f}, {m['val_gain_high']:+.4f}]"
                if "val_gain" in m
                else "–"
            )
            loss = f"{m['val_loss']:.4f}" if "val_loss" in m else "–"
            style = f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"
            cells = [
                f'<td style="padding-left:{0.6 + 1.4 * depth:.1f}rem"'
                f"{' class=in' if e['in_ensemble'] else ''}>{escape_html.escape(name)}",
                f'<td><div class="bar"><i style="{style}"></i></div>',
                *(
                    f"<td>{escape_html.escape(c)}"
                    for c in (interval_text(e), f"{e['images']:,}", e["state"], loss, gain)
                ),
            ]
            body.append("<tr>" + "".join(cells))
        body.append("</table></div>")
        if table := evaluation_table(stage["evaluations"]):
            body.append('<h2>Evaluation</h2><div class="wrap"><table>')
            for i, row in enumerate(table):
                tag = "td" if i else "th"
                body.append("<tr>" + "".join(f"<{tag}>{escape_html.escape(c)}" for c in row))
            body.append("</table></div>")
    title = escape_html.escape(f"{tree['pipeline']} · {tree['execution'] or ''}")
    return PAGE.format(title=title, state=escape_html.escape(tree["state"]), body="\n".join(body))
