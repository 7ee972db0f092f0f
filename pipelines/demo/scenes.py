"""DigitScenes: one to three handwritten digits in coloured ink on a sheet of coloured paper.

The digits are the 1,797 8×8 scans that ship with scikit-learn, so nothing is downloaded.  Each
split owns its own scans: a digit seen in training is never drawn for validation, and the scorer
learns from scans that neither of them shows.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits

RESOLUTION = 64

INKS: dict[str, tuple[int, int, int]] = {
    "red": (214, 24, 32),
    "green": (16, 140, 44),
    "blue": (24, 72, 220),
    "orange": (246, 128, 0),
    "purple": (136, 28, 168),
    "black": (16, 16, 16),
}

PAPERS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "cream": (255, 240, 196),
    "grey": (192, 192, 192),
    "pink": (255, 200, 216),
}

PLACES: dict[str, tuple[int, int]] = {
    "left": (12, 32),
    "right": (52, 32),
    "top": (32, 16),
    "bottom": (32, 48),
    "centre": (32, 32),
}
"""Name → (x, y) of a digit's centre, in pixels of a 64×64 scene."""

LAYOUTS: dict[int, tuple[tuple[str, ...], ...]] = {
    1: (("left",), ("right",), ("top",), ("bottom",), ("centre",)),
    2: (
        ("left", "right"),
        ("top", "bottom"),
        ("left", "top"),
        ("left", "bottom"),
        ("top", "right"),
        ("bottom", "right"),
        ("left", "centre"),
        ("centre", "right"),
    ),
    3: (
        ("left", "centre", "right"),
        ("left", "top", "right"),
        ("left", "bottom", "right"),
        ("left", "top", "bottom"),
        ("top", "bottom", "right"),
    ),
}
"""Number of digits → sets of places that hold them.  The centre excludes the top and the bottom."""

SPLITS: dict[str, float] = {"train": 2 / 3, "validation": 1 / 6, "scorer": 1 / 6}
"""Split → share of each class's scans."""

# A digit is at most 18 px wide and 29.7 px tall and moves by at most 1 px, so that it stays in a
# cell of 20 × 32 px around its place.  Cells of a layout never intersect.
_HEIGHT, _MAX_WIDTH = 27.0, 18.0
_CELL_HEIGHT, _CELL_WIDTH = 32, 20
_SIZE, _SLANT, _SHIFT = 0.10, np.tan(np.deg2rad(10)), 1.0
_SPLIT_SEED = 2022  # the year of eDiff-I; changing it changes every scene


@dataclass(frozen=True)
class Item:
    """One digit (0–9) of a scene, its ink and its place."""

    digit: int
    ink: str
    place: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: its digits in the order of their layout, and the paper."""

    items: tuple[Item, ...]
    paper: str


@dataclass(frozen=True)
class _Glyph:
    """One scan, ready to be resampled."""

    spline: NDArray[np.float64]  # cubic B-spline coefficients of the padded 8×8 scan
    rows: NDArray[np.intp]  # where the scan has ink
    columns: NDArray[np.intp]


@cache
def source_digits(split: str) -> dict[int, tuple[int, ...]]:
    """Digit (0–9) → indices into `load_digits()` of the scans that `split` owns.

    Raises:
        ValueError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: write one of {', '.join(SPLITS)}")
    labels = load_digits().target
    rng = np.random.default_rng(_SPLIT_SEED)
    names = list(SPLITS)
    ends = np.cumsum(list(SPLITS.values()))
    owned = {}
    for digit in range(10):
        shuffled = rng.permutation(np.flatnonzero(labels == digit))
        cuts = np.rint(ends[:-1] * len(shuffled)).astype(int)
        part = np.split(shuffled, cuts)[names.index(split)]
        owned[digit] = tuple(int(i) for i in part)
    return owned


def draw(seed: int, split: str, index: int) -> tuple[Scene, NDArray[np.uint8]]:
    """Draw scene number `index` of `split`; the same arguments always give the same pixels.

    Args:
        seed: Seed of the data set, at least 0.
        split: One of `SPLITS`.
        index: Number of the scene, at least 0.

    Returns:
        The scene, and its picture: [64, 64, 3] uint8 RGB.

    Raises:
        ValueError: `split` is unknown, or `seed` or `index` is negative.
    """
    scans = source_digits(split)
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, given seed={seed}, index={index}")
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    layouts = LAYOUTS[int(rng.integers(1, 4))]
    places = layouts[rng.integers(len(layouts))]
    paper = list(PAPERS)[rng.integers(len(PAPERS))]
    picture = np.empty((RESOLUTION, RESOLUTION, 3))
    picture[:] = PAPERS[paper]
    items = []
    for place in places:
        digit = int(rng.integers(10))
        ink = list(INKS)[rng.integers(len(INKS))]
        scan = scans[digit][rng.integers(len(scans[digit]))]
        items.append(Item(digit, ink, place))
        x, y = PLACES[place]
        top, left = y - _CELL_HEIGHT // 2, x - _CELL_WIDTH // 2
        cell = picture[top : top + _CELL_HEIGHT, left : left + _CELL_WIDTH]
        cell += _alpha(_glyph(scan), rng)[..., None] * (np.array(INKS[ink]) - cell)
    return Scene(tuple(items), paper), np.rint(picture).astype(np.uint8)


@cache
def _glyph(scan: int) -> _Glyph:
    """Load one scan; only its clearly inked pixels count for its size."""
    pixels = np.pad(_scans()[scan] / 16, 2)
    rows, columns = np.nonzero(pixels > 0.3)
    return _Glyph(ndimage.spline_filter(pixels, order=3, mode="mirror"), rows, columns)


@cache
def _scans() -> NDArray[np.float64]:
    return np.asarray(load_digits().images, dtype=np.float64)


def _alpha(glyph: _Glyph, rng: np.random.Generator) -> NDArray[np.float64]:
    """Resample a glyph with random size, slant and position: [32, 20] coverage in [0, 1]."""
    slant = rng.uniform(-_SLANT, _SLANT)
    height = _HEIGHT * rng.uniform(1 - _SIZE, 1 + _SIZE)
    dy, dx = rng.uniform(-_SHIFT, _SHIFT, size=2)
    slanted = glyph.columns - slant * glyph.rows
    row = (glyph.rows.min() + glyph.rows.max()) / 2
    column = (slanted.min() + slanted.max()) / 2
    y_scale = height / (np.ptp(glyph.rows) + 1)
    x_scale = min(y_scale, _MAX_WIDTH / (np.ptp(slanted) + 1))
    # Output pixel → source pixel.
    matrix = np.array([[1 / y_scale, 0], [slant / y_scale, 1 / x_scale]])
    middle = np.array([(_CELL_HEIGHT - 1) / 2 + dy, (_CELL_WIDTH - 1) / 2 + dx])
    offset = np.array([row, column + slant * row]) - matrix @ middle
    coverage = ndimage.affine_transform(
        glyph.spline,
        matrix,
        offset,
        output_shape=(_CELL_HEIGHT, _CELL_WIDTH),
        order=3,
        mode="constant",
        prefilter=False,
    )
    # The scans are soft; a steeper ramp gives an inked stroke with an edge about 2 px wide.
    return np.asarray(np.clip((coverage - 0.3) / 0.4, 0, 1))
