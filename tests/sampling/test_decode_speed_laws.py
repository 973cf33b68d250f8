"""What decoding and training leave out: work done before, masks that hide nothing, questions that a GPU would have to answer first.

Tensors on the meta device have shapes and no values: what runs on them waits for no value of a GPU.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Labels, LayoutError, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts import norms
from tokenloom.models.parts.cache import MemoryCache
from tokenloom.models.parts.decoders.flow import Flow
from tokenloom.models.parts.heads.chained import Chained
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.orders import Raster, Scales
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival, counts
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.visibility import Causal, Everything
from tokenloom.models.sampling import session
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.models.zoo.generators.flexvar.feed import FlexibleScale
from tokenloom.models.zoo.generators.infinity.net import CrossTransformer
from tokenloom.models.zoo.generators.nar.feed import Neighbours

CLASSES, ROWS = 3, 4
LABELS = Labels(torch.arange(ROWS) % CLASSES)


def made(name: str, **changes: Any) -> GroupGenerator:
    """The tiny model of a recipe with weights away from their start, in eval mode."""
    recipe = registry.get(name)
    codec = ModelSpec("tokenizer", recipe.codec, dict(registry.get(recipe.codec).tiny), {}, {"signal": signals.image(16, 1).to_dict()})
    given = {"layout": cast(Any, codec.build()).layout.to_dict(), "classes": CLASSES, "tokenizer": codec.to_dict()}
    torch.manual_seed(0)
    model = ModelSpec("generator", name, {**recipe.tiny, **changes}, {}, given).build()
    assert isinstance(model, GroupGenerator)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    return model.eval()


def drawn(model: GroupGenerator, seed: int = 0) -> Tensor:
    return model.generate(LABELS, model.sampler.edited(guidance=1.0), SampleDraws.of(seed, 0, LABELS.rows)).ids


# --- modulation made ahead ----------------------------------------------------------------------------------------


class EachStep(norms.Ahead):
    """The law: the vectors themselves, which norms map step by step."""

    def __init__(self, vector_BTD: Tensor) -> None:
        self.vector_BTD = vector_BTD

    def part(self, start: int, slots: int) -> Any:
        return self.vector_BTD if self.vector_BTD.shape[1] == 1 else self.vector_BTD[:, start : start + slots]


@pytest.mark.parametrize(("name", "expected"), [("rar", 5), ("var", 1), ("aim", 1)])
def test_modulation_made_ahead_is_that_of_each_step(name: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, products = made(name), Counter[str]()
    cast(Any, model.net).norm.maps[0].register_forward_hook(lambda *_: products.update(["map"]))
    monkeypatch.setattr(norms, "ROWS", 4 * 2 * ROWS)  # four slots of guided rows; sixteen steps have 18 slots
    ahead, together = drawn(model), products["map"]
    monkeypatch.setattr(session, "Ahead", EachStep)
    assert torch.equal(ahead, drawn(model))
    assert together == expected < products["map"] - together


# --- heads that draw codebook after codebook ----------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["tokenbridge_ar", "open_magvit2"])
def test_codebooks_drawn_with_a_cache_are_those_drawn_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = cast(Chained, made(name).head)
    h_BND = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    looked: list[int] = []
    run = head.run

    def counted(x: Tensor, *given: Any) -> Tensor:
        looked.append(x.shape[1])
        return run(x, *given)

    def whole(features: Tensor, choose: Callable[[int, Tensor], Tensor]) -> None:
        """The law, without a cache: every entry again for each codebook."""
        x = head.first(features)[:, None]
        for q, out in enumerate(head.out):
            ids = choose(q, out(run(x, features, slice(0, q + 1), Causal())[:, -1]))
            if q + 1 < len(head.out):
                x = torch.cat([x, head.known(q, ids)[:, None]], dim=1)

    def draw(seed: int) -> Tensor:
        return head.draw(Hidden(h_BND, 0.5 * h_BND), Sampler(), Moment(0, 1, 0, 5, 5), SampleDraws.of(seed, 0, 2)).data

    monkeypatch.setattr(head, "run", counted)
    cached = draw(3)
    assert looked == [1] * len(head.out), "each entry goes through the net once"
    monkeypatch.setattr(head, "walk", whole)
    assert torch.equal(cached, draw(3))
    assert not torch.equal(cached, draw(4))


# --- looks at a memory --------------------------------------------------------------------------------------------


def test_a_memory_is_projected_once_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("infinity")
    net = model.net
    assert isinstance(net, CrossTransformer)
    asked: list[int] = []

    def counted(layer: int, project: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def call(memory: Tensor) -> Any:
            asked.append(layer)
            return project(memory)

        return call

    for i, look in enumerate(net.look):
        monkeypatch.setattr(look, "project", counted(i, cast(Any, look).project))
    first = drawn(model)
    assert asked == list(range(len(net.look)))
    assert torch.equal(drawn(model), first)
    assert len(asked) == 2 * len(net.look), "another generation looks at its own memory"
    monkeypatch.setattr(MemoryCache, "once", lambda self, make: make())
    assert torch.equal(drawn(model), first)
    assert len(asked) == (2 + len(model.layout.grids)) * len(net.look)


# --- masks --------------------------------------------------------------------------------------------------------


def masks(model: GroupGenerator, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the net is given as visibility, step by step."""
    told: list[Any] = []
    forward = model.net.forward

    def listened(slots: Any, visibility: Any, *given: Any) -> Any:
        told.append(visibility)
        return forward(slots, visibility, *given)

    monkeypatch.setattr(model.net, "forward", listened)
    drawn(model)
    return told


@pytest.mark.parametrize("name", ["srdd", "hmar", "var"])
def test_a_step_that_is_given_all_it_sees_has_no_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = masks(made(name), monkeypatch)
    assert len(told) >= 3
    assert all(isinstance(visibility, Everything) for visibility in told)


def test_a_window_over_kept_slots_stays_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("var")
    model.order = Scales(window=1)  # the feed keeps all earlier scales in the cache
    first, second, third = masks(model, monkeypatch)
    assert isinstance(first, Everything)
    cpu = torch.device("cpu")
    assert second.mask(4, 5, cpu).shape[-1] == 5
    assert second.mask(4, 5, cpu).all()
    assert third.mask(16, 21, cpu)[0, 0, 0].tolist() == [False] + [True] * 20


# --- the flow decoder ---------------------------------------------------------------------------------------------


def flow() -> Flow:
    entry = registry.get("flextok")
    torch.manual_seed(0)
    model = ModelSpec("tokenizer", "flextok", dict(entry.tiny), {}, {"signal": signals.image(16, 1).to_dict()}).build().eval()
    assert isinstance(model, FlowTokenizer)
    assert isinstance(model.decoder, Flow)
    return model.decoder


def test_decoding_keeps_no_earlier_step(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = flow()
    decoder.config = replace(decoder.config, steps=8)
    z_BNZ, keep_B = torch.randn(2, decoder.length, decoder.net.tokens.in_features), torch.full((2,), decoder.length)
    guesses: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    trajectory = decoder.trajectory

    def watched(*given: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for step in trajectory(*given):
            guesses.append(weakref.ref(step[1]))
            alive.append(sum(guess() is not None for guess in guesses))
            yield step

    last = list(trajectory(z_BNZ, keep_B))[-1][1]
    monkeypatch.setattr(decoder, "trajectory", watched)
    assert torch.equal(decoder.sample(z_BNZ, keep_B), last)
    assert len(alive) == 8
    assert max(alive) <= 2


def test_the_decoder_says_what_stands_for_hidden_tokens() -> None:
    decoder = flow()
    x_BCHW, t_B = torch.randn(2, 1, 16, 16), torch.full((2,), 0.5)
    z_BNZ = torch.randn(2, decoder.length, decoder.net.tokens.in_features)
    seen_BN = torch.arange(decoder.length)[None].expand(2, -1) < 2
    stands = torch.where(seen_BN[..., None], decoder.net.embed(z_BNZ), decoder.unseen)
    assert torch.equal(decoder.image(x_BCHW, t_B, z_BNZ, seen_BN), decoder.net(x_BCHW, t_B, stands))
    other = z_BNZ.clone()
    other[:, 2:] += 1
    assert torch.equal(decoder.image(x_BCHW, t_B, z_BNZ, seen_BN), decoder.image(x_BCHW, t_B, other, seen_BN))
    assert not torch.equal(decoder.image(x_BCHW, t_B, z_BNZ, seen_BN), decoder.image(x_BCHW, t_B, other, ~seen_BN))


# --- values that stay on the device -------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (4, 2), (1, 5), (5, 1), (1, 1)])
def test_neighbours_are_found_without_looking_at_positions(grid: tuple[int, int]) -> None:
    recipe = registry.get("nar")
    config = cast(GroupGenerator.Config, recipe.config(recipe.tiny))
    layout = TokenLayout(grids=(grid,), vocabulary=4)
    feed, plan = cast(Neighbours, config.feed.build(layout, 8, None)), config.order.plan(layout, None)
    feed.check(plan)
    columns, place = grid[1], plan.sequence_BL[0].tolist()
    held = place[: plan.start(plan.groups - 1)]
    expected = [
        (2, 2) if p == 0 else (3 + held.index(p - 1) if p % columns else -1, 3 + held.index(p - columns) if p >= columns else -1)
        for p in place
    ]
    asked_L, held_M = plan.sequence_BL[0], plan.sequence_BL[0, : len(held)]
    assert feed._reads(asked_L, held_M, 3).tolist() == [[list(pair) for pair in expected]]
    assert feed._reads(asked_L.to("meta"), held_M.to("meta"), 3).shape == (1, len(place), 2)


def test_neighbours_refuse_groups_that_are_no_diagonals() -> None:
    recipe = registry.get("nar")
    config = cast(GroupGenerator.Config, recipe.config(recipe.tiny))
    layout = TokenLayout(grids=((2, 2),), vocabulary=4)
    feed = cast(Neighbours, config.feed.build(layout, 8, None))
    with pytest.raises(LayoutError, match="diagonals"):
        feed.check(Raster().plan(layout))


def test_scales_are_told_by_their_sizes() -> None:
    feed = cast(FlexibleScale, made("flexvar").feed)
    plan = made("flexvar").order.plan(feed.layout, None)
    assert feed._grids(plan.to(torch.device("meta"))) == list(feed.layout.grids)
    some = replace(plan, sequence_BL=plan.sequence_BL[:, [0, *range(5, 21)]], sizes=(1, 16))
    assert feed._grids(some) == [(1, 1), (4, 4)]
    with pytest.raises(LayoutError, match="groups that are scales"):
        feed._grids(replace(plan, sizes=(1, 5, 15)))
    feed.layout = replace(feed.layout, grids=((1, 1), (2, 3), (3, 2)))
    assert feed._grids(replace(plan, sizes=(1, 6, 6))) == [(1, 1), (2, 3), (3, 2)]
    with pytest.raises(LayoutError, match="groups that are scales"):
        feed._grids(replace(plan, sizes=(1, 6)))  # which of the two?


def test_a_codebook_takes_a_batch_in_without_asking_the_device() -> None:
    config = Codebook.Config(codes=6, dim=2, update=EMA(), start=KMeans(), revival=Revival())
    book, z_BPC = config.build(("a", "b"), (1.0, 1.0)).train(), torch.randn(3, 4, 2)
    ids_BP = book.nearest(z_BPC.flatten(0, 1)).view(3, 4)
    assert torch.equal(counts([ids_BP, ids_BP[:1]], 6), torch.stack([i.flatten().bincount(minlength=6) for i in (ids_BP, ids_BP[:1])]))
    book.observe([(z_BPC, ids_BP)] * 2, Draws.whole(0, 0, 3))
    book.after_step(Draws.whole(0, 0, 3))
    assert book.ready
    state = {name: value.clone() for name, value in book.state_dict().items()}
    book.to("meta").observe([(z_BPC.to("meta"), ids_BP.to("meta"))] * 2, Draws.whole(0, 1, 3, device="meta"))
    again = config.build(("a", "b"), (1.0, 1.0))
    assert not again.ready
    again.load_state_dict(state)
    assert again.ready
    again.load_state_dict(state | {"started": torch.tensor(False)})
    assert not again.ready
