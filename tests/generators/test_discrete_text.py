"""Text conditions through training, sampling and guidance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels, TextFeatures, TokenLayout, Tokens
from tokenloom.models.core.registry import get
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditioners.text_features import TextCondition

ROWS, LENGTH, WIDTH = 4, 5, 6
LAYOUT = TokenLayout(grids=((3, 3),), vocabulary=8)


def text(seed: int = 0, padded: bool = True) -> TextFeatures:
    draw = torch.Generator().manual_seed(seed)
    words = torch.tensor([5, 3, 1, 4]) if padded else torch.full((ROWS,), LENGTH)
    left = torch.arange(LENGTH) >= LENGTH - words[:, None]
    return TextFeatures(torch.randn(ROWS, LENGTH, WIDTH, generator=draw), left)


def prefixed() -> GroupGenerator:
    config = get("raster").config(dict(get("raster").tiny))
    assert isinstance(config, GroupGenerator.Config)
    torch.manual_seed(0)
    return replace(config, condition=TextCondition.Config(features=WIDTH, length=LENGTH)).build(LAYOUT, 1)


def pooled() -> GroupGenerator:
    codec = ModelSpec("tokenizer", "infinity_bsq", dict(get("infinity_bsq").tiny), {}, {"signal": signals.image(16, 1).to_dict()})
    layout = codec.build().layout  # type: ignore[union-attr]
    torch.manual_seed(0)
    args = {**get("infinity").tiny, "text": WIDTH, "length": LENGTH}
    given = {"layout": layout.to_dict(), "classes": 1, "tokenizer": codec.to_dict()}  # type: ignore[operator]
    model = ModelSpec("generator", "infinity", args, {}, given).build()
    assert isinstance(model, GroupGenerator)
    return model


@pytest.mark.parametrize("build", [prefixed, pooled])
def test_text_conditions_train_and_sample(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    layout = model.layout
    shape = (ROWS, layout.length) + ((layout.codebooks,) if layout.codebooks > 1 else ())
    ids = torch.randint(layout.vocabulary, shape, generator=torch.Generator().manual_seed(3))
    batch = Batch(tokens=Tokens(ids, layout), conditions=text())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    history = []
    for step in range(80):
        loss = model.losses(batch, "main", Draws.whole(0, step, ROWS, 80))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss))
    assert history[-1] < 0.5 * history[0]
    model.eval()
    sampler = model.sampler.edited(guidance=0.5, top_k=0)
    first, again, other = (model.generate(text(), sampler, SampleDraws.of(s, 0, text().rows)).ids for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # The text is learned: its own tokens are likelier under it than under another.
    with torch.no_grad():
        own, foreign = (model.log_prob(Batch(tokens=batch.tokens, conditions=c)) for c in (text(), text(seed=9)))
    assert bool((own > foreign).all())


@pytest.mark.parametrize("build", [prefixed, pooled])
@torch.no_grad()
def test_padding_is_not_read(build) -> None:  # type: ignore[no-untyped-def]
    model = build().eval()
    for p in model.parameters():
        p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    layout = model.layout
    shape = (ROWS, layout.length) + ((layout.codebooks,) if layout.codebooks > 1 else ())
    batch = Tokens(torch.zeros(shape, dtype=torch.long), layout)
    given = text()
    assert given.mask_BT is not None
    noise = torch.where(given.mask_BT[..., None], given.feature_BTD, 7.0)
    a, b = (model.log_prob(Batch(tokens=batch, conditions=TextFeatures(f, given.mask_BT))) for f in (given.feature_BTD, noise))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    # and the null text has the mask of the given one
    steps = [
        list(model.decode_steps(c, model.sampler.edited(guidance=w), SampleDraws.of(0, 0, c.rows), forced=batch.ids))
        for c, w in ((given, 1.0), (given, 0.0), (model.condition.null(given), 0.0))
    ]
    for guided, cond, null in zip(*steps):
        assert guided.logits is not None
        torch.testing.assert_close(guided.logits, 2 * cond.logits - null.logits, atol=1e-4, rtol=1e-4)


def test_labels_are_refused_by_text_models() -> None:
    for build in (prefixed, pooled):
        with pytest.raises((ValueError, AssertionError)):
            build().generate(Labels(torch.zeros(2, dtype=torch.long)), build().sampler, SampleDraws.of(0, 0, 2))
