"""Bitwise self-correction in training: bits are flipped, and later scales are taught what mends them."""

from __future__ import annotations

import torch

from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Labels, TokenLayout, Tokens
from tokenloom.models.core.registry import get
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.zoo.generators.infinity.feed import Corrected

LAYOUT = TokenLayout(grids=((1, 1), (2, 2), (4, 4)), vocabulary=2, codebooks=6)
ROWS = 16


def model(flips: float) -> GroupGenerator:
    """A tiny Infinity over three scales of six bits."""
    torch.manual_seed(0)
    codec = ModelSpec(
        "tokenizer",
        "infinity_bsq",
        {**get("infinity_bsq").tiny, "scales": (1, 2, 4), "bits": 6},
        {},
        {"signal": signals.image(16, 1).to_dict()},
    )
    given = {"layout": LAYOUT.to_dict(), "classes": 3, "tokenizer": codec.to_dict()}
    built = ModelSpec("generator", "infinity", {**get("infinity").tiny, "flips": flips}, {}, given).build()
    assert isinstance(built, GroupGenerator)
    return built


def bits() -> torch.Tensor:
    return torch.randint(2, (ROWS, LAYOUT.length, 6), generator=torch.Generator().manual_seed(1))


def corrupt(flips: float, step: int = 0) -> tuple[Corrected, torch.Tensor, torch.Tensor]:
    feed = model(flips).feed
    assert isinstance(feed, Corrected)
    return feed, *feed.corrupt(bits(), Draws.whole(0, step, ROWS))


def test_without_flips_nothing_changes() -> None:
    _, given, said = corrupt(0.0)
    assert torch.equal(given, bits())
    assert torch.equal(said, bits())


def test_bits_are_kept_until_one_is_flipped() -> None:
    feed, given, said = corrupt(0.3, step=3)
    flipped = [(g != s).flatten(1).any(1) for g, s in zip(feed.bits.split(given), feed.bits.split(said))]
    assert any(bool(f.any()) for f in flipped)
    stored, touched = feed.bits.split(bits()), torch.zeros(ROWS, dtype=torch.bool)
    for scale, part in enumerate(feed.bits.split(said)):
        assert torch.equal(part[~touched], stored[scale][~touched])
        touched = touched | flipped[scale]


def test_what_is_said_mends_what_was_flipped() -> None:
    feed, given, said = corrupt(1.0, step=2)
    quantizer = feed.bits
    z = quantizer.lookup(bits())
    flipped, first = quantizer.split(given)[0], quantizer.split(bits())[0]
    touched = flipped.ne(first).flatten(1).any(1)
    assert bool(touched.any())
    f_hat, _ = quantizer.accumulate(quantizer.start(ROWS), 0, flipped)
    assert torch.equal(quantizer.split(said)[1][touched], (quantizer.direction(z - f_hat, 1) > 0).long()[touched])
    mended, _ = quantizer.accumulate(f_hat, 1, quantizer.split(said)[1])
    stored, _ = quantizer.accumulate(f_hat, 1, quantizer.split(bits())[1])
    assert float((z - mended).square().mean()) < 0.95 * float((z - stored).square().mean())


def test_only_training_flips_and_any_part_of_a_batch_alike() -> None:
    built = model(0.5)
    torch.nn.init.normal_(built.head.out.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    batch = Batch(tokens=Tokens(bits(), LAYOUT), conditions=Labels(torch.arange(ROWS) % 3))
    plain = model(0.0)
    plain.load_state_dict(built.state_dict())
    draws = Draws.whole(0, 3, ROWS)
    assert torch.equal(
        built.eval().losses(batch, "main", draws)["loss"], plain.eval().losses(batch, "main", Draws.whole(0, 3, ROWS))["loss"]
    )
    feed = built.feed
    whole = feed.corrupt(bits(), Draws.whole(0, 3, ROWS))
    part = feed.corrupt(bits()[4:9], Draws(0, 3, 1, 4, 9, ROWS))
    assert all(torch.equal(w[4:9], p) for w, p in zip(whole, part))
    assert not torch.equal(whole[0], whole[1])
