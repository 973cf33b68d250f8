"""ReFiT: a trained tokenizer whose codebook is rebuilt by k-means, and trained on."""

from __future__ import annotations

import pytest
import torch

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder

SIGNAL = {"signal": signals.image(16, 1).to_dict()}
BASE = ModelSpec("tokenizer", "vq", dict(registry.get("vq").tiny) | {"codes": 64}, {}, SIGNAL)


def test_nets_go_on_and_the_codebook_is_that_of_k_means_on_what_the_encoder_gives() -> None:
    torch.manual_seed(0)
    base = BASE.build()
    model = ModelSpec("tokenizer", "vq_refit", {"codes": 8}, {}, SIGNAL | {"tokenizer": BASE.to_dict()}).build()
    assert isinstance(base, Autoencoder)
    assert isinstance(model, Autoencoder)
    model.adopt(tokenizer=base)
    theirs, ours = base.state_dict(), model.state_dict()
    nets = [name for name in theirs if not name.startswith("quantizer.")]
    assert nets
    assert all(torch.equal(theirs[name], ours[name]) for name in nets)
    assert model.layout.vocabulary == 8
    images = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = Draws.whole(0, 0, 16)
    model.train()
    assert isinstance(model.quantizer, VQ)
    assert not model.quantizer.codebook.ready
    model.losses(Batch(signal=images), "main", draws)["loss"].backward()
    model.after_step(draws)
    assert model.quantizer.codebook.ready
    with torch.no_grad():
        z_BPC = model.quantizer.codebook.placed(model.latents(images).flatten(2).transpose(1, 2))
    ids = model.encode(images).ids
    assert len(ids.unique()) == 8  # all in use
    for code in range(8):  # each is the direction of the mean of what chooses it, or near it
        mean = torch.nn.functional.normalize(z_BPC[ids == code].mean(0), dim=0)
        weight = torch.nn.functional.normalize(model.quantizer.codebook.weight[code], dim=0)
        assert float(mean @ weight) > 0.95


def test_a_base_without_a_codebook_is_refused() -> None:
    kl = ModelSpec("tokenizer", "kl", dict(registry.get("kl").tiny), {}, SIGNAL)
    for given in ({}, {"tokenizer": kl.to_dict()}):
        with pytest.raises(ConfigError, match=r"tokenizer\.base\.recipe: vq"):
            ModelSpec("tokenizer", "vq_refit", {"codes": 8}, {}, SIGNAL | given).build()
