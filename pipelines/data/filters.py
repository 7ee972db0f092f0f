"""Which sound rows are wanted."""

from __future__ import annotations

from dataclasses import replace

from pipelines.data.pictures import size_of
from pipelines.data.rows import Bad, BadRow, Reason, Row, split_captions
from pipelines.spec.data import Filters


def sift(row: Row, filters: Filters) -> list[Row | Bad]:
    """The row with the captions that pass and a Bad for each that does not; or one Bad.

    The picture's size is read from its header, so what is refused is never decoded.

    Args:
        row: As :func:`pipelines.data.sources.read_shard` yields it.
        filters: ``min_side`` is skipped where it is None; ``clip_score`` is left to the caller,
            who has the encoder.
    """
    try:
        width, height = size_of(row.image, filters.max_pixels)
        if filters.min_side and min(width, height) < filters.min_side:
            raise BadRow(Reason.IMAGE_SMALL, f"{width}×{height}, min_side is {filters.min_side}")
        for name, bounds in filters.scores.items():
            if name not in row.scores:
                raise BadRow(Reason.SCORE_MISSING, name)
            if row.scores[name] not in bounds:
                raise BadRow(Reason.SCORE_BOUNDS, f"{name} is {row.scores[name]:g}")
        captions, bad = split_captions(
            [(text, _length_objection(text, filters)) for text in row.captions], row.key, row.source
        )
    except BadRow as bad_row:
        return [Bad(row.key, row.source, bad_row.reason, bad_row.detail)]
    return [replace(row, captions=captions), *bad]


def _length_objection(text: str, filters: Filters) -> BadRow | None:
    if filters.caption_characters is None or len(text) in filters.caption_characters:
        return None
    return BadRow(Reason.CAPTION_LENGTH, f"{len(text)} characters")
