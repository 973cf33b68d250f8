"""Tokens whose codebooks differ in size: nothing outside a codebook is drawn, and each sub-token has its own guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.open_magvit2.head import SubTokens
from tokenloom.models.zoo.generators.open_magvit2.recipe import open_magvit2

LAYOUT = TokenLayout(grids=((3, 3),), vocabulary=16, codebooks=3, vocabularies=(4, 16, 2))


def model(seed: int = 0) -> GroupGenerator:
    torch.manual_seed(seed)
    made = open_magvit2(depth=1, width=16, heads=2, inner=1, classes=3, dropout=0.0).build(LAYOUT, 3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def test_only_ids_that_exist_are_drawn() -> None:
    tokens = model().generate(Labels(torch.zeros(64, dtype=torch.long)), Sampler(guidance=Constant(value=2.0)), SampleDraws.of(1, 0, 64))
    assert tokens.ids.long().amax((0, 1)).tolist() == [3, 15, 1]


def test_the_loss_is_that_of_each_vocabulary_alone() -> None:
    made = model()
    with torch.no_grad():
        for out in cast(torch.nn.ModuleList, made.head.out):
            out.weight.zero_()
    ids = torch.stack([torch.randint(size, (2, 9)) for size in LAYOUT.codebook_sizes], -1)
    batch = Batch(tokens=Tokens(ids, LAYOUT), conditions=Labels(torch.tensor([0, 2])))
    loss = made.losses(batch, "main", Draws.whole(0, 0, 2))["loss"]
    # Of logits that are all alike: log 4 + log 16 + log 2 nats a token.
    assert loss.item() == pytest.approx(torch.tensor(128.0).log().item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_guidance_is_shared_out_among_the_sub_tokens() -> None:
    made, labels = model(), Labels(torch.tensor([0, 1]))

    def logits(sampler: Sampler) -> torch.Tensor:
        ids = torch.zeros(2, 9, 3, dtype=torch.long)
        return torch.cat([step.logits for step in made.decode_steps(labels, sampler, SampleDraws.of(0, 0, 2), forced=ids)], 1)  # type: ignore[misc]

    off, full, own = (
        logits(Sampler(guidance=Constant(value=weight), head=head))
        for weight, head in ((0.0, None), (2.0, None), (2.0, SubTokens(guidance=(0.0, 0.5, 1.0))))
    )
    torch.testing.assert_close(own[:, :, 0, :4], off[:, :, 0, :4])
    torch.testing.assert_close(own[:, :, 1], (off + full)[:, :, 1] / 2)
    torch.testing.assert_close(own[:, :, 2, :2], full[:, :, 2, :2])
    assert not torch.allclose(off[:, :, 1], full[:, :, 1], atol=1e-2)


def test_a_wrong_number_of_sub_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sample\.head\.guidance=\[1\.0\]: must be one for each of 3 sub-tokens"):
        model().check_sampler(replace(Sampler(), head=SubTokens(guidance=(1.0,))))
