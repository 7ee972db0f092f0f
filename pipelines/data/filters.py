"""The filters that a spec sets on readable rows."""

from __future__ import annotations

from dataclasses import replace

from pipelines.data.pictures import size_of
from pipelines.data.rows import Reason, RejectedRow, Row, RowError, split_captions
from pipelines.spec.data import Filters


def apply_filters(row: Row, filters: Filters) -> list[Row | RejectedRow]:
    """Apply a spec's filters to a row.

    The picture's size is read from its header, so a rejected picture is never decoded.

    Args:
        row: As :func:`pipelines.data.sources.read_shard` yields it.
        filters: ``min_side`` is skipped if it is None. ``clip_score`` is left to the caller, who
            has the encoder.

    Returns:
        The row with the captions that pass, then a :class:`RejectedRow` for each caption that
        does not; or one :class:`RejectedRow` if the whole row fails.
    """
    try:
        width, height = size_of(row.image, filters.max_pixels)
        if filters.min_side and min(width, height) < filters.min_side:
            raise RowError(Reason.IMAGE_SMALL, f"{width}×{height}, min_side is {filters.min_side}")
        for name, bounds in filters.scores.items():
            if name not in row.scores:
                raise RowError(Reason.SCORE_MISSING, name)
            if row.scores[name] not in bounds:
                raise RowError(Reason.SCORE_BOUNDS, f"{name} is {row.scores[name]:g}")
        captions, bad = split_captions(
            [(text, _check_length(text, filters)) for text in row.captions], row.key, row.source
        )
    except RowError as bad_row:
        return [RejectedRow(row.key, row.source, bad_row.reason, bad_row.detail)]
    return [replace(row, captions=captions), *bad]


def _check_length(text: str, filters: Filters) -> RowError | None:
    if filters.caption_characters is None or len(text) in filters.caption_characters:
        return None
    return RowError(Reason.CAPTION_LENGTH, f"{len(text)} characters")
