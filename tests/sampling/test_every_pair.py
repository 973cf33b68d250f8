"""Every way to decode on every generator: it draws what the generator draws, or says beforehand why it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import zoo

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.decoders.base import decoders
from tokenloom.models.sampling.decoders.trees import TreeDecoder

#: Fields that suit tiny models, where the defaults do not.
FIELDS: dict[str, dict[str, Any]] = {
    "code": {"drafts": 1},
    "stage_var": {"unguided": 1},
    "jacobi": {"window": 4},
    "mc_jacobi": {"window": 4},
    "gsd": {"window": 4},
    "bild": {"window": 3},
    "stree": {"widths": [2, 1]},
    "opt_tree": {"nodes": 4, "depth": 2},
}
#: What draws the same as group after group, seed for seed.
SAME = {"group_wise", *(name for name, kind in decoders().items() if issubclass(kind, TreeDecoder))}
SHORT = {("raster", "stree"), ("aim", "mc_jacobi"), ("rar", "gsd"), ("var", "hack"), ("var", "code"), ("maskgit", "jacobi")}
PAIRS = [
    pytest.param(name, decoder, marks=() if (name, decoder) in SHORT else pytest.mark.long)
    for name in registry.names("generator")
    for decoder in decoders()
]


@pytest.mark.parametrize(("name", "decoder"), PAIRS)
def test_a_decoder_works_or_says_why_not(name: str, decoder: str) -> None:
    model = cast(Any, zoo.build(name)).eval()
    if isinstance(model, GroupGenerator):
        drafts = "maskgit" if decoder == "diffuspec" else name
        other = zoo.build(drafts, seed=1).eval()
        model.use_draft_model(cast(GroupGenerator, other) if isinstance(other, GroupGenerator) else None)
    rows = 3
    own = getattr(model, "sampler", None)
    if own is None:
        pytest.skip("its sampler is not a setting")
    sampler = own.edited(decoder={decoder: FIELDS.get(decoder, {})})
    try:
        model.check_sampler(sampler)
    except ConfigError as error:
        assert str(error).startswith(f"sample.decoder={decoder}: ")  # noqa: PT017
        assert len(str(error)) > len(f"sample.decoder={decoder}: ") + 10  # noqa: PT017
        return
    conditions = Labels(torch.arange(rows) % zoo.CLASSES)
    tokens = model.generate(conditions, sampler, SampleDraws.of(2, 0, rows))
    assert isinstance(tokens, Tokens)
    model.layout.check(tokens.layout)
    if model.layout.discrete:
        assert bool(((tokens.ids >= 0) & (tokens.ids < model.layout.vocabulary)).all())
    else:
        assert bool(tokens.data.isfinite().all())
    if decoder in SAME:
        plain = model.generate(conditions, replace(sampler, decoder=None), SampleDraws.of(2, 0, rows))
        assert int((tokens.data != plain.data).flatten(1).any(1).sum()) <= 1
