"""The networks that a spec's stages train, with what its encoders will tell them."""

from __future__ import annotations

from dataclasses import asdict

from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.unet import UNetConfig
from ediffi_core.unet.config import PAPER_EMBEDDINGS
from pipelines.planning.encoder_cost import clip_size, t5_size
from pipelines.planning.network import embeddings
from pipelines.spec.pipeline import Encoders, Spec


def config_of(spec: Spec, stage_name: str) -> UNetConfig:
    """As a training node of the stage builds it.

    Raises:
        FieldError: No such network can be built, or could be run.
    """
    told = [asdict(e) for e in embeddings_of(spec.encoders)]
    return UNetConfig.from_dict({**spec.network_of(stage_name), "embeddings": told})


def embeddings_of(encoders: Encoders) -> tuple[EmbeddingSpec, ...]:
    """Of encoders whose size is not known here, the paper's widths."""
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
