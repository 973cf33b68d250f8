"""Ways to decode scale after scale: with their full budget they are the generator's own, and what they leave out stays within bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any, cast

import pytest
import torch
from small_generators import small
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.visibility import Everything
from tokenloom.models.sampling import budget
from tokenloom.models.sampling.budget import BudgetCache, LowRankCache
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.scales.code import CoDe
from tokenloom.models.sampling.decoders.scales.hack import HACK
from tokenloom.models.sampling.decoders.scales.low_rank import LowRankAttention
from tokenloom.models.sampling.decoders.scales.scale_kv import ScaleKV
from tokenloom.models.sampling.decoders.scales.stage_var import StageVAR
from tokenloom.models.sampling.trace import Trace

LAYOUT, ROWS = TokenLayout(grids=((1, 1), (2, 2), (4, 4)), vocabulary=16), 6


@cache
def model() -> GroupGenerator:
    made = cast(GroupGenerator, small("var", LAYOUT, codec="var_vq", scale=0.3))
    made.use_draft_model(made)
    return made


def sampled(decoder: Decoder | None, rows: slice = slice(0, ROWS)) -> tuple[Tensor, Trace]:
    made = model()
    sampler = replace(made.sampler, decoder=decoder)
    made.check_sampler(sampler)
    labels = Labels((torch.arange(ROWS) % 3)[rows])
    tokens, trace = made.decode(labels, sampler, SampleDraws.of(1, rows.start, rows.stop))
    return tokens.ids, trace


FULL = [CoDe(drafts=2), CoDe(drafts=3), StageVAR(unguided=3), ScaleKV(budget=1.0), HACK(budget=1.0), LowRankAttention(norm=0.0)]
CUT = [StageVAR(unguided=1), ScaleKV(budget=0.2), HACK(budget=0.2)]


@pytest.mark.parametrize("decoder", FULL, ids=lambda d: d.name)
def test_the_full_budget_is_the_generator(decoder: Decoder) -> None:
    # Another kernel may round a number across the border of two codes, once in many thousand tokens.
    assert int((sampled(decoder)[0] != sampled(None)[0]).sum()) <= 1


@pytest.mark.parametrize("decoder", CUT, ids=lambda d: d.name)
def test_less_is_something_else_and_no_matter_of_the_batch(decoder: Decoder) -> None:
    ids = sampled(decoder)[0]
    assert not torch.equal(ids, sampled(None)[0])
    assert int((sampled(decoder, slice(2, 3))[0][0] != ids[2]).sum()) <= 1


def test_the_second_model_takes_in_what_is_drawn_by_one_call() -> None:
    trace = sampled(CoDe(drafts=1))[1]
    assert trace.calls == {"net": 1, "draft": 3}
    assert trace.tokens == LAYOUT.length


def test_generators_without_scales_refuse() -> None:
    raster = cast(GroupGenerator, small("raster", TokenLayout(grids=((2, 2),), vocabulary=8)))
    for decoder in (*FULL, *CUT):
        with pytest.raises(ConfigError, match=rf"^sample\.decoder={decoder.name}: the order .* does not decode whole scales"):
            raster.check_sampler(replace(raster.sampler, decoder=decoder))
    with pytest.raises(ConfigError, match="drafts=9, and it has 3 scales"):
        model().check_sampler(replace(model().sampler, decoder=CoDe(drafts=9)))


def test_caches_without_masks_refuse_conditions_that_may_be_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model().condition), "prefix", 3)
    for decoder in (ScaleKV(), HACK(), LowRankAttention()):
        with pytest.raises(ConfigError, match="has 3 slots, and those that are padding would be attended to"):
            model().check_sampler(replace(model().sampler, decoder=decoder))


# --- caches --------------------------------------------------------------------------------------------------------


def filled(kind: Any, size: float, **fields: Any) -> tuple[LayerCache, Tensor, Tensor]:
    """A cache that has been asked, what it said, and what attention says: (B, S, D) each."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (size * torch.randn(2, 3, 9, 4, generator=draw) for _ in range(3))
    like = q[:, 0, 0]
    made, plain = kind(2, 3, 9, 4, like, **fields), LayerCache(2, 3, 9, 4, like)
    return made, made.attend(q, k, v, Everything(), 0.5), plain.attend(q, k, v, Everything(), 0.5)


def test_what_is_kept_is_what_was_attended_to_most() -> None:
    cache, said, true = filled(BudgetCache, 1.0)
    torch.testing.assert_close(said, true)
    layer = cast(BudgetCache, cache)
    score = layer.attention(9).mean(2)
    torch.testing.assert_close(score.sum(-1), torch.ones(2, 3))
    keys, count = layer.key_BHTE, torch.tensor([[2, 5, 9], [1, 1, 3]])
    layer.keep(score, count)
    assert layer.alive_BHT.sum(-1).tolist() == count.tolist()
    for row, head in ((0, 0), (1, 2), (0, 1)):
        best = score[row, head].topk(int(count[row, head])).indices.sort().values
        assert torch.equal(layer.key_BHTE[row, head][layer.alive_BHT[row, head]], keys[row, head][best])


@pytest.mark.parametrize(("size", "degree"), [(0.2, 2), (0.3, 2), (0.35, 4)])
def test_low_rank_attention_is_within_its_bound(size: float, degree: int) -> None:
    cache, near, true = filled(LowRankCache, size, degree=degree, norm=1e6)
    layer = cast(LowRankCache, cache)
    assert layer.reached_BH is not None
    reach = float(layer.reached_BH.max())
    off = math.exp(2 * reach) * reach ** (degree + 1) / math.factorial(degree + 1)
    assert off < 1, "a bound that says nothing shows nothing"
    error = float((near - true).abs().max())
    assert 0 < error <= 2 * off / (1 - off) * float(layer.value_BHTE.abs().max())


def test_where_scores_are_too_large_attention_is_exact() -> None:
    _, said, true = filled(LowRankCache, 2.0, degree=2, norm=0.1)
    torch.testing.assert_close(said, true)
    assert not torch.allclose(filled(LowRankCache, 2.0, degree=2, norm=1e6)[1], true, atol=1e-2)


def test_features_are_the_polynomial() -> None:
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    dot = (x * y).sum(-1)
    torch.testing.assert_close((budget.features(x, 3) * budget.features(y, 3)).sum(-1), 1 + dot + dot**2 / 2 + dot**3 / 6)
