"""Results of a made-up study with all kinds of figures: numbers that a report can be drawn from."""

import io
import math

import numpy as np
from PIL import Image

from ediffi_core.noise import NoiseDistribution
from pipelines.spec.study import Study
from pipelines.studies.results import Cell, Group, Results

NOISE = NoiseDistribution(P_mean=-0.5, P_std=1.2)
STRATA, PICTURES = 8, 64
LOSSES = (0.62, 0.40, 0.31, 0.26, 0.225, 0.21, 0.20, 0.23)
GROUPS = ("ensemble", "single", "swapped")
PROVENANCE = {"commit": "0123456789", "machine": "two cores", "torch": "2.11"}

MODELS = {g: {"group": g} for g in ("ensemble", "single")}
PAYS = {"label": "two experts against one model", "mine": {"group": "ensemble"},
        "theirs": {"group": "single"}}  # fmt: skip
SWAPPED = {"label": "experts at each other's noise levels against one model",
           "mine": {"group": "swapped"}, "theirs": {"group": "single"}}  # fmt: skip
EACH = {"data": "all"}

FIGURES = {
    "gains": {"title": "Gain of every comparison", "kind": "gains", "each": EACH,
              "comparisons": [PAYS, SWAPPED], "measures": ["val_loss", "concepts"],
              "says": "Experts gain a **few percent** of the loss."},
    "noise": {"title": "Gain by noise level", "kind": "gain_by_noise", "each": EACH,
              "comparisons": [PAYS, {**PAYS, "label": "the same, three experts",
                                     "at": {"split": "three"}}]},
    "losses": {"title": "Losses by noise level", "kind": "losses_by_noise", "each": EACH,
               "models": MODELS},
    "against": {"title": "When experts begin to pay", "kind": "gain_against", "axis": "images",
                "comparisons": [PAYS, {**PAYS, "label": "three experts",
                                       "at": {"split": "three"}}], "each": EACH},
    "gradients": {"title": "How alike noise levels are", "kind": "gradients",
                  "comparisons": [PAYS]},
    "guidance": {"title": "Quality against alignment", "kind": "guidance", "models": MODELS,
                 "measures": ["concepts", "kernel_distance"]},
    "text": {"title": "What the text does", "kind": "text_effect", "models": MODELS},
    "switch": {"title": "When the picture is decided", "kind": "prompt_switch", "models": MODELS},
    "encoders": {"title": "What each text encoder does", "kind": "encoders", "models": MODELS},
    "seconds": {"title": "Time against capacity", "kind": "seconds", "models": MODELS},
    "pictures": {"title": "Samples", "kind": "pictures", "models": MODELS, "each": EACH},
}  # fmt: skip

CLAIMS = {
    "pays": {**PAYS, "says": "At equal images, two experts beat one model on {data}.",
             "each": EACH},
    "wrong-routing": {**SWAPPED, "says": "Experts at the wrong noise levels are better than one "
                      "model."},
    "concepts": {**PAYS, "says": "Two experts draw what the caption asks for as well as one model.",
                 "measure": "concepts", "holds": "equivalent", "margin": 0.05},
}  # fmt: skip


def study(**changes):
    """A study with every kind of figure."""
    return Study.model_validate(
        {
            "study": "made",
            "title": "When does dividing the noise among experts pay?",
            "asks": "At **equal training images** and equal cost of sampling, do experts by noise "
            "level beat one model?",
            "base": "base.yaml",
            "axes": {
                "seed": list(range(5)),
                "data": {"emoji": {}, "fashion": {}},
                "split": {"two": {}, "three": {}},
                "images": [50000, 100000, 200000, 400000],
            },
            "experiments": {
                "branch": {"asks": "Does branching beat training on?",
                           "cells": {"seed": "all", "data": "all", "split": "all",
                                     "images": "all"}},
            },
            "claims": CLAIMS,
            "figures": FIGURES,
            "report": [
                {"title": "Experts against one model", "text": "Both had the *same* images.",
                 "figures": ["gains", "noise", "losses", "against"], "claims": ["pays"]},
                {"title": "Why", "text": "Noise levels far apart are unlike.",
                 "figures": ["gradients", "text", "switch"]},
                {"title": "Pictures", "figures": ["guidance", "encoders", "seconds", "pictures"]},
            ],
            **changes,
        }
    )  # fmt: skip


def results(made=None, seeds=5):
    """Finished cells of the study: experts lose with few images and gain with many."""
    made = made or study()
    cells = [
        _cell({"seed": str(seed), "data": data, "split": split, "images": str(images)})
        for data in made.axes["data"]
        for split in made.axes["split"]
        for images in made.axes["images"]
        for seed in made.axes["seed"][:seeds]
    ]
    return Results(study=made, cells=tuple(cells))


def read(path):
    """A sheet of samples, as the store would have it; none of the swapped experts."""
    if "swapped" in path:
        return None
    colours = np.random.default_rng(len(path)).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(colours).resize((128, 128), Image.Resampling.NEAREST).save(target, "PNG")
    return target.getvalue()


def _cell(at):
    random = np.random.default_rng([int(at["seed"]), int(at["images"]), len(at["data"])])
    pictures = np.random.default_rng(len(at["data"])).normal(1, 0.15, (STRATA, PICTURES))
    pays = 0.02 * math.log2(int(at["images"]) / 70000) + 0.006 * random.standard_normal()
    gains = {"single": 0.0, "ensemble": pays * (1.3 if at["split"] == "two" else 0.7),
             "swapped": -0.4}  # fmt: skip
    return Cell(
        name="-".join(["made", *at.values()]),
        at=at,
        groups={g: _group(random, pictures, gains[g], at, g) for g in GROUPS},
        measurements=_measurements(random),
    )


def _group(random, pictures, gain, at, name):
    shape = 1 + np.cos(np.linspace(0, 2 * math.pi, STRATA)) / 2
    by_stratum = np.array(LOSSES)[:, None] * pictures * (1 - gain * shape[:, None])
    by_stratum = by_stratum * random.normal(1, 0.01, by_stratum.shape)
    scores = {f"val_loss/{i + 1}/{STRATA}": row for i, row in enumerate(by_stratum)}
    scores |= {"val_loss": by_stratum.mean(0),
               "concepts": (random.random(PICTURES) < 0.6 + gain / 4).astype(float)}  # fmt: skip
    experts = 1 if name == "single" else 2 if at["split"] == "two" else 3
    edges = [i / experts for i in range(experts + 1)]
    return Group(
        metrics={key: float(values.mean()) for key, values in scores.items()},
        scores=scores,
        images=2 * int(at["images"]),
        parameters=57_826 * experts,
        active_parameters=57_826,
        training_seconds=31.5 + 2 * experts,
        intervals={f"E{experts}_{i}": (edges[i], edges[i + 1]) for i in range(experts)},
        pictures=f"nodes/evaluate/{at['data']}-{name}/samples.png",
    )


def _estimate(value):
    return {"value": float(value), "low": float(value) - 0.02, "high": float(value) + 0.02,
            "pictures": 64}  # fmt: skip


def _measurements(random):
    distance = np.abs(np.subtract.outer(np.arange(STRATA), np.arange(STRATA)))
    cosine = np.exp(-distance / 3) - 0.12 * (distance > 4)
    found = {
        "gradients/root": {
            "pictures": 256,
            "quantiles": [[i / STRATA, (i + 1) / STRATA] for i in range(STRATA)],
            "cosine": (cosine * 0.9).tolist(),
            "corrected": cosine.tolist(),
        }
    }
    for number, group in enumerate(("ensemble", "single")):
        shift = 0.03 * number + 0.01 * random.standard_normal()
        sigmas = np.geomspace(0.002, 80, 24)
        rise = 1 / (1 + np.exp(-np.log(sigmas) + number / 2))
        scales = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
        fractions = [round(0.1 * n, 1) for n in range(11)]
        probes = {
            "text_effect": [
                {"sigma": float(s), "expert": "E0_0", "change": _estimate(0.5 * r + shift / 5),
                 "explained": _estimate(0.3 * r**2), "attention": {"null": 0.8 - 0.4 * float(r)}}
                for s, r in zip(sigmas, rise)
            ],
            "prompt_switch": [
                {"fraction": f, "step": round(20 * f),
                 "first": {"concepts": _estimate(0.3 + 0.4 / (1 + math.exp(12 * (0.4 - f))))},
                 "second": {"concepts": _estimate(0.3 + 0.4 / (1 + math.exp(12 * (f - 0.4))))}}
                for f in fractions
            ],
            "guidance": [
                {"scale": w, "measures": {
                    "concepts": _estimate(0.45 + 0.25 * (1 - math.exp(-w / 1.5)) - shift),
                    "kernel_distance": _estimate(0.04 + 0.006 * (w - 1.2) ** 2 + shift / 3)}}
                for w in scales
            ],
            "encoders": [
                {"encoders": kept, "captions": length, "pictures": 48, "measures": {
                    "concepts": _estimate(0.7 - 0.15 * place - 0.04 * long - shift),
                    "kernel_distance": _estimate(0.03 + 0.02 * place + 0.004 * long)}}
                for place, kept in enumerate(("all", "clip_text", "t5", "none"))
                for long, length in enumerate(("short", "all", "long"))
            ],
        }  # fmt: skip
        found |= {f"probe/{group}/{name}": {"points": points} for name, points in probes.items()}
        found[f"probe/{group}/seconds"] = {
            "seconds_picture": 0.041 + shift / 100, "seconds_evaluation": 0.0021,
            "parameters_active": 57_826, "parameters_stored": 57_826 * (2 - number),
            "flops_picture": 4.1e9,
            "machine": {"device": "a processor", "threads": 1, "torch": "2.11"},
        }  # fmt: skip
    return found
