"""The registered MLflow model: classes, texts or columns of the data in, ``png_base64`` out (MLflow runs this file to load the model)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

if TYPE_CHECKING:
    from tokenloom.tasks.serving.request import Request

MOST_ROWS = 1024  # images of one request


class ImageModel(PythonModel):
    """Draws one image a row; the same rows with the same parameters give the same images."""

    def load_context(self, context: Any) -> None:
        """Open the generator and tokenizer that travel with the model."""
        from tokenloom.tasks.serving.predict import open_bundle

        self.pair = open_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """``class_id``, ``text`` and columns of the data (N,), those that the model takes, to ``png_base64`` (N,).

        Parameters: see ``served.options``.
        """
        from tokenloom.models.core.config import ConfigError
        from tokenloom.tasks.modalities.image.served.draw import painting_of, png_base64, sample_shards
        from tokenloom.tasks.modalities.image.served.options import changes, size_of
        from tokenloom.tasks.serving.predict import check_prefix, sized

        for column in self.pair.condition_spec.inputs:
            if column not in model_input:
                raise MlflowException(f"this model takes the column {column!r}, got {', '.join(model_input)}", INVALID_PARAMETER_VALUE)
        if not 0 < len(model_input) <= MOST_ROWS:
            raise MlflowException(f"{len(model_input)} rows: ask for 1 to {MOST_ROWS} images at once", INVALID_PARAMETER_VALUE)
        given = params or {}
        try:
            pair, shape, prefix = self.pair, size_of(given), int(given.get("prefix", 0)) or None
            pair = sized(pair, shape) if shape is not None else pair
            pair = pair.edited(**changes(self.pair, given))
            check_prefix(pair, prefix)
            painting = painting_of(pair, given.get("inpaint", ""), given.get("mask", ""))
            images = sample_shards(pair, self._request(model_input), int(given.get("seed", 0)), painting=painting, prefix=prefix)
        except ConfigError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        return pd.DataFrame({"png_base64": [png_base64(image) for image in images]})

    def _request(self, rows: pd.DataFrame) -> Request:
        from tokenloom.tasks.modalities.image.served.draw import column_of
        from tokenloom.tasks.serving.request import Request

        condition_spec = self.pair.condition_spec
        return Request(
            rows["class_id"].to_numpy(np.int64) if condition_spec.labelled else None,
            [str(text) for text in rows["text"]] if condition_spec.texted else None,
            {name: column_of(name, rows[name].tolist(), shape) for name, shape in condition_spec.columns.items()},
        )


mlflow.models.set_model(ImageModel())
