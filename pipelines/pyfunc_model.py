"""What MLflow loads for a registered ensemble: prompts in, pictures out."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd

from pipelines.model import TextToImage


class EnsembleModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """A data frame with ``prompt`` → uint8 pictures [N, R, R, 3].

    Parameters: ``seed``, ``guidance``, ``steps``, ``solver``, ``up_to``.
    """

    def load_context(self, context: Any) -> None:
        self.model = TextToImage.load(context.artifacts["ensemble"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        if "prompt" not in model_input:
            raise ValueError(f"the data frame needs a column `prompt`, got {list(model_input)}")
        options = dict(params or {})
        return self.model.sample([str(p) for p in model_input["prompt"]], **options)


mlflow.models.set_model(EnsembleModel())
