"""Parts of convolutional flows: activation norm, invertible 1x1 convolutions, couplings (Glow, arXiv:1807.03039).

Shapes: B rows, C channels, H W image.  Each part gives its output and its log-determinant (B,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.parts.collectives import all_reduce_sum


class Invertible(nn.Module, ABC):
    """A map with an inverse."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output and log-determinant (B,)."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """x of an output."""

    def start(self, x: Tensor) -> Tensor:
        """The output, with what is set by the first data set by ``x``."""
        return self(x)[0]


class ActNorm(Invertible):
    """``scale (x + shift)`` a channel; ``start`` gives the outputs mean 0 and deviation 1 (section 3.1) over the rows of all workers, the
    latter of the batch as it is or as a sample of more."""

    def __init__(self, channels: int, deviation: Literal["sample", "batch"] = "sample") -> None:
        super().__init__()
        self.correction = int(deviation == "sample")
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.scale.abs().log().sum() * (x.shape[2] * x.shape[3])
        return self.scale * (x + self.shift), one.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y / self.scale - self.shift

    @torch.no_grad()
    def start(self, x: Tensor) -> Tensor:
        own = x.double().transpose(0, 1).flatten(1)
        count, total = all_reduce_sum(own.new_tensor(own.shape[1])), all_reduce_sum(own.sum(1, keepdim=True))
        mean = total / count
        deviation = (all_reduce_sum((own - mean).square().sum(1)) / (count - self.correction)).sqrt()
        self.shift.copy_(-mean.view_as(self.shift))
        self.scale.copy_(1 / (deviation.view_as(self.scale) + 1e-6))
        return self(x)[0]


class Mixing(Invertible):
    """A 1x1 convolution ``P L (U + diag(s))``, which starts as a random rotation (section 3.2, equation 10)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        order, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.lower, self.upper = nn.Parameter(lower), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.register_buffer("order", order)
        self.register_buffer("sign", diagonal.sign())

    def weight(self) -> Tensor:
        """(C, C)."""
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), device=self.lower.device, dtype=self.lower.dtype)
        diagonal = self.get_buffer("sign") * self.log_diagonal.exp()
        return self.get_buffer("order") @ lower @ (self.upper.triu(1) + diagonal.diag())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.log_diagonal.sum() * (x.shape[2] * x.shape[3])
        return F.conv2d(x, self.weight()[:, :, None, None]), one.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return F.conv2d(y, self.weight().inverse()[:, :, None, None])


class FullMixing(Invertible):
    """A 1x1 convolution by a full matrix, which starts as a random rotation (section 3.2, equation 9), or near the identity."""

    def __init__(self, channels: int, start: Literal["rotation", "identity"] = "rotation") -> None:
        super().__init__()
        noise = torch.randn(channels, channels)
        self.matrix = nn.Parameter(torch.linalg.qr(noise)[0] if start == "rotation" else torch.eye(channels) + 1e-3 * noise)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.linalg.slogdet(self.matrix.double()).logabsdet.to(x.dtype) * (x.shape[2] * x.shape[3])
        return F.conv2d(x, self.matrix[:, :, None, None]), one.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return F.conv2d(y, self.matrix.inverse()[:, :, None, None])


class ZeroConv(nn.Module):
    """A 3x3 convolution that starts as zero, over borders of ones, its outputs times ``exp(3 scale)``."""

    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(taken, given, 3)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(cast(Tensor, self.conv.bias))
        self.scale = nn.Parameter(torch.zeros(1, given, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1), value=1.0)) * torch.exp(3 * self.scale)


class Coupling(Invertible):
    """The second half of the channels, scaled and shifted (or shifted alone) as a small convolutional net of the first half says
    (section 3.3)."""

    def __init__(self, channels: int, width: int, kind: Literal["affine", "additive"]) -> None:
        super().__init__()
        self.kind = kind
        first, last = nn.Conv2d(channels // 2, width, 3, padding=1), nn.Conv2d(width, width, 1)
        for conv in (first, last):
            nn.init.normal_(conv.weight, std=0.05)
            nn.init.zeros_(cast(Tensor, conv.bias))
        given = channels if kind == "affine" else channels // 2
        self.net = nn.Sequential(first, nn.ReLU(), last, nn.ReLU(), ZeroConv(width, given))

    def parts(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and shifts of the other half."""
        out = self.net(kept)
        if self.kind == "additive":
            return torch.ones_like(out), out
        log_scale, shift = out.chunk(2, 1)
        return torch.sigmoid(log_scale + 2), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, 1)
        scale, shift = self.parts(kept)
        return torch.cat([kept, (moved + shift) * scale], 1), scale.log().flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        kept, moved = y.chunk(2, 1)
        scale, shift = self.parts(kept)
        return torch.cat([kept, moved / scale - shift], 1)


class Chain(Invertible):
    """One after another."""

    def __init__(self, *parts: Invertible) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for part in self.parts:
            x, one = part(x)
            total = total + one
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = cast(Invertible, part).inverse(y)
        return y

    def start(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = cast(Invertible, part).start(x)
        return x
