"""Series: windows of values (T, C), a history and the horizon after it; forecasts as samples, judged by their errors and quantiles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import SignalSpec
from tokenloom.tasks.modalities.base import Card, Comparison, Fitted, Modality, Rejected, SampleRequest, Served
from tokenloom.tasks.modalities.series.shards import windows_of

if TYPE_CHECKING:
    from tokenloom.configs.schema import ClusterConfig, DataConfig, RunConfig
    from tokenloom.tasks.data.listing import Item, Source
    from tokenloom.tasks.runtime.progress import Report
    from tokenloom.tasks.serving.predict import Pair
    from tokenloom.tasks.store.artifacts import Record, StepSpec, Store, Work


class Series(Modality):
    """Signals (B, C, T), standardised by the training split and less the history's last value; T = history + horizon."""

    kind, noun = "series", "windows"
    columns = (("values", pa.list_(pa.float32())), ("channels", pa.int32()), ("history", pa.int32()))
    needs_features = False
    judges = ("generator",)
    measured = {
        "mase": ("mase",),
        "crps": ("crps", "coverage_80"),
        "mse": ("mse",),
        "": ("forecasts_per_second",),
    }
    meanings = (
        ("mase", "lower", "mean absolute error of the median forecast over that of the seasonal naive forecast in training"),
        ("crps", "lower", "continuous ranked probability score of the samples, in the data's units over the naive error"),
        ("coverage_80", "near 0.8", "share of values between the 10th and the 90th percentile of the samples"),
        ("mse", "lower", "squared error of the mean forecast, in standard deviations of the training split"),
        ("forecasts_per_second", "higher", "sample paths a second, in one process"),
    )

    comparison = Comparison(
        headline=("mase", "crps", "mse"),
        columns=(
            *("mase", "mase_", "crps", "crps_", "coverage_80", "coverage_80_", "mse", "mse_"),
            *("codebook_use", "codebook_perplexity", "forecasts_per_second", "parameters"),
        ),
        speed="forecasts_per_second",
    )

    def spec(self, config: DataConfig) -> SignalSpec:
        assert config.series is not None, "checked by the schema"
        values, names = config.series.history + config.series.horizon, self.open_source(config).notes["names"]
        if config.size != 0 and config.shape != (values, len(names)):
            raise ConfigError(
                f"data.size={list(config.shape)}: these windows have {values} values (series.history + series.horizon) of {len(names)} "
                f"channels ({', '.join(names)}); write [{values}, {len(names)}], or leave size out"
            )
        return SignalSpec(kind=self.kind, shape=(values,), channels=len(names), range=None)

    def check(self, config: RunConfig) -> None:
        given, method = config.data.series, config.tokenizer
        if given is None or method is None or method.recipe is None:
            return
        spec = {"signal": self.spec(config.data).to_dict()}
        tokens: Any = ModelSpec("tokenizer", method.recipe, dict(method.args), dict(method.set), spec).shaped()
        values, length = given.history + given.horizon, tokens.layout.length
        if given.history * length % values:
            raise ConfigError(
                f"data.series.history={given.history}: a token holds {values // length} values, so that the end of the history would stand "
                f"inside of one; give a multiple of {values // length}"
            )

    def open_source(self, config: DataConfig) -> Source:
        from tokenloom.tasks.modalities.series.sources import open_source

        return open_source(config)

    def fit(self, item: Item, config: DataConfig, classes: Mapping[str, int]) -> Fitted | Rejected:
        window = np.asarray(item.read(), np.float32)
        raw = window.tobytes()
        digest = hashlib.sha256(raw).hexdigest()
        if not np.isfinite(window).all():
            return Rejected("values that are not finite", digest)
        assert config.series is not None
        columns = {"values": window.reshape(-1), "channels": window.shape[1], "history": config.series.history}
        return Fitted(columns, hashlib.sha256(repr(window.shape).encode() + raw).digest()[:16], classes[str(item.label)], digest)

    def notes(self, config: DataConfig, source: Source) -> dict[str, Any]:
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in source.notes.items()}
        return {"signal": self.spec(config).to_dict(), "series": plain}

    def read(self, raw: bytes, where: str, shape: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Windows float32 (N, T, C), each less the last value of its history, and labels."""
        data, labels, history = windows_of(raw, where)
        return data - data[:, history - 1 : history], labels

    def tensor(self, data: np.ndarray | Tensor) -> Tensor:
        window_BTC = torch.from_numpy(np.ascontiguousarray(data)) if isinstance(data, np.ndarray) else data
        return window_BTC.transpose(1, 2).contiguous()

    def sample(self, pair: Pair, title: str, request: SampleRequest, store: Store, report: Report) -> dict[str, Any]:
        from tokenloom.tasks.modalities.series.sampling import sample

        return sample(pair, title, request, store, report)

    def judge(self, step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
        from tokenloom.tasks.modalities.series.judge import judge

        return judge(step, store, cluster, report, work)

    def serving(self, dataset: Record) -> dict[str, Any]:
        return {"series": dataset.notes["series"]}

    def served(self, pair: Pair, dataset: Record) -> Served:
        room = Path(__file__).parent / "served"
        known = dataset.notes["series"]
        step: Any = 0.0 if len(known["names"]) == 1 else [0.0] * len(known["names"])
        example = json.dumps([step] * int(known["history"]))
        return Served(
            inputs={"history": "string"},
            outputs={"q10": "string", "median": "string", "q90": "string"},
            params={"seed": ("long", 0), "horizon": ("long", 0), "samples": ("long", 100)},
            example={"history": [example]},
            code=room / "model_def.py",
            packages=("mlflow", "torch", "numpy", "pandas", "safetensors"),
            rooms=(room,),
        )

    def card(self, dataset: Record, evaluation: Record, texts: Sequence[str]) -> Card:
        known, protocol = dataset.notes["series"], evaluation.notes["protocol"]
        return Card(
            makes=f"Forecasts {', '.join(known['names'])}: {known['horizon']} values after {known['history']}, and on from there.",
            items=f"windows of {known['history']} + {known['horizon']} values, split by time",
            protocol=f"Protocol: {protocol['samples']} sample paths of each of {protocol['reference']['windows']} held-out windows "
            f"(hash {protocol['reference']['sha256']}), seed {protocol['seed']}; the seasonal naive forecast repeats "
            f"{known['season']} values.",
            commands=("tokenloom sample models:/{name}@challenger --history values.csv --out forecast.png",),
            interface="Input: column `history`, a JSON list of values; parameters `seed`, `horizon` (0: the window's), `samples`; "
            "output: columns `q10`, `median`, `q90`, JSON lists.",
            limits="It knows this series alone, in its units and its rhythm, and was judged on the time after its training data.",
            shown=self.comparison.columns,
        )


MODALITY = Series()
