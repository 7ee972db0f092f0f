"""The spec's ``encoders:``: the frozen models whose embeddings condition the denoisers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from pipelines.spec.base import Strict


class MoreText(Strict):
    """A further text encoder in the Hugging Face format, besides T5 and CLIP."""

    model: str
    """Model name, as ``NAME@REVISION`` at a commit, or folder; ``package:NAME/FOLDER`` is a folder
    of an installed Python package."""

    dim: int = Field(ge=1)
    """Width of its embeddings."""

    kind: Literal["sequence", "pooled"] = "sequence"
    """``sequence``: all tokens, read by cross-attention. ``pooled``: the mean of the tokens, added
    to the time embedding."""


class Encoders(Strict):
    """The frozen encoders that embed captions and pictures once, before training.

    eDiff-I conditions on T5 XXL and on CLIP ViT-L/14, which are the defaults.
    """

    t5: str = "google/t5-v1_1-xxl"
    """T5 model: a name on Hugging Face, as ``NAME@REVISION`` at a commit, or a folder in its
    format."""

    clip: str = "ViT-L-14"
    """CLIP model: a name in OpenCLIP, or a folder in its format. It embeds captions and
    pictures."""

    clip_pretrained: str = "openai"
    """OpenCLIP's tag of the weights for ``clip``, as in ``open_clip.list_pretrained()``."""

    t5_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type T5 computes in. bfloat16 halves the 19 GB of T5 XXL's encoder."""

    more: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")], MoreText] = Field(
        default_factory=dict
    )
    """Further text encoders, by the names of their embeddings: lower-case letters, digits and
    ``_``."""

    make: Literal["tiny"] | None = None
    """Train tiny encoders on the data, in the formats of T5 and CLIP, instead of loading ``t5`` and
    ``clip``. For the demo."""

    clip_images: int = Field(20_000, ge=256)
    """Images to train the tiny CLIP on, with ``make``."""

    @model_validator(mode="after")
    def own_names(self) -> Self:
        taken = {"t5", "clip_text", "clip_text_pooled", "clip_image", "all", "others"}
        if wrong := sorted(taken & set(self.more)):
            raise ValueError(f"`more:` cannot name an embedding {wrong[0]!r}: choose another name")
        return self
