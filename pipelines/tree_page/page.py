"""A tree's numbers and drawings, laid out for the template beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from pipelines import tree_view
from pipelines.lineage.address import Runs
from pipelines.tree_page import drawing
from pipelines.tree_page.drawing import Axis


def html(
    tree: Mapping[str, Any], *, runs: Runs | None = None, pictures: Mapping[str, str] | None = None
) -> str:
    """The page; the same bytes for the same tree.

    Args:
        runs: where the nodes' runs are in MLflow, as far as it is known.
        pictures: path in the store → its thumbnail (:func:`pipelines.tree_page.thumbnails`).

    Raises:
        ValueError: The tree is of a run of an earlier version, which kept less of it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if any("ensemble" not in stage for stage in tree["stages"].values()):
        raise ValueError(
            f"the tree of {tree['execution']} was kept by an earlier version, without p(σ); "
            "run its spec again, which trains nothing anew, and draw that run's"
        )
    environment = Environment(
        loader=PackageLoader("pipelines", "tree_page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pipeline, execution = tree["pipeline"], tree["execution"]
    return environment.get_template("page.html").render(
        pipeline=pipeline,
        execution=execution or "",
        title=f"{pipeline} · {execution}" if execution else pipeline,
        state=tree["state"],
        labels=tree.get("labels", []),
        run=_link("", runs),
        stages=[_stage(name, s, runs, pictures or {}) for name, s in tree["stages"].items()],
    )


def _link(node: str, runs: Runs | None) -> dict[str, str] | None:
    """A node's run: what it is called and, where MLflow is a server, its address."""
    run = runs.of_node.get(node) if runs else None
    return {"id": run, "address": runs.address(node)} if runs and run else None


def _stage(
    name: str, stage: Mapping[str, Any], runs: Runs | None, pictures: Mapping[str, str]
) -> dict[str, Any]:
    sampling, side = stage["sampling"], stage["resolution"]
    axis = Axis.of(stage["noise"], sampling["sigmas"])
    colours = drawing.hues([piece["expert"] for piece in stage["ensemble"]])
    works = tree_view.at_work(stage)
    experts = _experts(name, stage, axis, runs, pictures)
    return {
        "name": name,
        "facts": f"{side}×{side} pixels, {sampling['steps']} steps of "
        f"{sampling['solver']}, guidance {sampling['guidance']:g}",
        "colours": colours,
        "curve": _curve(stage, axis, colours, works),
        "labels": axis.labels(),
        "shares": [
            {"expert": expert, "steps": len(list(group))}
            for expert, group in groupby(asked[0] for _, asked in works)
        ],
        "steps": [
            {"sigma": f"{sigma:.3g}", "at": axis.at(sigma), "experts": asked}
            for sigma, asked in works
        ],
        "experts": experts,
        "has_runs": any(e["run"] for e in experts),
        "sheets": [e for e in experts if e["thumbnail"]],
        "evaluations": tree_view.evaluation_table(stage["evaluations"]),
        "compared": tree_view.comparison_table(stage.get("compared", {})),
        "decisions": tree_view.decision_table(stage),
        "end": stage.get("end", ""),
        "drawn": pictures.get(stage["pictures"].get("ensemble", "")),
        "drawn_run": _link(f"evaluate/{name}/ensemble", runs),
    }


def _curve(
    stage: Mapping[str, Any],
    axis: Axis,
    colours: Mapping[str, float],
    works: list[tuple[float, list[str]]],
) -> dict[str, Any]:
    points = drawing.curve(axis, stage["noise"])
    return {
        "outline": drawing.path(points),
        "parts": [
            {
                "hue": colours[piece["expert"]],
                "area": drawing.area(
                    points, axis.at(piece["sigma_lo"]), axis.at(piece["sigma_hi"])
                ),
                "ticks": " ".join(
                    f"M{axis.at(sigma):g} 104 V114"
                    for sigma, asked in works
                    if asked[0] == piece["expert"]
                ),
            }
            for piece in stage["ensemble"]
        ],
    }


def _experts(
    stage_name: str,
    stage: Mapping[str, Any],
    axis: Axis,
    runs: Runs | None,
    pictures: Mapping[str, str],
) -> list[dict[str, Any]]:
    colours = drawing.hues([piece["expert"] for piece in stage["ensemble"]])
    gains = drawing.gains(stage["experts"])
    works = tree_view.at_work(stage)
    out = []
    for _, branches, name, e in tree_view.rows(stage["experts"]):
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
                "steps": sum(asked[0] == name for _, asked in works),
                "run": _link(f"train/{stage_name}/{name}", runs),
                "weights": sha[:12] if sha else "",
                "thumbnail": pictures.get(e["picture"] or ""),
            }
        )
    return out
