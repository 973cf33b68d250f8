"""Series: windows, splits by time, scale, scores, forecasts and what is served."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tokenloom.configs.schema import DataConfig, RunConfig
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.signals import SignalSpec
from tokenloom.tasks import modalities
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.modalities.base import SampleRequest
from tokenloom.tasks.modalities.series.judge import scores
from tokenloom.tasks.modalities.series.served.forecast import Windows, forecast, seasonal_naive
from tokenloom.tasks.modalities.series.sources import borders, cuts
from tokenloom.tasks.runtime.progress import silent
from tokenloom.tasks.serving.predict import Pair, default_sampler
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.steps.base import Context
from tokenloom.tasks.steps.evaluate import EVALUATE
from tokenloom.tasks.store.artifacts import Store

SERIES = modalities.kind("series")


def table(folder: Path, length: int = 60, **columns: Any) -> str:
    """A CSV with a date and these columns (a wave of period four, if none)."""
    folder.mkdir(exist_ok=True)
    columns = columns or {"value": 10 + 3 * np.sin(np.arange(length) * np.pi / 2)}
    rows = [f"{i},{','.join(str(values[i]) for values in columns.values())}" for i in range(length)]
    (folder / "a.csv").write_text("\n".join([f"date,{','.join(columns)}", *rows]))
    return f"csv:{folder}/*.csv"


def config(source: str, **series: Any) -> DataConfig:
    cut = {"history": 8, "horizon": 4, "season": 4, "values": ["value"], **series}
    return DataConfig(kind="series", source=source, series=cut, validation=0.2, test=0.1)


def test_windows_of_a_split_forecast_its_own_time_alone(tmp_path: Path) -> None:
    given = config(table(tmp_path))
    train, validation = borders(60, given)
    assert (train, validation) == (42, 54)
    found: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for start, split in cuts(60, given, given.series):  # type: ignore[arg-type]
        found[split].append(start)
    assert max(found["train"]) + 12 == train
    assert min(found["validation"]) + 8 == train
    assert max(found["validation"]) + 12 == validation
    assert (min(found["test"]) + 8, max(found["test"]) + 12) == (validation, 60)


def test_a_dataset_is_standardised_by_its_training_part_alone(store: Store, tmp_path: Path) -> None:
    values = np.concatenate([np.tile([1.0, 3.0], 21), np.full(18, 100.0)])
    record = store.record(ingest("s", config(table(tmp_path, value=values)), store).artifact)
    assert record.notes["series"]["mean"] == [2.0]
    assert record.notes["series"]["std"] == [1.0]
    assert record.notes["signal"] == {"kind": "series", "shape": [12], "channels": 1, "range": None}
    loader = Loader(Rows.of(record.notes, store.uri, "train"), store.cache)
    signal = loader.get(np.arange(2)).signal
    assert signal is not None
    assert signal.shape == (2, 1, 12)
    assert signal[:, 0, 7].tolist() == [0.0, 0.0], "a window is less the last value of its history"
    assert set(signal[0].flatten().tolist()) == {-2.0, 0.0}
    assert record.metrics["train"] == 31


def test_several_channels_and_parquet(store: Store, tmp_path: Path) -> None:
    wave = np.arange(60.0)
    pd.DataFrame({"value": wave, "other": -2 * wave}).to_parquet(tmp_path / "b.parquet")
    given = config(f"parquet:{tmp_path}/*.parquet", values=None)
    record = store.record(ingest("s", given, store).artifact)
    assert record.notes["series"]["names"] == ["value", "other"]
    data, _ = Loader(Rows.of(record.notes, store.uri, "train"), store.cache).items(np.array([0]))
    np.testing.assert_allclose(data[0, :, 0], -data[0, :, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ({"history": 50}, "longer than the training part"),
        ({"season": 9}, "season=9"),
        ({"values": ["nothing"]}, "no column 'nothing'"),
        ({"values": ["date", "flat"]}, "flat never changes"),
    ],
)
def test_what_cannot_be_forecast_is_said_before_work(tmp_path: Path, series: dict[str, Any], words: str) -> None:
    source = table(tmp_path, value=np.arange(60.0), flat=np.ones(60))
    with pytest.raises(ConfigError, match=words):
        SERIES.open_source(config(source, **series))


def test_scores_of_known_forecasts() -> None:
    windows = Windows(names=("x",), mean=(0.0,), std=(2.0,), history=2, horizon=2, season=1, naive=(0.5,))
    future = np.array([[[1.0], [2.0]]])
    exact = scores(np.repeat(future[:, None], 3, axis=1), future, windows)
    assert exact == {"mase": 0.0, "crps": 0.0, "mse": 0.0, "coverage_80": 1.0}
    paths = future[:, None] + np.array([-1.0, 1.0])[None, :, None, None]
    found = scores(paths, future, windows)
    # E|X - y| = 1 and E|X - X'| = 1, so CRPS = 1 - 1/2, over the naive error 1/2; the mean is exact
    assert found["crps"] == pytest.approx(1.0)
    assert found["mse"] == pytest.approx(0.0)
    off = scores(future[:, None] + 3.0, future, windows)
    assert (off["mase"], off["mse"], off["coverage_80"]) == (pytest.approx(6.0), pytest.approx(2.25), 0.0)
    np.testing.assert_array_equal(seasonal_naive(np.array([[[1.0], [2.0], [3.0]]]), 5, 2)[0, :, 0], [2, 3, 2, 3, 2])


CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "bins_ar": ("series_bins", {"bins": 63, "limit": 3.0}),  # an odd number: equal values differ by nothing, which no edge cuts
    "patch_ar": ("series_patches", {"patch": 4}),
}


def trained(recipe: str, steps: int = 200) -> tuple[Pair, Windows]:
    """A forecaster of a wave of period four, and how it was cut."""
    wave = np.sin(np.arange(40) * np.pi / 2 + 0.3)
    windows = Windows(names=("x",), mean=(0.0,), std=(1.0,), history=8, horizon=4, season=4, naive=(1.0,))
    signal = SignalSpec(kind="series", shape=(12,), channels=1, range=None)
    codec = ModelSpec("tokenizer", *CODECS[recipe], {}, {"signal": signal.to_dict()})
    tokenizer: Any = codec.build()
    given = {"layout": tokenizer.layout.to_dict(), "classes": 1, "tokenizer": codec.to_dict()}
    spec = ModelSpec("generator", recipe, {"depth": 1, "width": 32, "heads": 2, "dropout": 0.0}, {}, given)
    torch.manual_seed(0)
    model: Any = spec.build().train()
    rows = torch.from_numpy(np.stack([wave[i : i + 12] - wave[i + 7] for i in range(16)])).float()[:, None]
    from tokenloom.models.core.protocols import Batch, Labels

    batch = Batch(tokens=tokenizer.encode(rows), conditions=Labels(torch.zeros(16, dtype=torch.int64)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        model.losses(batch, "main", Draws.whole(0, step, 16, steps))["loss"].backward()
        optimizer.step()
    model.eval()
    return Pair(model, tokenizer, default_sampler(model).edited(top_k=1), ConditionSpec.of(spec, ["all"])), windows


@pytest.mark.parametrize("recipe", CODECS)
def test_a_forecast_goes_on_with_the_history_at_any_horizon(recipe: str) -> None:
    pair, windows = trained(recipe)
    wave = np.sin(np.arange(40) * np.pi / 2 + 0.3)
    history = np.stack([wave[:8], wave[3:13][:8]])[..., None]
    paths = forecast(pair, windows, history, 10, samples=20, seed=0)  # beyond the window: it rolls on
    assert paths.shape == (2, 20, 10, 1)
    expected = np.stack([wave[8:18], wave[11:21]])
    error = np.abs(paths[..., 0] - expected[:, None])
    if recipe == "bins_ar":
        assert error.max() < 3 * 3 / 63  # half a bin of 6 / 63 for each of three windows
    else:
        assert error.mean() < 0.2  # the deviation is learned, too; repeating the last value is 0.95 off
    alone = forecast(pair, windows, history[:1], 10, samples=20, seed=0)
    np.testing.assert_array_equal(alone, paths[:1])
    with pytest.raises(ConfigError, match="at least 8 values"):
        forecast(pair, windows, history[:, :5], 4, 2, 0)


def test_bins_are_uniform_and_their_centres_come_back() -> None:
    signal = SignalSpec(kind="series", shape=(5,), channels=2, range=None)
    model: Any = ModelSpec("tokenizer", "series_bins", {"bins": 4, "limit": 2.0}, {}, {"signal": signal.to_dict()}).build()
    values = torch.tensor([[-9.0, -1.5, -0.5, 0.5, 9.0], [0.1, 1.1, 1.9, -1.1, -0.1]])[None]
    tokens = model.encode(values)
    assert tokens.ids.tolist() == [[0, 2, 0, 3, 1, 3, 2, 0, 3, 1]]
    assert model.decode(tokens)[0, 0].tolist() == [-1.5, -1.5, -0.5, 0.5, 1.5]


def test_patches_are_the_values_themselves_in_time() -> None:
    signal = SignalSpec(kind="series", shape=(6,), channels=2, range=None)
    spec = ModelSpec("tokenizer", "series_patches", {"patch": 3}, {}, {"signal": signal.to_dict()})
    model: Any = spec.build()
    values = torch.arange(12.0).view(1, 2, 6)
    tokens = model.encode(values)
    assert (tokens.layout.length, tokens.layout.channels, tokens.layout.axis) == (2, 6, "time")
    assert tokens.data[0, 0].tolist() == [0, 6, 1, 7, 2, 8], "the channels of a time step side by side"
    assert torch.equal(model.decode(tokens), values)
    with pytest.raises(ConfigError, match="patch=4: a signal of shape 6 is not a whole number of patches"):
        ModelSpec("tokenizer", "series_patches", {"patch": 4}, {}, {"signal": signal.to_dict()}).build()


def test_the_packaged_series_are_read() -> None:
    pytest.importorskip("statsmodels")
    for name, least in (("sunspots", 300), ("co2", 2000)):
        cut = {"history": 20, "horizon": 5}
        source = SERIES.open_source(DataConfig(kind="series", source=name, series=cut, validation=0.2))
        assert len(list(source.items(source.entries[0]))) > least - 60
        json.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in source.notes.items()})


@pytest.mark.parametrize(
    ("rest", "last"),
    [
        ({"tokenizer": {"recipe": "series_bins", "args": {"bins": 8}}}, "tokenizer"),
        ({"density": {"recipe": "iwae", "train": {"steps": 1}}}, "density"),
    ],
)
def test_a_run_that_cannot_be_judged_is_refused_before_work(tmp_path: Path, rest: dict[str, Any], last: str) -> None:
    given = config(table(tmp_path / "data")).model_dump(mode="json", exclude_unset=True)
    run = RunConfig.model_validate({"name": "series", "data": given, "evaluate": {"metrics": ["mase"]}, **rest})
    context = Context(run, Store(str(tmp_path / "store"), tmp_path / "root"))
    with pytest.raises(ConfigError, match=f"data.kind=series: a run that ends with a {last} cannot be judged; end it with: generator"):
        EVALUATE.check(context, {})


@pytest.mark.parametrize(("patch", "ok"), [(4, True), (3, False)])
def test_a_history_ends_between_two_patches(tmp_path: Path, patch: int, ok: bool) -> None:
    method = {"train": {"steps": 1}}
    given = config(table(tmp_path / "data")).model_dump(mode="json", exclude_unset=True)
    tokenizer = {"recipe": "series_patches", "args": {"patch": patch}}
    generator, evaluate = {"recipe": "patch_ar", **method}, {"metrics": ["mase"]}
    run = {"name": "s", "data": given, "tokenizer": tokenizer, "generator": generator, "evaluate": evaluate}
    context = Context(RunConfig.model_validate(run), Store(str(tmp_path / "store"), tmp_path / "root"))
    if ok:
        EVALUATE.check(context, {})
    else:
        with pytest.raises(ConfigError, match=r"data\.series\.history=8: a token holds 3 values.* give a multiple of 3"):
            EVALUATE.check(context, {})


def asked(out: Path, **options: Any) -> SampleRequest:
    return SampleRequest(out, options.pop("total", 20), **options)


@pytest.fixture(scope="module")
def forecaster() -> tuple[Pair, Windows]:
    return trained("bins_ar", steps=5)


def test_sample_writes_a_table_and_a_plot(forecaster: tuple[Pair, Windows], store: Store, tmp_path: Path) -> None:
    pair, windows = forecaster
    known = replace(pair, known={"series": asdict(windows)})
    (tmp_path / "h.csv").write_text("x\n" + "\n".join(str(float(i % 4)) for i in range(12)))
    out = tmp_path / "f.png"
    document = SERIES.sample(known, "toy", asked(out, history=tmp_path / "h.csv", horizon=6), store, silent)
    assert document["out"] == [str(out.with_suffix(".csv")), str(out)]
    assert out.read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(out.with_suffix(".csv"))
    assert (len(table), list(table.columns[:7])) == (6, ["window", "step", "channel", "q10", "q50", "q90", "truth"])
    paths = table[[f"sample_{i}" for i in range(20)]].to_numpy()
    np.testing.assert_allclose(table["q50"], np.median(paths, axis=1), rtol=1e-4, atol=1e-5)
    history = np.array([float(i % 4) for i in range(12)])[None, :, None]
    np.testing.assert_allclose(paths.T, forecast(pair, windows, history, 6, 20, 0)[0, :, :, 0], rtol=1e-4, atol=1e-5)
    assert table["truth"].isna().all()


def test_sample_forecasts_the_test_split_beside_its_truth(forecaster: tuple[Pair, Windows], store: Store, tmp_path: Path) -> None:
    dataset = ingest("s", config(table(tmp_path / "data")), store).artifact
    known = SERIES.serving(store.record(dataset)) | {"dataset": dataset.to_dict()}
    SERIES.sample(replace(forecaster[0], known=known), "toy", asked(tmp_path / "f.csv"), store, silent)
    made = pd.read_csv(tmp_path / "f.csv")
    wave = 10 + 3 * np.sin(np.arange(60) * np.pi / 2)
    last = made[made["window"] == made["window"].max()]
    np.testing.assert_allclose(last["truth"], wave[56:], atol=1e-4)
    assert made["window"].max() == 2, "three windows lie in the test split"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "f.npz"}, r"--out .*f\.npz': write FILE\.png or FILE\.csv"),
        ({"classes": [1]}, "--classes: toy forecasts series; give --history"),
        ({"texts": ["a"]}, "--text: toy forecasts series"),
        ({}, "--history: toy has no data beside it; give a table with at least 8 rows of x"),
        ({"history": "short.csv"}, "needs at least 8 values of 1 channels"),
        ({"history": "nothing.csv"}, "no such file"),
    ],
)
def test_what_cannot_be_sampled_of_a_series(
    forecaster: tuple[Pair, Windows], store: Store, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "short.csv").write_text("x\n1\n2\n")
    rest = {name: tmp_path / value if name == "history" else value for name, value in options.items() if name != "out"}
    known = replace(forecaster[0], known={"series": asdict(forecaster[1])})
    with pytest.raises(ConfigError, match=words):
        SERIES.sample(known, "toy", asked(tmp_path / options.get("out", "f.png"), **rest), store, silent)


def test_a_series_that_grew_is_the_same_as_one_that_was_there_at_once(store: Store, tmp_path: Path) -> None:
    """The border between splits moves, and with another file the scale of all windows."""
    values = np.random.default_rng(0).normal(size=120)

    def write(name: str, rows: int) -> None:
        pd.DataFrame({"date": np.arange(rows), "value": values[:rows]}).to_csv(tmp_path / f"{name}.csv", index=False)

    write("a", 90)
    settings = config(f"csv:{tmp_path}/*.csv")
    ingest("s", settings, store)
    write("a", 120)
    grown = ingest("s", settings, store)
    fresh = Store(str(tmp_path / "fresh"), tmp_path / "fresh-root")
    assert ingest("s", settings, fresh).artifact.fingerprint == grown.artifact.fingerprint
    write("b", 100)
    with_another = ingest("s", settings, store)
    fresher = Store(str(tmp_path / "fresher"), tmp_path / "fresher-root")
    assert ingest("s", settings, fresher).artifact.fingerprint == with_another.artifact.fingerprint
    assert "windows" in with_another.told
