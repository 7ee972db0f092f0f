"""A trained model that is evaluated: what to draw with, and what it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.spec.sampling import Sampling, with_changes
from pipelines.store.artifacts import Store


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model: the stages up to the one that is evaluated, and their weights."""

    name: str
    """As the user calls it: ``emoji-scenes``, ``emoji-scenes/single``."""

    pipeline: str
    """Name of its pipeline."""

    store: Store
    stages: Sequence[Mapping[str, Any]]
    """Settings of the stages, the base first: name, resolution, experts and sampling."""

    weights: Mapping[str, Mapping[str, Any]]
    """``stage/slot`` → path, sha256, fingerprint and expert of its weights."""

    trained_with: Mapping[str, Mapping[str, str]]
    """Encoder → its identity, of the data that the model was trained on."""

    data: Mapping[str, str]
    """Split (``train``, ``validation``) → folder of its embedded data in the store, if known."""

    manifest: Mapping[str, Any] | None = None
    """The whole cascade's ``ensemble.json``; None for a model that is no ensemble."""

    def up_to(self, stage: str | None = None, *, resolution: int | None = None) -> Subject:
        """The model without the stages above one, which is named or has a resolution.

        Raises:
            ValueError: There is no such stage.
        """
        for n, one in enumerate(self.stages, 1):
            if one["name"] == stage or one["resolution"] == resolution:
                return replace(self, stages=self.stages[:n])
        known = ", ".join(f"{s['name']} ({s['resolution']})" for s in self.stages)
        wanted = f"{stage!r}" if stage else f"of {resolution}×{resolution} pictures"
        raise ValueError(f"{self.name} has no stage {wanted}; it has {known}")

    def changed(self, changes: Mapping[str, Any]) -> Subject:
        """The model with other sampling settings.

        Args:
            changes: As for :func:`~pipelines.spec.sampling.with_changes`.

        Raises:
            ValueError: A setting is unknown or invalid.
        """
        before = {s["name"]: Sampling.from_settings(s["sampling"]) for s in self.stages}
        after = with_changes(before, changes)
        stages = [{**s, "sampling": after[s["name"]].settings()} for s in self.stages]
        return replace(self, stages=stages)

    def ensemble(self) -> dict[str, Any]:
        """The whole cascade's ``ensemble.json`` with this model's sampling settings.

        Raises:
            ValueError: The model is no ensemble.
        """
        if self.manifest is None:
            raise ValueError(f"{self.name} is no ensemble; name the pipeline's ensemble first")
        sampling = {stage["name"]: stage["sampling"] for stage in self.stages}
        stages = [
            {**stage, "sampling": sampling.get(stage["name"], stage["sampling"])}
            for stage in self.manifest["stages"]
        ]
        return {**self.manifest, "stages": stages}

    @property
    def last(self) -> Mapping[str, Any]:
        """Settings of the stage that is evaluated."""
        return self.stages[-1]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about the model that determines its pictures, besides the conditioning."""
        drawing = ("name", "resolution", "experts", "sampling")
        names = {f"{s['name']}/{slot}": s for s in self.stages for slot in s["experts"]}
        # Averages of another length are mixed from the training's snapshots, which the same weights
        # may have in other numbers.
        mixed = [n for n, s in names.items() if Sampling.from_settings(s["sampling"]).ema_length]
        return {
            "stages": [{key: stage[key] for key in drawing} for stage in self.stages],
            "weights": {name: self.weights[name]["sha256"] for name in names},
            **({"trainings": {n: self.weights[n]["fingerprint"] for n in mixed}} if mixed else {}),
        }
