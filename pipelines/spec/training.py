"""How a stage is trained: ``training:`` affects its weights, ``cadence`` and ``workers`` do not."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ediffi_core.ema_length import gamma_of
from ediffi_core.learning_rate import LearningRate, Schedule
from ediffi_core.loss_weight import LossWeight
from pipelines.spec.base import LATER, Labels, Strict
from pipelines.spec.renamed import Renamed

FINAL_DRAWS = 512
"""Validation draws on which a finished child is compared with its parent."""


class Dropout(Strict):
    """Probabilities of dropping an embedding of a training image, for classifier-free guidance.

    Each embedding is dropped independently. The values are our defaults, since the paper gives
    none.
    """

    t5: float = Field(0.1, ge=0, le=1)
    """Probability of dropping T5's tokens."""

    clip_text: float = Field(0.1, ge=0, le=1)
    """Probability of dropping CLIP's text embedding, its tokens and its pooled vector together."""

    clip_image: float = Field(0.5, ge=0, le=1)
    """Probability of dropping CLIP's image embedding. Higher than the others, because most prompts
    come without a style picture."""

    others: float = Field(0.1, ge=0, le=1)
    """Probability of dropping the embedding of an encoder in ``encoders.more``, for each of
    them."""

    all: float = Field(0.1, ge=0, le=1)
    """Probability of dropping all embeddings at once, in addition to the others."""


class BadLoss(Strict):
    """What to do about a bad batch: its loss or gradient is not finite, or its loss is a spike."""

    action: Annotated[Literal["stop", "skip"], Renamed("then")] = "stop"
    """``stop``: end the node and name the batch's images. ``skip``: return to the last checkpoint
    and train on without the batch."""

    spike_factor: Annotated[float | None, Field(gt=1), Renamed("leap")] = None
    """Bound on the loss of a batch, as a multiple of the median of the 64 batches before it; a loss
    above it is a spike. By default every finite loss is accepted."""

    max_skips: Annotated[int, Field(ge=0), Renamed("skips")] = 3
    """Batches that may be skipped; the node stops at the next bad one."""


class Training(Strict):
    """Everything that determines an expert's weights.

    Durations are counted in images seen, not in steps, so they do not depend on the batch. A change
    here trains the stage's experts anew.
    """

    batch: int = Field(64, ge=1)
    """Images in a batch, over all workers."""

    optimizer: Annotated[Literal["adamw", "muon"], LATER] = "adamw"
    """``adamw``: the paper's. ``muon``: updates of the blocks' matrices and kernels are
    orthogonalised, all other weights have AdamW; it takes the same learning rates and weight decay,
    and small networks need far fewer images (:mod:`ediffi_core.muon`)."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""

    schedule: Annotated[Schedule, LATER] = "constant"
    """Learning-rate schedule, from an expert's first image to its last. ``cosine`` and ``linear``
    fall to zero at the end; formulas are in :mod:`ediffi_core.learning_rate`. ``single`` restarts
    it where it continues the root, as children do."""

    decay_images: Annotated[int | None, Field(ge=1), LATER] = None
    """Images at the peak learning rate before ``inverse_sqrt`` begins to fall. Required with that
    schedule, unused with the others."""

    warmup_images: int = Field(0, ge=0)
    """Images over which the learning rate rises from zero."""

    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices and kernels. Biases, scales of norms and the null token
    are not decayed."""

    clip_norm: float = Field(1.0, gt=0)
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Type the network computes in. Weights, their averages and the optimiser's state are always
    float32."""

    ema_halflife_images: int = Field(8000, ge=1)
    """Half-life of the exponential moving average of the weights, in images. It is shorter at the
    start: at most 5 % of the images seen (EDM)."""

    snapshot_images: int | None = Field(None, ge=1)
    """Images between snapshots of power-function averages, from which an average of any length can
    be computed after training (EDM2, arXiv:2312.02696): ``sampling.ema_length`` and ``ediffi ema``
    do. The last snapshot is at the end. Sixteen are enough for lengths from 0.03 to 0.2. By default
    there are none."""

    snapshot_lengths: list[float] = Field([0.05, 0.10], min_length=1)
    """Lengths of these averages as EDM2's σ_rel: their width as a share of the training so far.
    Two are enough."""

    dropout: Dropout = Dropout()
    """Probabilities of dropping embeddings."""

    loss_weight: Annotated[LossWeight, LATER] = "edm"
    """Weight of the training loss over noise levels. ``edm``: EDM's λ(σ), the paper's.
    ``min_snr``: Min-SNR-γ with γ = 5 (arXiv:2303.09556). ``p2``: P2 with k = γ = 1
    (arXiv:2204.00227). Formulas are in :mod:`ediffi_core.loss_weight`. All losses that are logged,
    checked and compared keep EDM's weight."""

    bad_loss: BadLoss = BadLoss()
    """What to do about a bad batch."""

    @field_validator("snapshot_lengths")
    @classmethod
    def possible(cls, lengths: list[float]) -> list[float]:
        for length in lengths:
            gamma_of(length)
        return sorted(set(lengths))

    def rate(self, begin: int, end: int) -> LearningRate:
        """Return the learning rate of a node that trains from image ``begin`` to image ``end``."""
        return LearningRate(
            peak=self.learning_rate,
            schedule=self.schedule,
            begin=begin,
            end=end,
            warmup_images=self.warmup_images,
            decay_images=self.decay_images,
        )


class Overrides(Strict):
    """Settings of an expert that override its stage's ``training:``."""

    learning_rate: Annotated[float | None, Field(gt=0), LATER] = None
    """Peak learning rate, if other than in the stage's ``training``."""

    schedule: Annotated[Schedule | None, LATER] = None
    """Learning-rate schedule, if other than in the stage's ``training``."""

    decay_images: Annotated[int | None, Field(ge=1), LATER] = None
    """Images at the peak learning rate with ``inverse_sqrt``, if other than in the stage's
    ``training``."""

    warmup_images: Annotated[int | None, Field(ge=0), LATER] = None
    """Images over which the learning rate rises from zero, if other than in the stage's
    ``training``."""

    @property
    def overrides(self) -> dict[str, Any]:
        """The overrides that the spec sets."""
        return {k: v for k in Overrides.model_fields if (v := getattr(self, k)) is not None}

    def over(self, training: Training) -> Training:
        """Return the expert's training settings; ``decay_images`` only if its schedule uses it."""
        own = training.model_copy(update=self.overrides)
        unused = {} if own.schedule == "inverse_sqrt" else {"decay_images": None}
        return own.model_copy(update=unused)


class Cadence(Strict):
    """How often training saves, logs, validates and draws samples. Nothing here changes its result.

    Intervals are counted in images, and take effect at the end of the batch that completes them.
    """

    checkpoint_images: int = Field(8000, ge=1)
    """Images between checkpoints."""

    keep_latest: Annotated[int, Field(ge=1), Renamed("keep")] = 2
    """Number of checkpoints to keep while training, the latest ones."""

    milestone_images: int | None = Field(None, ge=1)
    """Images between checkpoints that are kept for good. By default there are none."""

    log_images: int = Field(640, ge=1)
    """Images between log entries."""

    loss_bins: int = Field(8, ge=1)
    """Noise levels the training loss is logged for: equal shares of the expert's interval of
    p(σ)."""

    validate_images: int = Field(8000, ge=1)
    """Images between validations."""

    validate_draws: int = Field(256, ge=2)
    """Draws (a validation picture with a σ and its noise) that the validation loss is averaged
    over. At most 512 in a stage with more experts than the root."""

    validate_bins: int = Field(8, ge=1)
    """Noise levels the validation loss is logged for: equal shares of p(σ)."""

    sample_images: Annotated[int | None, Field(ge=1), Renamed("picture_images")] = None
    """Images between sheets of sample pictures. By default samples are drawn at the end only."""


class Retries(Strict):
    """How often a failed training is retried, by kind of failure.

    The counts start again whenever an attempt got further than the last.
    """

    preemptions: int = Field(8, ge=0)
    """Retries after a worker, its machine or the actor that drives the workers was lost or
    preempted."""

    machines: int = Field(120, ge=0)
    """Retries while the cluster has no room for all workers, as when it scales up. Each waits about
    a minute."""

    failures: int = Field(3, ge=0)
    """Retries after an error of storage, network or disk, or after a worker stopped responding."""

    bugs: int = Field(1, ge=0)
    """Retries after any other error. An error that repeats at the same image is never retried
    twice."""

    backoff_s: float = Field(1.0, ge=0)
    """Seconds to wait before the first retry; doubled for each further one."""

    backoff_max_s: float = Field(60.0, ge=0)
    """Maximum seconds to wait before a retry."""


class Workers(Strict):
    """The worker processes that train one expert, and how they share its batches.

    Any number of workers trains on the same images in the same order with the same noise, so
    results differ only by rounding. These settings may change between two attempts of a training.
    """

    count: int = Field(1, ge=1)
    """Number of workers, at most one per image of the batch."""

    gpus: float = Field(0, ge=0)
    """GPUs of each worker; 0 trains on CPUs, a fraction shares a GPU."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the machines to run on, as Ray selects nodes by label."""

    parallel: Literal["ddp", "fsdp", "hybrid"] = "ddp"
    """How workers share the weights. ``ddp``: each has all of them. ``fsdp``: each has a part, for
    networks that do not fit on one GPU. ``hybrid``: each has a part within its machine, and the
    machines are replicas. ``fsdp`` and ``hybrid`` need a ``count`` above 1."""

    micro_batch: int | Literal["auto"] | None = Field(None, json_schema_extra={"minimum": 1})
    """Images a worker computes on at once, with gradient accumulation. ``auto``: as many as fit on
    the GPU; needs ``ddp``. By default a worker's whole share of the batch."""

    activation_checkpointing: Annotated[list[int], Renamed("recompute")] = Field(
        default_factory=list
    )
    """Levels of the network whose activations are recomputed in the backward pass instead of
    stored: slower, with far less memory. Level 0 has the highest resolution."""

    compile: bool = False
    """Whether to compile the network's blocks with ``torch.compile``."""

    channels_last: bool = False
    """Whether to use the memory format ``channels_last``, which is faster for convolutions on
    recent GPUs."""

    timeout_s: float = Field(600.0, gt=0)
    """Seconds that workers wait for each other before the attempt fails and names the one that is
    missing."""

    retries: Retries = Retries()
    """How often a failed training is retried."""

    keep_warm: bool = False
    """Whether a worker process stays and takes the next training, for many short ones: starting
    one takes seconds. Needs a ``count`` of 1."""

    @model_validator(mode="after")
    def sound(self) -> Self:
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise ValueError(f"`micro_batch:` must be at least 1 or auto, got {self.micro_batch}")
        if self.micro_batch == "auto" and self.parallel != "ddp":
            raise ValueError(
                "`micro_batch: auto` is for `parallel: ddp`; split weights are gathered by all at "
                "once, and one worker that is out of memory would leave the others waiting"
            )
        if self.keep_warm and self.count != 1:
            raise ValueError(
                "`keep_warm: true` is for trainings with one worker; set `count: 1` or leave out "
                "`keep_warm:`"
            )
        if self.parallel != "ddp" and self.count == 1:
            raise ValueError(f"`parallel: {self.parallel}` splits over workers; set `count:` > 1")
        return self
