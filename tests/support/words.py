"""A tiny generator with text conditions, and rows of captions, for the tests of text."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.tasks.data.loader import Rows, Shard
from tokenloom.tasks.data.tokens import write_tokens
from tokenloom.tasks.store.artifacts import Store

LAYOUT = TokenLayout(grids=((2, 2),), vocabulary=4)
TEXTS = ("all zeros", "all threes")
READ: dict[str, Any] = {"length": 12, "depth": 1, "heads": 2}


def spec(condition: dict[str, Any] | None = None, **args: Any) -> ModelSpec:
    """A tiny raster generator over 2x2 tokens, with text conditions unless ``condition`` is empty."""
    condition = {"characters": READ} if condition is None else condition
    edits = {"condition": condition} if condition else {}
    small = {"depth": 1, "width": 32, "heads": 2, "dropout": 0.0}
    return ModelSpec("generator", "raster", {**small, **args}, edits, {"layout": LAYOUT.to_dict(), "classes": 2, "tokenizer": None})


def model(condition: dict[str, Any] | None = None) -> GroupGenerator:
    torch.manual_seed(0)
    built = spec(condition).build()
    assert isinstance(built, GroupGenerator)
    return built


def noisy(built: GroupGenerator) -> GroupGenerator:
    """In eval mode, with weights that look at everything."""
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return built.eval()


def token_rows(store: Store, captions: list[str | None], split: str = "train") -> Rows:
    """One token shard with these captions; the tokens of row i are all i % 4."""
    ids = np.repeat(np.arange(len(captions), dtype=np.uint8)[:, None] % 4, 4, axis=1)
    data = write_tokens(
        None,
        keys=[str(i) for i in range(len(captions))],
        view_N=np.zeros(len(captions), np.uint8),
        label_N=np.arange(len(captions)) % 2,
        captions=captions,
        data=ids,
        layout=LAYOUT,
        lineage={},
    )
    digest = hashlib.sha256(data).hexdigest()
    path = f"tokens/x/shards/{split}-{digest[:12]}.parquet"
    store.storage.write(path, data)
    return Rows("tokens", store.uri, (Shard(path, split, len(captions), digest, len(data)),), 2, LAYOUT.to_dict())


def trained(built: GroupGenerator, condition: Any, ids: Tensor, steps: int = 300) -> GroupGenerator:
    """Trained on these rows, their texts dropped as in a real run.

    The learning rate falls to zero, so that what few rows show (the dropped texts) is an average over steps, not the last ones' rows.
    """
    optimizer = torch.optim.AdamW(built.train().parameters(), lr=3e-3)
    batch = Batch(tokens=Tokens(ids, LAYOUT), conditions=condition)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        loss = built.losses(batch, "main", Draws.whole(0, step, len(ids), steps))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return built.eval()
