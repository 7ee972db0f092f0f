"""A tree's numbers and drawings, laid out for the template beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from pipelines.reports import tree as tree_view
from pipelines.reports.tree_page import drawing
from pipelines.reports.tree_page.drawing import Axis

Links = Mapping[str, Mapping[str, str]]
"""Node → ``id`` and ``address`` of its run in MLflow; the execution's own is that of ``""``."""


def html(
    tree: Mapping[str, Any],
    *,
    links: Links | None = None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The page; the same bytes for the same tree.

    Args:
        links: the nodes' runs in MLflow, as far as they are known; without an ``address`` where
            there is no server to ask.
        pictures: path in the store → its thumbnail, from :func:`thumbnails`.

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
        loader=PackageLoader("pipelines", "reports/tree_page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pipeline, execution, links = tree["pipeline"], tree["execution"], links or {}
    return environment.get_template("page.html").render(
        pipeline=pipeline,
        execution=execution or "",
        title=f"{pipeline} · {execution}" if execution else pipeline,
        state=tree["state"],
        labels=tree.get("labels", []),
        run=links.get(""),
        stages=[_stage(name, s, links, pictures or {}) for name, s in tree["stages"].items()],
    )


def _stage(
    name: str, stage: Mapping[str, Any], links: Links, pictures: Mapping[str, str]
) -> dict[str, Any]:
    sampling, side = stage["sampling"], stage["resolution"]
    axis = Axis.of(stage["noise"], sampling["sigmas"])
    colours = drawing.hues([piece["expert"] for piece in stage["ensemble"]])
    works = tree_view.experts_by_step(stage)
    experts = _experts(name, stage, axis, links, pictures)
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
        "drawn_run": links.get(f"evaluate/{name}/ensemble"),
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
    links: Links,
    pictures: Mapping[str, str],
) -> list[dict[str, Any]]:
    colours = drawing.hues([piece["expert"] for piece in stage["ensemble"]])
    gains = drawing.gains(stage["experts"])
    works = tree_view.experts_by_step(stage)
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
                "run": links.get(f"train/{stage_name}/{name}"),
                "weights": sha[:12] if sha else "",
                "thumbnail": pictures.get(e["picture"] or ""),
            }
        )
    return out
