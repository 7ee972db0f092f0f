"""What a request is told while its pictures are drawn; over HTTP, one server-sent event each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.models.metadata import ModelId
from pipelines.spec.base import Strict


class Queued(Strict):
    """The request waits."""

    type: Literal["queued"] = "queued"
    ahead: int
    """Pictures before it."""


class Started(Strict):
    """A picture is being drawn, alone or with others'."""

    type: Literal["started"] = "started"
    picture: int
    """Number of the picture in its request, from 0, as in all events."""

    model: ModelId
    batch: int
    """Pictures that are drawn with it, itself included."""


class Step(Strict):
    """A step of a picture's sampling is done."""

    type: Literal["step"] = "step"
    picture: int
    stage: str
    step: int
    """From 0."""

    steps: int
    sigma: float
    """Noise level that the step started from."""

    expert: str
    """Expert that denoised at this level."""

    seconds: float
    """Time of the step, of the whole batch."""

    preview: str | None = None
    """What the expert takes the picture to be, as a PNG in base64, if previews are asked for."""


class Words(Strict):
    """How one stage's experts attended to the words of a prompt, in one range of σ."""

    stage: str
    sigma: tuple[float, float]
    """Highest and lowest noise level."""

    experts: list[str]
    maps: list[str]
    """For each word of :attr:`Attention.words`, a grey PNG in base64: 255 is the largest value of
    this range, over all words."""

    shares: list[float]
    """For each word, its share of the attention to all words; they add up to 1."""


class Attention(Strict):
    """Where a picture attended to which word, if that is asked for."""

    type: Literal["attention"] = "attention"
    picture: int
    words: list[str]
    """As the prompt has them, in its order."""

    spans: list[tuple[int, int]]
    """First and last + 1 character of each word in the prompt."""

    ranges: list[Words]
    """From high σ to low."""


class Finished(Strict):
    """A picture is done."""

    type: Literal["finished"] = "finished"
    picture: int
    png: str
    """The picture as a PNG in base64."""

    model: ModelId
    prompt: str
    seed: int
    number: int
    """Tells apart the pictures of one seed."""

    seconds: float
    """From the request's arrival."""

    waited: float
    """Of these, the seconds in the queue."""


Event = Annotated[Queued | Started | Step | Attention | Finished, Field(discriminator="type")]
