"""A small tokenizer step, and clusters to train it on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from image_rows import write_image_rows

from tokenloom.configs.schema import ClusterConfig, TokenizerConfig
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store
from tokenloom.tasks.training.distributed import plan_tokenizer

TINY = {"scales": [1, 2], "codes": 16, "dim": 4, "channels": 8, "multipliers": [1, 2], "patch": 2}


def dataset_of(store: Store) -> Artifact:
    """A finished dataset of 8x8 images."""

    def body(work: Any) -> dict[str, Any]:
        rows = [write_image_rows(store, 150, size=8), write_image_rows(store, 70, split="validation", size=8)]
        shards = [asdict(shard) for split in rows for shard in split.shards]
        work.notes |= {"size": 8, "channels": 1, "classes": ["a", "b", "c", "d"], "shards": shards}
        for shard in shards:
            work.add_file(shard["path"])
        return {"train": 150}

    return store.execute(StepSpec("ingest", 1, "dataset", "noise", {"rows": 150}), body).artifact


def tokenizer_step(store: Store, **train: Any) -> StepSpec:
    settings = TrainSettings(**{"steps": 50, "batch": 64, "log_every": 1, "checkpoint_every": 20, **train})
    return plan_tokenizer("tiny", TokenizerConfig(recipe="var_vq", args=TINY, train=settings), dataset_of(store), store)


def cluster_of(workers: int, **options: Any) -> ClusterConfig:
    return ClusterConfig(execution=ExecutionSettings(workers=workers, device="cpu", **options))
