"""Where image–caption pairs come from and which of them are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.spec.base import Strict

MAX_PIXELS = 2**26


class Range(Strict):
    """Numbers from ``min`` to ``max``, both included; an end left out is open."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def some(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give `min:`, `max:` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them")
        return self

    def __contains__(self, value: float) -> bool:
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class Filters(Strict):
    """Which sound rows are wanted. A row that is not is quarantined with its reason."""

    min_side: int | None = Field(None, ge=1)
    """The shortest side in pixels; without it the caller takes the largest side it trains on,
    for a picture is never enlarged."""

    max_pixels: int = Field(MAX_PIXELS, ge=1, le=2**27)
    """What a picture may decode to, read from its header before it is decoded."""

    caption_characters: Range | None = None
    """Length of a caption. Of several captions those that fit are kept."""

    clip_score: float | None = Field(None, ge=-1, le=1)
    """The least cosine of CLIP's image and text embeddings; applied where CLIP runs."""

    scores: dict[str, Range] = Field(default_factory=dict)
    """Bounds of the scores that the source names; a row without the score is refused."""

    def for_sides(self, resolutions: Sequence[int]) -> Filters:
        """For some stages: a picture is never enlarged, so it must do for the smallest at least."""
        return self.model_copy(update={"min_side": self.min_side or min(resolutions)})


class Source(Strict):
    """Image–caption pairs: a data set of your own, or the demo's scenes."""

    path: str | list[str] | None = None
    """A folder, a file or a list of them, on disk or at an address: ``s3://…``, ``https://…``,
    ``zip://FOLDER::FILE.zip``, or what else fsspec has a package for that is installed."""

    format: Literal["parquet", "folder", "coco", "webdataset"] | None = None
    """``parquet``: files with the columns below. ``webdataset``: ``.tar`` files whose members
    ``KEY.jpg``, ``KEY.txt`` and ``KEY.json`` are one row. ``folder``: pictures, each with a
    ``.txt`` of its name, or with ``captions.jsonl`` or ``captions.csv`` at the root (also under
    the name ``metadata``). ``coco``: pictures, with one of COCO's ``captions_*.json``. Without it
    the files at ``path`` tell."""

    image: str = "image"
    """Parquet: the column, with bytes, ``{bytes, path}`` or paths. WebDataset: the member's
    ending (``png``, ``input.jpg``), where a sample has several pictures. Caption file: the column
    with the file's path or address (by default also ``file`` and ``file_name``)."""

    caption: str = "caption"
    """The column, or the field of a JSON (by default also ``text`` and ``captions``). WebDataset:
    also a member's ending (``prompt.txt``)."""

    captions: Literal["first", "all"] = "all"
    """A picture may have several: a list in Parquet or JSON, lines of a ``.txt``, rows of a caption
    file that name the same picture. ``first`` takes the first alone, and judges it alone."""

    key: str | None = None
    """The column or JSON field that names a row. Without it Parquet's column ``key`` if there is
    one, else the row's place; elsewhere the path without its ending."""

    scores: list[str] = Field(default_factory=list)
    """Numeric columns or JSON fields to carry along, for ``filters:``."""

    filters: Filters = Filters()

    pairs: int | None = Field(None, ge=1)
    """How many it is thought to hold: what ``ediffi plan --assume`` reckons with, which does not
    look at it."""

    make: Literal["emoji-scenes"] | None = None
    """Draws EmojiScenes (:mod:`pipelines.demo`) instead of reading ``path``."""

    rows: int = Field(4000, ge=1)
    shards: int = Field(8, ge=1)

    @field_validator("make", mode="before")
    @classmethod
    def no_digits(cls, given: Any) -> Any:
        if given == "digit-scenes":
            raise ValueError(
                "digit-scenes was the demo's data until emoji-scenes took its place: write "
                "`make: emoji-scenes`; what was trained on digits stays as it is in its store"
            )
        return given

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.path is None) == (self.make is None):
            raise ValueError("give either `path:` (your data set) or `make: emoji-scenes`")
        return self

    @model_validator(mode="after")
    def no_idle_setting(self) -> Self:
        if self.make:
            unset = Source.model_construct()
            for name in (
                "format",
                "image",
                "caption",
                "captions",
                "key",
                "scores",
                "filters",
                "pairs",
            ):
                if getattr(self, name) != getattr(unset, name):
                    raise ValueError(f"`{name}:` is for data of your own; remove it, or `make:`")
        for name in self.filters.scores:
            if name not in self.scores:
                raise ValueError(f"`filters.scores` bounds {name!r}; name it in `scores:` too")
        return self
