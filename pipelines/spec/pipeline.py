"""The whole spec of a pipeline, and the checks that concern several of its parts."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from ediffi_core.unet.config import PRESETS
from pipelines.formatting import has_password
from pipelines.spec.base import LATER, Strict, did_you_mean
from pipelines.spec.cluster import EMBEDDING, Cluster
from pipelines.spec.data import Data
from pipelines.spec.embedding import Embedding
from pipelines.spec.encoders import Encoders
from pipelines.spec.evaluation import Evaluate
from pipelines.spec.names import NAME_PATTERN
from pipelines.spec.notify import Notify
from pipelines.spec.promotion import Promotion, Retraining
from pipelines.spec.s3 import S3
from pipelines.spec.stage import Stage


class Spec(Strict):
    """One pipeline, from the data to the champion."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the pipeline and of its model in the registry: lower-case letters, digits and
    hyphens."""

    seed: int = 0
    """Seed of all random draws: initial weights, order of the data, crops, noise, dropout."""

    data_seed: int | None = None
    """Seed of what pipelines share that differ in ``seed`` alone: generated data, made encoders,
    fitted metrics. By default ``seed``."""

    storage: str = "ediffi-store"
    """Folder or ``s3://`` URL of the store, where all results are kept."""

    storage_timeout_minutes: float = Field(60, ge=0)
    """How long a run waits for a store that is away or full. Trainings go on meanwhile, and are
    asked to save before the run fails."""

    tracking: str | None = Field(None, repr=False)  # it may hold a password
    """MLflow's tracking URI. By default the environment's ``MLFLOW_TRACKING_URI``, else a SQLite
    file in the store; for a store in a bucket, one below ``~/.local/share/ediffi``. Leave user and
    password to ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``, or for a database
    to the environment's ``MLFLOW_TRACKING_URI``: no record keeps them."""

    cpus: int = Field(2, ge=1)
    """CPUs of the cluster that the run may use at once."""

    gpus: float = Field(0, ge=0)
    """GPUs of the cluster that the run may use at once."""

    grace_s: Annotated[float, LATER] = Field(25, ge=0)
    """Seconds that training nodes may take to save after a SIGTERM or Ctrl-C. What kills the run
    later must wait for 10 s more: ``RAY_JOB_STOP_WAIT_TIME_S`` of Ray's job server,
    ``terminationGracePeriodSeconds`` of a pod."""

    data: Data
    """Image–caption pairs to train and validate on."""

    encoders: Encoders = Encoders()
    """Frozen encoders of captions and pictures."""

    embedding: Embedding = Embedding()
    """How the data is embedded and stored."""

    stages: dict[str, Stage] = Field(min_length=1)
    """Stages of the cascade by name, from the lowest resolution to the highest."""

    evaluate: Evaluate = Evaluate()
    """How finished ensembles are evaluated."""

    promotion: Promotion = Promotion()
    """When a new ensemble becomes champion."""

    notify: Notify = Notify()
    """Notification when a run ends."""

    retraining: Retraining = Retraining()
    """How ``ediffi retrain`` continues from the champion."""

    s3: S3 = S3()
    """How S3 is reached."""

    cluster: Cluster | None = None
    """GPUs that the plan estimates time and cost for."""

    @field_validator("storage")
    @classmethod
    def no_password(cls, given: str) -> str:
        if has_password(given):
            raise ValueError(
                "`storage:` holds a password, which every record would keep; set credentials in "
                "the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in `s3:`"
            )
        return given

    @property
    def seed_of_data(self) -> int:
        """Seed of generated data, made encoders and fitted metrics."""
        return self.seed if self.data_seed is None else self.data_seed

    def network_of(self, stage: str) -> dict[str, Any]:
        """Return a stage's network as :meth:`UNetConfig.from_dict` reads it.

        Without its embeddings, which depend on the shards that are read.
        """
        of = self.stages[stage]
        return of.network.described(
            resolution=of.crop or of.resolution, low_res=stage != next(iter(self.stages))
        )

    @model_validator(mode="after")
    def fits(self) -> Self:
        for name, stage in self.stages.items():
            trained = (*stage.experts.values(), *stage.continued.values(), stage.adaptive)
            cpus = [e.cpus for e in trained if e]
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
        evaluate, each = self.evaluate, ""
        if evaluate.workers > 1:
            each = f" for each of {evaluate.workers} workers"
        if evaluate.workers * evaluate.cpus > self.cpus:
            raise ValueError(
                f"`evaluate.cpus: {evaluate.cpus}`{each} is more than `cpus:` allows ({self.cpus})"
            )
        if evaluate.workers * evaluate.gpus > self.gpus:
            raise ValueError(
                f"`evaluate.gpus: {evaluate.gpus:g}`{each} is more than `gpus:` allows "
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
                    + did_you_mean(stage, known)
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
