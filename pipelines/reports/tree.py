"""The expert tree as data, text and Markdown; as a page: :mod:`pipelines.reports.tree_page`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ediffi_core.noise import Interval, NoiseDistribution, edm_grid, sigma_text
from pipelines.dag.evaluation import BEFORE
from pipelines.dag.plan import SINGLE, Plan
from pipelines.spec.stage import Stage


def build(plan: Plan, execution: Any, manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Every expert with its interval, budget, state and gain; the evaluations beside it.

    Only some trees have an expert's ``adopted`` (false if it did not beat its parent, and an
    ancestor sits in its place) and ``why``, a growing stage's ``decisions`` and ``end``, and what
    is not the tree's own affair: ``labels``, as ``champion``.
    """
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
                "metrics": manifest.get("metrics", {}),
                "weights_sha256": manifest.get("info", {}).get("weights_sha256"),
                "picture": newest_sheet(verdict.folder, manifest) or record.get("picture"),
            }
        found = {
            v.node.name.split("/")[1]: (v.folder, manifests[i])
            for i, v in plan.verdicts.items()
            if v.node.kind == "evaluate"
            and v.node.name.startswith(f"{stage_name}/")
            and i in manifests
        }
        chosen = manifests.get(f"adopt/{stage_name}", {}).get("info", {})
        for role, why in chosen.get("refused", {}).items():
            if (name := role.rpartition("/")[2]) in experts:
                experts[name] |= {"adopted": False, "why": why}
        stages[stage_name] = {
            **setting(stage),
            "ensemble": seats(plan, stage_name, chosen.get("seats", {})),
            "experts": experts,
            "evaluations": {group: dict(m["metrics"]) for group, (_, m) in found.items()},
            "compared": dict(manifests.get(f"compare/{stage_name}", {}).get("metrics", {})),
            "pictures": {
                group: f"{folder}/samples.png"
                for group, (folder, m) in found.items()
                if "samples.png" in m["files"]
            },
        }
        working = {piece["expert"] for piece in stages[stage_name]["ensemble"]}
        for name, expert in experts.items():
            expert["in_ensemble"] = name in working
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


def setting(stage: Stage) -> dict[str, Any]:
    """What a stage's experts divide among them: p(σ), and the sampler's steps."""
    return {
        "resolution": stage.resolution,
        "noise": {"P_mean": stage.P_mean, "P_std": stage.P_std},
        "sampling": {
            **stage.sampling.settings(),
            "sigmas": edm_grid(stage.sampling.steps)[:-1].tolist(),
        },
    }


def seats(plan: Plan, stage_name: str, chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """The ensemble's seats, the highest noise first, and who works there; none while a tree grows.

    Args:
        chosen: seat → ``stage/expert``, or ``champion/stage/expert``, once it is decided.
    """
    if (judged := plan.verdicts.get(f"evaluate/{stage_name}/ensemble")) is None:
        return []
    found = []
    for seat, bounds in judged.node.settings["stages"][-1]["experts"].items():
        low, high = Interval(*bounds).bounds(plan.spec.stages[stage_name].noise)
        whose, _, expert = chosen.get(seat, f"{stage_name}/{seat}").rpartition("/")
        found.append(
            {
                "seat": seat,
                "expert": f"champion's {expert}" if whose.startswith("champion/") else expert,
                "sigma_lo": low,
                "sigma_hi": None if high == float("inf") else high,
            }
        )
    return sorted(found, key=lambda piece: -piece["sigma_lo"])


def newest_sheet(folder: str, manifest: Mapping[str, Any]) -> str | None:
    """The last picture that shows what an expert makes of its scenes."""
    sheets = [f for f in manifest.get("files", ()) if f.startswith("samples/")]
    return f"{folder}/{max(sheets)}" if sheets else None


def at_work(stage: Mapping[str, Any]) -> list[tuple[float, list[str]]]:
    """For every sampling step its σ and who is asked in it: with Heun's method it may be two.

    Nothing while a tree grows.
    """
    sigmas = stage["sampling"]["sigmas"] if stage["ensemble"] else []
    asked = [next(p["expert"] for p in stage["ensemble"] if s >= p["sigma_lo"]) for s in sigmas]
    after = [*asked[1:], *asked[-1:]] if stage["sampling"]["solver"] == "heun" else asked
    return [
        (sigma, list(dict.fromkeys(pair)))
        for sigma, *pair in zip(sigmas, asked, after, strict=True)
    ]


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
    return sigma_text(low, math.inf if high is None else high)


def gain_text(expert: Mapping[str, Any]) -> str:
    m = expert["metrics"]
    if "val_gain" not in m:
        return f"val loss {m['val_loss']:.4f}" if "val_loss" in m else ""
    return (
        f"val loss {m['val_loss']:.4f} (parent {m['val_loss_parent']:.4f}, "
        f"gain {m['val_gain']:+.4f} [{m['val_gain_low']:+.4f}, {m['val_gain_high']:+.4f}])"
    )


def state_text(expert: Mapping[str, Any]) -> str:
    return "refused" if expert.get("adopted") is False else str(expert["state"])


LABEL = 20  # characters of an expert's name with its branches, or more


def text(tree: Mapping[str, Any]) -> str:
    """For a terminal."""
    labels = "".join(f"  {label}" for label in tree.get("labels", ()))
    lines = [f"{tree['pipeline']}  {tree['execution'] or ''}  {tree['state']}{labels}"]
    for stage_name, stage in tree["stages"].items():
        lines.append(stage_name)
        found = [
            (f"{branches}{'●' if e['in_ensemble'] else '○'} {name}", e)
            for _, branches, name, e in rows(stage["experts"])
        ]
        width = max(LABEL, *(len(label) for label, _ in found))
        for label, e in found:
            lines.append(
                f"  {label:<{width}} {interval_text(e):<24} {e['images']:>9,} images  "
                f"{state_text(e):<9} {gain_text(e)}".rstrip()
            )
            if e.get("why"):
                lines.append(f"  {'':<20} {e['why']}")
        lines += ["  ● in the ensemble", ""]
        for table in (
            evaluation_table(stage["evaluations"]),
            comparison_table(stage.get("compared", {})),
            decision_table(stage),
        ):
            lines += [*aligned(table), ""] if table else []
        if end := stage.get("end"):
            lines += [f"  it grows no further: {end}", ""]
    return "\n".join(lines)


COLUMNS = {
    "kernel_distance": ("KID", "↓"),
    "frechet_distance": ("Fréchet", "↓"),
    "clip_score": ("CLIP", "↑"),
    "val_loss": ("val loss", "↓"),
}
"""Of what every evaluation may have; further metrics' own stand before them, more is better."""

HIDDEN = ("_ci95", "_pictures")
"""Ends the names of numbers that belong to others."""


def columns(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Measure → the head of its column, for all that is measured in some evaluation."""
    seen = {k for m in evaluations.values() for k in m if "/" not in k and not k.endswith(HIDDEN)}
    own = {k: f"{k.replace('_', ' ')} ↑" for k in sorted(seen - set(COLUMNS))}
    return own | {k: " ".join(head) for k, head in COLUMNS.items() if k in seen}


FEW = 10
"""Of fewer pictures an interval says nothing: that of a share would reach beyond 0 and 1."""


def measured(metrics: Mapping[str, float], key: str) -> str:
    """A number with half its 95 % confidence interval, where it has one; of few pictures, with
    how many."""
    if key not in metrics:
        return "–"
    half, pictures = metrics.get(f"{key}_ci95"), metrics.get(f"{key}_pictures")
    if pictures and pictures < FEW:
        return f"{metrics[key]:.3f} of {pictures:.0f}"
    return f"{metrics[key]:.3f}" + (f" ±{half:.3f}".replace("±0.", "±.") if half else "")


GROUPS = {
    "ensemble": "ensemble",
    "champion": "champion",
    SINGLE: "single model, same budget",
    "root": "root alone",
    f"ensemble{BEFORE}": "ensemble, the champion's captions",
    f"champion{BEFORE}": "champion, its own captions",
}


CONTROLS = {
    "enlarged/": "pictures of the stage below, enlarged",
    "untrained/": "untrained",
    "shuffled/": "ensemble, captions shuffled",
    "real/": "real pictures",
}


def evaluation_table(evaluations: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A header row and one row a model, the controls below; empty without evaluations."""
    heads = columns(evaluations)
    if not heads:
        return []
    table = [["", *heads.values()]]
    for group, label in GROUPS.items():
        if m := evaluations.get(group):
            table.append([label + of_pictures(m), *(measured(m, k) for k in heads)])
    controls = evaluations.get("ensemble", {})
    for prefix, label in CONTROLS.items():
        row = [measured(controls, prefix + k) for k in heads]
        if set(row) != {"–"}:
            table.append([label + of_pictures(controls, prefix), *row])
    return table


def of_pictures(metrics: Mapping[str, float], prefix: str = "") -> str:
    """Of how many drawn pictures numbers are, the losses' aside; nothing where nobody knows."""
    counts = {
        int(value)
        for key, value in metrics.items()
        if key.startswith(prefix) and key.endswith("_pictures")
        if "/" not in (name := key.removeprefix(prefix)) and not name.startswith("val_loss")
    }
    return f", {max(counts):,} pictures" if counts else ""


def measure_text(measure: str) -> str:
    """A measure for people, and a loss by whose interval it is of: ``val loss, E9_511``."""
    name, _, part = measure.partition("/")
    head = COLUMNS.get(name, (name.replace("_", " "), ""))[0]
    return f"{head}, {part}" if part else head


def comparison_table(gains: Mapping[str, float]) -> list[list[str]]:
    """What the ensemble gains over the single model of its budget, measure by measure, of how many
    pictures."""
    rows = []
    for key, value in gains.items():
        if key.endswith(("_low", "_high", *HIDDEN)):
            continue
        low, high = gains[f"{key}_low"], gains[f"{key}_high"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
        head, count = measure_text(key.removeprefix("gain/")), gains.get(f"{key}_pictures")
        of = "–" if count is None else f"{int(count):,}"
        rows.append([head, f"{value:+.4f}", f"[{low:+.4f}, {high:+.4f}]", of, verdict])
    return (
        [["ensemble against single model", "gain", "95 %", "pictures", ""], *rows] if rows else []
    )


def decision_table(stage: Mapping[str, Any]) -> list[list[str]]:
    """How an adaptive stage grew: a header row and one row a decision; empty for any other."""
    rows = stage.get("decisions", [])
    keys = list(dict.fromkeys(k for row in rows for k in row))
    body = [[cell(row.get(k)) for k in keys] for row in rows]
    return [[k.replace("_", " ") for k in keys], *body] if rows else []


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  "
        + "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def markdown(tree: Mapping[str, Any]) -> str:
    """For the description of the execution's run."""
    labels = "".join(f", {label}" for label in tree.get("labels", ()))
    out = [f"### {tree['pipeline']}: {tree['state']}{labels}", ""]
    for stage_name, stage in tree["stages"].items():
        out += [f"**{stage_name}** (bold: in the ensemble)", ""]
        for depth, _, name, e in rows(stage["experts"]):
            label = f"**{name}**" if e["in_ensemble"] else name
            out.append(
                f"{'    ' * depth}- {label} · {interval_text(e)} · {e['images']:,} images · "
                f"{state_text(e)} · {gain_text(e)}"
            )
        for table in (
            evaluation_table(stage["evaluations"]),
            comparison_table(stage.get("compared", {})),
        ):
            if table:
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
