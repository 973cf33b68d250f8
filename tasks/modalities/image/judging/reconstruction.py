"""Numbers about a tokenizer: how good, how small and how fast its codes are, and how evenly they are used.

Shapes: M images, H W C rows, columns, channels; B batch, L tokens, Q codebooks, K codes, S groups (a scale, a codebook, or both).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenloom.models.core.protocols import Tokenizer, TokenLayout, Tokens
from tokenloom.tasks.data.arrays import scratch
from tokenloom.tasks.evaluation import metrics
from tokenloom.tasks.modalities.image.judging import features, pixels
from tokenloom.tasks.modalities.image.judging.network import Network
from tokenloom.tasks.modalities.image.judging.statistics import Statistics
from tokenloom.tasks.modalities.image.served.draw import to_uint8

Images = NDArray[np.uint8]
Numbers = dict[str, float]
LATENT_BITS = 16  # of one number of a continuous latent: they are kept as float16
_LARGEST = 1 << 20  # codes that are counted one by one


@dataclass(frozen=True)
class Coded:
    """Images through a tokenizer: reconstructions (M, H, W, C) uint8, the tokens batch by batch, images a second each way."""

    image: Images
    tokens: list[Tokens]
    encoded_per_second: float = 0.0
    decoded_per_second: float = 0.0

    @property
    def layout(self) -> TokenLayout:
        """Layout of the tokens."""
        return self.tokens[0].layout


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; one without tensors is at home everywhere."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


@torch.no_grad()
def code(tokenizer: Tokenizer, image_NHWC: Images, batch: int = 100, folder: Path | None = None) -> Coded:
    """Encode and decode images, and time it after one small batch to warm up; many reconstructions lie in a file in ``folder``."""
    device = device_of(tokenizer)
    tokenizer.decode(tokenizer.encode(features.to_float(image_NHWC[:4]).to(device)))
    tokens, images = list[Tokens](), np.zeros(image_NHWC.shape, np.uint8) if folder is None else scratch(folder, image_NHWC.shape, np.uint8)
    encoding = decoding = 0.0
    for start in range(0, len(image_NHWC), batch):
        image_BCHW = features.to_float(image_NHWC[start : start + batch]).to(device)
        began = _now(device)
        coded = tokenizer.encode(image_BCHW)
        between = _now(device)
        decoded_BCHW = tokenizer.decode(coded)
        encoding, decoding = encoding + between - began, decoding + _now(device) - between
        tokens.append(coded)
        images[start : start + batch] = to_uint8(decoded_BCHW)
    rows = len(image_NHWC)
    return Coded(images, tokens, rows / max(encoding, 1e-9), rows / max(decoding, 1e-9))


def through(tokenizer: Tokenizer) -> Callable[[Images], Images]:
    """A tokenizer as a function from images to their reconstructions."""
    return lambda image: code(tokenizer, image).image


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reconstruction_scores(network: Network, real: Statistics, image: Images, coded: Coded, rows: int = 1024) -> Numbers:
    """``rfd_*`` or ``rfid``, PSNR, SSIM and detail of reconstructions, summed up so many ``rows`` at a time.

    Args:
        real: what the network tells of the images.
    """
    fake = Statistics.streamed(network.blocks(coded.image, rows), keep=False)
    result = {network.metric("rfd"): metrics.frechet_distance(*real.moments, *fake.moments)}
    blocks = [(image[start : start + rows], coded.image[start : start + rows]) for start in range(0, len(image), rows)]
    result["psnr"] = sum(len(x) * pixels.psnr(x, y) for x, y in blocks) / len(image)
    if min(image.shape[1:3]) >= 11:
        result["ssim"] = sum(len(x) * pixels.ssim(x, y) for x, y in blocks) / len(image)
    result["detail"] = pixels.decibels(*np.sum([pixels.detail_powers(x, y) for x, y in blocks], axis=0))
    return result


def cost_scores(coded: Coded) -> Numbers:
    """What an image costs: tokens and bits (before any entropy coding), and images a second each way in this process.

    Bits are tokens x codebooks x log2(vocabulary), or tokens x channels x 16 for latents.  Ragged rows count their valid tokens.
    """
    layout = coded.layout
    length = float(np.mean([n for t in coded.tokens for n in valid_B(t).tolist()]))
    each = layout.codebooks * math.log2(layout.vocabulary) if layout.discrete else layout.channels * LATENT_BITS
    return {
        "tokens_per_image": length,
        "bits_per_image": length * each,
        "encoded_per_second": coded.encoded_per_second,
        "decoded_per_second": coded.decoded_per_second,
    }


def valid_B(tokens: Tokens) -> Tensor:
    """Valid tokens of each row (B,)."""
    rows, length = tokens.data.shape[:2]
    return torch.full((rows,), length) if tokens.lengths is None else tokens.lengths.cpu()


def code_counts(tokens: list[Tokens]) -> tuple[NDArray[np.int64], list[str]]:
    """How often every code occurs, one row a scale and codebook: (S, K), and the rows' names; (0, 0) for latents.

    Padding of ragged rows is not counted.
    """
    layout = tokens[0].layout
    if not layout.discrete or layout.vocabulary > _LARGEST:
        return np.zeros((0, 0), np.int64), []
    scale_L, books = layout.positions[:, 1], layout.codebooks
    counts = np.zeros((len(layout.grids) * books, layout.vocabulary), np.int64)
    for part in tokens:
        ids = part.ids.cpu()
        ids_BLQ = ids if ids.ndim == 3 else ids[..., None]
        length = ids_BLQ.shape[1]
        valid_BL = torch.arange(length)[None] < valid_B(part)[:, None]
        for s in range(len(layout.grids)):
            here_BL = valid_BL & (scale_L[:length] == s)
            for q in range(books):
                counts[s * books + q] += torch.bincount(ids_BLQ[..., q][here_BL], minlength=layout.vocabulary).numpy()
    names = [
        (f"{h}x{w}" if books == 1 or len(layout.grids) > 1 else "") + (f" book {q}" if books > 1 else "")
        for h, w in layout.grids
        for q in range(books)
    ]
    return counts, [name.strip() for name in names]


def codebook_scores(count_SK: NDArray[np.int64], books: int = 1) -> Numbers:
    """Use and perplexity over all, and of each scale and codebook.

    Scales share their codes, so their counts add up; codes of different codebooks are different codes, so over all of them use is
    the mean and perplexity the geometric mean.
    """
    if not len(count_SK):
        return {}
    scales = len(count_SK) // books
    whole_QK = count_SK.reshape(scales, books, -1).sum(axis=0)
    spread = [metrics.perplexity(count) for count in whole_QK]
    result = {
        "codebook_use": float(np.mean([metrics.usage(count) for count in whole_QK])),
        "codebook_perplexity": float(np.exp(np.log(np.maximum(spread, 1e-300)).mean())) if min(spread) > 0 else 0.0,
    }
    if len(count_SK) > 1:
        for i, count in enumerate(count_SK):
            name = "_".join(([f"scale_{i // books}"] if scales > 1 else []) + ([f"book_{i % books}"] if books > 1 else []))
            result |= {f"codebook_use_{name}": metrics.usage(count), f"codebook_perplexity_{name}": metrics.perplexity(count)}
    return result
