"""The models that are sampled, opened: the same code for evaluation, the command line and a server, whatever the kind of signal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.models.core.build import load_model
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Density, Generator, LayoutError, Tokenizer
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.orders import Raster
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.tasks.serving import drafts
from tokenloom.tasks.serving.request import ConditionSpec


@dataclass(frozen=True)
class Pair:
    """A generator with its tokenizer, or a density alone, the sampler to use, the conditions that it takes, and the kind of signal."""

    generator: Generator | Density
    tokenizer: Tokenizer | None
    sampler: Sampler
    condition_spec: ConditionSpec
    kind: str = "image"  # of the signal
    shape: tuple[int, ...] = ()  # of the signal, channels first
    known: Mapping[str, Any] = field(default_factory=dict)  # what the kind keeps of the data in ``serving.json``

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
            return replace(self, generator=self.generator.sampled(**changes))
        sampler = self.sampler.edited(**changes)
        self.generator.check_sampler(sampler)
        return replace(self, sampler=sampler)


def sized(pair: Pair, shape: tuple[int, int], title: str = "this model") -> Pair:
    """The same models for images of another shape (rows, columns); the weights are shared.

    Raises:
        ConfigError: one of them is bound to the shape that it was trained on, with the reason.
    """
    size, own = f"size={shape[0]}x{shape[1]}", pair.shape[1:]
    if shape == own:
        return pair
    if pair.kind != "image" or isinstance(pair.generator, Density) or pair.tokenizer is None:
        raise ConfigError(f"{size}: {title} models whole signals of the shape {tuple(own) or 'of its data'}, and has no other")
    if pair.condition_spec.columns:
        raise ConfigError(f"{size}: {title} takes columns of its data ({', '.join(pair.condition_spec.columns)}), which have its own size")
    try:
        tokenizer = pair.tokenizer.sized(shape)
        quantizer = getattr(getattr(tokenizer, "config", None), "quantizer", None)
        generator = pair.generator.on(tokenizer.layout.grids, quantizer)
        generator.check_sampler(pair.sampler)
    except (ConfigError, LayoutError) as error:
        raise ConfigError(f"{size}: {title} draws images of {own[0]}x{own[1]} alone: {error}") from error
    return replace(pair, generator=generator, tokenizer=tokenizer, shape=(pair.shape[0], *shape))


def check_prefix(pair: Pair, prefix: int | None, title: str = "this model") -> None:
    """Refuse a number of first tokens that cannot be decoded alone; raises ``ConfigError``."""
    if prefix is None:
        return
    if not isinstance(pair.tokenizer, FlowTokenizer):
        raise ConfigError(
            f"prefix={prefix}: the tokens of {title} are no sequence of which the first ones are an image (FlexTok's, D-AR's are)"
        )
    pair.tokenizer.check_prefix(prefix)
    if not (isinstance(pair.generator, GroupGenerator) and isinstance(pair.generator.order, Raster) and pair.sampler.decoder is None):
        raise ConfigError(f"prefix={prefix}: {title} does not draw its tokens one after another, so the first ones are not there first")


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
        return Pair(cast(Density, loaded), None, Sampler(), ConditionSpec.of(spec, classes, texts), spec.given["signal"]["kind"])
    encoder, made_for = load_model(tokenizer, device)
    g, t = cast(Generator, loaded), cast(Tokenizer, encoder)
    t.layout.check(g.layout)
    if draft is not None:
        use_draft_model(g, cast(Generator, load_model(draft, device)[0]), drafts.field(sample or {}))
    signal = made_for.given["signal"]
    kind, shape = signal["kind"], (signal["channels"], *signal["shape"])
    return Pair(g, t, default_sampler(g).edited(**(sample or {})), ConditionSpec.of(spec, classes, texts), kind, shape)


def open_bundle(folder: Path, device: str = "cpu") -> Pair:
    """The models of a registered version: ``generator/`` and ``tokenizer/`` (and ``draft/``), or ``density/``, and ``serving.json``."""
    serving = json.loads((folder / "serving.json").read_text())
    alone = (folder / "density").is_dir()
    model, tokenizer = (folder / "density", None) if alone else (folder / "generator", folder / "tokenizer")
    draft = folder / "draft"
    given = serving["classes"], serving["sample"], device, serving.get("texts", ())
    return replace(open_pair(model, tokenizer, *given, draft if draft.is_dir() else None), known=serving)


def use_draft_model(generator: Generator, draft: Generator, where: str = drafts.FIELD) -> None:
    """Let one generator draft for another; ``where`` is the field that names it, for messages.

    Raises:
        ConfigError: it is for other tokens, or one of the two is no model of groups.
    """
    if not (isinstance(generator, GroupGenerator) and isinstance(draft, GroupGenerator)):
        odd = draft if isinstance(generator, GroupGenerator) else generator
        raise ConfigError(f"{where}: {type(odd).__name__} does not decode token by token, so neither drafts nor is drafted for")
    try:
        generator.layout.check(draft.layout)
    except LayoutError as error:
        raise ConfigError(f"{where}: the draft model is for other tokens: {error}") from error
    generator.use_draft_model(draft)


def default_sampler(generator: Generator) -> Sampler:
    """The recipe's own sampler; plain sampling where it has none."""
    return cast(Sampler, getattr(generator, "sampler", None) or Sampler())


def spread(n: int, classes: int) -> NDArray[np.int64]:
    """``n`` labels in turn over all classes, so that every class has as many as any other, or one more.

    Data without classes (0) have the null class alone, which is 0 there.
    """
    return np.arange(n, dtype=np.int64) % max(1, classes)
