"""Quantization by frequency bands from low to high (NFIG, arXiv:2503.07076).

Scale k codes what the smaller ones left over of the latent's frequencies up to its cut-off, on a grid that is as small as the band
is low.  Shapes: B rows, C channels, H W the last grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.parts.quantizers.codebook import exact
from tokenloom.models.parts.quantizers.multiscale import MultiScale


def low_pass(z_BCHW: Tensor, share: float) -> Tensor:
    """The frequencies up to ``share`` (0 to 1) of the highest, by distance from zero: an orthogonal projection; 1 keeps all."""
    if share >= 1:
        return z_BCHW
    height, width = z_BCHW.shape[2:]
    f = torch.fft.rfft2(exact(z_BCHW))
    y = torch.fft.fftfreq(height, device=f.device, dtype=torch.float64)[:, None]
    x = torch.fft.rfftfreq(width, device=f.device, dtype=torch.float64)
    kept = (y.square() + x.square()).sqrt() <= share * 0.5**0.5 + 1e-9  # the corner lies at half a cycle in each direction
    return torch.fft.irfft2(f * kept, s=(height, width)).to(z_BCHW.dtype)


class Frequency(MultiScale):
    """Residual quantization in which scale k holds frequencies up to ``scales[k] / scales[-1]`` of the highest, and no others."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MultiScale.Config, tag="quantizer.frequency", label="frequency bands"):
        """As for ``MultiScale``; the cut-offs grow with the scales."""

    def cutoff(self, scale: int) -> float:
        """Share of the highest frequency that a scale reaches."""
        return max(self.scales[scale]) / max(self.size)

    def _up(self, scale: int, z_BChw: Tensor) -> Tensor:
        return low_pass(super()._up(scale, z_BChw), self.cutoff(scale))

    def _down(self, f_BCHW: Tensor, scale: int) -> Tensor:
        return super()._down(low_pass(f_BCHW, self.cutoff(scale)), scale)

    def _target(self, z_BCHW: Tensor, scale: int) -> Tensor:
        return low_pass(z_BCHW, self.cutoff(scale))

    def bands(self, ids_BL: Tensor) -> list[Tensor]:
        """What each scale adds, (B, C, H, W)."""
        f_hats = self.partial(ids_BL)
        return [f - before for f, before in zip(f_hats, [torch.zeros_like(f_hats[0]), *f_hats])]
