"""Marks in the pixels of generated pictures: a visible sign, and a watermark that only a key finds.

The watermark is additive spread spectrum (Cox et al., 1997): a pseudo-random tile that repeats over
the picture, as strong as the picture is busy. The detector folds the picture into one tile and
correlates it with the key's at every shift (Kalker et al., "A video watermarking system for
broadcast monitoring", 1999), so that a crop needs no search of its own. The phases of the key's
tile are random, whatever the picture: that gives the threshold.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, special

from pipelines.models import metadata
from pipelines.models.watch import Pictures
from pipelines.spec.serving import Marks

Floats = np.ndarray[Any, np.dtype[np.float64]]

KEY_VARIABLE = "EDIFFI_MARK_KEY"
"""Environment variable with the key of the watermark."""

PUBLIC_KEY = b"ediffi: a public key, by which anyone finds and removes the watermark"
"""The key where the variable is not set. Everybody has it."""

FALSE_POSITIVES = 1e-4
"""Share of unmarked pictures that are taken for marked ones, at most."""

TILE = 64
"""Side of the watermark's tile in pixels, and the least side of a picture that it is meant for."""

BAND = (0.1, 0.35)
"""Frequencies of the watermark, in cycles a pixel: below them is what pictures show, above them
what JPEG drops first."""

STRENGTH = 0.25
"""Standard deviation of the watermark, as a share of that of the pixels around."""

AMPLITUDES = (1.25, 5.0)
"""Least and greatest standard deviation of the watermark, in levels of 255."""

NEAR = 2.0
"""Standard deviation in pixels of the Gaussian window that says what is around a pixel."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance, as in JPEG."""

SIGN = ("       ", "  #  # ", " # # # ", " ### # ", " # # # ", " # # # ", "       ")
"""``AI``, in white on black, for a picture of up to 127 pixels."""


@dataclass(frozen=True)
class Found:
    """What the watermark's detector says of a picture."""

    z: float
    """Highest correlation with the key's tile over all shifts, in standard deviations."""

    @property
    def is_marked(self) -> bool:
        """Whether the watermark is there, at :data:`FALSE_POSITIVES`."""
        return self.z > threshold()


@dataclass(frozen=True)
class Checked:
    """What a picture file says of its origin."""

    watermark: Found
    is_public_key: bool
    """Whether it was sought with the public key, by which anyone can mark a picture."""

    source_type: str | None
    """IPTC's digital source type in its XMP, which any program can write or remove."""

    def __str__(self) -> str:
        found = self.watermark
        key = "the public key" if self.is_public_key else f"the key of {KEY_VARIABLE}"
        return (
            f"watermark of {key}: {'found' if found.is_marked else 'not found'} "
            f"(z = {found.z:.1f}; found above {threshold():.1f})\n"
            f"metadata: {self.source_type or 'no digital source type'}"
        )


def mark_key() -> bytes:
    """The key of :data:`KEY_VARIABLE`, or :data:`PUBLIC_KEY` where that is not set."""
    return os.environ.get(KEY_VARIABLE, "").encode() or PUBLIC_KEY


def threshold() -> float:
    """z above which a picture is taken for marked.

    z of one shift has a standard normal distribution in an unmarked picture; by Bonferroni, the
    highest of all shifts is above this with a probability of :data:`FALSE_POSITIVES` at most.
    """
    return float(-special.ndtri(FALSE_POSITIVES / TILE**2))


def mark(pixels: Pictures, marks: Marks, key: bytes | None = None) -> Pictures:
    """Mark a picture, as :class:`~pipelines.spec.serving.Marks` asks.

    Args:
        pixels: uint8 [H, W, 3], left as it is.
        key: of the watermark; that of :func:`mark_key` by default.

    Returns:
        uint8 [H, W, 3]. In a picture of less than :data:`TILE` pixels a side, the watermark may not
        be found again.

    Raises:
        ValueError: The picture is smaller than the visible sign.
    """
    if marks.invisible:
        pixels = _with_watermark(pixels, _tile(key or mark_key()))
    return _with_sign(pixels) if marks.visible else pixels


def find_mark(pixels: Pictures, key: bytes | None = None) -> Found:
    """Look for the watermark of a key in a picture, at any shift.

    Args:
        pixels: uint8 [H, W, 3], at the scale at which it was marked.
        key: that of :func:`mark_key` by default.
    """
    light = pixels @ np.array(LUMA)
    detail = light - _blurred(light)
    detail /= np.sqrt(_blurred(detail**2)) + 0.5  # levels: what rounding leaves of a flat ground
    product = np.fft.fft2(_folded(detail)) * np.fft.fft2(_tile(key or mark_key())).conj()
    size = np.abs(product)
    # Only phases tell marked from unmarked; louder frequencies have kept more of them.
    product *= _band() / np.sqrt(np.maximum(size, 1e-12))
    spread = np.sqrt((size * _band()).sum())
    if spread == 0:
        return Found(0.0)
    return Found(float(np.fft.ifft2(product).real.max() * TILE**2 / spread))


def check_file(path: Path) -> Checked:
    """What a picture file says of its origin, by its watermark and by its metadata.

    Raises:
        ValueError: It is no picture that can be read.
    """
    from pipelines.models.painting import open_image

    key = mark_key()
    found = find_mark(np.asarray(open_image(path)), key)
    return Checked(found, key == PUBLIC_KEY, metadata.source_type(path))


@functools.lru_cache(maxsize=8)
def _tile(key: bytes) -> Floats:
    """The watermark of a key, [TILE, TILE], of standard deviation 1 and flat in its band."""
    bits = hashlib.shake_256(b"ediffi watermark 1\0" + key).digest(TILE**2 // 8)
    signs = np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(TILE, TILE) * 2.0 - 1
    spectrum = np.fft.fft2(signs)
    spectrum *= _band() / np.maximum(np.abs(spectrum), 1e-12)
    tile: Floats = np.fft.ifft2(spectrum).real
    tile /= tile.std()
    return tile


@functools.cache
def _band() -> Floats:
    """1 at the watermark's frequencies, else 0: [TILE, TILE]."""
    frequencies = np.fft.fftfreq(TILE)
    radius = np.hypot(frequencies[:, None], frequencies)
    out: Floats = ((radius >= BAND[0]) & (radius <= BAND[1])).astype(float)
    return out


def _blurred(values: Floats) -> Floats:
    out: Floats = ndimage.gaussian_filter(values, NEAR)
    return out


def _folded(values: Floats) -> Floats:
    """The sum of all tiles of [H, W]: [TILE, TILE]."""
    rows, columns = (math.ceil(side / TILE) for side in values.shape)
    whole = np.zeros((rows * TILE, columns * TILE))
    whole[: values.shape[0], : values.shape[1]] = values
    out: Floats = whole.reshape(rows, TILE, columns, TILE).sum((0, 2))
    return out


def _with_watermark(pixels: Pictures, tile: Floats) -> Pictures:
    height, width = pixels.shape[:2]
    light = pixels @ np.array(LUMA)
    activity = np.sqrt(np.maximum(_blurred(light**2) - _blurred(light) ** 2, 0))
    amplitude = np.clip(STRENGTH * activity, *AMPLITUDES)
    repeated = np.tile(tile, (math.ceil(height / TILE), math.ceil(width / TILE)))[:height, :width]
    marked = pixels + (amplitude * repeated)[..., None]
    return np.clip(np.rint(marked), 0, 255).astype(np.uint8)


def _with_sign(pixels: Pictures) -> Pictures:
    height, width = pixels.shape[:2]
    scale = max(1, min(height, width) // 64)
    sign = np.array([[c == "#" for c in row] for row in SIGN])
    sign = sign.repeat(scale, 0).repeat(scale, 1)
    side = len(sign)
    if min(height, width) < side:
        raise ValueError(
            f"a picture of {width}×{height} pixels has no room for the visible mark; leave "
            f"`marks.visible` out, or draw {side} pixels or more"
        )
    # A margin of one dot, where there is room.
    bottom, right = (max(n - scale, side) for n in (height, width))
    out = pixels.copy()
    out[bottom - side : bottom, right - side : right] = np.where(sign, 255, 0)[..., None]
    return out
