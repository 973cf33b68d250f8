"""U-Nets of noisy images at known noise levels: DDPM++ and NCSN++ (arXiv:2011.13456), and ADM (arXiv:2105.05233).

Shapes: B rows, C channels, H W image, E width of the embedding, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.dropout import dropout


class Conv(nn.Module):
    """A convolution (kernel 0: none) after the image is filtered to double or half its size; ``fused``: the filter comes last."""

    def __init__(
        self, taken: int, given: int, kernel: int, resize: str = "no", taps: tuple[int, ...] = (1, 1), fused: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(taken, given, kernel) if kernel else None
        self.resize, self.fused, self.border = resize, fused, kernel // 2
        f = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("filter", torch.outer(f, f)[None, None] / f.sum() ** 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        f = self.get_buffer("filter").to(x)
        reach = (f.shape[-1] - 1) // 2
        if self.conv is not None and self.fused:
            x = F.conv2d(x, self.conv.weight, padding=self.border + reach)
            x = F.conv2d(x, f.expand(x.shape[1], -1, -1, -1), stride=2, groups=x.shape[1])
            return x + cast(Tensor, self.conv.bias)[:, None, None]
        each = f.expand(x.shape[1], -1, -1, -1)
        if self.resize == "up":
            x = F.conv_transpose2d(x, 4 * each, stride=2, padding=reach, groups=x.shape[1])
        if self.resize == "down":
            x = F.conv2d(x, each, stride=2, padding=reach, groups=x.shape[1])
        return x if self.conv is None else F.conv2d(x, self.conv.weight, self.conv.bias, padding=self.border)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """At most 32 groups, of at least four channels."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps)


class Block(nn.Module):
    """Two convolutions, the embedding between them, and attention where there is some."""

    def __init__(self, net: UNet.Config, taken: int, given: int, resize: str = "no", attention: bool = False) -> None:
        super().__init__()
        song, emb = net.kind == "song", net.width * net.embedding_multiple
        self.taken, self.dropout = taken, net.dropout
        self.scale, self.adaptive, eps = (math.sqrt(0.5), False, 1e-6) if song else (1.0, True, 1e-5)
        self.heads = (1 if song else given // 64) if attention else 0
        self.norm0, self.conv0 = group_norm(taken, eps), Conv(taken, given, 3, resize, net.taps)
        self.affine = nn.Linear(emb, given * (2 if self.adaptive else 1))
        self.norm1, self.conv1 = group_norm(given, eps), Conv(given, given, 3)
        project = taken != given or (song and resize != "no")
        self.skip = Conv(taken, given, int(project), resize, net.taps) if project or resize != "no" else None
        last = [self.conv1.conv]
        if self.heads:
            self.norm2 = group_norm(given, eps)
            self.qkv, self.proj = nn.Conv2d(given, 3 * given, 1), nn.Conv2d(given, given, 1)
            last.append(self.proj)
        with torch.no_grad():  # a block starts almost as its skip
            for conv in last:
                cast(nn.Conv2d, conv).weight *= 1e-3
                cast(Tensor, cast(nn.Conv2d, conv).bias).zero_()

    def forward(self, x: Tensor, emb: Tensor, draws: Draws | None) -> Tensor:
        y, how = self.conv0(F.silu(self.norm0(x))), self.affine(emb)[:, :, None, None]
        if self.adaptive:
            scale, shift = how.chunk(2, 1)
            y = F.silu(self.norm1(y) * (1 + scale) + shift)
        else:
            y = F.silu(self.norm1(y + how))
        x = self.scale * (self.conv1(dropout(y, self.dropout, draws)) + (x if self.skip is None else self.skip(x)))
        if not self.heads:
            return x
        q, k, v = self.qkv(self.norm2(x)).reshape(len(x), self.heads, -1, 3, x[0, 0].numel()).transpose(2, 4).unbind(3)
        a = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return self.scale * (self.proj(a) + x)


class UNet(nn.Module):
    """(noisy images, noise labels, classes) to something of the images' shape."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="net.unet"):
        """``kind``: the blocks of DDPM++ and NCSN++ (song) or of ADM; ``width`` times ``multipliers`` at each resolution, ``blocks`` of
        them; ``attention`` at these sides; ``times``: sines of noise labels or random Fourier features, ``times_multiple`` widths of them;
        ``encoder``, ``decoder``: how smaller images enter and leave beside the blocks; ``taps`` of the filter that resizes; ``augment``
        numbers that say how an image was augmented."""

        kind: Literal["song", "adm"] = "song"
        width: int = 128
        multipliers: tuple[int, ...] = (1, 2, 2, 2)
        embedding_multiple: int = 4
        blocks: int = 4
        attention: tuple[int, ...] = (16,)
        dropout: float = 0.1
        times: Literal["positional", "fourier"] = "positional"
        times_multiple: int = 1
        encoder: Literal["standard", "skip", "residual"] = "standard"
        decoder: Literal["standard", "skip"] = "standard"
        taps: tuple[int, ...] = (1, 1)
        augment: int = 0

        def __post_init__(self) -> None:
            if not self.multipliers or min(self.multipliers) < 1 or self.width < 4 or self.width % 4:
                raise ConfigError(f"net.width={self.width}, multipliers={self.multipliers}: positive, the width a multiple of four")
            if len(self.taps) < 2 or len(self.taps) % 2:
                raise ConfigError(f"net.taps={self.taps}: an even number of them")

        def build(self, side: int, channels: int, classes: int) -> UNet:
            """For square images of this side.

            Raises:
                ConfigError: they cannot be halved so often.
            """
            if side % 2 ** (len(self.multipliers) - 1):
                raise ConfigError(f"net.multipliers={self.multipliers}: images of side {side} cannot be halved so often")
            return UNet(self, side, channels, classes)

    def __init__(self, config: Config, side: int, channels: int, classes: int) -> None:
        super().__init__()
        self.config, song = config, config.kind == "song"
        labels, emb = config.width * (config.times_multiple if song else 1), config.width * config.embedding_multiple
        if song and config.times == "fourier":
            self.register_buffer("frequency", 16 * torch.randn(labels // 2))
        self.labels = labels
        self.label = nn.Linear(classes, labels if song else emb, bias=song) if classes else None
        self.augment = nn.Linear(config.augment, labels, bias=False) if config.augment else None
        self.layer0, self.layer1 = nn.Linear(labels, emb), nn.Linear(emb, emb)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, skips = self._encoder(side, channels)
        self._decoder(side, channels, width, skips)

    def _encoder(self, side: int, channels: int) -> tuple[int, list[int]]:
        c, song, skips = self.config, self.config.kind == "song", []
        width, beside = channels, channels
        for level, multiplier in enumerate(c.multipliers):
            res = side >> level
            if level == 0:
                width = c.width * (1 if song else multiplier)
                self.enc[f"{res}x{res}_conv"] = Conv(channels, width, 3)
            else:
                self.enc[f"{res}x{res}_down"] = Block(c, width, width, "down")
            skips.append(width)
            if level and song and c.encoder == "skip":
                self.enc[f"{res}x{res}_aux_down"] = Conv(beside, beside, 0, "down", c.taps)
                self.enc[f"{res}x{res}_aux_skip"] = Conv(beside, width, 1)
            if level and song and c.encoder == "residual":
                self.enc[f"{res}x{res}_aux_residual"] = Conv(beside, width, 3, "down", c.taps, fused=True)
                beside = width
            for i in range(c.blocks):
                self.enc[f"{res}x{res}_block{i}"] = Block(c, width, c.width * multiplier, attention=res in c.attention)
                width = c.width * multiplier
                skips.append(width)
        return width, skips

    def _decoder(self, side: int, channels: int, width: int, skips: list[int]) -> None:
        c, song, deepest = self.config, self.config.kind == "song", len(self.config.multipliers) - 1
        for level in reversed(range(deepest + 1)):
            res = side >> level
            if level == deepest:
                self.dec[f"{res}x{res}_in0"] = Block(c, width, width, attention=True)
                self.dec[f"{res}x{res}_in1"] = Block(c, width, width)
            else:
                self.dec[f"{res}x{res}_up"] = Block(c, width, width, "up")
            for i in range(c.blocks + 1):
                looks = res in c.attention and (not song or i == c.blocks)
                self.dec[f"{res}x{res}_block{i}"] = Block(c, width + skips.pop(), c.width * c.multipliers[level], attention=looks)
                width = c.width * c.multipliers[level]
            if song and (c.decoder == "skip" or level == 0):
                if c.decoder == "skip" and level < deepest:
                    self.dec[f"{res}x{res}_aux_up"] = Conv(channels, channels, 0, "up", c.taps)
                self.dec[f"{res}x{res}_aux_norm"], self.dec[f"{res}x{res}_aux_conv"] = group_norm(width, 1e-6), Conv(width, channels, 3)
        if not song:
            self.out_norm, self.out_conv = group_norm(width, 1e-5), Conv(width, channels, 3)

    def embedded(self, noise_B: Tensor, class_BK: Tensor | None, augment_BA: Tensor | None) -> Tensor:
        """(B, E) of noise labels, classes (one-hot) and augmentations."""
        song = self.config.kind == "song"
        if song and self.config.times == "fourier":
            angle = noise_B[:, None] * (2 * math.pi * self.get_buffer("frequency"))
        else:
            half = self.labels // 2
            angle = noise_B[:, None] * 10000.0 ** (-torch.arange(half, device=noise_B.device) / (half - song))
        emb = torch.cat([angle.sin(), angle.cos()] if song else [angle.cos(), angle.sin()], 1)
        if song and self.label is not None and class_BK is not None:
            emb = emb + self.label(class_BK * math.sqrt(class_BK.shape[1]))
        if self.augment is not None and augment_BA is not None:
            emb = emb + self.augment(augment_BA)
        emb = self.layer1(F.silu(self.layer0(emb)))
        if not song and self.label is not None and class_BK is not None:
            emb = emb + self.label(class_BK)
        return F.silu(emb)

    def forward(
        self,
        x: Tensor,
        noise_B: Tensor,
        class_BK: Tensor | None = None,
        augment_BA: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Output (B, C, H, W)."""
        emb, beside = self.embedded(noise_B, class_BK, augment_BA), x
        skips: list[Tensor] = []
        for name, part in self.enc.items():
            if name.endswith("aux_down"):
                beside = part(beside)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + part(beside)
            elif name.endswith("aux_residual"):
                x = skips[-1] = beside = (x + part(beside)) / math.sqrt(2)
            else:
                x = part(x, emb, draws) if isinstance(part, Block) else part(x)
                skips.append(x)
        out: Tensor | None = None
        for name, part in self.dec.items():
            if name.endswith("aux_up"):
                out = part(out)
            elif name.endswith("aux_norm"):
                leaving = part(x)
            elif name.endswith("aux_conv"):
                leaving = part(F.silu(leaving))
                out = leaving if out is None else out + leaving
            else:
                if x.shape[1] != cast(Block, part).taken:
                    x = torch.cat([x, skips.pop()], 1)
                x = part(x, emb, draws)
        return self.out_conv(F.silu(self.out_norm(x))) if out is None else out
