"""The YAML spec, typed and validated. An error names the key, what it got and what to write."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from ediffi_core import tree
from ediffi_core.noise import NoiseDistribution
from ediffi_core.solver_names import SOLVER_NAMES
from ediffi_core.unet import PRESETS, FieldError
from pipelines.spec.adaptive import Adaptive
from pipelines.spec.base import Labels, Strict
from pipelines.spec.cluster import EMBEDDING, Cluster
from pipelines.spec.data import Source
from pipelines.spec.evaluation import Degrade, Evaluate
from pipelines.spec.gpus import ASSUMED, known_gpu
from pipelines.spec.network import Network
from pipelines.spec.notify import Notify
from pipelines.spec.promotion import Promotion, Retraining
from pipelines.spec.s3 import S3
from pipelines.spec.training import Cadence, Overrides, Training, Workers


class Data(Strict):
    train: Source
    validation: Source


class MoreText(Strict):
    """A further text encoder, in the Hugging Face format."""

    model: str
    """Its name or folder; or ``package:NAME/FOLDER``, a folder of an installed Python package."""

    dim: int = Field(ge=1)
    """Width of its vectors."""

    kind: Literal["sequence", "pooled"] = "sequence"
    """Every token, to be attended; or their mean, added to the time embedding."""


class Encoders(Strict):
    """T5 and CLIP by name or folder; or tiny ones made for the demo."""

    t5: str = "google/t5-v1_1-xxl"
    clip: str = "ViT-L-14"
    clip_pretrained: str = "openai"
    t5_dtype: Literal["float32", "bfloat16"] = "float32"
    """What T5 computes in; bfloat16 halves the 19 GB of XXL's encoder."""

    more: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")], MoreText] = Field(
        default_factory=dict
    )
    """Further encoders of the captions, by the names of their embeddings."""

    make: Literal["tiny"] | None = None
    clip_images: int = Field(20_000, ge=256)
    """How many images the tiny CLIP is trained on, in batches of 128."""

    @model_validator(mode="after")
    def own_names(self) -> Self:
        taken = {"t5", "clip_text", "clip_text_pooled", "clip_image", "all", "others"}
        if wrong := sorted(taken & set(self.more)):
            raise ValueError(f"`more:` cannot name an embedding {wrong[0]!r}: choose another name")
        return self


class Pool(Strict):
    """The actors of one stage of the embedding job."""

    actors: int | None = Field(None, ge=1)
    """One, where another stage's are given. Where none of any stage is given, each CPU has an actor
    that does all stages: enough without a GPU."""

    gpus: float = Field(0, ge=0)
    """Of each actor; a fraction lets several share one."""


class Embedding(Strict):
    """How the data set is embedded, and how its shards are kept."""

    precision: Literal["fp16", "bf16", "int8"] = "fp16"
    """Of token sequences; int8 with a scale a token halves the bytes."""

    pictures: Literal["raw", "png", "jpeg"] = "png"
    jpeg_quality: int = Field(95, ge=1, le=100)
    row_group_rows: int = Field(32, ge=1)
    """What training reads at once."""

    decode: Pool = Pool()
    t5: Pool = Pool()
    clip: Pool = Pool()
    write: Pool = Pool()
    batch_tokens: int | Literal["auto"] = 8192
    """Tokens an encoder works on together, padding counted. ``auto``: as many as a GPU has memory
    for, found when the job starts; see :mod:`pipelines.steps.embed_batch`."""

    clip_batch: int | Literal["auto"] = 64
    """Pictures CLIP works on together, or ``auto``."""

    labels: Labels = Field(default_factory=dict)
    """The machines that its actors run on."""

    gpu: str = ASSUMED.gpu
    """Which GPU the plan counts in; changes nothing but its estimate."""

    utilisation: float = Field(ASSUMED.utilisation, gt=0, le=1)
    """Share of that GPU's peak the plan reckons with."""

    @field_validator("batch_tokens", "clip_batch", mode="before")
    @classmethod
    def size(cls, given: Any) -> Any:
        if given != "auto" and (type(given) is not int or given < 1):
            raise ValueError(f"write a whole number from 1, or auto; got {given!r:.40}")
        return given

    @field_validator("gpu")
    @classmethod
    def known(cls, gpu: str) -> str:
        return known_gpu(gpu)

    @property
    def packing(self) -> dict[str, Any]:
        """What of this determines the shards."""
        return self.model_dump(include={"precision", "pictures", "jpeg_quality", "row_group_rows"})

    @property
    def gpus(self) -> float:
        """Of all its actors."""
        return sum((p.actors or 1) * p.gpus for p in (self.decode, self.t5, self.clip, self.write))

    @property
    def running(self) -> dict[str, Any]:
        """What of this is only how they are made."""
        return self.model_dump(
            include={"decode", "t5", "clip", "write", "batch_tokens", "clip_batch", "labels"}
        )


class Expert(Overrides):
    images: int = Field(ge=1)
    cpus: int = Field(1, ge=1)
    """Of each worker."""

    start: Literal["ema", "raw"] = "ema"
    """Which of the parent's weights a child starts from."""

    optimizer: Literal["fresh", "carried"] = "fresh"
    """Whether a child's optimiser begins anew or where the parent's ended."""


class Sampling(Strict):
    """How a stage's pictures are drawn, unless whoever draws says otherwise."""

    steps: int = Field(25, ge=1)
    solver: str = "deis3"
    guidance: float = Field(0.0, ge=0)
    """w of ``D = D_c + w (D_c − D_u)``; 0 is none."""

    @model_validator(mode="after")
    def known(self) -> Self:
        if self.solver not in SOLVER_NAMES:
            known = ", ".join(SOLVER_NAMES)
            raise ValueError(f"solver {self.solver!r} is unknown; there are {known}")
        return self


class Stage(Strict):
    """One step of the cascade. The first draws from noise, each other enlarges the one before."""

    resolution: int = Field(64, ge=4)
    crop: int | None = Field(None, ge=4)
    """Super-resolution: trains on random crops of this side, and runs on the whole picture."""

    degrade: Degrade = Degrade()
    sampling: Sampling = Sampling()
    network: Network = Network()
    training: Training = Training()
    cadence: Cadence = Cadence()
    workers: Workers = Workers()
    priority: int = 0
    """Nodes of a higher one start first; among equals those with the longest way to the end."""

    limit_hours: float | None = Field(None, gt=0)
    """How long the training of one expert may take: it then saves, leaves and counts as failed, and
    the next run goes on from there with as many hours again."""

    experts: dict[str, Expert]
    ensemble: list[str] = Field(default_factory=list)
    adaptive: Adaptive | None = None
    """Grows the tree below ``E0_0`` by what is gained, in place of a list of experts."""

    adopt: Literal["better", "always"] = "better"
    """Whether an expert that did not beat its parent gives its seat to the nearest ancestor that
    did."""

    single: Expert | None = None
    """Trains the root on, to this many images in all: the equal-budget comparison."""

    P_mean: float = -1.2
    P_std: float = Field(1.2, gt=0)
    sigma_data: float = Field(0.5, gt=0)

    @property
    def noise(self) -> NoiseDistribution:
        return NoiseDistribution(P_mean=self.P_mean, P_std=self.P_std)

    @property
    def grown(self) -> Expert:
        """Each expert that an adaptive tree grows."""
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
                    f"`ensemble:` names {name}, which `experts:` lacks" + near(name, self.experts)
                )
        if self.adaptive and (set(self.experts) != {tree.ROOT} or self.ensemble):
            raise ValueError(
                f"`adaptive:` decides on the experts: name {tree.ROOT} alone, and no `ensemble:`"
            )
        if not self.adaptive:
            tree.check_cover(tree.intervals_of(self.ensemble))
        if tree.COMPLEMENT in self.experts and tree.COMPLEMENT not in self.ensemble:
            raise ValueError(f"{tree.COMPLEMENT} is trained but `ensemble:` does not use it")
        batch = self.training.batch
        trained = {**self.experts, **({"single": self.single} if self.single else {})}
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
        if self.workers.count > batch:
            raise ValueError(
                f"{self.workers.count} workers cannot share a batch of {batch}; raise `batch:`"
            )
        if self.single and self.single.images < self.experts[tree.ROOT].images:
            raise ValueError("`single:` continues the root, so it needs at least as many images")
        return self


class Spec(Strict):
    """One pipeline."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seed: int = 0
    storage: str = "ediffi-store"
    tracking: str | None = None
    """MLflow's address; without one MLFLOW_TRACKING_URI, else a SQLite file in the store, or for
    a store in a bucket in a folder of this machine's."""

    s3: S3 = S3()

    cpus: int = Field(2, ge=1)
    """CPUs the run may use at the same time."""

    gpus: float = Field(0, ge=0)
    """GPUs likewise."""

    data: Data
    encoders: Encoders = Encoders()
    embedding: Embedding = Embedding()
    stages: dict[str, Stage] = Field(min_length=1)
    """The cascade, from the smallest pictures to the largest."""

    evaluate: Evaluate = Evaluate()
    promotion: Promotion = Promotion()
    notify: Notify = Notify()
    retraining: Retraining = Retraining()
    cluster: Cluster | None = None
    """What the plan reckons time and money with; see :mod:`pipelines.spec.cluster`."""

    def network_of(self, stage: str) -> dict[str, Any]:
        """A stage's network as :meth:`UNetConfig.from_dict` reads it, but for its embeddings, which
        are those of the shards that are read."""
        of = self.stages[stage]
        return of.network.described(
            resolution=of.crop or of.resolution, low_res=stage != next(iter(self.stages))
        )

    @model_validator(mode="after")
    def fits(self) -> Self:
        for name, stage in self.stages.items():
            cpus = [e.cpus for e in (*stage.experts.values(), stage.adaptive) if e]
            needed = stage.workers.count * max(cpus)
            if needed > self.cpus:
                raise ValueError(
                    f"stage {name}: {stage.workers.count} workers need {needed} CPUs at once, "
                    f"`cpus:` allows {self.cpus}"
                )
            gpus = stage.workers.count * stage.workers.gpus
            if gpus > self.gpus:
                raise ValueError(
                    f"stage {name}: {stage.workers.count} workers need {gpus:g} GPUs at once, "
                    f"`gpus:` allows {self.gpus:g}; write `gpus: {gpus:g}` or more"
                )
        if self.evaluate.cpus > self.cpus:
            raise ValueError(
                f"`evaluate.cpus: {self.evaluate.cpus}` is more than `cpus:` allows ({self.cpus})"
            )
        if self.evaluate.gpus > self.gpus:
            raise ValueError(
                f"`evaluate.gpus: {self.evaluate.gpus:g}` is more than `gpus:` allows "
                f"({self.gpus:g})"
            )
        if self.embedding.gpus > self.gpus:
            raise ValueError(
                f"`embedding:` needs {self.embedding.gpus:g} GPUs at once, `gpus:` allows "
                f"{self.gpus:g}; write `gpus: {self.embedding.gpus:g}` or more"
            )
        return self

    @model_validator(mode="after")
    def known_cluster(self) -> Self:
        known = {*self.stages, EMBEDDING}
        for stage in self.cluster.stages if self.cluster else ():
            if stage not in known:
                raise ValueError(
                    f"`cluster.stages` names {stage!r}; there are {', '.join(sorted(known))}"
                    + near(stage, known)
                )
        return self

    @model_validator(mode="after")
    def sound_cascade(self) -> Self:
        below: Stage | None = None
        for name, stage in self.stages.items():
            preset = stage.network.preset
            if preset and PRESETS[preset].low_res != (below is not None):
                kind = "super-resolution" if below else "base"
                fit = [p for p, config in PRESETS.items() if config.low_res == (below is not None)]
                raise ValueError(
                    f"stage {name} is a {kind} stage, preset {preset!r} is not; "
                    f"those that are: {', '.join(fit)}"
                )
            if below is None and stage.crop:
                raise ValueError(f"stage {name} draws from noise: `crop:` is for super-resolution")
            if below is not None:
                factor, rest = divmod(stage.resolution, below.resolution)
                if rest or factor < 2:
                    raise ValueError(
                        f"stage {name} enlarges {below.resolution} to {stage.resolution}: "
                        "write a whole multiple of the stage before"
                    )
                if stage.crop and (stage.crop % factor or stage.crop > stage.resolution):
                    raise ValueError(
                        f"stage {name}: crop {stage.crop} must be a multiple of {factor}, "
                        f"at most {stage.resolution}"
                    )
            below = stage
        return self


def load(path: str | Path) -> Spec:
    """Reads and checks a spec; ValueError with one line if it is not sound."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no spec at {path}; pipelines/specs/ has some to start from")
    try:
        raw = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {_where(error)}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold `name:`, `data:` and `stages:`, got {raw!r:.40}")
    try:
        return Spec.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None


def _where(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML and in which line; not the line, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{said} (line {error.problem_mark.line + 1})"


def near(word: str, known: Any) -> str:
    match = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f"; did you mean `{match[0]}`?" if match else ""


def explain(error: ValidationError) -> str:
    """The first of pydantic's complaints, in words."""
    first = error.errors()[0]
    field = getattr(first.get("ctx", {}).get("error"), "field", "")
    key = ".".join(str(part) for part in (*first["loc"], field) if part != "")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        hint = near(str(first["loc"][-1]), known) or f"; known are {', '.join(known)}"
        return f"unknown key `{key}`{hint}{more}"
    if first["type"] == "missing":
        return f"`{key}` is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"`{key}`: {message}{more}"
    got = "" if key.split(".")[0] == "s3" else f", got {first['input']!r:.60}"  # a secret perhaps
    return f"`{key}`: {message[:1].lower()}{message[1:]}{got}{more}"


def _fields_at(path: tuple[int | str, ...]) -> list[str]:
    model: Any = Spec
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            annotation: Any = model.model_fields[str(part)].annotation
        else:  # a key of a dict[str, Model]
            annotation = model
        arguments = [a for a in getattr(annotation, "__args__", ()) if a is not str]
        models = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        model = models[0] if models else annotation
        if getattr(annotation, "__origin__", None) is dict:
            model = DictOf(models[0])
        elif isinstance(annotation, DictOf):
            model = annotation.model
    return list(model.model_fields)


class DictOf:
    """Marks, while walking a path, that the next part is a free key."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
