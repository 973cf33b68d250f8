"""In-painting and editing by mask: a part of an image is drawn anew, the rest is given.

Shapes: N images, C channels, H W rows and columns, L token positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Density, Tokenizer, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.sampling.sampler import Sampler


@dataclass(frozen=True)
class Painting:
    """An image (C, H, W) in [-1, 1], and where (H, W) it is drawn anew (true); elsewhere it stays as it is."""

    image_CHW: Tensor
    anew_HW: Tensor

    def __post_init__(self) -> None:
        if self.anew_HW.shape != self.image_CHW.shape[1:]:
            raise ConfigError(f"mask: {tuple(self.anew_HW.shape)} rows and columns, the image has {tuple(self.image_CHW.shape[1:])}")
        if not bool(self.anew_HW.any()):
            raise ConfigError("mask: nothing is to be drawn; what is white (above 127) is drawn anew")

    def kept(self, layout: TokenLayout) -> Tensor:
        """(L,) bool: positions of which no pixel is drawn anew, in every grid."""
        anew = self.anew_HW[None].float()
        found = [F.adaptive_max_pool2d(anew, grid).flatten() == 0 for grid in layout.grids]
        return torch.cat(found).repeat(layout.frames)

    def draw(
        self, generator: Any, tokenizer: Tokenizer, conditions: Conditions, sampler: Sampler, draws: SampleDraws, device: torch.device
    ) -> Tensor:
        """(N, C, H, W): a sample for each row of the conditions, the given pixels as they are."""
        given = tokenizer.encode(self.image_CHW[None].to(device))
        rows = given.data.expand(conditions.rows, *given.data.shape[1:])
        tokens = generator.inpaint(Tokens(rows, given.layout), self.kept(given.layout).to(device), conditions, sampler, draws)
        return torch.where(self.anew_HW.to(device), tokenizer.decode(tokens), self.image_CHW.to(device))


def refusal(generator: Any) -> str | None:
    """Why a generator cannot draw a part of an image; None where it can."""
    if isinstance(generator, Density):
        return f"{type(generator).__name__} models pixels, all of which it draws"
    layout = generator.layout
    if layout.axis != "grid":
        return "its tokens are a sequence, and none of them stands at a place of the image"
    if not hasattr(generator, "inpaint"):
        return f"{type(generator).__name__} decodes in a way of its own, which takes no given tokens"
    if isinstance(generator, GroupGenerator) and type(generator.order).around is Order.around and len(layout.grids) == 1:
        return (
            f"it decodes in the order {generator.order.label}, in which what is drawn sees only what comes before it; "
            "masked models, those of any order and those of scales can"
        )
    return None


def check(generator: Any, title: str) -> None:
    """Raise ``ConfigError`` with the reason where a generator cannot draw a part of an image."""
    if (reason := refusal(generator)) is not None:
        raise ConfigError(f"inpaint: {title} cannot draw a part of an image: {reason}")
