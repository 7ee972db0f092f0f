"""Drawing what a request asks for, a batch at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ediffi_core.control import Phrase
from pipelines.models import painting
from pipelines.models.controls import check_options
from pipelines.models.request import Painted, Request

if TYPE_CHECKING:
    from pipelines.models.text_to_image import TextToImage
    from pipelines.models.watch import Pictures


@dataclass(frozen=True)
class Inputs:
    """What a request refers to, opened."""

    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of :meth:`TextToImage.sample` besides prompts, seeds and settings."""

    paint: list[list[Phrase]] = field(default_factory=list)
    """Painted phrases of each picture; empty if none has any."""


def open_inputs(request: Request, beside: Path | None = None) -> Inputs:
    """Open the files of a request, and place its painted phrases.

    Args:
        beside: the picture that the request comes from; files are searched in its folder as well.

    Raises:
        ValueError: A file is gone, has changed or is no picture; options do not fit each other; or
            a phrase is in no prompt.
    """

    def opened(reference: Any, option: str) -> Any:
        return painting.open_image(reference.find(option, beside))

    found: dict[str, Any] = {}
    if request.style:
        found["style"] = [opened(style, "--style") for style in request.style]
        if any(style.weight is not None for style in request.style):
            weights = [1.0 if s.weight is None else s.weight for s in request.style]
            found["style_weights"] = weights
    if request.image:
        found |= {"image": opened(request.image, "--image"), "sigma": request.image.sigma}
    if request.mask:
        found["mask"] = request.mask.image()
    if request.variation:
        found["variation"] = opened(request.variation, "--variation")
    if request.negative:
        found["negative"] = request.negative
    if request.then:
        found |= {
            "then": request.then.prompt,
            "switch": request.then.switch,
            "switch_sigma": request.then.switch_sigma,
        }
    options = {name: value for name, value in found.items() if value is not None}
    _check(options, request)
    return Inputs(options, _placed(request))


def _check(options: Mapping[str, Any], request: Request) -> None:
    base = next(iter(request.sampling.values()))
    checked = {k: v for k, v in options.items() if k not in ("style", "negative")}
    check_options(
        **checked,
        styles=len(request.style),
        sigma_min=base.sigma_min,
        sigma_max=base.sigma_max,
    )


def _placed(request: Request) -> list[list[Phrase]]:
    """The painted phrases of each picture: those that one of its prompts has as whole words."""
    if not request.paint:
        return []
    prompts = [picture.prompt for picture in request.pictures]
    then = request.then.prompt if request.then else None
    found: list[list[Phrase]] = [[] for _ in prompts]
    for painted in request.paint:
        phrase = Phrase(painted.phrase, _mask(painted), painted.strength)
        for i in painting.holders(painted.phrase, prompts, then):
            found[i].append(phrase)
    return found


def _mask(painted: Painted) -> Any:
    where = painted.where
    if isinstance(where, list):
        return painting.box_mask(where)
    return painting.image_mask(where.image())


def render(
    model: TextToImage, request: Request, inputs: Inputs, wanted: Collection[int]
) -> Iterator[tuple[range, Pictures]]:
    """Draw the pictures of a request.

    Args:
        wanted: numbers of pictures; batches without any of them are skipped.

    Yields:
        The numbers of a batch's pictures in the request, and the pictures, uint8 [N, R, R, 3].
    """
    settings = {
        f"{stage}.{name}": value
        for stage, sampling in request.sampling.items()
        for name, value in sampling.model_dump().items()
    }
    for rows in request.batches():
        if not any(i in wanted for i in rows):
            continue
        mine = [request.pictures[i] for i in rows]
        paint = [inputs.paint[i] for i in rows] if inputs.paint else []
        drawn = model.sample(
            [p.prompt for p in mine],
            seed=[p.seed for p in mine],
            first=[p.number for p in mine],
            sampling=settings,
            paint=paint if any(paint) else None,
            up_to=request.stage,
            batch=len(mine),
            **inputs.options,
        )
        yield rows, drawn
