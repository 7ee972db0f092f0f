"""What a stage evaluates beside its ensemble: names of groups, and the checks that concern them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field

from ediffi_core import tree
from pipelines.spec.base import did_you_mean

MERGED = "merged"
"""Name of the model that ``merge:`` makes of a stage's experts."""

RESERVED = frozenset({"ensemble", "root", "single", "champion", "adaptive", MERGED})
"""Names that other models of a stage have."""

GroupName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""Name of a baseline or a routing: lower-case letters, digits and underscores."""


class Groups(Protocol):
    """What is checked here of a :class:`pipelines.spec.stage.Stage`."""

    @property
    def experts(self) -> Mapping[str, Any]: ...
    @property
    def ensemble(self) -> list[str]: ...
    @property
    def adaptive(self) -> Any: ...
    @property
    def continued(self) -> Mapping[str, Any]: ...
    @property
    def baselines(self) -> Mapping[str, Any]: ...
    @property
    def merge(self) -> Mapping[str, float] | None: ...
    @property
    def routings(self) -> Mapping[str, Mapping[str, str]]: ...
    @property
    def sampling(self) -> Any: ...


def check_groups(stage: Groups) -> None:
    """Check a stage's baselines, merge and routings.

    Raises:
        ValueError: A name is taken or unknown, a tree that grows has no experts to name yet, or
            weights cannot be merged.
    """
    for name in (*stage.baselines, *stage.routings):
        if name in RESERVED:
            raise ValueError(f"{name!r} is the name of another model of the stage; choose another")
    if both := set(stage.baselines) & set(stage.routings):
        raise ValueError(f"{min(both)!r} names a baseline and a routing; rename one of them")
    _check_known_experts(stage)
    if stage.merge is not None:
        _check_merge(stage, stage.merge)
    known = [*stage.experts, *stage.continued, *([MERGED] if stage.merge is not None else [])]
    for name, slots in stage.routings.items():
        _check_routing(name, slots, stage.ensemble, known)


def _check_known_experts(stage: Groups) -> None:
    """Check that a group which names experts has experts to name."""
    counted = [n for n, b in stage.baselines.items() if b.density == "experts"]
    if stage.adaptive:
        named = [f"baselines.{n}.density: experts" for n in counted]
        named += ["merge:"] if stage.merge is not None else []
        named += ["routings:"] if stage.routings else []
        if named:
            raise ValueError(f"`{named[0]}` needs a fixed list of experts, not `adaptive:`")
    if counted and set(stage.experts) <= {tree.ROOT}:
        raise ValueError(
            f"`baselines.{counted[0]}.density: experts` needs experts below {tree.ROOT}"
        )


def _check_merge(stage: Groups, merge: Mapping[str, float]) -> None:
    below = [name for name in stage.experts if name != tree.ROOT]
    if not merge:
        raise ValueError("`merge:` names no expert; write a weight for each, such as `E1_0: 0.5`")
    for name, weight in merge.items():
        if name not in below:
            raise ValueError(
                f"`merge:` names {name}, which is no expert below {tree.ROOT}"
                + did_you_mean(name, below)
            )
        if not math.isfinite(weight):
            raise ValueError(f"`merge.{name}` is {weight}; write a finite weight")
    if stage.sampling.ema_length is not None:
        raise ValueError(
            "`merge:` has the stored averages of the weights alone; remove `sampling.ema_length`"
        )


def _check_routing(
    name: str, slots: Mapping[str, str], ensemble: list[str], known: list[str]
) -> None:
    if not slots:
        raise ValueError(f"`routings.{name}` changes no slot; name one, such as `{ensemble[0]}:`")
    for slot, expert in slots.items():
        if slot not in ensemble:
            raise ValueError(
                f"`routings.{name}` names the slot {slot}, which `ensemble:` lacks"
                + did_you_mean(slot, ensemble)
            )
        if expert not in known:
            raise ValueError(
                f"`routings.{name}` gives {slot} to {expert}, which the stage does not have"
                + did_you_mean(expert, known)
            )
