"""Snapshots of averages, and losses over the length of the average, for ``ediffi ema``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.formatting import align_columns, byte_size
from pipelines.models.averages import Trained
from pipelines.models.stages import slots_of
from pipelines.reports.tree import interval_text
from pipelines.store.artifacts import Store

ROUGH = 0.1
"""An average with a larger error of its mixture is marked."""


# -- snapshots -------------------------------------------------------------------------------------


def listing(store: Store, manifest: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Any]:
    """The snapshots of every expert as JSON.

    Args:
        manifest: contents of an ``ensemble.json``.
        stages: names of the stages to list.
    """
    found = {}
    for settings in manifest["stages"]:
        if settings["name"] not in stages:
            continue
        experts = {}
        slots = slots_of(settings, manifest["weights"])
        for slot, at in sorted(slots.items(), key=lambda item: -item[1].interval.q_lo):
            trained = Trained.of(store, at.path)
            experts[slot] = {
                "expert": trained.name,
                "images": trained.images,
                "snapshots": [
                    {"images": s.images, "length": s.length, "bytes": s.bytes}
                    for s in trained.snapshots
                ],
            }
        own = settings["sampling"].get("ema_length")
        found[settings["name"]] = {"ema_length": own, "experts": experts}
    return {"model": manifest.get("model"), "stages": found}


def listing_text(found: Mapping[str, Any]) -> str:
    """The list for the terminal."""
    lines: list[str] = []
    for name, stage in found["stages"].items():
        own = stage["ema_length"]
        lines += ["", f"{name}: {_weights(own)}"] if lines else [f"{name}: {_weights(own)}"]
        rows = [["slot", "expert", "images", "snapshots", "at", "lengths", "size"]]
        missing = False
        for slot, expert in stage["experts"].items():
            snapshots = expert["snapshots"]
            missing |= not snapshots
            times = sorted({s["images"] for s in snapshots})
            lengths = sorted({s["length"] for s in snapshots})
            span = f"{times[0]:,} to {times[-1]:,}" if times[1:] else "".join(map(str, times))
            rows.append(
                [
                    slot,
                    expert["expert"],
                    f"{expert['images']:,}",
                    f"{len(times)}",
                    span,
                    ", ".join(f"{length:g}" for length in lengths),
                    byte_size(sum(s["bytes"] for s in snapshots)) if snapshots else "",
                ]
            )
        lines += [f"  {line}" for line in align_columns(rows, right={2, 3, 6})]
        if missing:
            lines.append(
                f"  an expert without snapshots has its stored weights only; for others, set "
                f"`stages.{name}.training.snapshot_images` and train it again"
            )
    return "\n".join(lines)


def _weights(length: float | None) -> str:
    if length is None:
        return "draws with the stored weights"
    return f"draws with averages of length {length:g}"


# -- losses ----------------------------------------------------------------------------------------


def losses_text(found: Mapping[str, Any]) -> str:
    """The table of losses for the terminal, and what it says.

    Args:
        found: JSON of :class:`pipelines.steps.ema_losses.Found`.
    """
    lines = [
        f"{found['stage']}: denoising loss, the mean over p(σ) of {found['draws']:,} draws per "
        f"expert, {found['pictures']:,} validation pictures"
    ]
    parts = {
        f"{name}  {interval_text(expert)}": expert for name, expert in found["experts"].items()
    }
    if len(parts) > 1:
        parts["all experts"] = found["overall"]
    rough = False
    for title, part in parts.items():
        rows = [["length", "loss", "±", "gain over the stored weights", "error", ""]]
        for row in part["rows"]:
            marks = ["best"] if row["length"] == part["best"] else []
            if row["error"] > ROUGH:
                marks.append("rough")
                rough = True
            half = None if row["loss_low"] is None else row["loss"] - row["loss_low"]
            rows.append(
                [
                    _name(row["length"]),
                    _number(row["loss"], ".4f"),
                    _number(half, ".4f"),
                    _gain(row),
                    f"{row['error']:.1%}" if row["length"] is not None else "",
                    ", ".join(marks),
                ]
            )
        lines += ["", title, *(f"  {line}" for line in align_columns(rows, right={1, 2, 4}))]
    lines += ["", verdict(found["overall"])]
    lines.append("± and [ ] are 95 % intervals; those of the gains hold together for all lengths")
    if rough:
        lines.append(
            "rough: the snapshots make up this length with an error above "
            f"{ROUGH:.0%}; more of them, or other `snapshot_lengths`, would reduce it"
        )
    return "\n".join(lines)


def verdict(overall: Mapping[str, Any]) -> str:
    """One line: which length is best for the whole ensemble, and whether that is certain."""
    lowest = next(row for row in overall["rows"] if row["length"] == overall["best"])
    if lowest["length"] is None:
        return "best: the stored weights; no length has a lower mean loss"
    certain = lowest["gain_low"] is not None and lowest["gain_low"] > 0
    note = "" if certain else "; its interval includes 0, so this may be chance"
    return f"best: length {lowest['length']:g}, gain {_gain(lowest)}{note}"


def _name(length: float | None) -> str:
    return "stored" if length is None else f"{length:g}"


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _gain(row: Mapping[str, Any]) -> str:
    if "gain" not in row:
        return ""
    low, high = (_number(row[f"gain_{end}"], "+.4f") for end in ("low", "high"))
    return f"{_number(row['gain'], '+.4f')} [{low}, {high}]"


def plot(found: Mapping[str, Any]) -> bytes:
    """A PNG of the gain over the stored weights, over the length, for each expert.

    Args:
        found: JSON of :class:`pipelines.steps.ema_losses.Found`.
    """
    from matplotlib.figure import Figure

    parts = {f"{n}, {interval_text(e)}": e for n, e in found["experts"].items()}
    if len(parts) > 1:
        parts["all experts"] = found["overall"]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="0.4", linewidth=1)
    for number, (label, part) in enumerate(parts.items()):
        rows = sorted(
            (r for r in part["rows"] if r.get("gain") is not None), key=lambda r: r["length"]
        )
        shift = 1 + 0.012 * (number - (len(parts) - 1) / 2)  # so that whiskers do not overlap
        low, high = (
            [abs(r[f"gain_{end}"] - r["gain"]) if r[f"gain_{end}"] is not None else 0 for r in rows]
            for end in ("low", "high")
        )
        axes.errorbar(
            [r["length"] * shift for r in rows],
            [r["gain"] for r in rows],
            yerr=[low, high],
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=2.2 if part is found["overall"] else 1.2,
            color="black" if part is found["overall"] else None,
            label=label,
        )
    axes.set_xscale("log")
    lengths = sorted(r["length"] for r in found["overall"]["rows"] if r["length"] is not None)
    axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("length of the average (σ_rel, a share of the training)")
    axes.set_ylabel("gain in denoising loss\nover the stored weights")
    axes.set_title(f"{found['stage']}: higher is better; whiskers are 95 % intervals", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=150)
    return sink.getvalue()
