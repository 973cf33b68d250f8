"""Columns of the data as conditions of samples: in evaluation, for people, and in a served model."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from inline_runs import here_fixture, scheduled  # noqa: F401
from inline_runs import ran as steps_ran
from PIL import Image
from toy_runs import run
from words import LAYOUT, spec, trained

from tokenloom.configs.schema import RunConfig
from tokenloom.flows import planning
from tokenloom.flows.cli.sample import sample as sample_command
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Conditions, Labels, Tokens, Values
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.evaluation.sample import sample_model
from tokenloom.tasks.modalities.image import MODALITY
from tokenloom.tasks.modalities.image.held_out import HeldOut
from tokenloom.tasks.modalities.image.served.draw import sample_shards
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.serving.request import ConditionSpec, Request
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.tracking.tracker import Tracker

CONTROL = {"control": {"rows": 8, "columns": 8, "patch": 4, "dropout": 0.0}}
BOTH = {"several": {"parts": [{"classes": {}}, CONTROL]}}


class Painter(torch.nn.Module):
    """Stands for a tokenizer: a picture whose brightness is its first token."""

    layout = LAYOUT

    def decode(self, tokens: Tokens) -> torch.Tensor:
        return (tokens.ids[:, :1, None, None] / 1.5 - 1).expand(-1, 1, 8, 8).float()


def values(*grey: float) -> Values:
    return Values(torch.tensor(grey).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous())


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A generator that has learned to draw the token 3 under a bright control image and 0 under a dark one, whatever the class."""
    made_by = spec(BOTH)
    torch.manual_seed(0)
    bright = torch.arange(16) % 2
    given = Conditions({"class": Labels(torch.arange(16) // 2 % 2), "control": values(*(2.0 * bright - 1).tolist())})
    model: Any = trained(made_by.build(), given, (3 * bright)[:, None].expand(-1, 4).contiguous(), 60)  # type: ignore[arg-type]
    return Pair(model, Painter(), Sampler(top_k=1), ConditionSpec.of(made_by, ("no", "yes")))  # type: ignore[arg-type]


def png(grey: int, size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full(size, grey, np.uint8)).save(out, "PNG")
    return out.getvalue()


def text(grey: int, size: tuple[int, int] = (8, 8)) -> str:
    return base64.b64encode(png(grey, size)).decode()


def test_samples_follow_the_column_and_not_the_batch(pair: Pair) -> None:
    assert pair.condition_spec.inputs == ("class_id", "control")
    request = Request(np.arange(40) % 2, None, {"control": values(*[-1.0] * 20, *[1.0] * 20)})
    drawn = sample_shards(pair, request, seed=1)
    assert (drawn[:20] == 0).all()
    assert (drawn[20:] == 255).all()
    np.testing.assert_array_equal(drawn, sample_shards(pair, request, seed=1, rows=7))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (np.array([0]), r"conditioned on classes, control, and the request holds classes; give control"),
        (Request(None, None, {"control": values(0.0)}), "holds control; give classes"),
        (Request(np.array([0]), None, {"control": values(0.0), "mask": values(0.0)}), "holds classes, control, mask"),
        (Request(np.array([0]), None, {"control": Values(torch.zeros(1, 1, 4, 4))}), r"column 'control': values of shape \(1, 4, 4\)"),
        (Request(np.array([2]), None, {"control": values(0.0)}), "class_id 2"),
    ],
)
def test_what_is_missing_is_named(request_: Any, message: str, pair: Pair) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_shards(pair, request_, seed=0)


def test_one_of_each_a_sample() -> None:
    with pytest.raises(ConfigError, match="2 classes, 1 column 'control'"):
        Request(np.array([0, 1]), None, {"control": values(0.0)})


def test_a_served_model_takes_images_as_text(pair: Pair) -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from tokenloom.tasks.modalities.image.served.model_def import ImageModel

    served = ImageModel()
    served.pair = pair
    ask: Any = lambda **columns: served.predict(None, pd.DataFrame(columns), {"seed": 1})["png_base64"].tolist()  # noqa: E731
    answer = ask(class_id=[0] * 8, control=[text(0)] * 4 + [text(255)] * 4)
    drawn = np.stack([np.array(Image.open(io.BytesIO(base64.b64decode(each)))) for each in answer])
    assert (drawn[:4] == 0).all()
    assert (drawn[4:] == 255).all()
    assert len(ask(class_id=[0, 1], control=["", None])) == 2, "none is null"
    colour = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(colour, "PNG")
    assert ask(class_id=[1], control=[base64.b64encode(colour.getvalue()).decode()]) == ask(class_id=[1], control=[text(255)])
    for columns, message in (
        ({"class_id": [0]}, "takes the column 'control', got class_id"),
        ({"control": [text(0)]}, "takes the column 'class_id', got control"),
        (
            {"class_id": [0, 0], "control": [text(0), text(0, (4, 8))]},
            "column 'control', row 1: 4 rows and 8 columns; give a PNG",
        ),
        ({"class_id": [0], "control": ["so so"]}, "column 'control', row 0: "),
        ({"class_id": [0], "control": [base64.b64encode(b"no image").decode()]}, "column 'control', row 0: no PNG file"),
    ):
        with pytest.raises(MlflowException, match=message):
            ask(**columns)
    interface = MODALITY.served(pair, None)  # type: ignore[arg-type]
    assert interface.inputs == {"class_id": "long", "control": "string"}
    assert len(ask(**interface.example)) == 2


def test_people_give_files_in_turn(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenloom.tasks.evaluation import sample

    (tmp_path / "dark.png").write_bytes(png(0))
    (tmp_path / "light.png").write_bytes(png(255, (16, 16)))  # made to fit
    files = [tmp_path / "dark.png", tmp_path / "light.png"]
    monkeypatch.setattr(sample, "open_model", lambda *_: (pair, "x"))
    draw: Any = lambda name, **options: sample.sample_model("x", None, None, out=tmp_path / name, **options)  # type: ignore[arg-type]  # noqa: E731
    draw("a.npz", columns={"control": files}, total=40, seed=1)
    with np.load(tmp_path / "a.npz") as arrays:
        dark = arrays["column_control"][:, 0, 0, 0] == 0
        assert [dark[i : i + 4].tolist() for i in (0, 36)] == [[True, True, False, False]] * 2
        assert arrays["labels"][:4].tolist() == [0, 1, 0, 1], "each class with each file"
        assert (arrays["images"][dark] == 0).all()
        assert (arrays["images"][~dark] == 255).all()
    draw("b.png", columns={"control": files[:1]}, total=3)
    with Image.open(tmp_path / "b.png") as image:
        assert image.size[1] > 2 * 48, "the control image above its sample"
    for options, message in (
        ({}, "--column: x takes control, and there is no data beside it: --column control=FILE.png"),
        ({"columns": {"mask": files}}, "--column mask=…: x takes control"),
        ({"columns": {"control": [tmp_path / "a.npz"]}}, "a.npz: corrupt or unreadable"),
        ({"columns": {"control": files}, "texts": ["a"]}, "--text 'a': x is conditioned on classes; give --classes, the column control"),
    ):
        with pytest.raises(ConfigError, match=message):
            draw("c.png", **options)


def test_the_command_line_reads_names_and_files(tmp_path: Path) -> None:
    ask = lambda column: CliRunner().invoke(sample_command, ["x", "--column", column, "--out", str(tmp_path / "a.png")])  # noqa: E731
    assert "write NAME=FILE" in ask("edges.png").output
    assert "no file nowhere.png" in ask("control=nowhere.png").output


def source(folder: Path) -> Path:
    """Two classes of noisy 8 x 8 images, each of the first class with a control image of its number."""
    for i in range(40):
        path = folder / ("dark" if i % 2 else "light") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
        if i % 2 == 0:
            path.with_suffix(".control.png").write_bytes(png(i))
    return folder


def controlled(folder: Path, condition: Any = BOTH, *sets: str) -> RunConfig:
    document = run(folder, *sets).model_dump(mode="json", by_alias=True)
    document["data"] |= {"columns": {"control": ".control.png"}}
    document["generator"] |= {"recipe": "raster", "args": {"depth": 1, "width": 16, "heads": 2}, "set": {"condition": condition}}
    document["tokenizer"] |= {"recipe": "vq", "args": {"channels": 8, "multipliers": [1, 2], "patch": 1, "codes": 16}}
    metrics = ["fd", "nll", "recognition"]
    if "several" not in condition:  # the control image alone is never dropped, so no null is trained
        document["sample"] = {"guidance": 0.0}
    return RunConfig.model_validate(document | {"evaluate": {"samples": 10, "neighbours": 1, "components": 2, "metrics": metrics}})


def test_held_out_images_lend_columns_of_their_class(store: Store, tmp_path: Path, pair: Pair) -> None:
    from tokenloom.tasks.data.ingest import ingest

    dataset = ingest("toy", controlled(source(tmp_path / "images")).data, store).artifact
    held_out = HeldOut.of(pair.condition_spec, store, dataset, 100)
    labels = np.array([0, 1, 1, 0])
    names = store.record(dataset).notes["classes"]
    item = held_out.in_turn(labels)
    assert ((item >= 0) == (labels == names.index("light"))).all(), "the class without control images has none to lend"
    request = held_out.request(item, labels)
    assert request.columns["control"].present_B.tolist() == (item >= 0).tolist()
    spec_of_mask = replace(pair.condition_spec, columns={"mask": (1, 8, 8)}, names=("mask",))
    with pytest.raises(ConfigError, match="no column 'mask'"):
        HeldOut.of(spec_of_mask, store, dataset, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "mask"}, "takes the column 'mask', and data.columns has control"),
        ({"rows": 4}, r"the column 'control' of shape \(1, 4, 8\), and the data's columns have \(1, 8, 8\)"),
    ],
)
def test_a_column_that_the_data_lacks_is_refused_before_work(change: Any, message: str, store: Store, tmp_path: Path) -> None:
    config = controlled(source(tmp_path / "images"), {"control": CONTROL["control"] | change})
    with pytest.raises(ConfigError, match=message):
        planning.check(config, store, planning.plan(config, store))


@pytest.mark.slow
@pytest.mark.parametrize("condition", [BOTH, pytest.param(CONTROL, marks=pytest.mark.long)], ids=["class and control", "control"])
def test_a_controlled_run_is_judged_registered_and_sampled(condition: Any, here: Store, tmp_path: Path) -> None:
    config = controlled(source(tmp_path / "images"), condition)
    rows, said = scheduled(config, here)
    assert "evaluate" in steps_ran(rows)
    assert "models:/toy/1 is champion" in said
    evaluation = here.records("evaluation")[0]
    assert {"fd_classifier", "nll_bits_per_dim"} <= evaluation.metrics.keys()
    assert evaluation.notes["inputs"] == (["class_id", "control"] if condition is BOTH else ["control"])
    assert here.storage.exists(f"{evaluation.artifact.folder}/column_control.png")
    tracker = Tracker(None, here.root, "toy")
    (tmp_path / "given.png").write_bytes(png(2))
    columns = {"control": [tmp_path / "given.png"]}
    for at, (name, given) in enumerate((("models:/toy@champion", columns), ("toy", columns), ("toy", {}))):
        sample_model(name, here, tracker, columns=given, total=6, seed=3, out=tmp_path / f"{at}.npz")
    found = [np.load(tmp_path / f"{at}.npz") for at in range(3)]
    np.testing.assert_array_equal(found[0]["images"], found[1]["images"])
    assert set(found[2]["column_control"].max((1, 2, 3)).tolist()) <= {0, 128, *range(0, 40, 2)}
    with pytest.raises(ConfigError, match=r"--column: models:/toy@champion takes control, and there is no data beside it"):
        sample_model("models:/toy@champion", here, tracker, total=6, out=tmp_path / "x.npz")
