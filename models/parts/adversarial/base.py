"""What every discriminator offers.  Shapes: B rows, C channels, H W image."""

from __future__ import annotations

from abc import ABC
from typing import cast

from torch import nn

from tokenloom.models.core import config as configs


class Discriminator(configs.Config, ABC):
    """What a discriminator is made from."""

    def build(self, channels: int) -> nn.Module:
        """A network from images (B, channels, H, W) in [-1, 1] to logits (B, …), high for real ones."""
        return cast(nn.Module, self.construct(channels=channels))
