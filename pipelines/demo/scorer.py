"""Does a picture show what its caption asks for?  An analytic answer for DigitScenes.

Each picture is read place by place: the paper is the colour of the corners, where no digit
reaches; the ink is the named colour whose mixtures with the paper explain the place best; and a
support vector machine names the digit from the amount of ink in every pixel, or finds none.  It
learned from scans that occur in neither the training nor the validation scenes.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.svm import SVC

from pipelines.demo.captions import Ask, parse
from pipelines.demo.scenes import INKS, PAPERS, PLACES, RESOLUTION, draw

NOTHING = -1
"""Stands for "no digit here" and "no named paper" in `Reading`."""

_PLACES, _INKS, _PAPERS = list(PLACES), list(INKS), list(PAPERS)
_INK_RGB = np.array(list(INKS.values()), dtype=np.float32)
_PAPER_RGB = np.array(list(PAPERS.values()), dtype=np.float32)
# Half the distance between the two closest papers: a paler or darker sheet still counts.
_PAPER_TOLERANCE = 32.0
_TRAINING_SCENES = 2000
_CHUNK = 512  # pictures read at once, so that memory stays below 1 GB


@dataclass(frozen=True)
class Reading:
    """What pictures show.  Places, inks and papers are numbered in the order of their tables."""

    digits: NDArray[np.int64]
    """[N, 5] digit at each place, `NOTHING` where there is none."""
    inks: NDArray[np.int64]
    """[N, 5] closest ink at each place; meaningless where there is no digit."""
    papers: NDArray[np.int64]
    """[N] paper, `NOTHING` where no named paper is close."""


@dataclass(frozen=True)
class Alignment:
    """How well pictures match their captions; every number is in [0, 1], higher is better."""

    objects: float
    """Share of the asked digits that stand where they are asked for."""
    colours: float
    """Share of the asked digits whose place holds a digit in the asked ink."""
    places: float
    """Jaccard index of the asked and the occupied places, mean over pictures."""
    papers: float
    """Share of captions naming a paper whose picture has it; nan if none names one."""
    per_image: NDArray[np.float64]
    """[N, 3] objects, colours and places of each picture."""
    per_item: NDArray[np.int64]
    """[N] number of digits asked for: the weights of the first two columns of `per_image`."""

    @property
    def overall(self) -> float:
        """Mean of objects, colours and places."""
        return (self.objects + self.colours + self.places) / 3


@dataclass(frozen=True)
class Scorer:
    """Reads square pictures of one resolution."""

    resolution: int
    classifier: SVC

    @classmethod
    def fit(cls, resolution: int, seed: int = 0) -> "Scorer":
        """Learn to read digits from scenes of the 'scorer' split; a few seconds on one core.

        Raises:
            ValueError: `resolution` is not 16, 32 or 64.
        """
        if resolution not in (16, 32, 64):
            raise ValueError(f"cannot read {resolution}-pixel pictures: use 16, 32 or 64")
        rng = np.random.default_rng(seed)
        labels, pictures = [], []
        for index in range(_TRAINING_SCENES):
            scene, picture = draw(seed, "scorer", index)
            at = {item.place: item.digit for item in scene.items}
            labels.append([at.get(place, NOTHING) for place in _PLACES])
            pictures.append(_roughen(picture, rng))
        images = downsample(np.stack(pictures), resolution)
        # A picture of noise, fine or coarse, holds no digit.
        for grain in (1, resolution // 8, resolution // 4):
            side = resolution // grain
            noise = rng.integers(0, 256, (_TRAINING_SCENES // 40, side, side, 3), dtype=np.uint8)
            images = np.concatenate([images, noise.repeat(grain, 1).repeat(grain, 2)])
            labels += [[NOTHING] * len(PLACES)] * len(noise)
        features, _, _ = _unmix(images)
        classifier = SVC(C=8.0, gamma="scale", cache_size=500)
        classifier.fit(features.reshape(-1, features.shape[-1]), np.ravel(labels))
        return cls(resolution, classifier)

    def read(self, images: NDArray[np.uint8]) -> Reading:
        """Read pictures, [N, R, R, 3] uint8 RGB.

        Raises:
            ValueError: The pictures have another shape or type.
        """
        shape = (self.resolution, self.resolution, 3)
        if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.uint8:
            raise ValueError(
                f"pictures must be uint8 [N, {shape[0]}, {shape[1]}, 3], given {images.dtype} "
                f"{list(images.shape)}: fit a scorer for their resolution, or convert them"
            )
        digits = np.empty((len(images), len(PLACES)), np.int64)
        inks, papers = np.empty_like(digits), np.empty(len(images), np.int64)
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            features, inks[part], papers[part] = _unmix(images[part])
            flat = features.reshape(-1, features.shape[-1])
            digits[part] = self.classifier.predict(flat).reshape(-1, len(PLACES))
        return Reading(digits, inks, papers)

    def score(self, images: NDArray[np.uint8], captions: list[str]) -> Alignment:
        """Compare pictures, [N, R, R, 3] uint8 RGB, with the captions they were made for.

        A digit asked for without a place may stand anywhere; such digits are matched to the
        places found so that most of them are right.

        Raises:
            ValueError: There are no pictures, not as many captions as pictures, a caption cannot
                be parsed, or the pictures have the wrong shape.
        """
        if not captions or len(images) != len(captions):
            raise ValueError(
                f"given {len(images)} pictures and {len(captions)} captions: "
                "give one caption for each picture, and at least one"
            )
        asks = [parse(caption) for caption in captions]
        reading = self.read(images)
        counts = np.array([len(ask.items) for ask in asks])
        rows = np.array(
            [_compare(ask, reading.digits[n], reading.inks[n]) for n, ask in enumerate(asks)]
        )
        named = [n for n, ask in enumerate(asks) if ask.paper]
        hits = [reading.papers[n] == _PAPERS.index(str(asks[n].paper)) for n in named]
        return Alignment(
            objects=float(np.average(rows[:, 0], weights=counts)),
            colours=float(np.average(rows[:, 1], weights=counts)),
            places=float(rows[:, 2].mean()),
            papers=float(np.mean(hits)) if hits else float("nan"),
            per_image=rows,
            per_item=counts,
        )


def downsample(images: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Shrink square pictures, [N, S, S, 3] uint8, by an integer factor, averaging areas."""
    if images.shape[1] % resolution:
        raise ValueError(
            f"cannot shrink {images.shape[1]} pixels to {resolution} by an integer factor: "
            "choose a divisor"
        )
    size = (resolution, resolution)
    return np.stack(
        [np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BOX)) for i in images]
    )


def _roughen(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur, grain and, half of the time, shift a 64×64 scene a little, as generation does."""
    shift = rng.integers(0, 2) * rng.integers(-3, 4, size=2)
    shifted = Image.fromarray(np.roll(picture, shift, axis=(0, 1)))
    blurred = np.asarray(shifted.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2))))
    noisy = blurred + rng.normal(0, 8, picture.shape)
    return np.asarray(np.clip(noisy, 0, 255), dtype=np.uint8)


def _unmix(
    images: NDArray[np.uint8],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Explain each place as a mixture, paper + a·(ink − paper) with a in [0, 1].

    Returns:
        a of every pixel, [N, 5, K] float32; the ink with the least error, [N, 5]; the paper, [N].
    """
    pixels = np.asarray(images, dtype=np.float32)
    n, size = pixels.shape[:2]
    if size == RESOLUTION:  # 32 pixels suffice to read a digit, at a quarter of the time
        pixels, size = pixels.reshape(n, 32, 2, 32, 2, 3).mean((2, 4)), 32
    edge = size // 4
    ends = [slice(0, edge), slice(size - edge, size)]
    corners = np.concatenate([pixels[:, y, x].reshape(n, -1, 3) for y in ends for x in ends], 1)
    sheet = np.median(corners, axis=1)  # [N, 3]
    distance = np.linalg.norm(sheet[:, None] - _PAPER_RGB, axis=-1)
    paper = np.where(distance.min(1) < _PAPER_TOLERANCE, distance.argmin(1), NOTHING)

    unit = RESOLUTION // size
    windows = np.stack(  # 24 × 32 px of a 64 px scene, on whole pixels at every resolution
        [
            pixels[:, (y - 16) // unit : (y + 16) // unit, (x - 12) // unit : (x + 12) // unit]
            for x, y in PLACES.values()
        ],
        axis=1,
    )
    rows, columns = windows.shape[2:4]
    tint = windows.reshape(n, len(PLACES), -1, 3) - sheet[:, None, None]  # [N, 5, K, 3]
    direction = _INK_RGB - sheet[:, None]  # [N, 6, 3]
    along = np.einsum("npkc,nic->npki", tint, direction)
    length = (direction**2).sum(-1)[:, None, None] + 1e-6
    amount = np.clip(along / length, 0, 1)  # [N, 5, K, 6]
    # |tint − a·direction|², without its [N, 5, K, 6, 3] array
    error = (tint**2).sum(-1, keepdims=True) - 2 * amount * along + amount**2 * length
    # Neighbours reach into the outermost columns; they say nothing about this place's ink.
    inner = error.reshape(n, len(PLACES), rows, columns, -1)[:, :, :, columns // 6 : -columns // 6]
    ink = inner.sum((2, 3)).argmin(-1)  # [N, 5]
    return np.take_along_axis(amount, ink[:, :, None, None], -1)[..., 0], ink, paper


def _compare(
    ask: Ask, digits: NDArray[np.int64], inks: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Objects, colours and places of one picture, given the digit and the ink at each place."""
    found = {p for p in range(len(PLACES)) if digits[p] != NOTHING}
    fixed = [(item, _PLACES.index(item.place)) for item in ask.items if item.place]
    loose = [item for item in ask.items if not item.place]
    free = sorted(found - {p for _, p in fixed})
    nowhere = [-1 - k for k in range(max(0, len(loose) - len(free)))]
    best = (-1, 0, 0, 0.0)
    for places in permutations(free + nowhere, len(loose)):
        pairs = fixed + list(zip(loose, places, strict=True))
        right = sum(p in found and digits[p] == item.digit for item, p in pairs)
        inked = sum(p in found and _INKS[inks[p]] == item.ink for item, p in pairs)
        asked = {p for _, p in pairs}
        jaccard = len(asked & found) / len(asked | found)
        best = max(best, (right + inked, right, inked, jaccard))
    return best[1] / len(ask.items), best[2] / len(ask.items), best[3]
