"""How a stage is trained: what determines the result, and what is only how it is done."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ediffi_core.ema_length import gamma_of
from ediffi_core.learning_rate import LearningRate, Schedule
from pipelines.spec.base import LATER, Labels, Strict

FINAL_DRAWS = 512
"""Of validation, which a finished child and its parent are compared on."""


class Dropout(Strict):
    """Probabilities of dropping an embedding in training (paper.md section 3: our defaults)."""

    t5: float = Field(0.1, ge=0, le=1)
    clip_text: float = Field(0.1, ge=0, le=1)
    clip_image: float = Field(0.5, ge=0, le=1)
    others: float = Field(0.1, ge=0, le=1)
    """Of each further encoder."""

    all: float = Field(0.1, ge=0, le=1)


class BadLoss(Strict):
    """What happens when a loss or a gradient is not finite, or a loss leaps."""

    then: Literal["stop", "skip"] = "stop"
    """``stop`` ends the node with the images' places; ``skip`` goes back to the last checkpoint and
    trains on without that batch."""

    leap: float | None = Field(None, gt=1)
    """A loss this many times the median of the 64 before it is bad too; None: finite is enough."""

    skips: int = Field(3, ge=0)
    """How many batches may be skipped before the node stops."""


class Training(Strict):
    """What determines an expert's weights; the clock is images."""

    batch: int = Field(64, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Annotated[Schedule, LATER] = "constant"
    """What becomes of the learning rate, over the images of each expert. ``cosine`` and ``linear``
    fall to zero at its end; see :mod:`ediffi_core.learning_rate`. ``single`` follows it anew over
    the images that it adds to the root's, so that it is treated as the children are."""

    decay_images: Annotated[int | None, Field(ge=1), LATER] = None
    """``inverse_sqrt``: for how many images the rate stays, before it falls with the square root
    of the images."""

    warmup_images: int = Field(0, ge=0)
    """Over these the rate rises from zero."""

    weight_decay: float = Field(0.01, ge=0)
    """Of matrices and kernels; biases, the norms' scales and the null token have none."""

    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; weights, averages and the optimiser are float32."""

    ema_halflife_images: int = Field(8000, ge=1)
    snapshot_images: int | None = Field(None, ge=1)
    """How often averages of growing length are kept, to make one of any length of afterwards."""

    snapshot_lengths: list[float] = Field([0.05, 0.10], min_length=1)
    """Their σ_rel (EDM2): width as a share of the training so far. Two are enough."""

    dropout: Dropout = Dropout()
    bad_loss: BadLoss = BadLoss()

    @field_validator("snapshot_lengths")
    @classmethod
    def possible(cls, lengths: list[float]) -> list[float]:
        for length in lengths:
            gamma_of(length)
        return sorted(set(lengths))

    def rate(self, begin: int, end: int) -> LearningRate:
        """Of a node that trains from the one to the other place of its clock."""
        return LearningRate(
            peak=self.learning_rate,
            schedule=self.schedule,
            begin=begin,
            end=end,
            warmup_images=self.warmup_images,
            decay_images=self.decay_images,
        )


class Overrides(Strict):
    """What an expert may have otherwise than its stage's ``training:``."""

    learning_rate: Annotated[float | None, Field(gt=0), LATER] = None
    schedule: Annotated[Schedule | None, LATER] = None
    decay_images: Annotated[int | None, Field(ge=1), LATER] = None
    warmup_images: Annotated[int | None, Field(ge=0), LATER] = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Those that are written."""
        return {k: v for k in Overrides.model_fields if (v := getattr(self, k)) is not None}

    def over(self, training: Training) -> Training:
        """How the expert is trained; without what its schedule does not use."""
        own = training.model_copy(update=self.overrides)
        unused = {} if own.schedule == "inverse_sqrt" else {"decay_images": None}
        return own.model_copy(update=unused)


class Cadence(Strict):
    """How often a training node speaks and saves; nothing here changes its result."""

    checkpoint_images: int = Field(8000, ge=1)
    keep: int = Field(2, ge=1)
    """Checkpoints that are kept, the newest."""

    milestone_images: int | None = Field(None, ge=1)
    """Every so many images one is kept beside these, for good."""

    log_images: int = Field(640, ge=1)
    loss_bins: int = Field(8, ge=1)
    """Equal shares of the expert's interval that the training loss is reported over."""

    validate_images: int = Field(8000, ge=1)
    validate_draws: int = Field(256, ge=2)
    validate_bins: int = Field(8, ge=1)
    """Equal shares of p(σ) that validation is reported over."""

    picture_images: int | None = Field(None, ge=1)
    """How often pictures are drawn; None: at the end only."""


class Retries(Strict):
    """How often a node is tried again; a try that came further restores them."""

    preemptions: int = Field(8, ge=0)
    """After a worker, its node or the driver's helper was lost or asked to leave."""

    machines: int = Field(120, ge=0)
    """While the cluster lacks machines for its workers, as one that grows does; a minute each."""

    failures: int = Field(3, ge=0)
    """After storage or network failed, or the workers lost each other."""

    bugs: int = Field(1, ge=0)
    """After any other error; the same at the same place is not tried a third time."""

    backoff_s: float = Field(1.0, ge=0)
    """Before the first try again; doubled each time."""

    backoff_max_s: float = Field(60.0, ge=0)


class Workers(Strict):
    """The processes that share a node's batches. Other numbers, the same stream of images."""

    count: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0)
    """Of each."""

    labels: Labels = Field(default_factory=dict)
    """The machines that they run on."""

    parallel: Literal["ddp", "fsdp", "hybrid"] = "ddp"
    """``ddp``: each has all weights. ``fsdp``: a part each, for networks that do not fit.
    ``hybrid``: a part each within a machine, the same on every machine."""

    micro_batch: int | Literal["auto"] | None = None
    """Images a worker computes on at once, gradients added up; ``auto``: as many as fit a GPU."""

    recompute: list[int] = Field(default_factory=list)
    """Levels of the network (0 is the largest) whose activations are not kept but computed again
    for the backward pass: slower, and far less memory."""

    compile: bool = False
    channels_last: bool = False
    timeout_s: float = Field(600.0, gt=0)
    """How long workers wait for each other before the node says who is missing."""

    retries: Retries = Retries()

    @model_validator(mode="after")
    def sound(self) -> Self:
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise ValueError(f"`micro_batch:` must be at least 1 or auto, got {self.micro_batch}")
        if self.micro_batch == "auto" and self.parallel != "ddp":
            raise ValueError(
                "`micro_batch: auto` is for `parallel: ddp`; split weights are gathered by all at "
                "once, and one worker that is out of memory would leave the others waiting"
            )
        if self.parallel != "ddp" and self.count == 1:
            raise ValueError(f"`parallel: {self.parallel}` splits over workers; set `count:` > 1")
        return self
