"""Captions that a benchmark draws pictures for: a random choice from COCO annotations.

The choice depends on the seed and on each picture's name alone. So it is the same on every machine
and with every version of Python and NumPy, and a smaller choice is the beginning of a larger one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.data.caption_file import (
    coco_folder,
    is_coco_file,
    no_match_error,
    pictures_folder,
    read_lines,
)
from pipelines.data.captions import try_clean_caption
from pipelines.data.files import File, Location, list_files
from pipelines.data.formats.shard import is_image
from pipelines.data.identity import identify
from pipelines.data.pictures import decode
from pipelines.data.rows import RowError
from pipelines.metrics import Pictures
from pipelines.spec.data import Source


@dataclass(frozen=True)
class ChosenCaptions:
    """Captions, and the real picture of each."""

    captions: list[str]
    location: Location
    files: list[File]
    """Each caption's picture."""

    @property
    def texts_identity(self) -> str:
        """Hash of the captions."""
        return hashlib.sha256(json.dumps(self.captions).encode()).hexdigest()[:16]

    @property
    def pictures_identity(self) -> str:
        """Hash of the pictures' names and content; ValueError if one cannot be read."""
        return identify(self.location, self.files)

    def __len__(self) -> int:
        return len(self.captions)

    def real(self, numbers: Sequence[int], side: int) -> Pictures:
        """Real pictures: the central square of each, resized. uint8 [N, side, side, 3]

        Raises:
            ValueError: A picture is damaged.
        """
        return np.stack([self._one(self.files[n].path, side) for n in numbers])

    def _one(self, path: str, side: int) -> Pictures:
        try:
            picture = decode(self.location.fetch(path), side=side)
        except RowError as error:
            raise ValueError(
                f"{self.location.full(path)} cannot be read ({error}); fetch it again"
            ) from error
        # Unlike training data, the benchmark has pictures below its resolution, which it enlarges.
        edge = min(picture.size)
        left, top = ((n - edge) // 2 for n in picture.size)
        square = picture.crop((left, top, left + edge, top + edge))
        return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def choose(annotations: str, images: str | None, *, count: int, seed: int) -> ChosenCaptions:
    """Choose pictures at random, and for each one of its captions.

    Args:
        annotations: COCO's ``captions_*.json``.
        images: Folder of the pictures. By default, for ``annotations/captions_val2014.json`` it is
            ``val2014/`` beside ``annotations/``.
        count: Number of pictures.
        seed: Decides which pictures and which of their captions.

    Raises:
        ValueError: A file or folder is missing, the annotations have another format, there are
            fewer captioned pictures than ``count``, or chosen pictures are missing.
    """
    name = annotations.rpartition("/")[2]
    if not is_coco_file(annotations):
        raise ValueError(
            f"annotations {annotations} is not named like COCO's captions; rename it "
            "captions_NAME.json"
        )
    home = coco_folder(annotations, follow_links=True)  # the benchmark's author chose it
    file = next(f.path for f in home.files if f.path.rpartition("/")[2] == name)
    location, listed = (
        list_files(images, follow_links=True) if images else (home.location, home.files)
    )
    there = {f.path: f for f in listed if is_image(f.path)}
    source = Source(path=annotations)
    folder = pictures_folder(source, home.location, file, set(there))
    found: dict[str, list[str]] = {}
    first = None
    for line in read_lines(source, home.location, file, folder):
        first = first or line
        for caption in line.captions:
            text, problem = try_clean_caption(caption)
            if not line.bad and not problem:
                found.setdefault(line.file, []).append(text)
    if not found:
        raise no_match_error(home.location, file, first)
    if len(found) < count:
        raise ValueError(
            f"{annotations} captions {len(found):,} pictures, but {count:,} are asked for; ask for "
            "fewer captions"
        )
    chosen = sorted(found, key=lambda path: _draw(seed, path))[:count]
    if missing := [path for path in chosen if path not in there]:
        raise ValueError(
            f"{location.folder} lacks {len(missing):,} of the {count:,} chosen pictures, such as "
            f"{missing[0]}; name the folder that has them with `images:`"
        )
    captions = [min(found[path], key=lambda text: _draw(seed, f"{path} {text}")) for path in chosen]
    return ChosenCaptions(captions, location, [there[path] for path in chosen])


def _draw(seed: int, text: str) -> bytes:
    """A random number of a name, in bytes."""
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "backslashreplace")).digest()
