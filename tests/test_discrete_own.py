"""Defining properties of generators that hold a module of their own: coarse labels, discrete states, distilled orders, whole grids."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from test_discrete_more import PLAIN, grid, small, some

from models import registry
from models.coarse_fine import CoarseToFine, clusters
from models.protocols import Batch, Labels, TokenLayout, Tokens
from models.sampling.sampler import Constant

# Coarse to fine


def coarse(layout: TokenLayout, scale: float = 0.3, labels: int = 4) -> CoarseToFine:
    model = small("coarse_to_fine", layout, scale=scale, labels=labels)
    assert isinstance(model, CoarseToFine)
    return model


def test_labels_and_codes_have_a_likelihood_that_sums_to_one() -> None:
    layout = TokenLayout(grids=((1, 2),), vocabulary=6)
    model = coarse(layout, labels=3)
    worlds = torch.tensor(list(product(range(6), repeat=2)))
    batch = Batch(tokens=Tokens(worlds, layout), condition=Labels(torch.ones(36, dtype=torch.int64)))
    probability = model.log_prob(batch).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-4)
    assert float(probability.std()) > 1e-3
    drawn = model.generate(Labels(torch.ones(8000, dtype=torch.int64)), PLAIN, torch.Generator().manual_seed(0)).ids
    found = (drawn[:, 0] * 6 + drawn[:, 1]).bincount(minlength=36) / 8000
    assert float((found - probability).abs().sum() / 2) < 0.05


def test_labels_are_predicted_in_order_and_codes_from_all_labels() -> None:
    layout = grid(3)
    model = coarse(layout)
    ids, labels = some(layout, 1)
    assert model.coarse.head.out.out_features == 4  # type: ignore[union-attr]
    assert len(list(model.coarse.decode_steps(labels, PLAIN, torch.Generator()))) == 9
    label = model.label_V[ids]
    other = label.clone()
    other[0, -1] = (other[0, -1] + 1) % 4
    with torch.no_grad():
        moved = (model._logits(label, labels, None) - model._logits(other, labels, None)).abs().sum(-1)[0] > 1e-5
    assert bool(moved.all())  # the last label is seen everywhere


def test_similar_codes_share_a_label() -> None:
    tokenizer = registry.get("vq").config(dict(registry.get("vq").tiny)).build(size=16, channels=1)  # type: ignore[attr-defined]
    noise = torch.Generator().manual_seed(0)
    centre = torch.eye(4) * torch.tensor([1.0, -1, 1, -1])
    group = torch.arange(16) % 4
    tokenizer.quantizer.codebook.weight.copy_(centre[group] + 0.05 * torch.randn(16, 4, generator=noise))
    model = coarse(tokenizer.layout)
    before = model.label_V.clone()
    model.adopt(tokenizer=tokenizer)
    same = model.label_V[:, None] == model.label_V
    assert torch.equal(same, group[:, None] == group)
    assert not torch.equal(before, model.label_V)
    again = coarse(tokenizer.layout)
    again.adopt(tokenizer=tokenizer)
    assert torch.equal(again.label_V, model.label_V)


def test_no_label_is_left_without_a_code() -> None:
    vector = torch.cat([torch.zeros(6, 2), torch.ones(2, 2)])  # two places for five labels
    assert clusters(vector, 5, 10).unique().tolist() == [0, 1, 2, 3, 4]


def test_codes_are_guided_too(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = grid(2)
    model = coarse(layout)
    ids, labels = some(layout, 200)
    given = Tokens(model.label_V[ids], model.labels_layout)
    monkeypatch.setattr(model.coarse, "generate", lambda *_: given)
    samplers = [replace(PLAIN, guidance=Constant(value=w)) for w in (0.0, 3.0)]
    first, second = (model.generate(labels, s, torch.Generator().manual_seed(0)).ids for s in samplers)
    assert not torch.equal(first, second)
    assert torch.equal(model.label_V[first], given.ids)
    assert torch.equal(model.label_V[second], given.ids)
