"""ConvNeXt as a frozen judge of images (arXiv:2201.03545), read from a safetensors file.

The names are those of torchvision: ``features.0.0.weight``, ``features.1.0.block.0.weight``, ``features.1.0.layer_scale`` … and
``classifier.2.weight``.  Shapes: B rows, C channels, H W image, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError

#: Blocks and widths of the stages of ConvNeXt-S, 50,223,688 parameters with 1000 classes.
DEPTHS, WIDTHS = (3, 3, 27, 3), (96, 192, 384, 768)
_MEAN, _STD, SIDE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps (B, D, H, W)."""

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return super().forward(x_BDHW.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """7x7 convolution of each channel, norm, MLP with GELU, times learned factors, beside the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict(
            {
                "0": nn.Conv2d(width, width, 7, padding=3, groups=width),
                "2": nn.LayerNorm(width, eps=1e-6),
                "3": nn.Linear(width, 4 * width),
                "5": nn.Linear(4 * width, width),
            }
        )
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        h_BHWD = self.block["2"](self.block["0"](x_BDHW).movedim(1, -1))
        return x_BDHW + self.layer_scale * self.block["5"](F.gelu(self.block["3"](h_BHWD))).movedim(-1, 1)


class ConvNeXt(nn.Module):
    """Images (B, 1 or 3, H, W) in [-1, 1] to class logits (B, classes); they are resized to 224 pixels first."""

    def __init__(self, depths: tuple[int, ...] = DEPTHS, widths: tuple[int, ...] = WIDTHS, classes: int = 1000) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for i, (depth, width) in enumerate(zip(depths, widths)):
            conv = nn.Conv2d(widths[i - 1], width, 2, stride=2) if i else nn.Conv2d(3, width, 4, stride=4)
            norm = ChannelNorm(widths[i - 1] if i else width, eps=1e-6)
            stages += [nn.Sequential(norm, conv) if i else nn.Sequential(conv, norm), nn.Sequential(*(Block(width) for _ in range(depth)))]
        self.features = nn.Sequential(*stages)
        self.classifier = nn.ModuleDict({"0": ChannelNorm(widths[-1], eps=1e-6), "2": nn.Linear(widths[-1], classes)})
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    @classmethod
    def of_file(cls, path: str, where: str) -> ConvNeXt:
        """ConvNeXt-S with the weights of a file, frozen.

        Raises:
            ConfigError: no such file, or tensors of another network.
        """
        if not Path(path).is_file():
            raise ConfigError(f"{where}={path!r}: no such file; give ConvNeXt-S weights as safetensors or leave it off")
        network, state = cls(), load_file(path)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ConfigError(f"{where}={path!r}: not the weights of ConvNeXt-S: {str(error).splitlines()[-1].strip()}") from None
        return network.requires_grad_(False).eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BCHW = (image_BCHW.expand(-1, 3, -1, -1) + 1) / 2
        x_BCHW = F.interpolate(x_BCHW, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x_BDHW = self.features((x_BCHW - self.get_buffer("mean")) / self.get_buffer("std"))
        return self.classifier["2"](self.classifier["0"](x_BDHW.mean((2, 3), keepdim=True)).flatten(1))
