"""A toy method for tests of the loop, and a command that trains it: ``python toy.py JOB.json[,JOB.json…] [WORKERS]``.

Two phases, noise and dropout from draws, a codebook-like buffer kept by ``after_step`` over all workers: everything that
could differ between one worker and many, or between an interrupted run and a whole one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import Config as BaseConfig
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Labels, Method
from tokenloom.models.core.settings import ExecutionSettings, OptimizerSettings, TrainSettings
from tokenloom.models.parts.collectives import all_reduce_sum
from tokenloom.tasks.data.loader import Rows
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.parallel import launch
from tokenloom.tasks.training.train_loop import train


class Toy(Method):
    """A denoiser of tiny images with a rival that tells real from denoised."""

    phases = ("autoencoder", "discriminator")

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig, tag="toy"):
        """Width, number of extra layers (for timing), the step whose loss is NaN (-1: none), and how many more metrics it returns."""

        width: int = 16
        depth: int = 0
        nan_at: int = -1
        metrics: int = 0

        def build(self, size: int, channels: int, **_: Any) -> Toy:
            return Toy(self, size, channels)

    def __init__(self, config: Toy.Config, size: int, channels: int) -> None:
        super().__init__()
        self.config = config
        pixels, width = size * size * channels, config.width
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
        assert batch.image_BCHW is not None
        assert isinstance(batch.condition, Labels)
        x_BN = batch.image_BCHW.flatten(1)
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
        assert batch.image_BCHW is not None
        return batch.image_BCHW


def toy(width: int = 16, depth: int = 0, nan_at: int = -1, metrics: int = 0) -> Toy.Config:
    """The recipe."""
    return Toy.Config(width=width, depth=depth, nan_at=nan_at, metrics=metrics)


def install() -> Callable[[], None]:
    """Put the toy into the zoo of this process (as what no other step builds on); the returned function takes it out."""
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
    spec = ModelSpec("density", "toy", args or {}, {}, {"size": 4, "channels": 1})
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


def run_alone(world: int, *files: Path) -> None:
    """Train jobs in ``world`` processes, apart from the test's own."""
    command = [sys.executable, __file__, ",".join(map(str, files)), str(world)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked children need no second import of torch; nothing has started a thread in this process yet.
    launch(int(sys.argv[2]) if len(sys.argv) > 2 else 1, worker, sys.argv[1], method="fork")
