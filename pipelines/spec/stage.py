"""One stage of the cascade: its network, its training, and the tree of its experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from ediffi_core import tree
from ediffi_core.noise import NoiseDistribution
from ediffi_core.unet import FieldError
from pipelines.spec.adaptive import Adaptive
from pipelines.spec.base import LATER, Strict, did_you_mean
from pipelines.spec.evaluation import Degrade
from pipelines.spec.groups import GroupName, check_groups
from pipelines.spec.network import Network
from pipelines.spec.renamed import Renamed
from pipelines.spec.sampling import Sampling
from pipelines.spec.training import Cadence, Overrides, Training, Workers

EXPERT = r"^(E\d+_\d+|M_C)$"
"""Names of experts, for the JSON schema; :mod:`ediffi_core.tree` checks them."""


class Expert(Overrides):
    """How one expert is trained. What is not set here is as in the stage's ``training``."""

    images: int = Field(ge=1)
    """Images to train on, a multiple of the batch."""

    cpus: int = Field(1, ge=1)
    """CPUs of each worker."""

    start: Literal["ema", "raw"] = "ema"
    """Which weights of its parent a child starts from: the moving average, or the raw weights."""

    optimizer: Literal["fresh", "carried"] = "fresh"
    """Whether a child starts with a fresh optimiser, or carries on with its parent's state, which
    needs ``start: raw``."""

    overlap: Annotated[float, Field(ge=0, le=0.9), LATER] = 0.0
    """Share of the training draws from outside the expert's interval, distributed there as p(σ)
    is. The expert still serves its interval alone. Not for the root and ``single``, whose interval
    is all of p(σ)."""


class Baseline(Expert):
    """A model that continues the root alone, on all noise levels, as ``single`` does."""

    density: Literal["all", "experts"] = "all"
    """What it draws σ from. ``all``: p(σ). ``experts``: the density that all experts below the root
    have together, each counted by its images; so that a gain of the experts is not one of mere
    reweighting."""


class Stage(Strict):
    """One stage of the cascade, and the tree of its experts.

    The first stage draws from noise, each further one enlarges the pictures of the stage before.

    Experts are named as in the paper: ``E0_0`` is the root, trained on all noise levels. ``E2_3``
    is number 3, counted from 0, of the 2² equal shares of p(σ): the noisiest. It starts from its
    parent ``E1_1``. ``M_C`` is the complement, trained on all that the other experts of the
    ensemble leave.
    """

    resolution: int = Field(64, ge=4)
    """Side of the stage's pictures, in pixels; a multiple of the stage before's."""

    crop: int | None = Field(None, ge=4)
    """Super-resolution: side of the random crops to train on, in pixels. Sampling always works on
    whole pictures. By default whole pictures are trained on."""

    degrade: Degrade = Degrade()
    """Super-resolution: degradation of the low-resolution pictures in training."""

    sampling: Sampling = Sampling()
    """Default settings for sampling."""

    network: Network = Network()
    """The U-Net of all experts of the stage."""

    training: Training = Training()
    """What determines an expert's weights."""

    cadence: Cadence = Cadence()
    """How often training saves, logs, validates and draws samples."""

    workers: Workers = Workers()
    """The worker processes of each training."""

    priority: int = 0
    """Nodes of stages with a higher priority start first. Among equals, those on the longest path
    to the end of the run do."""

    max_hours: Annotated[float | None, Field(gt=0), Renamed("limit_hours")] = None
    """Hours that training one expert may take in one run; waiting for machines does not count.
    After that it saves a checkpoint and fails; the next run continues it, with as many hours again.
    No limit by default."""

    experts: dict[str, Expert] = Field(json_schema_extra={"propertyNames": {"pattern": EXPERT}})
    """Experts to train, by name. ``E0_0`` is required, and so is the parent of each other."""

    ensemble: list[str] = Field(default_factory=list)
    """Experts in the ensemble. Their intervals must cover p(σ) exactly once. Required, except with
    ``adaptive``."""

    adaptive: Adaptive | None = None
    """Grow the tree below ``E0_0`` by measured gains, in place of a fixed list of experts."""

    adopt: Literal["better", "always"] = "better"
    """Whether an expert that does not beat its parent is used. ``better``: its slot in the ensemble
    goes to the nearest ancestor that does. ``always``: it is used all the same."""

    single: Expert | None = None
    """Baseline with an equal budget: the root, trained on alone to this number of images in all. It
    is evaluated next to the ensemble."""

    baselines: Annotated[dict[GroupName, Baseline], LATER] = Field(default_factory=dict)
    """Further models on all noise levels, by lower-case names. Each continues the root to this
    number of images in all, and is evaluated under its name."""

    merge: Annotated[dict[str, float] | None, LATER] = None
    """Merge experts into one model on all noise levels, with these weights:
    θ = θ_root + Σ w (θ_expert − θ_root), of the averaged weights (task vectors, arXiv:2212.04089).
    It is evaluated as ``merged``."""

    routings: Annotated[dict[GroupName, dict[str, str]], LATER] = Field(default_factory=dict)
    """The ensemble with other experts in some slots, by lower-case names: slot → any expert of the
    stage, ``single``, a baseline or ``merged``. Slots not named keep their own expert, whether or
    not it is adopted. Each is evaluated under its name: parent and child in turn on each interval,
    the ensemble without an expert, experts swapped as a negative control."""

    P_mean: float = -1.2
    """Mean of ln σ in p(σ), the distribution of noise levels in training; EDM's value
    (arXiv:2206.00364). A change moves the experts' intervals too."""

    P_std: float = Field(1.2, gt=0)
    """Standard deviation of ln σ in p(σ); EDM's value."""

    sigma_data: float = Field(0.5, gt=0)
    """Standard deviation of what the network predicts, with pixels in [-1, 1]; EDM's value for
    pictures. About 0.15 with ``network.residual``."""

    boundaries: Annotated[Literal["quantiles", "difficulty"] | list[float], LATER] = "quantiles"
    """Where the tree cuts p(σ). ``quantiles``: equal shares of p(σ), as in the paper.
    ``difficulty``: equal shares of the loss that the finished root has over p(σ), as in CBS
    (arXiv:2606.06477); the other experts are planned once that is measured. Or a list of quantiles
    in (0, 1), lowest noise first: ``[0.3]`` for the cut between ``E1_0`` and ``E1_1``, three
    quantiles for the cuts of level 2, seven for level 3. Deeper levels halve what lies between."""

    _measured: tuple[float, ...] = PrivateAttr(())

    def placed(self, cuts: Sequence[float]) -> Stage:
        """Return the stage with the measured boundaries of ``boundaries: difficulty``."""
        found = self.model_copy()
        found._measured = tuple(cuts)
        return found

    @property
    def is_placed(self) -> bool:
        """Whether the experts' intervals are known: false until the difficulty is measured."""
        return self.boundaries != "difficulty" or bool(self._measured)

    @property
    def warp(self) -> tree.Warp:
        """Where the tree cuts p(σ); ValueError if that is not measured yet."""
        if self.boundaries == "quantiles":
            return tree.EQUAL_SHARES
        if not self.is_placed:
            raise ValueError("the boundaries of equal difficulty are not measured yet")
        cuts = self._measured if self.boundaries == "difficulty" else self.boundaries
        return tree.Warp(tuple(float(cut) for cut in cuts))

    @property
    def noise(self) -> NoiseDistribution:
        """p(σ) of the stage."""
        return NoiseDistribution(P_mean=self.P_mean, P_std=self.P_std)

    @property
    def continued(self) -> dict[str, Expert]:
        """The models that continue the root alone: ``single``, if there is one, and baselines."""
        return {**({"single": self.single} if self.single else {}), **self.baselines}

    @property
    def grown(self) -> Expert:
        """The settings of each expert that an adaptive tree adds."""
        if self.adaptive is None:
            raise ValueError("only a stage with `adaptive:` grows experts")
        own = self.adaptive
        return Expert(images=own.images, cpus=own.cpus, **own.overrides)

    @model_validator(mode="after")
    def sound_tree(self) -> Self:
        for name in self.experts:
            above = tree.parent(name)
            if above is not None and above not in self.experts:
                raise ValueError(f"expert {name} starts from {above}, which `experts:` lacks")
        for name in self.ensemble:
            if name not in self.experts:
                raise ValueError(
                    f"`ensemble:` names {name}, which `experts:` lacks"
                    + did_you_mean(name, self.experts)
                )
        if self.adaptive and (set(self.experts) != {tree.ROOT} or self.ensemble):
            raise ValueError(
                f"`adaptive:` decides on the experts: name {tree.ROOT} alone, and no `ensemble:`"
            )
        if not self.adaptive:
            tree.check_cover(tree.intervals_of(self.ensemble))
        if isinstance(self.boundaries, list):
            if not self.boundaries:
                raise ValueError("`boundaries:` is empty; write at least one quantile, as [0.3]")
            tree.intervals_of(self.ensemble, self.warp)
            for name in set(self.experts) - {tree.COMPLEMENT}:
                tree.interval(name, self.warp)
        if tree.COMPLEMENT in self.experts and tree.COMPLEMENT not in self.ensemble:
            raise ValueError(f"{tree.COMPLEMENT} is trained but `ensemble:` does not use it")
        batch = self.training.batch
        trained = {**self.experts, **self.continued}
        if self.adaptive:
            trained["adaptive"] = self.grown
        for name, expert in trained.items():
            if expert.images % batch:
                fit = max(batch, round(expert.images / batch) * batch)
                raise ValueError(
                    f"{name} trains on {expert.images} images, no multiple of the batch "
                    f"of {batch}; write {fit}"
                )
            how = expert.over(self.training)
            if how.schedule == "inverse_sqrt" and not how.decay_images:
                raise FieldError(
                    f"is missing: {name} is trained with `schedule: inverse_sqrt`; write for how "
                    f"many images the rate stays before it falls, such as "
                    f"{max(batch, expert.images // 10)}",
                    "training.decay_images",
                )
            if expert.optimizer == "carried" and (name == tree.ROOT or expert.start == "ema"):
                raise ValueError(
                    f"{name}: `optimizer: carried` goes on with the parent's moments, which belong "
                    "to its raw weights; set `start: raw` on a child"
                )
            if expert.overlap and name in (tree.ROOT, "single"):
                raise ValueError(
                    f"{name} trains on all of p(σ), so nothing is outside: remove its `overlap:`"
                )
        if self.workers.count > batch:
            raise ValueError(
                f"{self.workers.count} workers cannot share a batch of {batch}; raise `batch:`"
            )
        for name, model in self.continued.items():
            if model.images < self.experts[tree.ROOT].images:
                raise ValueError(
                    f"`{name}:` continues the root, so it needs at least as many images"
                )
        return self

    @model_validator(mode="after")
    def sound_groups(self) -> Self:
        check_groups(self)
        return self
