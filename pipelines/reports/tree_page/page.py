"""Render a tree as HTML: prepares the values for ``page.html``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from pipelines.reports import tree as tree_view
from pipelines.reports.templates import page_template
from pipelines.reports.tree_page import drawing
from pipelines.reports.tree_page.drawing import Axis

Links = Mapping[str, Mapping[str, str]]
"""Node id → ``id`` and ``address`` of its run in MLflow; ``""`` stands for the whole execution."""


def html(
    tree: Mapping[str, Any],
    *,
    links: Links | None = None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Render the page; the same tree gives the same bytes.

    Args:
        tree: from :func:`pipelines.reports.tree.build`.
        links: the nodes' runs in MLflow, if known; ``address`` is empty without a server.
        pictures: path in the store → thumbnail, from :func:`thumbnails`.

    Raises:
        ValueError: An earlier version wrote the tree, and it lacks what the page shows.
    """
    if any("ensemble" not in stage for stage in tree["stages"].values()):
        raise ValueError(
            f"the tree of {tree['execution']} was written by an earlier version and lacks p(σ); "
            "run its spec again (nothing is trained again) and draw the tree of that run"
        )
    pipeline, execution, links = tree["pipeline"], tree["execution"], links or {}
    return page_template("reports/tree_page").render(
        pipeline=pipeline,
        execution=execution or "",
        title=f"{pipeline} · {execution}" if execution else pipeline,
        state=tree["state"],
        labels=tree.get("labels", []),
        run=links.get(""),
        stages=[_stage(name, s, links, pictures or {}) for name, s in tree["stages"].items()],
    )


def _guidance(stored: Any) -> str:
    """Guidance as nodes store it: a scale, or a mapping."""
    if not isinstance(stored, dict):
        return f"{stored:g}"
    scales = [f"{stored['scale']:g}", *(f"{w:g} in {e}" for e, w in stored["experts"].items())]
    low, high = stored["interval"] or (None, None)
    return ", ".join(scales) + (f" at σ from {low:g} to {high:g}" if stored["interval"] else "")


def _stage(
    name: str, stage: Mapping[str, Any], links: Links, pictures: Mapping[str, str]
) -> dict[str, Any]:
    sampling, side = stage["sampling"], stage["resolution"]
    axis = Axis.covering(stage["noise"], sampling["sigmas"])
    colours = drawing.hues([slot["expert"] for slot in stage["ensemble"]])
    by_step = tree_view.experts_by_step(stage)
    experts = _experts(name, stage, axis, links, pictures)
    return {
        "name": name,
        "facts": f"{side}×{side} pixels, {sampling['steps']} steps of "
        f"{sampling['solver']}, guidance {_guidance(sampling['guidance'])}",
        "colours": colours,
        "curve": _curve(stage, axis, colours, by_step),
        "labels": axis.labels(),
        "shares": [
            {"expert": expert, "steps": len(list(group))}
            for expert, group in groupby(called[0] for _, called in by_step)
        ],
        "steps": [
            {"sigma": f"{sigma:.3g}", "at": axis.at(sigma), "experts": called}
            for sigma, called in by_step
        ],
        "experts": experts,
        "has_runs": any(e["run"] for e in experts),
        "sheets": [e for e in experts if e["thumbnail"]],
        "evaluations": tree_view.evaluation_table(stage["evaluations"]),
        "sets": tree_view.set_table(stage["evaluations"]),
        "compared": tree_view.comparison_table(stage.get("compared", {})),
        "decisions": tree_view.decision_table(stage),
        "end": stage.get("end", ""),
        "drawn": pictures.get(stage["pictures"].get("ensemble", "")),
        "drawn_run": links.get(f"evaluate/{name}/ensemble"),
    }


def _curve(
    stage: Mapping[str, Any],
    axis: Axis,
    colours: Mapping[str, float],
    by_step: list[tuple[float, list[str]]],
) -> dict[str, Any]:
    points = drawing.curve(axis, stage["noise"])
    return {
        "outline": drawing.path(points),
        "parts": [
            {
                "hue": colours[slot["expert"]],
                "area": drawing.area(points, axis.at(slot["sigma_lo"]), axis.at(slot["sigma_hi"])),
                "ticks": " ".join(
                    f"M{axis.at(sigma):g} 104 V114"
                    for sigma, called in by_step
                    if called[0] == slot["expert"]
                ),
            }
            for slot in stage["ensemble"]
        ],
    }


def _experts(
    stage_name: str,
    stage: Mapping[str, Any],
    axis: Axis,
    links: Links,
    pictures: Mapping[str, str],
) -> list[dict[str, Any]]:
    colours = drawing.hues([slot["expert"] for slot in stage["ensemble"]])
    gains = drawing.gains(stage["experts"])
    by_step = tree_view.experts_by_step(stage)
    out = []
    for _, branches, name, e in tree_view.tree_rows(stage["experts"]):
        left, right = axis.at(e["sigma_lo"]), axis.at(e["sigma_hi"])
        sha = e["weights_sha256"]
        out.append(
            {
                "name": name,
                "branches": branches,
                "hue": colours.get(name),
                "left": left,
                "width": round(right - left, 2),
                "interval": tree_view.interval_text(e),
                "images": f"{e['images']:,}",
                "state": tree_view.state_text(e),
                "why": e.get("why", ""),
                "loss": f"{e['metrics']['val_loss']:.4f}" if "val_loss" in e["metrics"] else "–",
                "gain": gains.get(name),
                "steps": sum(called[0] == name for _, called in by_step),
                "run": links.get(f"train/{stage_name}/{name}"),
                "weights": sha[:12] if sha else "",
                "thumbnail": pictures.get(e["picture"] or ""),
            }
        )
    return out
