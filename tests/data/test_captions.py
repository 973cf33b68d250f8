"""Captions from the source to batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from toy import job, run_alone, to_file
from words import spec, token_rows

from tokenloom.configs.load import load_run
from tokenloom.configs.schema import DataConfig, RunConfig, identity
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Labels, Text
from tokenloom.tasks.data.captions import Captions, in_turn
from tokenloom.tasks.data.conditions import check_captions, example_texts, with_conditions
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.loader import Loader, share
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training.train_loop import train


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ("source", {"cat_a/0": "my cat", "cat_a/1": None, "dog/0": None}),
        ("none", {"cat_a/0": None, "dog/0": None}),
        ("names", {"cat_a/0": "cat a", "dog/0": "dog"}),
        ("a photo of a {name}", {"cat_a/0": "a photo of a cat a", "dog/1": "a photo of a dog"}),
    ],
)
def test_ingest_writes_the_captions_that_the_run_asks_for(
    tmp_path: Path, store: Store, captions: str, expected: dict[str, str | None]
) -> None:
    for i in range(4):
        picture(tmp_path / "images" / "cat_a" / f"{i}.png", i)
        picture(tmp_path / "images" / "dog" / f"{i}.png", 10 + i)
    (tmp_path / "images" / "cat_a" / "0.txt").write_text("my cat")
    config = DataConfig(source=f"folder:{tmp_path / 'images'}", size=8, validation=0.3, captions=captions)
    notes = store.record(ingest("x", config, store).artifact).notes
    rows = [row for s in notes["shards"] for row in pq.read_table(store.storage.local_path(s["path"])).to_pylist()]
    found = {row["key"].removesuffix(".png"): row["caption"] for row in rows}
    assert expected.items() <= found.items()


def test_the_sets_at_hand_have_captions_in_plain_words() -> None:
    from tokenloom.tasks.modalities.image.sources import digits

    source = digits()
    assert source.of_class("7", "names") == "a handwritten seven"
    assert source.of_class("7", "number {name}!") == "number seven!"
    assert [source.of_class("7", each) for each in ("source", "none")] == [None, None]
    assert not source.captioned


def test_captions_leave_older_fingerprints_as_they_are() -> None:
    plain = DataConfig(source="digits", size=32)
    assert "captions" not in identity(plain)
    assert identity(DataConfig(source="digits", size=32, captions="source")) == identity(plain)
    assert identity(DataConfig(source="digits", size=32, captions="names"))["captions"] == "names"


@pytest.mark.parametrize("captions", ["{nam}", "a", "{name} and {name}", "{name", "{name} {x}"])
def test_words_without_a_name_in_them_are_refused(captions: str) -> None:
    with pytest.raises(ValueError, match=r"write source, names, none, or a text with \{name\}"):
        DataConfig(source="digits", size=32, captions=captions)


def test_ragged_captions_come_back() -> None:
    texts = ["süß", "", None, "seven"]
    packed = Captions.of(texts)
    assert packed.texts() == ["süß", "", "", "seven"]
    assert packed.longest == 5
    assert Captions.of([None, None]).texts() == ["", ""]


def test_batches_carry_captions_and_workers_share_them(store: Store) -> None:
    texts: list[str | None] = [None, "one", "two words", "süß", "", "six"]
    rows = with_conditions(token_rows(store, texts), ConditionSpec.of(spec()))
    loader = Loader(rows, store.cache)
    index = np.array([2, 0, 5, 3, 1, 4])
    batch = loader.get(index)
    assert isinstance(batch.conditions["text"], Text)
    read = [bytes(b[:n].tolist()).decode() for b, n in zip(batch.conditions["text"].byte_BT, batch.conditions["text"].length_B)]
    assert read == [texts[i] or "" for i in index]
    assert batch.tokens is not None
    assert batch.tokens.ids[:, 0].tolist() == (index % 4).tolist()
    for world in (2, 3):
        parts = [loader.get(index[slice(*share(6, rank, world))]).conditions for rank in range(world)]
        assert torch.equal(torch.cat([p["text"].byte_BT for p in parts]), batch.conditions["text"].byte_BT)  # type: ignore[union-attr]
    assert isinstance(Loader(token_rows(store, texts), store.cache).get(index).conditions["class"], Labels)


def test_a_caption_in_the_data_that_is_too_long_is_one_clear_error(store: Store) -> None:
    rows = with_conditions(token_rows(store, ["short", "x" * 13]), ConditionSpec.of(spec()))
    with pytest.raises(ConfigError, match="a caption of 13 bytes, and the generator takes at most 12: raise its condition's length"):
        Loader(rows, store.cache)


def test_data_without_captions_is_one_clear_error(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"no training image has one; set data\.captions: names"):
        example_texts(token_rows(store, [None, None]), store)
    assert example_texts(token_rows(store, [None, "b", "a", "b"]), store) == ["b", "a"]
    run = "smoke_text"
    checked(load_run(run))
    for edit, message in (
        ("data.captions=source", "data.captions is 'source', but digits has none; set data.captions: names"),
        ("data.captions=none", "data.captions is 'none'; set data.captions: names"),
        ("generator.set={condition: {characters: {length: 17}}}", "length=17, but the caption of '0' has 18 bytes"),
    ):
        with pytest.raises(ConfigError, match=message):
            checked(load_run(run, [edit]))


def checked(config: RunConfig) -> None:
    """The look at captions before a run, with the conditions of its generator."""
    method = config.generator
    assert method is not None
    check_captions(config, ConditionSpec.of(ModelSpec("generator", method.recipe or "", dict(method.args), dict(method.set))))


def test_any_number_of_workers_trains_on_the_same_captions(store: Store, tmp_path: Path) -> None:
    captions: list[str | None] = [None if i % 5 == 0 else f"number {i % 4}" for i in range(24)]
    rows = with_conditions(token_rows(store, captions), ConditionSpec.of(spec()))
    jobs = []
    for folder in ("generator/one-0", "generator/two-0"):
        plain = job(store, rows, None, folder=folder, steps=3, batch=8, precision="float64")
        jobs.append(replace(plain, spec=spec().to_dict()))
    alone = train(jobs[0])
    run_alone(2, to_file(jobs[1], tmp_path / "two.json"))
    weights = [store.storage.local_path(f"{each.folder}/weights.safetensors") for each in jobs]
    from safetensors.torch import load_file

    one, two = (load_file(str(path)) for path in weights)
    assert alone["steps"] == 3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-7, rtol=0, msg=name)
    assert any((value - start).abs().max() > 1e-4 for value, start in zip(one.values(), spec().build().state_dict().values()))


def test_held_out_items_are_taken_in_turn_by_class() -> None:
    texts = ["b1", "a1", "a2", "b2", ""]
    items = in_turn(np.array([0, 1, 0, 0, 2]), np.array([1, 0, 0, 1, 2]), np.array([bool(text) for text in texts]))
    assert items.tolist() == [1, 0, 2, 1, -1]
