"""Nets of 1-D tokens: learned queries read the patches, and mask tokens read the latents (TiTok, arXiv:2406.07550).

Shapes: B rows, C channels, H W image, h w patch grid, L = h w, N tokens, D width, K codes of a base tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.signals import Shape
from tokenloom.models.parts.nets.base import Inner, Net, PixelDecoder, signed, unit
from tokenloom.models.parts.nets.vit import Blocks, PatchEmbedding, PatchPixels, Trunk, patch_grid
from tokenloom.models.parts.visibility import EVERYTHING, Groups, Visibility


@dataclass(frozen=True, kw_only=True)
class Queries(Net, tag="net.queries", label="ViT, queries"):
    """``tokens`` queries beside the patches of ``patch`` pixels.

    ``reading`` is how the queries' vectors become latents: each one's own (``tokens``), or as TiTok's first weights have it
    (``scrambled``): the N x D block of numbers is taken as D x N.  ``smooth``: size of the last convolution over the pixels.
    ``registers``: in the encoder all slots see each other, or (``causal``: FlexTok, arXiv:2502.13967, D-AR, arXiv:2505.23660) patches
    see patches alone, and a query all patches, itself and the queries before it, so that a prefix does not depend on what follows.
    """

    axis: ClassVar[str] = "sequence"

    patch: int
    tokens: int
    encoder_blocks: Blocks.Config
    decoder_blocks: Blocks.Config
    reading: Literal["tokens", "scrambled"] = "tokens"
    smooth: int = 3
    registers: Added[Literal["all", "causal"]] = "all"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"net.tokens={self.tokens}: must be at least 1")
        if self.smooth < 1 or self.smooth % 2 == 0:
            raise ConfigError(f"net.smooth={self.smooth}: must be odd")

    def grid(self, shape: Shape) -> Shape:
        patch_grid(shape, self.patch)
        return 1, self.tokens

    def encoder(self, shape: Shape, channels: int, latent: int) -> QueryEncoder:
        return QueryEncoder(self, shape, channels, latent)

    def decoder(self, shape: Shape, channels: int, latent: int) -> PixelDecoder:
        return QueryPixels(self, shape, channels, latent)

    def code_decoder(self, shape: Shape, latent: int, codes: int) -> QueryCodes:
        """Latents to logits over the codes of a base tokenizer with the same grid."""
        return QueryCodes(self, shape, latent, codes)


@dataclass(frozen=True, kw_only=True)
class CodeQueries(Queries, tag="net.code_queries"):
    """The same, with a decoder that ends at logits over ``codes`` (B, codes, h, w) instead of pixels."""

    codes: int

    def decoder(self, shape: Shape, channels: int, latent: int) -> PixelDecoder:
        return self.code_decoder(shape, latent, self.codes)


class QueryEncoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to latents (B, latent, 1, N)."""

    def __init__(self, net: Queries, shape: Shape, channels: int, latent: int) -> None:
        super().__init__()
        blocks, (h, w) = net.encoder_blocks, patch_grid(shape, net.patch)
        self.reading, self.registers = net.reading, net.registers
        self.queries = nn.Parameter(blocks.width**-0.5 * torch.randn(net.tokens, blocks.width))
        self.patches = PatchEmbedding(channels, net.patch, blocks.width)
        self.trunk = Trunk(blocks, (h, w), net.tokens)
        self.out = nn.Linear(blocks.width, latent)

    def seeds(self, patch_BLD: Tensor) -> Tensor:
        """The queries of each row, (B, N, D)."""
        return self.queries.expand(len(patch_BLD), -1, -1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        patch_BLD = self.patches(unit(image_BCHW))
        seeds_BND = self.seeds(patch_BLD)
        visibility: Visibility = EVERYTHING
        if self.registers == "causal":
            groups_S = torch.arange(-patch_BLD.shape[1] - 1, seeds_BND.shape[1], device=patch_BLD.device).clamp_min(-1)
            visibility = Groups(groups_S[None], groups_S[None]).evaluated(len(groups_S), len(groups_S), patch_BLD.device)
        _, x_BND = self.trunk(patch_BLD, seeds_BND, visibility)
        if self.reading == "scrambled":
            x_BND = x_BND.reshape(len(x_BND), x_BND.shape[2], x_BND.shape[1]).transpose(1, 2)
        return self.out(x_BND).transpose(1, 2)[:, :, None]


class LatentReader(nn.Module):
    """Latents (B, latent, 1, N) to what mask tokens at the patches' places become, (B, L, D)."""

    def __init__(self, net: Queries, shape: Shape, latent: int) -> None:
        super().__init__()
        blocks, (h, w) = net.decoder_blocks, patch_grid(shape, net.patch)
        self.mask = nn.Parameter(blocks.width**-0.5 * torch.randn(1, 1, blocks.width))
        self.embed = nn.Linear(latent, blocks.width)
        self.trunk = Trunk(blocks, (h, w), net.tokens)
        self.length = h * w

    def forward(self, z_BC1N: Tensor) -> Tensor:
        x_BND = self.embed(z_BC1N[:, :, 0].transpose(1, 2))
        return self.trunk(self.mask.expand(len(x_BND), self.length, -1), x_BND)[0]


class QueryPixels(PixelDecoder):
    """Latents (B, latent, 1, N) to pixels (B, C, H, W)."""

    def __init__(self, net: Queries, shape: Shape, channels: int, latent: int) -> None:
        super().__init__()
        self.reader = LatentReader(net, shape, latent)
        self.pixels = PatchPixels(net.decoder_blocks.width, net.patch, channels, patch_grid(shape, net.patch), net.smooth)

    def forward(self, z_BC1N: Tensor) -> Tensor:
        return signed(self.pixels(self.reader(z_BC1N)))

    @property
    def last(self) -> Tensor:
        return self.pixels.last

    def inner(self, depth: int) -> Inner:
        blocks, (h, w) = self.reader.trunk.stack.blocks, self.pixels.grid
        if not 1 <= depth <= len(blocks):
            raise ConfigError(f"depth={depth}: the decoder has {len(blocks)} blocks")
        width = self.pixels.linear.in_features
        # slots: class token, patches, latents
        return Inner(blocks[depth - 1], width, lambda x_BSD: x_BSD[:, 1 : 1 + h * w].transpose(1, 2).unflatten(2, (h, w)))


class QueryCodes(PixelDecoder):
    """Latents (B, latent, 1, N) to logits over K codes at each patch, (B, K, h, w): the base's tokens in the pixels' place."""

    def __init__(self, net: Queries, shape: Shape, latent: int, codes: int) -> None:
        super().__init__()
        width, self.grid = net.decoder_blocks.width, patch_grid(shape, net.patch)
        self.reader = LatentReader(net, shape, latent)
        self.hidden, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, codes)

    def forward(self, z_BC1N: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(self.reader(z_BC1N)))).transpose(1, 2).unflatten(2, self.grid)

    @property
    def last(self) -> Tensor:
        return self.out.weight


class ProxyPixels(PixelDecoder):
    """Latents to logits over a base tokenizer's codes, to the mean code vector under them, through the base's decoder to pixels.

    ``codebook`` (K, C) and ``pixels`` start as the base's and are trained on.
    """

    def __init__(self, codes: QueryCodes, codebook_KC: Tensor, before: nn.Module, pixels: PixelDecoder) -> None:
        super().__init__()
        self.codes, self.before, self.pixels = codes, before, pixels
        self.codebook = nn.Parameter(codebook_KC.detach().clone())

    def forward(self, z_BC1N: Tensor) -> Tensor:
        soft_BKhw = self.codes(z_BC1N).float().softmax(1).to(self.codebook.dtype)
        return self.pixels(self.before(torch.einsum("bkhw,kc->bchw", soft_BKhw, self.codebook)))

    @property
    def last(self) -> Tensor:
        return self.pixels.last
