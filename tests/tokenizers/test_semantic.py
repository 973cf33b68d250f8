"""Semantic regularisation: what it trains, where it looks, and that only training asks for the teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.parts.nets.classifier import Classifier, Protocol, shape_of
from tokenloom.models.tokenizers.autoencoder import Autoencoder

ROWS, SIZE = 16, 16


def images() -> Tensor:
    """Smooth blobs in [-1, 1]."""
    coarse = torch.rand(ROWS, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def spec() -> ModelSpec:
    given = {"signal": signals.image(SIZE, 1).to_dict(), "features": shape_of(1, 3, Protocol(width=4, features=8))}
    return ModelSpec("tokenizer", "gigatok", dict(registry.get("gigatok").tiny), {}, given)


def semantic() -> tuple[Autoencoder, Classifier]:
    """The tiny tokenizer, and a classifier that it has not adopted."""
    torch.manual_seed(0)
    model = spec().build()
    assert isinstance(model, Autoencoder)
    torch.manual_seed(9)
    return model, Classifier.of(shape_of(1, 3, Protocol(width=4, features=8)))


def test_semantic_loss_falls_and_reaches_decoder_and_head() -> None:
    model, classifier = semantic()
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    model.adopt(features=classifier)
    optimizer, history = torch.optim.Adam(model.parameters(), lr=5e-3), []
    for step in range(60):
        parts = model.train().losses(Batch(images()), "main", Draws.whole(0, step, ROWS, 60))
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        history.append(float(parts["semantic"]))
    assert history[-1] < 0.5 * history[0], (history[0], history[-1])
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    assert not any("network" in name or "teacher" in name for name in model.state_dict())
    model.zero_grad()
    head = model.semantic
    assert head is not None
    with head.listening(model.decoder) as heard:
        model(images())
    assert heard[0].shape == (ROWS, 32, 4, 4)
    head(heard[0], images()).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert any(n.startswith("encoder.") for n in moved)
    assert all(n.startswith(("encoder.", "quantizer.", "decoder.reader.", "semantic.head.")) for n in moved), sorted(moved)
    assert "decoder.pixels.linear.weight" not in moved


def test_semantic_features_are_those_at_the_same_place() -> None:
    """The head may only map channels: a teacher whose features are the decoder's own, channel by channel, is met exactly."""
    model, classifier = semantic()
    model.adopt(features=classifier)
    head = model.semantic
    assert head is not None
    target_BEhw = head._teacher[0](images())
    head.head = torch.nn.Identity()  # type: ignore[assignment]
    assert float(head(target_BEhw, images())) == pytest.approx(0.0, abs=1e-5)
    assert float(head(target_BEhw.flip(3), images())) > 1e-3


def test_encoding_and_decoding_need_no_teacher_and_training_says_that_it_does() -> None:
    model, _ = semantic()
    model.eval()
    assert model.decode(model.encode(images())).shape == (ROWS, 1, SIZE, SIZE)
    with pytest.raises(ConfigError, match="classifier"):
        model.losses(Batch(images()), "main", Draws.whole(0, 0, ROWS))
    with pytest.raises(ConfigError, match="given none"):
        replace(spec(), given={"signal": signals.image(SIZE, 1).to_dict()}).build()
    with pytest.raises(ConfigError, match=r"depth=7: the decoder has 2 blocks"):
        replace(spec(), set={"semantic.depth": 7}).build()
