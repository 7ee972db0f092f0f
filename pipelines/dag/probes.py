"""Nodes of ``evaluate.probes``: what else is looked at in the models of the base stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.dag.node import Node
from pipelines.spec.base import Strict
from pipelines.spec.pipeline import Spec
from pipelines.spec.probes import ProbeName

ROOT_PROBES: frozenset[ProbeName] = frozenset({"text_effect", "guidance"})
"""Probes of the root; its pictures are no result, so the others would tell nothing."""

SCORED: frozenset[ProbeName] = frozenset({"prompt_switch", "encoders", "guidance"})
"""Probes that the spec's metrics score pictures for."""


def probe_nodes(spec: Spec, measured: Iterable[Node]) -> Iterator[Node]:
    """Nodes of the spec's probes, for every model of the base stage that is evaluated.

    Args:
        measured: nodes of the plan; those of kind ``evaluate`` name the models.
    """
    for node in measured:
        if node.kind != "evaluate" or len(node.settings["stages"]) > 1:
            continue
        group = node.name.partition("/")[2]
        for name, options in spec.evaluate.probes.chosen.items():
            if group != "root" or name in ROOT_PROBES:
                yield _probe_node(spec, node, name, options)


def _probe_node(spec: Spec, evaluated: Node, name: ProbeName, options: Strict) -> Node:
    """The node of a probe: it reads what the evaluation of the model reads, as far as needed."""
    keys = {"stages", "encoders", "seed"}
    inputs = {
        role: node
        for role, node in evaluated.inputs.items()
        if not node.startswith(("features/", *(() if name in SCORED else ("metric/",))))
    }
    if name in SCORED:
        keys |= {"metrics"} | {key for key in evaluated.settings if key.startswith("scoring_")}
    settings: dict[str, Any] = {k: v for k, v in evaluated.settings.items() if k in keys}
    runtime = {k: v for k, v in evaluated.runtime.items() if k not in ("features", "actors")}
    return Node(
        kind="probe",
        name=f"{evaluated.name}/{name}",
        settings={"probe": name, "options": options.settings(), **settings},
        inputs=inputs,
        external=evaluated.external,
        runtime=runtime,
        cpus=spec.evaluate.cpus,
        gpus=spec.evaluate.gpus,
        labels=spec.evaluate.labels,
    )
