"""The registered MLflow model: a history in, quantiles of its forecast out (MLflow runs this file when the model is loaded)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

MOST_ROWS = 256  # histories of one request


class SeriesModel(PythonModel):
    """Forecasts each history; the same rows with the same parameters give the same numbers."""

    def load_context(self, context: Any) -> None:
        """Open the generator and tokenizer that travel with the model."""
        from tokenloom.tasks.modalities.series.served.forecast import Windows
        from tokenloom.tasks.serving.drawing import open_bundle

        folder = Path(context.artifacts["bundle"])
        self.pair = open_bundle(folder)
        self.windows = Windows.of(json.loads((folder / "serving.json").read_text())["series"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """``history`` (JSON lists of values, or of lists of the channels' values) to ``q10``, ``median``, ``q90`` (JSON lists)."""
        from tokenloom.models.core.config import ConfigError
        from tokenloom.tasks.modalities.series.served.forecast import QUANTILES, forecast

        if "history" not in model_input:
            raise MlflowException(f"this model takes the column 'history', got {', '.join(model_input)}", INVALID_PARAMETER_VALUE)
        if not 0 < len(model_input) <= MOST_ROWS:
            raise MlflowException(f"{len(model_input)} rows: ask for 1 to {MOST_ROWS} forecasts at once", INVALID_PARAMETER_VALUE)
        given = params or {}
        horizon = int(given.get("horizon", 0)) or self.windows.horizon
        rows = []
        try:
            for text in model_input["history"]:
                values = np.array(json.loads(text), np.float64)
                history = values[:, None] if values.ndim == 1 else values
                paths = forecast(self.pair, self.windows, history[None], horizon, int(given.get("samples", 100)), int(given.get("seed", 0)))
                low, middle, high = np.quantile(paths[0], QUANTILES, axis=0)
                rows.append([json.dumps((q[:, 0] if q.shape[1] == 1 else q).tolist()) for q in (low, middle, high)])
        except (ConfigError, ValueError) as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        return pd.DataFrame(rows, columns=["q10", "median", "q90"])


mlflow.models.set_model(SeriesModel())
