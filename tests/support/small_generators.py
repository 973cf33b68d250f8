"""Small generators of discrete tokens on any layout, for the tests of their laws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import registry
from tokenloom.models.core.protocols import Generator, Labels, TokenLayout
from tokenloom.models.sampling.sampler import Constant, Sampler

CLASSES = 3


PLAIN = Sampler(guidance=Constant(value=0.0))


def small(name: str, layout: TokenLayout, codec: str = "", scale: float = 0.0, **arguments: Any) -> Generator:
    """The tiny model of a recipe on any layout, in eval mode; with a scale all its vectors and maps are drawn anew that large."""
    recipe = registry.get(name)
    torch.manual_seed(0)
    tokenizer = registry.get(codec).config(registry.get(codec).tiny) if codec else None
    model = recipe.config(dict(recipe.tiny) | arguments).build(layout=layout, classes=CLASSES, tokenizer=tokenizer)  # type: ignore[attr-defined]
    if scale:
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=scale)
    return model.eval()


def grid(side: int = 4, vocabulary: int = 16) -> TokenLayout:
    return TokenLayout(grids=((side, side),), vocabulary=vocabulary)


def some(layout: TokenLayout, rows: int, seed: int = 0) -> tuple[Tensor, Labels]:
    ids = torch.randint(layout.vocabulary, (rows, layout.length), generator=torch.Generator().manual_seed(seed))
    return ids, Labels(torch.arange(rows) % CLASSES)
