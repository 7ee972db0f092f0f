"""The spec's ``data:``: where image–caption pairs are, and which of them to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.formatting import has_password
from pipelines.spec.base import LATER, Strict
from pipelines.spec.hosts import Hosts

MAX_PIXELS = 2**26
"""67 megapixels, so that a decoded picture takes at most 201 MB."""

FASHION_ROWS = {"train": 60_000, "validation": 10_000}
"""Number of pictures in Fashion-MNIST."""

FASHION_SIDE = 32
"""Side of its pictures, in pixels."""


class Range(Strict):
    """Bounds on a number. At least one of the two is needed."""

    min: float | None = None
    """Minimum; no lower bound by default."""

    max: float | None = None
    """Maximum; no upper bound by default."""

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
    """Which rows to use. A row that fails a filter is quarantined, with the reason."""

    min_side: int | None = Field(None, ge=1)
    """Minimum length of a picture's shorter side, in pixels. By default the lowest resolution of
    all stages, because pictures are never enlarged for training."""

    max_pixels: int = Field(MAX_PIXELS, ge=1, le=2**27)
    """Maximum number of pixels in a picture. It is read from the file's header, so that a larger
    picture is not decoded."""

    caption_characters: Range | None = None
    """Length of a caption, in characters. A row with several captions keeps those that fit."""

    clip_score: float | None = Field(None, ge=-1, le=1)
    """Minimum cosine similarity between CLIP's embeddings of picture and caption. No limit by
    default."""

    scores: dict[str, Range] = Field(default_factory=dict)
    """Bounds on the columns named in the source's ``scores``. A row without the score is
    quarantined."""

    def for_sides(self, resolutions: Sequence[int]) -> Filters:
        """Return the filters with ``min_side`` filled in: the lowest resolution of the stages."""
        return self.model_copy(update={"min_side": self.min_side or min(resolutions)})


class Source(Strict):
    """Image–caption pairs: a data set of your own (``path``), or generated ones (``make``)."""

    path: str | list[str] | None = None
    """Folder or file of the data set, or a list of them. On disk or remote: ``s3://…``,
    ``https://…``, ``zip://FOLDER::FILE.zip``, or any other protocol for which an fsspec package is
    installed."""

    format: Literal["parquet", "folder", "coco", "webdataset"] | None = None
    """Format of the data set; detected from the files by default. ``parquet``: files with the
    columns below. ``webdataset``: ``.tar`` files in which ``KEY.jpg``, ``KEY.txt`` and
    ``KEY.json`` are one row. ``folder``: pictures, each with a ``.txt`` of the same name, or one
    ``captions.jsonl`` or ``captions.csv`` (or ``metadata.…``) in the root folder. ``coco``:
    pictures, with one of COCO's ``captions_*.json``."""

    image: str = "image"
    """Name of the image field. Parquet: a column of bytes, of ``{bytes, path}`` or of paths.
    WebDataset: a member's extension (``png``, ``input.jpg``), for samples with several pictures.
    Caption file: the column with the picture's path or URL, by default also ``file`` or
    ``file_name``."""

    caption: str = "caption"
    """Name of the caption field: a column or JSON field, by default also ``text`` or ``captions``.
    WebDataset: also a member's extension (``prompt.txt``)."""

    captions: Literal["first", "all"] = "all"
    """Which captions to use of a picture that has several: a list in Parquet or JSON, the lines of
    a ``.txt``, or rows of a caption file with the same picture. With ``first`` the filters apply
    to the first caption only."""

    key: str | None = None
    """Column or JSON field that identifies a row. By default Parquet's column ``key``, else the
    row's position; in other formats the path without its extension."""

    scores: list[str] = Field(default_factory=list)
    """Numeric columns or JSON fields to read, for use in ``filters.scores``."""

    urls: Annotated[list[str] | None, LATER] = None
    """Hosts that pictures may be fetched from, for data that names them by address: names
    (``images.example.com``), domains (``*.example.com``) or, of ``s3://…``, buckets. By default no
    address is fetched, since whoever writes the data would choose what this machine reads. A host
    must be at a public IP address, after redirects too, or in a network that is named here as
    well (``10.0.0.0/8``)."""

    follow_links: Annotated[bool, LATER] = False
    """Whether to read files that symbolic links inside the folder lead to outside of it, such as
    those of Hugging Face's cache. By default such a link is an error."""

    filters: Filters = Filters()
    """Which rows to use."""

    pairs: int | None = Field(None, ge=1)
    """Estimated number of pairs, used by ``ediffi plan --assume``, which does not read the data."""

    make: Literal["emoji-scenes", "fashion-mnist"] | None = None
    """Generate pairs (:mod:`pipelines.demo`) instead of reading ``path``: the demo's EmojiScenes,
    64×64, or Fashion-MNIST with captions, 32×32, from its published files."""

    rows: int = Field(4000, ge=1)
    """Number of pairs to generate, with ``make``."""

    shards: int = Field(8, ge=1)
    """Number of files to generate, with ``make``."""

    concepts: Annotated[list[str] | None, Field(min_length=1), LATER] = None
    """What to draw, with ``make: emoji-scenes``: names of its 36 things (``[frog, rocket]``). By
    default all. The fewer, the better a small network learns to draw each in a given time."""

    @field_validator("make", mode="before")
    @classmethod
    def no_digits(cls, given: Any) -> Any:
        if given == "digit-scenes":
            raise ValueError(
                "digit-scenes was the demo's data until emoji-scenes took its place: write "
                "`make: emoji-scenes`; what was trained on digits stays as it is in its store"
            )
        return given

    @field_validator("path")
    @classmethod
    def no_password(cls, given: str | list[str] | None) -> str | list[str] | None:
        for path in [given] if isinstance(given, str) else given or ():
            if any(has_password(part) for part in path.split("::")):
                raise ValueError(
                    "`path:` holds a password, which every record would keep; write user and "
                    "password to ~/.netrc on all machines, for http and https"
                )
        return given

    @field_validator("urls")
    @classmethod
    def hosts(cls, given: list[str] | None) -> list[str] | None:
        Hosts.of(given)
        return given

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.path is None) == (self.make is None):
            raise ValueError(
                "give either `path:` (your data set) or `make:`, `emoji-scenes` or `fashion-mnist`"
            )
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
                "urls",
                "follow_links",
                "filters",
                "pairs",
            ):
                if getattr(self, name) != getattr(unset, name):
                    raise ValueError(f"`{name}:` is for data of your own; remove it, or `make:`")
        if self.concepts is not None and self.make != "emoji-scenes":
            raise ValueError("`concepts:` is for `make: emoji-scenes`; remove it")
        for name in self.filters.scores:
            if name not in self.scores:
                raise ValueError(f"`filters.scores` bounds {name!r}; name it in `scores:` too")
        return self


class Data(Strict):
    """Image–caption pairs to train on, and held-out pairs to validate on."""

    train: Source
    """Pairs for training."""

    validation: Source
    """Pairs for validation and evaluation. They must not be among the training pairs."""

    @model_validator(mode="after")
    def enough_pictures(self) -> Self:
        for split, source in (("train", self.train), ("validation", self.validation)):
            if source.make == "fashion-mnist" and source.rows > FASHION_ROWS[split]:
                raise ValueError(
                    f"Fashion-MNIST has {FASHION_ROWS[split]:,} pictures for {split}: write "
                    f"`{split}.rows: {FASHION_ROWS[split]}` or less, not {source.rows}"
                )
        return self

    @model_validator(mode="after")
    def trained_concepts(self) -> Self:
        train, validation = self.train, self.validation
        if not (train.make == validation.make == "emoji-scenes") or train.concepts is None:
            return self
        if validation.concepts is None or (never := set(validation.concepts) - set(train.concepts)):
            what = "all 36 things" if validation.concepts is None else f"{min(never)!r}"
            raise ValueError(
                f"validation draws {what}, training only those of `train.concepts`: write the same "
                "`validation.concepts`, or fewer"
            )
        return self
