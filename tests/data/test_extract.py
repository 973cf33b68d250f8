"""Tokens of a dataset: made once a shard, reused, made again alone when lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extraction import CLUSTER, InProcess, add_image, dataset, images_fixture, tokenizer  # noqa: F401

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.build import load_model
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data import extract as module
from tokenloom.tasks.data.extract import extract, plan_extract, shard_key
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.data.tokens import read_tokens
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Artifact, Outcome, Store
from tokenloom.tasks.store.lineage import collect, explain


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    stand_in = InProcess()
    monkeypatch.setattr(module, "_encode", stand_in)
    return stand_in


def shards(store: Store, outcome: Outcome) -> dict[str, bytes]:
    return {s["path"]: store.storage.read(s["path"]) for s in store.record(outcome.artifact).notes["shards"]}


def test_tokens_are_what_the_tokenizer_says(store: Store, images: Path, actors: InProcess) -> None:
    data = dataset(store, images).artifact
    codec = tokenizer(store, data)
    outcome = extract(plan_extract("pets", data, codec, store), store, CLUSTER)
    notes, pictures = store.record(outcome.artifact).notes, store.record(data).notes
    assert notes["classes"] == ["cat", "dog"]
    assert notes["layout"]["tokenizer"] == codec.fingerprint
    assert notes["tokenizer_spec"]["recipe"] == "var_vq"
    model: Any = load_model(store.fetch(codec))[0]
    for split in ("train", "validation"):
        tokens = Loader(Rows.of(notes, store.uri, split), store.cache)
        pixels = Loader(Rows.of(pictures, store.uri, split), store.cache)
        assert len(tokens) == len(pixels) == outcome.metrics[split] > 0
        rows = np.arange(len(tokens))
        image, found = pixels.get(rows), tokens.get(rows)
        assert image.signal is not None
        assert found.tokens is not None
        with torch.inference_mode():
            assert torch.equal(found.tokens.ids, model.encode(image.signal).ids)
        assert found.conditions["class"].label_B.tolist() == image.conditions["class"].label_B.tolist()  # type: ignore[union-attr]
    lineage = read_tokens(store.storage.local_path(notes["shards"][0]["path"])).lineage
    assert lineage["tokenizer"] == codec.id
    assert lineage["images"] == pictures["shards"][0]["sha256"]


def test_flipped_views_are_of_training_images_only(store: Store, images: Path, actors: InProcess) -> None:
    data = dataset(store, images).artifact
    codec = tokenizer(store, data)
    plain = extract(plan_extract("pets", data, codec, store), store, CLUSTER)
    both = extract(plan_extract("pets", data, codec, store, ("plain", "flip")), store, CLUSTER)
    assert both.metrics["train"] == 2 * plain.metrics["train"]
    assert both.metrics["validation"] == plain.metrics["validation"]
    assert both.metrics["reused"] > 0, "validation shards are the same"
    shard = next(s for s in store.record(both.artifact).notes["shards"] if s["split"] == "train")
    rows = read_tokens(store.storage.local_path(shard["path"]))
    half = len(rows.keys) // 2
    assert rows.view_N.tolist() == [0] * half + [1] * half
    assert rows.keys[:half] == rows.keys[half:]
    assert not np.array_equal(rows.data[:half], rows.data[half:])


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_a_lost_shard_is_made_again_alone_with_the_same_bytes(store: Store, images: Path, actors: InProcess, damage: str) -> None:
    data = dataset(store, images).artifact
    step = plan_extract("pets", data, tokenizer(store, data), store)
    before = shards(store, extract(step, store, CLUSTER))
    path = sorted(before)[1]
    local = store.storage.local_path(path)
    local.unlink() if damage == "remove" else local.write_bytes(before[path][:-5])
    assert path in explain(store, step)
    actors.encoded.clear()
    again = extract(step, store, CLUSTER)
    assert (again.status, again.metrics["encoded"], len(actors.encoded)) == ("ran", 1, 1)
    assert actors.encoded[0] in path
    assert shards(store, again) == before


def test_appended_images_tokenize_only_the_new_shards(store: Store, images: Path, actors: InProcess) -> None:
    data = dataset(store, images).artifact
    codec = tokenizer(store, data)
    first = extract(plan_extract("pets", data, codec, store), store, CLUSTER)
    old = shards(store, first)
    for i in range(24, 36):
        add_image(images, i)
    more = dataset(store, images).artifact
    new_images = {s["sha256"] for s in store.record(more).notes["shards"]} - {s["sha256"] for s in store.record(data).notes["shards"]}
    actors.encoded.clear()
    second = extract(plan_extract("pets", more, codec, store), store, CLUSTER)
    assert second.artifact != first.artifact
    assert len(actors.encoded) == len(new_images) == second.metrics["encoded"]
    assert second.metrics["reused"] == len(old)
    assert old.items() <= shards(store, second).items()
    assert collect(store, dry_run=True) == [], "shards that both refer to stay"
    assert sum(len(Rows.of(store.record(second.artifact).notes, store.uri, s)) for s in ("train", "validation")) == 36


def test_another_tokenizer_shares_nothing(store: Store, images: Path, actors: InProcess) -> None:
    data = dataset(store, images).artifact
    extract(plan_extract("pets", data, tokenizer(store, data), store), store, CLUSTER)
    other = extract(plan_extract("pets", data, tokenizer(store, data, seed=1), store), store, CLUSTER)
    assert other.metrics["reused"] == 0


def test_after_an_interruption_only_the_missing_shards_are_made(store: Store, images: Path, actors: InProcess, monkeypatch: Any) -> None:
    data = dataset(store, images).artifact
    step = plan_extract("pets", data, tokenizer(store, data), store)

    def interrupted(*given: Any) -> Iterator[Any]:
        made = actors(*given)
        yield next(made)
        yield next(made)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(step, store, CLUSTER)
    assert store.find(step) is None
    finished = list(actors.encoded)
    actors.encoded.clear()
    monkeypatch.setattr(module, "_encode", actors)
    outcome = extract(step, store, CLUSTER)
    assert not set(finished) & set(actors.encoded)
    assert len(finished) + len(actors.encoded) == outcome.metrics["shards"]


def test_a_damaged_image_shard_is_named(store: Store, images: Path, actors: InProcess) -> None:
    data = dataset(store, images).artifact
    path = store.record(data).notes["shards"][0]["path"]
    step = plan_extract("pets", data, tokenizer(store, data), store)
    store.storage.write(path, store.storage.read(path)[:-1])
    with pytest.raises(ArtifactError, match=rf"{path}.*cut short"):
        extract(step, store, CLUSTER)


def test_images_of_another_size_stop_before_work(store: Store, images: Path) -> None:
    data = dataset(store, images).artifact
    other = ingest("small", DataConfig(source=f"folder:{images}", size=8, fit="resize", validation=0.3), store).artifact
    with pytest.raises(ConfigError, match=r"made for shape 16x16, the data has 8x8"):
        plan_extract("pets", other, tokenizer(store, data), store)


def test_a_step_can_be_planned_before_its_inputs_are_there(store: Store) -> None:
    data = Artifact("dataset", "x", "0" * 12, "/x")
    codec = Artifact("tokenizer", "x", "1" * 12, "/x")
    assert plan_extract("pets", data, codec, store).inputs == {"dataset": data, "tokenizer": codec}


def test_keys_cover_tokenizer_images_and_views() -> None:
    keys = {shard_key(t, s, v) for t in ("a", "b") for s in ("c", "d") for v in (["plain"], ["plain", "flip"])}
    assert len(keys) == 8


@pytest.mark.ray
@pytest.mark.parametrize("count", [2, pytest.param(1, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_actors_give_the_same_bytes_whatever_their_number(
    store: Store, images: Path, monkeypatch: Any, ray_session: Any, count: int
) -> None:
    data = dataset(store, images).artifact
    codec = tokenizer(store, data)
    step = plan_extract("pets", data, codec, store)
    seen: list[tuple[int, int]] = []
    cluster = CLUSTER.model_copy(update={"extract_actors": count})
    outcome = extract(step, store, cluster, lambda stage, done, total, numbers: seen.append((done, total)))
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] == outcome.metrics["shards"]
    by_actors = shards(store, outcome)
    store.storage.delete(step.folder)
    monkeypatch.setattr(module, "_encode", InProcess())
    assert shards(store, extract(step, store, CLUSTER)) == by_actors


@pytest.mark.long
@pytest.mark.ray
def test_an_error_in_an_actor_is_one_clear_message(store: Store, images: Path, ray_session: Any) -> None:
    data = dataset(store, images).artifact
    path = store.record(data).notes["shards"][0]["path"]
    step = plan_extract("pets", data, tokenizer(store, data), store)
    raw = store.storage.read(path)
    store.storage.write(path, raw[:-4] + b"PAR2")
    with pytest.raises(ArtifactError, match=rf"{path}.*wrong hash"):
        extract(step, store, CLUSTER)
