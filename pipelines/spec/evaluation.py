"""The spec's ``evaluate:``: how finished ensembles are measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ediffi_core.noise import NoiseDistribution
from pipelines.spec.base import LATER, Labels, Strict
from pipelines.spec.probes import GivenProbes, Probes
from pipelines.spec.renamed import Renamed


class Degrade(Strict):
    """Degradation of the low-resolution pictures that super-resolution is trained on.

    It teaches the network to repair artefacts of the stage below (eDiff-I section 4). Each picture
    draws its own strength, from none to the values here. Kinds and strengths are our defaults.
    """

    probability: float = Field(0.5, ge=0, le=1)
    """Probability of each of the five degradations, independently."""

    blur_sigma: float = Field(1.0, ge=0)
    """Maximum Gaussian blur: its standard deviation in pixels of the low-resolution picture."""

    downscale: Annotated[float, Field(ge=1), Renamed("shrink")] = 2.0
    """Maximum factor by which the sides are divided, before the picture is enlarged back."""

    gaussian_noise: float = Field(0.1, ge=0)
    """Maximum Gaussian noise: its standard deviation, with pixels in [-1, 1]."""

    poisson_noise: float = Field(0.1, ge=0)
    """Maximum Poisson noise: its standard deviation at white, with pixels in [-1, 1]. It falls
    with the square root of the brightness."""

    jpeg_quality: int = Field(40, ge=1, le=95)
    """Minimum JPEG quality; the maximum is 95."""


UNTRAINED_CAPTIONS = 32
"""Captions that the untrained network draws pictures for."""

FEWEST_DRAWS = 512
"""Minimum number of draws in an expert's interval, however many experts share the draws."""


class Losses(Strict):
    """How denoising losses are measured, identically for all models that are compared.

    Stages may train with another p(σ), loss weight or degradation; these here decide what they are
    measured on. So a model that trains on easier draws has no advantage.
    """

    draws: int = Field(4096, ge=FEWEST_DRAWS)
    """Number of draws (a picture with a σ and its noise) per stage, divided evenly between the
    intervals of its experts, but at least 512 for each. Half of σ follow p(σ), half the sampler's
    steps."""

    P_mean: float = -1.2
    """Mean of ln σ in the p(σ) that ``val_loss`` is averaged over; EDM's value
    (arXiv:2206.00364)."""

    P_std: float = Field(1.2, gt=0)
    """Standard deviation of ln σ in that p(σ); EDM's value."""

    sigma_data: float = Field(0.5, gt=0)
    """σ_data in the loss weight λ(σ) = (σ² + σ_data²) / (σ σ_data)²; EDM's value."""

    degrade: Degrade = Degrade()
    """Degradation of the low-resolution pictures in super-resolution stages."""

    strata: Annotated[int | None, Field(ge=1), LATER] = None
    """Measure in this many equal shares of the stage's p(σ) in place of the intervals of its
    experts, so that pipelines with other trees are measured on the same draws. The shares are
    called ``1/8`` to ``8/8``, from low to high noise."""

    @property
    def noise(self) -> NoiseDistribution:
        return NoiseDistribution(P_mean=self.P_mean, P_std=self.P_std)

    def draws_each(self, experts: int) -> int:
        """Return the number of draws in each expert's interval."""
        return max(FEWEST_DRAWS, self.draws // experts)


Measure = Literal["fid", "kid", "cmmd", "precision_recall", "density_coverage", "neighbours"]
"""Measures of sets of pictures (:mod:`ediffi_core.measures`)."""

FeatureName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]

TORCHSCRIPT = "torchscript"


class FeatureNetwork(Strict):
    """A network whose features describe pictures, for measures of sets of pictures.

    ``{kind: inception, weights: /models/weights-inception-2015-12-05-6726825d.pth}`` makes FID and
    KID those that papers report, ``{kind: clip, model: ViT-L-14-336}`` is for CMMD.
    """

    kind: Literal["clip", "inception", "network"]
    """``clip``: an OpenCLIP model. ``inception``: InceptionV3 as torch-fidelity has it; needs that
    package. ``network``: any network of torchvision, timm or TorchScript."""

    model: str | None = None
    """For ``clip``: OpenCLIP's name of a model, or a folder; ``encoders.clip`` by default. For
    ``network``: ``torchvision:NAME``, ``timm:NAME``, or ``torchscript``."""

    pretrained: str | None = None
    """For ``clip``: OpenCLIP's tag of the weights, ``openai`` by default; unused for a folder."""

    weights: str | None = None
    """File of the weights, for all but ``clip``: a state dict in PyTorch's format or safetensors,
    or a TorchScript program. Features are measured again if its content changes."""

    layer: str | None = None
    """For ``inception``: ``64``, ``192``, ``768`` or ``2048``, the default. For ``network``: the
    module whose output is taken, averaged over positions; by default what the classifier reads."""

    size: int | None = Field(None, ge=1)
    """For ``torchscript``: side in pixels that pictures are resized to (bicubic, antialiased); not
    resized by default. Other networks have sizes of their own."""

    mean: Channels | None = None
    """For ``torchscript``: mean of each channel that is subtracted, of values in [0, 1]; 0 by
    default."""

    std: Channels | None = None
    """For ``torchscript``: standard deviation of each channel that is divided by; 1 by default."""

    @property
    def is_torchscript(self) -> bool:
        return self.kind == "network" and self.model == TORCHSCRIPT

    @model_validator(mode="after")
    def fits_its_kind(self) -> Self:
        allowed = {
            "clip": {"model", "pretrained"},
            "inception": {"weights", "layer"},
            "network": {"model", "weights"}
            | ({"size", "mean", "std"} if self.is_torchscript else {"layer"}),
        }[self.kind]
        needed = {"clip": set(), "inception": {"weights"}, "network": {"model", "weights"}}
        given = {n for n in type(self).model_fields if n != "kind" and getattr(self, n) is not None}
        what = f"{self.kind} {self.model}" if self.is_torchscript else self.kind
        if extra := sorted(given - allowed):
            raise ValueError(f"`{extra[0]}:` has no meaning for {what}; remove it")
        if lacking := sorted(needed[self.kind] - given):
            raise ValueError(f"features of kind {what} need `{lacking[0]}:`")
        if "://" in (self.weights or ""):
            raise ValueError(
                f"`weights: {self.weights}` is an address; write the path of a file that all "
                "machines have"
            )
        if self.kind == "network" and not self.is_torchscript:
            library, _, name = (self.model or "").partition(":")
            if library not in ("torchvision", "timm") or not name:
                raise ValueError(
                    f"`model: {self.model}` is no network; write `torchvision:NAME`, `timm:NAME` "
                    f"or `{TORCHSCRIPT}`"
                )
        if self.kind == "inception" and self.layer not in (None, "64", "192", "768", "2048"):
            raise ValueError(
                f'inception has no layer {self.layer!r}; write "64", "192", "768" or "2048"'
            )
        return self


class MeasureOptions(Strict):
    """Options of ``evaluate.measures``."""

    kid_subsets: int = Field(100, ge=1)
    """Random subsets whose kernel distances ``kid`` averages; torch-fidelity's default."""

    kid_subset_size: int = Field(1000, ge=3)
    """Pictures of each kind in a subset; ``kid`` needs at least that many."""

    precision_k: int = Field(3, ge=1)
    """Neighbours of ``precision_recall``."""

    density_k: int = Field(5, ge=1)
    """Neighbours of ``density_coverage``."""

    def fewest(self, measure: Measure) -> int:
        """Return the number of pictures of each kind that a measure needs."""
        return {
            "fid": 4,
            "kid": self.kid_subset_size,
            "cmmd": 3,
            "precision_recall": self.precision_k + 1,
            "density_coverage": self.density_k + 1,
            "neighbours": 2,
        }[measure]


class Evaluate(Strict):
    """How a finished ensemble is evaluated: sampling for validation captions, metrics, losses."""

    captions: int = Field(128, ge=2)
    """Number of validation captions to draw a picture for."""

    batch: int = Field(64, ge=1)
    """Pictures that are drawn together."""

    metrics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Additional metrics with their options, by the names under which packages register them (see
    :mod:`pipelines.metrics`): ``{emoji-scenes: {}}`` is the demo's, ``{fashion-mnist: {}}`` that
    of Fashion-MNIST."""

    clip: str | None = None
    """CLIP model that computes the CLIP score, by name or folder. Choose another than
    ``encoders.clip``: a model favours pictures that were conditioned on its own embeddings. By
    default there is no CLIP score; without ``metrics`` too, ``encoders.clip`` is used, and the run
    warns."""

    clip_pretrained: str = "openai"
    """OpenCLIP's tag of the weights for ``clip``, as in ``open_clip.list_pretrained()``."""

    features: Annotated[dict[FeatureName, FeatureNetwork], LATER] = Field(default_factory=dict)
    """Networks whose features ``measures`` are computed on, by names of your choice. Results are
    called by measure and name: ``fid/inception``."""

    measures: Annotated[list[Measure], LATER] = Field(["fid", "kid", "precision_recall"])
    """What is measured on each of ``features``: ``fid`` and ``kid`` (as torch-fidelity), ``cmmd``
    (only on features of CLIP), ``precision_recall``, ``density_coverage``, and ``neighbours``, the
    nearest training pictures, which show what is memorised. No effect without ``features``."""

    measure_options: Annotated[MeasureOptions, LATER] = MeasureOptions()
    """Options of ``measures``."""

    neighbours_pictures: Annotated[int, Field(ge=2), LATER] = 1_000_000
    """Most training pictures that ``neighbours`` compares with. Of more, it takes this many, spread
    evenly over the data in runs of 64; a copy of another picture is then not found."""

    losses: Losses = Losses()
    """How denoising losses are measured."""

    gradients: Annotated[int | None, Field(ge=2), LATER] = None
    """Number of equal shares of p(σ) between which the gradients of each root's loss are compared:
    the cosine says how alike the tasks are (arXiv:2306.00354). By default they are not compared."""

    gradient_pictures: Annotated[int, Field(ge=2), LATER] = 256
    """Validation pictures that ``gradients`` averages over."""

    workers: Annotated[int, Field(ge=1), LATER] = 1
    """Processes that share an evaluation's pictures, on any machines of the cluster. Results do not
    depend on their number. Each holds ``cpus`` and ``gpus``."""

    cpus: int = Field(1, ge=1)
    """CPUs that draw and measure, of each worker."""

    gpus: float = Field(0, ge=0, le=1)
    """GPU that draws and measures, of each worker, from 0 (none) to 1 (a whole one); a fraction
    shares it. All experts must fit in its memory."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the machines to run on, as Ray selects nodes by label."""

    probes: Annotated[GivenProbes, LATER] = Probes()
    """What else is looked at in the models of the base stage, each in a node of its own: names, or
    names with options. None by default."""

    @field_validator("measures")
    @classmethod
    def distinct(cls, measures: list[Measure]) -> list[Measure]:
        if len(set(measures)) < len(measures):
            raise ValueError(f"names a measure twice: {', '.join(measures)}")
        return measures

    def measures_on(self, name: str) -> list[Measure]:
        """Return the measures that apply to some features: ``cmmd`` only to those of CLIP."""
        clip = self.features[name].kind == "clip"
        return [m for m in self.measures if m != "cmmd" or clip]

    @field_validator("metrics")
    @classmethod
    def installed(cls, metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not metrics:
            return metrics
        from pipelines.metrics import metric

        for name, options in metrics.items():
            metric(name, options)
        return metrics
