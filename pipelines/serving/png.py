"""Pictures of the service as PNG files that ``ediffi sample --like`` draws again."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from ediffi_core.control import Phrase
from pipelines.models.metadata import Metadata, ModelId, installed
from pipelines.models.painting import decode_image
from pipelines.models.request import (
    Mask,
    Painted,
    Picture,
    Reference,
    Request,
    Start,
    Style,
    Then,
    black_and_white,
)
from pipelines.models.rows import Row
from pipelines.models.watch import Pictures
from pipelines.spec.sampling import Sampling, with_changes
from pipelines.store.artifacts import sha256

UPLOAD = "upload"
"""Stands for the path of a picture that came with a request and is not kept."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a picture's file says of how it was drawn."""

    model: ModelId
    row: Row
    sampling: Mapping[str, Sampling]
    """Stage → the ensemble's own settings, of all stages in order; the row changes them."""

    stage: str | None = None
    """Last stage that was run; all by default."""


def to_png(pixels: Pictures, said: Said) -> bytes:
    """A PNG file with the metadata of ``ediffi sample``, and with XMP that a model made it.

    Masks are stored. Of other uploaded pictures, the file has a hash: ``--like`` names those that
    are missing, and the option that gives them.

    Args:
        pixels: uint8 [H, W, 3].

    Raises:
        ValueError: The row's settings or the stage do not fit the ensemble.
    """
    found = Metadata(
        ediffi=installed(), model=said.model, request=request_of(said), shows=[0], scale=1
    )
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", pnginfo=found.chunks())
    return out.getvalue()


def request_of(said: Said) -> Request:
    """The request by which ``ediffi sample`` draws a row.

    Raises:
        ValueError: As of :func:`to_png`.
    """
    row, options = said.row, said.row.options
    names = list(said.sampling)
    if said.stage is not None and said.stage not in names:
        raise ValueError(f"there is no stage {said.stage!r}; the cascade has {', '.join(names)}")
    sampling = with_changes(said.sampling, json.loads(options.sampling))
    run = names[: names.index(said.stage) + 1] if said.stage else names
    weights = options.style_weights or (None,) * len(options.style)
    return Request(
        pictures=[Picture(prompt=row.prompt, seed=row.seed, number=row.number)],
        sampling={name: sampling[name] for name in run},
        stage=said.stage,
        negative=row.negative or None,
        style=[
            Style(file=UPLOAD, sha256=_hash(text), weight=weight)
            for text, weight in zip(options.style, weights, strict=True)
        ],
        image=Start(file=UPLOAD, sha256=_hash(options.image), sigma=options.sigma)
        if options.image
        else None,
        mask=_mask(options.mask) if options.mask else None,
        variation=Reference(file=UPLOAD, sha256=_hash(options.variation))
        if options.variation
        else None,
        then=Then(prompt=row.then, switch=options.switch, switch_sigma=options.switch_sigma)
        if options.has_second_prompt
        else None,
        paint=[_painted(phrase) for phrase in row.paint],
    )


def _hash(text: str) -> str:
    return sha256(base64.b64decode(text))


def _mask(text: str) -> Mask:
    return Mask(
        file=UPLOAD, sha256=_hash(text), png=black_and_white(decode_image(text, behind="black"))
    )


def _painted(phrase: Phrase) -> Painted:
    png = black_and_white(Image.fromarray((phrase.mask * 255).byte().numpy()))
    where = Mask(file=UPLOAD, sha256=_hash(png), png=png)
    return Painted(phrase=phrase.text, where=where, strength=phrase.strength)
