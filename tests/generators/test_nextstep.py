"""NextStep-1: texts stand before the image in one causal stream, and decoding with a cache is the stream itself."""

from __future__ import annotations

import torch

from tokenloom.models.core import registry
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.protocols import Batch, Conditions, Text, Tokens
from tokenloom.models.parts.visibility import Mask
from tokenloom.models.zoo.generators.nextstep.module import NextStep, causal
from tokenloom.models.zoo.generators.nextstep.words import IMAGE, PAD, START

LAYOUT = TokenLayout(grids=((4, 4),), channels=3)


def small(**changes: object) -> NextStep:
    torch.manual_seed(0)
    recipe = registry.get("nextstep")
    model: NextStep = recipe.config(dict(recipe.tiny) | {"length": 6, "patch": 2} | changes).build(layout=LAYOUT, classes=3)  # type: ignore[attr-defined]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_a_text_stands_between_two_symbols_after_its_padding() -> None:
    ids, seen = small().condition.ids(Text.of(["ab", "", "abcdef"]))  # type: ignore[operator]
    a = ord("a") + 3
    assert ids.tolist() == [
        [PAD, PAD, PAD, PAD, START, a, a + 1, IMAGE],
        [PAD, PAD, PAD, PAD, PAD, PAD, START, IMAGE],
        [START, a, a + 1, a + 2, a + 3, a + 4, a + 5, IMAGE],
    ]
    assert torch.equal(seen, ids != PAD)


@torch.no_grad()
def test_decoding_is_the_stream_and_hangs_on_the_text() -> None:
    model, text = small(), Text.of(["ab", "cd"])
    draws = SampleDraws.of(0, 0, 2)
    sampler = model.sampler.edited(guidance=0.0)
    token = model.patches(model.generate(text, sampler, draws).data)
    prefix, seen = model.prompt(text)
    x = torch.cat([prefix, model.embed(token[:, :-1])], 1)
    h = model.states(x, causal(torch.nn.functional.pad(seen, (0, 3), value=True)))[:, -4:]
    cache = model.net.cache(2, 12, prefix)
    each = [model.states(prefix, causal(seen), cache)[:, -1:]]
    for i in range(3):
        seen = torch.nn.functional.pad(seen, (0, 1), value=True)
        each.append(model.states(x[:, 8 + i : 9 + i], Mask(seen[:, None]), cache))
    torch.testing.assert_close(torch.cat(each, 1), h, atol=1e-5, rtol=1e-5)
    other = model.patches(model.generate(Text.of(["ab", "ce"]), sampler, draws).data)
    torch.testing.assert_close(other[0], token[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(other[1], token[1])
    torch.testing.assert_close(model.patches(model.latents(token)), token)


def test_both_losses_are_learned_and_padding_counts_for_nothing() -> None:
    model, draw = small().train(), torch.Generator().manual_seed(0)
    tokens = Tokens(torch.randn(2, 16, 3, generator=draw), LAYOUT)
    batch = Batch(tokens=tokens, conditions=Conditions.of(Text.of(["ab", "abcd"])))
    found = model.losses(batch, "main", Draws.whole(0, 0, 2))
    found["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    torch.testing.assert_close(found["loss"].detach(), found["text"] + found["image"])
    h = torch.randn(1, 4, 32, generator=draw)
    some = model.text_loss(h, torch.tensor([[-100, 5, -100, 6]]))
    torch.testing.assert_close(some, model.text_loss(h[:, [1, 3]], torch.tensor([[5, 6]])))
