"""Small quantizers of every kind, for the tests of their laws."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Learned, Revival
from tokenloom.models.parts.quantizers.fsq import FSQ, Clamp
from tokenloom.models.parts.quantizers.gradients import Rotation, Straight
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.quantizers.lfq import BSQ, LFQ
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.zoo.tokenizers.ibq.quantizer import IBQ
from tokenloom.models.zoo.tokenizers.pq.quantizer import Grouped
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Each, Residual, residual_fsq
from tokenloom.models.zoo.tokenizers.simvq.quantizer import SimVQ

ROWS, GRID = 6, (4, 4)


def vq(update: Learned | EMA = Learned(), codes: int = 12, dim: int = 4, gradient: Any = Straight(), **more: Any) -> VQ.Config:  # noqa: B008
    return VQ.Config(codebook=Codebook.Config(codes=codes, dim=dim, update=update, **more), gradient=gradient)


SINGLE: dict[str, Quantizer.Config] = {
    "vq": vq(),
    "vq_rotation": vq(EMA(), gradient=Rotation()),
    "vq_cosine": vq(EMA(length="unit"), metric="cosine"),
    "simvq": SimVQ.Config(codes=40, dim=6),
    "ibq": IBQ.Config(codes=24, dim=6),
    "fsq": FSQ.Config(levels=(5, 4, 3)),
    "fsq_clamp": FSQ.Config(levels=(5, 4, 2), bound=Clamp()),
    "lfq": LFQ.Config(bits=6),
    "lfq_factors": LFQ.Config(bits=6, factors=(2, 1, 3)),
    "bsq": BSQ.Config(bits=6),
    "grouped": Grouped.Config(part=vq(codes=6, dim=3), groups=2),
    "grouped_signs": Grouped.Config(part=LFQ.Config(bits=2), groups=3),
}


STAGED: dict[str, Quantizer.Config] = {
    "residual": Residual.Config(stage=vq(EMA(), start=KMeans(), revival=Revival()), stages=3),
    "residual_each": Residual.Config(stage=vq(EMA(), gradient=Rotation()), stages=2, gradient=Each()),
    "residual_fsq": residual_fsq((5, 4, 3), 3),
    "residual_grouped": Residual.Config(stage=Grouped.Config(part=vq(codes=6, dim=2), groups=2), stages=2),
    "multiscale_bsq": MultiScaleBSQ.Config(bits=5, scales=(1, 2, 4)),
}


ALL = SINGLE | STAGED


def build(name: str, grid: tuple[int, int] = GRID) -> Quantizer:
    torch.manual_seed(3)
    quantizer = ALL[name].build(grid)
    for n, p in itertools.chain(quantizer.named_parameters(), quantizer.named_buffers()):
        if n.endswith(("codebook.weight", "codebook")) and p.ndim == 2 and not name.startswith("simvq"):
            p.data.normal_()
            if "cosine" in name or name == "ibq":  # the largest dot product is a code's own only among codes of one length
                p.data.copy_(F.normalize(p.data, dim=1))
    return quantizer


def latents(name: str, grid: tuple[int, int] = GRID, rows: int = ROWS, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, ALL[name].channels()[0], *grid, generator=draw)


def every_id(name: str) -> Tensor:
    """All ids (1, V) or combinations of ids (1, V, Q) of a small vocabulary."""
    config = ALL[name]
    layout = config.layout(GRID)
    if layout.codebooks == 1:
        return torch.arange(layout.vocabulary)[None]
    sizes = [2**n for n in config.sizes] if isinstance(config, LFQ.Config) else [layout.vocabulary] * layout.codebooks
    return torch.cartesian_prod(*(torch.arange(n) for n in sizes))[None]


def preimage(quantizer: Quantizer, z_BCHW: Tensor) -> Tensor:
    """Latents that are quantized to these codes: the codes themselves, but for the paper's FSQ, whose bound is undone."""
    if not isinstance(quantizer, FSQ) or isinstance(quantizer.config.bound, Clamp):
        return z_BCHW
    levels = quantizer.levels[:, None, None]
    half, offset = (levels - 1) * (1 + 1e-3) / 2, 0.5 * (levels % 2 == 0)
    return torch.atanh((z_BCHW * (levels // 2) + offset) / half) - torch.atanh(offset / half)


def check_inputs(quantizer: Any, data: Tensor) -> None:
    """The inputs of a next-scale generator are the same in one pass over three rows of true tokens and scale after scale."""
    f_hat, inputs = quantizer.start(3), []
    for scale, part in enumerate(quantizer.split(data)):
        f_hat, following = quantizer.accumulate(f_hat, scale, part)
        inputs.append(following)
    torch.testing.assert_close(torch.cat(inputs[:-1], 1), quantizer.next_inputs(data))
    torch.testing.assert_close(f_hat, quantizer.lookup(data))
