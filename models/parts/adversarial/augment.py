"""Differentiable augmentation of what a discriminator is given (DiffAugment, arXiv:2006.10738), the same kind for real and made images.

Shapes: B rows, C channels, H W image in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws


@dataclass(frozen=True, kw_only=True)
class DiffAug(configs.Config, tag="augment.differentiable"):
    """Brightness, saturation and contrast by up to half; shifts by up to ``translation`` of a side; a square hole of ``cutout`` of it."""

    translation: float = 0.125
    cutout: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.translation < 1 or not 0 <= self.cutout < 1:
            raise ConfigError(f"augment.translation={self.translation}, cutout={self.cutout}: shares of a side, at least 0 and below 1")

    def __call__(self, x_BCHW: Tensor, draws: Draws) -> Tensor:
        """The augmented images, each row by draws of its own."""
        u_B7 = draws.uniform(7).to(x_BCHW)
        x_BCHW = self._coloured(x_BCHW, u_B7[:, :3, None, None, None])
        x_BCHW = self._shifted(x_BCHW, u_B7[:, 3:5])
        return self._holed(x_BCHW, u_B7[:, 5:7]) if self.cutout else x_BCHW

    @staticmethod
    def _coloured(x_BCHW: Tensor, u_B3111: Tensor) -> Tensor:
        brightness, saturation, contrast = u_B3111.unbind(1)
        x_BCHW = x_BCHW + (brightness - 0.5)
        grey = x_BCHW.mean(1, keepdim=True)
        x_BCHW = (x_BCHW - grey) * (2 * saturation) + grey
        mean = x_BCHW.mean((1, 2, 3), keepdim=True)
        return (x_BCHW - mean) * (contrast + 0.5) + mean

    def _shifted(self, x_BCHW: Tensor, u_B2: Tensor) -> Tensor:
        """Whole pixels, zeros from outside."""
        rows, columns = x_BCHW.shape[2:]
        most = torch.tensor([int(rows * self.translation + 0.5), int(columns * self.translation + 0.5)], device=x_BCHW.device)
        shift_B2 = (u_B2 * (2 * most + 1)).floor().long().clamp_max(2 * most) - most
        y_BH = (torch.arange(rows, device=x_BCHW.device) + shift_B2[:, :1] + 1).clamp(0, rows + 1)
        x_BW = (torch.arange(columns, device=x_BCHW.device) + shift_B2[:, 1:] + 1).clamp(0, columns + 1)
        padded = F.pad(x_BCHW, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        row_B = torch.arange(len(x_BCHW), device=x_BCHW.device)[:, None, None]
        return padded[row_B, y_BH[:, :, None], x_BW[:, None, :]].permute(0, 3, 1, 2)

    def _holed(self, x_BCHW: Tensor, u_B2: Tensor) -> Tensor:
        inside = torch.ones((len(x_BCHW), 1, 1, 1), dtype=torch.bool, device=x_BCHW.device)
        for axis, side in enumerate(x_BCHW.shape[2:]):
            size = int(side * self.cutout + 0.5)
            start_B1 = (u_B2[:, axis : axis + 1] * (side + 1 - size % 2)).floor() - size // 2
            place = torch.arange(side, device=x_BCHW.device)
            hit_BS = (place >= start_B1) & (place < start_B1 + size)
            inside = inside & (hit_BS[:, None, :, None] if axis == 0 else hit_BS[:, None, None, :])
        return x_BCHW * ~inside
