"""Options of the official tokenizers that the fixtures leave out: what each must do, on small quantizers."""

from __future__ import annotations

import pytest
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.core.protocols import Tokens
from tokenloom.models.parts.quantizers.codebook import Codebook
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.lfq import LFQ
from tokenloom.models.parts.quantizers.multiscale import MultiScale
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.pretrained.infinity_bsq import scales
from tokenloom.models.tokenizers.autoencoder import checked


@pytest.mark.parametrize("kind", ["vq", "bsq"])
def test_scales_of_any_shape(kind: str) -> None:
    grids = ((1, 1), (2, 1), (4, 3))
    config = (
        MultiScaleBSQ.Config(bits=4, scales=grids)
        if kind == "bsq"
        else MultiScale.Config(codebook=Codebook.Config(codes=8, dim=4), scales=grids)
    )
    torch.manual_seed(0)
    quantizer, z = config.build((4, 3)), torch.randn(2, 4, 4, 3)
    assert config.layout((4, 3)).grids == grids
    ids = quantizer.encode(z)
    assert ids.shape[1] == 1 + 2 + 12
    assert torch.allclose(quantizer.lookup(ids), quantizer(z).z, atol=1e-6)
    # decoding scale by scale gives what teacher forcing gives
    f_hat, given = quantizer.start(2), []
    for scale, part in enumerate(quantizer.split(ids)):
        f_hat, following = quantizer.accumulate(f_hat, scale, part)
        given.append(following)
    assert torch.allclose(torch.cat(given[:-1], 1), quantizer.next_inputs(ids), atol=1e-6)


@pytest.mark.parametrize("wrong", [((2, 2), (1, 3)), ((1, 2), (1, 2)), ((0, 1),), ()])
def test_scales_out_of_order_are_refused(wrong: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ConfigError, match="growing grid sizes"):
        MultiScaleBSQ.Config(bits=4, scales=wrong)


def test_released_schedules() -> None:
    assert scales("0.06M")[-1] == (16, 16)
    assert len(scales("1M")) == 13
    assert scales("0.60M", 2.0)[-1] == (74, 37)
    assert scales("0.60M", 0.5)[-1] == (37, 74)
    assert scales("0.25M", 0.333)[-1] == (18, 54)
    with pytest.raises(ConfigError, match=r"h_div_w=1\.1"):
        scales("1M", 1.1)
    with pytest.raises(ConfigError, match="pn='2M'"):
        scales("2M")


def test_sums_over_codes_are_those_over_bits() -> None:
    z = torch.randn(20, 5, dtype=torch.float64)
    by_bits = Entropy(temperature=0.5).of_bits(z, 1.0)
    by_codes = Entropy(temperature=0.5, sums="codes").of_bits(z, 1.0)
    assert all(torch.allclose(a, b) for a, b in zip(by_bits, by_codes))


def test_the_two_entropies_have_weights_of_their_own() -> None:
    each, mean = torch.tensor(2.0), torch.tensor(3.0)
    assert float(Entropy(weight=0.5, confidence=0.0, diversity=2.0)(each, mean)) == -3.0
    assert float(Entropy(weight=0.5, confidence=4.0, diversity=0.0)(each, mean)) == 4.0


def test_codebooks_of_unequal_size_bound_their_ids() -> None:
    config = LFQ.Config(bits=5, factors=(3, 2))
    layout = config.layout((2, 2))
    assert layout.vocabularies == (8, 4)
    ids = config.build((2, 2)).encode(torch.randn(3, 5, 2, 2))
    assert int(ids[..., 0].max()) < 8
    assert int(ids[..., 1].max()) < 4
    wrong = Tokens(torch.tensor([[[0, 5]] * 4]), layout)
    with pytest.raises(LayoutError, match="codebook 1 has 4 codes"):
        checked(wrong, layout)
    assert isinstance(checked(Tokens(ids, layout), layout), torch.Tensor)
    assert LFQ.Config(bits=4, factors=(2, 2)).layout((2, 2)) == TokenLayout(grids=((2, 2),), vocabulary=4, codebooks=2)
