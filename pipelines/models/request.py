"""What one call of ``ediffi sample`` draws: it is what a picture's file holds to draw it again."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from pipelines.formatting import join_words
from pipelines.spec.base import Strict
from pipelines.spec.sampling import Sampling
from pipelines.store.artifacts import sha256

BATCH = 16
"""Pictures that are drawn at once, by default."""


class Picture(Strict):
    """A picture to draw: what (seed, number) gives is the same in any company."""

    prompt: str
    seed: int
    number: int = Field(0, ge=0)
    """Tells apart the pictures of one seed."""

    @property
    def noise(self) -> str:
        """The seed and, from the second picture on, the number; for people."""
        return f"seed {self.seed}" + (f", picture {self.number + 1}" if self.number else "")


class Reference(Strict):
    """A picture file that is used and not stored."""

    file: str
    """Path as it was given."""

    sha256: str

    @classmethod
    def of(cls, file: str | Path, **more: Any) -> Self:
        """A reference to an existing file; ValueError if it cannot be read."""
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error.strerror or error})") from error
        return cls(file=str(file), sha256=sha256(data), **more)

    def places(self, beside: Path | None = None) -> list[Path]:
        """Where the file may be: as it was given, and in the folder of ``beside``."""
        named = Path(self.file)
        return [named] if beside is None else [named, beside.parent / named.name]

    def find(self, option: str, beside: Path | None = None) -> Path:
        """Path of the unchanged file.

        Args:
            option: of ``ediffi sample`` by which another file can be given.
            beside: a picture that was drawn with it; its folder is searched as well.

        Raises:
            ValueError: The file is gone or has changed.
        """
        found = [place for place in self.places(beside) if place.is_file()]
        for place in found:
            if sha256(place.read_bytes()) == self.sha256:
                return place
        what = f"has changed since {beside} was drawn" if found else "is gone"
        raise ValueError(f"{self.file} {what}; restore it, or give another file with {option}")


def black_and_white(image: Any, side: int | None = None) -> str:
    """A PIL image as a base64 PNG of one bit a pixel, white where it is bright.

    Args:
        side: resize it to a square of this side.
    """
    gray = image.convert("L")
    if side is not None:
        gray = gray.resize((side, side))
    out = io.BytesIO()
    gray.point(lambda value: 255 * (value > 127)).convert("1").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


class Style(Reference):
    """A picture whose style is taken."""

    weight: float | None = None
    """Relative to the other styles; equal parts by default."""


class Start(Reference):
    """A picture to start from."""

    sigma: float | None = None


class Mask(Reference):
    """A black-and-white picture, which is stored since it is small."""

    png: str
    """Base64."""

    @classmethod
    def read(cls, file: str | Path, side: int | None = None) -> Mask:
        """A mask from a file, white where the picture is bright; ValueError if it is no picture.

        Args:
            side: resize it to a square of this side.
        """
        from pipelines.models.painting import open_image

        return Mask.of(file, png=black_and_white(open_image(Path(file), "black"), side))

    def image(self) -> Any:
        """The mask as a PIL image."""
        from pipelines.models.painting import decode_image

        return decode_image(self.png)


class Painted(Strict):
    """A phrase of the prompts, and where it is painted."""

    phrase: str
    where: list[float] | Mask
    """A box (left, top, right, bottom) in fractions of the sides, or a mask."""

    strength: float = Field(ge=0)


class Then(Strict):
    """A prompt that takes over midway."""

    prompt: str
    switch: float | None = None
    """Fraction of the steps of the base stage."""

    switch_sigma: float | None = None

    def __str__(self) -> str:
        if self.switch is not None:
            return f"{self.prompt} (after {self.switch:.0%} of the steps)"
        if self.switch_sigma is not None:
            return f"{self.prompt} (from σ = {self.switch_sigma:g})"
        return self.prompt


class Request(Strict):
    """Pictures that are drawn with the same settings."""

    pictures: list[Picture] = Field(min_length=1)
    sampling: dict[str, Sampling]
    """Every setting of every stage that is run."""

    stage: str | None = None
    """Last stage to run; all by default."""

    batch: int = Field(BATCH, ge=1)
    """Pictures drawn at once, at most."""

    negative: str | None = None
    style: list[Style] = Field(default_factory=list)
    image: Start | None = None
    mask: Mask | None = None
    variation: Reference | None = None
    then: Then | None = None
    paint: list[Painted] = Field(default_factory=list)

    def files(self, beside: Path | None = None) -> dict[str, list[Path]]:
        """Option of ``ediffi sample`` → places of the picture files that it refers to.

        Args:
            beside: as of :meth:`Reference.find`.
        """
        masks = [p.where for p in self.paint if isinstance(p.where, Mask)]
        of: dict[str, Sequence[Reference | None]] = {
            "--image": [self.image],
            "--mask": [self.mask],
            "--variation": [self.variation],
            "--style": self.style,
            "--paint": masks,
        }
        return {
            option: [place for one in given if one for place in one.places(beside)]
            for option, given in of.items()
        }

    def batches(self) -> Iterator[range]:
        """Consecutive pictures to draw at once."""
        for first in range(0, len(self.pictures), self.batch):
            yield range(first, min(first + self.batch, len(self.pictures)))

    def steered_by(self) -> list[str]:
        """What all pictures are drawn by besides their prompts, in a few lines for people."""
        lines = []
        if self.negative:
            lines.append(f"negative prompt: {self.negative}")
        if self.then:
            lines.append(f"then: {self.then}")
        if self.paint:
            lines.append(f"painted: {join_words([p.phrase for p in self.paint], 'and')}")
        for what, files in (
            ("image", [self.image]),
            ("mask", [self.mask]),
            ("variation of", [self.variation]),
            ("style", self.style),
        ):
            if names := [Path(f.file).name for f in files if f]:
                lines.append(f"{what}: {join_words(names, 'and')}")
        return lines

    def only(self, rows: range) -> Request:
        """The same with some of its pictures."""
        return self.model_copy(update={"pictures": [self.pictures[i] for i in rows]})
