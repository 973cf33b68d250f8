"""Relaxed decoders: their strict ends are exact, and what they move stays within the bound that they state."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from enumerable import LARGER, PLAIN, pair
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.bild import BiLD
from tokenloom.models.sampling.decoders.draft import DraftModel
from tokenloom.models.sampling.decoders.gsd import GSD
from tokenloom.models.sampling.decoders.jacobi import Jacobi
from tokenloom.models.sampling.decoders.lantern import Lantern
from tokenloom.models.sampling.decoders.relaxed import BigLittle, Grouped, Neighbours, Rule, neighbours
from tokenloom.models.sampling.rejection import acceptable

ROWS = 5


def sampled(decoder: Decoder) -> tuple[Tensor, dict[str, int]]:
    model = pair("raster", layout=LARGER, scale=0.2)
    sampler = replace(PLAIN, decoder=decoder)
    model.check_sampler(sampler)
    tokens, trace = model.decode(Labels(torch.arange(ROWS) % 2), sampler, SampleDraws.of(3, 0, ROWS))
    return tokens.ids, trace.calls


@pytest.mark.parametrize(
    ("strict", "plain"),
    [(GSD(window=8, half=0), Jacobi(window=8)), (Lantern(window=3, bound=0.0), DraftModel(window=3))],
    ids=["gsd", "lantern"],
)
def test_the_strict_end_is_the_exact_decoder(strict: Decoder, plain: Decoder) -> None:
    assert torch.equal(sampled(strict)[0], sampled(plain)[0])


def test_a_little_model_that_is_never_sure_leaves_all_to_the_big_one() -> None:
    ids, calls = sampled(BiLD(window=3, fallback=2.0))
    assert calls["net"] == LARGER.length
    careless, few = sampled(BiLD(window=3, fallback=0.0, rollback=1e6))
    assert few["net"] <= 2 + -(-(LARGER.length - 1) // 4)  # nothing is ever taken back
    assert not torch.equal(ids, careless)


def test_the_big_model_takes_back_what_costs_it_more() -> None:
    target, draft = torch.tensor([[[0.1, 0.9]]] * 3), torch.tensor([[[0.6, 0.4]]] * 3)
    token = torch.tensor([[0], [1], [1]])
    held = BigLittle(fallback=0.5, rollback=2.0).holds(target, draft, token, torch.zeros(3, 1))
    assert held.flatten().tolist() == [False, True, True]
    assert not BigLittle(fallback=0.7, rollback=9.0).holds(target, draft, token, torch.zeros(3, 1)).any()


# --- one entry, all of whose drafts are listed ---------------------------------------------------------------------

CODES = 12


def entry(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the net says and what drafts were drawn from, (V,) each, and directions of the codes."""
    draw = torch.Generator().manual_seed(seed)
    q, p = (torch.randn(CODES, generator=draw).mul(1.5).softmax(0) for _ in range(2))
    return q, p, torch.nn.functional.normalize(torch.randn(CODES, 3, generator=draw), dim=-1)


def outcome(rule: Rule | None, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution of the token (V,) and with what probability each draft holds (V,), by bisection of the deciding number."""
    token = torch.arange(CODES)[:, None]
    target, draft = (each.expand(CODES, 1, -1) for each in (q, p))
    low, high = torch.zeros(CODES, 1), torch.ones(CODES, 1)
    for _ in range(24):
        middle = (low + high) / 2
        holds = (acceptable if rule is None else rule.holds)(target, draft, token, middle)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    chance = high.flatten()
    rest = (target - draft).clamp_min(0) if rule is None else rule.rest(target, draft, token)
    rest = rest[:, 0] / rest[:, 0].sum(-1, keepdim=True)
    return p * chance + (p * (1 - chance)) @ rest, chance


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().sum() / 2)


@pytest.mark.parametrize("seed", range(4))
def test_groups_move_an_entry_by_no_more_than_what_holds_otherwise(seed: int) -> None:
    q, p, latent = entry(seed)
    exact, chance = outcome(None, q, p)
    assert distance(exact, q) < 1e-5
    assert float((p * chance).sum()) == pytest.approx(1 - distance(p, q), abs=1e-5)  # what holds: one less the total variation
    moved, relaxed = outcome(Grouped(latent, 3, 0.15, 1.2), q, p)
    stated = float((p * (relaxed - chance).abs()).sum())
    assert distance(moved, q) <= stated + 1e-5
    assert stated > 0.01, "a rule that changes nothing shows nothing"


@pytest.mark.parametrize("bound", [0.05, 0.2])
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_move_the_distribution_by_less_than_the_bound(seed: int, bound: float) -> None:
    q, p, latent = entry(seed)
    rule = Neighbours(neighbours(latent, 6), bound)
    token = torch.arange(CODES)[:, None]
    mass = rule.moved(q.expand(CODES, 1, -1), token)[1].sum(-1)
    assert float(mass.max()) < bound
    assert float(mass.max()) > 0
    # A drafter that always says the same: what comes out is the moved distribution itself, within the bound of the net's.
    for code in range(CODES):
        sure = torch.full((CODES,), 1e-9).scatter(0, torch.tensor(code), 1.0)
        moved, chance = outcome(rule, q, sure)
        assert distance(moved, q) <= bound + 1e-5
        assert float(chance[code]) == pytest.approx(min(1.0, float(q[code] + mass[code, 0])), abs=1e-5)
    assert cast(Tensor, outcome(rule, q, p)[1] >= outcome(None, q, p)[1] - 1e-6).all()
