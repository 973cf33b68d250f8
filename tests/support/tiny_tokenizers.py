"""Small tokenizers on small pictures, for the tests of their laws."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.parts.nets.classifier import Protocol, shape_of
from tokenloom.models.tokenizers.autoencoder import Autoencoder

SIZE, ROWS, DIM = 16, 8, 6
SHAPE = shape_of(1, 3, Protocol(width=4, features=8))


def build(name: str, seed: int = 0, **more: Any) -> Autoencoder:
    given = {"signal": signals.image(SIZE, 1).to_dict()} | ({"features": SHAPE} if name == "digit" else {})
    torch.manual_seed(seed)
    model = ModelSpec("tokenizer", name, {**registry.get(name).tiny, **more}, {}, given).build()
    assert isinstance(model, Autoencoder)
    return model


def images(rows: int = ROWS, seed: int = 0, width: int = SIZE) -> Tensor:
    """Smooth blobs in [-1, 1]."""
    coarse = torch.rand(rows, 1, 4, width // 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (SIZE, width), mode="bilinear")


def train(model: Autoencoder, steps: int, lr: float = 5e-3) -> Autoencoder:
    """A short training on fresh batches."""
    model.train()
    optimizer = torch.optim.AdamW([p for _, p in model.phase_parameters("main")], lr=lr, weight_decay=0)
    for step in range(steps):
        optimizer.zero_grad()
        model.losses(Batch(images(32, step)), "main", Draws.whole(0, step, 32, steps))["loss"].backward()
        optimizer.step()
        model.after_step(Draws.whole(0, step, 32, steps))
    return model.eval()


def latents(seed: int = 0, size: int = 4, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM, size, size, generator=torch.Generator().manual_seed(seed))
