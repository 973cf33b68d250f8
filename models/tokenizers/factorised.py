"""Attention that maps features to the channels of a codebook and back (UniTok, arXiv:2502.20321, section 3.2).

Shapes: B rows, C channels in, E channels out, h w grid, L = h w, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs


class Factorised(nn.Module):
    """A linear map beside causal attention over the positions in raster order, then a gated MLP: (B, C, h, w) to (B, E, h, w).

    Where the channels shrink, the heads' outputs are averaged; where they grow, they stand side by side.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="net.factorised"):
        """``ratio`` of the MLP's hidden width to E.  Heads: as often as the smaller of C and E goes into the larger, else one."""

        ratio: float = 2.0

        def build(self, channels_in: int, channels_out: int) -> Factorised:
            return Factorised(self, channels_in, channels_out)

    def __init__(self, config: Config, channels_in: int, channels_out: int) -> None:
        super().__init__()
        small, large = sorted((channels_in, channels_out))
        self.heads = 1 if large % small else large // small
        inner = large  # of queries, keys and values
        self.out = channels_out
        self.shrinks = channels_in > channels_out
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(channels_in), nn.LayerNorm(channels_out), nn.LayerNorm(channels_in)
        self.qkv = nn.Linear(channels_in, 3 * inner, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(inner)), nn.Parameter(torch.zeros(inner))
        self.attended = nn.Linear(channels_out, channels_out)
        self.beside = nn.Linear(channels_in, channels_out)
        hidden = round(config.ratio * channels_out)
        self.norm_mlp = nn.LayerNorm(channels_out)
        self.gate, self.up = nn.Linear(channels_out, hidden), nn.Linear(channels_out, hidden)
        self.down = nn.Linear(hidden, channels_out)

    def attend(self, x_BLC: Tensor) -> Tensor:
        """What causal attention makes of the positions, (B, L, E)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x_BLC, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found_BHLD = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.shrinks:
            found_BLE = F.adaptive_avg_pool1d(found_BHLD.mean(1), self.out)
        else:
            found_BLE = found_BHLD.transpose(1, 2).flatten(2)
        return self.attended(found_BLE)

    def forward(self, x_BChw: Tensor) -> Tensor:
        x_BLC = x_BChw.flatten(2).transpose(1, 2)
        y_BLE = self.beside(self.norm3(x_BLC)) + self.attend(self.norm1(x_BLC))
        h_BLE = self.norm_mlp(self.norm2(y_BLE))
        y_BLE = y_BLE + self.down(F.gelu(self.gate(h_BLE)) * self.up(h_BLE))
        return y_BLE.transpose(1, 2).unflatten(2, x_BChw.shape[2:])
