"""Sampling images from a generator and its tokenizer: the same code for evaluation, the command line and a server.

Shapes: N images, H W rows and columns, C channels.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.models.core.build import load_model
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Density, Generator, Labels, LayoutError, Tokenizer
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.serving import drafts
from tokenloom.tasks.serving.request import ConditionSpec, Request

SHARD = 250  # images sampled at once


@dataclass(frozen=True)
class Pair:
    """A generator with its tokenizer, or a density alone, the sampler to use, and the conditions that it takes."""

    generator: Generator | Density
    tokenizer: Tokenizer | None
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

    def edited(self, **changes: Any) -> Pair:
        """The same models with another sampler (``Sampler.edited``); None leaves a setting as it is.

        Raises:
            ConfigError: a value out of range, or a setting that the model cannot follow.
        """
        if isinstance(self.generator, Density):
            if given := [name for name, value in changes.items() if value is not None]:
                raise ConfigError(f"{given[0]}: a density is sampled as it is and has no such setting; leave it out")
            return self
        sampler = self.sampler.edited(**changes)
        self.generator.check_sampler(sampler)
        return replace(self, sampler=sampler)


def open_pair(
    generator: Path,
    tokenizer: Path | None,
    classes: Sequence[str],
    sample: dict[str, Any] | None = None,
    device: str = "cpu",
    texts: Sequence[str] = (),
    draft: Path | None = None,
) -> Pair:
    """Load both models, or a density (without a tokenizer); ``sample`` holds what is changed of the recipe's own sampler.

    ``draft`` is the model that drafts for the generator in speculative decoding.

    Raises:
        ConfigError: a sampling value out of range, or a generator that no model can draft for.
        LayoutError: the models do not belong together.
    """
    loaded, spec = load_model(generator, device)
    if tokenizer is None:
        return Pair(cast(Density, loaded), None, Sampler(), ConditionSpec.of(spec, classes, texts))
    g, t = cast(Generator, loaded), cast(Tokenizer, load_model(tokenizer, device)[0])
    t.layout.check(g.layout)
    if draft is not None:
        use_draft_model(g, cast(Generator, load_model(draft, device)[0]))
    return Pair(g, t, default_sampler(g).edited(**(sample or {})), ConditionSpec.of(spec, classes, texts))


def open_bundle(folder: Path, device: str = "cpu") -> Pair:
    """The models of a registered version: ``generator/`` and ``tokenizer/`` (and ``draft/``), or ``density/``, and ``serving.json``."""
    serving = json.loads((folder / "serving.json").read_text())
    alone = (folder / "density").is_dir()
    model, tokenizer = (folder / "density", None) if alone else (folder / "generator", folder / "tokenizer")
    draft = folder / "draft"
    given = serving["classes"], serving["sample"], device, serving.get("texts", ())
    return open_pair(model, tokenizer, *given, draft if draft.is_dir() else None)


def use_draft_model(generator: Generator, draft: Generator) -> None:
    """Let one generator draft for another.

    Raises:
        ConfigError: it is for other tokens, or one of the two is no model of groups.
    """
    if not (isinstance(generator, GroupGenerator) and isinstance(draft, GroupGenerator)):
        odd = draft if isinstance(generator, GroupGenerator) else generator
        raise ConfigError(f"{drafts.FIELD}: {type(odd).__name__} does not decode token by token, so neither drafts nor is drafted for")
    try:
        generator.layout.check(draft.layout)
    except LayoutError as error:
        raise ConfigError(f"{drafts.FIELD}: the draft model is for other tokens: {error}") from error
    generator.use_draft_model(draft)


def default_sampler(generator: Generator) -> Sampler:
    """The recipe's own sampler; plain sampling where it has none."""
    return cast(Sampler, getattr(generator, "sampler", None) or Sampler())


def spread(n: int, classes: int) -> NDArray[np.int64]:
    """``n`` labels in turn over all classes, so that every class has as many as any other, or one more.

    Data without classes (0) have the null class alone, which is 0 there.
    """
    return np.arange(n, dtype=np.int64) % max(1, classes)


def sample_images(
    generator: Generator | Density,
    tokenizer: Tokenizer | None,
    request: NDArray[np.int64] | Conditions,
    sampler: Sampler,
    seed: int,
    start: int = 0,
) -> NDArray[np.uint8]:
    """Images alone of ``traced_images``."""
    return traced_images(generator, tokenizer, request, sampler, seed, start)[0]


@torch.no_grad()
def traced_images(
    generator: Generator | Density,
    tokenizer: Tokenizer | None,
    request: NDArray[np.int64] | Conditions,
    sampler: Sampler,
    seed: int,
    start: int = 0,
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Images (N, H, W, C) uint8 of these labels (N,), or of this condition: the samples from number ``start`` on of a request.

    Each one is a function of its label or condition, the request's seed and its number: how the request is cut into batches, or
    which worker draws it, changes nothing.

    Values are ``round((x + 1) * 127.5)`` of the decoder's output in [-1, 1].  Beside them stand the numbers of the decoding's trace,
    where the generator keeps one.
    """
    device = next(generator.parameters()).device
    conditions = Conditions.of(Labels(torch.tensor(request, dtype=torch.int64))) if isinstance(request, np.ndarray) else request
    draws = SampleDraws.of(seed, start, start + conditions.rows, device)
    if isinstance(generator, Density):
        return to_uint8(generator.sample(conditions.to(device), draws)), {}
    assert tokenizer is not None, "a generator's tokens need their tokenizer"
    if not isinstance(generator, GroupGenerator):
        return to_uint8(tokenizer.decode(generator.generate(conditions.to(device), sampler, draws))), {}
    tokens, trace = generator.decode(conditions.to(device), sampler, draws)
    return to_uint8(tokenizer.decode(tokens)), trace.numbers()


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
