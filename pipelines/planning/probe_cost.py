"""Cost of the nodes of ``evaluate.probes``."""

from __future__ import annotations

from typing import Any

from ediffi_core.embeddings import text_encoders
from pipelines.dag.plan import Node
from pipelines.planning.cost import Cost, money_for, power_of
from pipelines.planning.network_size import size_of
from pipelines.planning.stage_networks import config_of, embeddings_of
from pipelines.spec.cluster import Cluster
from pipelines.spec.pipeline import Spec
from pipelines.spec.sampling import Sampling


def network_calls(spec: Spec, node: Node) -> int:
    """Evaluations of the network in a probe, for one picture each; a guided one counts as two."""
    [stage] = node.settings["stages"]
    options: dict[str, Any] = node.settings["options"]
    sampling = Sampling.from_settings(stage["sampling"])
    name, drawing = node.settings["probe"], sampling.network_calls
    if name == "text_effect":
        return int(options["levels"] * options["pictures"] * 2)
    if name == "prompt_switch":
        steps = {round(fraction * sampling.steps) for fraction in options["fractions"]}
        return int(options["captions"] * len(steps) * drawing)
    if name == "encoders":
        variants = len(text_encoders(embeddings_of(spec.encoders))) + 2
        return int(options["captions"] * variants * drawing)
    if name == "guidance":
        calls = [_guided(sampling, scale).network_calls for scale in options["scales"]]
        return int(options["captions"] * sum(calls))
    alone = len(stage["experts"]) + drawing
    return int(options["pictures"] * (options["repeats"] + 1) * alone)


def _guided(sampling: Sampling, scale: float) -> Sampling:
    guidance = sampling.guidance.model_copy(update={"scale": scale})
    return sampling.model_copy(update={"guidance": guidance})


def probe(spec: Spec, node: Node, cluster: Cluster) -> Cost:
    """Time = evaluations of :func:`network_calls` × FLOPs of a forward pass ÷ FLOP/s."""
    calls = network_calls(spec, node)
    one = size_of(config_of(spec, node.settings["stages"][0]["name"])).flops
    power = power_of(node, cluster, "float32")
    seconds = calls * one / power.speed
    return Cost(
        flops=calls * one,
        seconds=seconds,
        group=power.group,
        gang=power.gang,
        money=money_for(power.price, power.gang, seconds),
        how=f"{calls:,} evaluations × {one / 1e9:,.4g} GFLOPs; {power.how}",
    )
