"""DINO's vision transformers as a source of features (arXiv:2104.14294, arXiv:2304.07193), read from a safetensors file.

The names are those of the released models and of timm: ``cls_token``, ``pos_embed``, ``patch_embed.proj.weight``,
``blocks.0.attn.qkv.weight`` …; ``ls1.gamma``, ``ls2.gamma`` and ``register_tokens`` where the file has them.
Shapes: B rows, C channels, H W image, h w patches, S slots, D width.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.signals import Shape
from tokenloom.models.parts.nets.frozen import Source

#: Mean and standard deviation of the pixels in [0, 1] that the released weights expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_UNUSED = ("mask_token",)


@dataclass(frozen=True, kw_only=True)
class Dino(Source, tag="net.dino", label="DINO"):
    """A vision transformer of this shape with the weights of a file; ``side`` pixels enter it (0: the image as it is).

    The path and, if given, the SHA-256 of the file are part of the tokenizer's identity; a file with another hash is refused.
    A trained tokenizer holds the weights itself and needs the file no more.
    """

    weights: str
    sha256: str = ""
    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 14
    grid_trained: int = 37  # rows (= columns) of the table of positions
    registers: int = 0
    branches: Literal["scaled", "plain"] = "scaled"  # DINOv2 has learned factors, DINO none
    side: int = 0
    mlp: Added[Literal["gelu", "swiglu"]] = "gelu"  # DINOv2-g is gated
    last: Added[int] = 1  # features of this block counted from the last one, which is 1

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.patch, self.grid_trained) < 1 or self.registers < 0 or self.width % self.heads:
            raise ConfigError(f"width={self.width}, depth={self.depth}, heads={self.heads}, patch={self.patch}: heads divide the width")
        if not self.weights:
            raise ConfigError("weights: give the path of a safetensors file")
        if not 1 <= self.last <= self.depth:
            raise ConfigError(f"last={self.last}: the network has {self.depth} blocks, the last one is 1")

    @classmethod
    def of_file(cls, weights: str, **fields: Any) -> Dino:
        """A network of the shape of the file's tensors; without the file, of the released shape of ``width`` (384, 768, 1024, 1536).

        Heads are 64 wide, as in every DINO and DINOv2.  ``fields`` that are given win.

        Raises:
            ConfigError: the file has no such network.
        """
        path = Path(weights)
        shape: dict[str, Any] = {}
        if path.is_file():
            shape = _shape_of(path)
        if not shape and "width" in fields:
            width = fields["width"]
            shape = {"heads": max(1, width // 64), "depth": {1024: 24, 1536: 40}.get(width, 12)}
            shape |= {"mlp": "swiglu"} if width == 1536 else {}
        return cls(**{**shape, "weights": weights, **fields})

    def grid(self, shape: Shape) -> Shape:
        rows, columns = (self.side, self.side) if self.side else shape
        if rows % self.patch or columns % self.patch or min(rows, columns) < self.patch:
            raise ConfigError(f"side={rows}x{columns}: not divisible by patch={self.patch}")
        return rows // self.patch, columns // self.patch

    def build(self, channels: int, latent: int) -> DinoViT:
        if latent != self.width:
            raise ConfigError(f"dim={latent}: the features have {self.width} channels")
        return DinoViT(self)

    def read(self) -> dict[str, Tensor]:
        """The file's tensors.

        Raises:
            ConfigError: there is no such file, or it has another hash.
        """
        path = Path(self.weights)
        if not path.is_file():
            raise ConfigError(f"weights={self.weights!r}: no such file; give DINO weights as safetensors")
        if self.sha256:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self.sha256.lower():
                raise ConfigError(f"weights={self.weights!r}: its SHA-256 is {found}, not {self.sha256}")
        try:
            return {name: tensor for name, tensor in load_file(path).items() if name not in _UNUSED}
        except SafetensorError as error:
            raise ConfigError(f"weights={self.weights!r}: cannot be read as safetensors: {error}") from None


def _shape_of(path: Path) -> dict[str, Any]:
    """The shape of the network whose tensors a file holds; nothing of a damaged file, which loading it refuses."""
    try:
        with safe_open(path, "pt") as file:
            sizes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError:
        return {}
    try:
        (_, places, width), (_, _, patch, _) = sizes["pos_embed"], sizes["patch_embed.proj.weight"]
    except KeyError as error:
        raise ConfigError(f"weights={str(path)!r}: not a vision transformer of DINO, {error} is missing") from None
    return {
        "width": width,
        "depth": len({name.split(".")[1] for name in sizes if name.startswith("blocks.")}),
        "heads": max(1, width // 64),
        "patch": patch,
        "grid_trained": math.isqrt(places - 1),
        "registers": sizes.get("register_tokens", (0, 0))[1],
        "branches": "scaled" if "blocks.0.ls1.gamma" in sizes else "plain",
        "mlp": "swiglu" if "blocks.0.mlp.w12.weight" in sizes else "gelu",
    }


class Scale(nn.Module):
    """Learned factors of a branch's channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention of all slots."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BSD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layers(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Gated(nn.Module):
    """Two thirds of four times the width, rounded up to eights, times a SiLU of as many (SwiGLU of DINOv2-g)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-int(8 * width / 3) // 8) * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class DinoBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: Dino) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads)
        self.ls1: nn.Module = Scale(config.width) if config.branches == "scaled" else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp: nn.Module = Layers(config.width) if config.mlp == "gelu" else Gated(config.width)
        self.ls2: nn.Module = Scale(config.width) if config.branches == "scaled" else nn.Identity()

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.ls1(self.attn(self.norm1(x_BSD)))
        return x_BSD + self.ls2(self.mlp(self.norm2(x_BSD)))


class DinoViT(nn.Module):
    """Images (B, 1 or 3, H, W) in [-1, 1] to normalised patch features (B, width, h, w)."""

    def __init__(self, config: Dino) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid_trained**2, d))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, d))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, d, config.patch, stride=config.patch)})
        self.blocks = nn.ModuleList(DinoBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.loaded = False
        self.register_load_state_dict_post_hook(_mark)
        if Path(config.weights).is_file():
            self.load()

    def load(self) -> None:
        """Take the weights of the file.

        Raises:
            ConfigError: no such file, another hash, or tensors that are not this network's.
        """
        try:
            self.load_state_dict(self.config.read())
        except RuntimeError as error:
            raise ConfigError(f"weights={self.config.weights!r}: not a network of this shape: {error}") from None

    def positions(self, rows: int, columns: int) -> Tensor:
        """The table of positions of the patches at another size, (1, rows * columns, D)."""
        table = self.pos_embed[:, 1:]
        side = self.config.grid_trained
        if (rows, columns) == (side, side):
            return table
        map_1Dhw = table.transpose(1, 2).unflatten(2, (side, side))
        resized = F.interpolate(map_1Dhw, size=(rows, columns), mode="bicubic", antialias=True)
        return resized.flatten(2).transpose(1, 2)

    def taps(self, image_BCHW: Tensor, taps: tuple[int, ...]) -> list[Tensor]:
        """Features (B, S, D) of all slots as embedded (0) and after blocks, counted from 1, without the last norm; class token first."""
        x_BSD, _ = self._embedded(image_BCHW)
        found = {0: x_BSD}
        for i, block in enumerate(self.blocks[: max(taps)], 1):
            found[i] = x_BSD = block(x_BSD)
        return [found[i] for i in taps]

    def _embedded(self, image_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """All slots before the first block, and the grid of the patches."""
        if not self.loaded:
            self.load()  # says what is missing
        x = image_BCHW.expand(-1, 3, -1, -1)
        if self.config.side and x.shape[2:] != (self.config.side, self.config.side):
            x = F.interpolate(x, size=(self.config.side,) * 2, mode="bicubic", antialias=True)
        x_BDhw = self.patch_embed["proj"](((x + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std"))
        rows, columns = x_BDhw.shape[2:]
        x_BSD = x_BDhw.flatten(2).transpose(1, 2) + self.positions(rows, columns)
        first = [(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)]
        if self.config.registers:
            first.append(self.register_tokens.expand(len(x), -1, -1))
        return torch.cat([*first, x_BSD], 1), (rows, columns)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BSD, grid = self._embedded(image_BCHW)
        for block in self.blocks[: len(self.blocks) - self.config.last + 1]:
            x_BSD = block(x_BSD)
        return self.norm(x_BSD)[:, 1 + self.config.registers :].transpose(1, 2).unflatten(2, grid)


def _mark(module: Any, _: Any) -> None:
    module.loaded = True
