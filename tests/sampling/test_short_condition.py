"""A draft model that sees a shorter condition: the condition it sees, and samples that stay the generator's."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, cast

import pytest
import torch
from enumerable import CODES, LAYOUT, LENGTH, surprise

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import TextFeatures
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditioners.text_features import TextCondition
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.sampling.decoders.spec_vlm import SpecVLM, compressed
from tokenloom.models.sampling.sampler import Sampler

WORDS, WIDTH = 6, 5


def reader(seed: int) -> GroupGenerator:
    """A tiny raster model of texts, whose tokens depend on each other."""
    config = cast(GroupGenerator.Config, registry.get("raster").config(dict(registry.get("raster").tiny)))
    torch.manual_seed(seed)
    model = replace(config, condition=TextCondition.Config(features=WIDTH, length=WORDS)).build(LAYOUT, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn(p.shape))
    return cast(GroupGenerator, model.eval())


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_samples_have_the_distribution_of_the_generator(share: float) -> None:
    model, rows = reader(1), 1200
    model.use_draft_model(reader(2))
    feature = torch.randn(1, WORDS, WIDTH, generator=torch.Generator().manual_seed(0))
    left = torch.tensor([[False, False, True, True, True, True]])

    def text(count: int) -> TextFeatures:
        return TextFeatures(feature.expand(count, -1, -1), left.expand(count, -1))

    every = torch.tensor(list(product(range(CODES), repeat=LENGTH)))
    plan = model.order.decode(LAYOUT, len(every), SampleDraws.of(0, 0, len(every)))
    log_p = cast(Any, model.head).logits(model(every, text(len(every)), plan)).log_softmax(-1)
    p = log_p.gather(-1, every.unsqueeze(-1)).squeeze(-1).sum(1).double().exp()
    sampler = Sampler(decoder=SpecVLM(window=2, slots=2, share=share))
    model.check_sampler(sampler)
    ids = model.generate(text(rows), sampler, SampleDraws.of(5, 0, rows)).ids
    assert surprise(ids, every, p) < 1


def test_what_is_left_of_a_condition() -> None:
    x = torch.tensor([[[3.0], [0.0], [1.0], [1.0]], [[1.0], [1.0], [2.0], [2.0]]])
    seen = torch.tensor([[True, True, True, True], [False, True, True, True]])
    made = compressed(Conditioned(x, x[:, 0], seen), 2, 0.9)
    # The first row's longest two slots hold 10 of 11, the second row's 8 of 9, of slots that are seen.
    assert made.prefix_BPD.flatten(1).tolist() == [[3.0, 1.0], [1.0, 2.0]]
    assert made.seen_BP is not None
    assert bool(made.seen_BP.all())
    pruned = compressed(Conditioned(x, x[:, 0], seen), 2, 0.5)
    assert pruned.prefix_BPD.flatten(1).tolist() == [[3.0, 1.0], [2.0, 2.0]]


def test_a_condition_that_is_short_is_not_shortened() -> None:
    model = reader(1)
    model.use_draft_model(reader(2))
    with pytest.raises(ConfigError, match=r"^sample\.decoder=spec_vlm: the draft model's condition has 6 slots"):
        model.check_sampler(Sampler(decoder=SpecVLM(slots=6)))
