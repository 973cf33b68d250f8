"""Forecasts for people: sample paths and their quantiles as a table and as a plot, from a history or from held-out windows.

Shapes: N histories, S sample paths, H values of a history, F values of a forecast, C channels.
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.modalities.base import SampleRequest
from tokenloom.tasks.modalities.series.judge import SHOWN, held_out, plot
from tokenloom.tasks.modalities.series.served.forecast import QUANTILES, Windows, forecast, seasonal_naive
from tokenloom.tasks.modalities.series.sources import read_table
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.store.storage import atomic

Values = NDArray[np.float64]


def sample(pair: Pair, title: str, given: SampleRequest, store: Store, report: Report) -> dict[str, Any]:
    """Draw ``total`` sample paths after each history and write ``out`` twice: ``.csv`` (quantiles, truth, paths) and ``.png`` (a plot).

    The history is a table of the model's channels, one row a time step (its last ones count), or some windows of the test split, of
    the validation split where there is no other.

    Raises:
        ConfigError: options of other kinds, another ending of ``out``, a history that is too short, or none at hand.
    """
    if given.out.suffix not in (".png", ".csv"):
        raise ConfigError(f"--out {str(given.out)!r}: write FILE.png or FILE.csv, a plot and a table of the forecasts; both are made")
    if given.prompts is not None:
        raise ConfigError(f"--prompts: {title} forecasts series; give --history")
    if given.classes is not None or given.texts is not None:
        raise ConfigError(f"--{'classes' if given.classes is not None else 'text'}: {title} forecasts series; give --history")
    if given.columns:
        raise ConfigError(f"--column {next(iter(given.columns))}=…: {title} forecasts series, which have no further columns")
    if "series" not in pair.known:
        raise ConfigError(f"{title}: it is not known how its data was cut and scaled; give a model that was trained here")
    windows = Windows.of(pair.known["series"])
    history, truth = _histories(given, pair, windows, title, store)
    horizon = given.horizon or windows.horizon
    report("sample", 0, 1, {})
    paths = forecast(pair, windows, history, horizon, given.total, given.seed)
    report("sample", 1, 1, {})
    shown = history[:, -windows.history :]
    picture = plot(shown, truth, paths, seasonal_naive(shown, horizon, windows.season), windows)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    files = {".csv": table(paths, truth, windows).encode(), ".png": picture}
    for suffix, data in files.items():
        with atomic(given.out.with_suffix(suffix)) as file:
            file.write(data)
    out = [str(given.out.with_suffix(suffix)) for suffix in files]
    return {"model": title, "out": out, "samples": given.total, "histories": len(history), "horizon": horizon, "seed": given.seed}


def _histories(given: SampleRequest, pair: Pair, windows: Windows, title: str, store: Store) -> tuple[Values, Values | None]:
    """Histories (N, H, C) and what came after them (N, F, C), where it is known, in the data's units."""
    if given.history is not None:
        if not given.history.is_file():
            raise ConfigError(f"--history {str(given.history)!r}: no such file")
        return read_table(given.history, list(windows.names))[1][None], None
    if "dataset" not in pair.known:
        wanted = f"a table with at least {windows.history} rows of {', '.join(windows.names)}"
        raise ConfigError(f"--history: {title} has no data beside it; give {wanted}")
    notes = store.record(Artifact.from_dict(pair.known["dataset"])).notes
    split = "test" if any(shard["split"] == "test" for shard in notes["shards"]) else "validation"
    found = held_out(notes, store, windows, (split,), SHOWN)
    return found[:, : windows.history], found[:, windows.history :]


def table(paths_NSFC: Values, truth_NFC: Values | None, windows: Windows) -> str:
    """CSV, one row a history, step after it and channel: quantiles, truth where it is known, and every sample path."""
    names = [f"q{round(100 * q)}" for q in QUANTILES]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["window", "step", "channel", *names, "truth", *(f"sample_{s}" for s in range(paths_NSFC.shape[1]))])
    quantiles = np.quantile(paths_NSFC, QUANTILES, axis=1)
    for n, _, step, c in np.ndindex(len(paths_NSFC), 1, *paths_NSFC.shape[2:]):
        truth = "" if truth_NFC is None or step >= truth_NFC.shape[1] else f"{truth_NFC[n, step, c]:.6g}"
        numbers = [f"{x:.6g}" for x in (*quantiles[:, n, step, c], *paths_NSFC[n, :, step, c])]
        rows.writerow([n, step + 1, windows.names[c], *numbers[: len(names)], truth, *numbers[len(names) :]])
    return text.getvalue()
