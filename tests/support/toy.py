"""A toy method for tests of the loop, and a command that trains it: ``python toy.py JOB.json[,JOB.json…] [WORKERS]``.

Two phases, noise and dropout from draws, a codebook-like buffer kept by ``after_step`` over all workers: everything that
could differ between one worker and many, or between an interrupted run and a whole one.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from forks import Started
from torch import Tensor, nn

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import Config as BaseConfig
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Labels, Method
from tokenloom.models.core.settings import ExecutionSettings, OptimizerSettings, TrainSettings
from tokenloom.models.parts.collectives import all_reduce_sum
from tokenloom.tasks.data.loader import Rows
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.parallel import launch
from tokenloom.tasks.training.train_loop import train


class Toy(Method):
    """A denoiser of tiny images with a rival that tells real from denoised."""

    phases = ("autoencoder", "discriminator")

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig, tag="test.toy"):
        """Width, number of extra layers (for timing), the step whose loss is NaN, and how many more metrics it returns."""

        width: int = 16
        depth: int = 0
        nan_at: int = 65536
        metrics: int = 0

        def build(self, signal: signals.SignalSpec, **_: Any) -> Toy:
            return Toy(self, math.prod(signal.shape) * signal.channels)

    def __init__(self, config: Toy.Config, pixels: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = [nn.Linear(pixels, width), nn.GELU()]
        for _ in range(config.depth):
            layers += [nn.Linear(width, width), nn.GELU()]
        self.encode = nn.Sequential(*layers)
        self.decode = nn.Linear(width, pixels)
        self.rival = nn.Sequential(nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, 1))
        self.register_buffer("centre", torch.zeros(width))
        self._sums: Tensor | None = None

    def phase_parameters(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        wanted = phase == "discriminator"
        return [(n, p) for n, p in self.named_parameters() if n.startswith("rival") == wanted]

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        assert batch.signal is not None
        assert isinstance(batch.conditions["class"], Labels)
        x_BN = batch.signal.flatten(1)
        noisy_BN = x_BN + 0.1 * draws.normal(x_BN.shape[1]).to(x_BN.dtype)
        z_BD = self.encode(noisy_BN)
        z_BD = z_BD * (draws.uniform(z_BD.shape[1]) > 0.1).to(z_BD.dtype)
        y_BN = self.decode(z_BD - self.centre.to(z_BD.dtype))
        if phase == "discriminator":
            loss = nn.functional.softplus(self.rival(y_BN.detach())).mean() + nn.functional.softplus(-self.rival(x_BN)).mean()
            return {"loss": loss}
        if self.training:
            sums = torch.cat([z_BD.detach().sum(0).double(), z_BD.new_tensor([len(z_BD)], dtype=torch.float64)])
            self._sums = sums if self._sums is None else self._sums + sums
        square = (y_BN - x_BN).square().mean()
        fooled = nn.functional.softplus(-self.rival(y_BN)).mean()
        loss = square + 0.1 * fooled
        if draws.step == self.config.nan_at:
            loss = loss * float("nan")
        more = {f"more_{i:04d}": torch.tensor(float(i)) for i in range(self.config.metrics)}
        return {"loss": loss, "square": square, "fooled": fooled, **more}

    def after_step(self, draws: Draws) -> dict[str, float]:
        sums = all_reduce_sum(self._sums if self._sums is not None else torch.zeros(self.config.width + 1, dtype=torch.float64))
        self._sums = None
        self.centre.lerp_((sums[:-1] / sums[-1]).to(self.centre.dtype), 0.1)
        return {"centre": float(self.centre.norm())}

    def preview(self, batch: Batch, draws: Draws) -> Tensor:
        assert batch.signal is not None
        return batch.signal


def toy(width: int = 16, depth: int = 0, nan_at: int = 65536, metrics: int = 0) -> Toy.Config:
    """The recipe."""
    return Toy.Config(width=width, depth=depth, nan_at=nan_at, metrics=metrics)


def install() -> Callable[[], None]:
    """Put the toy into the zoo of this process; the returned function takes it out."""
    registry.names()  # discover first: the zoo is filled once
    registry.register("toy", kind="density", paper="-", tiny={})(toy)
    return lambda: registry._RECIPES.pop("toy", None) and None


def job(
    store: Store,
    rows: Rows,
    validation: Rows | None,
    *,
    args: dict[str, Any] | None = None,
    folder: str = "tokenizer/toy-0",
    **options: Any,
) -> TrainJob:
    """A job on the toy: ``options`` are fields of the settings; ``workers``, ``micro_batch`` and ``lr`` too."""
    execution = ExecutionSettings(workers=options.pop("workers", 1), micro_batch=options.pop("micro_batch", 0), device="cpu")
    optimizer = OptimizerSettings(lr=options.pop("lr", 3e-3))
    settings = TrainSettings(**{"steps": 20, "batch": 64, "seed": 3, "log_every": 1, "optimizer": optimizer, **options})
    spec = ModelSpec("density", "toy", args or {}, {}, {"signal": signals.image(4, 1).to_dict()})
    root = str(store.root)
    return TrainJob(spec.to_dict(), settings, execution, rows, validation, store.uri, folder, root, None, folder.rpartition("-")[2])


def to_file(what: TrainJob, path: Path) -> Path:
    """Write a job as JSON."""
    path.write_text(json.dumps({**asdict(what), "rows": what.rows.to_dict(), "validation": what.validation and what.validation.to_dict()}))
    return path


def from_file(path: Path) -> TrainJob:
    """Inverse of ``to_file``."""
    data = json.loads(path.read_text())
    optimizer = data["settings"].pop("optimizer")
    optimizer["betas"] = tuple(optimizer["betas"])
    settings = TrainSettings(**data.pop("settings"), optimizer=OptimizerSettings(**optimizer))
    validation = data.pop("validation")
    rows = Rows.from_dict(data.pop("rows"))
    execution = ExecutionSettings(**data.pop("execution"))
    return TrainJob(
        settings=settings, execution=execution, rows=rows, validation=Rows.from_dict(validation) if validation else None, **data
    )


def worker(paths: str, rank: int, world: int) -> None:
    """One process that trains the jobs of several files, one after the other."""
    remove = install()
    try:
        for path in paths.split(","):
            train(from_file(Path(path)), rank, world)
    finally:
        remove()


def workers(world: int, paths: str) -> None:
    """``world`` processes that train jobs: forks of this one, which has started no thread yet."""
    launch(world, worker, paths, method="fork")


def differing(world: int, paths: str) -> None:
    """Workers of which the second has a buffer that drifts, because it is not reduced."""
    launch(world, _differing, paths, method="fork")


def _differing(paths: str, rank: int, world: int) -> None:
    def after_step(self: Toy, draws: Draws) -> dict[str, float]:
        all_reduce_sum(torch.zeros(17))
        self.centre.add_(float(rank))
        return {}

    Toy.after_step = after_step  # type: ignore[method-assign]
    worker(paths, rank, world)


def dying(verb: str, name: str, paths: str) -> None:
    """A worker that is killed at a moment of its third checkpoint: when ``Storage.verb`` comes to a file of this name."""
    whole = getattr(Storage, verb)

    def dies(self: Storage, *given: Any) -> Any:
        path = given[0] if verb == "write" else given[-1]
        if path.endswith(name) and (verb == "delete" or "step-0000009" in path):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *given)

    setattr(Storage, verb, dies)
    worker(paths, 0, 1)


def start_alone(world: int, *files: Path) -> Started:
    """Start the training of jobs in ``world`` processes, apart from the test's own."""
    return Started(workers, world, ",".join(map(str, files)))


def run_alone(world: int, *files: Path) -> None:
    """Train jobs in ``world`` processes, apart from the test's own."""
    started = start_alone(world, *files)
    assert started.wait() == 0, started.said()


if __name__ == "__main__":
    torch.set_num_threads(1)
    workers(int(sys.argv[2]) if len(sys.argv) > 2 else 1, sys.argv[1])
