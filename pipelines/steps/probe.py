"""Run one of ``evaluate.probes`` on a model of the base stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pipelines.evaluation.job import Embedded
from pipelines.evaluation.probes import encoders, guidance, prompt_switch, seconds, text_effect
from pipelines.evaluation.probes.model import Found, Model
from pipelines.evaluation.scoring import Scoring
from pipelines.runs.context import Context, Result
from pipelines.spec.base import Strict
from pipelines.spec.probes import (
    EncodersProbe,
    GuidanceProbe,
    PromptSwitchProbe,
    SecondsProbe,
    TextEffectProbe,
)
from pipelines.steps.ensemble_weights import weights_of
from pipelines.steps.evaluate import scoring_of

FILE = "probe.json"


class Probe(NamedTuple):
    """How a probe is run."""

    measure: Callable[[Model, Any], Found]
    options: type[Strict]


PROBES = {
    "text_effect": Probe(text_effect.measure, TextEffectProbe),
    "prompt_switch": Probe(prompt_switch.measure, PromptSwitchProbe),
    "encoders": Probe(encoders.measure, EncodersProbe),
    "guidance": Probe(guidance.measure, GuidanceProbe),
    "seconds": Probe(seconds.measure, SecondsProbe),
}


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Load the model, run the probe, and store what it found as :data:`FILE`."""
    torch.set_num_threads(ctx.cpus)
    stages, name = settings["stages"], settings["probe"]
    probe = PROBES[name]
    model = Model.load(
        ctx.store,
        stages,
        weights_of(ctx, stages, inputs),
        source=Embedded(ctx.store, inputs["validation"], stages[-1]["resolution"]),
        scoring=scoring_of(ctx, settings, inputs) if "metrics" in settings else Scoring(),
        seed=settings["seed"],
        batch=ctx.runtime["batch"],
        device="cuda" if ctx.runtime["gpus"] else "cpu",
        progress=lambda done, of: ctx.report(done=done, of=of, unit="pictures"),
    )
    found = probe.measure(model, probe.options.from_settings(settings["options"]))
    about = {"format": 1, "probe": name, "options": settings["options"]}
    ctx.store.write_json(f"{ctx.folder}/{FILE}", {**about, **found.data})
    return Result(files=[FILE], metrics=dict(found.metrics))
