"""Sequence mixers: parallel training equals recurrent decoding, states do not grow, and plans that they cannot honour are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Labels, TokenLayout, Tokens
from tokenloom.models.parts.characters import Characters
from tokenloom.models.parts.conditioners.text_features import TextCondition
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets import mamba, mamba2
from tokenloom.models.parts.nets.sequence import Mixer, SequenceNet
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Scales
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Causal, Everything, Groups, Mask, Visibility
from tokenloom.models.zoo.generators.aaren import net as scan_attention
from tokenloom.models.zoo.generators.aim.norm import GroupAdaLN
from tokenloom.models.zoo.generators.aim.recipe import aim
from tokenloom.models.zoo.generators.mvar.net import ScaleNet
from tokenloom.models.zoo.generators.mvar.recipe import mvar
from tokenloom.models.zoo.generators.vir import net as retention
from tokenloom.models.zoo.tokenizers.var_vq import var_vq

LAYOUT = TokenLayout(grids=((4, 5),), vocabulary=11)
PYRAMID = TokenLayout(grids=((1, 1), (2, 2), (3, 3)), vocabulary=11)
WIDTH, ROWS = 16, 3
MIXERS: dict[str, Mixer.Config] = {
    "selective": mamba.Selective.Config(states=4),
    "dual": mamba2.Dual.Config(states=4, head_width=8, chunk=5),
    "retention": retention.Retention.Config(heads=2, chunk=6),
    "scan attention": scan_attention.ScanAttention.Config(heads=4),
}
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def net_of(mixer: Mixer.Config, **changes: Any) -> SequenceNet:
    torch.manual_seed(0)
    # Larger weights than usual, so that branches are not lost beside the residual stream.
    return SequenceNet.Config(width=WIDTH, depth=2, mixer=mixer, std=0.3, position_std=0.3, **changes).build(LAYOUT)


def slots_of(x_BSD: Tensor, start: int = 0) -> Slots:
    index = torch.arange(start, start + x_BSD.shape[1])[None]
    return Slots(x_BSD, index, index - 1, index)


def condition(rows: int = ROWS) -> Conditioned:
    vector = normal(rows, WIDTH, seed=9, dtype=torch.float32)
    return Conditioned(vector[:, None], vector)


@every_mixer
@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [12]], ids=["slot by slot", "blocks", "at once"])
def test_recurrent_form_equals_parallel_form(mixer: Mixer.Config, cuts: list[int]) -> None:
    net, x, cond = net_of(mixer), normal(ROWS, 12, WIDTH, dtype=torch.float32), condition()
    whole = net(slots_of(x), Causal(), cond)
    cache, parts, start = net.cache(ROWS, 12, x), [], 0
    for n in cuts:
        parts.append(net(slots_of(x[:, start : start + n], start), Causal() if n > 1 else Everything(), cond, cache))
        start += n
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-5)


@every_mixer
@torch.no_grad()
def test_nothing_is_seen_of_later_slots_and_all_of_earlier_ones(mixer: Mixer.Config) -> None:
    net, x, cond = net_of(mixer), normal(ROWS, 12, WIDTH, dtype=torch.float32), condition()
    for t in (0, 5, 11):
        other = x.clone()
        other[:, t, 0] += 1
        moved = (net(slots_of(x), Causal(), cond) - net(slots_of(other), Causal(), cond)).abs().amax((0, 2))
        assert float(moved[:t].sum()) == 0
        assert float(moved[t:].min()) > 1e-6


@every_mixer
def test_the_state_does_not_grow(mixer: Mixer.Config) -> None:
    def size(cache: list[Any]) -> list[int]:
        return [t.numel() * t.element_size() for layer in cache for t in layer.tensors.values()]

    net, x = net_of(mixer), normal(ROWS, 12, WIDTH, dtype=torch.float32)
    short, long = net.cache(ROWS, 12, x), net.cache(ROWS, 12_000, x)
    before = size(short)
    held = [t.data_ptr() for layer in short for t in layer.tensors.values()]
    for t in range(12):
        net(slots_of(x[:, t : t + 1], t), Everything(), condition(), short)
    assert size(short) == before == size(long)
    assert held == [t.data_ptr() for layer in short for t in layer.tensors.values()]
    # A transformer's cache does grow, so the comparison means something.
    keys = [Transformer.Config(width=WIDTH, depth=1, heads=2).build(LAYOUT).cache(ROWS, n, x)[0].key_BHTE.numel() for n in (12, 12_000)]
    assert keys[0] * 1000 == keys[1]


@every_mixer
@torch.no_grad()
def test_bfloat16_is_close(mixer: Mixer.Config) -> None:
    net, x, cond = net_of(mixer), normal(ROWS, 12, WIDTH, dtype=torch.float32), condition()
    exact = net(slots_of(x), Causal(), cond)
    with torch.autocast("cpu", torch.bfloat16):
        half, cache = net(slots_of(x), Causal(), cond), net.cache(ROWS, 12, x)
        steps = [net(slots_of(x[:, t : t + 1], t), Everything(), cond, cache) for t in range(12)]
    assert float((half - exact).abs().mean()) < 0.02
    assert float((torch.cat(steps, 1) - exact).abs().mean()) < 0.02


PAIRS = torch.arange(6)[None] // 2


@pytest.mark.parametrize(
    ("visibility", "queries"),
    [
        (Everything(), 0),
        (Mask(torch.ones(1, 6, 6).tril().triu(-2).bool()), 0),
        (Groups(PAIRS, PAIRS), 0),
        (Causal(), 2),
    ],
    ids=["full attention", "window", "groups", "queries"],
)
def test_other_plans_are_refused(visibility: Visibility, queries: int) -> None:
    slots = replace(slots_of(normal(ROWS, 6, WIDTH, dtype=torch.float32)), queries=queries)
    with pytest.raises(ConfigError, match="sequence order"):
        net_of(MIXERS["selective"])(slots, visibility, condition())


def test_slots_are_not_forgotten() -> None:
    net, x = net_of(MIXERS["retention"]), normal(ROWS, 6, WIDTH, dtype=torch.float32)
    cache = net.cache(ROWS, 6, x)
    net(slots_of(x), Causal(), condition(), cache)
    cache[0].truncate(6)
    with pytest.raises(ConfigError, match="forget the last 2"):
        cache[0].truncate(4)


def test_texts_that_may_be_padded_are_refused_at_build() -> None:
    config = replace(aim(depth=1, width=WIDTH, states=2, head_width=8), condition=TextCondition.Config(features=5, length=3))
    with pytest.raises(ConfigError, match=r"padded prefix slots: net .* requires none, condition\.length .* has some"):
        config.build(LAYOUT, 1)
    replace(config, condition=Characters.Config(length=8, prefix="summary")).build(LAYOUT, 1)
    with pytest.raises(ConfigError, match=r"padded prefix slots: .*condition\.prefix"):
        replace(config, condition=Characters.Config(length=8, prefix="all")).build(LAYOUT, 1)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (retention.Retention.Config, {"heads": 5}, "heads=5"),
        (scan_attention.ScanAttention.Config, {"heads": 0}, "heads=0"),
        (mamba.Selective.Config, {"states": 0}, "states=0"),
        (mamba2.Dual.Config, {"states": 0}, "states=0"),
        (mamba2.Dual.Config, {"head_width": 5}, "head_width=5"),
    ],
)
def test_impossible_settings_are_named(kind: type[Mixer.Config], fields: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**fields).build(WIDTH)


def test_blocks_take_turns_over_the_maps() -> None:
    torch.manual_seed(0)
    norm = GroupAdaLN.Config(groups=2).build(WIDTH, 5, 1)
    norm.initialise()
    torch.nn.init.zeros_(norm.offset.weight)
    steer = normal(ROWS, 1, WIDTH, dtype=torch.float32)
    gamma = [norm.modulate(i, steer, norm.shared(steer))[0][0] for i in range(5)]  # type: ignore[index]
    assert torch.equal(gamma[0], gamma[2])
    assert torch.equal(gamma[1], gamma[3])
    assert not torch.allclose(gamma[0], gamma[1])


def scale_net() -> ScaleNet:
    torch.manual_seed(0)
    return ScaleNet.Config(width=WIDTH, depth=1, heads=2, norm=AdaLN.Config(gamma=1.0), std=0.3).build(PYRAMID)


def pyramid_groups() -> Groups:
    scale_BS = PYRAMID.positions[None, :, 1]
    return Groups(scale_BS, scale_BS)


@torch.no_grad()
def test_scales_see_themselves_whole_and_all_smaller_ones() -> None:
    net, x, cond = scale_net(), normal(ROWS, PYRAMID.length, WIDTH, dtype=torch.float32), condition()
    plain = net(slots_of(x), pyramid_groups(), cond)
    for t, scale in enumerate(PYRAMID.positions[:, 1].tolist()):
        other = x.clone()
        other[:, t, 0] += 1
        moved = (net(slots_of(other), pyramid_groups(), cond) - plain).abs().amax((0, 2))
        start = sum(PYRAMID.scale_sizes[:scale])
        assert float(moved[:start].sum()) == 0
        assert float(moved[start:].min()) > 1e-6


def test_scale_after_scale_equals_all_at_once() -> None:
    net, x, cond = scale_net(), normal(ROWS, PYRAMID.length, WIDTH, dtype=torch.float32), condition()
    whole, cache = net(slots_of(x), pyramid_groups(), cond), net.cache(ROWS, PYRAMID.length, x)
    parts, start = [], 0
    for n in PYRAMID.scale_sizes:
        parts.append(net(slots_of(x[:, start : start + n], start), Everything(), cond, cache))
        start += n
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [Scales(window=0), Scales(window=1)])
def test_windows_over_scales_are_refused(order: Scales) -> None:
    torch.manual_seed(0)
    codec = var_vq(scales=(1, 2, 4), codes=8)
    config = replace(mvar(depth=1, width=WIDTH, heads=2, states=2, head_width=8), order=order)
    layout = TokenLayout(grids=((1, 1), (2, 2), (4, 4)), vocabulary=8)
    with pytest.raises(ConfigError, match="whole scales"):
        config.build(layout, 2, codec)
    batch = Batch(tokens=Tokens(torch.zeros((2, 21), dtype=torch.long), layout), conditions=Labels(torch.tensor([0, 1])))
    replace(config, order=Scales()).build(layout, 2, codec).losses(batch, "main", Draws.whole(0, 0, 2))


def test_parts_of_scales_are_refused() -> None:
    net, x, cond = scale_net(), normal(ROWS, PYRAMID.length, WIDTH, dtype=torch.float32), condition()
    with pytest.raises(ConfigError, match="whole scales"):
        net(slots_of(x), Causal(), cond)
    cache = net.cache(ROWS, PYRAMID.length, x)
    net(slots_of(x[:, :1]), Everything(), cond, cache)
    with pytest.raises(ConfigError, match="whole scales"):
        net(slots_of(x[:, 1:4], 1), Everything(), cond, cache)
