"""Column-wise tokens (arXiv:2503.18948): a vertical strip of the image is one token, and nothing knows where along the width it stands.

Convolutions run along the width alone, norms see one column alone and there are no positions: shifting the image by one strip
shifts the latents by one (away from the borders), and images wider than those of training have more columns.
Shapes: B rows, C channels, H W image, N = W / strip columns, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import Shape, text
from tokenloom.models.parts.nets.base import Net, PixelDecoder


@dataclass(frozen=True, kw_only=True)
class Columns(Net, tag="net.columns"):
    """``strip`` pixels a column; ``blocks`` residual blocks on each side, each reaching ``kernel // 2`` columns to both sides, twice."""

    axis: ClassVar[str] = "sequence"
    strip: int
    width: int
    blocks: int = 2
    kernel: int = 3

    def __post_init__(self) -> None:
        if self.strip < 1 or self.width < 1 or self.blocks < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(
                f"net.strip={self.strip}, width={self.width}, blocks={self.blocks}, kernel={self.kernel}: must be positive, the kernel odd"
            )

    @property
    def reach(self) -> int:
        """Columns to each side that a latent, or a strip of pixels, depends on."""
        return 2 * self.blocks * (self.kernel // 2)

    def grid(self, shape: Shape) -> Shape:
        if shape[1] % self.strip or shape[1] < self.strip:
            raise ConfigError(f"size={text(shape)}: not divisible by net.strip={self.strip}")
        return 1, shape[1] // self.strip

    def encoder(self, shape: Shape, channels: int, latent: int) -> ColumnEncoder:
        return ColumnEncoder(self, shape[0], channels, latent)

    def decoder(self, shape: Shape, channels: int, latent: int) -> ColumnDecoder:
        return ColumnDecoder(self, shape[0], channels, latent)


class ColumnBlock(nn.Module):
    """norm, convolution along the width, SiLU, convolution, beside the input; the norm is over the channels of one column."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv1 = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv1d(width, width, kernel, padding=kernel // 2)

    def forward(self, x_BDN: Tensor) -> Tensor:
        h_BDN = self.norm(x_BDN.transpose(1, 2)).transpose(1, 2)
        return x_BDN + self.conv2(F.silu(self.conv1(h_BDN)))


class ColumnEncoder(nn.Module):
    """Images (B, C, height, W) of any width to latents (B, latent, 1, N)."""

    def __init__(self, net: Columns, height: int, channels: int, latent: int) -> None:
        super().__init__()
        self.strip = net.strip
        self.embed = nn.Linear(channels * height * net.strip, net.width)
        self.blocks = nn.Sequential(*(ColumnBlock(net.width, net.kernel) for _ in range(net.blocks)))
        self.norm = nn.LayerNorm(net.width)
        self.out = nn.Linear(net.width, latent)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        strips_BNE = image_BCHW.unflatten(3, (-1, self.strip)).permute(0, 3, 1, 2, 4).flatten(2)
        x_BDN = self.blocks(self.embed(strips_BNE).transpose(1, 2))
        return self.out(self.norm(x_BDN.transpose(1, 2))).transpose(1, 2)[:, :, None]


class ColumnDecoder(PixelDecoder):
    """Latents (B, latent, 1, N) to images (B, C, height, N strip)."""

    def __init__(self, net: Columns, height: int, channels: int, latent: int) -> None:
        super().__init__()
        self.shape = (channels, height, net.strip)
        self.embed = nn.Linear(latent, net.width)
        self.blocks = nn.Sequential(*(ColumnBlock(net.width, net.kernel) for _ in range(net.blocks)))
        self.norm = nn.LayerNorm(net.width)
        self.out = nn.Linear(net.width, channels * height * net.strip)

    def forward(self, z_BC1N: Tensor) -> Tensor:
        x_BDN = self.blocks(self.embed(z_BC1N[:, :, 0].transpose(1, 2)).transpose(1, 2))
        strips_BNE = self.out(self.norm(x_BDN.transpose(1, 2)))
        return strips_BNE.unflatten(2, self.shape).permute(0, 2, 3, 1, 4).flatten(3)

    @property
    def last(self) -> Tensor:
        return self.out.weight
