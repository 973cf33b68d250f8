"""Generators with text conditions: the condition, and that samples follow it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from words import LAYOUT, READ, TEXTS, model, noisy, spec, trained

from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, Labels, Text, TextFeatures, Tokens
from tokenloom.models.core.registry import get
from tokenloom.models.parts.characters import Characters, run_hash
from tokenloom.models.sampling.sampler import Sampler


@pytest.mark.parametrize("options", [{"prefix": "summary"}, {"prefix": "all"}, {"ngrams": [2, 4], "buckets": 64}], ids=str)
@torch.no_grad()
def test_a_text_is_read_alike_whatever_stands_beside_it(options: dict[str, Any]) -> None:
    built = noisy(model({"characters": {**READ, **options}}))
    tokens = Tokens(torch.randint(4, (3, 4), generator=torch.Generator().manual_seed(0)), LAYOUT)
    together = built.log_prob(Batch(tokens=tokens, conditions=Text.of(["a", "longer text", None])))
    for row, text in enumerate(("a", "longer text", "")):
        alone = built.log_prob(Batch(tokens=replace(tokens, data=tokens.data[row : row + 1]), conditions=Text.of([text])))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    assert len({round(float(v), 4) for v in together}) == 3  # and the texts do differ
    dirty = Text.of(["a", "longer text", None])
    dirty = Text(torch.where(dirty.byte_BT == 0, 7, dirty.byte_BT), dirty.length_B)  # what stands after the end is not read
    torch.testing.assert_close(built.log_prob(Batch(tokens=tokens, conditions=dirty)), together, atol=1e-5, rtol=1e-5)


def test_runs_of_bytes_are_told_apart_wherever_they_stand() -> None:
    first, second = (torch.tensor([list(text.encode())]) for text in ("a cat sat", "the cat"))
    hashed = run_hash(first, 4)
    assert hashed[0, 4] == run_hash(second, 4)[0, 6], "' cat' is one run in both"
    assert len(set(hashed[0].tolist())) == 9


@pytest.mark.parametrize(("field", "value"), [("ngrams", [1]), ("ngrams", [17]), ("buckets", 0)])
def test_ngrams_that_are_none_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"condition.{field}="):
        model({"characters": {**READ, field: value}})


@torch.no_grad()
def test_a_missing_caption_is_the_null_text() -> None:
    built = noisy(model())
    asked = Text.of(["all zeros", None])
    assert built.condition.null(asked)["text"].length_B.tolist() == [0, 0]  # type: ignore[union-attr]
    vectors = built.condition(Text.of([None, ""])).vector_BD
    null = built.condition(built.condition.null(asked)).vector_BD
    torch.testing.assert_close(vectors, null)


@pytest.mark.parametrize("prefix", ["summary", "all"])
@torch.no_grad()
def test_guidance_goes_from_the_null_text_to_the_text(prefix: str) -> None:
    built = noisy(model({"characters": {**READ, "prefix": prefix}}))
    given, ids = Text.of(TEXTS), torch.zeros(2, 4, dtype=torch.long)
    steps = [
        list(built.decode_steps(c, built.sampler.edited(guidance=w), SampleDraws.of(0, 0, c.rows), forced=ids))
        for c, w in ((given, 1.0), (given, 0.0), (built.condition.null(given), 0.0))
    ]
    for guided, cond, null in zip(*steps):
        assert guided.logits is not None
        torch.testing.assert_close(guided.logits, 2 * cond.logits - null.logits, atol=1e-4, rtol=1e-4)
        assert (cond.logits - null.logits).abs().max() > 1e-3


def test_a_share_of_texts_is_dropped_by_the_draws_of_the_step_alone() -> None:
    rows = 400
    text, feature = Text.of(["seven"] * rows), TextFeatures(torch.ones(rows, 5, 3), torch.ones(rows, 5, dtype=torch.bool))
    for made, given in ((model(), text), (model({"encoded": {**READ, "encoder": "x", "features": 3}}), feature)):

        def read(conditions: Conditions, own: Any = made.condition) -> tuple[Tensor, Tensor]:
            return own.embed(own.own(conditions))

        whole = read(made.condition.drop(given, Draws.whole(0, 3, rows)))[1].any(1)  # type: ignore[operator]
        assert 0.04 < 1 - float(whole.float().mean()) < 0.16
        half = made.condition.drop(given.part(200, 400), Draws(0, 3, 9, 200, 400, rows))  # type: ignore[attr-defined]
        assert torch.equal(read(half)[1].any(1), whole[200:])  # type: ignore[operator]
        assert bool(read(made.condition.drop(given, None))[1].any(1).all())  # type: ignore[operator]
        assert not read(made.condition.null(given))[1].any()  # type: ignore[operator]


def test_any_net_may_be_asked_in_words() -> None:
    """One with slots and steered norms, and one that looks at a memory; no part of the reader is idle."""
    for recipe, prefix in (("var", "summary"), ("infinity", "none")):
        codec = get(recipe).codec
        made_by = ModelSpec("tokenizer", codec, dict(get(codec).tiny), {}, {"signal": signals.image(16, 1).to_dict()})
        layout = made_by.build().layout  # type: ignore[union-attr]
        given = {"layout": layout.to_dict(), "classes": 2, "tokenizer": made_by.to_dict()}
        edits = {"condition": {"characters": {**READ, "prefix": prefix}}}
        built = ModelSpec("generator", recipe, dict(get(recipe).tiny), edits, given).build()
        shape = (2, layout.length) + ((layout.codebooks,) if layout.codebooks > 1 else ())
        batch = Batch(tokens=Tokens(torch.zeros(shape, dtype=torch.long), layout), conditions=Text.of(TEXTS))
        for parameter in built.parameters():  # heads that start at zero let nothing through
            if not parameter.any():
                torch.nn.init.normal_(parameter, 0, 0.02)
        built.losses(batch, "main", Draws.whole(0, 0, 2))["loss"].backward()
        idle = [n for n, p in built.named_parameters() if n.startswith("condition") and (p.grad is None or not p.grad.any())]
        assert not idle


def test_wrong_conditions_are_clear_errors() -> None:
    for built, wrong, message in (
        (model(), Labels(torch.tensor([1])), "conditioned on texts, got Labels"),
        (model({}), Text.of(["seven"]), "conditioned on class labels, got Text"),
        (model(), Text.of(["x" * 13]), "a text of 13 bytes; this model takes at most 12"),
        (model({"encoded": {**READ, "encoder": "x", "features": 3}}), TextFeatures(torch.zeros(1, 2, 4)), "width 4; .* of width 3"),
    ):
        with pytest.raises(ValueError, match=message):
            built.generate(wrong, built.sampler, SampleDraws.of(0, 0, 1))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"characters": {"lenth": 3}}, "characters: unknown field 'lenth'; fields here: length"),
        ({"characters": {"length": "long"}}, "characters.length: 'long' is not a valid int"),
        ({"letters": {}}, "write one of classes, characters, encoded"),
        ({"encoded": {"features": 3}}, "encoded: missing .* 'encoder'"),
        ({"text_features": {"features": "x"}}, "text_features.features: 'x' is not a valid int"),
        ({"characters": {"length": 0}}, "condition.length=0"),
        ({"characters": {"heads": 5}}, "condition.heads=5: must divide the net's width, 32"),
    ],
)
def test_a_condition_is_written_in_a_run_file_and_checked(condition: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(condition).build()


def test_fields_of_a_chosen_condition_can_be_edited_after_it() -> None:
    edits = {"condition": {"characters": {}}, "condition.length": 7}
    config = ModelSpec("generator", "raster", {}, edits).config()
    assert config.condition == Characters.Config(length=7)  # type: ignore[attr-defined]


def test_samples_follow_the_caption() -> None:
    rows = 32
    captions = [TEXTS[i % 2] for i in range(rows)]
    ids = torch.tensor([[0] * 4, [3] * 4])[torch.arange(rows) % 2]
    built = trained(model(), Text.of(captions), ids)
    plain = Sampler()
    asked = Text.of([TEXTS[i % 2] for i in range(200)])
    drawn = built.generate(asked, plain, SampleDraws.of(1, 0, asked.rows)).ids
    right = (drawn == ids[:2][torch.arange(200) % 2]).all(1).float().mean()
    assert right > 0.95
    # the null text has seen both, so it draws both
    null = built.generate(Text.of([None] * 200), plain, SampleDraws.of(1, 0, 200)).ids[:, 0]
    assert 0.2 < float((null == 0).float().mean()) < 0.8
    again = built.generate(asked, plain, SampleDraws.of(1, 0, asked.rows)).ids
    assert torch.equal(drawn, again)
    assert not torch.equal(null, built.generate(Text.of([None] * 200), plain, SampleDraws.of(2, 0, 200)).ids[:, 0])
