"""Sampling images from a generator and its tokenizer: the same code for evaluation, the command line and a server.

Shapes: N images, H W rows and columns, C channels.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.models.core.build import load_model
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Generator, Labels, Tokenizer
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.serving.request import ConditionSpec, Request

SHARD = 250  # images sampled at once


@dataclass(frozen=True)
class Pair:
    """A generator with its tokenizer, the sampler to use, and the conditions that it takes."""

    generator: Generator
    tokenizer: Tokenizer
    sampler: Sampler
    condition_spec: ConditionSpec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.condition_spec.classes

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return next(self.generator.parameters()).device


def open_pair(
    generator: Path,
    tokenizer: Path,
    classes: Sequence[str],
    sample: dict[str, Any] | None = None,
    device: str = "cpu",
    texts: Sequence[str] = (),
) -> Pair:
    """Load both models; ``sample`` holds what is changed of the recipe's own sampler (``Sampler.edited``).

    Raises:
        ConfigError: a sampling value out of range.
        LayoutError: the two do not belong together.
    """
    (loaded, spec), t = load_model(generator, device), cast(Tokenizer, load_model(tokenizer, device)[0])
    g = cast(Generator, loaded)
    t.layout.check(g.layout)
    return Pair(g, t, default_sampler(g).edited(**(sample or {})), ConditionSpec.of(spec, classes, texts))


def open_bundle(folder: Path, device: str = "cpu") -> Pair:
    """The pair of a registered model: ``generator/``, ``tokenizer/`` and ``serving.json``."""
    serving = json.loads((folder / "serving.json").read_text())
    return open_pair(folder / "generator", folder / "tokenizer", serving["classes"], serving["sample"], device, serving.get("texts", ()))


def default_sampler(generator: Generator) -> Sampler:
    """The recipe's own sampler; plain sampling where it has none."""
    return cast(Sampler, getattr(generator, "sampler", None) or Sampler())


def spread(n: int, classes: int) -> NDArray[np.int64]:
    """``n`` labels in turn over all classes, so that every class has as many as any other, or one more.

    Data without classes (0) have the null class alone, which is 0 there.
    """
    return np.arange(n, dtype=np.int64) % max(1, classes)


@torch.no_grad()
def sample_images(
    generator: Generator, tokenizer: Tokenizer, request: NDArray[np.int64] | Conditions, sampler: Sampler, seed: int, start: int = 0
) -> NDArray[np.uint8]:
    """Images (N, H, W, C) uint8 of these labels (N,), or of this condition: the samples from number ``start`` on of a request.

    Each one is a function of its label or condition, the request's seed and its number: how the request is cut into batches, or
    which worker draws it, changes nothing.

    Values are ``round((x + 1) * 127.5)`` of the decoder's output in [-1, 1].
    """
    device = next(generator.parameters()).device
    conditions = Conditions.of(Labels(torch.tensor(request, dtype=torch.int64))) if isinstance(request, np.ndarray) else request
    draws = SampleDraws.of(seed, start, start + conditions.rows, device)
    tokens = generator.generate(conditions.to(device), sampler, draws)
    return to_uint8(tokenizer.decode(tokens))


def sample_shards(pair: Pair, request: Request, seed: int, rows: int = SHARD) -> NDArray[np.uint8]:
    """Images of any number of labels or texts, ``rows`` at a time; the answer depends on the request and the seed alone."""
    pair.condition_spec.check(request)
    parts = []
    for start in range(0, len(request), rows):
        conditions = pair.condition_spec.conditions(request[start : start + rows])
        parts.append(sample_images(pair.generator, pair.tokenizer, conditions, pair.sampler, seed, start))
    return np.concatenate(parts)


def to_uint8(image_NCHW: torch.Tensor) -> NDArray[np.uint8]:
    """Images in [-1, 1] to bytes (N, H, W, C): ``round((x + 1) * 127.5)``, clipped."""
    x = ((image_NCHW.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def png_base64(image_HWC: NDArray[np.uint8]) -> str:
    """One image as PNG in base64 text."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
