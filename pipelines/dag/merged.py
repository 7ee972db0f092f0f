"""Merge the plans of several pipelines over one store into one plan, which makes shared nodes once.

Two nodes with the same folder, that is of the same kind, name and fingerprint, are one node. It
stands in the first pipeline that has it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from pipelines.dag.plan import Plan, Verdict, digest
from pipelines.spec.pipeline import Spec

DECIDING = frozenset({"compare", "gate", "promote"})
"""Kinds of nodes that decide which ensemble is champion; a pipeline's own run adds them."""


def merge(
    spec: Spec,
    plans: Mapping[str, Plan],
    *,
    without: Collection[str] = DECIDING,
    stands_in: dict[str, str] | None = None,
) -> Plan:
    """Merge plans.

    Args:
        spec: Name, CPUs, GPUs and services of the merged plan; its stages are not read.
        plans: Cell → plan, all over the same store.
        without: Kinds of nodes to leave out, with all that need them.
        stands_in: Folder of a node → the cell that it stands in, as an earlier version of the plan
            had it; completed here.

    Returns:
        A plan whose nodes have the ids ``CELL:KIND/NAME``, each after its dependencies.
    """
    homes = {} if stands_in is None else stands_in
    verdicts: dict[str, Verdict] = {}
    for cell, plan in plans.items():
        ids: dict[str, str] = {}
        for verdict in plan.verdicts.values():
            node = verdict.node
            if node.kind in without or not set(node.dependencies) <= ids.keys():
                continue
            home = homes.setdefault(verdict.folder, cell)
            merged = replace(
                node,
                cell=home,
                inputs={role: ids[i] for role, i in node.inputs.items()},
                unhashed_inputs={role: ids[i] for role, i in node.unhashed_inputs.items()},
            )
            ids[node.id] = merged.id
            verdicts.setdefault(merged.id, replace(verdict, node=merged))
    return Plan(
        spec=spec,
        verdicts=verdicts,
        fingerprint=digest({cell: plan.fingerprint for cell, plan in plans.items()}),
        trees={f"{cell}:{s}": t for cell, plan in plans.items() for s, t in plan.trees.items()},
        champion=None,
        regrow=partial(_regrown, spec, plans, without, homes),
        cells=plans,
        unplaced={f"{cell}:{s}": n for cell, p in plans.items() for s, n in p.unplaced.items()},
    )


def _regrown(
    spec: Spec, plans: Mapping[str, Plan], without: Collection[str], homes: dict[str, str]
) -> Plan:
    again = {cell: plan.regrow() if plan.is_growing else plan for cell, plan in plans.items()}
    return merge(spec, again, without=without, stands_in=homes)
