"""What the names of served models mean at the moment: the last run's ensemble, the champion, …"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ediffi_core.cascade import CascadeStage
from ediffi_core.ensemble import Ensemble
from pipelines.lineage.lookup import find_model, identify
from pipelines.models import champions
from pipelines.models.champions import Registry
from pipelines.models.manifest import own_sampling, read_manifest
from pipelines.models.metadata import ModelId
from pipelines.serving.engine import ExpertInfo, ModelInfo, StageInfo
from pipelines.spec.serving import Serving
from pipelines.store.artifacts import Store

Role = Literal["served", "champion", "candidate"]
ROLES: tuple[Role, ...] = get_args(Role)

UNBOUNDED = 1e9
"""Stands for an infinite σ, which JSON does not have."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An ensemble that a role refers to."""

    place: Path
    """Its ``ensemble.json``."""

    id: ModelId
    manifest: dict[str, Any]
    registry: Registry
    """Of the pipeline, when this was looked up."""

    @property
    def aliases(self) -> list[str]:
        """``champion``, ``candidate``, both or neither."""
        return self.registry.aliases(self.id.fingerprint or "")

    @property
    def key(self) -> tuple[Path, str]:
        """What tells ensembles apart."""
        return self.place, self.id.manifest

    @property
    def label(self) -> str:
        """Name for metrics, such as ``emoji-scenes@3``."""
        return f"{self.id.name}@{self.id.version or self.id.manifest[:8]}"


class Names:
    """The served model's name, and the aliases of the same pipeline."""

    def __init__(self, serving: Serving) -> None:
        """
        Raises:
            ValueError: There is no such model in the store.
        """
        self.serving = serving
        manifest = read_manifest(find_model(serving.model, serving.storage), serving.storage)
        self.pipeline = str(manifest["model"])
        self.store = Store.at(manifest["store"])

    def role_of(self, name: str | None) -> Role | None:
        """The role that an order's ``model`` names; None if nothing is called so."""
        if name in (None, self.serving.model, self.pipeline):
            return "served"
        alias = str(name).removeprefix(f"{self.pipeline}@")
        return next((role for role in ROLES[1:] if role == alias), None)

    def roles(self) -> list[Role]:
        """The roles that mean something now."""
        registry = champions.read(self.store, self.pipeline)
        there = {"served": True, "champion": registry.champion, "candidate": registry.candidate}
        return [role for role in ROLES if there[role]]

    def find(self, role: Role) -> Target:
        """What a role means now.

        Raises:
            ValueError: It means nothing, or what it means is gone.
        """
        is_served = role == "served"
        name = self.serving.model if is_served else f"{self.pipeline}@{role}"
        storage = self.serving.storage if is_served else self.store.root
        place = find_model(name, storage)
        return Target(
            place=place,
            id=identify(place, storage),
            manifest=read_manifest(place, storage),
            registry=champions.read(self.store, self.pipeline),
        )

    def describe(self, role: Role, target: Target, stages: list[CascadeStage] | None) -> ModelInfo:
        """A model as callers are told.

        Args:
            stages: of the loaded ensemble; None if it is not loaded.
        """
        experts = {stage.name: _experts(stage) for stage in stages or ()}
        sampling = own_sampling(target.manifest["stages"])
        return ModelInfo(
            name=self.serving.model if role == "served" else role,
            id=target.id,
            aliases=target.aliases,
            stages=[
                StageInfo(
                    name=stage["name"],
                    resolution=stage["resolution"],
                    experts=experts.get(stage["name"], []),
                    sampling=sampling[stage["name"]].settings(),
                )
                for stage in target.manifest["stages"]
            ],
            loaded=stages is not None,
        )


def _experts(stage: CascadeStage) -> list[ExpertInfo]:
    if not isinstance(stage.denoiser, Ensemble):
        return []
    noise = stage.denoiser.noise
    bounds = {e.name: e.interval.bounds(noise) for e in reversed(stage.denoiser.experts)}
    return [ExpertInfo(name=n, sigma=(lo, min(hi, UNBOUNDED))) for n, (lo, hi) in bounds.items()]
