"""Laws of parts that no sample shows at once: initial sizes, ceilings, rates that grow with depth, noise levels, weights of losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Labels, TokenLayout, Tokens
from tokenloom.models.generators.noising import Uniform
from tokenloom.models.parts.decoders.flow import NEAREST, Flow
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.similarity import CosineSimilarity
from tokenloom.models.parts.visibility import Everything
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.models.zoo.generators.coarse_to_fine.module import CoarseToFine
from tokenloom.models.zoo.tokenizers.layton.decoder import RHO, SMALLEST, Consistency

WIDTH, SLOTS = 16, 5
LAYOUT = TokenLayout(grids=((1, SLOTS),), vocabulary=4)
PLACE = torch.arange(SLOTS)[None]


def transformer(seed: int = 0, **options: Any) -> Transformer:
    torch.manual_seed(seed)
    return Transformer.Config(width=WIDTH, heads=2, **{"depth": 3, **options}).build(LAYOUT)


def stack(net: Transformer, x: Tensor, draws: Draws | None = None, modulation: Tensor | None = None) -> Tensor:
    """All blocks without the last norm."""
    with torch.no_grad():
        return net.stack(x, PLACE, Everything(), x.new_zeros(len(x), 1, WIDTH) if modulation is None else modulation, draws=draws)


# Transformer


def test_drop_path_grows_from_zero_at_the_first_block_to_its_rate_at_the_last() -> None:
    rows, rate = 400, 0.8
    x = torch.randn(rows, SLOTS, WIDTH, generator=torch.Generator().manual_seed(0))
    for block, expected in enumerate((0.0, rate / 2, rate)):
        net = transformer(drop_path=rate, init=Init(std=0.2))
        with torch.no_grad():  # this block's attention is the only branch that adds anything
            for i, (attention, mlp) in enumerate(zip(net.attention, net.mlp)):
                nn.init.zeros_(mlp.out.weight)  # type: ignore[union-attr, arg-type]
                if i != block:
                    nn.init.zeros_(attention.proj.weight)  # type: ignore[union-attr, arg-type]
        added, whole = stack(net, x, Draws.whole(0, 0, rows)) - x, stack(net, x) - x
        dropped = (added == 0).flatten(1).all(1)
        assert float(dropped.float().mean()) == pytest.approx(expected, abs=0.07)
        torch.testing.assert_close(added[~dropped], whole[~dropped] / (1 - expected), atol=1e-5, rtol=1e-4)


def test_scaled_residuals_start_smaller_by_the_root_of_twice_the_depth() -> None:
    depth = 3
    plain, scaled = (dict(transformer(init=Init(std=0.1, scale_residual=s)).named_parameters()) for s in (False, True))
    smaller = {name for name, value in plain.items() if not torch.equal(value, scaled[name])}
    assert len(smaller) == 2 * depth  # what each branch adds to the stream
    for name in smaller:
        torch.testing.assert_close(scaled[name] * math.sqrt(2 * depth), plain[name], atol=1e-6, rtol=1e-5)
    x = torch.randn(2, SLOTS, WIDTH, generator=torch.Generator().manual_seed(0))
    sizes = [float((stack(transformer(init=Init(std=0.1, scale_residual=s)), x) - x).std()) for s in (False, True)]
    assert sizes[1] == pytest.approx(sizes[0] / math.sqrt(2 * depth), rel=0.1)


@pytest.mark.parametrize("sharing", ["own", "shared"])
def test_blocks_modulated_by_adaptive_norms_start_as_near_the_identity_as_gamma_is_small(sharing: Literal["own", "shared"]) -> None:
    draw = torch.Generator().manual_seed(0)
    x, modulation = torch.randn(4, SLOTS, WIDTH, generator=draw), torch.randn(4, 1, WIDTH, generator=draw)
    moved = {}
    for gamma in (0.0, 0.01, 0.02, 1.0):
        net = transformer(norm=AdaLN.Config(gamma=gamma, sharing=sharing), init=Init(std=0.2))
        moved[gamma] = float((stack(net, x, modulation=modulation) - x).std())
    assert moved[0.0] == 0
    assert moved[0.02] == pytest.approx(2 * moved[0.01], rel=0.05)
    assert 0 < moved[0.01] < 0.05 * moved[1.0]


def test_cosine_similarities_stay_below_their_ceiling_whatever_is_learned() -> None:
    start, ceiling = 4.0, 10.0
    compare = CosineSimilarity(start=start, ceiling=ceiling).build(heads=2, head_width=8)
    q = 100 * torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))

    def own() -> Tensor:
        """Of each query with itself: the temperature, since the cosine is one."""
        a, b, factor = compare(q, q)
        return (a * b).sum(-1) * factor

    torch.testing.assert_close(own(), torch.full((1, 2, 3), start))
    for learned, expected in ((math.log(7.0), 7.0), (50.0, ceiling)):
        for parameter in compare.parameters():
            nn.init.constant_(parameter, learned)
        torch.testing.assert_close(own(), torch.full((1, 2, 3), expected))


# Losses


def test_the_cross_entropy_of_uniform_noise_is_added_to_its_bound() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, ids, x = (
        torch.randn(2, 3, 5, generator=draw),
        torch.randint(5, (2, 3), generator=draw),
        torch.randint(5, (2, 3), generator=draw),
    )
    given = (logits, ids, x, torch.full((2, 1), 0.7), torch.full((2, 1), 0.3), 10)
    more = Uniform(cross_entropy=0.25).loss(*given) - Uniform().loss(*given)
    torch.testing.assert_close(more, 0.25 * nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(2, 3))
    noise = registry.get("vq_ddm").config(registry.get("vq_ddm").tiny).noise  # type: ignore[attr-defined]
    assert isinstance(noise, Uniform)
    assert noise.cross_entropy > 0


def flow_tokenizer(recipe: str) -> FlowTokenizer:
    def spec(name: str) -> ModelSpec:
        given: dict[str, Any] = {"signal": signals.image(16, 1).to_dict()}
        if name == "layton":
            given["tokenizer"] = spec("kl").to_dict()
        return ModelSpec("tokenizer", name, dict(registry.get(name).tiny), {}, given)

    torch.manual_seed(0)
    model = spec(recipe).build()
    assert isinstance(model, FlowTokenizer)
    return model


def images(rows: int) -> Tensor:
    return torch.rand(rows, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_a_flow_with_weighting_two_is_trained_on_the_error_of_its_velocity() -> None:
    rows, image = 32, images(32)
    model = flow_tokenizer("flextok")
    decoder = model.decoder
    assert isinstance(decoder, Flow)
    z_BNZ, _ = model.conditions(model.eval().encode(image))
    calls: list[tuple[Tensor, ...]] = []
    decoder.net.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], inputs[1], output)))
    found = {}
    for weighting in (0.0, 1.0, 2.0):
        decoder.config = replace(decoder.config, weighting=weighting)
        found[weighting] = float(decoder.losses(z_BNZ, image, Draws.whole(0, 0, rows))[0]["flow"])
    x_BCHW, t_B, image_hat = calls[0]
    t = t_B[:, None, None, None]
    assert float(t.max()) < 1 - NEAREST
    noise = (x_BCHW - t * image) / (1 - t)
    velocity = (image_hat - x_BCHW) / (1 - t)
    error_B = (velocity - (image - noise)).square().flatten(1).mean(1)
    for weighting, value in found.items():
        assert value == pytest.approx(float(((1 - t_B) ** (2 - weighting) * error_B).mean()), rel=1e-4)
    assert found[0.0] < found[1.0] < found[2.0]


@torch.no_grad()
def test_consistency_compares_neighbouring_noise_levels() -> None:
    rows, image = 64, images(64)
    model = flow_tokenizer("layton")
    decoder = model.decoder
    assert isinstance(decoder, Consistency)
    z_BNZ, _ = model.conditions(model.eval().encode(image))
    asked: list[Tensor] = []
    decoder.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))
    for step in (0, 9):
        asked.clear()
        draws = Draws.whole(0, step, rows, 10)
        parts, _ = decoder.losses(z_BNZ, image, draws)
        levels = decoder.level_count(draws.progress)
        ends = SMALLEST ** (1 / RHO), decoder.config.largest ** (1 / RHO)
        grid = torch.linspace(*ends, levels) ** RHO
        low_B, high_B, top_B = torch.cat(asked).view(-1, rows).sort(0).values
        assert bool((top_B == decoder.config.largest).all())
        index = [(each[:, None] - grid).abs().argmin(1) for each in (low_B, high_B)]
        for each, of in zip((low_B, high_B), index):
            torch.testing.assert_close(each, grid[of], atol=1e-6, rtol=1e-4)
        assert torch.equal(index[1], index[0] + 1)
        assert len(index[0].unique()) > levels / 2
        assert float(parts["consistency"]) > 0


# Coarse to fine


def test_the_net_of_codes_is_trained_with_dropout() -> None:
    rows = 8
    losses = {}
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        args = {**registry.get("coarse_to_fine").tiny, "dropout": dropout, "label_dropout": 0.0}
        model = registry.get("coarse_to_fine").config(args).build(layout=TokenLayout(grids=((2, 2),), vocabulary=8), classes=3)  # type: ignore[attr-defined]
        assert isinstance(model, CoarseToFine)
        with torch.no_grad():
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.2)
        ids = torch.randint(8, (rows, 4), generator=torch.Generator().manual_seed(0))
        batch = Batch(tokens=Tokens(ids, model.layout), conditions=Labels(torch.arange(rows) % 3))
        for mode in (False, True):
            model.train(mode)
            losses[dropout, mode] = [float(model.losses(batch, "main", Draws.whole(0, step, rows))["fine"]) for step in (0, 1, 0)]
    for still in ((0.0, False), (0.0, True), (0.5, False)):
        assert losses[still] == [losses[0.0, False][0]] * 3
    first, other, again = losses[0.5, True]
    assert first == again
    assert len({first, other, losses[0.0, False][0]}) == 3
