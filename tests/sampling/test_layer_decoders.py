"""Ways to decode with fewer layers: with none left out they are the generator's own; which are run is what they say."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import cast

import pytest
import torch
from small_generators import grid, small
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.mlp import MLP
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.layers.ffn_skip import FFNSkip
from tokenloom.models.sampling.decoders.layers.skip_decode import SkipDecode

ROWS = 4


@cache
def model() -> GroupGenerator:
    return cast(GroupGenerator, small("raster", grid(3), depth=4, scale=0.3))


def sampled(decoder: Decoder | None, rows: slice = slice(0, ROWS)) -> tuple[Tensor, list[int], list[int]]:
    """Tokens, and how often each layer's attention and MLP were run."""
    made, calls = model(), ([0] * 4, [0] * 4)
    hooks = []
    for kind, layers in enumerate((made.net.attention, made.net.mlp)):  # type: ignore[arg-type]
        for i, layer in enumerate(cast("list[MLP]", layers)):

            def note(_m: object, _i: object, _o: object, kind: int = kind, i: int = i) -> None:
                calls[kind][i] += 1

            hooks.append(layer.register_forward_hook(note))
    sampler = replace(made.sampler, decoder=decoder)
    made.check_sampler(sampler)
    tokens = made.generate(Labels((torch.arange(ROWS) % 3)[rows]), sampler, SampleDraws.of(1, rows.start, rows.stop))
    for hook in hooks:
        hook.remove()
    return tokens.ids, *calls


@pytest.mark.parametrize("decoder", [SkipDecode(), FFNSkip(alike=2.0)], ids=lambda d: d.name)
def test_nothing_left_out_is_the_generator(decoder: Decoder) -> None:
    assert torch.equal(sampled(decoder)[0], sampled(None)[0])


def test_layers_are_left_out_in_a_line_from_below_the_middle() -> None:
    ids, attention, mlp = sampled(SkipDecode(least=2))
    # Nine steps of 4 to 2 layers, rounded: 4 4 4 3 3 3 2 2 2; the first and the last are always run.
    assert attention == mlp == [9, 3, 6, 9] or attention == mlp == [9, 2, 7, 9]
    assert not torch.equal(ids, sampled(None)[0])
    assert torch.equal(sampled(SkipDecode(least=2), slice(2, 3))[0][0], ids[2])


def test_mlps_of_the_middle_are_left_out_alone() -> None:
    ids, attention, mlp = sampled(FFNSkip(alike=-1.0))
    assert attention == [9] * 4
    assert mlp == [9, 9, 1, 9]  # the first of the middle decides, from the second step on
    assert not torch.equal(ids, sampled(None)[0])


def test_a_token_skips_by_itself() -> None:
    ids = sampled(FFNSkip(alike=0.9, first=0, last=0))[0]
    assert int((sampled(FFNSkip(alike=0.9, first=0, last=0), slice(2, 3))[0][0] != ids[2]).sum()) <= 1


def test_a_recurrent_net_refuses() -> None:
    aim = cast(GroupGenerator, small("aim", grid(2)))
    for decoder in (SkipDecode(least=1), FFNSkip()):
        with pytest.raises(ConfigError, match=rf"^sample\.decoder={decoder.name}: the net .* is no plain transformer"):
            aim.check_sampler(replace(aim.sampler, decoder=decoder))
