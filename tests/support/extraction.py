"""Small data sets and tokenizers for the tests of extraction, and an encoder without actors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenloom.configs.schema import ClusterConfig, DataConfig
from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec, save_model
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks.data import extract as module
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store, Work


class InProcess:
    """Stands for the actors where a test is not about Ray: the same encoder, called directly."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def __call__(
        self, todo: Any, step: StepSpec, store: Store, cluster: ClusterConfig, folder: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        encoder = module.Encoder(store.uri, str(store.root), step.inputs["tokenizer"].to_dict(), 1, "cpu")
        for key, shard, views in todo:
            self.encoded.append(key)
            yield key, encoder.encode(shard, views, f"{folder}/shards/{shard['split']}-{key}.parquet")


@pytest.fixture(name="images")
def images_fixture(tmp_path: Path) -> Path:
    for i in range(24):
        add_image(tmp_path / "images", i)
    return tmp_path / "images"


def add_image(folder: Path, number: int) -> None:
    from PIL import Image

    path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)).save(path)


def dataset(store: Store, images: Path, **options: Any) -> Outcome:
    return ingest("pets", DataConfig(source=f"folder:{images}", size=16, fit="pad", validation=0.3, shard_rows=6, **options), store)


def tokenizer(store: Store, data: Artifact, seed: int = 0) -> Artifact:
    """An untrained tiny multi-scale tokenizer."""
    spec = ModelSpec("tokenizer", "var_vq", dict(registry.get("var_vq").tiny), {}, {"signal": signals.image(16, 1).to_dict()})

    def body(work: Work) -> dict[str, Any]:
        torch.manual_seed(seed)
        model: Any = spec.build()
        save_model(work.scratch, spec, model.state_dict())
        for name in ("model.json", "weights.safetensors"):
            work.put_file(work.scratch / name, name)
        work.notes |= {"spec": spec.to_dict(), "layout": dataclasses.replace(model.layout, tokenizer=work.step.fingerprint).to_dict()}
        return {}

    return store.execute(StepSpec("train_tokenizer", 1, "tokenizer", "tiny", {"seed": seed}, {"dataset": data}), body).artifact


CLUSTER = ClusterConfig(extract_actors=2, execution=ExecutionSettings(workers=1, device="cpu"))
