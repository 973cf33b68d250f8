"""Couplings by the distribution function of a mixture of logistics, and the gated net that conditions them (Flow++, arXiv:1902.00275).

Shapes: B rows, C channels that are changed, H W image, M components, D width, A channels of an auxiliary input.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws

HEADS = 4


class Normed(nn.Module):
    """A weight (n, …) as ``size direction / |direction|``, a size for each of n outputs (arXiv:1602.07868)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.direction = nn.Parameter(weight)
        self.size = nn.Parameter(self._length(weight).detach().clone())

    @staticmethod
    def _length(weight: Tensor) -> Tensor:
        return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))

    def forward(self) -> Tensor:
        return self.direction * (self.size / self._length(self.direction))


class NormedConv(nn.Module):
    """A convolution with a normed weight and a bias, over borders of zeros."""

    def __init__(self, taken: int, given: int, kernel: int) -> None:
        super().__init__()
        like = nn.Conv2d(taken, given, kernel)
        self.weight, self.bias, self.border = Normed(like.weight.data), like.bias, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, padding=self.border)


class NormedLinear(nn.Module):
    """A linear map with a normed weight, and a bias where there is one."""

    def __init__(self, taken: int, given: int, bias: bool) -> None:
        super().__init__()
        like = nn.Linear(taken, given, bias=bias)
        self.weight, self.bias = Normed(like.weight.data), like.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.bias)


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and -x, side by side."""
    return F.elu(torch.cat([x, -x], 1))


class GatedConv(nn.Module):
    """3x3 convolution, the auxiliary input, dropout of channels, and a gate (arXiv:1701.05517)."""

    def __init__(self, width: int, drop: float, auxiliary: int = 0) -> None:
        super().__init__()
        self.drop = drop
        self.conv, self.gate = NormedConv(2 * width, width, 3), NormedConv(2 * width, 2 * width, 1)
        self.auxiliary = NormedConv(2 * auxiliary, width, 1) if auxiliary else None

    def forward(self, x: Tensor, aux: Tensor | None = None, draws: Draws | None = None) -> Tensor:
        x = self.conv(concat_elu(x))
        if self.auxiliary is not None and aux is not None:
            x = x + self.auxiliary(concat_elu(aux))
        x = concat_elu(x)
        if self.drop and draws is not None:
            x = x * ~draws.bernoulli(self.drop, x.shape[1], 1, 1) / (1 - self.drop)
        value, gate = self.gate(x).chunk(2, 1)
        return value * gate.sigmoid()


class GatedAttention(nn.Module):
    """Self-attention over all positions, which sines and cosines tell apart, and a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.gate = NormedLinear(width, 3 * width, bias=False), NormedLinear(width, 2 * width, bias=True)

    def forward(self, x_BLD: Tensor) -> Tensor:
        k, v, q = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in self.enter(x_BLD + positions(x_BLD)).chunk(3, -1))
        value, gate = self.gate(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).chunk(2, -1)
        return value * gate.sigmoid()


def positions(like_BLD: Tensor) -> Tensor:
    """(L, D) sines, then cosines."""
    length, width = like_BLD.shape[1:]
    half = width // 2
    rate = torch.exp(-math.log(10000.0) / max(1, half - 1) * torch.arange(half, device=like_BLD.device))
    angle = torch.arange(length, device=like_BLD.device)[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, width % 2)).to(like_BLD)


class GatedBlock(nn.Module):
    """Gated convolution and, where there is one, attention, each added and then normed over channels."""

    def __init__(self, width: int, drop: float, attention: bool, auxiliary: int) -> None:
        super().__init__()
        self.conv, self.norm = GatedConv(width, drop, auxiliary), nn.LayerNorm(width)
        self.attention = GatedAttention(width) if attention else None
        self.last = nn.LayerNorm(width) if attention else None

    def forward(self, x: Tensor, aux: Tensor | None, draws: Draws | None) -> Tensor:
        size = x.shape[2:]
        y = self.norm((self.conv(x, aux, draws) + x).flatten(2).transpose(1, 2))
        if self.attention is not None and self.last is not None:
            y = self.last(self.attention(y) + y)
        return y.transpose(1, 2).unflatten(2, size)


class Mixture(NamedTuple):
    """Mixtures of logistics, (B, M, C, H, W) logits, means and log-scales."""

    logits: Tensor
    means: Tensor
    log_scales: Tensor

    def logit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logit of the distribution function at x (B, C, H, W), and the logarithm of its derivative."""
        share = self.logits.log_softmax(1)
        z = (x[:, None] - self.means) * (-self.log_scales).exp()
        below, above = ((share + F.logsigmoid(s * z)).logsumexp(1) for s in (1, -1))
        density = (share + z - self.log_scales - 2 * F.softplus(z)).logsumexp(1)
        return below - above, density - below - above

    def inverse(self, y: Tensor, steps: int = 100) -> Tensor:
        """x of a logit, by bisection."""
        reach = 20 * self.log_scales.exp().sum(1, keepdim=True)
        low, high = (self.means - reach).amin(1), (self.means + reach).amax(1)
        low, high = low - y.abs() * reach[:, 0], high + y.abs() * reach[:, 0]
        for _ in range(steps):
            x = (low + high) / 2
            over = self.logit(x)[0] > y
            low, high = torch.where(over, low, x), torch.where(over, x, high)
        return (low + high) / 2


class MixtureCoupling(nn.Module):
    """The first half of the channels, given the second: ``(logit(F(x)) + b) exp(a)``, F a mixture's distribution function (section 3.2)."""

    def __init__(self, channels: int, width: int, blocks: int, components: int, drop: float, attention: bool, auxiliary: int = 0) -> None:
        super().__init__()
        self.components = components
        self.enter = NormedConv(channels, width, 3)
        self.blocks = nn.ModuleList(GatedBlock(width, drop, attention, auxiliary) for _ in range(blocks))
        self.out = NormedConv(width, channels * (2 + 3 * components), 3)
        self.rescale = Normed(torch.ones(channels, 1, 1))
        self.rescale.direction.requires_grad_(False)  # of one number each: nothing but a sign

    def parts(self, kept: Tensor, aux: Tensor | None, draws: Draws | None) -> tuple[Tensor, Tensor, Mixture]:
        """a, b and the mixture."""
        h = self.enter(kept)
        for block in self.blocks:
            h = block(h, aux, draws)
        m = self.components
        a, b, *mixture = self.out(h).unflatten(1, (-1, kept.shape[1])).split((1, 1, m, m, m), 1)
        logits, means, log_scales = mixture
        return self.rescale() * a.squeeze(1).tanh(), b.squeeze(1), Mixture(logits, means, log_scales.clamp_min(-7))

    def forward(self, x: Tensor, aux: Tensor | None = None, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        moved, kept = x.chunk(2, 1)
        a, b, mixture = self.parts(kept, aux, draws)
        y, log = mixture.logit(moved)
        return torch.cat([(y + b) * a.exp(), kept], 1), (log + a).flatten(1).sum(1)

    def inverse(self, y: Tensor, aux: Tensor | None = None) -> Tensor:
        """x of an output."""
        moved, kept = y.chunk(2, 1)
        a, b, mixture = self.parts(kept, aux, None)
        return torch.cat([mixture.inverse(moved * (-a).exp() - b), kept], 1)
