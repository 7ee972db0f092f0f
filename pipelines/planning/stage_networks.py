"""Configurations of the networks that a spec's stages train, with its encoders' embeddings."""

from __future__ import annotations

from dataclasses import asdict

from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.unet import UNetConfig
from ediffi_core.unet.config import PAPER_EMBEDDINGS
from pipelines.planning.encoder_cost import clip_size, t5_size
from pipelines.planning.network_size import embeddings
from pipelines.spec.encoders import Encoders
from pipelines.spec.pipeline import Spec


def config_of(spec: Spec, stage_name: str) -> UNetConfig:
    """Configuration of a stage's network, as a training node builds it.

    Raises:
        FieldError: The network cannot be built, or cannot run.
    """
    given = [asdict(e) for e in embeddings_of(spec.encoders)]
    return UNetConfig.from_dict({**spec.network_of(stage_name), "embeddings": given})


def embeddings_of(encoders: Encoders) -> tuple[EmbeddingSpec, ...]:
    """Embeddings that the encoders produce; the paper's widths for encoders of unknown size."""
    more = [
        EmbeddingSpec(name=name, dim=given.dim, kind=given.kind)
        for name, given in encoders.more.items()
    ]
    if encoders.make:
        from pipelines.demo.encoders import T5_WIDTH, WIDTH

        return embeddings(T5_WIDTH, WIDTH, WIDTH, more)
    width = {s.name: s.dim for s in PAPER_EMBEDDINGS}
    t5, clip = t5_size(encoders.t5), clip_size(encoders.clip)
    return embeddings(
        t5.width if t5 else width["t5"],
        clip.text.width if clip else width["clip_text"],
        clip.dim if clip else width["clip_image"],
        more,
    )
