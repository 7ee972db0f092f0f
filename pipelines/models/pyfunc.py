"""MLflow pyfunc model of a registered ensemble: rows of prompts and options in, images out.

MLflow stores ``ensemble.json`` and the name of this module; the code comes from the installed
package.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipelines.models import painting
from pipelines.models.rows import Row, draw, parse_row
from pipelines.models.text_to_image import TextToImage
from pipelines.spec.sampling import Sampling


class EnsembleModel:
    """Maps a data frame of ``prompt`` and :data:`OPTIONS` to one of ``png``, base64 images.

    Text rather than bytes or arrays gives Python and JSON clients the same result, and an output
    can be the ``style`` of the next call. An image depends on its own row alone and equals the one
    that ``ediffi sample`` generates for this prompt and seed.
    """

    def __init__(self, model: TextToImage) -> None:
        self.model = model
        self.lock = threading.Lock()
        """MLflow's server calls from several threads, and tokenizers are not thread-safe."""

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Generate one image per row.

        Args:
            params: ``stage``: the last stage to run for all rows, so that images have one size.

        Raises:
            MlflowException: A row is invalid; the message names row and column.
        """
        from mlflow.exceptions import MlflowException

        try:
            requests = parse_rows(data, self.model.sampling)
            with self.lock:
                pictures = draw(self.model, requests, (params or {}).get("stage"))
        except ValueError as error:  # the server answers this with status 400
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame({"png": [painting.encode_png(p) for p in pictures]}, index=data.index)


def _load_pyfunc(path: str) -> EnsembleModel:
    """Entry point of MLflow, called with the path of the ``ensemble.json``."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return EnsembleModel(TextToImage.load(path))


def parse_rows(data: pd.DataFrame, sampling: Mapping[str, Sampling]) -> list[Row]:
    """Validate the rows of a data frame.

    Args:
        sampling: stage → the ensemble's own settings.

    Raises:
        ValueError: A row is invalid; the message names it and the column or setting.
    """
    found = []
    for number, row in enumerate(data.to_dict("records"), 1):
        given = {str(k): v for k, v in row.items() if not _is_missing(v)}
        try:
            found.append(parse_row(given, sampling))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    return found


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
