"""A toy run on generated images, and stand-ins for the artifacts of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenloom.configs.load import build
from tokenloom.configs.schema import RunConfig
from tokenloom.flows import planning
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.steps.base import Context
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work


def images(folder: Path, start: int, stop: int) -> None:
    """Two classes of noisy 8 x 8 images."""
    for index in range(start, stop):
        target = folder / ("dark" if index % 2 else "light") / f"{index:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 100, (8, 8)) + (0 if index % 2 else 150)
        Image.fromarray(noise.astype(np.uint8)).save(target)


@pytest.fixture(name="source")
def source_fixture(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    images(folder, 0, 40)
    return folder


def run(source: Path, *sets: str) -> RunConfig:
    train = {"steps": 2, "batch": 4}
    tiny = {"channels": 8, "multipliers": [1, 2], "patch": 1, "dim": 4, "scales": [1, 2, 4], "codes": 16}
    document = {
        "name": "toy",
        "data": {"source": f"folder:{source}", "size": 8, "fit": "pad", "validation": 0.3, "shard_rows": 16},
        "tokenizer": {"recipe": "var_vq", "args": tiny, "train": train},
        "generator": {"recipe": "var", "args": {"depth": 1, "width": 16, "heads": 1}, "train": train},
        "evaluate": {"samples": 10},
    }
    return build(RunConfig, document, sets, "test")


def stand_in(step: StepSpec, store: Store, notes: dict[str, Any] | None = None) -> Artifact:
    """Complete a step's artifact without its work."""

    def body(work: Work) -> dict[str, Any]:
        work.put("file.txt", step.fingerprint.encode())
        work.notes |= notes or {}
        return {}

    return store.execute(step, body).artifact


def complete(config: RunConfig, store: Store) -> dict[str, Artifact]:
    """Ingest for real, and stand-ins for every later step of a run."""
    made: dict[str, Artifact] = {}
    for link in planning.chain(config, store):
        if link.step.name == "ingest":
            made["dataset"] = ingest(config.name, config.data, store).artifact
            continue
        answer = link.step.plan(Context(config, store), {name: made[role] for name, role in link.needs.items()})
        made[link.step.makes] = stand_in(answer, store) if isinstance(answer, StepSpec) else answer.artifact
    return made


def statuses(config: RunConfig, store: Store) -> dict[str, str]:
    return {one.name: one.status for one in planning.plan(config, store)}


def ran(config: RunConfig, store: Store) -> list[str]:
    return [name for name, status in statuses(config, store).items() if status != "cached"]
