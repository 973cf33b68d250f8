"""The pipeline in about a second: real steps, real store, real loop, one process; no Ray, no Prefect, no MLflow.

Ingest a folder of 8x8 pictures, train a tokenizer, extract the tokens, train a generator.  What is computed is noted in a journal
outside the store, one line a training step, an encoded shard, or a step's body, so that work done twice shows.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenloom.configs.schema import ClusterConfig, DataConfig, MethodConfig, TokenizerConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.data import extract
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store
from tokenloom.tasks.store.inspection import inspect
from tokenloom.tasks.training import distributed
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.train_loop import train

DONE, FAILED, CRASHED = 0, 1, 3
STEPS, EVERY = 8, 2  # training steps, and steps from checkpoint to checkpoint
_TRAIN = TrainSettings(steps=STEPS, batch=8, log_every=1, validate_every=4, checkpoint_every=EVERY)
_TOKENIZER = TokenizerConfig(recipe="vq", args={"codes": 8, "dim": 4, "channels": 8, "multipliers": [1, 2], "patch": 2}, train=_TRAIN)
_GENERATOR = MethodConfig(recipe="raster", args={"depth": 1, "width": 16, "heads": 2}, train=_TRAIN)
CLUSTER = ClusterConfig(execution=ExecutionSettings(workers=1, device="cpu"))


def pictures(folder: Path, count: int = 40) -> None:
    """The source: grey pictures of four classes."""
    draw = np.random.default_rng(0)
    for i in range(count):
        path = folder / "abcd"[i % 4] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png.encode(draw.integers(0, 255, (8, 8, 1), np.uint8)))


class Journal:
    """Lines that survive the process: what was computed, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, what: str) -> None:
        """One line; a single small write in append mode is not torn."""
        with open(self._path, "a") as file:
            file.write(f"{os.getpid()} {what}\n")

    def lines(self) -> list[str]:
        """What was computed, without the process ids."""
        return [line.split(" ", 1)[1] for line in self._path.read_text().splitlines()] if self._path.exists() else []


def _without_ray(journal: Journal) -> None:
    """Let training and extraction happen in this process."""

    def fit(job: TrainJob, step: StepSpec, store: Store, cluster: ClusterConfig, run: Any, report: Any) -> dict[str, Any]:
        return train(replace(job, root=str(store.root)), report=lambda row: journal.note(f"step {job.folder} {row['step']}"))

    def encode(todo: Any, step: StepSpec, store: Store, cluster: ClusterConfig, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        encoder = extract.Encoder(store.uri, str(store.root), step.inputs["tokenizer"].to_dict(), 1, "cpu")
        for key, shard, views in todo:
            made = encoder.encode(shard, views, f"{folder}/shards/{shard['split']}-{key}.parquet")
            journal.note(f"shard {folder}/{key}")
            yield key, made

    distributed._fit = fit
    extract._encode = encode


def chain(store: Store, source: Path, journal: Journal) -> list[Artifact]:
    """All steps; the artifacts."""
    data = DataConfig(source=f"folder:{source}", size=8, fit="pad", validation=0.25, shard_rows=8)
    _without_ray(journal)
    dataset = ingest("short", data, store).artifact
    tokenizer = distributed.train_model(distributed.plan_tokenizer("short", _TOKENIZER, dataset, store), store, CLUSTER).artifact
    tokens = extract.extract(extract.plan_extract("short", dataset, tokenizer, store), store, CLUSTER).artifact
    generator = distributed.plan_generator("short", _GENERATOR, tokens, tokenizer, store)
    return [dataset, tokenizer, tokens, distributed.train_model(generator, store, CLUSTER).artifact]


def attempt(uri: str, root: Path, source: Path, journal: Path) -> int:
    """Run the chain; DONE, FAILED after one clear message on stderr, CRASHED after a traceback."""
    return _speaking(lambda: chain(Store(uri, root), source, Journal(journal)))


def verify(uri: str, root: Path) -> int:
    """``doctor --verify``: DONE when the store is whole, else FAILED and the problems on stderr as one JSON line."""

    def look() -> None:
        problems = sorted(inspect(Store(uri, root), deep=True))
        if problems:
            raise StepError(f"problems: {json.dumps(problems)}")

    return _speaking(look)


def _speaking(call: Any) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s", force=True)
    try:
        call()
    except (StepError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED
    except OSError as error:  # the command line says these in one line too, e.g. a full disk
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED
    except Exception:
        traceback.print_exc()
        return CRASHED
    return DONE
