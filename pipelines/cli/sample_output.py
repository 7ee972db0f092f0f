"""Where ``ediffi sample`` puts pictures: one PNG file, maybe a contact sheet; or a folder."""

from __future__ import annotations

import contextlib
import io
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.app import echo, is_dir, writable

if TYPE_CHECKING:
    from pipelines.models.metadata import ModelId, Sheet
    from pipelines.models.request import Picture, Request
    from pipelines.models.sheet import Pictures

SLUG = 60
"""Characters of a prompt in a file's name, at most."""


def note(text: str) -> None:
    """Print a line that is no error on stderr."""
    echo(f"note: {text}", err=True)


def is_folder(output: str) -> bool:
    """Whether an ``--output`` means a folder: it ends in ``/``, is one, or has no extension."""
    path = Path(output)
    return output.endswith("/") or is_dir(path) or not path.suffix


def slug(prompt: str) -> str:
    """A prompt as part of a file's name: lower case, its letters and digits, hyphens between."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", prompt).replace("_", " ").lower())
    text = "-".join(words)
    while len(text) > SLUG or len(text.encode()) > 3 * SLUG:
        text = text.rpartition("-")[0] or text[:-1]
    return text


def file_names(pictures: Sequence[Picture]) -> list[str]:
    """A name for each picture, such as ``0001-a-frog-on-a-pink-background.png``."""
    digits = max(4, len(str(len(pictures))))
    return [
        "-".join(filter(None, (f"{i:0{digits}}", slug(p.prompt)))) + ".png"
        for i, p in enumerate(pictures, 1)
    ]


def check_file(output: Path) -> None:
    """Raise ValueError unless a picture can be written there, in a format that Pillow knows."""
    from PIL import Image

    writable(output)
    kind = Image.registered_extensions().get(output.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{output} has an unknown extension; name a .png file with --output")
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; name a .png file with --output") from None


def check_inputs(output: Path, inputs: Mapping[str, Sequence[Path]]) -> None:
    """Raise ValueError if a file to write is one of those that are drawn from.

    Args:
        inputs: option → its files.
    """
    if not output.exists():
        return
    for option, files in inputs.items():
        if any(file.exists() and output.samefile(file) for file in files):
            raise ValueError(
                f"{output} is the picture of {option}; name another file with --output, or "
                "overwrite it with --force"
            )


def check_folder(folder: Path, names: Sequence[str], force: bool) -> None:
    """Create a folder; ValueError if that fails, or if it has a file that would be overwritten."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder}/ cannot be created ({error.strerror or error}); give a writable path with "
            "--output"
        ) from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}/ cannot be written; give a writable path with --output")
    if not force and (there := [name for name in names if (folder / name).exists()]):
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ValueError(
            f"{folder / there[0]}{more} exists; name another folder, or overwrite with --force"
        )


def check_size(count: int, side: int) -> None:
    """Raise ValueError if a sheet of pictures of this side is more than Pillow would open again."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS and count * (1.2 * side) ** 2 > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{count} pictures of {side} pixels are too many for one sheet; write a file for each "
            "with `-o FOLDER/`, or give a smaller --scale"
        )


def sheet_for(job: Job, captions: bool | None, before: Sheet | None) -> Sheet | None:
    """How the pictures are laid out; None for a single one without captions.

    Args:
        captions: whether they are asked for; by default, several pictures have some.
        before: how the same pictures were laid out before.
    """
    from pipelines.models.metadata import Sheet
    from pipelines.models.sheet import columns_of

    prompts = [p.prompt for p in job.shown]
    if before is None and len(prompts) == 1 and not captions:
        return None
    return Sheet(
        columns=before.columns if before else columns_of(prompts),
        captions=captions if captions is not None else before is None or before.captions,
    )


def compare(image: Any, before: Any, like: Path) -> None:
    """Note if a picture that was drawn again is another.

    Args:
        before: the picture that ``like`` held before.
    """
    import numpy as np

    drawn, before = np.asarray(image, int), np.asarray(before, int)
    if drawn.shape == before.shape and (most := int(abs(drawn - before).max())):
        note(
            f"pixels differ from {like} by up to {most} of 255; other devices and versions of "
            "libraries round differently"
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is drawn, and what the files say about it."""

    model: ModelId
    request: Request
    shows: Sequence[int]
    """The pictures of the request that are written."""

    has_metadata: bool

    @property
    def shown(self) -> list[Picture]:
        """The pictures that are written."""
        return [self.request.pictures[i] for i in self.shows]

    def write(
        self,
        path: Path,
        image: Any,
        *,
        request: Request,
        shows: Sequence[int],
        scale: int,
        sheet: Sheet | None = None,
    ) -> None:
        """Write a whole file or none. Only PNG holds the metadata."""
        from PIL import Image

        from pipelines.models.metadata import Metadata, installed

        kind, more = Image.registered_extensions()[path.suffix.lower()], {}
        if kind == "PNG" and self.has_metadata:
            more["pnginfo"] = Metadata(
                ediffi=installed(),
                model=self.model,
                request=request,
                shows=list(shows),
                scale=scale,
                sheet=sheet,
            ).chunks()
        out = io.BytesIO()
        image.save(out, kind, **more)
        scratch = path.with_name(f".ediffi-{os.getpid()}.tmp")
        try:
            scratch.write_bytes(out.getvalue())
            scratch.replace(path)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror or error}); give another path with "
                "--output"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink()


class Folder:
    """A folder with a file for each picture, written as soon as its batch is drawn."""

    def __init__(self, path: Path, job: Job, scale: int, *, force: bool) -> None:
        """Create the folder; ValueError if it cannot be, or a file would be overwritten."""
        names = file_names(job.shown)
        check_folder(path, names, force)
        self.path, self.job, self.scale = path, job, scale
        self.names = dict(zip(job.shows, names, strict=True))

    def add(self, rows: range, pictures: Pictures) -> None:
        """Write a batch: numbers of its pictures in the request, and uint8 [N, R, R, 3]."""
        from pipelines.models.sheet import enlarged

        together = self.job.request.only(rows)
        for i, picture in zip(rows, pictures, strict=True):
            if i in self.names:
                self.job.write(
                    self.path / self.names[i],
                    enlarged(picture, self.scale),
                    request=together,
                    shows=[i - rows.start],
                    scale=self.scale,
                )

    def finish(self) -> None:
        """Nothing is left to do."""


class File:
    """One file: a picture, or a contact sheet."""

    def __init__(self, path: Path, job: Job, scale: int, sheet: Sheet | None) -> None:
        """
        Args:
            sheet: None for a single picture without a border.
        """
        self.path, self.job, self.scale, self.sheet = path, job, scale, sheet
        self.drawn: list[Pictures] = []
        self.image: Any = None
        """The PIL image once it is written."""

    def add(self, rows: range, pictures: Pictures) -> None:
        """Keep a batch: numbers of its pictures in the request, and uint8 [N, R, R, 3]."""
        self.drawn.append(pictures[[i - rows.start for i in self.job.shows if i in rows]])

    def finish(self) -> None:
        """Write the file."""
        import numpy as np

        self.image = self._laid_out(np.concatenate(self.drawn))
        self.job.write(
            self.path,
            self.image,
            request=self.job.request,
            shows=self.job.shows,
            scale=self.scale,
            sheet=self.sheet,
        )

    def _laid_out(self, pictures: Pictures) -> Any:
        from pipelines.layout import FONT_FAMILIES, count_missing_glyphs
        from pipelines.models.sheet import contact_sheet, enlarged, grid

        if self.sheet is None:
            return enlarged(pictures[0], self.scale)
        columns, shown = self.sheet.columns, self.job.shown
        if not self.sheet.captions:
            return grid(pictures, columns=columns, scale=self.scale)
        captions = [p.prompt for p in shown]
        footer = " · ".join(self.job.request.steered_by())
        if boxes := count_missing_glyphs({*captions, footer}):
            known = " or ".join(FONT_FAMILIES[1:3])
            note(
                f"no installed font has all letters of {boxes} caption{'s' * (boxes > 1)}; boxes "
                f"stand for them (install {known}, or give --no-captions)"
            )
        notes = [p.noise for p in shown]
        return contact_sheet(
            pictures, captions, notes, columns=columns, scale=self.scale, footer=footer
        )
