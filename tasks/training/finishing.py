"""The two ends of a training, which a model without trainable parameters has as well: built on what it depends on, finished and saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core.build import ModelSpec, parameters, save_model
from tokenloom.models.core.draws import seed_of
from tokenloom.models.core.protocols import Batch, Method
from tokenloom.models.core.settings import TrainSettings
from tokenloom.tasks.data.loader import Loader
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.training.carried import carried
from tokenloom.tasks.training.checkpoint import fetch_adopted
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.parallel import device_of, repeatable

#: Global batches that ``Method.finish`` is given, at most.
BATCHES = 64


def built(job: TrainJob, storage: Storage, root: Path) -> Method:
    """The job's model with fresh weights, or those of its warm start, holding what it adopts of the models that it depends on."""
    torch.manual_seed(seed_of(job.settings.seed, "init"))
    spec = ModelSpec.from_dict(job.spec)
    spec.check_roles(job.adopt or {})
    model = spec.build()
    if job.adopt:
        found = fetch_adopted(storage, job.adopt, root)
        start = found.pop("warm_start", None)
        model.adopt(**found)
        if start is not None:
            model.load_state_dict(carried(model.state_dict(), start.state_dict(), job.fresh, "warm_start"), strict=True)
    return model


def first_batches(loader: Loader, settings: TrainSettings, place: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """The first global batches of the data order (no more than one epoch), whole, the same on every worker."""
    rows = min(settings.batch, len(loader))
    for step in range(min(BATCHES, len(loader) // rows)):
        yield place(loader.get(loader.indices(settings.seed, step, rows, settings.window)))


def save(weights: Mapping[str, Tensor], spec: ModelSpec, scratch: Path, storage: Storage, folder: str) -> None:
    """Put a model's weights and buffers, and how it is built, into an artifact's folder."""
    scratch.mkdir(parents=True, exist_ok=True)
    save_model(scratch, spec, {name: tensor.clone() for name, tensor in weights.items()})
    for name in ("weights.safetensors", "model.json"):
        storage.upload(scratch / name, f"{folder}/{name}")
    shutil.rmtree(scratch)


@torch.no_grad()
def build_only(job: TrainJob) -> dict[str, Any]:
    """Build, finish and save a model that has nothing to train; its metrics.

    Raises:
        StepError: what it depends on is not there.
    """
    storage, root = Storage(job.store), Path(job.root)
    device = device_of(job.execution.device)
    with repeatable(job.execution.threads):
        model = built(job, storage, root).to(device).eval()
        model.finish(first_batches(Loader(job.rows, root / "cache", job.execution), job.settings, lambda batch: batch.to(device)))
        save(model.state_dict(), ModelSpec.from_dict(job.spec), root / "scratch" / f"{job.fingerprint}-built", storage, job.folder)
    return {"steps": 0, "parameters": parameters(model), "workers": 1, "train_seconds": 0.0}
