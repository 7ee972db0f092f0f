"""MLflow pyfunc model of a registered ensemble: rows of prompts and options in, images out.

MLflow stores ``ensemble.json`` and the name of this module; the code comes from the installed
package.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from numbers import Real
from typing import Any

import pandas as pd
from pydantic import ValidationError

from pipelines.models import painting
from pipelines.models.limits import check_count
from pipelines.models.rows import Row, draw, parse_row
from pipelines.models.text_to_image import TextToImage
from pipelines.spec.loading import explain, parse_value
from pipelines.spec.sampling import Sampling
from pipelines.spec.serving import Limits

VARIABLE = "EDIFFI_LIMITS"
"""Environment variable with the limits of one call, as ``limits`` of ``ediffi serve``."""

ROWS = 64
"""Rows of a call, by default: those of equal options are drawn at once."""

MESSAGE_CHARS = 500
"""Length of an error's message, which may quote the request."""


class EnsembleModel:
    """Maps a data frame of ``prompt`` and :data:`OPTIONS` to one of ``png``, base64 images.

    Text rather than bytes or arrays gives Python and JSON clients the same result, and an output
    can be the ``style`` of the next call. An image depends on its own row alone and equals the one
    that ``ediffi sample`` generates for this prompt and seed.
    """

    def __init__(self, model: TextToImage, limits: Limits | None = None) -> None:
        """
        Args:
            limits: of one call; by default those that :func:`limits_of` finds.
        """
        self.model = model
        self.limits = limits or limits_of(os.environ)
        self.lock = threading.Lock()
        """MLflow's server calls from several threads, and tokenizers are not thread-safe."""

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Generate one image per row.

        Args:
            params: ``stage``: the last stage to run for all rows, so that images have one size.

        Raises:
            MlflowException: A row is invalid or beyond the limits, and the message names row and
                column; or an image has values that are not finite.
        """
        from mlflow.exceptions import MlflowException

        try:
            requests = parse_rows(data, self.model.sampling, self.limits)
            with self.lock:
                pictures = draw(self.model, requests, (params or {}).get("stage"))
        except ValueError as error:  # the server answers this with status 400
            raise MlflowException.invalid_parameter_value(str(error)[:MESSAGE_CHARS]) from error
        return pd.DataFrame({"png": [painting.encode_png(p) for p in pictures]}, index=data.index)


def limits_of(environment: Mapping[str, str]) -> Limits:
    """What one call of the model may ask for: :data:`ROWS`, and what the operator has set.

    Args:
        environment: may have :data:`VARIABLE`, such as ``{steps: 50, pictures: 1000}``.

    Raises:
        ValueError: The variable is no mapping of limits.
    """
    text = environment.get(VARIABLE) or "{}"
    try:
        given = parse_value(text)
        if not isinstance(given, dict):
            raise ValueError(f"it is {text[:80]!r}; write a mapping, such as {{steps: 50}}")
        return Limits.model_validate({"pictures": ROWS, **given})
    except ValidationError as error:
        raise ValueError(f"{VARIABLE}: {explain(error, Limits)}") from None
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from None


def _load_pyfunc(path: str) -> EnsembleModel:
    """Entry point of MLflow, called with the path of the ``ensemble.json``."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return EnsembleModel(TextToImage.load(path))


def parse_rows(data: pd.DataFrame, sampling: Mapping[str, Sampling], limits: Limits) -> list[Row]:
    """Validate the rows of a data frame.

    Args:
        sampling: stage → the ensemble's own settings.

    Raises:
        ValueError: There is no row, or too many, or one is invalid; the message names it and the
            column or setting.
    """
    if data.empty:
        raise ValueError("the request has no rows; send one at least, with a `prompt`")
    check_count("rows", len(data), limits.pictures)
    found = []
    for number, row in enumerate(data.to_dict("records"), 1):
        given = {str(k): v for k, v in row.items() if not _is_missing(v)}
        try:
            found.append(parse_row(given, sampling, limits))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    return found


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, Real) and math.isnan(value))
