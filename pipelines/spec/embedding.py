"""The spec's ``embedding:``: how the data set is embedded, and how its shards are stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pipelines.spec.base import Labels, Strict
from pipelines.spec.gpus import ASSUMED, GPUS, known_gpu
from pipelines.spec.renamed import Renamed


class Pool(Strict):
    """The Ray actors of one step of the embedding job."""

    actors: int | None = Field(None, ge=1)
    """Number of actors; by default 1. If no step sets it, there is one actor per CPU that does all
    steps, which is enough without a GPU."""

    gpus: float = Field(0, ge=0)
    """GPUs of each actor; a fraction shares a GPU."""


class Embedding(Strict):
    """How the data set is embedded by the encoders, and how its shards are stored.

    The job is a Ray Data pipeline of four steps (``decode``, ``t5``, ``clip`` and ``write``).
    """

    precision: Literal["fp16", "bf16", "int8"] = "fp16"
    """Type in which token embeddings are stored. int8, with a scale per token, halves the bytes."""

    image_format: Annotated[Literal["raw", "png", "jpeg"], Renamed("pictures")] = "png"
    """Format in which pictures are stored. ``raw`` is uncompressed and fastest to read; ``jpeg``
    is lossy."""

    jpeg_quality: int = Field(95, ge=1, le=100)
    """JPEG quality, with ``image_format: jpeg``."""

    row_group_rows: int = Field(32, ge=1)
    """Rows in a row group of a shard, which training reads at once."""

    decode: Pool = Pool()
    """Actors that read, filter and resize pictures."""

    t5: Pool = Pool()
    """Actors that run T5 and the encoders in ``encoders.more``."""

    clip: Pool = Pool()
    """Actors that run CLIP."""

    write: Pool = Pool()
    """Actors that write shards."""

    batch_tokens: int | Literal["auto"] = Field(8192, json_schema_extra={"minimum": 1})
    """Tokens that a text encoder processes at once, padding included. ``auto``: as many as fit in
    the GPU's memory, found when the job starts (:mod:`pipelines.steps.embed_batch`)."""

    clip_batch: int | Literal["auto"] = Field(64, json_schema_extra={"minimum": 1})
    """Pictures that CLIP processes at once, or ``auto``."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the machines to run on, as Ray selects nodes by label."""

    gpu: str = Field(ASSUMED.gpu, json_schema_extra={"enum": list(GPUS)})
    """GPU model that the plan estimates GPU-hours for. Changes nothing else."""

    utilisation: float = Field(ASSUMED.utilisation, gt=0, le=1)
    """Share of that GPU's peak FLOP/s that the plan assumes. Our default: PaLM reports 0.46 in
    training (arXiv:2204.02311), and short captions reach less."""

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
        """The settings that determine the bytes of the shards."""
        return self.settings({"precision", "image_format", "jpeg_quality", "row_group_rows"})

    @property
    def gpus(self) -> float:
        """GPUs of all actors together."""
        return sum((p.actors or 1) * p.gpus for p in (self.decode, self.t5, self.clip, self.write))

    @property
    def running(self) -> dict[str, Any]:
        """The settings that only determine how the shards are made."""
        return self.settings(
            {"decode", "t5", "clip", "write", "batch_tokens", "clip_batch", "labels"}
        )
