"""Queries that start from the image: 1-D tokens whose encoder has something to say of each image from the first step.

Shapes: B rows, C channels, H W image, L patches, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.signals import Shape
from tokenloom.models.parts.nets.queries import Queries, QueryEncoder
from tokenloom.models.parts.nets.vit import patch_grid


@dataclass(frozen=True, kw_only=True)
class SeededQueries(Queries, tag="net.seeded_queries", label="ViT, queries"):
    """``Queries`` whose encoder adds to each query a learned mixture of the patches.

    Fresh queries that only attend say nearly the same of every image.  A decoder that samples can do without its tokens, so it would
    learn to before they say anything; a regression cannot, and needs no such start.
    """

    def encoder(self, shape: Shape, channels: int, latent: int) -> SeededEncoder:
        return SeededEncoder(self, shape, channels, latent)


class SeededEncoder(QueryEncoder):
    """Images (B, C, H, W) in [-1, 1] to latents (B, latent, 1, N)."""

    def __init__(self, net: Queries, shape: Shape, channels: int, latent: int) -> None:
        super().__init__(net, shape, channels, latent)
        h, w = patch_grid(shape, net.patch)
        self.mixture = nn.Parameter(torch.randn(net.tokens, h * w))

    def seeds(self, patch_BLD: Tensor) -> Tensor:
        """The queries of each row, (B, N, D)."""
        return self.queries + self.mixture @ patch_BLD
