"""The lookup-free quantizer of Open-MAGVIT2 (TencentARC/SEED-Voken, Apache-2.0, arXiv:2409.04410): settings and recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.lfq import LFQ
from tokenloom.models.pretrained.names import NameMap
from tokenloom.models.pretrained.options import Options, inert, only, used

FAMILY = "open_magvit2_lfq"
OPTIONS = Options(
    dim=used("bits"),
    factorized_bits=used("of the sub-tokens, in the recorded lookups"),
    sample_minimization_weight=used("of each vector's entropy", default=1.0),
    batch_maximization_weight=used("of the mean's", default=1.0),
    codebook_size=inert("2 to the number of bits"),
    num_codebooks=only(1, why="released with one"),
    token_factorization=inert("changes how ids are counted, which is recorded both ways"),
    hw=used("side of the recorded latents"),
    seed=inert("there are no weights"),
    kind=inert("of the recording"),
)


def config(info: Mapping[str, Any]) -> LFQ.Config:
    """Our config for ``info["config"]``; one codebook, and the weight of the commitment with which it is recorded."""
    c = OPTIONS.read(info)
    sample, batch = c["sample_minimization_weight"], c["batch_maximization_weight"]
    return LFQ.Config(bits=c["dim"], beta=0.25, entropy=Entropy(weight=1.0, confidence=sample, diversity=batch, sums="codes"))


def build(info: Mapping[str, Any]) -> LFQ:
    """The quantizer; it has no weights."""
    return cast(LFQ, config(info).build((OPTIONS.read(info)["hw"],) * 2))


def names(info: Mapping[str, Any]) -> NameMap:
    """There is no state."""
    return NameMap()


def outputs(model: LFQ, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records; ids of the factorised form come from a quantizer with two codebooks."""
    z = inputs["z"].clone().requires_grad_()
    quantized = model(z)
    entropy = model.config.entropy
    assert entropy is not None
    each, mean = entropy.of_bits(z.permute(0, 2, 3, 1).flatten(0, 2), model.scale)
    loss = quantized.losses["entropy"] + quantized.losses["commitment"]
    sizes = tuple(OPTIONS.read(info)["factorized_bits"])
    factorised = replace(model.config, factors=sizes).build(model.grid)
    ids_BL2 = factorised.encode(inputs["z"])
    pre, post = factorised.lookup(ids_BL2).split(list(sizes), 1)
    found = {
        "quant": quantized.z,
        "ids": quantized.ids.flatten(),
        "entropy_aux_loss": quantized.losses["entropy"],
        "per_sample_entropy": each,
        "codebook_entropy": mean,
        "commit_loss": quantized.losses["commitment"] / model.config.beta,
        "z_grad_of_entropy_plus_quarter_commit": torch.autograd.grad(loss, z)[0],
        "codebook_entry": model.lookup(quantized.ids),
        "ids_pre": ids_BL2[..., 0].flatten(),
        "ids_post": ids_BL2[..., 1].flatten(),
        "entry_pre": pre,
        "entry_post": post,
    }
    return {k: v.detach() for k, v in found.items()}
