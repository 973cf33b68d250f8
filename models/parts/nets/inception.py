"""The network of the Fréchet Inception distance: Inception-v3 as released in TensorFlow on 2015-12-05 (Szegedy et al., arXiv:1512.00567).

It differs from the later Inception-v3: 1,008 outputs, average pools that leave the border out, and a maximum instead of an average pool
in its last block.  Names of weights are those of the published PyTorch conversions, so that a checkpoint loads as it is.

Shapes: B images, 299 rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
OUTPUTS = 1008
#: Outputs by name with their widths. ``spatial`` are the first 7 channels of a 17 x 17 map, what sFID compares (arXiv:2103.03841).
FEATURES = {"64": 64, "192": 192, "768": 768, "2048": 2048, "spatial": 7 * 17 * 17, "logits": OUTPUTS}

#: One convolution, ``name:channels:kernel`` and ``/2`` where it has stride 2; several side by side are a tuple.
Step = str | tuple[str, ...]
Pool = Literal["average", "maximum", "stride"]
Feature = Callable[[], Tensor]


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int], stride: int, padded: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of convolutions side by side, and a pool of the input, all concatenated."""

    def __init__(self, inside: int, chains: Sequence[Sequence[Step]], pool: Pool, pooled: int = 0) -> None:
        super().__init__()
        self.chains: list[list[tuple[str, ...]]] = []
        self.pool = pool
        self.width = pooled or inside
        for chain in chains:
            width, names = inside, []
            for step in chain:
                parts = [_parsed(part) for part in ([step] if isinstance(step, str) else step)]
                for name, outside, kernel, stride in parts:
                    self.add_module(name, Unit(width, outside, kernel, stride, padded=stride == 1))
                names.append(tuple(name for name, *_ in parts))
                width = sum(outside for _, outside, *_ in parts)
            self.chains.append(names)
            self.width += width
        if pooled:
            self.branch_pool = Unit(inside, pooled, (1, 1), 1, padded=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self._run(x, chain) for chain in self.chains), self._pooled(x)], 1)

    def _run(self, x: Tensor, chain: list[tuple[str, ...]]) -> Tensor:
        for names in chain:
            x = torch.cat([self.get_submodule(name)(x) for name in names], 1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        match self.pool:
            case "average":
                return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
            case "maximum":
                return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
            case "stride":
                return F.max_pool2d(x, 3, 2)


def _parsed(text: str) -> tuple[str, int, tuple[int, int], int]:
    name, channels, kernel = text.split(":")
    kernel, _, stride = kernel.partition("/")
    rows, _, columns = kernel.partition("x")
    return name, int(channels), (int(rows), int(columns or rows)), int(stride or 1)


def _chain(name: str, *kernels: str) -> list[Step]:
    """Convolutions ``name_1``, ``name_2`` … of one branch."""
    return [f"{name}_{i}:{kernel}" for i, kernel in enumerate(kernels, 1)]


def _blocks() -> Iterator[tuple[str, Mixed]]:
    """The eleven mixed blocks, from 192 channels to 2,048."""
    width = 192

    def block(name: str, chains: Sequence[Sequence[Step]], pool: Pool, pooled: int = 0) -> tuple[str, Mixed]:
        nonlocal width
        made = Mixed(width, chains, pool, pooled)
        width = made.width
        return name, made

    double = ("64:1", "96:3", "96:3")
    for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
        five = _chain("branch5x5", "48:1", "64:5")
        yield block(f"Mixed_5{letter}", [["branch1x1:64:1"], five, _chain("branch3x3dbl", *double)], "average", pooled)
    yield block("Mixed_6a", [["branch3x3:384:3/2"], _chain("branch3x3dbl", "64:1", "96:3", "96:3/2")], "stride")
    for letter, c in zip("bcde", (128, 160, 160, 192), strict=True):
        seven = _chain("branch7x7", f"{c}:1", f"{c}:1x7", "192:7x1")
        twice = _chain("branch7x7dbl", f"{c}:1", f"{c}:7x1", f"{c}:1x7", f"{c}:7x1", "192:1x7")
        yield block(f"Mixed_6{letter}", [["branch1x1:192:1"], seven, twice], "average", 192)
    three = _chain("branch3x3", "192:1", "320:3/2")
    yield block("Mixed_7a", [three, _chain("branch7x7x3", "192:1", "192:1x7", "192:7x1", "192:3/2")], "stride")
    pools: tuple[Pool, Pool] = ("average", "maximum")
    for letter, pool in zip("bc", pools, strict=True):
        split: list[Step] = ["branch3x3_1:384:1", ("branch3x3_2a:384:1x3", "branch3x3_2b:384:3x1")]
        twice = ["branch3x3dbl_1:448:1", "branch3x3dbl_2:384:3", ("branch3x3dbl_3a:384:1x3", "branch3x3dbl_3b:384:3x1")]
        yield block(f"Mixed_7{letter}", [["branch1x1:320:1"], split, twice], pool, 192)


class Inception(nn.Module):
    """Features of images by name (``FEATURES``)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, (3, 3), 2, padded=False)
        self.Conv2d_2a_3x3 = Unit(32, 32, (3, 3), 1, padded=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, (3, 3), 1, padded=True)
        self.Conv2d_3b_1x1 = Unit(64, 80, (1, 1), 1, padded=True)
        self.Conv2d_4a_3x3 = Unit(80, 192, (3, 3), 1, padded=False)
        self.mixed: list[str] = []
        for name, block in _blocks():
            self.add_module(name, block)
            self.mixed.append(name)
        self.fc = nn.Linear(2048, OUTPUTS)

    def forward(self, x_B3HW: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """The wanted features (B, ``FEATURES[name]``) of images (B, 3, 299, 299), near [-1, 1]; nothing behind the last one is run.

        ``logits`` are without the bias, as the Inception score is published.
        """
        found: dict[str, Tensor] = {}
        for name, value in self._maps(x_B3HW):
            if name in wanted:
                found[name] = value()
            if len(found) == len(set(wanted)):
                break
        return found

    def _maps(self, x: Tensor) -> Iterator[tuple[str, Feature]]:
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        yield "64", _mean_of(x)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        yield "192", _mean_of(x)
        for name in self.mixed:
            if name == "Mixed_6d":
                yield "spatial", _spatial_of(self.get_submodule("Mixed_6d.branch1x1"), x)
            x = self.get_submodule(name)(x)
            if name == "Mixed_6e":
                yield "768", _mean_of(x)
        yield "2048", _mean_of(x)
        yield "logits", lambda: F.linear(x.mean((2, 3)), self.fc.weight)


def _mean_of(x: Tensor) -> Feature:
    return lambda: x.mean((2, 3))


def _spatial_of(unit: nn.Module, x: Tensor) -> Feature:
    # Rows, columns, channels in this order, as TensorFlow lays them out.
    return lambda: unit(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
