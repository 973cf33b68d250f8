"""Forecasts judged on the time after training, beside the seasonal naive forecast.

Shapes: N windows, S sample paths, H history, F horizon, C channels.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.configs.schema import ClusterConfig, EvaluateConfig
from tokenloom.models.core.build import parameters
from tokenloom.tasks.data.loader import Rows, read_shard
from tokenloom.tasks.evaluation import plots
from tokenloom.tasks.evaluation.findings import Findings, arrays, keep, training_curves
from tokenloom.tasks.modalities.series.served.forecast import QUANTILES, Windows, forecast, seasonal_naive
from tokenloom.tasks.modalities.series.shards import windows_of
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.serving.predict import open_pair
from tokenloom.tasks.store.artifacts import Record, StepSpec, Store, Work
from tokenloom.tasks.training.parallel import device_of

Values = NDArray[np.float64]
LIMIT = 64  # held-out windows, evenly spread
SHOWN = 6
TITLES = {"samples": "Forecasts of held-out windows", "curves": "Training curves"}


def judge(step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
    """Forecast every held-out window, measure and plot.

    Raises:
        StepError: no generator to judge, or no held-out window.
    """
    config = EvaluateConfig(**step.config["evaluate"])
    if "generator" not in step.inputs:
        raise StepError("series: a tokenizer alone is not judged; add a generator to the run")
    dataset = store.record(step.inputs["dataset"])
    windows = Windows.of(dataset.notes["series"])
    truth = held_out(dataset.notes, store, windows)
    generator, tokenizer = (store.fetch(step.inputs[role], "model.json", "weights.safetensors") for role in ("generator", "tokenizer"))
    device = str(device_of(cluster.execution.device))
    draft = store.fetch(step.inputs["draft"], "model.json", "weights.safetensors") if "draft" in step.inputs else None
    pair = open_pair(generator, tokenizer, dataset.notes["classes"], step.config["sample"], device, draft=draft)
    report("evaluate", 1, 4, {})
    history, future = truth[:, : windows.history], truth[:, windows.history :]
    began = time.perf_counter()
    paths = forecast(pair, windows, history, windows.horizon, config.samples, config.seed)
    speed = len(truth) * config.samples / max(time.perf_counter() - began, 1e-9)
    naive = seasonal_naive(history, windows.horizon, windows.season)
    report("evaluate", 2, 4, {})
    numbers = {name: value for name, value in scores(paths, future, windows).items() if _measured(name, config)}
    beside = scores(naive[:, None], future, windows)
    numbers |= {f"{k}_seasonal_naive": v for k, v in beside.items() if k in config.metrics}
    numbers |= {"forecasts_per_second": speed, "parameters": float(parameters(pair.generator))}
    if broken := [name for name, value in numbers.items() if not np.isfinite(value)]:
        raise StepError(f"evaluation of {step.name}: {', '.join(broken)} not finite; look at the forecasts in {work.uri}")
    found = Findings(numbers, {"samples": plot(history, future, paths, naive, windows)})
    if series := training_curves(store, {role: step.inputs[role] for role in ("tokenizer", "generator")}):
        found.pictures["curves"] = plots.curves(series)
    found.notes |= {"protocol": _protocol(dataset, truth, windows, config), "sampler": pair.sampler.to_dict()}
    found.arrays["forecasts.npz"] = arrays(history=history, future=future, quantiles=np.quantile(paths, QUANTILES, axis=1))
    keep(step, found, work, TITLES)
    work.notes |= found.notes | {"classes": dataset.notes["classes"]}
    report("evaluate", 4, 4, numbers)
    return numbers


def _protocol(dataset: Record, truth: Values, windows: Windows, config: EvaluateConfig) -> dict[str, Any]:
    """All that a number depends on besides the model."""
    return {
        "version": 1,
        "reference": {
            "dataset": dataset.artifact.fingerprint,
            "windows": len(truth),
            "sha256": hashlib.sha256(truth.astype("<f8").tobytes()).hexdigest()[:16],
        },
        "samples": config.samples,
        "seed": config.seed,
        "history": windows.history,
        "horizon": windows.horizon,
        "season": windows.season,
    }


def _measured(name: str, config: EvaluateConfig) -> bool:
    return ("crps" if name == "coverage_80" else name) in config.metrics


def held_out(
    notes: Mapping[str, Any], store: Store, windows: Windows, splits: Sequence[str] = ("validation", "test"), limit: int = LIMIT
) -> Values:
    """Windows (N, T, C) of these splits, evenly spread, in the data's units."""
    found = []
    for split in splits:
        for shard in Rows.of(notes, store.uri, split).shards:
            found.append(windows_of(read_shard(store.storage, shard), store.storage.uri(shard.path))[0])
    if not found:
        raise StepError("no held-out windows: raise data.validation")
    scaled = np.concatenate(found)
    index = np.linspace(0, len(scaled) - 1, min(limit, len(scaled))).round().astype(int)
    values: Values = scaled[index].astype(np.float64) * np.array(windows.std) + np.array(windows.mean)
    return values


def scores(paths_NSFC: Values, future_NFC: Values, windows: Windows) -> dict[str, float]:
    """MASE, CRPS, MSE and the coverage of the 80 % interval, means over windows, steps and channels.

    MASE = mean |y - median| / naive (Hyndman and Koehler 2006); CRPS = E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, eq. 21),
    here over the same naive error, so that it has no unit.
    """
    naive, std = np.array(windows.naive), np.array(windows.std)
    error = np.abs(np.median(paths_NSFC, axis=1) - future_NFC) / naive
    count = paths_NSFC.shape[1]
    ordered = np.sort(paths_NSFC, axis=1)
    # E|X - X'| of S samples: 2 / S^2 sum_i (2 i - S - 1) x_(i), i from 1
    weight = (2 * np.arange(1, count + 1) - count - 1)[:, None, None]
    spread = 2 * (weight * ordered).sum(1) / count**2
    crps = (np.abs(paths_NSFC - future_NFC[:, None]).mean(1) - spread / 2) / naive
    low, high = np.quantile(paths_NSFC, (0.1, 0.9), axis=1)
    square = ((paths_NSFC.mean(1) - future_NFC) / std) ** 2
    inside = (future_NFC >= low) & (future_NFC <= high)
    return {"mase": float(error.mean()), "crps": float(crps.mean()), "mse": float(square.mean()), "coverage_80": float(inside.mean())}


@plots.plain
def plot(history: Values, future: Values | None, paths: Values, naive: Values, windows: Windows) -> bytes:
    """Some windows of the first channel: history, truth if it is known, median, 10th to 90th percentile, naive forecast."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = np.linspace(0, len(history) - 1, min(SHOWN, len(history))).round().astype(int)
    figure = Figure(figsize=(10, 2.2 * -(-len(shown) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    before, after = np.arange(-history.shape[1], 0), np.arange(paths.shape[2])
    for place, n in enumerate(shown, 1):
        axis = figure.add_subplot(-(-len(shown) // 2), 2, place)
        low, middle, high = np.quantile(paths[n, :, :, 0], QUANTILES, axis=0)
        axis.plot(before, history[n, :, 0], color="0.4", linewidth=1)
        if future is not None:
            axis.plot(np.arange(future.shape[1]), future[n, :, 0], color="black", linewidth=1.2, label="truth")
        axis.fill_between(after, low, high, color="tab:blue", alpha=0.25)
        axis.plot(after, middle, color="tab:blue", label="median, 80 %")
        axis.plot(after, naive[n, :, 0], color="tab:orange", linestyle="--", linewidth=1, label="seasonal naive")
        axis.grid(alpha=0.3)
        if place == 1:
            axis.legend(fontsize=7, title=windows.names[0], title_fontsize=7)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
