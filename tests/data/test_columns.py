"""A second image of each item: from its file through ingest and tokens to the conditions of a batch."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from extraction import CLUSTER, tokenizer
from PIL import Image

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.edits import override
from tokenloom.models.core.protocols import Values
from tokenloom.models.core.registry import get
from tokenloom.tasks.data.extract import Encoder, plan_extract
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.store.artifacts import Artifact, Store

SIZE = 16


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve noisy images, each but the first with a control image of one grey: its number."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02d}.png")
        if i:
            Image.fromarray(np.full((SIZE, SIZE), 10 * i, np.uint8)).save(folder / f"{i:02d}.control.png")
    return folder


def data(images: Path, **options: Any) -> DataConfig:
    options = {"columns": {"control": ".control.png"}, **options}
    return DataConfig(source=f"folder:{images}", size=SIZE, fit="pad", validation=0.3, shard_rows=4, **options)


def pairs(rows: Rows, store: Store) -> dict[int, bool]:
    """Grey of each row's control image in bytes, and whether it has one."""
    loader = Loader(replace(rows, conditions=("class", "control")), store.cache)
    control = loader.get(np.arange(len(loader))).conditions["control"]
    assert isinstance(control, Values)
    assert control.value.shape[1:] == (1, SIZE, SIZE)
    grey = ((control.value[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    return dict(zip(grey, control.present_B.tolist()))


def test_a_column_goes_from_its_file_to_the_batch(store: Store, images: Path) -> None:
    made = ingest("pets", data(images), store)
    assert made.metrics["train"] + made.metrics["validation"] == 12, "a control image is no item"
    notes = store.record(made.artifact).notes
    found = pairs(Rows.of(notes, store.uri, "train"), store) | pairs(Rows.of(notes, store.uri, "validation"), store)
    assert found == {0: False, **{10 * i: True for i in range(1, 12)}}
    assert ingest("pets", data(images), store).status == "cached"
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(images / "05.control.png")
    assert ingest("pets", data(images), store).status == "ran", "a changed control image is a changed item"


def test_tokens_keep_the_columns_of_their_items(store: Store, images: Path) -> None:
    dataset = ingest("pets", data(images), store).artifact
    codec = tokenizer(store, dataset)
    notes = store.record(dataset).notes
    shard = next(s for s in notes["shards"] if s["split"] == "train")
    encoder = Encoder(store.uri, str(store.root), codec.to_dict(), 1, "cpu")
    made = encoder.encode(shard, ["plain"], "tokens/t.parquet")
    listed = {k: made[k] for k in ("path", "rows", "sha256", "size")} | {"split": "train"}
    layout = {**store.record(codec).notes["layout"], "tokenizer": codec.fingerprint}
    rows = Rows.of({"shards": [listed], "layout": layout, "classes": ["all"]}, store.uri, "train")
    assert pairs(rows, store) == pairs(Rows.of({**notes, "shards": [shard]}, store.uri, "train"), store)
    with pytest.raises(ConfigError, match="the view plain alone"):
        encoder.encode(shard, ["plain", "flip"], "tokens/u.parquet")


def test_a_run_file_chooses_both_conditions_and_a_batch_trains_them(store: Store, images: Path) -> None:
    dataset = ingest("pets", data(images), store).artifact
    codec = tokenizer(store, dataset)
    shard = next(s for s in store.record(dataset).notes["shards"] if s["split"] == "train")
    made = Encoder(store.uri, str(store.root), codec.to_dict(), 1, "cpu").encode(shard, ["plain"], "tokens/t.parquet")
    listed = {k: made[k] for k in ("path", "rows", "sha256", "size")} | {"split": "train"}
    layout = {**store.record(codec).notes["layout"], "tokenizer": codec.fingerprint}
    parts = [{"classes": {}}, {"control": {"rows": SIZE, "columns": SIZE, "patch": 8}}]
    config: Any = override(get("raster").config(get("raster").tiny), {"condition": {"several": {"parts": parts}}})
    assert config.condition.names == ("class", "control")
    rows = replace(
        Rows.of({"shards": [listed], "layout": layout, "classes": ["all"]}, store.uri, "train"), conditions=config.condition.names
    )
    loader = Loader(rows, store.cache)
    batch = loader.get(np.arange(len(loader)))
    torch.manual_seed(0)
    assert loader.layout is not None
    model = config.build(loader.layout, 1)
    model.train().losses(batch, "main", Draws.whole(0, 0, batch.rows))["loss"].backward()
    assert all(p.grad is not None for p in model.condition.parameters())


def test_what_cannot_be_is_named(store: Store, images: Path) -> None:
    dataset = ingest("plain", data(images, columns=None), store).artifact
    rows = Rows.of(store.record(dataset).notes, store.uri, "train")
    with pytest.raises(ConfigError, match="no column 'control'"):
        Loader(replace(rows, conditions=("control",)), store.cache)
    for columns, words in (({"class": ".c.png"}, "data.columns.class"), ({"control": ".png"}, "data.columns.control")):
        with pytest.raises(ConfigError, match=words):
            ingest("pets", data(images, columns=columns), store)
    with pytest.raises(ConfigError, match="only folder:, parquet:, webdataset:, manifest: sources"):
        ingest("digits", DataConfig(source="digits", size=32, fit="pad", columns={"control": ".control.png"}), store)
    assert isinstance(dataset, Artifact)
    assert plan_extract("x", dataset, tokenizer(store, dataset), store).config == {"views": ["plain"]}
    assert CLUSTER.extract_actors


def packed(images: Path, how: str, folder: Path) -> str:
    """The same images and control images in one file."""
    path = folder / f"pets.{how}"
    if how == "tar":
        with tarfile.open(path, "w") as archive:
            for file in sorted(images.iterdir()):
                archive.add(file, file.name)
        return f"webdataset:{path}"
    plain = [file for file in sorted(images.iterdir()) if file.name.count(".") == 1]
    controls = [file.with_suffix(".control.png") for file in plain]
    rows = {
        "image": [file.read_bytes() for file in plain],
        "edges": [file.read_bytes() if file.is_file() else None for file in controls],
    }
    pq.write_table(pa.table(rows, pa.schema([("image", pa.binary()), ("edges", pa.binary())])), path, row_group_size=5)
    return f"parquet:{path}"


@pytest.mark.parametrize(("how", "column"), [("parquet", "edges"), ("tar", ".control.png")])
def test_columns_of_parquet_and_tar(store: Store, images: Path, tmp_path: Path, how: str, column: str) -> None:
    given = data(images, columns={"control": column}).model_copy(update={"source": packed(images, how, tmp_path)})
    notes = store.record(ingest("pets", given, store).artifact).notes
    found = pairs(Rows.of(notes, store.uri, "train"), store) | pairs(Rows.of(notes, store.uri, "validation"), store)
    assert found == {0: False, **{10 * i: True for i in range(1, 12)}}


def test_a_parquet_file_without_the_column_is_refused(store: Store, images: Path, tmp_path: Path) -> None:
    given = data(images, columns={"control": "depth"}).model_copy(update={"source": packed(images, "parquet", tmp_path)})
    with pytest.raises(ConfigError, match=r"data\.columns\.control='depth': .*has no such column; it has image, edges"):
        ingest("pets", given, store)
