"""Conditions by name: a class and a control image at once, each with its own null and dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, Labels, TokenLayout, Tokens, Values
from tokenloom.models.core.registry import get
from tokenloom.models.parts.conditioners.several import Control, Several
from tokenloom.models.parts.conditions import ClassCondition

LAYOUT = TokenLayout(grids=((2, 2),), vocabulary=8)
CONDITION = Several.Config(parts=(ClassCondition.Config(dropout=0.5), Control.Config(rows=4, columns=6, patch=2, dropout=0.5)))


def model() -> Any:
    torch.manual_seed(0)
    config: Any = get("raster").config({**get("raster").tiny, "dropout": 0.0})
    return replace(config, condition=CONDITION).build(LAYOUT, 3)


def conditions(rows: int, fill: float | None = None) -> Conditions:
    value = torch.rand(rows, 1, 4, 6, generator=torch.Generator().manual_seed(1)) if fill is None else torch.full((rows, 1, 4, 6), fill)
    return Conditions({"class": Labels(torch.arange(rows) % 3), "control": Values(value)})


def test_prefixes_follow_each_other_and_vectors_add_up() -> None:
    both = model().condition
    given = conditions(5)
    found, parts = both(given), [part(given) for part in both.parts]
    assert both.prefix == 7
    torch.testing.assert_close(found.prefix_BPD, torch.cat([part.prefix_BPD for part in parts], 1))
    torch.testing.assert_close(found.vector_BD, parts[0].vector_BD + parts[1].vector_BD)
    assert torch.equal(found.memory_BTD, parts[1].memory_BTD)


def test_each_condition_is_dropped_by_itself_and_the_null_is_of_all() -> None:
    both, rows = model().condition, 400
    dropped = both.drop(conditions(rows), Draws.whole(0, 0, rows))
    classes = (dropped["class"].label_B == 3).float()
    control = (~dropped["control"].present_B).float()
    for share in (classes.mean(), control.mean(), (classes * control).mean() / 0.5):
        assert 0.4 < float(share) < 0.6
    half = both.drop(conditions(rows).part(200, 400), Draws(0, 0, 1, 200, 400, rows))
    assert torch.equal(half["control"].present_B, dropped["control"].present_B[200:])
    null = both(both.null(conditions(3)))
    assert torch.equal(null.vector_BD[0], null.vector_BD[2])
    assert torch.equal(both(both.null(conditions(3, 0.3))).prefix_BPD, null.prefix_BPD)


def test_it_trains_and_samples_under_both_conditions() -> None:
    built = model()
    tokens = Tokens(torch.randint(8, (6, 4), generator=torch.Generator().manual_seed(0)), LAYOUT)
    batch = Batch(tokens=tokens, conditions=conditions(6))
    built.train().losses(batch, "main", Draws.whole(0, 0, 6))["loss"].backward()
    assert all(p.grad is not None for p in built.condition.parameters())
    built.eval()
    torch.nn.init.normal_(built.head.logits_of.weight if hasattr(built.head, "logits_of") else next(built.head.parameters()))
    drawn = built.generate(conditions(6), built.sampler, SampleDraws.of(0, 0, 6))
    assert drawn.data.shape == (6, 4)
    first = [next(built.decode_steps(conditions(6, fill), built.sampler, SampleDraws.of(0, 0, 6))).logits for fill in (0.0, 1.0)]
    assert not torch.equal(first[0], first[1])


def test_what_does_not_fit_is_named() -> None:
    built = model()
    with pytest.raises(ValueError, match=r"values by the name 'control', got Labels"):
        built.condition(Conditions.of(Labels(torch.zeros(2, dtype=torch.int64))))
    with pytest.raises(ValueError, match="values of shape"):
        built.condition(Conditions({"class": Labels(torch.zeros(2, dtype=torch.int64)), "control": Values(torch.zeros(2, 1, 6, 4))}))
    with pytest.raises(ConfigError, match="each condition once"):
        Several.Config(parts=(ClassCondition.Config(), ClassCondition.Config()))
    with pytest.raises(ConfigError, match="must divide"):
        Control.Config(rows=4, columns=5, patch=2)
    with pytest.raises(ValueError, match="different numbers of rows"):
        Conditions({"class": Labels(torch.zeros(2, dtype=torch.int64)), "control": Values(torch.zeros(3, 1))})
