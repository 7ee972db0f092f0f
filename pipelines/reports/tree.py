"""The expert tree as JSON, text and Markdown; as HTML: :mod:`pipelines.reports.tree_page`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ediffi_core.noise import Interval, NoiseDistribution, edm_levels, sigma_text
from ediffi_core.tree import is_expert
from pipelines.dag.evaluation import BEFORE
from pipelines.dag.plan import SINGLE, Plan
from pipelines.formatting import AUXILIARY_SUFFIXES, align_columns
from pipelines.spec.groups import MERGED
from pipelines.spec.stage import Stage


def build(plan: Plan, execution: Any, manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Every stage's experts with interval, budget, state and gain, and its evaluations, as JSON.

    Some keys are optional: an expert's ``adopted`` (false if it did not beat its parent and an
    ancestor takes its slot) and ``why``; a growing stage's ``decisions`` and ``end``; and
    ``labels`` of the whole ensemble, such as ``champion``, which the caller adds.

    Args:
        execution: the run, an :class:`pipelines.runs.execution.Execution`; None before any run.
        manifests: node id → manifest, of the finished nodes.
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
                "picture": latest_samples(verdict.folder, manifest) or record.get("picture"),
            }
        found = {
            v.node.name.split("/")[1]: (v.folder, manifests[i])
            for i, v in plan.verdicts.items()
            if v.node.kind == "evaluate"
            and v.node.name.startswith(f"{stage_name}/")
            and i in manifests
        }
        adoption = manifests.get(f"adopt/{stage_name}", {}).get("info", {})
        for role, why in adoption.get("refused", {}).items():
            if (name := role.rpartition("/")[2]) in experts:
                experts[name] |= {"adopted": False, "why": why}
        stages[stage_name] = {
            **stage_settings(stage),
            "ensemble": ensemble_slots(plan, stage_name, adoption.get("seats", {})),
            "experts": experts,
            "evaluations": {group: dict(m["metrics"]) for group, (_, m) in found.items()},
            "compared": dict(manifests.get(f"compare/{stage_name}", {}).get("metrics", {})),
            "pictures": {
                group: f"{folder}/samples.png"
                for group, (folder, m) in found.items()
                if "samples.png" in m["files"]
            },
        }
        used = {slot["expert"] for slot in stages[stage_name]["ensemble"]}
        for name, expert in experts.items():
            expert["in_ensemble"] = name in used
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


def stage_settings(stage: Stage) -> dict[str, Any]:
    """A stage's resolution, noise distribution p(σ), and sampler with its σ at every step."""
    how = stage.sampling
    return {
        "resolution": stage.resolution,
        "noise": {"P_mean": stage.P_mean, "P_std": stage.P_std},
        "sampling": {
            **how.settings(),
            "sigmas": edm_levels(
                how.steps, sigma_min=how.sigma_min, sigma_max=how.sigma_max, rho=how.rho
            ),
        },
    }


def ensemble_slots(plan: Plan, stage_name: str, chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """The ensemble's slots with the expert in each, high noise first; none while the tree grows.

    Args:
        chosen: slot → ``stage/expert``, or ``champion/stage/expert``, once adoption is decided.
    """
    if (evaluated := plan.verdicts.get(f"evaluate/{stage_name}/ensemble")) is None:
        return []
    found = []
    for slot, bounds in evaluated.node.settings["stages"][-1]["experts"].items():
        low, high = Interval(*bounds).bounds(plan.spec.stages[stage_name].noise)
        whose, _, expert = chosen.get(slot, f"{stage_name}/{slot}").rpartition("/")
        found.append(
            {
                "seat": slot,
                "expert": f"champion's {expert}" if whose.startswith("champion/") else expert,
                "sigma_lo": low,
                "sigma_hi": None if high == float("inf") else high,
            }
        )
    return sorted(found, key=lambda slot: -slot["sigma_lo"])


def latest_samples(folder: str, manifest: Mapping[str, Any]) -> str | None:
    """Path in the store of the newest sheet of samples that an expert drew during training."""
    sheets = [f for f in manifest.get("files", ()) if f.startswith("samples/")]
    return f"{folder}/{max(sheets)}" if sheets else None


def experts_by_step(stage: Mapping[str, Any]) -> list[tuple[float, list[str]]]:
    """(σ, experts) of every sampling step; Heun's method may call two experts in one step.

    Empty while the tree grows.
    """
    sigmas = stage["sampling"]["sigmas"] if stage["ensemble"] else []
    called = [next(p["expert"] for p in stage["ensemble"] if s >= p["sigma_lo"]) for s in sigmas]
    following = [*called[1:], *called[-1:]]
    second = following if stage["sampling"]["solver"] == "heun" else called
    return [
        (sigma, list(dict.fromkeys(pair)))
        for sigma, *pair in zip(sigmas, called, second, strict=True)
    ]


TreeRow = tuple[int, str, str, dict[str, Any]]
"""Depth, branches to draw before the name, name, expert."""


def tree_rows(experts: Mapping[str, Any]) -> Iterator[TreeRow]:
    """The experts in tree order: from the root down, high noise first."""

    def below(parent: str | None, depth: int, lines: str) -> Iterator[TreeRow]:
        children = [(n, e) for n, e in experts.items() if e["parent"] == parent]
        children.sort(key=lambda item: (not is_expert(item[0]), -item[1]["sigma_lo"]))
        for name, expert in children:
            last = name == children[-1][0]
            drawn = lines + ("└─ " if last else "├─ ") if depth else ""
            yield depth, drawn, name, expert
            yield from below(name, depth + 1, lines + ("   " if last or not depth else "│  "))

    yield from below(None, 0, "")


def interval_text(expert: Mapping[str, Any]) -> str:
    """An expert's σ interval: ``σ ≥ 1.363``."""
    low, high = expert["sigma_lo"], expert["sigma_hi"]
    return sigma_text(low, math.inf if high is None else high)


def gain_text(expert: Mapping[str, Any]) -> str:
    """Validation loss, and the gain over the parent with its 95 % interval; empty if unmeasured."""
    m = expert["metrics"]
    if "val_gain" not in m:
        return f"val loss {m['val_loss']:.4f}" if "val_loss" in m else ""
    return (
        f"val loss {m['val_loss']:.4f} (parent {m['val_loss_parent']:.4f}, "
        f"gain {m['val_gain']:+.4f} [{m['val_gain_low']:+.4f}, {m['val_gain_high']:+.4f}])"
    )


def state_text(expert: Mapping[str, Any]) -> str:
    """State of an expert; ``refused`` if it did not enter the ensemble."""
    return "refused" if expert.get("adopted") is False else str(expert["state"])


MIN_LABEL_WIDTH = 20
"""Characters reserved for an expert's name with its branches."""


def text(tree: Mapping[str, Any]) -> str:
    """The tree for the terminal, with all its tables."""
    labels = "".join(f"  {label}" for label in tree.get("labels", ()))
    lines = [f"{tree['pipeline']}  {tree['execution'] or ''}  {tree['state']}{labels}"]
    for stage_name, stage in tree["stages"].items():
        lines.append(stage_name)
        found = [
            (f"{branches}{'●' if e['in_ensemble'] else '○'} {name}", e)
            for _, branches, name, e in tree_rows(stage["experts"])
        ]
        width = max(MIN_LABEL_WIDTH, *(len(label) for label, _ in found))
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
            set_table(stage["evaluations"]),
            comparison_table(stage.get("compared", {})),
            decision_table(stage),
        ):
            lines += [*table_lines(table), ""] if table else []
        if end := stage.get("end"):
            lines += [f"  growth ended: {end}", ""]
    return "\n".join(lines)


COMMON_METRICS = {
    "kernel_distance": ("KID", "↓"),
    "frechet_distance": ("Fréchet", "↓"),
    "clip_score": ("CLIP", "↑"),
    "val_loss": ("val loss", "↓"),
}
"""Metric → (heading, better direction), for metrics any pipeline may have. A pipeline's own
metrics come before them; of those, more is better."""


def metric_columns(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Metric → heading of its column, for all metrics of any evaluation."""
    keys = {k for metrics in evaluations.values() for k in metrics if "/" not in k}
    seen = {k for k in keys if not k.endswith(AUXILIARY_SUFFIXES)}
    own = {k: f"{k.replace('_', ' ')} ↑" for k in sorted(seen - set(COMMON_METRICS))}
    return own | {k: " ".join(head) for k, head in COMMON_METRICS.items() if k in seen}


MIN_PICTURES = 10
"""Below this, a metric shows its number of pictures and no interval, which for a share would reach
beyond 0 and 1."""


def metric_text(metrics: Mapping[str, float], key: str) -> str:
    """A metric with half its 95 % confidence interval, or with the number of pictures if few."""
    if key not in metrics:
        return "–"
    half, pictures = metrics.get(f"{key}_ci95"), metrics.get(f"{key}_pictures")
    if pictures and pictures < MIN_PICTURES:
        return f"{metrics[key]:.3f} of {pictures:.0f}"
    return f"{metrics[key]:.3f}" + (f" ±{half:.3f}".replace("±0.", "±.") if half else "")


GROUPS = {
    "ensemble": "ensemble",
    "champion": "champion",
    SINGLE: "single model, same budget",
    "root": "root alone",
    MERGED: "experts merged",
    f"ensemble{BEFORE}": "ensemble, the champion's captions",
    f"champion{BEFORE}": "champion, its own captions",
}
"""Evaluated model → label of its row; baselines and routings are called by their own names."""


def group_labels(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Evaluated model → label, for those with any metric, in the order in which they are shown."""
    measured = [group for group, metrics in evaluations.items() if metrics]
    known = {group: label for group, label in GROUPS.items() if group in measured}
    return known | {group: group for group in measured if group not in known}


CONTROLS = {
    "enlarged/": "pictures of the stage below, enlarged",
    "untrained/": "untrained",
    "shuffled/": "ensemble, captions shuffled",
    "real/": "real pictures",
}
"""Prefix of a control's metrics → label of its row."""


def evaluation_table(evaluations: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A heading, one row per model and one per control; empty without evaluations."""
    heads = metric_columns(evaluations)
    if not heads:
        return []
    table = [["", *heads.values()]]
    for group, label in group_labels(evaluations).items():
        m = evaluations[group]
        table.append([label + pictures_text(m), *(metric_text(m, k) for k in heads)])
    controls = evaluations.get("ensemble", {})
    for prefix, label in CONTROLS.items():
        row = [metric_text(controls, prefix + k) for k in heads]
        if set(row) != {"–"}:
            table.append([label + pictures_text(controls, prefix), *row])
    return table


SET_MEASURES = {
    "fid": "FID ↓",
    "kid": "KID ↓",
    "cmmd": "CMMD ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
    "memorised": "memorised ↓",
    "authenticity": "authenticity ↑",
}
"""Measure of a set of pictures → heading; its metrics are named ``measure/features``."""


def set_table(evaluations: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Measures of sets of pictures: a heading with the models, one row per measure and features.

    Empty if no evaluation has any.
    """
    columns = group_labels(evaluations)
    keys = dict.fromkeys(
        key
        for group in columns
        for key in evaluations[group]
        if key.partition("/")[0] in SET_MEASURES
        and not key.endswith(("_low", "_high", *AUXILIARY_SUFFIXES))
    )
    order = list(SET_MEASURES)
    body = []
    for key in sorted(keys, key=lambda k: (k.partition("/")[2], order.index(k.partition("/")[0]))):
        measure, _, features = key.partition("/")
        counts = {int(m[f"{key}_pictures"]) for m in evaluations.values() if key in m}
        label = f"{SET_MEASURES[measure]} {features}, {max(counts):,} pictures"
        body.append([label, *(metric_text(evaluations[group], key) for group in columns)])
    return [["", *columns.values()], *body] if body else []


def pictures_text(metrics: Mapping[str, float], prefix: str = "") -> str:
    """How many drawn pictures the metrics are over, losses aside; empty if that is unknown."""
    counts = {
        int(value)
        for key, value in metrics.items()
        if key.startswith(prefix) and key.endswith("_pictures")
        if "/" not in (name := key.removeprefix(prefix)) and not name.startswith("val_loss")
    }
    return f", {max(counts):,} pictures" if counts else ""


def measure_text(measure: str) -> str:
    """Heading of a metric; a loss on one expert's interval names it: ``val loss, E9_511``."""
    name, _, part = measure.partition("/")
    head = COMMON_METRICS.get(name, (name.replace("_", " "), ""))[0]
    return f"{head}, {part}" if part else head


def comparison_table(gains: Mapping[str, float]) -> list[list[str]]:
    """The ensemble's gain over the single model of the same budget; empty if not compared.

    One row per metric: gain, 95 % interval, number of pictures, verdict.
    """
    rows = []
    for key, value in gains.items():
        if key.endswith(("_low", "_high", *AUXILIARY_SUFFIXES)):
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
    """How an adaptive stage grew: a heading and one row per decision; empty for other stages."""
    rows = stage.get("decisions", [])
    keys = list(dict.fromkeys(k for row in rows for k in row))
    body = [[cell_text(row.get(k)) for k in keys] for row in rows]
    return [[k.replace("_", " ") for k in keys], *body] if rows else []


def cell_text(value: Any) -> str:
    """A value of a decision for its table."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table_lines(table: Sequence[Sequence[str]]) -> list[str]:
    """Indented lines for the terminal: first column aligned left, the others right."""
    return [f"  {line}" for line in align_columns(table, right=range(1, len(table[0])))]


def markdown(tree: Mapping[str, Any]) -> str:
    """The tree as Markdown, for the description of the run in MLflow."""
    labels = "".join(f", {label}" for label in tree.get("labels", ()))
    out = [f"### {tree['pipeline']}: {tree['state']}{labels}"]
    for stage_name, stage in tree["stages"].items():
        out += ["", f"**{stage_name}** (bold: in the ensemble)", ""]
        for depth, _, name, e in tree_rows(stage["experts"]):
            label = f"**{name}**" if e["in_ensemble"] else name
            out.append(
                f"{'    ' * depth}- {label} · {interval_text(e)} · {e['images']:,} images · "
                f"{state_text(e)} · {gain_text(e)}"
            )
        for table in (
            evaluation_table(stage["evaluations"]),
            set_table(stage["evaluations"]),
            comparison_table(stage.get("compared", {})),
        ):
            if table:
                out += ["", "| " + " | ".join(table[0]) + " |", "|" + " --- |" * len(table[0])]
                out += ["| " + " | ".join(row) + " |" for row in table[1:]]
    return "\n".join(out) + "\n"


def headline_metrics(tree: Mapping[str, Any]) -> dict[str, float]:
    """All evaluation metrics as ``stage/model/metric``, for the run's own page in MLflow."""
    return {
        f"{stage}/{group}/{key}": value
        for stage, content in tree["stages"].items()
        for group, metrics in content["evaluations"].items()
        for key, value in metrics.items()
    }
